"""Hints for flags that vLLM does not have."""

from __future__ import annotations

import pytest

from autotune.engine.removed_flags import REMOVED, hint

OPTIONS = (
    *("enable_log_requests", "no_enable_log_requests", "enable_prefix_caching"),
    *("kda_decode_backend", "device_ids", "structured_outputs_config", "max_num_seqs"),
    *("cudagraph_capture_sizes", "enable_log_outputs", "disable_log_stats", "runner"),
)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("disable_log_requests", "leave it out"),
        ("no_disable_log_requests", "leave it out"),
        ("enable_reasoning", "leave it out"),
        ("guided_decoding_backend", "write it as structured-outputs-config.backend"),
        ("swap_space", "leave it out"),
        ("num_scheduler_steps", "V0"),
        ("use_v2_block_manager", "leave it out"),
        ("device", "leave it out"),
        ("cuda_graph_sizes", "cudagraph-capture-sizes"),
        ("task", "runner"),
        ("rope_scaling", "leave it out"),  # hf_overrides is not among these options
        ("max_num_sequences", "did you mean max_num_seqs?"),
        ("disable_log_outputs", "has enable_log_outputs, which says the opposite"),
        ("enable_log_stats", "has disable_log_stats, which says the opposite"),
    ],
)
def test_what_to_write(name: str, words: str) -> None:
    said = hint(name, OPTIONS)
    assert words in said
    assert said.startswith("; ")


@pytest.mark.parametrize(
    "name",
    [
        "enable_log_spouts",  # near to enable_log_outputs, but about something else
        "disable_prefix_matching",
        "frobnicate",
        "quantized_decode",
    ],
)
def test_no_hint_is_better_than_a_guess(name: str) -> None:
    assert hint(name, OPTIONS) == ""


def test_what_is_gone_is_written_as_flags_are() -> None:
    for name, removed in REMOVED.items():
        assert name == name.lower().replace("-", "_")
        assert removed.what
        assert removed.successor != name
