"""vLLM's schedule of n by batch size: ``num_speculative_tokens_per_batch_size``.

It is the same in 0.24 to 0.33 (``vllm/v1/spec_decode/dynamic/utils.py``): inclusive ranges
``[first, last, K]`` from batch size 1. K = 0 is allowed. The last K holds beyond the last range.
``num_speculative_tokens`` is the largest K. The batch is every request of a step, also those in
prefill (``Scheduler.schedule``).

A schedule is not as good as the best n at each load, for two reasons. At K = 0 the draft still runs
once a step, to keep its KV cache filled (``llm_base_proposer.py``). In 0.32's model runner for GPUs
DFlash drafts the largest n and discards the surplus (``gpu/spec_decode/dflash``; PR #49164 would
have changed that). So a schedule is recommended only if a launch of it beats the best fixed n.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from autotune.engine.rule import first_known
from autotune.study.options import draft_config
from autotune.study.space import N, Value
from autotune.study.speculative import SCHEDULE

if TYPE_CHECKING:
    from autotune.stats.crossover import Schedule
    from autotune.study.schema import ServerSpec

# Methods whose schedule model runner V1 keeps in 0.33
# (config/vllm.py: _maybe_disable_dynamic_sd_for_v1, 0.33.0: 1088).
KEPT_ON_V1 = frozenset({"ngram", "eagle", "eagle3", "mtp", "draft_model", "dflash"})
_SCHEDULE_SINCE = (0, 24)


def scheduled(server: ServerSpec, ranges: Sequence[Sequence[int]]) -> ServerSpec:
    """Return the server with n by batch size; its ``n`` must be the largest of the schedule.

    Args:
        server: The study's server.
        ranges: Ranges ``[first batch size, last batch size, n]``.

    Raises:
        ValueError: the server has no draft.
    """
    if server.speculative is None:
        raise ValueError("a schedule needs a draft")
    draft = server.speculative.model_copy(update={SCHEDULE: [list(x) for x in ranges]})
    return server.model_copy(update={"speculative": draft})


def ranges_of(starts: Sequence[tuple[int, int]], most: int) -> Schedule:
    """Return a schedule's ranges of batch sizes, without gaps from 1 on.

    Args:
        starts: First batch size and n of each range.
        most: Last batch size of the last range.

    Raises:
        ValueError: it is no schedule.

    >>> ranges_of([(1, 7), (8, 3)], 16)
    ((1, 7, 7), (8, 16, 3))
    """
    firsts = [first for first, _ in starts]
    if not starts or firsts[0] != 1:
        raise ValueError("the first batch size must be 1")
    if any(b <= a for a, b in itertools.pairwise(firsts)):
        raise ValueError("the batch sizes must ascend")
    if any(n < 0 for _, n in starts):
        raise ValueError("n must be 0 or more")
    if not any(n for _, n in starts):
        raise ValueError("one n must be at least 1, or nothing is drafted")
    if firsts[-1] > most:
        raise ValueError(
            f"batch size {firsts[-1]} is never reached: at most {most} requests run at a time"
        )
    lasts = [*(first - 1 for first in firsts[1:]), most]
    return tuple((a, b, n) for (a, n), b in zip(starts, lasts, strict=True))


def speculative_argument(
    server: ServerSpec,
    n: int,
    params: Mapping[str, Value],
    ranges: Schedule | None,
    resolve: Callable[[str], str],
) -> str:
    """Return the value of ``--speculative-config`` for n of at least 1, as a launch has it.

    Args:
        server: The study's server.
        n: Draft tokens per step; with a schedule, its largest n.
        params: Other parameters; those of the draft go into the value.
        ranges: A schedule, or None.
        resolve: Function that turns the draft's reference into what vLLM is given.

    Raises:
        ValueError: the server has no draft.
        UserError: a key of the draft is given twice, or ``resolve`` raises it.
    """
    if server.speculative is None:
        raise ValueError("n of at least 1 needs a draft")
    config = draft_config(server.draft_settings({N: n, **params}), resolve)
    config.pop(SCHEDULE, None)
    if ranges is not None:
        config[SCHEDULE] = [list(x) for x in ranges]
    return json.dumps(config)


def why_no_schedule(*versions: str | None) -> str | None:
    """Return why this vLLM is not given a schedule; None: it takes one.

    Args:
        versions: Versions from several sources, or None; the first that is known counts.
    """
    found = first_known(*versions)
    if found is None:
        return "vLLM's version is unknown, so it is not known whether it takes a schedule of n"
    if found[1] < _SCHEDULE_SINCE:
        return f"vLLM {found[0]} has no schedule of n by batch size; 0.24 and later have"
    return None


def schedule_problem(schedule: object) -> str | None:
    """Return why vLLM would refuse a schedule; None: it would not.

    Source: ``v1/spec_decode/dynamic/utils.py:validate_and_normalize_dynamic_sd_schedule``, the same
    in 0.24 to 0.33. An n of a range above ``num_speculative_tokens`` is lowered to it.

    Args:
        schedule: Value of ``num_speculative_tokens_per_batch_size``.
    """
    if not isinstance(schedule, list | tuple):
        return "must be a list of [first batch size, last batch size, n]"
    ranges: list[tuple[int, int, int]] = []
    for entry in schedule:
        if not isinstance(entry, list | tuple) or len(entry) != 3:
            return f"{entry!s:.40} must be [first batch size, last batch size, n]"
        if not all(type(x) is int for x in entry):
            return None  # vLLM may convert it
        first, last, n = entry
        if not 0 < first <= last:
            return f"batch sizes {first} to {last} are no range from 1 up"
        if n < 0:
            return f"n = {n} is below 0"
        ranges.append((first, last, n))
    ranges.sort()
    if ranges and ranges[0][0] != 1:
        return f"the first range must begin at batch size 1, not {ranges[0][0]}"
    for (_, last, _), (first, _, _) in itertools.pairwise(ranges):
        if first <= last:
            return f"two ranges have batch size {first}"
    return None
