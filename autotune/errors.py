"""Errors that a user sees as one line, with the exit code that goes with each.

Failures of a launch or of a measurement are values, not crashes: they carry a kind and the
evidence for it, are stored with the trial, and never become numbers.
"""

from __future__ import annotations

from enum import StrEnum


def one_line(text: str, limit: int | None = None) -> str:
    """A message as one line that a terminal can be given, whatever somebody's file has in it."""
    if limit is not None and len(text) > limit:
        text = text[: limit - 1] + "…"
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
        return one_line(text, limit)
    return text


class AutotuneError(Exception):
    """An error whose text is one clear line for the user: what is wrong, where, what to do."""

    exit_code = 1


def in_short(error: Exception) -> str:
    """Any error as a part of one line: ours in its own words, another one with its name."""
    words = one_line(" ".join(str(error).split()), 300)
    return words if isinstance(error, AutotuneError) else f"{type(error).__name__}: {words}"


class UserError(AutotuneError):
    """The user's mistake (a study file, an option, a missing model): exit code 2."""

    exit_code = 2


class NothingUsable(AutotuneError):
    """The study ran, but nothing usable came out: exit code 1."""

    exit_code = 1


class MachineError(AutotuneError):
    """The machine gave way (a full disk, a damaged database); what was finished is kept."""


class DatabaseLocked(MachineError):
    """Another program holds the database; it can be waited for."""


class FailureKind(StrEnum):
    """Why a trial has no numbers. Stored with the trial as its ``failure_kind``."""

    INFEASIBLE = "infeasible"  # the rules say so; never launched
    OOM_LOAD = "oom_load"  # out of memory while loading the weights
    OOM_CAPTURE = "oom_capture"  # … while capturing CUDA graphs
    KV_CACHE = "kv_cache"  # … in the sizing of the KV cache: no room for it
    OOM = "oom"  # … while serving, or where it is not known when
    BUDGET = "budget"  # max_num_batched_tokens too small for n and max_num_seqs
    BAD_CONFIG = "bad_config"  # vLLM rejected a flag or a combination of flags
    MODEL_MISSING = "model_missing"
    DRAFT_MISMATCH = "draft_mismatch"  # the draft does not fit its target
    PORT = "port"  # somebody else holds the port
    TIMEOUT = "timeout"  # /health did not answer in time
    CRASH = "crash"  # the server died, reason unknown
    WRONG_SERVER = "wrong_server"  # another model or vLLM version answers on the port
    REQUESTS = "requests"  # requests were refused (HTTP 4xx), or gave no usable answer
    SERVER_ERROR = "server_error"  # requests failed inside the server (HTTP 5xx)
    HANG = "hang"  # no token for too long while the server was up
    CLOCK = "clock"  # the machine slept while it was measured
    DISK = "disk"  # no space left on the device

    @property
    def transient(self) -> bool:
        """True if the same launch may succeed when tried once more."""
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
        """True if every other launch would fail alike until somebody mends the machine."""
        return self is FailureKind.DISK


class TrialFailure(Exception):
    """A launch or a measurement failed.

    Attributes:
        kind: What went wrong, as :class:`FailureKind`.
        reason: One line in words.
        evidence: The telling lines of the server's log, oldest first; may be empty.
    """

    def __init__(self, kind: FailureKind, reason: str, evidence: tuple[str, ...] = ()) -> None:
        super().__init__(f"{kind}: {reason}")
        self.kind = kind
        self.reason = reason
        self.evidence = evidence


class LaunchError(TrialFailure):
    """The server did not come up, or is not the one we asked for."""


class MeasureError(TrialFailure):
    """The server came up, but the measurement gave nothing that may be called a number."""
