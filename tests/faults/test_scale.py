"""The fast part of the faults of several servers; all: ``python -m tests.faults --cluster``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.inject import PATIENCE
from tests.faults.scale import SCALE_FAULTS, Place, ScaleFault, Surroundings
from tests.studies import PATIENCE_S

pytestmark = pytest.mark.double


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests run beside these."""
    monkeypatch.setenv(PATIENCE, str(PATIENCE_S))


CASES = [(fault, place) for fault in SCALE_FAULTS for place in fault.quick]


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Surroundings]:
    with Surroundings(tmp_path_factory.mktemp("scale")) as found:
        yield found


@pytest.mark.parametrize(
    ("fault", "place"), CASES, ids=[f"{place.name.lower()}: {f.name}" for f, place in CASES]
)
def test_nothing_is_left_and_nothing_is_lost(
    surroundings: Surroundings, fault: ScaleFault, place: Place
) -> None:
    outcome = surroundings.run(fault, place)
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    assert not outcome.problems, "\n".join(outcome.problems)
