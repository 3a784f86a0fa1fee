"""Whether a study whose launches fail can still come to numbers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from autotune.errors import FailureKind, NothingUsable, TrialFailure
from autotune.tuning.trial_log import TrialLog

# After this number of launches with the same failure, and none that worked, the study is wrong.
SAME_FAILURES = 3


class FailuresInARow:
    """Failures since the last trial that was measured.

    Args:
        log: Trials of the study.
        name: Name of the study.
        logs: Folder of the servers' logs.
    """

    def __init__(self, log: TrialLog, name: str, logs: Path) -> None:
        self._log, self._name, self._logs = log, name, logs
        self._kinds: list[FailureKind] = []

    def end(self) -> None:
        """Note that a trial was measured."""
        self._kinds.clear()

    def add(self, number: int, failure: TrialFailure, running: Iterable[int]) -> None:
        """Note the failure of a trial.

        A failed launch ends sooner than a measured one, so trials that began earlier on other slots
        are waited for.

        Args:
            number: Number of the trial.
            failure: Its failure.
            running: Numbers of the trials that run.

        Raises:
            NothingUsable: all launches fail for the same reason.
        """
        self._kinds.append(failure.kind)
        same = len(set(self._kinds)) == 1
        earlier = any(other < number for other in running)
        hopeless = failure.kind is FailureKind.MODEL_MISSING or (
            same and len(self._kinds) >= SAME_FAILURES and not earlier
        )
        if hopeless and self._log.nothing_worked():
            raise NothingUsable(
                f"{self._name}: all launches failed: {failure.reason}. The last log is in "
                f"{self._logs}"
            )
