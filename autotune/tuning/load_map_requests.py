"""What the launches of a load sweep are sent, and in which order its loads are measured."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from autotune.bench.workload import Request, build_workload
from autotune.errors import UserError
from autotune.results.read_load_map import PARTS
from autotune.stats.intervals import MIN_REQUESTS
from autotune.study.schema import StudySpec
from autotune.study.workload import WorkloadSpec
from autotune.tuning.prepare import Prepared

_MOST_SCALE = 4  # times the study's num_prompts, at high loads


@dataclass(frozen=True)
class Requests:
    """What a launch is sent.

    Attributes:
        warmup: Before the first part.
        lead: Keep the places busy before and after each part, by load and part.
        measured: By load and part.
        repeated: The prompts are too few, so some are sent several times.
    """

    warmup: Sequence[Request]
    lead: Mapping[tuple[int, int], Sequence[Request]]
    measured: Mapping[tuple[int, int], Sequence[Request]]
    repeated: bool


def part_sizes(spec: StudySpec, load: int) -> tuple[int, int]:
    """Return the fewest and the most requests of one part at a load.

    At a higher load more requests take the same time.
    """
    workload, measure = spec.workload, spec.measure
    scale = min(_MOST_SCALE, load / (workload.max_concurrency or load))
    most = max(math.ceil(workload.num_prompts * scale), measure.min_prompts, 4 * load)
    most = max(MIN_REQUESTS, math.ceil(most / PARTS))
    return min(most, max(MIN_REQUESTS, math.ceil(measure.min_prompts / PARTS), 2 * load)), most


def order(loads: Sequence[int]) -> list[tuple[int, int]]:
    """Return load and part, in the order in which they are measured."""
    up = sorted(loads)
    return [(x, part) for part in range(PARTS) for x in (up if part % 2 == 0 else up[::-1])]


def closed_loop(workload: WorkloadSpec, load: int) -> WorkloadSpec:
    """Return the study's workload at a concurrency."""
    return workload.model_copy(
        update={"max_concurrency": load, "request_rate": math.inf, "latency_from": "send"}
    )


def map_requests(prepared: Prepared, loads: Sequence[int]) -> Requests:
    """Return the requests of a map: other prompts in each part, as long as there are enough."""
    spec = prepared.spec
    sizes = {(x, part): part_sizes(spec, x)[1] for x, part in order(loads)}
    first = spec.workload.most_warmup
    wanted = closed_loop(spec.workload, min(loads)).model_copy(
        update={
            "num_prompts": sum(sizes.values()),
            "warmup_prompts": first or max(loads),  # the places are kept busy in any case
        }
    )
    try:
        found = build_workload(wanted, prepared.loaded.base)
        repeated = False
    except UserError:  # the study's own requests can be built: there are too few for this
        found, repeated = prepared.workload, True
    measured = itertools.cycle(found.measured) if repeated else iter(found.measured)
    lead = itertools.cycle(found.warmup or (found.measured if repeated else ()))
    return Requests(
        warmup=_take(lead, first),
        lead={(x, part): _take(lead, x) for x, part in sizes},
        measured={key: _take(measured, count) for key, count in sizes.items()},
        repeated=repeated,
    )


def _take(requests: Iterable[Request], count: int) -> list[Request]:
    taken = itertools.islice(requests, count)
    return [dataclasses.replace(r, index=i) for i, r in enumerate(taken)]
