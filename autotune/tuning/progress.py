"""What a run tells whoever watches it: the terminal, the library's callbacks, a test.

Every event names its trial and its slot, so that several trials can be told apart.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from autotune.results.views import StudyView, TrialView
from autotune.storage.location import Database
from autotune.study.space import Point


@dataclass(frozen=True)
class At:
    """Where an event happens.

    Attributes:
        trial: Number of the trial; None outside of a study's trials.
        slot: Number of the slot that runs it, from 0.
    """

    trial: int | None = None
    slot: int = 0


OUTSIDE = At()  # of trials


class Progress(Protocol):
    """Receives the events of a run; all of them in the main thread, in their order."""

    def study(self, view: StudyView, database: Database) -> None:
        """Receive the study as it is before the first trial of this run."""

    def begin(self, at: At, position: int, point: Point) -> None:
        """Receive the begin of a trial.

        Args:
            at: Its trial and slot.
            position: Its position among the wanted trials, from 1.
            point: What will be launched.
        """

    def stage(self, at: At, text: str) -> None:
        """Receive the begin of a stage, such as ``launching``; empty: nothing runs there."""

    def progress(self, at: At, done: int, total: int) -> None:
        """Receive how many requests of a stage are done, of how many at most."""

    def trial(self, at: At, trial: TrialView) -> None:
        """Receive a finished trial."""

    def message(self, text: str, at: At = OUTSIDE) -> None:
        """Receive one line that is neither a stage nor a trial."""

    def waiting(self, text: str) -> AbstractContextManager[None]:
        """Enclose a wait outside of trials, such as a check of vLLM."""

    def download(self, stage: str, done: float) -> None:
        """Receive how far a model of the demo is: a stage, and a share from 0 to 1."""
