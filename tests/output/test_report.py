"""`autotune report`: what it says, that nothing of a study runs in it, how a browser shows it."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import re
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from choreographer import Browser, Tab
from click.testing import CliRunner
from optuna.trial import TrialState, create_trial

from autotune.bench.interference import IdleBaseline
from autotune.bench.objectives import study_objectives
from autotune.bench.request_drafts import RequestDrafts
from autotune.bench.sample import Sample
from autotune.bench.server_metrics import ServerStats
from autotune.cli.main import main
from autotune.engine.command import LaunchPlan
from autotune.engine.launch_stages import STAGES, Stages
from autotune.errors import FailureKind, TrialFailure
from autotune.output.figures.browser import find_chromium, print_page
from autotune.output.figures.theme import DARK, LIGHT
from autotune.output.report import Format, build, html, markdown, place, write
from autotune.output.report.content import Code, DataTable, Figure, Report
from autotune.output.report.importance import LEAST_POINTS, Importance, importances
from autotune.results.text import number as shown
from autotune.results.trials import study_view
from autotune.stats import ESTIMATOR, Interval, standard_error
from autotune.storage.store import Store, opened
from autotune.study.files import load_study
from autotune.study.space import MNBT, IntParam, N, Pow2Param, Space
from tests.paths import ROOT
from tests.studies import autotune, use_tools, write_study
from tests.study_views import P95, THROUGHPUT
from tests.tuning.test_load_map import Instant

STORED = ROOT / "studies/results/demo-cpu/autotune.db"
ON_A_GPU = ROOT / "studies/results/smollm2-h200/autotune.db"
EVIL = "<img src=x onerror=\"document.title='owned'\"> | `*evil*` [x](http://evil.example)"
MACHINE = {
    "cpu": "A processor",
    "cores": 2,
    "memory_gib": 24,
    "os": "Linux 6",
    "python": "3.11.7",
    "gpus": [{"name": "A <b>GPU</b>", "memory_mib": 1024, "driver": "570"}],
}


@dataclass(frozen=True)
class Row:
    """A trial of a study that is made up; without ``rate`` it failed."""

    n: int
    mnbt: int
    rate: float | None
    p95: float = 2000.0
    confirms: int | None = None
    replicates: int | None = None
    reason: str = "no memory"


ROWS = (
    Row(0, 2048, 98.0, 2020),
    Row(3, 512, 118.0, 2100),
    Row(7, 256, 92.0, 2600),
    Row(15, 32, None),
    Row(1, 128, 101.0, 1990),
)
CONFIRMED = (
    *ROWS,
    Row(0, 2048, 97.0, 2050, confirms=0),
    Row(3, 512, 116.0, 2120, confirms=1),
    Row(0, 2048, 98.0, 2060, confirms=0),
    Row(3, 512, 117.0, 2110, confirms=1),
    Row(3, 512, 116.5, 2130, confirms=1),
    Row(0, 2048, 98.5, 2040, confirms=0),
)


def make(folder: Path, rows: Sequence[Row], *, split: bool = False, **changes: object) -> Path:
    """A database as a run over these trials leaves it."""
    database = folder / "autotune.db"
    loaded = load_study(str(write_study(folder, **changes)))
    store = Store(database, create=True)
    store.begin_study(loaded, seed=7, wanted=len(rows))
    space = loaded.spec.to_space()
    objectives = study_objectives(loaded)
    study = optuna.create_study(
        storage=store.storage,
        study_name=loaded.spec.name,
        directions=[o.direction for o in objectives],
    )
    for number, row in enumerate(rows):
        point = {"num_speculative_tokens": row.n, "max_num_batched_tokens": row.mnbt}
        point = {k: v for k, v in point.items() if k in space.params}
        values = {"throughput": row.rate, "p95_latency": row.p95, "p95_ttft": 50.0}
        study.add_trial(
            create_trial(
                state=TrialState.FAIL if row.rate is None else TrialState.COMPLETE,
                params=space.encode(point),
                distributions=space.distributions(),
                values=None if row.rate is None else [values[o.name] for o in objectives],
                user_attrs=_attributes(number, row),
            )
        )
        _launch(store, loaded.spec.name, number, row, split=split)
    store.close()
    return database


def _attributes(number: int, row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {"baseline": True} if number == 0 else {}
    found |= {k: v for k in ("confirms", "replicates") if (v := getattr(row, k)) is not None}
    if row.rate is None:
        evidence = ["````", row.reason, "\x1b[31mred\x1b[0m"]
        return found | {
            "failure_kind": "oom",
            "failure_reason": row.reason,
            "failure_evidence": evidence,
        }
    if row.n:
        shares = [0.6 * 0.5**k for k in range(row.n)]
        found |= {"acceptance_length": 1 + sum(shares), "acceptance_per_position": shares}
    intervals = {
        "throughput": Interval(row.rate * 0.97, row.rate * 1.03, 0.95),
        "p95_latency": Interval(row.p95 * 0.95, None, 0.95),
    }
    errors = {
        "throughput": standard_error(row.rate, intervals["throughput"]),
        "p95_latency": standard_error(row.p95, intervals["p95_latency"]),
    }
    return found | {
        "intervals": {name: [i.low, i.high] for name, i in intervals.items()},
        "quality": {
            **{"estimator": ESTIMATOR, "errors": errors, "busy": True},
            **{"requests": 6, "stop": "all", "steady": True},
        },
    }


def _launch(store: Store, study: str, number: int, row: Row, *, split: bool) -> None:
    key = f"{study}-{number}"
    plan = LaunchPlan(("vllm",), {}, {"HF_TOKEN": "***"}, "key", 8000, "model", "model")
    store.launches.plan(
        key,
        study=study,
        trial=number,
        attempt=0,
        plan=plan,
        machine=MACHINE,
        log_path=Path("x.log"),
    )
    store.launches.ready(key, "0.32.0")
    if row.rate is None:
        failure = TrialFailure(FailureKind.OOM, row.reason)
        store.launches.failed(key, failure, ())
    else:
        store.requests.add(key, [_sample(i, row.p95) for i in range(6)])
        stats = ServerStats(*[None] * 4, (), *[None] * 3)
        quality = {"estimator": ESTIMATOR, "busy": True, "requests": 6}
        store.launches.measured(key, stats, {"throughput": row.rate}, {}, quality)
    store.launches.ended(key, 0, 0)
    if split:
        store.launches.keep_stages(key, Stages(dict.fromkeys(STAGES, 2.0), {}))


def _sample(i: int, p95: float) -> Sample:
    end = 0.1 * i + p95 / 1000 - 0.01 * i
    return Sample(i, "measure", 0.0, 0.1 * i, 0.05, end, 5, 12, "ok", None, (0.05, 0.4))


def report_of(database: Path) -> Report:
    with opened(database) as store:
        return build(store, study_view(store, store.pick_study(None)))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Of the study in the repository; SQLite must not write beside it."""
    copy = tmp_path_factory.mktemp("stored") / "autotune.db"
    shutil.copy(STORED, copy)
    return report_of(copy)


