"""What a model's config.json says, where it is on this disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autotune.study.checkpoints import Speculators, config_of, speculators_of


def _folder(path: Path, config: dict[str, Any]) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    return path


def _speculators(kind: str = "dflash", tokens: object = 7) -> dict[str, Any]:
    return {
        "speculators_model_type": kind,
        "speculators_config": {
            "verifier": {"name_or_path": "org/target"},
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": tokens}],
        },
    }


def test_the_config_of_a_folder_is_read_relative_to_the_study(tmp_path: Path) -> None:
    _folder(tmp_path / "models" / "m", {"model_type": "llama"})
    assert config_of("models/m", tmp_path) == {"model_type": "llama"}
    assert config_of(str(tmp_path / "models" / "m"), Path("/")) == {"model_type": "llama"}


def test_the_demo_draft_is_read() -> None:
    config = config_of("demo:draft", Path("/nowhere"))
    assert config is not None
    assert config["architectures"] == ["DFlashDraftModel"]


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff"])
def test_a_damaged_config_says_nothing(tmp_path: Path, text: str) -> None:
    folder = _folder(tmp_path / "m", {})
    (folder / "config.json").write_text(text, encoding="latin-1")
    assert config_of("m", tmp_path) is None


def test_a_model_that_is_not_here_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for ref in ("org/m", "gone", "/gone/m", "~nobody-of-that-name/m", "a\0b", "x" * 5000):
        assert config_of(ref, tmp_path) is None


def test_a_hub_name_is_read_from_the_cache_at_its_main_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    repository = tmp_path / "hub" / "models--org--m"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    assert config_of("org/m", tmp_path) is None
    _folder(repository / "snapshots" / ("a" * 40), {"model_type": "qwen3"})
    assert config_of("org/m", tmp_path) == {"model_type": "qwen3"}
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HOME", "/elsewhere")
    assert config_of("org/m", tmp_path) == {"model_type": "qwen3"}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("dflash", {"method": "dflash"}),
        ("dflash2", {"method": "dflash"}),
        ("dspark", {"method": "dspark"}),
        ("eagle3", {"method": "eagle3"}),
        ("peagle", {"method": "eagle3", "parallel_drafting": True}),
    ],
)
def test_speculators_are_what_vllm_makes_of_them(kind: str, settings: dict[str, Any]) -> None:
    found = speculators_of(_speculators(kind))
    assert found == Speculators(kind, settings["method"], "org/target", 7)
    assert found.settings == settings


@pytest.mark.parametrize(
    "config",
    [
        None,
        {},
        {"speculators_config": None},
        {"speculators_config": {"verifier": {"name_or_path": None}}},
        {"speculators_model_type": "eagle3"},
    ],
)
def test_other_configs_are_in_no_speculators_format(config: dict[str, Any] | None) -> None:
    assert speculators_of(config) is None


@pytest.mark.parametrize("tokens", [None, "7", True])
def test_speculators_may_lack_n(tokens: object) -> None:
    found = speculators_of(_speculators(tokens=tokens))
    assert found is not None
    assert found.n is None
