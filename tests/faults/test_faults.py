"""The fast part of the fault suite; all: ``python -m tests.faults``, and again with ``--soak``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.cases import Bench
from tests.faults.inject import PATIENCE
from tests.faults.plan import FAULTS, Fault
from tests.faults.soak import Soak
from tests.studies import PATIENCE_S

pytestmark = pytest.mark.double


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests run beside these."""
    monkeypatch.setenv(PATIENCE, str(PATIENCE_S))


KILLS = 5


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with Bench(tmp_path_factory.mktemp("faults")) as bench:
        yield bench


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.quick], ids=lambda f: f.name)
def test_nothing_is_left_and_nothing_is_lost(bench: Bench, fault: Fault) -> None:
    outcomes = bench.run(fault, fault.quick)
    problems = [f"{o.stage}: {p}" for o in outcomes for p in o.problems]
    assert not problems, "\n".join(problems)
    if skipped := next((o.skipped for o in outcomes if o.skipped), ""):
        pytest.skip(skipped)
    assert {o.stage for o in outcomes} == set(fault.quick)


def test_random_faults_at_random_times(bench: Bench, tmp_path: Path) -> None:
    kills = Soak(tmp_path, bench.starter, 1, trials=4, lengths_s=(1.0, 1.3)).run(KILLS)
    problems = [f"{k.action}, {k.stage}: {p}" for k in kills for p in k.problems]
    assert not problems, "\n".join(problems)
    assert len(kills) == KILLS
