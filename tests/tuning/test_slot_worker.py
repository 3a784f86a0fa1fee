"""What the process of a slot tells a driver that does not listen for a while."""

from __future__ import annotations

import socket
import threading
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

import pytest

from autotune.tuning import slot_worker
from autotune.tuning.progress import At
from autotune.tuning.slot_messages import Beat, Call
from autotune.tuning.slot_worker import Driver, RemoteProgress


def test_a_driver_that_waits_for_its_database_holds_up_neither_requests_nor_leases(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slot_worker, "BEAT_S", 0.0)
    monkeypatch.setattr(slot_worker, "_REPORT_S", 0.0)
    ours, theirs = socket.socketpair()
    driver, listener = Driver(Connection(theirs.detach())), Connection(ours.detach())
    progress: Any = RemoteProgress(driver)
    for done in range(2000):  # more than the socket holds
        progress.progress(At(0), done, 2000)
    often = threading.Semaphore(0)
    driver.servers.append(mock.Mock(renew=lambda: often.release() or True))  # type: ignore[func-returns-value]
    try:
        driver.beat()
        for _ in range(2000):
            assert often.acquire(timeout=60)
        heard = [listener.recv() for _ in range(400)]  # it goes on when somebody listens
        assert isinstance(heard[0], Call)
        assert isinstance(heard[-1], Beat)
    finally:
        listener.close()
        [beats] = [t for t in threading.enumerate() if t.name == "autotune-beat"]
        beats.join(60)
    assert not beats.is_alive()
