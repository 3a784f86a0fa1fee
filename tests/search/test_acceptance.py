"""Prediction from acceptance: exact where the model is the truth, bounded whatever it is given."""

from __future__ import annotations

import io
import itertools
import json
import math
import random
import re
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial
from rich.console import Console

from autotune.cli.console import rendered
from autotune.errors import NothingUsable, UserError
from autotune.results.prediction import Outlook, Wanted, outlook, outlook_page
from autotune.search.acceptance import (
    DRAFT_FIXED,
    MOST_N,
    PER_TOKEN,
    Prediction,
    SpeculationLaunch,
    without,
)
from autotune.stats import ESTIMATOR
from autotune.storage.store import Store
from autotune.study.files import load_study
from autotune.study.space import MNBT, IntParam, N, Pow2Param, Space
from tests.fuzzing import fuzz
from tests.paths import ROOT
from tests.studies import autotune, write_study
from tests.study_views import P95, study

SPACE = Space(
    {
        N: IntParam(type="int", low=0, high=15),
        MNBT: Pow2Param(type="pow2", low=32, high=2048),
    }
)


def products(hazards: list[float]) -> tuple[float, ...]:
    return tuple(itertools.accumulate(hazards, lambda a, b: a * b))


def truth(
    n: int, hazards: list[float], *, base: float = 0.02, fixed: float = 0.03, slope: float = 0.002
) -> SpeculationLaunch:
    """A launch without noise, of a draft that truncates, with a step that grows with n."""
    positions = products(hazards[:n])
    length = 1 + sum(positions)
    return SpeculationLaunch(n, length / (fixed + slope * n if n else base), positions, length)


def fitted(*launches: SpeculationLaunch) -> Prediction:
    found = Prediction.fit(launches)
    assert found is not None
    return found


hazard_lists = st.lists(st.floats(0.01, 0.99), min_size=15, max_size=15)
anything = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(0, 1),
    st.floats(1, 16),
    st.sampled_from([0.0, 1.0, -1.0, 5e-324, math.nan, math.inf]),
)


@st.composite
def plausible_launches(draw: st.DrawFn) -> list[SpeculationLaunch]:
    """Noisy launches with n of 0 to 15 and whatever acceptance, at least one of them of n ≥ 1."""
    ns = [*draw(st.lists(st.integers(0, 15), max_size=8)), draw(st.integers(1, 15))]
    out = []
    for n in ns:
        hazards = draw(st.lists(st.floats(0, 1), min_size=n, max_size=n))
        rate = draw(st.floats(0.1, 1e5))
        positions = products(hazards)
        known = draw(st.booleans())
        length = 1 + sum(positions) if n else None
        out.append(SpeculationLaunch(n, rate, positions if known else (), length))
    return out


@fuzz(30)
@given(hazard_lists, st.sets(st.integers(1, 14), min_size=1, max_size=4), st.booleans())
def test_what_is_true_by_the_model_is_predicted_exactly(
    hazards: list[float], others: set[int], reverse: bool
) -> None:
    launches = [truth(n, hazards) for n in sorted({0, 15, *others}, reverse=reverse)]
    found = fitted(*launches)
    spread = [15, *others]
    mean = sum(spread) / len(spread)
    for n in range(16):
        expected = truth(n, hazards)
        assert found.tokens_per_step(n) == pytest.approx(expected.acceptance_length, rel=1e-9)
        assert expected.acceptance_length is not None
        if sum((k - mean) ** 2 for k in spread) >= 8:  # otherwise a slope is assumed
            assert found.rate(n) == pytest.approx(expected.rate, rel=1e-9)


def test_one_launch_is_truncated_and_goes_on_beyond_as_its_last_positions_did() -> None:
    found = fitted(truth(4, [0.8, 0.6, 0.5, 0.5]))
    assert found.tokens_per_step(0) == 1
    assert found.tokens_per_step(2) == pytest.approx(1 + 0.8 + 0.48)
    assert found.tokens_per_step(5) == pytest.approx(1 + 0.8 + 0.48 + 0.24 + 0.12 + 0.06)
    assert found.hazards(6) == pytest.approx((0.8, 0.6, 0.5, 0.5, 0.5, 0.5))
    assert [n for n in range(7) if not found.extrapolated(n)] == [4]


