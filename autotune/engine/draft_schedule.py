"""vLLM's schedule of n by batch size.

``num_speculative_tokens_per_batch_size`` (the same in 0.24, 0.26 and 0.32, read
in ``vllm/v1/spec_decode/dynamic/utils.py``): inclusive ranges ``[first, last, K]`` from batch size
1, K = 0 allowed, the last K holds beyond the last range, ``num_speculative_tokens`` is the largest.
The batch is every request of a step, also those in prefill (``Scheduler.schedule``). At K = 0 the
draft still runs once a step to keep its KV cache filled (``llm_base_proposer.py``), and in 0.32's
model runner for GPUs DFlash drafts the largest n and throws away what is too much
(``gpu/spec_decode/dflash``; PR #49164 would have changed that). So a schedule is not as good as the
best n at each load, and is recommended only if a launch of it beats the best fixed n.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from packaging.version import Version

from autotune.engine import rules
from autotune.stats.crossover import Schedule
from autotune.study.schema import ServerSpec
from autotune.study.space import DRAFT, N, Value

SCHEDULE = rules.SCHEDULE.removeprefix(DRAFT)
_SCHEDULE_SINCE = Version("0.24")


def scheduled(server: ServerSpec, ranges: Sequence[Sequence[int]]) -> ServerSpec:
    """Return the server with n by batch size; its ``n`` must be the largest of the schedule."""
    if server.speculative is None:
        raise ValueError("a schedule needs a draft")
    draft = server.speculative.model_copy(update={SCHEDULE: [list(x) for x in ranges]})
    return server.model_copy(update={"speculative": draft})


def speculative_argument(
    server: ServerSpec,
    n: int,
    params: Mapping[str, Value],
    ranges: Schedule | None,
    resolve: Callable[[str], str],
) -> str:
    """Return the value of ``--speculative-config`` for n of at least 1, as a launch has it.

    Args:
        server: The study's.
        n: Of a schedule, the largest.
        params: The other parameters; those of the draft go into it.
        ranges: A schedule, or None.
        resolve: Turns the draft's reference into what vLLM is given.
    """
    if server.speculative is None:
        raise ValueError("n of at least 1 needs a draft")
    config = server.draft_settings({N: n, **params})
    config["model"] = resolve(server.speculative.model)
    config.pop(SCHEDULE, None)
    if ranges is not None:
        config[SCHEDULE] = [list(x) for x in ranges]
    return json.dumps(config)


def why_no_schedule(*versions: str | None) -> str | None:
    """Return why this vLLM is not given a schedule; None: it takes one.

    Args:
        versions: What is known of its version, the first that is known counts.
    """
    version = next((v for v in versions if v is not None), None)
    if version is None:
        return "vLLM's version is unknown, so it is not known whether it takes a schedule of n"
    if Version(version.partition("+")[0]) < _SCHEDULE_SINCE:
        return f"vLLM {version} has no schedule of n by batch size; 0.24 and later have"
    return None
