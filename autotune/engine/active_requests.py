"""How many requests vLLM lets run at once, and whether that is below what a study asks for.

================  ============================================================================
n                 draft tokens per step; 0 without speculation
MNBT              ``max_num_batched_tokens``
lookahead         tokens of the draft pass of one request: n + 1 for DFlash, and for a DSpark
                  draft that has a bonus token; n for a DSpark draft that starts from its anchor
================  ============================================================================

From 0.33 on, vLLM lowers ``max_num_active_seqs`` to MNBT // lookahead for DFlash and DSpark, with
nothing but a line in its log (``config/vllm.py: VllmConfig._set_max_num_scheduled_tokens,
num_lookahead_tokens``, 0.33.0: 2378-2396, 626-652). The scheduler admits no more requests than
that (``v1/core/sched/scheduler.py``, 0.33.0: 134, 1073). A study at concurrency 32 with n = 15 and
MNBT 256 would measure 16 requests, and 16 that wait.

The module is pure: settings in, numbers and words out.
"""

from __future__ import annotations

from collections.abc import Mapping

from autotune.engine.rule import NOTHING, SEQS, Known, Launch, Minor, minor_of
from autotune.study.space import MNBT

ACTIVE = "max_num_active_seqs"
# The first version that lowers max_num_active_seqs, and the first that has the key.
_LOWERED_SINCE = (0, 33)
_KEY_SINCE = (0, 31)
# vLLM's smallest default of max_num_seqs (engine/arg_utils.py: get_batch_defaults, and
# config/scheduler.py: SchedulerConfig.DEFAULT_MAX_NUM_SEQS).
_FEWEST_SEQS = 128


def active_limit(
    settings: Mapping[str, object], vllm_version: str | None, known: Known = NOTHING
) -> int | None:
    """Return an upper bound of the requests that vLLM lets run at once, for all its replicas.

    It is the smaller of the study's own ``max_num_active_seqs`` and of what vLLM lowers it to. The
    bound is certain: where it is unknown whether a DSpark draft starts from its anchor, the larger
    of the two counts. ``max_num_seqs`` is not part of it.

    Args:
        settings: Settings as for :func:`autotune.engine.rules.why_infeasible`.
        vllm_version: Version such as ``0.33.0``; None: unknown.
        known: Facts about machine and target.

    Returns:
        A number of requests of at least 1; None: nothing but ``max_num_seqs`` bounds them, or it is
        unknown.
    """
    launch = launch_of(settings, vllm_version, known)
    own = launch.number(ACTIVE) if _has(launch, _KEY_SINCE) else None
    found = [x for x in (own, lowered(launch)) if x is not None and x > 0]
    return min(found) * launch.replicas if found else None


def why_throttled(
    settings: Mapping[str, object],
    vllm_version: str | None,
    load: int | None,
    known: Known = NOTHING,
) -> str | None:
    """Return why vLLM would run fewer requests at once than the study sends, in one line.

    It speaks only of what is certain, and only where ``max_num_seqs`` and the study's own
    ``max_num_active_seqs`` would allow more.

    Args:
        settings: Settings as for :func:`autotune.engine.rules.why_infeasible`.
        vllm_version: Version such as ``0.33.0``; None: unknown.
        load: Concurrency of the study's closed loop; None: an open loop, of which nothing is said.
        known: Facts about machine and target.

    Returns:
        The line; None: as many run as are sent, or it is unknown.
    """
    launch = launch_of(settings, vllm_version, known)
    most, asked = lowered(launch), _asked(launch, load)
    if load is None or most is None or asked is None or most < 1:
        return None
    replicas, tokens, mnbt = launch.replicas, fewest_tokens(launch), launch.number(MNBT)
    if most * replicas >= asked:
        return None
    return (
        f"n = {launch.n} with MNBT = {mnbt}: {launch.vllm} lets {most * replicas} requests run at "
        f"once (MNBT // {tokens}{f' in each of {replicas} replicas' if replicas > 1 else ''}), not "
        f"{asked}; they need MNBT of at least {-(-asked // replicas) * (tokens or 0)}"
    )


def launch_of(settings: Mapping[str, object], vllm_version: str | None, known: Known) -> Launch:
    """Return a launch as the rules see it."""
    vllm = "vLLM" if vllm_version is None else f"vLLM {vllm_version}"
    return Launch(settings, known, vllm, minor_of(vllm_version))


def lowered(launch: Launch) -> int | None:
    """Return the most that vLLM lowers ``max_num_active_seqs`` to in one replica, or None."""
    tokens, mnbt = fewest_tokens(launch), launch.number(MNBT)
    if tokens is None or mnbt is None or not _has(launch, _LOWERED_SINCE):
        return None
    return mnbt // tokens


def fewest_tokens(launch: Launch) -> int | None:
    """Return the least lookahead of one request, in tokens; None: no draft pass counts."""
    if launch.n < 1 or launch.method not in {"dflash", "dspark"}:
        return None
    fills_in = launch.method == "dflash" or launch.draft.from_anchor is False
    return launch.n + fills_in


def _has(launch: Launch, since: Minor) -> bool:
    return launch.minor is not None and launch.minor >= since


def _asked(launch: Launch, load: int | None) -> int | None:
    """Return how many requests would run at once without vLLM's lowering, at least."""
    replicas, own = launch.replicas, launch.number(ACTIVE)
    seqs = launch.number(SEQS)
    if seqs is None:
        if SEQS in launch.settings:
            return None
        default = launch.seqs()[0] or _FEWEST_SEQS
        seqs = min(default, launch.number(MNBT) or default)
    bounds = [seqs * replicas, *([] if own is None else [own * replicas])]
    return min([*bounds, *([] if load is None else [load])])
