"""What a user is told of the draft before the first launch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autotune.engine.draft_notes import causal_by_mistake, draft_notes, trained_for
from autotune.study.files import load_study, parse_study
from tests.studies import write_study


def _speculators(layers: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {
        "speculators_model_type": "dflash",
        "speculators_config": {"verifier": {"name_or_path": "org/t"}},
        "transformer_layer_config": layers,
        **keys,
    }


FULL, SLIDING = "full_attention", "sliding_attention"
BAD = {"sliding_window_non_causal": False}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (_speculators({"num_hidden_layers": 5}, **BAD), "set it to true"),
        (_speculators({"layer_types": [FULL, FULL]}, **BAD), "set it to true"),
        (_speculators({"layer_types": [SLIDING, FULL]}, **BAD), "no key for such a mix"),
        (_speculators({"layer_types": [SLIDING, SLIDING]}, **BAD), None),
        (_speculators({"layer_types": [FULL], "is_causal": False}, **BAD), None),
        (_speculators({"layer_types": [FULL]}, sliding_window_non_causal=True), None),
        (_speculators({"layer_types": [FULL]}), None),
        (
            {**_speculators({"layer_types": [FULL]}, **BAD), "speculators_model_type": "eagle3"},
            None,
        ),
        ({"architectures": ["DFlashDraftModel"], **BAD}, None),
    ],
)
def test_a_causal_mask_by_mistake(config: dict[str, Any], words: str | None) -> None:
    said = causal_by_mistake(config)
    assert (said is None) is (words is None)
    assert words is None or words in (said or "")


def test_a_block_size_is_what_the_draft_was_trained_for() -> None:
    assert trained_for({"block_size": 16}) == 16
    assert trained_for({"dflash_config": {"block_size": 8}}) == 8
    assert trained_for({"block_size": "many"}) is None
    assert trained_for({}) is None


def _notes(folder: Path, draft: dict[str, Any]) -> list[str]:
    path = write_study(folder, server__speculative=draft)
    return list(draft_notes(parse_study(path.read_text(), path)))


def test_the_bundled_study_needs_no_remark() -> None:
    assert list(draft_notes(load_study("demo-cpu"))) == []


def test_more_than_the_draft_was_trained_for_is_said_not_forbidden(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    config = {"architectures": ["DFlashDraftModel"], "block_size": 8}
    (folder / "config.json").write_text(json.dumps(config))
    [found, beyond] = _notes(tmp_path, {"model": "small"})
    assert "method is dflash" in found
    assert "DFlashDraftModel" in found
    assert "n goes up to 15" in beyond
    assert "7 draft tokens" in beyond


def test_a_name_that_says_nothing_is_left_to_vllm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    [note] = _notes(tmp_path, {"model": "org/small"})
    assert "vLLM chooses" in note
    assert _notes(tmp_path, {"method": "ngram"}) == []
