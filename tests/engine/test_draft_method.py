"""The method of a draft: what vLLM would choose, and where autotune has to say it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autotune.engine.draft_method import draft_method, tokens_of_head, with_method
from autotune.study.files import LoadedStudy, parse_study
from autotune.study.speculative import SpeculativeSpec
from tests.studies import write_study


@pytest.fixture(autouse=True)
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose path has none of the texts that vLLM looks for."""
    return tmp_path_factory.mktemp("drafts")


def _model(path: Path, config: dict[str, Any]) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    return path


def _found(base: Path, **draft: Any) -> str | None:
    return draft_method(SpeculativeSpec.model_validate(draft), base).name


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("z-lab/Qwen3-8B-DFlash", "dflash"),
        ("deepseek-ai/dspark_qwen3_8b_block7", "dspark"),
        ("yuhuili/EAGLE-LLaMA3-Instruct-8B", "eagle"),
        ("yuhuili/EAGLE3-LLaMA3.1-Instruct-8B", "eagle3"),
        ("org/Qwen3-0.6B", None),
        ("google/gemma-4-it-assistant", None),
    ],
)
def test_a_hub_name_decides_only_by_the_texts_that_vllm_looks_for(
    base: Path, name: str, method: str | None
) -> None:
    assert _found(base, model=name) == method


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({"architectures": ["DFlashDraftModel"], "model_type": "qwen3"}, "dflash"),
        ({"architectures": ["DFlash2DraftModel"]}, "dflash"),
        ({"architectures": ["LiLiCorrDraftModel"]}, "dflash"),
        ({"architectures": ["Qwen3XPressModel"]}, "dflash"),
        ({"architectures": ["Qwen3DSparkModel"]}, "dspark"),
        ({"architectures": ["LlamaForCausalLMEagle3"]}, "eagle3"),
        ({"architectures": ["PeagleQwen3ForCausalLM"]}, "eagle3"),
        ({"architectures": ["EagleLlamaForCausalLM"]}, "eagle"),
        ({"model_type": "gemma4_assistant"}, "mtp"),
        ({"model_type": "deepseek_v3"}, "mtp"),
        ({"model_type": "nemotron_h", "num_nextn_predict_layers": 1}, "mtp"),
        ({"model_type": "nemotron_h"}, "draft_model"),
        ({"model_type": "medusa"}, "medusa"),
        ({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}, "draft_model"),
    ],
)
def test_a_renamed_folder_is_known_by_its_config(
    base: Path, config: dict[str, Any], method: str
) -> None:
    _model(base / "mine", config)
    found = draft_method(SpeculativeSpec(model="mine"), base)
    assert found.name == method
    assert "config.json" in found.reason


def test_a_folder_in_speculators_format_says_its_method(base: Path) -> None:
    body = {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "peagle",
        "speculators_config": {"verifier": {"name_or_path": "org/t"}},
    }
    _model(base / "mine", body)
    assert _found(base, model="mine") == "eagle3"


def test_every_folder_above_the_draft_counts_to_vllm(base: Path) -> None:
    _model(base / "DFlash-runs" / "small", {"model_type": "qwen3"})
    ref = "DFlash-runs/small"
    assert _found(base, model=ref) == "dflash"
    given = draft_method(SpeculativeSpec(model=ref, method="draft_model"), base)
    assert given.name == "draft_model"
    assert given.warning is not None
    assert "Rename the folder" in given.warning
    kept = draft_method(SpeculativeSpec(model=ref, method="eagle3"), base)
    assert (kept.name, kept.warning) == ("eagle3", None)


def test_what_the_user_says_stays(base: Path) -> None:
    for method in ("mtp", "draft_model", "deepseek_mtp", "medusa"):
        assert _found(base, model="org/x", method=method) == method
    for method in ("ngram", "suffix", "mtp", "dspark"):
        assert _found(base, method=method) == method


def _study(folder: Path, draft: dict[str, Any]) -> LoadedStudy:
    path = write_study(folder, server__speculative=draft)
    return parse_study(path.read_text(), path)


def test_the_study_gets_the_method(base: Path) -> None:
    _model(base / "mine", {"architectures": ["DFlashDraftModel"]})
    loaded = _study(base, {"model": "mine"})
    assert loaded.spec.server.draft_settings({}) == {"model": "mine"}
    settings = with_method(loaded).spec.server.draft_settings({})
    assert settings == {"method": "dflash", "model": "mine"}


def test_without_a_word_about_it_vllm_chooses(base: Path) -> None:
    loaded = _study(base, {"model": "org/small"})
    assert with_method(loaded) is loaded


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        ({"model_type": "deepseek_v3", "num_nextn_predict_layers": 1}, 1),
        ({"model_type": "qwen3_5", "text_config": {"mtp_num_hidden_layers": 2}}, 2),
        ({"model_type": "minimax_m3_vl", "num_mtp_modules": 3}, 3),
        ({"model_type": "deepseek_v3"}, None),
        ({"model_type": "llama", "num_nextn_predict_layers": 1}, None),
        ({}, None),
    ],
)
def test_tokens_of_a_head(config: dict[str, Any], tokens: int | None) -> None:
    assert tokens_of_head(config) == tokens
