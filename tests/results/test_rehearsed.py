"""The acceptance that a rehearsal takes from another study's launches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from autotune.errors import UserError
from autotune.results.rehearsed import (
    production_note,
    with_counted_acceptance,
    with_kept_acceptance,
)
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


def test_what_was_begun_goes_on_with_the_rates_that_its_database_keeps(tmp_path: Path) -> None:
    source = counted(tmp_path).rename(tmp_path / "source.db")
    begun = with_counted_acceptance(at(tmp_path, {"from": "source.db"}))
    kept = yaml.safe_load(text_to_store(begun))
    changes = {"rehearsal": kept["rehearsal"], f"space__{N}": kept["space"][N]}
    own = stored(tmp_path, [Run({N: 0, MNBT: 512}, 100)], name="mine", **changes)
    source.unlink()
    again = with_kept_acceptance(at(tmp_path, {"from": "source.db"}), own)
    assert rates(again, 5) == rates(begun, 5)
    assert again.spec.rehearsal_label == begun.spec.rehearsal_label
    # another source is read, and so is the source of what is not begun yet
    for study, database in (
        (at(tmp_path, {"from": "other.db"}), own),
        (at(tmp_path, {"from": "source.db"}), tmp_path / "new.db"),
        (at(tmp_path, {"from": "source.db"}, name="another"), own),
    ):
        assert with_kept_acceptance(study, database) is study
    more = {f"space__{N}": {"type": "int", "low": 0, "high": 15}}
    larger = at(tmp_path, {"from": "source.db"}, **more)
    with pytest.raises(UserError, match=r"n goes up to 15"):
        with_kept_acceptance(larger, own)


def test_neither_the_study_itself_nor_other_rehearsals_are_the_source(tmp_path: Path) -> None:
    database = counted(tmp_path)
    for name in ("mine", "other"):
        changes = {"rehearsal": {"weights": "dummy"}}
        stored(tmp_path, [Run({N: 0, MNBT: 512}, 100)], name=name, **changes)
        study = with_counted_acceptance(at(tmp_path, {"from": database.name}))
        assert rates(study, 7) == pytest.approx(COUNTED[7], abs=1e-6)
    stored(tmp_path, [Run({N: 0, MNBT: 512}, 100)], name="second")
    with pytest.raises(UserError, match="holds several studies; add one behind a colon") as e:
        with_counted_acceptance(at(tmp_path, {"from": database.name}))
    assert str(e.value).startswith(f"{tmp_path / 'mine.yaml'}: rehearsal.acceptance.from: ")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("text.db", "is no SQLite database"),
        ("autotune.db:nope", "has no study nope; it has real"),
        ("http://host/x.db", "no database of this kind is known"),
        ("postgresql:me:pass1234@host/x", "is neither a file nor a URL"),
    ],
)
def test_a_source_that_cannot_be_read_is_told_with_its_key(
    tmp_path: Path, source: str, words: str
) -> None:
    counted(tmp_path)
    (tmp_path / "text.db").write_text("no database")
    with pytest.raises(UserError, match=words) as e:
        with_counted_acceptance(at(tmp_path, {"from": source}))
    said = str(e.value)
    assert said.startswith(f"{tmp_path / 'mine.yaml'}: rehearsal.acceptance.from: ")
    assert "--db" not in said
    assert "pass1234" not in said


def test_a_study_that_plays_by_its_own_flags_is_told_not_to_serve() -> None:
    draft = {"method": "dflash", "model": "org/draft", "rejection_sample_method": "synthetic"}
    rates = {"synthetic_acceptance_rates": [0.5] * 7}
    note = production_note(loaded(None, server__speculative={**draft, **rates}).spec)
    assert note is not None
    assert "sets a given acceptance (rejection_sample_method) itself" in note
    note = production_note(loaded(None, **{"server__flags__load-format": "dummy"}).spec)
    assert note is not None
    assert "sets random weights (load-format) itself" in note
    assert production_note(loaded(None).spec) is None


SAMPLED = {"type": "choice", "choices": ["standard", "synthetic"]}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"server__flags__load-format": "dummy"}, "random weights (load-format)"),
        (
            {"space__load-format": {"type": "choice", "choices": ["auto", "dummy"]}},
            "random weights (load-format)",
        ),
        (
            {"server__command": ["vllm", "serve", "--load-format=dummy"]},
            "random weights (load-format)",
        ),
        (
            {
                "server__flags__load-format": "dummy",
                "server__speculative__rejection_sample_method": "synthetic",
                "server__env": {"VLLM_MOE_ROUTING_SIMULATION_STRATEGY": "uniform_random"},
            },
            (
                "random weights (load-format), a given acceptance (rejection_sample_method) and a "
                "given routing to experts (VLLM_MOE_ROUTING_SIMULATION_STRATEGY)"
            ),
        ),
        (
            {"space__speculative.rejection_sample_method": SAMPLED},
            "a given acceptance (rejection_sample_method)",
        ),
        ({"server__flags__load-format": "Dummy"}, "random weights (load-format)"),  # vLLM's, too
        (
            {"server__command": "bash -c 'vllm serve --load-form dummy'"},
            "random weights (load-format)",
        ),
        (
            {"server__speculative__draft_load_config": {"load_format": "dummy"}},
            "random weights of the draft (draft_load_config)",
        ),
        (
            {"server__speculative__draft_load_config.load_format": "dummy"},
            "random weights of the draft (draft_load_config)",
        ),
        (
            {
                "server__command": (
                    "docker run -e VLLM_MOE_ROUTING_SIMULATION_STRATEGY=uniform_random "
                    "vllm/vllm-openai"
                )
            },
            "a given routing to experts (VLLM_MOE_ROUTING_SIMULATION_STRATEGY)",
        ),
    ],
)
def test_every_table_says_what_a_study_plays_by_its_own_settings(
    changes: dict[str, object], what: str
) -> None:
    spec = loaded(None, **changes).spec
    assert spec.rehearsal_label == (
        f"no real model: the study sets {what} itself, step times are real"
    )