def test_acceptance_is_as_measured_where_launched_and_corrected_between() -> None:
    hazards = [0.5, 0.4, 0.35, 0.3, 0.3, 0.3, 0.3]
    better = SpeculationLaunch(1, 40.0, (0.56,), 1.56)  # than the first of seven
    found = fitted(better, truth(7, hazards))
    truncated = fitted(truth(7, hazards))
    assert found.tokens_per_step(1) == pytest.approx(1.56)
    assert found.tokens_per_step(7) == pytest.approx(truncated.tokens_per_step(7))
    gains = [found.tokens_per_step(n) / truncated.tokens_per_step(n) for n in range(1, 8)]
    assert gains == sorted(gains, reverse=True)
    assert gains[2] > 1.001


def test_what_the_launches_have_in_common_reaches_below_the_smallest() -> None:
    """Two drafts of which the shorter was better say that an even shorter one is better still."""
    long = truth(8, [0.8] * 8)
    short = truth(3, [0.84] * 3)
    assert fitted(short, long).tokens_per_step(1) > 1 + 0.84
    assert fitted(short, truth(8, [0.84] * 8)).tokens_per_step(1) == pytest.approx(1.84)


def test_a_draft_that_collapses_beyond_its_block_is_believed() -> None:
    """DSpark with 7 tokens and a block of 5: every position collapses (vLLM pull 41834)."""
    good = SpeculationLaunch(5, 60.0, (0.579, 0.447, 0.316, 0.237, 0.158))
    bad = SpeculationLaunch(7, 20.0, (0.181, 0.067, 0.039, 0.014, 0.009, 0.0, 0.0))
    found = fitted(good, bad)
    lengths = [found.tokens_per_step(n) for n in range(8)]
    assert lengths[5] == pytest.approx(1 + sum(good.per_position))
    assert lengths[7] == pytest.approx(1 + sum(bad.per_position))
    assert lengths[7] <= lengths[6] <= lengths[5]
    assert lengths[:6] == sorted(lengths[:6])


def test_a_length_without_positions_is_enough() -> None:
    alone = fitted(SpeculationLaunch(3, 50.0, (), 1 + 0.5 + 0.25 + 0.125))
    assert alone.tokens_per_step(2) == pytest.approx(1.75)  # all positions alike
    assert alone.tokens_per_step(4) == pytest.approx(1.9375)
    other = fitted(SpeculationLaunch(3, 50.0, (), 2.0), truth(7, [0.7, 0.3] + [0.2] * 5))
    assert other.tokens_per_step(3) == pytest.approx(2.0)
    assert other.hazards(3)[0] > 2 * other.hazards(3)[1]  # the shape of the longer draft


def test_launches_of_one_n_are_averaged() -> None:
    hazards = [0.6] * 15
    exact = [truth(n, hazards) for n in (0, 3, 15)]
    n, slow, fast = 3, 1.1, 0.9  # in time
    pair = [SpeculationLaunch(n, exact[1].rate / f, exact[1].per_position) for f in (slow, fast)]
    found = fitted(exact[0], *pair, exact[2])
    assert found.rate(3) == pytest.approx(exact[1].rate)
    assert found.rate(9) == pytest.approx(truth(9, hazards).rate)


def test_one_launch_beside_the_baseline_corrects_what_is_usual() -> None:
    hazards = [0.5] * 15
    usual = {"base": 0.02, "fixed": 0.02 * (1 + DRAFT_FIXED), "slope": 0.02 * PER_TOKEN}
    for n in (1, 15):  # as usual
        found = fitted(truth(0, hazards, **usual), truth(n, hazards, **usual))
        assert found.rate(7) == pytest.approx(truth(7, hazards, **usual).rate)
    # of a long draft, the slope takes what is not; of a short one, the fixed part
    steep = fitted(truth(0, hazards), truth(15, hazards, slope=0.006))
    assert steep.step_time(15) == pytest.approx(0.03 + 0.09, rel=0.1)
    assert steep.step_time(1) < 0.04
    late = fitted(truth(0, hazards), truth(1, hazards, fixed=0.04))
    assert late.step_time(15) - late.step_time(1) == pytest.approx(14 * 0.002, rel=0.5)
    assert late.step_time(1) > 0.035


def test_steps_that_seem_shorter_than_without_drafts_are_not_made_negative() -> None:
    hazards = [0.5] * 15
    for n in (1, 3, 15):
        found = fitted(truth(0, hazards), truth(n, hazards, fixed=0.001, slope=0))
        assert found.step_time(1) > 0
        assert found.step_time(15) >= found.step_time(1)


