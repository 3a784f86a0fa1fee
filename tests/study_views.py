"""A study as it might look, for the tests of what people see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import objectives
from autotune.results.views import StudyView, TrialView
from autotune.study.space import Value

THROUGHPUT = objectives.get("throughput")
P95 = objectives.get("p95_latency")

# n, MNBT, tok/s, p95 ms, acceptance length, on the front; without numbers: failed
Row = tuple[int, int, float | None, float | None, float | None, bool]
ROWS: tuple[Row, ...] = (
    (0, 2048, 98.1, 2020, None, True),
    (3, 512, 110.2, 2361, 1.88, True),
    (2, 1024, 106.6, 2291, 1.77, True),
    (7, 256, 92.0, 2600, 1.94, False),
    (15, 32, None, None, None, False),
    (1, 128, 100.1, 2110, 1.54, True),
)


def trial(number: int, row: Row, extra: Mapping[str, Value] | None = None) -> TrialView:
    n, mnbt, rate, p95, accepted, front = row
    done = rate is not None and p95 is not None
    return TrialView(
        number=number,
        state="complete" if done else "failed",
        point={"num_speculative_tokens": n, "max_num_batched_tokens": mnbt, **(extra or {})},
        values={"throughput": rate, "p95_latency": p95}
        if rate is not None and p95 is not None
        else None,
        acceptance_length=accepted,
        acceptance_per_position=(0.6, 0.3)[:n] if accepted else (),
        speedup=rate / 98.1 if rate is not None else None,
        baseline=number == 0,
        front=front,
        failure_kind=None if done else "budget",
        failure_reason=None if done else "MNBT is too small",
        seconds=60.0 + number,
    )


def study(
    rows: Sequence[Row] = ROWS, *, extra: Mapping[str, Value] | None = None, **changes: object
) -> StudyView:
    view = StudyView(
        name="demo-cpu",
        objectives=(THROUGHPUT, P95),
        trials=[trial(i, row, extra) for i, row in enumerate(rows)],
        wanted=40,
        finished=len(rows),
        machine="2 cores, 24 GiB",
        vllm_version="0.32.0",
        created=datetime(2026, 1, 2, tzinfo=UTC),
    )
    return replace(view, **changes)  # type: ignore[arg-type]
