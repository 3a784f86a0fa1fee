"""The verdict on what a study has launched."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

import objectives
from autotune.results.standing import Launched, study_verdict
from autotune.search.places import Places

OBJECTIVES = tuple(map(objectives.get, ("throughput", "p95_latency")))
SEARCHED = {0: [[100.0, 50.0], [101.0, 50.0]], 3: [[150.0, 40.0], [149.0, 41.0]]}


def launched(confirmed: dict[int, Sequence[Sequence[float]]], slots: int) -> Launched:
    places = Places(
        {k: [f":{i % slots}" for i, _ in enumerate(x)] for k, x in SEARCHED.items()},
        {k: [f":{i % slots}" for i, _ in enumerate(x)] for k, x in confirmed.items()},
    )
    return Launched(SEARCHED, confirmed, 0, {}, places)


@pytest.mark.parametrize("slots", [1, 2])
def test_the_baseline_alone_is_not_the_best_of_a_confirmation(slots: int) -> None:
    alone = {0: [[100.0, 50.0], [102.0, 51.0]]}
    assert study_verdict(launched(alone, slots), OBJECTIVES) is None
    assert study_verdict(launched({**alone, 3: []}, slots), OBJECTIVES) is None
    found = study_verdict(launched({**alone, 3: [[151.0, 40.0]]}, slots), OBJECTIVES)
    assert found is not None
    assert found.balanced.number == 3