def test_one_launch_without_a_baseline_has_the_usual_proportion() -> None:
    hazards = [0.5] * 15
    found = fitted(truth(15, hazards))
    assert found.step_time(15) == pytest.approx(0.03 + 0.002 * 15)
    assert found.time_per_token / found.fixed_time == pytest.approx(PER_TOKEN / (1 + DRAFT_FIXED))
    assert found.extrapolated(0)


def test_launches_that_are_near_each_other_make_no_slope() -> None:
    hazards = [0.5] * 15
    slower = truth(2, hazards, fixed=0.035)  # by noise: the slope would be 3 times as large
    found = fitted(truth(0, hazards), truth(1, hazards), slower)
    assert found.time_per_token == pytest.approx(0.002, rel=0.5)


@pytest.mark.parametrize("seed", range(20))
def test_noise_of_ten_percent_stays_about_ten_percent(seed: int) -> None:
    rng = random.Random(seed)
    hazards = [0.85] * 15
    launches = []
    for n in (0, 1, 4, 15):
        exact = truth(n, hazards)
        noisy = exact.rate * math.exp(rng.gauss(0, 0.1))
        launches.append(SpeculationLaunch(n, noisy, exact.per_position))
    found = fitted(*launches)
    for n in range(1, 16):
        assert found.rate(n) == pytest.approx(truth(n, hazards).rate, rel=0.3)


def test_one_launch_that_is_far_off_does_not_bend_the_line() -> None:
    hazards = [0.8] * 15
    launches = [truth(n, hazards) for n in (0, 1, 3, 7, 11, 15)]
    bumped = [
        SpeculationLaunch(x.n, x.rate * (0.6 if x.n == 7 else 1), x.per_position) for x in launches
    ]
    found = fitted(*bumped)
    for n in (1, 3, 11, 15):
        assert found.rate(n) == pytest.approx(truth(n, hazards).rate, rel=0.12)


@fuzz(80)
@given(plausible_launches())
def test_shares_are_shares_lengths_rise_or_fall_between_launches_and_times_are_positive(
    launches: list[SpeculationLaunch],
) -> None:
    found = fitted(*launches)
    for n in range(20):
        hazards = found.hazards(n)
        assert len(hazards) == n
        assert all(0 <= h <= 1 for h in hazards)
        assert 1 <= found.tokens_per_step(n) <= n + 1 + 1e-9
        assert found.tokens_per_step(n) == pytest.approx(1 + sum(products(list(hazards))))
        assert found.step_time(n) > 0
        assert 0 < found.rate(n) < math.inf
    for positions in found.positions:
        assert all(a >= b >= 0 for a, b in itertools.pairwise((1.0, *positions)))
    for a, b in itertools.pairwise([0, *found.launched, found.launched[-1] + 5]):
        lengths = [found.tokens_per_step(n) for n in range(a, b + 1)]
        steps = [y - x for x, y in itertools.pairwise(lengths)]
        assert all(s >= -1e-9 for s in steps) or all(s <= 1e-9 for s in steps)
    times = [found.step_time(n) for n in range(1, 20)]
    assert times == sorted(times)


@fuzz(80)
@given(plausible_launches())
def test_launched_lengths_are_given_back(launches: list[SpeculationLaunch]) -> None:
    found = fitted(*launches)
    for n in found.launched:
        measured = [x.acceptance_length for x in launches if x.n == n]
        mean = sum(m for m in measured if m is not None) / len(measured)
        assert found.tokens_per_step(n) == pytest.approx(mean, abs=1e-5)


@fuzz(80)
@given(
    st.lists(
        st.builds(
            SpeculationLaunch,
            st.integers(-1, 40),
            anything,
            st.lists(anything, max_size=6).map(tuple),
            st.none() | anything,
        ),
        max_size=6,
    )
)
def test_whatever_it_is_given_it_says_nothing_or_something_finite(
    launches: list[SpeculationLaunch],
) -> None:
    found = Prediction.fit(launches)
    if found is None:
        return
    for n in (0, 1, 2, 15, 60):
        assert 0 < found.rate(n) < math.inf
        assert 1 <= found.tokens_per_step(n) <= n + 1 + 1e-9
        assert all(0 <= h <= 1 for h in found.hazards(n))


