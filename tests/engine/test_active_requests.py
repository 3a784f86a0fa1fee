"""How many requests vLLM lets run at once, on both sides of each boundary."""

from __future__ import annotations

from typing import Any

import pytest

from autotune.engine.active_requests import active_limit, why_throttled
from autotune.engine.rule import METHOD, Draft, Known
from autotune.study.space import MNBT, N

SEQS, ACTIVE = "max_num_seqs", "max_num_active_seqs"
DFLASH: dict[str, Any] = {METHOD: "dflash", N: 15, MNBT: 256, SEQS: 32}
DSPARK: dict[str, Any] = {**DFLASH, METHOD: "dspark"}


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
    assert active_limit(settings, version) == limit


def test_a_dspark_draft_may_start_from_its_anchor() -> None:
    for anchor, limit in ((True, 17), (False, 16), (None, 17)):
        known = Known(drafts={None: Draft(from_anchor=anchor)})
        assert active_limit(DSPARK, "0.33.0", known) == limit
        assert active_limit(DFLASH, "0.33.0", known) == 16  # DFlash never does


def test_the_line_says_what_to_do() -> None:
    assert why_throttled(DFLASH, "0.33.0", 32) == (
        "n = 15 with MNBT = 256: vLLM 0.33.0 lets 16 requests run at once (MNBT // 16), not 32; "
        "they need MNBT of at least 512"
    )
    assert why_throttled({**DFLASH, MNBT: 512}, "0.33.0", 32) is None
    assert why_throttled({**DFLASH, MNBT: 511}, "0.33.0", 32) is not None


@pytest.mark.parametrize(
    ("change", "load", "throttled"),
    [
        ({}, 16, False),
        ({}, 17, True),
        ({}, None, False),  # an open loop sends what it sends
        ({SEQS: 16}, 64, False),  # max_num_seqs is what binds
        ({SEQS: 17}, 64, True),
        ({ACTIVE: 16}, 64, False),  # asked for by the study
        ({ACTIVE: 17}, 64, True),
        ({"data_parallel_size": 2, SEQS: 64}, 32, False),
        ({"data_parallel_size": 2, SEQS: 64}, 33, True),
        ({SEQS: "many"}, 64, False),
    ],
)
def test_throttling_counts_only_below_what_the_study_asks(
    change: dict[str, Any], load: int | None, throttled: bool
) -> None:
    said = why_throttled({**DFLASH, **change}, "0.33.0", load)
    assert (said is not None) is throttled, said
    assert why_throttled({**DFLASH, **change}, "0.32.0", load) is None


def test_vllms_own_max_num_seqs_is_never_below_128() -> None:
    settings = {k: v for k, v in DFLASH.items() if k != SEQS}
    assert why_throttled({**settings, MNBT: 1600}, "0.33.0", 100) is None
    assert "not 128;" in (why_throttled({**settings, MNBT: 1600}, "0.33.0", 128) or "")
    assert "not 128;" in (why_throttled({**settings, MNBT: 1600}, "0.33.0", 256) or "")