def words(report: Report, section: str) -> str:
    """All text of a section, tables and captions included."""
    found = next(s for s in report.sections if s.name == section)
    return " ".join(map(str, found.blocks))


def figure_names(report: Report) -> list[str]:
    return [b.name for s in report.sections for b in s.blocks if isinstance(b, Figure)]


class Page(HTMLParser):
    """What a page consists of: elements with their attributes, and headings in their order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


# -- what it says -------------------------------------------------------------------------------


def test_the_stored_study_is_answered_with_its_tie(stored: Report) -> None:
    answer = stored.answer
    assert answer.headline == "Serve without speculation: n = 0, MNBT 2048"
    assert not answer.certain
    assert "A tie with trial 7 (n = 1, MNBT 2048)" in answer.sure
    assert "85% probability" in answer.sure
    evidence = answer.facts[-1]
    assert evidence.value == "confirmed"
    # without the first and the last two of 80
    assert evidence.notes[0] == "with 152 requests in 2 launches"
    assert "throughput 0.98× [0.91, 1.05]" in answer.notes[0]


def test_the_report_says_what_the_commands_say(stored: Report, tmp_path: Path) -> None:
    shutil.copy(STORED, tmp_path / "autotune.db")
    shown = " ".join(autotune("best", cwd=tmp_path).stdout.split())
    for fact in stored.answer.facts[:2]:
        assert fact.value in shown
        assert fact.notes[0].removeprefix("95% interval ") in shown
    command = next(b for s in stored.sections for b in s.blocks if isinstance(b, Code)).text
    assert command.strip() == autotune("best", "--shell", cwd=tmp_path).stdout.strip()
    predicted = json.loads(autotune("predict", "--json", cwd=tmp_path).stdout)
    table = words(stored, "prediction")
    for row in predicted["draft_quality"]:
        assert f"{row['predicted_tok_s']:.1f}" in table


def test_a_winner_over_no_speculation_has_its_changes_with_intervals(tmp_path: Path) -> None:
    answer = report_of(make(tmp_path, CONFIRMED)).answer
    assert answer.headline == "Serve n = 3, MNBT 512"
    rate, p95, evidence, output = answer.facts
    assert (output.label, output.value) == ("Output", "not verified")
    against = r"against no speculation \(n = 0, MNBT 2048\)"
    assert re.fullmatch(rf"1\.\d\d× \[1\.\d\d, 1\.\d\d\] {against}", rate.notes[1])
    assert re.fullmatch(rf"\+\d% \[[+−]\d%, \+\d%\] {against}", p95.notes[1])
    assert evidence.notes == (
        "with 18 requests in 3 launches",
        "compared with 18 requests in 3 launches of the baseline",
    )
    assert answer.certain
    assert "better than the baseline" in answer.sure


def test_without_a_confirmation_it_says_so(tmp_path: Path) -> None:
    report = report_of(make(tmp_path, ROWS))
    assert report.answer.headline == "Serve n = 3, MNBT 512"
    assert "not confirmed" in report.answer.sure
    assert report.answer.facts[-2].value == "not confirmed"
    assert report.answer.facts[0].notes[1].startswith("1.20× against no speculation")
    assert not report.answer.certain
    assert "Measured again" not in words(report, "front")


def test_a_study_without_trials_says_so_in_every_section(tmp_path: Path) -> None:
    report = report_of(make(tmp_path, ()))
    assert report.answer.headline == "Nothing can be recommended"
    assert figure_names(report) == []
    for section in report.sections:
        assert section.blocks, section.name
    assert "No trial has results" in words(report, "command")


def test_a_study_of_failures_only_says_what_failed(tmp_path: Path) -> None:
    report = report_of(make(tmp_path, (Row(3, 32, None), Row(7, 32, None, reason="a crash"))))
    assert report.answer.notes == ("Failed trials: 2 oom.",)
    assert figure_names(report) == []
    failures = words(report, "failures")
    assert "n = 7, MNBT 32" in failures
    assert "a crash" in failures
    assert "\x1b" not in failures


@pytest.mark.slow
def test_three_digits_of_trials_stay_small_and_have_importances(tmp_path: Path) -> None:
    rows = [Row(i % 16, 32 << i % 7, 80 + 3.0 * (i % 16), 2000 + 10 * (i % 5)) for i in range(230)]
    report = report_of(make(tmp_path, rows, split=True))
    every = [b for s in report.sections for b in s.blocks if isinstance(b, DataTable)]
    assert max(len(t.table.rows) for t in every) == 230
    assert "importance" in figure_names(report)
    assert len(html(report).encode()) < 2_500_000  # of a thousand, then, 5 MB at most


@pytest.mark.parametrize("names", [["p95_latency"], ["throughput", "p95_latency", "p95_ttft"]])
def test_one_and_three_objectives(tmp_path: Path, names: list[str]) -> None:
    report = report_of(make(tmp_path, CONFIRMED, objectives=names))
    own = [f for f in report.answer.facts if f.label not in {"Evidence", "Output"}]
    assert len(own) == len(names)
    assert len([name for name in figure_names(report) if name.startswith("grid")]) == len(names)
    page = html(report)
    assert len(page.encode()) < 5_000_000
    three = len(names) == 3
    assert ("lines" in figure_names(report)) == three
    policy = next(m for m in Page(page).all("meta") if m.get("http-equiv"))["content"] or ""
    assert ("'unsafe-eval'" in policy) == three  # nothing else needs it
    if three:
        assert "by throughput, p95 latency and p95 TTFT, " in words(report, "front")


def test_a_study_that_searches_no_n_leaves_out_what_needs_it(tmp_path: Path) -> None:
    budgets = {"max_num_batched_tokens": {"type": "pow2", "low": 32, "high": 2048}}
    rows = (Row(0, 2048, 98.0), Row(0, 512, 99.0))
    report = report_of(make(tmp_path, rows, space=budgets, server__speculative=None))
    assert report.answer.headline == "Serve MNBT 512"
    assert figure_names(report) == ["front", "latency"]
    assert "does not search num_speculative_tokens." in words(report, "by-n")


def test_where_the_time_went(tmp_path: Path) -> None:
    report = report_of(make(tmp_path, ROWS, split=True))
    assert "time" in figure_names(report)
    assert "5 trials in 5 launches" in words(report, "time")


def test_percentiles_of_latencies_are_those_of_the_objectives(tmp_path: Path) -> None:
    """Six requests, each 10 ms faster than the one before: (6 + 1/3) 0.95 + 1/3 is beyond 6."""
    report = report_of(make(tmp_path, ROWS))
    [table] = [
        b
        for x in report.sections
        for b in x.blocks
        if isinstance(b, DataTable) and b.caption.startswith("Percentiles in ms")
    ]
    rows = {
        (r[0].partition(":")[0], r[1]): r[2:] for r in (tuple(x.texts) for x in table.table.rows)
    }
    assert rows["winner", "E2EL"][2] == shown(2100)
    assert rows["baseline", "E2EL"][2] == shown(2020)
    assert rows["baseline", "E2EL"][0] == shown(2020 - 25)  # of an even number, the middle
    assert rows["baseline", "E2EL"][-2:] == ("6", "1")


def test_a_map_is_shown_with_its_crossover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Instant()
    use_tools(
        monkeypatch,
        server=found.server,
        measuring=found.measuring,
        take_idle_baseline=lambda _: IdleBaseline(0.1, None, ()),
    )
    database = make(tmp_path, ROWS)
    given = ("--schedule", "1:3,4:0", "--ways", "none", "--confirm", "8")
    done = autotune("map", "double.yaml", "--concurrency", "1,4,16", *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = report_of(database)
    text = words(report, "load")
    assert "Speculation pays up to a concurrency of about" in text
    assert "Other ways to speculate against the best fixed n" in text
    assert "('16', 'n = 0', 'schedule 1:3,4:0', '1.00×" in text
    assert "Confirmed by 2 further launches of each way" in text
    assert "a line for each way to speculate" in text
    assert "load" in figure_names(report)
    argument = next(line for line in done.stdout.splitlines() if "--speculative-config" in line)
    codes = [b.text for x in report.sections for b in x.blocks if isinstance(b, Code)]
    assert argument.strip() in codes


def test_the_database_is_enough_on_another_machine(tmp_path: Path) -> None:
    database = tmp_path / "autotune.db"
    shutil.copy(ON_A_GPU, database)
    with opened(database) as store:
        loaded, _ = store.load_study("smollm2-h200")
    assert not loaded.path.exists()  # nor its prompts
    report = report_of(database)
    assert "load" in figure_names(report)
    text = words(report, "load")
    # autotune 0.1 sent too few requests without speculation at 8 and 32 to compute them again
    assert "Speculation pays up to the highest concurrency measured: 1.51 [" in text
    assert "× at 1 with n = 7. The crossover lies above." in text
    assert all(f"('{load}', '', '')" in text for load in (8, 32))


def test_how_to_repeat_it(stored: Report, tmp_path: Path) -> None:
    earlier = words(stored, "repeat")  # the demo was another one, so its text is given
    assert "autotune run demo-cpu.yaml --trials 12 --seed 0 --db again.db" in earlier
    assert "num_prompts: 80" in earlier
    shutil.copy(ON_A_GPU, tmp_path / "gpu.db")
    bundled = words(report_of(tmp_path / "gpu.db"), "repeat")
    assert "autotune run smollm2-h200 --trials 12 --seed 0 --db again.db" in bundled
    own = words(report_of(make(tmp_path, ROWS)), "repeat")
    assert "autotune run double.yaml --trials 5 --seed 7" in own
    assert "output_len: 12" in own  # the study file itself


def test_how_it_was_measured(stored: Report) -> None:
    text = words(stored, "method")
    for part in (
        THROUGHPUT.formula,
        "concurrency 2; prompts of demo-chat.jsonl",
        "at most 24 requests with prompts of their own",
        "AMD EPYC, 2 cores, 23.5 GiB",
        "0.32.0",
        "seed 0",
        "throughput 1.5%",
        "num_speculative_tokens 0 to 15; max_num_batched_tokens 32 to 2048, powers of two",
        "Launched: 7 points.",
    ):
        assert part in text


def test_repeated_prompts_and_prelaunched_servers_are_said(tmp_path: Path) -> None:
    study = STORED.parents[1] / "smollm2-h200-c32" / "autotune.db"
    text = words(report_of(Path(shutil.copy(study, tmp_path))), "method")
    for part in (
        "at most 192 requests with prompts that are measured, too",
        "Prompts come again after the last one",
        "measured alone, with up to 3 others idle next to it",
        "concurrency 32",
    ):
        assert part in text


def test_a_launch_that_does_not_count_says_why(stored: Report) -> None:
    text = words(stored, "failures")
    assert "No trial failed." in text
    assert "Trial 1, launch 1: disturbed: " in text


# -- importance ---------------------------------------------------------------------------------


PLANE = Space(
    {N: IntParam(type="int", low=0, high=15), MNBT: Pow2Param(type="pow2", low=256, high=8192)}
)


def measured(
    gain: Callable[[int, int], float], points: int, noise: float, seed: int, space: Space = PLANE
) -> dict[str, Importance]:
    """Importance where a point's tok/s is e^gain times 100, and p95 the inverse, with noise."""
    rng = np.random.default_rng(seed)
    every = list(space.points() or ())
    chosen = [every[i] for i in rng.permutation(len(every))[:points]]
    logs = np.array([gain(int(q[N]), int(q[MNBT])) for q in chosen])
    off = rng.normal(0, noise, (points, 2))
    values = np.exp(np.column_stack([logs, -logs]) + off) * [100.0, 2000.0]
    return importances(space, chosen, values, (THROUGHPUT, P95))


