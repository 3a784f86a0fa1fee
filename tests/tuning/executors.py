"""What every executor does: the contract of :class:`autotune.tuning.executor.Executor`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from autotune.tuning.executor import Executor
from autotune.tuning.trial import Measured, Trial


def trial(number: int, do: str, slot: int = 0) -> Trial:
    """A trial that does something, in :mod:`tests.tuning.slot_double`."""
    return Trial(number, {"do": do}, slot=slot)


def check_executor(
    executor: Executor[Trial], slots: int, said: Mapping[int, str] | None = None
) -> None:
    """It runs what it takes, as much as it has slots, and takes nothing after its end.

    Args:
        executor: The executor, without a trial.
        slots: Number of its slots.
        said: What a trial that asks for its cores comes to, by slot; None: anything.
    """
    assert (executor.capacity, executor.completed()) == (slots, [])
    for number in range(2 * slots):
        executor.submit(trial(number, "cores", number % slots))
        if executor.capacity == 0:
            with pytest.raises(RuntimeError):
                executor.submit(trial(9, "cores"))
            while executor.capacity < slots:
                done: list[tuple[Trial, Any]] = executor.completed()
                for of, outcome in done:
                    assert isinstance(outcome, Measured)
                    assert said is None or outcome.launch_id == said[of.slot]
    executor.close()
    executor.close()
    assert (executor.capacity, executor.completed()) == (0, [])
