"""Goodput, cost, energy, objectives of users, what their intervals hold, and their table."""

from __future__ import annotations

import json
import re
import runpy
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest

import objectives
from autotune.bench.objectives import study_objectives
from autotune.errors import UserError
from autotune.serving import nvml
from autotune.serving.nvml import EnergyMeter, why_no_energy
from autotune.stats import Bounded, Domination, Interval, Measurement
from autotune.study.files import load_study
from autotune.study.objective_spec import ObjectiveSpec
from objectives import Objective, WithEnergy
from objectives.__main__ import table
from tests.paths import ROOT
from tests.studies import (
    autotune,
    processes_of,
    query,
    trials,
    write_study,
    write_study_with_a_bad_point,
)

DOC = ROOT / "docs" / "objectives.md"


def measured(seconds: Iterator[float] | Any, places: int = 1, tokens: int = 11) -> Measurement:
    """Requests in a closed loop; the first token after a tenth of the time."""
    return bench()["closed_loop"](np.asarray(seconds, dtype=np.float64), places, tokens)  # type: ignore[no-any-return]


@cache
def bench() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "benchmarks" / "coverage.py"))


# -- goodput ---------------------------------------------------------------------------------


def goodput(**slo: float) -> Objective:
    return objectives.get("goodput").given(slo)


def test_a_good_request_meets_every_limit() -> None:
    m = measured([1.0, 2.0, 3.0, 4.0])  # TTFT an eighth, TPOT 0.0875 of it; ten seconds in all
    assert goodput(e2el_ms=2000).value(m) == pytest.approx(0.2)  # at most: the second is good
    assert goodput(ttft_ms=130).value(m) == pytest.approx(0.1)
    assert goodput(tpot_ms=270).value(m) == pytest.approx(0.3)
    assert goodput(tpot_ms=270, e2el_ms=2500, ttft_ms=1e9).value(m) == pytest.approx(0.2)
    assert goodput(e2el_ms=1).value(m) == 0


def test_one_token_has_no_tpot_and_is_good_in_it() -> None:
    m = measured([1.0, 2.0], tokens=1)
    assert goodput(tpot_ms=1).value(m) == pytest.approx(2 / 3)


def test_goodput_is_shown_in_words() -> None:
    assert goodput(ttft_ms=200, tpot_ms=20.5).title == "Goodput (TTFT ≤ 200 ms, TPOT ≤ 20.5 ms)"


def test_goodputs_bounds_where_all_are_good_or_none() -> None:
    m = measured(np.full(50, 1.0), places=2)
    rate = 2.0
    all_good, none_good = goodput(e2el_ms=2000).bounds(m), goodput(e2el_ms=1).bounds(m)
    assert all_good.low == pytest.approx(rate * 0.025 ** (1 / 50))  # Clopper and Pearson
    assert all_good.high == pytest.approx(rate)
    assert none_good.low == 0
    assert none_good.high == pytest.approx(rate * (1 - 0.025 ** (1 / 50)))
    few = goodput(e2el_ms=2000).bounds(measured(np.full(15, 1.0)))
    assert (few.low, few.high) == (None, None)


def held(
    objective: Objective, shape: str, make: Callable[[Any, Any], Measurement] | None = None
) -> float:
    """How often its interval holds the mean of many measurements, or their pooled percentile."""
    rng = np.random.default_rng(4)
    draw = bench()["shapes"]()[shape].draw
    runs = [measured(draw(rng, 200), 4) for _ in range(400)]
    runs = [make(rng, m) for m in runs] if make else runs
    if objective.name == "p50_itl":
        truth = 1000 * float(np.median(np.concatenate([m.itl for m in runs])))
    else:
        truth = float(np.mean([objective.value(m) for m in runs]))
    inside = 0
    for m in runs:
        i = objective.bounds(m)
        assert i.low is not None
        assert i.high is not None
        inside += i.low <= truth <= i.high
    return inside / len(runs)


@pytest.mark.parametrize("shape", ["log-normal", "drifting"])
@pytest.mark.parametrize("limit_ms", [1000, 1500, 2000])
def test_goodputs_interval_holds_as_often_as_it_says(shape: str, limit_ms: float) -> None:
    """Of 400 runs at 95 %, 3.3 standard deviations are 3.6 %."""
    assert 0.91 <= held(goodput(e2el_ms=limit_ms), shape) <= 0.99


