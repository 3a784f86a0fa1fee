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
MNBT 256 would measure 16 requests, and 16 that wait: numbers of another load. Since 0.31 a study
can also set ``max_num_active_seqs`` itself.

Such a launch is *throttled*: fewer requests can run at once than the smaller of concurrency and
``max_num_seqs``. Whether a measured one was is seen while it runs, for every version and cause
(:mod:`autotune.bench.running`).

The module is pure: settings in, numbers and words out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autotune.engine.rule import SEQS, Known, Launch, minor_of
from autotune.study.space import MNBT

ACTIVE = "max_num_active_seqs"
# The first version that lowers max_num_active_seqs, and the first that has the key.
_LOWERED_SINCE = (0, 33)
_KEY_SINCE = (0, 31)
# vLLM's smallest default of max_num_seqs (engine/arg_utils.py: get_batch_defaults, and
# config/scheduler.py: SchedulerConfig.DEFAULT_MAX_NUM_SEQS).
_FEWEST_SEQS = 128


@dataclass(frozen=True)
class Asked:
    """Requests that run at once where nothing but concurrency and ``max_num_seqs`` bounds them.

    Attributes:
        requests: Number of requests of all replicas together, a lower bound of it.
        of_replica: ``max_num_seqs`` of one replica, a lower bound of it.
    """

    requests: int
    of_replica: int


def asked_at_once(settings: Mapping[str, object], known: Known) -> Asked | None:
    """Return how many requests a closed loop asks a launch to run at once.

    That is the smaller of its concurrency and ``max_num_seqs`` of all replicas. Where a study
    leaves ``max_num_seqs`` to vLLM, the smallest of its defaults counts.

    Args:
        settings: Settings as for :func:`autotune.engine.rules.why_infeasible`.
        known: Facts about machine and load.

    Returns:
        The numbers; None: an open loop, or they are unknown.
    """
    return _asked(launch_of(settings, None, known))


def why_throttled(
    settings: Mapping[str, object], vllm_version: str | None, known: Known
) -> str | None:
    """Return why vLLM would run fewer requests at once than the study asks for, in one line.

    It speaks only of what is certain.

    Args:
        settings: Settings as for :func:`autotune.engine.rules.why_infeasible`.
        vllm_version: Version such as ``0.33.0``; None: unknown.
        known: Facts about machine, target and load.

    Returns:
        The line; None: as many run as are asked for, it is an open loop, or it is unknown.
    """
    return throttled(launch_of(settings, vllm_version, known))


def throttled(launch: Launch) -> str | None:
    """Return the line of :func:`why_throttled` for a launch."""
    asked, replicas = _asked(launch), launch.replicas
    if asked is None:
        return None
    needed = -(-asked.requests // replicas)
    each = f" in each of {replicas} replicas" if replicas > 1 else ""
    most, tokens = lowered(launch), fewest_tokens(launch)
    if most is not None and tokens is not None and 1 <= most < needed:
        return (
            f"n = {launch.n} with MNBT = {launch.number(MNBT)}: {launch.vllm} lets "
            f"{_requests(most * replicas)} run at once (MNBT // {tokens}{each}), not "
            f"{asked.requests}; they need MNBT of at least {needed * tokens}"
        )
    own = _own(launch)
    if own is not None and 1 <= own < needed:
        return (
            f"{ACTIVE} = {own}: {launch.vllm} lets {_requests(own * replicas)} run at once{each}, "
            f"not {asked.requests}"
        )
    return None


def launch_of(settings: Mapping[str, object], vllm_version: str | None, known: Known) -> Launch:
    """Return a launch as the rules see it."""
    vllm = "vLLM" if vllm_version is None else f"vLLM {vllm_version}"
    return Launch(settings, known, vllm, minor_of(vllm_version))


def lowered(launch: Launch) -> int | None:
    """Return the most that vLLM lowers ``max_num_active_seqs`` to in one replica, or None."""
    tokens, mnbt = fewest_tokens(launch), launch.number(MNBT)
    if tokens is None or mnbt is None or not launch.since(_LOWERED_SINCE):
        return None
    return mnbt // tokens


def fewest_tokens(launch: Launch) -> int | None:
    """Return the least lookahead of one request, in tokens; None: no draft pass counts."""
    if launch.n < 1 or launch.method not in {"dflash", "dspark"}:
        return None
    fills_in = launch.method == "dflash" or launch.draft.from_anchor is False
    return launch.n + fills_in


def _requests(count: int) -> str:
    return f"{count} request{'' if count == 1 else 's'}"


def _own(launch: Launch) -> int | None:
    """Return the study's own ``max_num_active_seqs`` of one replica, or None."""
    return launch.number(ACTIVE) if launch.since(_KEY_SINCE) else None


def _asked(launch: Launch) -> Asked | None:
    seqs, load = launch.number(SEQS), launch.known.load
    if seqs is None and SEQS not in launch.settings:
        default = launch.seqs()[0] or _FEWEST_SEQS
        seqs = min(default, launch.number(MNBT) or default)
    if seqs is None or load is None:
        return None
    return Asked(min(load, seqs * launch.replicas), seqs)
