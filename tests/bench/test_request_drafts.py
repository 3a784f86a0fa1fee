"""What vLLM tells of a request's drafts, at both levels, and what nobody should send."""

from __future__ import annotations

from typing import Any

import pytest

from autotune.bench.request_drafts import RequestDrafts, request_drafts

# As RequestSpecDecodeMetrics.to_dict of vLLM 0.32 has it (v1/metrics/stats.py).
SUMMARY: dict[str, Any] = {
    "mean_acceptance_length": 2.6666666666666665,
    "draft_acceptance_rate": 0.5555555555555556,
    "acceptance_histogram": [1, 0, 1, 1],
    "num_spec_steps": 3,
    "num_accepted_draft_tokens": 5,
    "num_draft_tokens": 9,
    "num_spec_tokens": 3,
}
DETAILED = {**SUMMARY, "per_step_accepted": [3, 2, 0], "per_step_drafted": [3, 3, 3]}


def told(**changes: object) -> RequestDrafts | None:
    return request_drafts({"speculative_decoding": {**DETAILED, **changes}})


def test_both_levels() -> None:
    summary = request_drafts({"time_to_first_token_ms": 1.0, "speculative_decoding": SUMMARY})
    assert summary == RequestDrafts((1, 0, 1, 1), 9)
    assert (summary.steps, summary.accepted) == (3, 5)
    detailed = told()
    assert detailed == RequestDrafts((1, 0, 1, 1), 9, ((3, 3), (2, 3), (0, 3)))
    assert (detailed.steps, detailed.accepted) == (3, 5)


@pytest.mark.parametrize(
    "metrics",
    [
        None,
        [],
        "none",
        {},
        {"speculative_decoding": None},
        {"speculative_decoding": [1]},
        {"speculative_decoding": {"acceptance_histogram": "1"}},
        {"speculative_decoding": {"acceptance_histogram": [3]}},  # n = 0
        {"speculative_decoding": {"acceptance_histogram": [1, -1]}},
        {"speculative_decoding": {"acceptance_histogram": [1, 2.5]}},
        {"speculative_decoding": {"acceptance_histogram": [True, False]}},
        {"speculative_decoding": {"acceptance_histogram": [0] * 5000}},
        {"speculative_decoding": {"per_step_accepted": [3], "per_step_drafted": []}},
        {"speculative_decoding": {"acceptance_histogram": [0, 2**70]}},
    ],
)
def test_nothing_that_can_be_used_is_nothing(metrics: object) -> None:
    assert request_drafts(metrics) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"per_step_accepted": None},
        {"per_step_drafted": [3, 3]},
        {"per_step_accepted": [3, 2, 1]},  # not what the histogram counts
        {"per_step_accepted": [3, 2, 4]},
        {"per_step_accepted": [[3], 2, 0]},
        {"per_step_drafted": "333"},
    ],
)
def test_odd_arrays_leave_the_histogram(changes: dict[str, object]) -> None:
    assert told(**changes) == RequestDrafts((1, 0, 1, 1), 9)


def test_arrays_alone_are_enough() -> None:
    found = told(acceptance_histogram=None, num_draft_tokens=None)
    assert found == RequestDrafts((1, 0, 1, 1), None, ((3, 3), (2, 3), (0, 3)))
