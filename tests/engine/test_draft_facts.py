"""What a draft's config.json tells the rules, and that a study's facts have every draft."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autotune.engine.draft_facts import draft_facts
from autotune.engine.feasibility import known_for
from autotune.engine.probe import UNKNOWN
from autotune.engine.rule import Draft
from autotune.study.files import load_study

SPECULATORS = {
    "speculators_model_type": "dspark",
    "speculators_config": {"verifier": {"name_or_path": "a/b"}},
}


@pytest.mark.parametrize(
    ("config", "facts"),
    [
        ({}, Draft(from_anchor=True)),
        (SPECULATORS, Draft(from_anchor=False)),
        ({**SPECULATORS, "sample_from_anchor": True}, Draft(from_anchor=True)),
        ({"sample_from_anchor": False}, Draft(from_anchor=False)),
        (
            {"architectures": ["LiLiCorrDraftModel"], "block_size": 8},
            Draft(
                architectures=frozenset({"LiLiCorrDraftModel"}),
                block=8,
                from_anchor=True,
            ),
        ),
        ({"block_size": 8, "dflash_config": {"block_size": 6}}, Draft(block=6, from_anchor=True)),
        ({"dspark_block_size": 5}, Draft(dspark_block=5, from_anchor=True)),
        (
            {"model_type": "deepseek_v3", "num_nextn_predict_layers": 2},
            Draft(kind="deepseek_v3", head_tokens=2, from_anchor=True),
        ),
        (
            {"model_type": "inkling_model", "mtp_config": {"num_nextn_predict_layers": 3}},
            Draft(kind="inkling_model", head_tokens=3, from_anchor=True),
        ),
        (
            {
                "architectures": ["RadioMBartPrefixForCausalLM"],
                "decoder": {"causal_vision_prefix": True},
            },
            Draft(
                architectures=frozenset({"RadioMBartPrefixForCausalLM"}),
                one_token=True,
                from_anchor=True,
            ),
        ),
        (
            {
                **SPECULATORS,
                "transformer_layer_config": {
                    "layer_types": ["sliding_attention", "full_attention"],
                    "max_position_embeddings": 2048,
                },
            },
            Draft(mixed=True, length=2048, from_anchor=False),
        ),
        (
            {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 9},
            Draft(
                kind="qwen3",
                architectures=frozenset({"Qwen3ForCausalLM"}),
                headless=True,
                vocabulary=9,
                drafted_vocabulary=9,
                from_anchor=True,
            ),
        ),
        (
            {"model_type": "qwen2", "architectures": ["MiMoForCausalLM"], "draft_vocab_size": 5},
            Draft(
                kind="qwen2",
                architectures=frozenset({"MiMoForCausalLM"}),
                drafted_vocabulary=5,
                from_anchor=True,
            ),
        ),
        (
            {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_mtp_layers": 1},
            Draft(kind="llama", architectures=frozenset({"LlamaForCausalLM"}), from_anchor=True),
        ),
        ({"layer_types": ["sliding_attention"], "architectures": None}, Draft(from_anchor=True)),
    ],
)
def test_what_a_drafts_config_tells(config: dict[str, Any], facts: Draft) -> None:
    assert draft_facts(config) == facts


def test_a_study_has_the_facts_of_target_and_draft(tmp_path: Path) -> None:
    for name, config in (
        ("target", {"model_type": "qwen3_omni_moe"}),
        ("draft", {"block_size": 7}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    (tmp_path / "study.yaml").write_text(
        "name: s\n"
        "server:\n  model: ./target\n  speculative: {model: ./draft, method: dspark}\n"
        "  env: {VLLM_USE_V2_MODEL_RUNNER: '0'}\n"
        "workload: {random: {input_len: 8}, output_len: 8, num_prompts: 20, max_concurrency: 4}\n"
        "space:\n  num_speculative_tokens: {type: int, low: 0, high: 8}\n"
        "objectives: [p95_latency]\n"
    )
    known = known_for(load_study(tmp_path / "study.yaml"), UNKNOWN)
    assert known.drafts["./draft"].block == 7
    assert known.drafts[None].kind == known.target == "qwen3_omni_moe"
    assert known.v2 is False
    assert known.load == 4