@pytest.mark.parametrize("shape", ["log-normal", "drifting"])
@pytest.mark.parametrize("name", ["mean_tpot", "output_throughput"])
def test_intervals_of_batches_hold_as_often_as_they_say(shape: str, name: str) -> None:
    assert objectives.get(name).interval is None
    assert 0.91 <= held(objectives.get(name), shape) <= 0.99


def test_gaps_of_one_request_are_alike_and_count_as_fewer() -> None:
    def uneven(rng: np.random.Generator, m: Measurement) -> Measurement:
        gaps = rng.gamma(20, 1 / 20, (len(m), 15)) * (m.end - m.start)[:, None] / 15
        return replace(m, chunks=tuple(0.05 + np.cumsum(gaps, axis=1)))

    assert 0.91 <= held(objectives.get("p50_itl"), "log-normal", uneven) <= 0.99


def test_itl_of_few_requests_has_no_bounds() -> None:
    i = objectives.get("p50_itl").bounds(measured(np.linspace(1, 2, 15)))
    assert (i.low, i.high) == (None, None)


# -- cost --------------------------------------------------------------------------------------


def test_cost_is_throughput_turned_over() -> None:
    m = measured(np.random.default_rng(0).uniform(1, 2, 100), places=2, tokens=100)
    cost, rate = objectives.get("cost").given(3.6), objectives.get("throughput")
    assert cost.value(m) == pytest.approx(1000 / rate.value(m))  # 3.6 USD/h are 0.001 USD/s
    assert cost.title == "Cost (3.6 USD/h)"
    ours, theirs = cost.bounds(m), rate.bounds(m)
    assert theirs.low is not None
    assert theirs.high is not None
    assert (ours.low, ours.high) == (
        pytest.approx(1000 / theirs.high),
        pytest.approx(1000 / theirs.low),
    )
    few = cost.bounds(measured([1.0, 2.0]))
    assert (few.low, few.high) == (None, None)


# -- energy ------------------------------------------------------------------------------------


class FakeNvml:
    """An NVML with GPUs that take 50 W each, over a clock of the test's.

    Args:
        gpus: How many.
        counter: Whether they count their energy.
        power: Whether they tell their power.
        used_mib: Their used memory.
    """

    class NVMLError(Exception):
        pass

    def __init__(
        self,
        gpus: int = 1,
        *,
        counter: bool = True,
        power: bool = True,
        used_mib: Callable[[], int] = lambda: 100,
    ) -> None:
        self.gpus, self.counter, self.power, self.used_mib = gpus, counter, power, used_mib
        self.now = time.monotonic
        self.counted_at = 0.0
        self.watts = 50.0
        self.asked_often = threading.Event()  # for its power: six times, on two GPUs
        self._asked = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("NVML_"):
            return 0

        def refuse(*_: object) -> None:
            raise self.NVMLError

        return refuse

    def nvmlInit(self) -> None: ...
    def nvmlShutdown(self) -> None: ...

    def nvmlSystemGetDriverVersion(self) -> str:
        return "999.1"

    def nvmlDeviceGetCount(self) -> int:
        return self.gpus

    def nvmlDeviceGetHandleByIndex(self, i: int) -> int:
        return i

    def nvmlDeviceGetName(self, gpu: int) -> str:
        return f"Fake {gpu}"

    def nvmlDeviceGetMemoryInfo(self, gpu: int) -> Any:
        return SimpleNamespace(used=self.used_mib() << 20, total=8 << 30)

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: int) -> int:
        if not self.counter:
            raise self.NVMLError
        self.counted_at = self.now()
        return round(self.counted_at * 1000 * self.watts)

    def nvmlDeviceGetPowerUsage(self, gpu: int) -> int:
        if not self.power:
            raise self.NVMLError
        self._asked += 1
        if self._asked >= 6:
            self.asked_often.set()
        return round(self.watts * 1000)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    made = FakeNvml(gpus=2)
    monkeypatch.setitem(sys.modules, "pynvml", made)
    return made


