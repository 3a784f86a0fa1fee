"""A break-even map as people see it, in 80 columns, as JSON and as a figure."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from autotune.output.figures.break_even import break_even_figure
from autotune.results.break_even import (
    BreakEvenView,
    Launched,
    break_even_json,
    break_even_lines,
    length_estimate,
    ranges_text,
)
from autotune.stats import Estimate
from autotune.stats.break_even import Range
from autotune.stats.crossover import Rate
from tests.stats.test_break_even import NS, pair, speed, truth

LOADS = (1, 4, 32)


def launch(n: int, length: float = 1.0, *, load: int | None = None, wrong: float = 1) -> Launched:
    rates = {x: Rate(wrong * speed(n, x, length), 0.004) for x in LOADS}
    return Launched(n, length, rates, dict.fromkeys(LOADS, length) if n else {}, load=load)


def view(**changes: Any) -> BreakEvenView:
    pairs = [launch(n, length) for n in NS for length in pair(n)]
    given: dict[str, Any] = {
        "study": "demo",
        "label": "rehearsal: weights are random, acceptance was given, step times are real",
        "vllm": "0.32.0",
        "machine": "a machine with a long name, 1 × NVIDIA H200, 192 cores, 2000 GiB",
        "point": {"max_num_batched_tokens": 2048},
        "loads": LOADS,
        "launches": (launch(0), *pairs, launch(0)),
        "checks": (),
        "variance": None,
        "decay": 1.0,
    }
    return BreakEvenView(**given | changes)


def test_the_map_finds_the_law_at_each_load() -> None:
    found = view()
    assert {load: x.launches for load, x in found.none.items()} == dict.fromkeys(LOADS, 2)
    for load, even in found.even.items():
        assert [x.length.value for x in even] == pytest.approx([truth(n, load) for n in NS])
    assert found.most_n == 7


def test_checks_lie_on_both_sides_of_the_line() -> None:
    below, above = view().check_plans()
    assert (below.load, above.load) == (4, 4) or below.load in LOADS
    assert (below.pays, above.pays) == (False, True)
    assert below.n == above.n == view().needed[below.load].n
    line = truth(below.n, below.load)
    assert 1 < below.length <= 0.951 * line
    assert 1.049 * line <= above.length < below.n + 1
    nowhere = tuple(launch(n, x, wrong=0.1) for n in NS for x in pair(n))
    assert view(launches=(launch(0), *nowhere)).check_plans() == []


def test_a_check_agrees_contradicts_or_cannot_tell() -> None:
    plans = view().check_plans()
    right = tuple(launch(p.n, p.length, load=p.load) for p in plans)
    at_line = [x for x in view(checks=right).checked() if x.at_line]
    assert [x.verdict for x in at_line] == ["as the map says"] * 2
    assert all(x.expected == pytest.approx(x.found.value) for x in at_line)
    wrong = tuple(launch(p.n, p.length, load=p.load, wrong=0.7 if p.pays else 1.4) for p in plans)
    at_line = [x for x in view(checks=wrong).checked() if x.at_line]
    assert [x.verdict for x in at_line] == ["the map is wrong here"] * 2
    close = (replace(right[0], rates={x: view_rate(x) for x in LOADS}),)
    assert [x.verdict for x in view(checks=close).checked() if x.at_line] == ["too close to tell"]


def view_rate(load: int) -> Rate:
    return Rate(speed(0, load, 1.0), 0.004)


@pytest.mark.parametrize(
    "shown",
    [
        view(),
        view(vllm=None, machine="", point={}, decay=0.9),
        view(checks=tuple(launch(p.n, p.length, load=p.load) for p in view().check_plans())),
        view(launches=(launch(0),)),
        view(launches=()),
        view(launches=(launch(0), *(launch(n, x, wrong=0.1) for n in NS for x in pair(n)))),
        view(
            launches=(
                launch(0),
                launch(3, 1.25),
                Launched(3, 2.95, {}, failure=("oom", "no " * 60)),
            )
        ),
        view(
            launches=(
                launch(0),
                *(launch(n, x) for n in (1, 2, 3, 5, 7, 11, 15) for x in pair(n)),
            )
        ),
    ],
)
def test_a_map_fits_a_terminal_and_is_labeled(shown: BreakEvenView) -> None:
    lines = break_even_lines(shown)
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert "acceptance was given, step times are real" in text
    found = break_even_json(shown)
    assert json.loads(json.dumps(found, allow_nan=False))["rehearsal"] == shown.label
    assert len(found["loads"]) == len(shown.needed)
    figure = break_even_figure(shown)
    assert "rehearsal" in figure.layout.title.text
    assert all(len(t.x) == len(t.y) for t in figure.data)


def test_the_text_says_what_to_reach_and_which_n() -> None:
    text = " ".join(" ".join(break_even_lines(view())).split())
    assert "tok/step at n = 7 [95 %]" in text
    assert f"4 {speed(0, 4, 1.0):.1f} {view().needed[4].quality.value:.2f} [" in text
    assert "the map is not checked" in text
    assert "all positions have the same conditional acceptance" in text
    assert "within the launches" in text
    assert "changes by a factor of 0.9" in " ".join(
        " ".join(break_even_lines(view(decay=0.9))).split()
    )
    failed = Launched(7, 4.1, {}, failure=("oom", "no memory"))
    shown = break_even_lines(view(launches=(*view().launches, failed)))
    assert "n = 7 at 4.10 tok/step failed: oom: no memory" in " ".join(shown)


def test_words_for_lengths_and_ranges() -> None:
    assert length_estimate(Estimate(1.5, 1.2, None)) == "1.50 [1.20, ?]"
    assert length_estimate(Estimate(0.97, 0.9, 1.1)) == "any [any, 1.10]"
    assert length_estimate(Estimate(2.5, 1.9, 3.0), 1) == "none [1.90, none]"
    assert length_estimate(Estimate(3.5, 2.9, 5.0), 1) == "none"
    assert length_estimate(Estimate(float("inf"), None, None)) == "none"
    assert ranges_text((Range(1, 1.5, 0), Range(1.5, 3, 3), Range(3, 8, 7))) == (
        "0 below 1.50, 3 below 3.00, then 7"
    )
    assert ranges_text((Range(1, 8, 0),)) == "always 0"
