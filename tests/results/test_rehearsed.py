"""The acceptance that a rehearsal takes from another study's launches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from autotune.errors import UserError
from autotune.results.rehearsed import with_counted_acceptance
from autotune.study.files import LoadedStudy, parse_study
from autotune.study.space import MNBT, N
from autotune.study.stored import text_to_store
from tests.results.test_comparison import Run, stored
from tests.study.test_rehearsal import loaded

COUNTED = {3: [0.8, 0.5, 0.4], 7: [0.75, 0.55, 0.4, 0.3, 0.25, 0.2, 0.15]}


def counted(folder: Path, ns: dict[int, list[float]] = COUNTED, **changes: Any) -> Path:
    """A study whose launches at some n counted this acceptance."""
    trials = [Run({N: 0, MNBT: 512}, 100)]
    for n, rates in ns.items():
        attrs = {"acceptance_length": 1 + sum(rates), "acceptance_per_position": rates}
        trials.append(Run({N: n, MNBT: 512}, 120, attrs=attrs))
    return stored(folder, trials, name="real", **changes)


def at(folder: Path, acceptance: dict[str, Any], **changes: Any) -> LoadedStudy:
    """A rehearsal in a folder."""
    found = loaded({"acceptance": acceptance, "weights": "dummy"}, **changes)
    return found.model_copy(update={"path": folder / "mine.yaml"})


def rates(study: LoadedStudy, n: int) -> list[float]:
    found: list[float] = study.spec.server.draft_settings({N: n})["synthetic_acceptance_rates"]
    return found


def test_a_launched_n_has_what_its_own_launches_counted(tmp_path: Path) -> None:
    counted(tmp_path)
    study = with_counted_acceptance(at(tmp_path, {"from": "autotune.db"}))
    for n, own in COUNTED.items():
        assert rates(study, n) == pytest.approx(own, abs=1e-6)
    between = rates(study, 5)
    assert len(between) == 5
    assert 1 + sum(COUNTED[3]) < 1 + sum(between) < 1 + sum(COUNTED[7])
    assert "(as counted in autotune.db)" in study.spec.rehearsal_label
    assert "assumed" not in study.spec.rehearsal_label
    named = with_counted_acceptance(at(tmp_path, {"from": "autotune.db:real"}))
    assert rates(named, 7) == rates(study, 7)


def test_a_larger_n_is_refused_or_assumed_and_said(tmp_path: Path) -> None:
    counted(tmp_path, {3: COUNTED[3]})
    with pytest.raises(UserError, match=r"was measured up to n = 3, and n goes up to 7"):
        with_counted_acceptance(at(tmp_path, {"from": "autotune.db"}))
    study = with_counted_acceptance(at(tmp_path, {"from": "autotune.db", "decay": 0.5}))
    assert rates(study, 3) == pytest.approx(COUNTED[3])
    assert rates(study, 4)[3] == pytest.approx(0.4 * 0.8 * 0.5)
    assert "assumed beyond n = 3" in study.spec.rehearsal_label


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"server__speculative": {"method": "eagle3", "model": "org/draft"}}, "method eagle3"),
        (
            {
                "server__speculative": {
                    "method": "dflash",
                    "model": "org/draft",
                    "enable_adaptive_verification": True,
                }
            },
            "which bias it",
        ),
        ({"rehearsal": {"weights": "dummy"}}, "is a rehearsal itself"),
        ({"rehearsal": {"acceptance": {"rate": 0.5}}}, "whose acceptance was given"),
    ],
)
def test_what_says_nothing_of_the_draft_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    counted(tmp_path, **changes)
    with pytest.raises(UserError, match=words) as e:
        with_counted_acceptance(at(tmp_path, {"from": "autotune.db"}))
    assert "rehearsal.acceptance.from: autotune.db" in str(e.value)
    assert "\n" not in str(e.value)


def test_without_launches_that_draft_there_is_nothing(tmp_path: Path) -> None:
    counted(tmp_path, {})
    with pytest.raises(UserError, match="has no acceptance of a fixed n"):
        with_counted_acceptance(at(tmp_path, {"from": "autotune.db"}))
    with pytest.raises(UserError, match=r"gone\.db: no such database"):
        with_counted_acceptance(at(tmp_path, {"from": "gone.db"}))


def test_the_stored_text_has_the_rates(tmp_path: Path) -> None:
    database = counted(tmp_path)
    study = with_counted_acceptance(at(tmp_path, {"from": "autotune.db"}))
    text = text_to_store(study)
    database.unlink()
    again = parse_study(text, study.path, check_files=False, stored=True)
    assert again.spec == study.spec
    assert rates(again, 5) == rates(study, 5)
    assert with_counted_acceptance(again) is again
    assert yaml.safe_load(text)["rehearsal"]["acceptance"]["from"] == "autotune.db"