def test_what_matters_is_seen_and_has_its_share() -> None:
    by_n = measured(lambda n, _: 0.02 * n, 20, 0.01, 1)
    for found in by_n.values():
        assert list(found.shares) == [N]
        assert found.shares[N] == 1.0
        assert found.chances[N] < 0.05 < found.chances[MNBT]
    both = measured(lambda n, m: 0.02 * n + 0.01 * np.log2(m), 40, 0.002, 1)
    for found in both.values():
        assert list(found.shares) == [N, MNBT]
        assert 0.8 < found.shares[N] < 1
        assert sum(found.shares.values()) == pytest.approx(1.0)


def test_noise_is_not_said_to_matter() -> None:
    """Of 100 studies in which nothing matters, at most 5 are expected to say that something does.

    More than 11 have a probability of 0.4 %.
    """
    said = [measured(lambda _n, _m: 0.0, 10 + i % 20, 0.03, i) for i in range(100)]
    assert sum(any(x.shares for x in found.values()) for found in said) <= 11


def test_a_parameter_that_was_varied_with_another_is_not_said_to_matter() -> None:
    """MNBT grows with n in all but a few points; only n matters."""
    ladder = [256 << k for k in range(6)]
    chosen = [{N: n, MNBT: ladder[min(5, n // 3)]} for n in range(16)]
    chosen += [{N: n, MNBT: ladder[5 - n // 3]} for n in (0, 6, 12, 15)]
    wrong = 0
    for seed in range(20):
        off = np.random.default_rng(seed).normal(0, 0.01, (len(chosen), 2))
        logs = 0.03 * np.array([int(q[N]) for q in chosen])
        values = np.exp(np.column_stack([logs, -logs]) + off) * [100.0, 2000.0]
        found = importances(PLANE, chosen, values, (THROUGHPUT, P95))
        assert all(N in x.shares for x in found.values())
        wrong += any(MNBT in x.shares for x in found.values())
    assert wrong <= 4


def test_importance_does_not_depend_on_how_powers_of_two_are_kept() -> None:
    plain = measured(lambda n, m: 0.02 * n + 0.02 * np.log2(m), 30, 0.01, 3)
    earlier = measured(
        lambda n, m: 0.02 * n + 0.02 * np.log2(m), 30, 0.01, 3, replace(PLANE, exponents=True)
    )
    assert plain == earlier


def test_an_objective_that_can_be_zero_has_an_importance() -> None:
    points = [{N: n, MNBT: 256} for n in range(16)] + [{N: n, MNBT: 512} for n in range(16)]
    values = np.array([[max(0, 8 - int(q[N])), 2000.0] for q in points])
    found = importances(PLANE, points, values, (THROUGHPUT, P95))
    assert list(found["throughput"].shares) == [N]
    assert not found["p95_latency"].shares  # a constant


def test_few_points_and_a_single_parameter_have_no_importance(stored: Report) -> None:
    points = [{N: n, MNBT: 256 << n % 2} for n in range(LEAST_POINTS)]
    values = np.ones((LEAST_POINTS, 2))
    assert importances(PLANE, points[:-1], values[:-1], (THROUGHPUT, P95)) == {}
    alone = [{N: n, MNBT: 256} for n in range(LEAST_POINTS)]
    assert importances(PLANE, alone, values, (THROUGHPUT, P95)) == {}
    assert f"too few, below {LEAST_POINTS}" in words(stored, "importance")


@pytest.mark.parametrize(
    ("points", "said"),
    [(14, "Not known: no parameter is seen to matter by 14 points"), (24, "No parameter is seen")],
)
def test_a_report_says_that_no_parameter_is_seen_to_matter(
    tmp_path: Path, points: int, said: str
) -> None:
    off = np.exp(np.random.default_rng(5).normal(0, 0.03, (points, 2)))
    rows = [Row(i % 16, 32 << i % 7, 100 * x, 2000 * y) for i, (x, y) in enumerate(off)]
    report = report_of(make(tmp_path, rows))
    assert "importance" not in figure_names(report)
    assert said in words(report, "importance")


# -- as HTML, Markdown and PDF ------------------------------------------------------------------


def test_accepted_drafts_by_kind_of_request(tmp_path: Path) -> None:
    database = make(tmp_path, ROWS)
    before = words(report_of(database), "acceptance")
    assert "vLLM told the accepted drafts" not in before
    with opened(database, write=True) as store:
        name = store.pick_study(None)
        drafts = RequestDrafts((3, 3, 3, 3), 36, tuple((k % 4, 3) for k in range(12)))
        for trial in (0, 2, 4):  # the best that drafts, trial 1, has none
            told = [
                replace(
                    _sample(i, 2000.0),
                    index=i + 10,
                    output_tokens=31,
                    drafts=drafts,
                    category=("code", "<b>chat")[i % 2],
                )
                for i in range(6)
            ]
            store.requests.add(f"{name}-{trial}", told)
    report = report_of(database)
    text = words(report, "acceptance")
    assert (
        "Of trial 4 (n = 1, MNBT 128) vLLM told the accepted drafts of each of 6 requests" in text
    )
    assert "2.50 tokens per step" in text
    assert "the server told nothing of 6 requests" in text.lower()
    for table in ("Accepted drafts by category", "position in the answer (tokens)"):
        assert table in text
    page, text = html(report), markdown(report)
    assert "<b>chat" not in page
    assert "by-request" in page
    assert "2.50" in text


def test_the_page_is_one_file_that_may_load_nothing(stored: Report) -> None:
    text = html(stored)
    assert len(text.encode()) < 5_000_000
    page = Page(text)
    assert not page.all("link")
    assert not page.all("img")
    assert all("src" not in attrs for attrs in page.all("script"))
    policy = next(m for m in page.all("meta") if m.get("http-equiv"))["content"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_the_page_can_be_read_without_seeing_it(stored: Report) -> None:
    page = Page(html(stored))
    levels = [tag for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels == ["h1"] + ["h2"] * (1 + len(stored.sections))
    plots = [a for a in page.all("div") if a.get("class") == "plot"]
    assert len(plots) == len(figure_names(stored)) == len(page.all("figcaption"))
    assert all(a["role"] == "img" and len(a["aria-label"] or "") > 40 for a in plots)
    assert len(page.all("table")) >= len(plots)
    assert all(a.get("scope") in {"col", "row"} for a in page.all("th"))
    assert all(a.get("tabindex") == "0" for a in page.all("pre"))
    ids = {a["id"] for _, a in page.elements if "id" in a}
    assert all((a["href"] or "").removeprefix("#") in ids for a in page.all("a"))


def test_every_figure_has_both_themes(stored: Report) -> None:
    text = re.search(r'id="figures">(.*?)</script>', html(stored), re.DOTALL)
    assert text is not None
    drawn = json.loads(gzip.decompress(base64.b64decode(text[1])))
    assert list(drawn) == figure_names(stored)
    for both in drawn.values():
        for name, theme in (("light", LIGHT), ("dark", DARK)):
            layout = both[name]["layout"]["template"]["layout"]
            assert layout["font"]["color"] == theme.ink
            assert layout["paper_bgcolor"] == theme.page
    assert LIGHT.ink not in json.dumps([both["dark"] for both in drawn.values()])


def contrast(a: str, b: str) -> float:
    """WCAG 2.2's contrast ratio of two colours such as ``#0072B2``."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return sum(w * x for w, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    bright, dim = sorted((luminance(a), luminance(b)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_can_be_read_on_both_pages(theme: Any) -> None:
    assert contrast(theme.ink, theme.page) > 7
    assert contrast(theme.front, theme.page) > 4.5
    assert contrast(theme.baseline, theme.page) > 4.5


def test_what_comes_from_a_study_or_a_log_is_only_text(tmp_path: Path) -> None:
    rows = (*ROWS, Row(2, 64, None, reason=EVIL))
    database = make(tmp_path, rows, description=EVIL, server__flags={"max-num-seqs": 2})
    report = report_of(database)
    page = html(report)
    assert "<img" not in page
    assert "<b>GPU" not in page
    assert EVIL in Page(page).text
    text = markdown(report)
    prose = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "<" not in prose
    assert "](" not in prose
    rows_of_failures = [line for line in prose.splitlines() if line.startswith("| 5 |")]
    assert any("\\| \\`\\*evil\\*\\`" in line for line in rows_of_failures)


def test_a_log_cannot_leave_its_fence(tmp_path: Path) -> None:
    text = markdown(report_of(make(tmp_path, ROWS)))
    block = re.search(r"^(`{5,})text\n(.*?)^\1$", text, re.DOTALL | re.MULTILINE)
    assert block is not None
    assert block[2].splitlines() == ["````", "no memory", "red"]


def test_secrets_are_in_no_report(tmp_path: Path) -> None:
    secret = "a-secret-of-some-length"  # noqa: S105
    database = make(tmp_path, ROWS, server__env={"HF_TOKEN": secret})
    report = report_of(database)
    assert secret not in html(report)
    assert secret not in markdown(report)
    assert 'HF_TOKEN="$HF_TOKEN"' in markdown(report)


def test_markdown_has_the_same_facts(stored: Report) -> None:
    text = markdown(stored)
    assert "## Serve without speculation: n = 0, MNBT 2048" in text
    for section in stored.sections:
        assert f"## {section.title}" in text
        for block in section.blocks:
            if isinstance(block, DataTable):
                assert (
                    f"| {' | '.join(block.table.rows[0].texts)} |".replace(" * ", " \\* ") in text
                )
    widths = [line.count("|") for line in text.splitlines() if re.match(r"\|[:-]", line)]
    assert len(widths) == sum(isinstance(b, DataTable) for s in stored.sections for b in s.blocks)


@pytest.mark.parametrize(
    ("out", "form", "expected"),
    [
        (None, None, ("x/autotune-s/report.html", Format.HTML)),
        (None, Format.MD, ("x/autotune-s/report.md", Format.MD)),
        ("y.md", None, ("x/y.md", Format.MD)),
        ("y.txt", None, ("x/y.txt", Format.HTML)),
        ("y.html", Format.PDF, ("x/y.html", Format.PDF)),
    ],
)
def test_where_it_is_written(
    tmp_path: Path, out: str | None, form: Format | None, expected: tuple[str, Format]
) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    found, kind = place(out and folder / out, form, folder / "autotune.db", "s")  # type: ignore[arg-type]
    assert (str(found.relative_to(tmp_path)), kind) == expected
    assert found.parent.is_dir()


def test_the_command_writes_and_names_the_file(tmp_path: Path) -> None:
    make(tmp_path, ROWS)
    done = autotune("report", "--format", "md", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "autotune-double/report.md"
    assert "Serve n = 3, MNBT 512" in (tmp_path / done.stdout.strip()).read_text()
    done = autotune("report", "--out", "no/x.html", cwd=tmp_path)
    assert done.returncode == 2
    assert "no/x.html: the folder no does not exist" in done.stderr


def test_a_pdf_without_a_browser_is_one_line(tmp_path: Path) -> None:
    make(tmp_path, ROWS)
    done = autotune("report", "--format", "pdf", cwd=tmp_path)  # which has no browser
    assert done.returncode == 1
    assert "no Chromium was found" in done.stderr.splitlines()[-1]


# -- in a browser -------------------------------------------------------------------------------


@dataclass
class Window:
    """A page in a browser, and what it complained of or asked the network for."""

    tab: Tab
    complaints: list[str]
    requests: list[str]

    async def send(self, command: str, **params: Any) -> Any:
        answer = await self.tab.send_command(command, params=params)
        assert "error" not in answer, answer
        return answer["result"]

    async def value(self, expression: str) -> Any:
        found = await self.send(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, expression: str, timeout_s: float = 60) -> Any:
        deadline = time.monotonic() + timeout_s
        while not (found := await self.value(expression)):
            assert time.monotonic() < deadline, expression
            await asyncio.sleep(0.05)
        return found


def look(page: Path, width: int, theme: str, looking: Callable[[Window], Awaitable[None]]) -> None:
    """Opens a page in a headless browser, waits for its figures, and looks at it."""

    async def visit() -> None:
        async with Browser(headless=True) as browser:
            window = Window(await browser.create_tab("about:blank"), [], [])

            async def heard(event: Mapping[str, Any]) -> None:
                if event["method"] == "Network.requestWillBeSent":
                    window.requests.append(event["params"]["request"]["url"])
                elif event["method"] != "Log.entryAdded" or (
                    event["params"]["entry"]["level"] in {"error", "warning"}
                ):
                    window.complaints.append(str(event["params"]))

            for event in (
                "Network.requestWillBeSent",
                "Runtime.exceptionThrown",
                "Runtime.consoleAPICalled",
                "Log.entryAdded",
            ):
                window.tab.subscribe(event, heard)  # type: ignore[arg-type]
            for domain in ("Network", "Runtime", "Log", "Page"):
                await window.send(f"{domain}.enable")
            await window.send(
                "Emulation.setDeviceMetricsOverride",
                width=width,
                height=900,
                deviceScaleFactor=1,
                mobile=False,
            )
            scheme = {"name": "prefers-color-scheme", "value": theme}
            await window.send("Emulation.setEmulatedMedia", features=[scheme])
            await window.send("Page.navigate", url=page.as_uri())
            await window.until("Boolean(window.figuresDrawn)")
            await window.value("figuresDrawn")
            await looking(window)

    asyncio.run(visit())


@pytest.fixture(scope="module")
def page(stored: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "report.html"
    write(stored, file, Format.HTML)
    return file


@pytest.mark.browser
@pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine")
class TestBrowser:
    @pytest.mark.parametrize("theme", ["light", "dark"])
    def test_the_figures_are_drawn_and_a_point_tells_of_its_trial(
        self, page: Path, stored: Report, theme: str
    ) -> None:
        async def looking(window: Window) -> None:
            drawn = await window.value(
                "[...document.querySelectorAll('.plot')].filter(p => p.querySelector('svg')).length"
            )
            assert drawn == len(figure_names(stored))
            ink = await window.value(
                "document.querySelector('[data-figure=front] .xtick text').style.fill"
            )
            colour = (LIGHT if theme == "light" else DARK).ink
            assert ink == f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"
            place = await window.value(
                "(() => { const p = document.querySelector('[data-figure=front]');"
                " p.scrollIntoView(); const t = p.data.find(t => t.name === 'dominated');"
                " const box = p.getBoundingClientRect(), l = p._fullLayout;"
                " return [box.x + l.xaxis._offset + l.xaxis.d2p(t.x[0]),"
                "         box.y + l.yaxis._offset + l.yaxis.d2p(t.y[0])]; })()"
            )
            await window.send("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
            text = await window.until(
                "document.querySelector('[data-figure=front] .hovertext')?.textContent"
            )
            assert re.match(r"trial \d+num_speculative_tokens = \d", text)
            assert window.complaints == []
            # the page itself, and the cells of a heat map, which Plotly makes a picture of
            assert {url.partition(":")[0] for url in window.requests} <= {"file", "data"}
            assert sum(url.startswith("file:") for url in window.requests) == 1

        look(page, 1100, theme, looking)

    def test_a_narrow_page_does_not_scroll_sideways(self, page: Path) -> None:
        async def looking(window: Window) -> None:
            wide = await window.value("document.documentElement.scrollWidth")
            assert wide <= 390
            # a scale beside the cells would leave none of them room for its number
            cells = await window.value(
                "(() => { const p = document.querySelector('[data-figure=grid-0]');"
                " const x = p._fullLayout.xaxis;"
                " return [p._fullData[0].colorbar.orientation, x._length / p.data[0].x.length,"
                "         p.querySelectorAll('.heatmap-label').length]; })()"
            )
            assert cells[0] == "h"
            assert (cells[2] > 0) == (cells[1] >= 36)
            assert window.complaints == []

        look(page, 390, "light", looking)

    @pytest.mark.parametrize("name", ["demo-cpu", "smollm2-h200"])
    def test_no_title_lies_over_the_plot_below_it(self, tmp_path: Path, name: str) -> None:
        copy = Path(shutil.copy(STORED.parents[1] / name / "autotune.db", tmp_path / "autotune.db"))
        file = tmp_path / "report.html"
        write(report_of(copy), file, Format.HTML)

        async def looking(window: Window) -> None:
            for printed in (False, True):
                if printed:
                    await window.value("window.dispatchEvent(new Event('beforeprint'))")
                    await window.until("document.querySelector('.plot')._fullLayout.width === 688")
                title, plot = await window.value(
                    "(() => { const p = document.querySelector('[data-figure=latency]');"
                    " return [p.querySelector('.xtitle').getBoundingClientRect().bottom,"
                    "  p.getBoundingClientRect().top + p._fullLayout.yaxis2._offset]; })()"
                )
                assert title <= plot

        look(file, 1280, "light", looking)

    def test_the_theme_follows_the_reader(self, page: Path) -> None:
        async def looking(window: Window) -> None:
            dark = {"name": "prefers-color-scheme", "value": "dark"}
            await window.send("Emulation.setEmulatedMedia", features=[dark])
            await window.until(
                "document.querySelector('[data-figure=front]')._fullLayout.paper_bgcolor"
                f" === '{DARK.page}'"
            )

        look(page, 1100, "light", looking)

    def test_nothing_of_a_study_runs(self, tmp_path: Path) -> None:
        rows = (*CONFIRMED, Row(2, 64, None, reason=EVIL))
        file = tmp_path / "report.html"
        write(report_of(make(tmp_path, rows, description=EVIL)), file, Format.HTML)

        async def looking(window: Window) -> None:
            assert (await window.value("document.title")).startswith("double: Serve n = 3")
            assert window.complaints == []

        look(file, 1100, "light", looking)

    def test_three_objectives_are_drawn_in_space_and_as_lines(self, tmp_path: Path) -> None:
        names = ["throughput", "p95_latency", "p95_ttft"]
        file = tmp_path / "report.html"
        write(report_of(make(tmp_path, CONFIRMED, objectives=names)), file, Format.HTML)

        async def looking(window: Window) -> None:
            titles = await window.value(
                "[...document.querySelectorAll('[data-figure=lines] .axis-title')]"
                ".map(t => t.textContent)"
            )
            assert titles == [
                "Throughput (tok/s)",
                "p95 latency (ms)",
                "p95 TTFT (ms)",
                "n",
                "MNBT",
            ]
            canvas = "document.querySelector('[data-figure=front] .gl-container canvas')"
            assert await window.value(f"{canvas}.width > 0")
            text = await window.value("document.body.textContent")
            assert "WebGL is not supported" not in text
            # what a browser without a GPU says of its speed
            slow = ("GPU stall due to ReadPixels", "willReadFrequently")
            assert [c for c in window.complaints if not any(s in c for s in slow)] == []

        look(file, 1100, "dark", looking)

    def test_a_pdf_is_printed(self, page: Path) -> None:
        printed = print_page(page)
        assert printed is not None
        assert printed.startswith(b"%PDF")
        assert len(re.findall(rb"/Type ?/Page\b", printed)) > 3

    def test_the_command_prints_a_pdf(self, tmp_path: Path) -> None:
        make(tmp_path, ROWS)
        out = tmp_path / "x.pdf"
        database = str(tmp_path / "autotune.db")
        done = CliRunner().invoke(main, ["report", "--db", database, "--out", str(out)])
        assert done.exit_code == 0, done.output
        assert out.read_bytes().startswith(b"%PDF")
