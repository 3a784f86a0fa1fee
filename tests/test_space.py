"""Encodings and the rules of what can launch."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from autotune.space import (
    MNBT,
    ChoiceParam,
    FloatParam,
    IntParam,
    N,
    Pow2Param,
    Space,
    why_infeasible,
)


def space() -> Space:
    return Space(
        {
            N: IntParam(type="int", low=0, high=15),
            MNBT: Pow2Param(type="pow2", low=32, high=2048),
            "kv_cache_dtype": ChoiceParam(type="choice", choices=("auto", "fp8")),
        }
    )


def test_every_point_survives_encoding() -> None:
    s = space()
    points = list(s.points() or [])
    assert len(points) == s.size() == 16 * 7 * 2
    assert all(s.decode(s.encode(p)) == p for p in points)
    assert set(s.distributions()) == {N, f"log2_{MNBT}", "kv_cache_dtype"}


@pytest.mark.parametrize(
    ("point", "word"),
    [
        ({N: 3, MNBT: 100, "kv_cache_dtype": "auto"}, "powers of two"),
        ({N: 16, MNBT: 64, "kv_cache_dtype": "auto"}, "0 to 15"),
        ({N: 3, MNBT: 64, "kv_cache_dtype": "int4"}, "one of auto, fp8"),
        ({N: 3, MNBT: 64}, "missing"),
        ({N: 3, MNBT: 64, "kv_cache_dtype": "auto", "x": 1}, "not a parameter"),
    ],
)
def test_points_outside_the_space_are_refused(point: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        space().encode(point)  # type: ignore[arg-type]


def test_a_continuum_has_no_grid() -> None:
    s = Space({"gpu_memory_utilization": FloatParam(type="float", low=0.5, high=0.9)})
    assert s.size() is None
    assert s.points() is None
    assert s.decode(s.encode({"gpu_memory_utilization": 0.7})) == {"gpu_memory_utilization": 0.7}


def test_clip_takes_the_nearest_value() -> None:
    assert space().clip(MNBT, 2000) == 2048
    assert space().clip(MNBT, 8192) == 2048
    assert space().clip(N, 3) == 3


def test_a_power_of_two_is_asked_for() -> None:
    with pytest.raises(ValidationError, match="take 32 or 64"):
        Pow2Param(type="pow2", low=33, high=2048)


@pytest.mark.parametrize(
    ("version", "n", "mnbt", "seqs", "launches"),
    [
        # vLLM 0.26: MNBT ≥ (n + 1)·max_num_seqs
        ("0.26.0", 15, 2048, 256, False),
        ("0.26.0", 15, 4096, 256, True),
        ("0.24.0", 7, 8, 1, True),
        ("0.24.0", 8, 8, 1, False),
        # vLLM 0.32: MNBT > n, and never below max_num_seqs
        ("0.32.0", 15, 2048, 256, True),
        ("0.32.0", 15, 16, 2, True),
        ("0.32.0", 15, 15, 2, False),
        ("0.32.0", 0, 8, 16, False),
        ("0.32.0", 0, 16, 16, True),
        # unknown version: only what holds for all
        (None, 15, 2048, 256, True),
        (None, 15, 8, 2, False),
    ],
)
def test_budget_rules(version: str | None, n: int, mnbt: int, seqs: int, launches: bool) -> None:
    why = why_infeasible({N: n, MNBT: mnbt, "max_num_seqs": seqs}, version)
    assert (why is None) is launches
    if why:
        assert str(mnbt) in why  # it names what was asked for …
        assert "at least" in why  # … and what would do


def test_the_reason_reads_as_the_issue_asks() -> None:
    why = why_infeasible({N: 15, MNBT: 2048, "max_num_seqs": 256}, "0.26.0")
    assert why == (
        "n = 15 with max_num_seqs = 256 needs MNBT of at least 4096 on vLLM 0.26.0; 2048 would fail"
    )


def test_without_chunked_prefill_the_budget_holds_a_whole_prompt() -> None:
    flags = {MNBT: 512, "max_model_len": 1024, "enable_chunked_prefill": False}
    assert "at least max_model_len" in (why_infeasible(flags, "0.32.0") or "")
    assert why_infeasible({**flags, "enable_chunked_prefill": True}, "0.32.0") is None
