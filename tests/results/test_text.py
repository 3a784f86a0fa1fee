"""Words for values: the same number has the same text everywhere."""

from __future__ import annotations

import pytest

import objectives
from autotune.results import text
from autotune.stats import Estimate


@pytest.mark.parametrize(
    ("value", "shown"),
    [(2361.4, "2361"), (110.26, "110.3"), (98.07, "98.1"), (1.884, "1.88"), (0.1234, "0.123")],
)
def test_numbers_have_digits_that_mean_something(value: float, shown: str) -> None:
    assert text.number(value) == shown


def test_a_change_has_a_minus_sign() -> None:
    assert text.percent_change(1.12) == "+12%"
    assert text.percent_change(0.95) == "−5%"
    assert text.percent_change(0.9486, digits=1, unit="") == "−5.1"


def test_plurals() -> None:
    assert text.count(1, "launch") == "1 launch"
    assert text.count(2, "launch") == "2 launches"
    assert text.count(0, "point") == "0 points"


def test_neighbors_are_joined() -> None:
    assert text.ranges([0, 1, 2, 3, 7]) == "0 to 3, 7"
    assert text.ranges([0, 1, 3]) == "0, 1, 3"  # two are no range
    assert text.ranges([]) == ""
    assert text.runs([3, 6, 9, 10]) == [(3, 3), (6, 6), (9, 10)]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-1, "0 s"),
        (119, "119 s"),
        (121, "2 min"),
        (7199, "2 h 00 min"),
        (9000, "2 h 30 min"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert text.duration(seconds) == words


def test_a_bound_that_is_not_known_is_a_question_mark() -> None:
    e = Estimate(2.4, 2.21, None)
    assert text.times(e) == "2.40× [2.21, ?]"
    assert text.times(Estimate(2.4, None, None)) == "2.40×"
    assert text.estimate_text(Estimate(110.0, None, 114.2)) == "110.0 [?, 114.2]"
    assert text.value_and_bounds(110.0, (105.0, None), "\n") == "110.0\n[105.0, ?]"
    assert text.value_and_bounds(None, (105.0, None)) == ""


def test_a_ratio_of_latencies_is_a_change_in_percent() -> None:
    e = Estimate(0.8, 0.75, 0.851)
    assert text.change(e, objectives.get("p95_latency")) == "−20% [−25%, −15%]"
    assert text.change(e, objectives.get("throughput")) == "0.80× [0.75, 0.85]"


def test_no_line_is_broken_in_an_equation_or_an_interval() -> None:
    lines = text.wrapped("points with n = 3 and 4", 14)
    assert lines == ["points with", "n = 3 and 4"]
    held = text.wrapped("tok/s 110 [105, 114]", 16, hanging="  ", held=text.HELD_INTERVALS)
    assert held == ["tok/s 110", "  [105, 114]"]
    assert text.wrapped("--speculative-config", 12, long_words=False) == ["--speculative-config"]
    assert text.wrapped("in one-step runs", 9) == ["in", "one-step", "runs"]
    assert text.wrapped("in one-step runs", 9, hyphens=True) == ["in one-", "step runs"]


def test_text_of_others_loses_colors_and_control_characters() -> None:
    assert text.plain("a\x1b[31mb\x1b[0m\nc\x07") == "ab c "
    assert text.plain("half \ud83d pair") == "half   pair"  # a terminal could not write it
    assert text.wrapped("a\tb\x1b[1m") == ["a b"]


def test_markdown_shows_text_of_others_as_it_is() -> None:
    assert text.markdown("a*b|<i>") == r"a\*b\|\<i\>"
    assert text.fenced("x ```` y").splitlines() == ["`````text", "x ```` y", "`````"]


def test_a_line_is_cut_to_its_width() -> None:
    assert text.shortened("x" * 80) == "x" * 80
    assert text.shortened("x" * 81) == "x" * 79 + "…"