@pytest.mark.parametrize(
    "unknown",
    [
        SpeculationLaunch(3, 50.0),
        SpeculationLaunch(3, 50.0, (0.5, math.nan, 0.1)),
        SpeculationLaunch(3, 50.0, (0.5, 1.2, 0.1)),
        SpeculationLaunch(3, 50.0, (0.5, 0.2)),
        SpeculationLaunch(3, 50.0, (), math.nan),
        SpeculationLaunch(3, 50.0, (), 4.5),
        SpeculationLaunch(3, 50.0, (), 0.9),
        SpeculationLaunch(3, math.nan, (0.5, 0.2, 0.1)),
        SpeculationLaunch(3, 0.0, (0.5, 0.2, 0.1)),
        SpeculationLaunch(MOST_N + 1, 50.0, (), 2.0),
        SpeculationLaunch(-1, 50.0, (), 1.0),
    ],
)
def test_what_cannot_be_is_unknown(unknown: SpeculationLaunch) -> None:
    assert Prediction.fit([SpeculationLaunch(0, 40.0), unknown]) is None
    known = [truth(n, [0.5] * 15) for n in (0, 7, 15)]
    beside = fitted(*known, unknown)
    assert beside.launched in {(7, 15), (3, 7, 15)}
    assert beside.tokens_per_step(15) == pytest.approx(fitted(*known).tokens_per_step(15))


def test_a_speed_without_an_acceptance_still_tells_the_time_of_a_step() -> None:
    hazards = [0.6] * 15
    silent = SpeculationLaunch(3, truth(3, hazards).rate)
    found = fitted(truth(0, hazards), silent, truth(15, hazards))
    assert found.launched == (15,)
    assert found.rate(8) == pytest.approx(truth(8, hazards).rate)


@pytest.mark.parametrize(("share", "best"), [(0.0, 0), (1.0, 15)])
def test_a_draft_that_is_never_or_always_right(share: float, best: int) -> None:
    hazards = [share] * 15
    found = fitted(truth(0, hazards), truth(3, hazards), truth(15, hazards))
    assert found.tokens_per_step(15) == pytest.approx(1 + 15 * share)
    assert found.tokens_per_step(40) == pytest.approx(1 + 40 * share)
    assert max(range(16), key=found.rate) == best


def test_nothing_to_go_by_is_none() -> None:
    assert Prediction.fit([]) is None
    assert Prediction.fit([SpeculationLaunch(0, 40.0)]) is None
    assert without([truth(0, []), truth(3, [0.5] * 3)], 3) is None


def test_a_negative_n_is_refused() -> None:
    found = fitted(truth(3, [0.5] * 3))
    for ask in (found.tokens_per_step, found.step_time, found.rate):
        with pytest.raises(ValueError, match="-1"):
            ask(-1)


# On texts and grids, by benchmarks/acceptance.py


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    folder = ROOT / "benchmarks"
    monkeypatch.syspath_prepend(folder)
    return runpy.run_path(str(folder / "acceptance.py"))


@pytest.mark.parametrize(("stay", "easy", "hard"), [(0.95, 0.9, 0.4), (0.9, 0.95, 0.6)])
def test_a_second_launch_learns_where_steps_begin(
    benchmark: dict[str, Any], stay: float, easy: float, hard: float
) -> None:
    """Even a draft of which a shorter one is a part is mispredicted by truncation."""
    setting = benchmark["simulated"](stay, easy, hard, 20_000)
    base, long = setting[0][0], setting[15][0]
    truncated = fitted(base, long)
    corrected = fitted(base, setting[3][0], long)
    errors = [
        [abs(p.tokens_per_step(n) / setting[n][0].acceptance_length - 1) for n in (1, 2, 5, 7, 11)]
        for p in (truncated, corrected)
    ]
    assert max(errors[0]) > 0.06
    assert max(errors[1]) < max(errors[0]) / 2


def test_the_benchmark_reads_a_measured_grid(benchmark: dict[str, Any]) -> None:
    grid = ROOT / "benchmarks" / "data" / "demo-cpu-grid.npz"
    text = "\n".join(benchmark["report"](grid))
    assert "tokens per step" in text
    assert "tok/s" in text
    assert "nan" not in text
    for n in (1, 3, 7, 15):
        assert re.search(rf"^ +{n}  .*%", text, re.MULTILINE)


