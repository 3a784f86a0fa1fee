"""Faults against real vLLM servers on the demo pair: one study, one run given again and again.

A launch costs a minute on two cores, so the points share what launches they can: those that end
the tuner come first, and those that the run outlives cost one launch more each.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from autotune.study.files import find_study
from tests.faults.inject import MARK, Outcome, Site, check_end, port_is_free
from tests.faults.kept import ERRORS
from tests.faults.plan import EVENTS, Run, Stage, Target
from tests.faults.start import Started, Starter

HANG_S = 20.0  # two busy cores may give no token for a while
_STEP_S = 600.0  # the demo model may have to be converted first
_LOADING = ("Starting to load model", "Loading weights", "Loading safetensors")


@dataclass(frozen=True)
class Point:
    """Who gets which signal, and when.

    Attributes:
        loading: At the launching stage: once the weights are being loaded, not during imports.
    """

    to: Target
    signum: signal.Signals
    stage: Stage
    loading: bool = False
    within_s: float = 10.0

    @property
    def name(self) -> str:
        return f"{self.signum.name} of the {self.to}"

    @property
    def when(self) -> str:
        if self.stage is not Stage.LAUNCHING:
            return str(self.stage)
        return "launching, weights" if self.loading else "launching, imports"

    @property
    def run(self) -> Run:
        if self.to is not Target.TUNER:
            return Run.GOES_ON
        return Run.DIES if self.signum is signal.SIGKILL else Run.INTERRUPTED


_KILL, _TERM, _STOP = signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP
_HANGS = Point(Target.API, _STOP, Stage.MEASURING, within_s=HANG_S + 50)
POINTS = (
    Point(Target.TUNER, _KILL, Stage.LAUNCHING),
    Point(Target.TUNER, _KILL, Stage.LAUNCHING, loading=True),
    Point(Target.TUNER, _KILL, Stage.WARMING),
    Point(Target.TUNER, _KILL, Stage.MEASURING),
    Point(Target.TUNER, _TERM, Stage.MEASURING),
    Point(Target.TUNER, _KILL, Stage.STOPPING),
    Point(Target.API, _KILL, Stage.LAUNCHING, loading=True),
    Point(Target.API, _KILL, Stage.MEASURING),
    Point(Target.ENGINE, _KILL, Stage.MEASURING),
    Point(Target.WORKER, _KILL, Stage.MEASURING),
    _HANGS,
    Point(Target.SUPERVISOR, _KILL, Stage.MEASURING),
)
# What pytest runs: as few launches as four points can have.
QUICK = (
    Point(Target.TUNER, _KILL, Stage.LAUNCHING, loading=True),
    Point(Target.TUNER, _KILL, Stage.MEASURING),
    Point(Target.API, _KILL, Stage.MEASURING),
    _HANGS,
)


def small_demo(folder: Path, mark: str) -> Path:
    """demo-cpu with little load."""
    demo = find_study("demo-cpu")
    raw = yaml.safe_load(demo.read_text())
    raw["server"]["env"] = {**raw["server"].get("env", {}), MARK: mark}
    raw["workload"] |= {
        "prompts": str(demo.parent / raw["workload"]["prompts"]),
        "num_prompts": 6,
        "warmup_prompts": 2,
        "output_len": 32,
        "hang_timeout_s": HANG_S,
    }
    raw["measure"]["repeat_disturbed"] = False
    raw["budget"] = {**raw.get("budget", {}), "confirm": 0}
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(raw))
    return file


def real_site(folder: Path, starter: Starter, points: Sequence[Point]) -> Site:
    """A study with a trial for each fault that a run outlives: a second one would fail it."""
    outlived = sum(p.run is Run.GOES_ON for p in points)
    site = Site(
        folder, starter, wanted=max(2, outlived + any(p.stage is Stage.STOPPING for p in points))
    )
    site.file = small_demo(folder, site.mark)
    return site


def run_points(site: Site, points: Sequence[Point]) -> list[Outcome]:
    """All points, in their order, and the study to its end."""
    outcomes: list[Outcome] = []
    run: Started | None = None
    try:
        for point in points:
            outcome = Outcome(point.name, point.when)
            outcomes.append(outcome)
            known = _launches(site, ended=run is not None)
            run = run or site.start()
            try:
                launch_id = _reach(site, run, point, known)
                trials, launches = site.finished(), site.measured()
                port = site.port(launch_id)
                if point.to is Target.TUNER:
                    run.signal(point.signum)
                    outcome.seconds = site.until_gone(None, run, point.within_s)
                    outcome.problems += check_end(run, point.run)
                    run = None
                else:
                    site.target(point.to, launch_id).send_signal(point.signum)
                    outcome.seconds = site.until_gone(launch_id, None, point.within_s)
                    _again(site, run, launch_id, outcome)
                if not port_is_free(port):
                    outcome.problems.append(f"port {port} is taken")
                outcome.problems += site.check_kept(trials, launches)
            except (AssertionError, TimeoutError, *ERRORS) as e:
                outcome.problems.append(str(e) or repr(e))
                if run is not None and run.poll() is not None:
                    run = None
        run = run or site.start()
        run.wait(site.wanted * 2 * _STEP_S)
        outcomes[-1].problems += check_end(run, Run.GOES_ON) + site.check_whole()
    finally:
        if run is not None and run.poll() is None:
            run.signal(signal.SIGKILL)
        site.clean_up()
    return outcomes


def _launches(site: Site, *, ended: bool = False) -> set[str]:
    """Ids of all launches, or of those whose end was written down."""
    if not site.is_there():
        return set()
    sql = (
        f"select launch_id from autotune_launches where {'ended_at' if ended else '1'} is not null"  # noqa: S608
    )
    with contextlib.suppress(*ERRORS):  # no tables yet
        return {launch_id for (launch_id,) in site.query(sql)}
    return set()


def _wait(run: Started, deadline: float, what: str) -> None:
    if run.poll() is not None:
        raise AssertionError(f"the run ended before {what}: {run.err.read_text()[-1500:]}")
    if time.monotonic() > deadline:
        raise AssertionError(f"{what} did not come")
    time.sleep(0.02)


def _reach(site: Site, run: Started, point: Point, known: set[str]) -> str:
    """Waits until a new launch stands where the point is; its id."""
    deadline = time.monotonic() + _STEP_S
    while not (new := _launches(site) - known):
        _wait(run, deadline, "a new launch")
    [launch_id] = new
    sql = "select 1 from autotune_events where launch_id = ? and what = ?"
    while not site.query(sql, launch_id, EVENTS[point.stage]):
        _wait(run, deadline, str(point.stage))
    if point.stage is Stage.LAUNCHING:
        while site.look(Target.API, launch_id) is None:  # after what it is forked from is imported
            _wait(run, deadline, "the API process")
        [(log,)] = site.query(
            "select log_path from autotune_launches where launch_id = ?", launch_id
        )
        path = site.folder / log
        while point.loading and not any(w in path.read_text(errors="replace") for w in _LOADING):
            _wait(run, deadline, "the loading of the weights")
    return launch_id


def _again(site: Site, run: Started, launch_id: str, outcome: Outcome) -> None:
    """The run notices what happened, and tries the trial once more, to its end."""
    deadline = time.monotonic() + _STEP_S
    sql = "select trial, failure_kind, ended_at from autotune_launches where launch_id = ?"
    while (row := site.query(sql, launch_id)[0])[2] is None:
        _wait(run, deadline, "the end of the launch")
    outcome.note = str(row[1])
    if row[1] is None:
        outcome.problems.append("the launch did not fail")
    while row[0] not in site.finished():
        if run.poll() is not None:  # it was the last one
            return
        _wait_told(deadline)


def _wait_told(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise AssertionError("the trial was not tried once more")
    time.sleep(0.05)