@pytest.fixture
def counted(fake: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """One GPU, whose counter is read at the very time that its energy is said to be of."""
    fake.gpus = 1
    monkeypatch.setattr(nvml, "time", SimpleNamespace(monotonic=lambda: fake.counted_at))
    return fake


def test_energy_is_what_the_counters_grew_by(fake: FakeNvml) -> None:
    times = iter([100.0, 100.0, 107.0, 103.0])
    fake.now = lambda: next(times)
    with EnergyMeter(sample=True) as meter:
        energy = meter.read()
    assert energy.joules == {0: 350.0, 1: 150.0}
    assert energy.total == 500
    one = energy.of({1})
    assert one is not None
    assert one.total == 150
    assert energy.of({1, 2}) is None  # the third tells nothing
    assert energy.of(set()) is None


def test_a_counter_that_went_back_tells_nothing(fake: FakeNvml) -> None:
    times = iter([100.0, 100.0, 1.0, 103.0])
    fake.now = lambda: next(times)
    with EnergyMeter(sample=False) as meter:
        assert meter.read().joules == {1: 150.0}


def test_without_a_counter_power_is_integrated(fake: FakeNvml) -> None:
    fake.counter = False
    before = threading.active_count()
    enters = time.monotonic()
    with EnergyMeter(sample=True) as meter:
        entered = time.monotonic()
        assert threading.active_count() == before + 1
        assert fake.asked_often.wait(60)
        reads = time.monotonic()
        energy = meter.read()
        read = time.monotonic()
    assert threading.active_count() == before
    # constant power: exactly power × time, however late the readings came
    assert energy.joules.keys() == {0, 1}
    for joules in energy.joules.values():
        assert reads - entered <= joules / 50 <= read - enters
    with EnergyMeter(sample=False) as meter:
        assert meter.read().joules == {}


def test_power_that_stops_being_told_is_no_energy(fake: FakeNvml) -> None:
    fake.counter = False
    with EnergyMeter(sample=True) as meter:
        fake.power = False
        assert meter.read().joules == {}
        fake.power = True
        assert meter.read().joules == {}  # a part of it is missing


def test_why_there_is_no_energy(fake: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_no_energy() is None
    fake.counter = False
    assert why_no_energy() is None
    fake.power = False
    assert "energy or its power" in str(why_no_energy())
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as if it were not installed
    assert "nvidia-ml-py" in str(why_no_energy())


def test_tokens_per_joule() -> None:
    m = measured(np.random.default_rng(0).uniform(1, 2, 100), places=2, tokens=100)
    objective = objectives.get("tokens_per_joule")
    powered = WithEnergy.added(m, 500.0)
    assert objective.value(powered) == 20  # 100 × 100 tokens
    rate, ours = objectives.get("throughput").bounds(m), objective.bounds(powered)
    assert rate.low is not None
    assert ours.low is not None
    assert ours.low / 20 == pytest.approx(rate.low / m.throughput)
    with pytest.raises(ValueError, match="not known"):
        objective.value(m)
    with pytest.raises(ValueError, match="did not move"):
        objective.value(WithEnergy.added(m, 0.0))


def test_without_nvml_the_study_is_refused_before_anything_is_launched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    study = write_study(tmp_path, objectives=["throughput", "tokens_per_joule"])
    run = autotune("run", str(study), "--trials", "1", cwd=tmp_path)
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert "objectives.1.name: tokens_per_joule cannot be measured here" in run.stderr
    assert not (tmp_path / "autotune.db").exists()


@pytest.mark.double
def test_a_run_for_tokens_per_joule(counted: FakeNvml, tmp_path: Path) -> None:
    # the first GPU is the server's: its memory grows with it
    counted.used_mib = lambda: 4000 if processes_of(tmp_path) else 100
    study = write_study(tmp_path, objectives=["throughput", "tokens_per_joule"])
    run = autotune("run", str(study), "--trials", "2", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    kept = "select json_extract(quality, '$.energy') from autotune_launches"
    spent = [json.loads(str(row[0])) for row in query(tmp_path, kept)]
    assert [e["joules"]["0"] / e["seconds"] for e in spent] == pytest.approx([50, 50], rel=0.05)
    found = trials(tmp_path)[0]["objectives"]["tokens_per_joule"]  # type: ignore[index]
    assert found["unit"] == "tok/J"
    assert found["value"] > 0


@pytest.mark.double
def test_a_trial_that_gives_less_for_a_joule_ends_early(counted: FakeNvml, tmp_path: Path) -> None:
    counted.used_mib = lambda: 4000 if processes_of(tmp_path) else 100
    objectives = ["throughput", "tokens_per_joule"]
    study = write_study_with_a_bad_point(tmp_path, objectives=objectives)
    looks = []

    def by(self: Domination, trial: list[Bounded], rivals: list[list[Bounded]]) -> int | None:
        looks.append([b.value for b in trial])
        return asked(self, trial, rivals)

    asked = Domination.by
    with mock.patch.object(Domination, "by", by):
        run = autotune("run", str(study), "--trials", "2", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    baseline, drafted = trials(tmp_path)
    assert (baseline["stop"], baseline["requests"]) == ("all", 400)
    assert (drafted["stop"], drafted["truncated"]) == ("dominated", True)
    # what requests under way have taken is not laid on those that are done
    assert [rate / per_joule for rate, per_joule in looks] == pytest.approx(
        [50] * len(looks), rel=0.01
    )


# -- what a study says -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"name": "goodput"}, "objectives.0.slo: is missing; goodput needs it"),
        ({"name": "cost"}, "objectives.0.usd_per_hour: is missing"),
        ({"name": "goodput", "slo": {}}, "objectives.0.slo: needs a limit: ttft_ms, tpot_ms, e2el"),
        (
            {"name": "goodput", "slo": {"ttft": 2}},
            "slo.ttft: unknown key; did you mean ttft_ms?",
        ),
        ({"name": "goodput", "slo": {"ttft_ms": 0}}, "objectives.0.slo.ttft_ms: "),
        ({"name": "goodput", "slo": {"ttft_ms": "fast"}}, 'not "fast"'),
        ({"name": "goodput", "slo": "ttft<200ms"}, "objectives.0.slo: "),
        ({"name": "cost", "usd_per_hour": -1}, "objectives.0.usd_per_hour: "),
        ({"name": "throughput", "usd_per_hour": 1}, "throughput has no such setting; leave it out"),
        (
            {"name": "cost", "usd_per_hour": 1, "slo": {"ttft_ms": 1}},
            "objectives.0.slo: cost has no such setting",
        ),
        ("p99_latencyy", "objectives.0.name: p99_latencyy is unknown; known are cost, goodput,"),
        ({"file": "mine.py"}, "mine.py: cannot be read: No such file or directory"),
        ({"file": "mine.py", "name": "yours"}, "name must be mine, as the file; or leave it out"),
        ({"file": "cost.py"}, "cost is a built-in objective; give the file another name"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, given: object, words: str) -> None:
    study = write_study(tmp_path, objectives=[given])
    with pytest.raises(UserError) as e:
        study_objectives(load_study(str(study)))
    assert words in str(e.value)
    assert "\n" not in str(e.value)
    assert str(study) in str(e.value)


def test_goodput_and_cost_have_their_settings(tmp_path: Path) -> None:
    given = [
        {"name": "goodput", "slo": {"e2el_ms": 3000}, "direction": "minimize"},
        {"name": "cost", "usd_per_hour": 2.5},
    ]
    found = study_objectives(load_study(str(write_study(tmp_path, objectives=given))))
    assert [o.title for o in found] == ["Goodput (E2EL ≤ 3000 ms)", "Cost (2.5 USD/h)"]
    assert [o.direction for o in found] == ["minimize", "minimize"]
    assert found[0].value(measured([1.0, 4.0])) == pytest.approx(0.2)


def test_new_keys_are_no_part_of_studies_without_them() -> None:
    plain = ObjectiveSpec(name="throughput")
    assert plain.model_dump(mode="json") == {"name": "throughput", "direction": None}


# -- objectives of users -----------------------------------------------------------------------

MINE = """\
from objectives import Objective

def speed(m):
    return float((m.output_tokens / m.e2el).mean())

OBJECTIVE = Objective(
    name="mine",
    title="Mean speed",
    unit="tok/s",
    direction="maximize",
    formula="mean of output tokens / E2EL",
    source="ours",
    compute=speed,
)
"""


def own_study(folder: Path, text: str, **changes: object) -> Path:
    (folder / "mine.py").write_text(text)
    return write_study(folder, objectives=[{"file": "mine.py"}, "p95_latency"], **changes)


def test_an_objective_in_a_file(tmp_path: Path) -> None:
    mine, _ = study_objectives(load_study(str(own_study(tmp_path, MINE))))
    m = measured(np.random.default_rng(0).uniform(1, 2, 100))
    assert mine.value(m) == pytest.approx((11 / m.e2el).mean())
    found = mine.bounds(m)  # of batches
    assert found.low is not None
    assert found.high is not None
    assert found.low < mine.value(m) < found.high
    few = mine.bounds(measured([1.0] * 15))
    assert (few.low, few.high) == (None, None)


def test_a_bound_of_ones_own_that_is_not_finite_bounds_nothing(tmp_path: Path) -> None:
    """Infinity and NaN are no JSON, and a standard error of them would be infinite, too."""
    bounds = "interval=lambda m, c: Interval(%s, %s, c)"
    text = "from autotune.stats import Interval\n" + MINE
    m = measured([1.0] * 20)
    for low, high, expected in (
        ("0.0", "float('inf')", (0.0, None)),
        ("float('nan')", "m.e2el.max()", (None, 1.0)),
    ):
        own = text.replace("compute=speed", f"compute=speed, {bounds % (low, high)}", 1)
        mine, _ = study_objectives(load_study(str(own_study(tmp_path, own))))
        found = mine.bounds(m)
        assert (found.low, found.high) == expected
    own = text.replace("compute=speed", f"compute=speed, {bounds % ('0', repr('x'))}", 1)
    with pytest.raises(UserError, match="the bound 'x', which is no number"):
        study_objectives(load_study(str(own_study(tmp_path, own))))


def test_the_example_of_the_docs_works(tmp_path: Path) -> None:
    text = DOC.read_text()
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code) == 1
    file = tmp_path / "slowest_users.py"
    file.write_text(code[0])
    assert f"file: {file.name}" in text
    (found,) = study_objectives(
        load_study(str(write_study(tmp_path, objectives=[{"file": file.name}])))
    )
    m = measured(np.random.default_rng(0).uniform(1, 2, 200))
    low, high = found.bounds(m).low, found.bounds(m).high
    assert low is not None
    assert high is not None
    assert low < found.value(m) < high


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("OBJECTIVE =", "OBJECTIVES =", "mine.py: has no OBJECTIVE"),
        ('unit="tok/s",', "", "missing 1 required positional argument: 'unit' (line 6)"),
        ('"maximize"', '"larger"', "direction must be maximize or minimize, not 'larger'"),
        ('unit="tok/s"', "unit=3", "OBJECTIVE.unit must be a text, not 3"),
        ('name="mine"', 'name="other"', "OBJECTIVE.name must be 'mine', not 'other'"),
        ("compute=speed", "compute=3", "OBJECTIVE.compute must be a function, not 3"),
        ("compute=speed", "compute=speed, interval=3", "OBJECTIVE.interval must be a function"),
        ("def speed(m):", "def speed(m:", "SyntaxError"),
        ("def speed(m):", "raise SystemExit('no')\ndef speed(m):", "SystemExit: no (line 3)"),
        ("m.e2el", "m.e2e", "AttributeError: 'Measurement' object has no attribute 'e2e' (line 4)"),
        ("return float(", "return str(", "compute gave '"),
        ("compute=speed", "compute=speed, interval=lambda m, c: (1, 2)", "interval gave (1, 2)"),
        ("compute=speed", "compute=speed, setting='x'", "setting must be slo or usd_per_hour"),
        ("compute=speed", "compute=speed, setting='slo'", "objectives.0.slo: is missing; mine"),
        ("OBJECTIVE = Objective(", "OBJECTIVE = dict(", "OBJECTIVE is a dict; it must be"),
    ],
)
def test_what_is_wrong_with_a_users_objective_is_one_line(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    assert old in MINE
    study = own_study(tmp_path, MINE.replace(old, new, 1))
    with pytest.raises(UserError) as e:
        study_objectives(load_study(str(study)))
    assert words in str(e.value)
    assert str(study) in str(e.value)
    assert "\n" not in str(e.value)


def test_what_a_measurement_cannot_give_is_no_error_of_the_code(tmp_path: Path) -> None:
    text = MINE.replace(
        "    return", "    if len(m) < 100: raise ValueError('too few')\n    return"
    )
    mine, _ = study_objectives(load_study(str(own_study(tmp_path, text))))
    with pytest.raises(ValueError, match=r"mine\.py: too few"):
        mine.value(measured([1.0] * 20))
    assert mine.value(measured([1.0] * 100)) == pytest.approx(11)


def test_no_number_is_no_value() -> None:
    nan = replace(objectives.get("throughput"), compute=lambda m: float("nan"))
    with pytest.raises(ValueError, match="gave nan"):
        nan.value(measured([1.0]))


def test_batches_of_what_can_be_negative() -> None:
    def trend(m: Measurement) -> float:
        return float(m.e2el[-1] - m.e2el[0])

    m = measured(np.random.default_rng(0).uniform(1, 2, 160))
    found = replace(objectives.get("throughput"), compute=trend, interval=None).bounds(m)
    assert found.low is not None
    assert found.high is not None
    assert (found.low + found.high) / 2 == pytest.approx(trend(m))

    def many(m: Measurement) -> float:
        if len(m) < 100:
            raise ValueError("too few")
        return 1.0

    none = replace(objectives.get("throughput"), compute=many, interval=None).bounds(m)
    assert none == Interval(None, None, 0.95)


def test_an_objective_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_objectives.py").write_text(MINE)
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[autotune.objectives]\nmine = their_objectives:OBJECTIVE\nbad = their_objectives:MISSING\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = study_objectives(load_study(str(write_study(tmp_path, objectives=["mine"]))))
    assert found.origin == "theirs: their_objectives:OBJECTIVE"
    assert found.value(measured([1.0])) == pytest.approx(11)
    for name, words in (
        ("bad", "theirs: their_objectives:MISSING: cannot be run: AttributeError"),
        ("other", "other is unknown; known are cost, goodput,"),
    ):
        with pytest.raises(UserError, match=words) as e:
            study_objectives(load_study(str(write_study(tmp_path, objectives=[name]))))
        assert ("mine" in str(e.value)) == (name == "other")


@pytest.mark.double
def test_a_run_with_an_objective_of_the_user(tmp_path: Path) -> None:
    study = own_study(tmp_path, MINE)
    run = autotune("run", str(study), "--trials", "2", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert [o["unit"] for o in trials(tmp_path)[0]["objectives"].values()] == ["tok/s", "ms"]  # type: ignore[attr-defined]
    # changed, it is another study
    (tmp_path / "mine.py").write_text(MINE.replace(".mean()", ".min()"))
    again = autotune("run", str(study), "--trials", "3", cwd=tmp_path)
    assert again.returncode == 2
    assert "trials would not compare" in again.stderr
    # looked at, none of its code is run
    (tmp_path / "mine.py").write_text("raise SystemExit('run')")
    for command in ("status", "best", "pareto"):
        done = autotune(command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        if command != "pareto":
            assert "Mean speed" in done.stdout
    (tmp_path / "mine.py").unlink()
    assert autotune("best", "--json", "--objective", "mine", cwd=tmp_path).returncode == 0


@pytest.mark.double
def test_code_that_fails_in_a_trial_is_named_with_file_line_and_trial(tmp_path: Path) -> None:
    bad = MINE.replace("return float", "len(m) // (len(m) - 6)\n    return float")  # six requests
    run = autotune("run", str(own_study(tmp_path, bad)), "--trials", "4", cwd=tmp_path)
    assert run.returncode == 1
    words = (
        f"{tmp_path / 'mine.py'}: ZeroDivisionError: integer division or modulo by zero (line 4)"
    )
    assert words in run.stderr
    failed = trials(tmp_path)[0]
    assert (failed["failure_kind"], failed["failure_reason"]) == ("requests", words)
    said = autotune("status", cwd=tmp_path).stdout
    assert "trial 0 failed: requests:" in said
    assert processes_of(tmp_path) == []


# -- docs --------------------------------------------------------------------------------------


def test_the_docs_have_every_objective() -> None:
    """`python -m objectives` prints the table anew."""
    text = DOC.read_text()
    between = re.search(r"<!-- table -->\n(.*?)<!-- end of table -->", text, re.DOTALL)
    assert between is not None
    assert between[1].strip() == table()
    for name in objectives.names():
        assert f"| `{name}`" in between[1]