def test_the_benchmark_finds_no_error_where_there_is_none(benchmark: dict[str, Any]) -> None:
    setting = {n: [truth(n, [0.7] * 15)] for n in (0, 1, 5, 10, 15)}
    lengths, rates, slower = benchmark["evaluate"](setting)
    given = ("2", "3", "others")
    assert all(abs(e) < 1e-9 for errors in lengths.values() for e in errors)
    assert all(abs(e) < 1e-9 for (what, _), es in rates.items() if what in given for e in es)
    assert set(rates) >= {(what, n) for what in given for n in (1, 5, 10)}
    assert all(loss == pytest.approx(0) for what in given[:2] for loss in slower[what])


# What people see


def predicted(**changes: object) -> Outlook:
    return outlook(study(**changes), SPACE)  # type: ignore[arg-type]


def shown(found: Outlook) -> str:
    out = io.StringIO()
    Console(file=out, width=80).print(rendered(outlook_page(found)))
    return out.getvalue()


def test_each_launched_n_is_predicted_from_the_others_only() -> None:
    rows = {row.n: row for row in predicted().rows}
    assert set(rows) == set(range(16))
    view = study()
    launches = [
        SpeculationLaunch(
            int(t.point[N]), t.values["throughput"], t.acceptance_per_position, t.acceptance_length
        )
        for t in view.trials
        if t.values
    ]
    others = without(launches, 3)
    assert others is not None
    assert rows[3].predicted == others.rate(3)
    assert rows[3].measured == 110.2
    assert rows[3].error == pytest.approx(others.rate(3) / 110.2 - 1)
    everything = Prediction.fit(launches)
    assert everything is not None
    assert rows[5].predicted == everything.rate(5)
    assert rows[5].measured is None
    assert rows[0].predicted is None  # no draft says how fast it is without one
    assert rows[15].trial is None  # it failed
    assert rows[15].extrapolated


def test_each_n_is_represented_by_its_fastest_trial() -> None:
    rows = (
        (0, 2048, 98.1, 2020.0, None, True),
        (3, 64, 90.0, 2300.0, 1.8, False),
        (3, 512, 110.2, 2361.0, 1.88, True),
        (15, 512, 60.0, 3361.0, 1.94, False),
    )
    view = study(rows)
    found = {row.n: row for row in outlook(view, SPACE).rows}
    assert (found[3].trial, found[3].measured) == (2, 110.2)
    # of those that can be compared
    trials = [replace(t, outdated=t.number == 2) for t in view.trials]
    found = {row.n: row for row in outlook(replace(view, trials=trials), SPACE).rows}
    assert (found[3].trial, found[3].measured) == (1, 90.0)


def test_tables_fit_80_columns_and_say_that_it_is_no_result() -> None:
    text = shown(predicted())
    lines = [line.rstrip() for line in text.splitlines()]
    assert max(map(len, lines)) <= 80
    assert "never a result" in text
    assert "* extrapolated" in text
    assert "in the median" in text
    for words in ("1.94, as is", "2.50", "3.00", "×", "logit scale"):
        assert words in text
    assert "p95" not in text  # of an open loop nothing follows


def test_a_closed_loop_has_latencies_of_other_drafts() -> None:
    found = outlook(study(), SPACE, closed=True)
    (latency,) = found.latencies
    # 100.1 · 2110, 106.6 · 2291, 110.2 · 2361, 92 · 2600: the median of these with drafts
    constant = (106.6 * 2291 + 92.0 * 2600) / 2
    assert latency.of(3, 200.0) == pytest.approx(constant / 200)
    assert latency.of(0, 100.0) == pytest.approx(98.1 * 2020 / 100)
    out = io.StringIO()
    Console(file=out, width=80).print(rendered(outlook_page(found)))
    assert max(len(line.rstrip()) for line in out.getvalue().splitlines()) <= 80
    assert "inversely proportional" in " ".join(out.getvalue().split())
    best = found.to_json()["draft_quality"][-1]
    assert best["predicted_latency"]["p95_latency"] * best["predicted_tok_s"] == pytest.approx(
        constant if best["n"] else 98.1 * 2020
    )


def test_acceptance_lengths_are_asked_for() -> None:
    found = outlook(study(), SPACE, Wanted((3.0, 2.2), at_n=3))
    assert [d.length for d in found.drafts] == pytest.approx([1.88, 2.2, 3.0])
    assert [d.at_n for d in found.drafts] == [3, 3, 3]
    with pytest.raises(UserError, match=r"demo-cpu: acceptance length 4\.5 at n = 3"):
        outlook(study(), SPACE, Wanted((4.5,), at_n=3))


