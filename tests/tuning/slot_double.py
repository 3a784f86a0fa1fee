"""What the process of a slot runs in the tests of the executor: trials that launch nothing."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from autotune.errors import FailureKind, LaunchError, UserError
from autotune.tuning import slot_worker
from autotune.tuning.slot_worker import Driver
from autotune.tuning.trial import Failed, Measured, Trial


def run(driver: Driver, trial: Trial) -> Any:
    """Does what the point says."""
    what = trial.point["do"]
    if what == "cores":
        return Measured(f"{sorted(os.sched_getaffinity(0))}")
    if what == "variable":
        return Measured(os.environ.get("SLOT_TEST", ""))
    if what == "ask":
        return Measured(str(driver.ask("double", 21)))
    if what == "wait":  # for others that run at the same time
        driver.tell("stage", trial.number)
        return Measured(str(driver.ask("others")))
    if what == "fail":
        return Failed(LaunchError(FailureKind.CRASH, "it crashed", ("line",)))
    if what == "raise":
        raise UserError("the weights have changed")
    if what == "bug":
        raise KeyError("a bug")
    if what in ("die once", "stop once"):
        once = Path(f"{what}.{trial.number}.{os.getppid()}")
        if (mark := Path(tempfile.gettempdir(), once)).exists():
            mark.unlink()
            return Measured("again")
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL if what == "die once" else signal.SIGSTOP)
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    try:  # "sleep"
        driver.tell("stage", trial.number)
        time.sleep(600)
    finally:
        driver.ask("ended", f"l{trial.number}", None, 0)
    return None


slot_worker.BEAT_S = 0.2


def serve(driver: Driver) -> None:
    driver.receive()  # the setup
    while isinstance(trial := driver.receive(), Trial):
        driver.send(slot_worker.Done(trial.number, run(driver, trial)))


def main(fd: int, owner: int) -> None:
    slot_worker.main(fd, owner, serve)
