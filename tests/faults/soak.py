"""Random faults at random times, again and again, until so many were injected.

A study of a few trials is started; after a time drawn from the length that the rest of it takes,
one of its processes gets a signal; everything is checked; and the same command is given again, or
the run goes on by itself, until the study is done. Then comes the next study.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.faults.inject import Site, check_end
from tests.faults.kept import ERRORS
from tests.faults.plan import Run, Target
from tests.faults.start import Started, Starter

TRIALS = 12
ACTIONS = (
    (Target.TUNER, signal.SIGKILL),
    (Target.TUNER, signal.SIGTERM),
    (Target.API, signal.SIGKILL),
    (Target.SUPERVISOR, signal.SIGKILL),
    (Target.ENGINE, signal.SIGKILL),
)
_STAGES = {
    "launching": "launching",
    "healthy": "warming",
    "warm": "measuring",
    "measured": "stopping",
    "stopped": "telling",
}


@dataclass
class Kill:
    """One random fault.

    Attributes:
        action: Which signal to whom.
        stage: Where the run stood.
        seconds: Until nothing of the launch (and of a killed tuner) was left.
        problems: What did not hold; of the study's end, they are with its last fault.
    """

    action: str
    stage: str
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


class Soak:
    """Injects random faults, one after the other.

    Args:
        folder: Gets a folder for each study.
        seed: Of times and choices.
        trials: Of each study.
        lengths_s: How long a start takes, and a trial, about, seconds; measured first if not given.
    """

    def __init__(
        self,
        folder: Path,
        starter: Starter,
        seed: int,
        *,
        trials: int = TRIALS,
        lengths_s: tuple[float, float] | None = None,
    ) -> None:
        self.folder, self.starter, self.trials = folder, starter, trials
        self.random = random.Random(seed)
        self.kills: list[Kill] = []
        self.studies = 0
        self.lengths_s = lengths_s
        self.before = 0  # launches when the run began

    def run(self, kills: int) -> list[Kill]:
        """Injects so many faults, and finishes the last study."""
        start_s, trial_s = self.lengths_s or self.measure()
        while len(self.kills) < kills:
            self.study(kills, start_s, trial_s)
        return self.kills

    def measure(self) -> tuple[float, float]:
        """Seconds of a start and of a trial, from a study without any fault."""
        begun, began_at = time.monotonic(), time.time()
        site = self.site()
        problems = check_end(site.start(), Run.GOES_ON) + site.check_whole()
        assert not problems, problems
        [(first,)] = site.query("select min(at) from autotune_events where what = 'launching'")
        start_s = max(0.0, first - began_at)
        return start_s, (time.monotonic() - begun - start_s) / self.trials

    def site(self) -> Site:
        self.studies += 1
        folder = self.folder / f"study-{self.studies}"
        return Site(folder, self.starter, wanted=self.trials, env={"DOUBLE_CHILD": "plain"})

    def study(self, kills: int, start_s: float, trial_s: float) -> None:
        """One study from its first start to its last trial."""
        site = self.site()
        hits: Counter[int] = Counter()  # faults by trial that cost it a launch
        run: Started | None = None
        try:
            while True:
                left = self.trials - len(site.finished())
                if run is None:
                    self.before = self.launches(site)
                    run = site.start()
                    wait_s = self.random.uniform(0, start_s + trial_s * left)
                else:
                    wait_s = self.random.uniform(0, trial_s * left)
                if len(self.kills) >= kills:
                    wait_s = 600
                if self.ends(run, wait_s):
                    break
                if self.hit(site, run, hits):
                    run = None
            failed = self.failed_rightly(site, hits)
            self.kills[-1].problems += check_end(run, Run.GOES_ON) + site.check_whole(failed=failed)
        except (AssertionError, TimeoutError, *ERRORS) as e:
            self.kills.append(Kill("the soak itself", "", problems=[repr(e)]))
        finally:
            site.clean_up()

    def ends(self, run: Started, within_s: float) -> bool:
        try:
            run.wait(within_s)
        except TimeoutError:
            return False
        return True

    def hit(self, site: Site, run: Started, hits: Counter[int]) -> bool:
        """One fault; True if it ended the run."""
        stage, trial, launch_id = self.where(site)
        to, signum = self.random.choice(ACTIONS)
        process = None if to is Target.TUNER else self.find(site, to, launch_id)
        if process is None:  # no server at the moment
            to = Target.TUNER
            signum = self.random.choice((signal.SIGKILL, signal.SIGTERM))
        kill = Kill(f"{signum.name} {to}", stage)
        trials, launches = site.finished(), site.measured()
        if process is not None:
            try:
                process.send_signal(signum)
            except psutil.NoSuchProcess:
                return False  # it ended by itself in this moment: no fault
            self.kills.append(kill)
            hits[trial] += 1
            kill.seconds = site.until_gone(launch_id, None, 10)
        else:
            try:
                run.signal(signum)
            except ProcessLookupError:
                return False  # it ended by itself in this moment: no fault
            self.kills.append(kill)
            kill.seconds = site.until_gone(None, run, 10)
            code = run.wait(0)
            # before the loop begins and after it has ended, there is nothing to clean up
            early = code == -signal.SIGTERM and not self.open_launches(site)
            if not early and code != 0:
                expected = Run.DIES if signum is signal.SIGKILL else Run.INTERRUPTED
                kill.problems += check_end(run, expected)
        if site.is_there():
            kill.problems += site.check_kept(trials, launches)
        return process is None

    def where(self, site: Site) -> tuple[str, int, str]:
        """Stage, trial and launch that the run is at."""
        try:
            [(trial, launch_id, ended)] = site.query(
                "select trial, launch_id, ended_at from autotune_launches "
                "order by planned_at desc limit 1"
            )
            rows = site.query(
                "select what from autotune_events where launch_id = ? order by id desc limit 1",
                launch_id,
            )
        except (*ERRORS, ValueError):  # no table yet, no launch yet
            return "starting", -1, ""
        if self.launches(site) == self.before:
            return "starting", trial, launch_id
        what = rows[0][0] if rows else "launching"
        if ended is not None and what != "stopped":
            return "between trials", trial, launch_id
        return _STAGES.get(what, "between trials"), trial, launch_id

    def launches(self, site: Site) -> int:
        try:
            return int(site.query("select count(*) from autotune_launches")[0][0])
        except ERRORS:  # no file or no table yet
            return 0

    def find(self, site: Site, to: Target, launch_id: str) -> psutil.Process | None:
        return site.look(to, launch_id) if launch_id else None

    def open_launches(self, site: Site) -> bool:
        try:
            return bool(site.query("select 1 from autotune_launches where ended_at is null"))
        except ERRORS:
            return False

    def failed_rightly(self, site: Site, hits: Counter[int]) -> int:
        """Trials that failed because two of their launches were hit; more is a problem."""
        try:
            failed = site.query("select number from trials where state = 'FAIL'")
        except ERRORS:  # what is wrong with it, check_whole says
            return 0
        return sum(hits[number] >= 2 for (number,) in failed)
