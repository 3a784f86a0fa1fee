"""The last check of a launch's n: a server that drafts, or does not, against what was launched.

A baseline that drafts makes every speed-up wrong, and a draft that never runs makes its points
copies of the baseline. Something may turn speculation on or off behind autotune's back: a program
that ``server.command`` starts, a ``--config`` file, a target in speculators format. vLLM counts its
drafts, so the counters decide, before the numbers are stored.

vLLM has the counters of speculation if and only if it speculates
(``vllm/v1/metrics/loggers.py``, ``vllm/v1/spec_decode/metrics.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from autotune.errors import FailureKind, MeasureError
from autotune.study.speculative import FOREIGN, FROM_TEXT, NGRAM

if TYPE_CHECKING:
    from autotune.bench.server_metrics import ServerStats

# Keys of --speculative-config by which vLLM may leave drafts out.
_MAY_DROP = (
    "num_speculative_tokens_per_batch_size",
    "enable_adaptive_verification",
    "disable_by_batch_size",
    "speculative_disable_by_batch_size",
)
_FIRST = (0, 10)  # first vLLM whose only engine has the counters
_LONG = 4  # tokens of a mean request that must have met a draft


def check_drafts(
    stats: ServerStats,
    requests: int,
    n: int,
    speculative: Mapping[str, object],
    version: str | None,
) -> str | None:
    """Compare what a server drafted with its launch; return a note where that proves nothing.

    Args:
        stats: Changes of the server's counters over the measurement.
        requests: Number of measured requests.
        n: Number of tokens that the launch drafts per step.
        speculative: The study's keys of ``--speculative-config``.
        version: vLLM's version, as the server told it.

    Raises:
        MeasureError: the server drafts although n = 0, or does not although n > 0.
    """
    if stats.unknown is not None:
        return f"whether it drafts is unknown: {stats.unknown}"
    if n == 0:
        if stats.drafts:
            raise _other(
                f"n = 0, but the server counted {stats.drafts} drafts{_length(stats)}: something "
                "else turns speculation on, such as server.command, a --config file or a model in "
                "speculators format. Leave that out, and serve the verifier itself"
            )
        return None
    if stats.drafts or stats.speculates is None or (stats.drafts is None and stats.speculates):
        return None  # as it should be, or unknown
    if not stats.speculates:
        if not _has_counters(version):
            return f"n = {n}, and this server does not tell whether it drafts"
        raise _other(
            f"n = {n}, but the server has no counters of drafts: it was started without "
            "--speculative-config. See whether server.command passes its arguments on"
        )
    if stats.generated is None or stats.generated < _LONG * requests:
        return f"n = {n}, and no draft was counted: the answers are too short to tell"
    if (why := _may_be_idle(speculative)) is not None:
        return f"n = {n}, and no draft was counted, which {why} allows: this is a second baseline"
    raise _other(
        f"n = {n}, but the server counted no draft in {stats.generated} generated tokens: it never "
        "drafted. A draft does not run on contexts longer than its own max_model_len"
    )


def _other(reason: str) -> MeasureError:
    """Return the failure: what answers is not the server that the point describes.

    It is final, since the same command starts the same server, and says nothing of other points.
    """
    return MeasureError(FailureKind.WRONG_SERVER, reason)


def _length(stats: ServerStats) -> str:
    length = stats.acceptance_length
    return "" if length is None else f" (acceptance length {length:.2f})"


def _may_be_idle(speculative: Mapping[str, object]) -> str | None:
    method = speculative.get("method") or speculative.get("model")
    if method in (*FROM_TEXT, *NGRAM, *FOREIGN):  # where nothing repeats, they draft nothing
        return f"the method {method}"
    return next((key for key in _MAY_DROP if speculative.get(key)), None)


def _has_counters(version: str | None) -> bool:
    parts = (version or "").split(".")
    try:
        return (int(parts[0]), int(parts[1])) >= _FIRST
    except (ValueError, IndexError):  # unknown, or a build from source
        return False
