"""All errors of autotune.

::

    AutotuneError           exit code 1   one line for the user
    ├── UserError           exit code 2   the user's mistake
    ├── NothingUsable       exit code 1   the study has no usable result
    │   └── NotJudged       exit code 4   the answers have no verdict; the study has its results
    ├── MachineError        exit code 1   the machine gave way
    │   ├── DatabaseLocked  exit code 1   another program holds the database
    │   └── LeaseLost       exit code 1   another autotune took the database over
    └── StopError           exit code 1   a server's end could not be proven
    TrialFailure                          a trial has no numbers, for a FailureKind
    ├── LaunchError                       the server did not come up
    └── MeasureError                      the server came up, the measurement failed

An :class:`AutotuneError` ends a command. A :class:`TrialFailure` is a result: it has a kind and the
evidence for it, is stored with the trial, and never becomes a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


def one_line(text: str, limit: int | None = None) -> str:
    """Return a message as one line that is safe to print, with control characters escaped.

    Args:
        text: The message; it may quote a file of somebody else.
        limit: Most characters; None: no limit.
    """
    if limit is not None and len(text) > limit:
        text = text[: limit - 1] + "…"
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
        return one_line(text, limit)
    return text


class AutotuneError(Exception):
    """An error whose text is one line for the user: what is wrong, where, and what to do.

    Attributes:
        exit_code: Exit code of the command that it ends.
    """

    exit_code = 1


def in_short(error: Exception) -> str:
    """Return an error as a part of one line; one that is not of autotune also has its name."""
    words = one_line(" ".join(str(error).split()), 300)
    return words if isinstance(error, AutotuneError) else f"{type(error).__name__}: {words}"


class UserError(AutotuneError):
    """The user's mistake, such as in a study file or an option, or a missing model."""

    exit_code = 2


class NothingUsable(AutotuneError):
    """The study ran, but has no usable result."""


class NotJudged(NothingUsable):
    """Whether answers are those of n = 0 was asked, and could not be judged."""

    exit_code = 4


class MachineError(AutotuneError):
    """The machine gave way, such as a full disk or a damaged database; finished trials are kept."""


class DatabaseLocked(MachineError):
    """Another program holds the database; a caller can wait for it."""


class LeaseLost(MachineError):
    """Another driver took the database over while this one did not answer; nothing was written."""


class StopError(AutotuneError):
    """A server's end could not be proven, so nothing may be launched next to it."""


class FailureKind(StrEnum):
    """Reason why a trial has no numbers, stored with the trial as its ``failure_kind``."""

    INFEASIBLE = "infeasible"  # a rule forbids it; never launched
    OOM_LOAD = "oom_load"  # out of memory while loading the weights
    OOM_CAPTURE = "oom_capture"  # … while capturing CUDA graphs
    KV_CACHE = "kv_cache"  # … while sizing the KV cache: it does not fit
    OOM = "oom"  # … while serving, or at an unknown time
    BUDGET = "budget"  # max_num_batched_tokens too small for n and max_num_seqs
    BAD_CONFIG = "bad_config"  # vLLM rejected a flag or a combination of flags
    MODEL_MISSING = "model_missing"
    DRAFT_MISMATCH = "draft_mismatch"  # the draft does not fit its target
    PORT = "port"  # somebody else holds the port
    TIMEOUT = "timeout"  # /health did not answer in time
    CRASH = "crash"  # the server died, reason unknown
    WRONG_SERVER = "wrong_server"  # another model, program, version or n answers on the port
    REQUESTS = "requests"  # requests were refused (HTTP 4xx), or gave no usable answer
    SERVER_ERROR = "server_error"  # requests failed inside the server (HTTP 5xx)
    HANG = "hang"  # no token for too long while the server was up
    CLOCK = "clock"  # the machine slept while it was measured
    DISK = "disk"  # no space left on the device
    MACHINE = "machine"  # driver, compiler, installation or shared memory at fault

    @property
    def transient(self) -> bool:
        """Whether the same launch may succeed when it is tried once more."""
        return self in {
            FailureKind.PORT,
            FailureKind.TIMEOUT,
            FailureKind.CRASH,
            FailureKind.SERVER_ERROR,
            FailureKind.HANG,
            FailureKind.CLOCK,
        }

    def is_final(self, failed: int) -> bool:
        """Return whether a point whose launches failed so often is not launched again."""
        return not self.transient or failed > 1

    @property
    def of_the_machine(self) -> bool:
        """Whether every other launch would fail too, until somebody repairs the machine."""
        return self in {FailureKind.DISK, FailureKind.MACHINE}


@dataclass(frozen=True)
class LeastBudget:
    """A bound that vLLM stated when it refused a batch budget.

    Attributes:
        mnbt: Smallest max_num_batched_tokens that it accepts.
        every_n: Whether n has no part in it; False: it holds for the launch's n and larger ones.
    """

    mnbt: int
    every_n: bool


class TrialFailure(Exception):
    """A launch or a measurement failed.

    Attributes:
        kind: Kind of the failure.
        reason: Reason in one line.
        evidence: Lines of the server's log that show it, oldest first; may be empty.
        least: Bound that it states, of a failure of kind ``budget``; None: it states none.
    """

    def __init__(
        self,
        kind: FailureKind,
        reason: str,
        evidence: tuple[str, ...] = (),
        least: LeastBudget | None = None,
    ) -> None:
        super().__init__(f"{kind}: {reason}")
        self.kind = kind
        self.reason = reason
        self.evidence = evidence
        self.least = least

    def __reduce__(self) -> tuple[type[TrialFailure], tuple[object, ...]]:
        return type(self), (self.kind, self.reason, self.evidence, self.least)


class LaunchError(TrialFailure):
    """The server did not come up, or another server answers."""


class MeasureError(TrialFailure):
    """The server came up, but the measurement gave no usable number."""
