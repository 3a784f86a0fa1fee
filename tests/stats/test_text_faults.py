"""Faults in texts: what one is, and how many more than those of n = 0 are no chance."""

from __future__ import annotations

import numpy as np
import pytest

from autotune.stats.text_faults import (
    TextFault,
    compare_faults,
    faults_of,
    is_loop,
    poisson_tail,
)

WORDS = list(range(40))


@pytest.mark.parametrize(
    ("text", "tokens", "stop", "found"),
    [
        ("A whole answer.", WORDS, "stop", {TextFault.ENDED}),
        ("A long ans", WORDS, "length", {TextFault.CUT}),
        (" \n", [5, 2], "stop", {TextFault.EMPTY, TextFault.ENDED}),
        ("x", [*WORDS, *[7, 8] * 10, 2], "stop", {TextFault.LOOP, TextFault.ENDED}),
        ("brok\ufffden", WORDS, "stop", {TextFault.BROKEN, TextFault.ENDED}),
        ("cut within a character \ufffd", WORDS, "length", {TextFault.CUT}),
        ("but not \ufffd", WORDS, "stop", {TextFault.BROKEN, TextFault.ENDED}),
        ("half a pair \ud83d", WORDS, "stop", {TextFault.BROKEN, TextFault.ENDED}),
        ("Yes.<|im_end|>", WORDS, "stop", {TextFault.SPECIAL, TextFault.ENDED}),
        ("a <b> tag and a [link]", WORDS, "stop", {TextFault.ENDED}),
        ("Call it", WORDS, "abort", {TextFault.STOP}),
    ],
)
def test_what_is_a_fault(text: str, tokens: list[int], stop: str, found: set[TextFault]) -> None:
    assert faults_of(text, tokens, stop) == found


@pytest.mark.parametrize(
    ("tokens", "loop"),
    [
        ([], False),
        ([7] * 15, False),  # fewer than 16 tokens
        ([7] * 16, True),
        ([*WORDS, *[1, 2, 3] * 6], True),
        ([*[1, 2, 3] * 6, *WORDS], False),  # it went on
        ([*range(30)] * 4, True),
        ([*range(30)] * 3, False),
        (WORDS * 4, False),  # a period of more than 32 tokens
    ],
)
def test_what_is_a_loop(tokens: list[int], loop: bool) -> None:
    assert is_loop(tokens) is loop


def test_a_model_that_loops_by_itself_is_no_fault() -> None:
    loops = {i: frozenset({TextFault.LOOP} if i % 2 else ()) for i in range(40)}
    found = {x.fault: x for x in compare_faults(loops, [loops, loops])}
    assert found[TextFault.LOOP].p > 0.4
    assert (found[TextFault.LOOP].chosen, found[TextFault.LOOP].plain) == (20, 40)
    assert found[TextFault.EMPTY].p == 1.0
    nothing: dict[int, frozenset[TextFault]] = dict.fromkeys(loops, frozenset())
    found = {x.fault: x for x in compare_faults(loops, [nothing, nothing])}
    assert found[TextFault.LOOP].p == pytest.approx(3.0**-20)
    assert found[TextFault.LOOP].found


def test_the_p_value_is_exact() -> None:
    assert poisson_tail([0.5] * 4, 3) == pytest.approx(5 / 16)
    assert poisson_tail([], 0) == 1.0
    assert poisson_tail([1.0, 0.0], 1) == 1.0
    rng = np.random.default_rng(0)
    chances = rng.random(12)
    draws = (rng.random((40_000, 12)) < chances).sum(axis=1)
    assert poisson_tail(chances.tolist(), 8) == pytest.approx(np.mean(draws >= 8), abs=0.02)


def test_false_alarms_are_rare() -> None:
    """Each answer loops by chance, some prompts more often: 1000 verifications without a fault."""
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(1000):
        rates = rng.beta(0.3, 0.9, 30)
        chosen, *plain = (
            {
                i: frozenset({TextFault.LOOP} if rng.random() < p else ())
                for i, p in enumerate(rates)
            }
            for _ in range(3)
        )
        alarms += any(x.found for x in compare_faults(chosen, plain))
    assert alarms <= 15  # a level of 1 % over seven kinds, of which one can happen
