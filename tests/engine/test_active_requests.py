"""How many requests vLLM lets run at once, on both sides of each boundary."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from autotune.engine.active_requests import (
    Asked,
    asked_at_once,
    why_throttled,
)
from autotune.engine.rule import METHOD, NOTHING, Draft, Known
from autotune.engine.rules import THROTTLED, doubts_of, infeasible
from autotune.study.space import MNBT, N

SEQS, ACTIVE = "max_num_seqs", "max_num_active_seqs"
DFLASH: dict[str, Any] = {METHOD: "dflash", N: 15, MNBT: 256, SEQS: 32}
DSPARK: dict[str, Any] = {**DFLASH, METHOD: "dspark"}


def most_at_once(settings: dict[str, Any], version: str | None, known: Known) -> int | None:
    """The largest load that is not throttled; None: none is."""
    told = (
        (load, why_throttled({**settings, SEQS: 64}, version, replace(known, load=load)))
        for load in range(1, 65)
    )
    return next((load - 1 for load, why in told if why is not None), None)


@pytest.mark.parametrize(
    ("settings", "version", "limit"),
    [
        (DFLASH, "0.33.0", 16),
        (DFLASH, "0.33.2", 16),
        (DFLASH, "0.32.0", None),
        (DFLASH, None, None),
        ({**DFLASH, MNBT: 255}, "0.33.0", 15),
        ({**DFLASH, N: 0}, "0.33.0", None),
        ({**DFLASH, N: 16}, "0.33.0", 15),
        ({**DFLASH, METHOD: "eagle3"}, "0.33.0", None),
        ({**DFLASH, MNBT: None}, "0.33.0", None),
        # unknown, whether from its anchor: the larger of the two is certain
        (DSPARK, "0.33.0", 17),
        # the study's own, from 0.31 on, where vLLM has the key
        ({**DFLASH, ACTIVE: 8}, "0.33.0", 8),
        ({**DFLASH, ACTIVE: 24}, "0.33.0", 16),
        ({**DFLASH, ACTIVE: 8}, "0.31.0", 8),
        ({**DFLASH, ACTIVE: 8}, "0.30.0", None),
        # each replica has a scheduler of its own
        ({**DFLASH, "data_parallel_size": 2}, "0.33.0", 32),
    ],
)
def test_the_most_requests_that_run(
    settings: dict[str, Any], version: str | None, limit: int | None
) -> None:
    assert most_at_once(settings, version, NOTHING) == limit


def test_a_dspark_draft_may_start_from_its_anchor() -> None:
    for anchor, limit in ((True, 17), (False, 16), (None, 17)):
        known = Known(drafts={None: Draft(from_anchor=anchor)})
        assert most_at_once(DSPARK, "0.33.0", known) == limit
        assert most_at_once(DFLASH, "0.33.0", known) == 16  # DFlash never does


def test_the_line_says_what_to_do() -> None:
    assert why_throttled(DFLASH, "0.33.0", Known(load=32)) == (
        "n = 15 with MNBT = 256: vLLM 0.33.0 lets 16 requests run at once (MNBT // 16), not 32; "
        "they need MNBT of at least 512"
    )
    assert why_throttled({**DFLASH, MNBT: 512}, "0.33.0", Known(load=32)) is None
    assert why_throttled({**DFLASH, MNBT: 511}, "0.33.0", Known(load=32)) is not None
    assert why_throttled({**DFLASH, ACTIVE: 8}, "0.32.0", Known(load=32)) == (
        "max_num_active_seqs = 8: vLLM 0.32.0 lets 8 requests run at once, not 32"
    )


@pytest.mark.parametrize(
    ("change", "load", "throttled"),
    [
        ({}, 16, False),
        ({}, 17, True),
        ({}, None, False),  # an open loop sends what it sends
        ({SEQS: 16}, 64, False),  # max_num_seqs is what binds
        ({SEQS: 17}, 64, True),
        ({ACTIVE: 16}, 16, False),
        ({ACTIVE: 16, MNBT: 512}, 17, True),  # the study's own bound is one, too
        ({"data_parallel_size": 2, SEQS: 64}, 32, False),
        ({"data_parallel_size": 2, SEQS: 64}, 33, True),
        ({SEQS: "many"}, 64, False),
    ],
)
def test_throttling_counts_only_below_what_the_study_asks(
    change: dict[str, Any], load: int | None, throttled: bool
) -> None:
    known = Known(load=load)
    said = why_throttled({**DFLASH, **change}, "0.33.0", known)
    assert (said is not None) is throttled, said
    by_vllm = {k: v for k, v in change.items() if k != ACTIVE}
    assert why_throttled({**DFLASH, **by_vllm}, "0.32.0", known) is None


def test_vllms_own_max_num_seqs_is_never_below_128() -> None:
    settings = {k: v for k, v in DFLASH.items() if k != SEQS}
    settings[MNBT] = 1600
    assert why_throttled(settings, "0.33.0", Known(load=100)) is None
    for load in (128, 256):
        assert "not 128;" in (why_throttled(settings, "0.33.0", Known(load=load)) or "")


def test_a_study_that_does_not_allow_it_is_refused_before_a_launch() -> None:
    found = infeasible(DFLASH, "0.33.0", Known(load=32))
    assert found is not None
    assert found.rule is THROTTLED
    assert found.reason.endswith("; search.allow_throttled: true launches it all the same")
    for version, known in (
        ("0.33.0", Known(load=16)),
        ("0.33.0", NOTHING),
        ("0.33.0", Known(load=32, allow_throttled=True)),
        ("0.32.0", Known(load=32)),
        ("0.34.0", Known(load=32)),  # not read: 0.32 does not throttle
        (None, Known(load=32)),
    ):
        assert infeasible(DFLASH, version, known) is None, (version, known)
    allowed = Known(load=32, allow_throttled=True)
    told = [x.text for x in doubts_of(DFLASH, "0.33.0", allowed)]
    assert told == [why_throttled(DFLASH, "0.33.0", allowed)]


@pytest.mark.parametrize(
    ("change", "load", "asked"),
    [
        ({}, 32, Asked(32, 32)),
        ({}, 8, Asked(8, 32)),
        ({}, 100, Asked(32, 32)),
        ({"data_parallel_size": 2}, 100, Asked(64, 32)),
        ({}, None, None),
        ({SEQS: "many"}, 32, None),
    ],
)
def test_how_many_are_asked_for(
    change: dict[str, Any], load: int | None, asked: Asked | None
) -> None:
    assert asked_at_once({**DFLASH, **change}, Known(load=load)) == asked