def test_a_study_without_a_baseline_has_no_speed_up() -> None:
    rows = tuple(
        r for r in ((3, 512, 110.2, 2361.0, 1.88, True), (7, 512, 92.0, 2600.0, 1.94, False))
    )
    found = outlook(study(rows), SPACE)
    assert all(draft.speedup is None and draft.best.n >= 1 for draft in found.drafts)
    assert found.rows[0].predicted is None


def test_nothing_usable_is_said_in_one_line() -> None:
    silent = ((0, 2048, 98.1, 2020.0, None, True), (3, 512, 110.2, 2361.0, None, True))
    with pytest.raises(NothingUsable, match=r"demo-cpu.*num_speculative_tokens of 1 or more"):
        outlook(study(silent), SPACE)
    with pytest.raises(NothingUsable, match="tok/s"):
        predicted(objectives=(P95,))


def test_texts_of_a_study_are_not_read_as_markup() -> None:
    assert "[bold]x[/bold]" in shown(predicted(name="[bold]x[/bold]\x1b[31m"))
    assert "\x1b" not in shown(predicted(name="\x1b[31mred"))


def measured_study(folder: Path, *, drafts: bool = True) -> None:
    """A database with five measured points, without having launched anything."""
    loaded = load_study(str(write_study(folder)))
    space = loaded.spec.to_space()
    store = Store(folder / "autotune.db", create=True)
    try:
        store.begin_study(loaded, seed=0, wanted=5)
        found = optuna.create_study(
            storage=store.storage,
            study_name=loaded.spec.name,
            directions=["maximize", "minimize"],
        )
        for n in (0, 1, 3, 7, 15):
            exact = truth(n, [0.7] * 15)
            attrs: dict[str, object] = {"baseline": True} if n == 0 else {}
            attrs["quality"] = {"estimator": ESTIMATOR, "errors": {}}
            if n and drafts:
                attrs["acceptance_length"] = exact.acceptance_length
                attrs["acceptance_per_position"] = list(exact.per_position)
            found.add_trial(
                create_trial(
                    state=TrialState.COMPLETE,
                    params=space.encode({N: n, MNBT: 2048}),
                    distributions=space.distributions(),
                    values=[exact.rate, 1000.0 + n],
                    user_attrs=attrs,
                )
            )
    finally:
        store.close()


def test_the_command_predicts_a_finished_study(tmp_path: Path) -> None:
    measured_study(tmp_path)
    done = autotune("predict", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "never a result" in done.stdout
    said = json.loads(autotune("predict", "--json", cwd=tmp_path).stdout)
    rows = {row["n"]: row for row in said["predictions"]}
    assert set(rows) == set(range(16))
    assert rows[3]["measured_tok_s"] == pytest.approx(truth(3, [0.7] * 15).rate)
    assert rows[3]["error"] == pytest.approx(0, abs=1e-6)
    assert rows[5]["predicted_tok_s"] == pytest.approx(truth(5, [0.7] * 15).rate)
    lengths = [draft["acceptance_length"] for draft in said["draft_quality"]]
    measured = 1 + sum(products([0.7] * 15))
    assert lengths == pytest.approx([3.0, measured, 3.5, 4.0, 4.5])
    assert [draft["measured"] for draft in said["draft_quality"]] == [False, True, *[False] * 3]
    asked = autotune("predict", "--json", "--length", "4,3.5", "--at-n", "7", cwd=tmp_path)
    rows = json.loads(asked.stdout)["draft_quality"]
    assert [(row["at_n"], row["measured"]) for row in rows] == [(7, True), (7, False), (7, False)]
    for row in rows:
        assert row["predicted_tokens_per_step"] == pytest.approx(
            1 + sum(row["acceptance_per_position"])
        )


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--length", "16"], 2, "acceptance length 16 at n = 15 is not between 1 and 16"),
        (["--length", "+25%"], 2, "'+25%' is not a list such as 3.5,4,5"),
        (["--length", "1"], 2, "an acceptance length is a finite number above 1"),
        (["--length", "nan"], 2, "an acceptance length is a finite number above 1"),
    ],
)
def test_a_length_that_no_draft_has_is_refused(
    tmp_path: Path, words: list[str], code: int, said: str
) -> None:
    measured_study(tmp_path)
    done = autotune("predict", *words, cwd=tmp_path)
    assert done.returncode == code
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_the_command_says_in_one_line_that_there_is_nothing_to_predict(tmp_path: Path) -> None:
    measured_study(tmp_path, drafts=False)
    done = autotune("predict", cwd=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "nothing to predict from" in done.stderr
