"""The actor of one slot, without Ray: what it passes on, and its lease."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml

from autotune.bench.server_metrics import ServerStats
from autotune.engine.gpus import Gpu
from autotune.engine.probe import UNKNOWN
from autotune.serving.process_tree import Identity
from autotune.serving.slots import Slot
from autotune.study.files import parse_study
from autotune.tuning import late_outcomes, ray_actor
from autotune.tuning.late_outcomes import LateOutcome
from autotune.tuning.ray_actor import Begin, EndLeft, Forget, Signal, SlotActor
from autotune.tuning.slot_messages import Beat, Call, Done, Ended, FromSlot, Setup
from autotune.tuning.trial import Measured
from tests.studies import wait_until
from tests.tuning.executors import trial

CORES = tuple(sorted(os.sched_getaffinity(0)))[:1]
LOADED: Any = SimpleNamespace(spec=SimpleNamespace(server=SimpleNamespace(stop_timeout_s=1)))


class Asked:
    """An actor, and a driver that asks it."""

    def __init__(self, folder: Path) -> None:
        self.actor = SlotActor("tests.tuning.slot_double")
        self.sent = self.got = 0
        nothing: Any = None
        slot = Slot(0, 1, CORES)
        setup = Setup(slot, nothing, nothing, nothing, nothing, folder)
        self.begin = Begin(setup, {"SLOT_TEST": "this slot", "RAY_OF": "nobody"})

    def tell(self, message: Any) -> None:
        self.sent += 1
        self.actor.tell(self.sent, message, LOADED)

    def until(self, kind: type[FromSlot], name: str = "") -> list[FromSlot]:
        """All messages up to the first one of a kind; those of life are left out."""
        found: list[FromSlot] = []
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for number, message in self.actor.listen(self.got, 1)[1]:
                self.got = number
                found += [] if isinstance(message, Beat) else [message]
                if isinstance(message, kind) and getattr(message, "name", "") == name:
                    return found
        raise AssertionError(found)


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Asked(tmp_path)


def test_messages_count_once_and_in_their_order(asked: Asked) -> None:
    actor, first = asked.actor, trial(0, "variable")
    for number, message in ((2, first), (1, asked.begin), (2, first), (1, asked.begin)):
        actor.tell(number, message, LOADED)
    [done] = asked.until(Done)
    assert done == Done(0, Measured("this slot"))
    received, again = actor.listen(0, 0)  # nothing was confirmed
    assert received == 2
    assert [m for _, m in again if isinstance(m, Done)] == [done]
    assert all(number > asked.got for number, _ in actor.listen(asked.got, 0)[1])
    asked.sent = 2
    asked.tell(None)
    assert asked.until(Ended) == [Ended("ended with exit code 0")]


def test_a_model_without_weights_has_to_fit_into_the_nodes_gpu(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = {
        "name": "s",
        "server": {"model": "shape:qwen3-8b:bf16", "flags": {"max-model-len": 512}},
        "rehearsal": {"weights": "dummy"},
        "space": {"max_num_batched_tokens": {"type": "choice", "choices": [512]}},
        "workload": {
            "random": {"input_len": 8},
            "output_len": 8,
            "num_prompts": 8,
            "max_concurrency": 1,
        },
    }
    loaded = parse_study(yaml.safe_dump(raw), Path("s.yaml"))
    for size, fits in ((8, False), (24, True)):
        info = replace(UNKNOWN, device="cuda", gpus=(Gpu("a GPU", size << 30, (8, 9)),))
        monkeypatch.setattr("autotune.tuning.ray_actor.probe", lambda _, info=info: info)
        said = asked.actor.check(loaded, Slot(0, 1, CORES)).get("error", "")
        assert ("server.model: shape:qwen3-8b:bf16 needs at least 15" in said) is not fits


@pytest.mark.parametrize("kill", [False, True])
def test_a_process_is_interrupted_or_killed(asked: Asked, kill: bool) -> None:
    asked.tell(asked.begin)
    asked.tell(trial(0, "sleep"))
    asked.until(Call, "stage")
    asked.tell(Signal(kill))
    if not kill:
        [call] = asked.until(Call, "ended")
        assert isinstance(call, Call)
        asked.tell(ray_actor.Signal(kill=True))  # nobody answers it
    assert asked.until(Ended) == [Ended("ended with exit code -9")]


def test_without_a_driver_the_process_ends(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(psutil.Process().children())
    asked.tell(asked.begin)
    asked.tell(trial(0, "sleep"))
    asked.until(Call, "stage")
    [process] = set(psutil.Process().children()) - before
    monkeypatch.setattr(ray_actor, "LEASE_S", 1.0)
    monkeypatch.setattr(ray_actor, "_GRACE_S", 1.0)
    wait_until(lambda: not process.is_running())
    assert [type(m) for m in asked.until(Ended)] == [Call, Ended]  # it asked, and nobody answered
    left = threading.Event()
    monkeypatch.setattr(ray_actor, "_leave_node", left.set)
    monkeypatch.setattr(ray_actor, "_PLACE_S", 1.0)
    wait_until(left.is_set)  # another driver may have its place


def test_it_ends_what_was_left_and_tells_what_was_measured(asked: Asked) -> None:
    outcome = LateOutcome("a", [], ServerStats(3, 30, 20, 7.5, (), 0, None, None), {}, {}, {})
    late_outcomes.keep(outcome)
    asked.tell(EndLeft((Identity("gone", "another boot"),), 1))
    assert asked.until(Call, "searched") == [
        Call("left", ("gone", 0)),
        Call("late", (outcome,)),
        Call("searched", ()),
    ]
    asked.tell(Forget("a"))
    wait_until(lambda: late_outcomes.kept() == [])
