"""The table of vLLM's flags: that of the installed vLLM, and abbreviations as argparse has them."""

from __future__ import annotations

import pytest

from autotune.errors import UserError
from autotune.study.vllm_flags import find, known, table_version, was_switch
from benchmarks.vllm_flags import TABLE, ask, written


@pytest.mark.vllm
def test_the_table_is_that_of_the_installed_vllm() -> None:
    assert TABLE.read_text(encoding="utf-8") == written(ask())


def test_names_and_abbreviations() -> None:
    assert find("--tensor-parallel-size") == find("-tp") == find("--tensor-p")
    assert find("--no-enforce-eager") != find("--enforce-eager")
    assert find("--enforce-e") == find("--enforce-eager")
    assert find("--nothing-like-it") is None
    # as 0.33 writes it; the former switch is none of them
    assert find("--disable-prefix-caching") == find("--no-enable-prefix-caching")
    assert find("--disable-log-requests") is None
    with pytest.raises(UserError, match="short for: --max-num-active-seqs, --max-num-batched"):
        find("--max-num-")


def test_former_switches_are_no_flags_of_the_table() -> None:
    assert table_version()
    assert was_switch("disable-log-requests")
    assert not was_switch("swap-space")
    assert not any(was_switch(name.removeprefix("--")) for name in known())
