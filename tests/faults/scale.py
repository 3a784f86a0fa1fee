"""Faults of runs with several servers, on Ray nodes, and with a study in PostgreSQL.

A run is brought to where a server is launched or measured on each of its slots and one trial is
told, and hit.
Then the same must hold as in ``tests.faults.plan``: nothing of what was hit is left in time, what
was there is there unchanged, and the study ends with exactly the wanted number of trials, none lost
and none twice, in the same run or with the same command again.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from autotune.storage.location import Server
from tests import postgresql, ray_nodes
from tests.faults import nodes
from tests.faults.inject import RUN_S, Outcome, Site, allowed, check_end, fresh, port_is_free
from tests.faults.kept import ERRORS, Row
from tests.faults.nodes import HEAD, OTHER, Nodes
from tests.faults.plan import STOP_S, Run, Target
from tests.faults.start import Started, Starter
from tests.postgresql import PASSWORD, Cluster, Proxy, a_cluster
from tests.studies import NO_BROWSER

WANTED = 5
AWAY_S = 30.0  # PostgreSQL is gone for so long, and a driver stands still
LEFT_S = 15.0  # after a process was killed, nothing of it may be left
LEASE_S = 15.0  # of a driver, and of a worker
_FAST, _SLOW = {"DOUBLE_STEP_S": "0.01"}, {"DOUBLE_STEP_S": "0.2"}  # a measurement: 0.4 s, 7.2 s
_UNDER_WAY = (
    "select l.launch_id, (select count(*) from autotune_events e where e.launch_id = l.launch_id "
    "and e.what = 'warm') from autotune_launches l where identity is not null and ended_at is null "
    "and measured_at is null"
)


class Place(StrEnum):
    """Where the servers are, and the study; a column of the table."""

    ONE = "one server, PostgreSQL"
    FILE = "`--parallel 2`, SQLite"
    LOCAL = "`--parallel 2`, PostgreSQL"
    RAY = "`--ray`, two nodes, PostgreSQL"


SEVERAL = (Place.FILE, Place.LOCAL, Place.RAY)
ON_SERVER = (Place.ONE, Place.LOCAL, Place.RAY)


class Who(StrEnum):
    """The process that gets a signal; except for the driver, of one of the two launches."""

    DRIVER = "the driver"
    SLOT = "the process of a slot"
    ACTOR = "the actor's process"
    NODE = "the raylet of the other node"
    HEAD = "the raylet of the driver's node"
    API = "a server's API process"
    SUPERVISOR = "a server's supervisor"


@dataclass
class Scene:
    """A run that measures on every slot.

    Attributes:
        site: Its study.
        run: The run.
        launches: The launches that are measured, by id.
        victim: The one that is hit where only one is; on the other node.
        workers: The processes between the driver, or the node, and the supervisors of servers.
        cluster: The PostgreSQL server.
        cut: The way to it, where it can be silenced.
        nodes: The Ray cluster.
        outcome: What it came to.
        foreign: Launches that are nobody's here.
    """

    site: Site
    run: Started
    launches: list[str]
    outcome: Outcome
    cluster: Cluster | None = None
    proxy: Proxy | None = None
    nodes: Nodes | None = None
    victim: str = ""
    workers: dict[str, list[psutil.Process]] = field(default_factory=dict)
    foreign: set[str] = field(default_factory=set)

    def look(self) -> None:
        """Note the processes of all launches, and choose the victim."""
        for launch_id in self.launches:
            supervisor = self.site.target(Target.SUPERVISOR, launch_id)
            self.workers[launch_id] = list(
                itertools.takewhile(
                    lambda p: p.pid != self.run.pid and p.name() != "raylet", supervisor.parents()
                )
            )
            if self.nodes is None or self.nodes.has(supervisor, OTHER):
                self.victim = launch_id
        assert self.victim, "no server is on the other node"

    def find(self, who: Who) -> psutil.Process:
        if who is Who.DRIVER:
            return psutil.Process(self.run.pid)
        if who in (Who.NODE, Who.HEAD):
            assert self.nodes is not None
            raylet = self.nodes.raylet(OTHER if who is Who.NODE else HEAD)
            assert raylet is not None
            return raylet
        if who in (Who.API, Who.SUPERVISOR):
            of = Target.API if who is Who.API else Target.SUPERVISOR
            return self.site.target(of, self.victim)
        found = self.workers[self.victim]
        return found[0] if who is Who.SLOT else next(p for p in found if _is_actor(p))

    def until_gone(self, launch_id: str | None, within_s: float, *, run: bool = False) -> None:
        """Wait until nothing of a launch, or of all, is left; write the seconds down."""
        seconds = self.site.until_gone(launch_id, self.run if run else None, within_s)
        self.outcome.seconds = max(seconds, self.outcome.seconds or 0)

    def until_ended(self, processes: Sequence[psutil.Process], within_s: float) -> None:
        begun, within_s = time.monotonic(), allowed(within_s)
        while left := [p for p in processes if _lives(p)]:
            if time.monotonic() - begun > within_s:
                text = ", ".join(f"{p.pid} ({' '.join(p.cmdline())[:60]})" for p in left)
                raise AssertionError(f"{text} still there after {within_s:g} s")
            time.sleep(0.02)

    def launched(self) -> int:
        return int(self.site.query("select count(*) from autotune_launches")[0][0])


def _is_actor(process: psutil.Process) -> bool:
    return any(word.startswith("ray::") for word in process.cmdline())


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


_FAULTS_OF_A_CASE = (
    AssertionError,
    TimeoutError,
    subprocess.SubprocessError,
    psutil.Error,
    *ERRORS,
)
Inject = Callable[[Scene], None]

# -- signals ---------------------------------------------------------------------------------------


_SERVER = (Who.API, Who.SUPERVISOR)


def hit(scene: Scene, *, hits: Sequence[tuple[Who, signal.Signals]], within_s: float) -> None:
    """Signals, and what has to be gone after them."""
    targets = [(scene.find(who), signum) for who, signum in hits]
    for process, signum in targets:
        process.send_signal(signum)
    hit_by = [who for who, _ in hits]
    ends = Who.DRIVER in hit_by or Who.HEAD in hit_by
    scene.until_gone(None if ends else scene.victim, within_s, run=Who.DRIVER in hit_by)
    # what stands still has to be replaced, and nothing stays of a driver that is gone
    ended = [p for (p, _), (who, _) in zip(targets, hits, strict=True) if who not in _SERVER]
    left = [p for found in scene.workers.values() for p in found if Who.DRIVER in hit_by]
    scene.until_ended([*ended, *left], within_s)


def frozen(scene: Scene) -> None:
    """The driver stands still, and wakes; nobody wanted its lease meanwhile."""
    begun = time.monotonic()
    scene.run.signal(signal.SIGSTOP)
    if scene.nodes is not None:  # the workers are on their own
        scene.until_gone(None, 2 * LEASE_S + STOP_S + 3)
    time.sleep(max(0.0, begun + AWAY_S - time.monotonic()))
    scene.run.signal(signal.SIGCONT)


def overtaken(scene: Scene) -> None:
    """The driver stands still; the same command takes its lease, and then the first one wakes."""
    site, first = scene.site, scene.run
    [(epoch,)] = site.query("select epoch from autotune_lease")
    first.signal(signal.SIGSTOP)
    second = site.start([_FAST] * 20)
    try:
        deadline = time.monotonic() + RUN_S
        newer = "select 1 from autotune_launches where lease_epoch > ?"
        while not site.query(newer, epoch):
            assert second.poll() is None, f"the second run ended: {second.err.read_text()[-800:]}"
            assert time.monotonic() < deadline, "the second run launched nothing"
            time.sleep(0.02)
        before = _written_by(site, epoch)
    finally:
        first.signal(signal.SIGCONT)
    scene.outcome.problems += [f"the first run: {p}" for p in check_end(first, Run.FAILS)]
    if "took it over" not in (said := first.err.read_text()):
        scene.outcome.problems.append(f"the first run does not say why: {said[-300:]}")
    for launch_id in scene.launches:
        scene.until_gone(launch_id, LEFT_S)
    if _written_by(site, epoch) != before:
        scene.outcome.problems.append("the first run wrote something after its lease was taken")
    scene.run = second


def _written_by(site: Site, epoch: int) -> list[Row]:
    """What there is of the launches of a lease."""
    return site.query(
        "select l.launch_id, ended_at, measured_at, failure_kind, (select count(*) from "
        "autotune_events e where e.launch_id = l.launch_id), (select count(*) from "
        "autotune_requests r where r.launch_id = l.launch_id) from autotune_launches l "
        "where lease_epoch = ? order by 1",
        epoch,
    )


def second_driver(scene: Scene) -> None:
    """The same command is given while the first one runs."""
    second = scene.site.start([_FAST] * 20)
    problems = check_end(second, Run.REFUSES)
    if f"pid {scene.run.pid}" not in (said := second.err.read_text()):
        problems.append(f"does not name the pid of the first: {said}")
    scene.outcome.problems += [f"the second run: {p}" for p in problems]


# -- PostgreSQL ------------------------------------------------------------------------------------


def away(scene: Scene) -> None:
    """PostgreSQL is stopped, and started half a minute later."""
    cluster, begun = _cluster(scene), time.monotonic()
    cluster.stop(signal.SIGINT)
    time.sleep(max(0.0, begun + AWAY_S - time.monotonic()))
    cluster.start()


def killed(scene: Scene) -> None:
    """Every process of PostgreSQL gets SIGKILL; it is started again."""
    _cluster(scene).kill()
    _cluster(scene).start()


def silent(scene: Scene) -> None:
    """No answer comes from PostgreSQL, while its connections stay open."""
    assert scene.proxy is not None
    scene.proxy.silent = True
    time.sleep(1.5 * AWAY_S)
    scene.proxy.silent = False


def away_and(scene: Scene, *, signum: signal.Signals) -> None:
    """The driver gets a signal while PostgreSQL is away."""
    cluster = _cluster(scene)
    cluster.stop(signal.SIGINT)
    try:
        time.sleep(5)  # something was to be written meanwhile
        hit(scene, hits=((Who.DRIVER, signum),), within_s=LEFT_S)
    finally:
        cluster.start()


def _cluster(scene: Scene) -> Cluster:
    assert scene.cluster is not None
    return scene.cluster


# -- hosts -----------------------------------------------------------------------------------------


def cut(scene: Scene) -> None:
    """No packet passes between the nodes for a while."""
    assert scene.nodes is not None
    begun = time.monotonic()
    scene.nodes.cut()
    try:
        scene.until_gone(scene.victim, 2 * LEASE_S + STOP_S + 3)
        time.sleep(max(0.0, begun + AWAY_S - time.monotonic()))
    finally:
        scene.nodes.mend()


def cut_and_killed(scene: Scene) -> None:
    """The driver is killed while the other node cannot know it."""
    assert scene.nodes is not None
    scene.nodes.cut()
    try:
        scene.run.signal(signal.SIGKILL)
        scene.until_gone(None, 2 * LEASE_S + STOP_S + 3, run=True)
    finally:
        scene.nodes.mend()


def of_another_host(scene: Scene) -> None:
    """A run is killed; one of its launches, which still lives, is on a host that is not ours."""
    site = scene.site
    hit(scene, hits=((Who.DRIVER, signal.SIGKILL),), within_s=LEFT_S)
    launch_id = scene.victim
    site.kept.rows(
        "update autotune_launches set host = 'elsewhere.example', identity = ?, ended_at = null, "
        "exit_code = null, killed = null where launch_id = ?",
        None,
        launch_id,
    )
    environment = {**os.environ, "AUTOTUNE_LAUNCH": launch_id}
    code = "import time; time.sleep(600)"
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", code], env=environment) as other:
        try:
            again = site.start([_FAST] * 20)
            scene.outcome.problems += check_end(again, Run.GOES_ON)
            if other.poll() is not None:
                scene.outcome.problems.append("the other host's server was ended")
            ended = "select 1 from autotune_launches where launch_id = ? and ended_at is not null"
            if site.query(ended, launch_id):
                scene.outcome.problems.append("the other host's launch was written down as ended")
        finally:
            other.kill()
    scene.foreign.add(launch_id)


# -- the plan --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScaleFault:
    """One row of the table.

    Attributes:
        name: Unique; the row's head.
        run: What must become of the run.
        inject: Does it, and waits until what must be gone is.
        places: Where.
        but: What becomes of the run in other places.
        untouched: No launch is lost: each trial has one.
        cuts: It needs nodes whose link can be cut.
        parted: The end of the launch may be known only when its node is back, and the command is
            given again, for one trial more.
        proxied: The driver reaches PostgreSQL through something that can be silenced.
        quick: Where pytest injects it.
    """

    name: str
    run: Run
    inject: Inject
    places: tuple[Place, ...]
    but: Mapping[Place, Run] = field(default_factory=dict)
    untouched: bool = False
    cuts: bool = False
    parted: bool = False
    proxied: bool = False
    quick: tuple[Place, ...] = ()

    def of(self, place: Place) -> Run:
        return self.but.get(place, self.run)


def _signal(
    who: Who, signum: signal.Signals, run: Run, places: tuple[Place, ...], **more: Any
) -> ScaleFault:
    within_s = 3 * LEASE_S if signum is signal.SIGSTOP else LEFT_S
    inject = partial(hit, hits=((who, signum),), within_s=within_s)
    return ScaleFault(f"{signum.name} to {who}", run, inject, places, **more)


_KILL, _TERM, _STOP = signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP
ONLY_RAY = (Place.RAY,)
SCALE_FAULTS = (
    _signal(Who.DRIVER, _KILL, Run.DIES, (*SEVERAL, Place.ONE)),
    _signal(Who.DRIVER, _TERM, Run.INTERRUPTED, (*SEVERAL, Place.ONE)),
    _signal(Who.API, _KILL, Run.GOES_ON, SEVERAL),
    _signal(Who.SUPERVISOR, _KILL, Run.GOES_ON, SEVERAL),
    _signal(Who.SLOT, _KILL, Run.GOES_ON, SEVERAL, quick=(Place.RAY,)),
    _signal(Who.SLOT, _STOP, Run.GOES_ON, SEVERAL),
    _signal(Who.ACTOR, _KILL, Run.GOES_ON, ONLY_RAY),
    _signal(Who.ACTOR, _STOP, Run.GOES_ON, ONLY_RAY, parted=True),
    _signal(Who.NODE, _KILL, Run.GOES_ON, ONLY_RAY, parted=True),
    _signal(Who.HEAD, _KILL, Run.ENDS, ONLY_RAY),
    ScaleFault(
        f"SIGSTOP to the driver, SIGCONT {AWAY_S:g} s later",
        Run.GOES_ON,
        frozen,
        (*SEVERAL, Place.ONE),
    ),
    ScaleFault(
        "SIGSTOP to the driver; the same command takes its lease; SIGCONT",
        Run.GOES_ON,
        overtaken,
        ON_SERVER,
    ),
    ScaleFault(
        "the same command again meanwhile",
        Run.GOES_ON,
        second_driver,
        (*SEVERAL, Place.ONE),
        untouched=True,
    ),
    ScaleFault("a launch of another host is left, and lives", Run.DIES, of_another_host, ON_SERVER),
    ScaleFault(
        f"PostgreSQL is stopped for {AWAY_S:g} s", Run.GOES_ON, away, ON_SERVER, untouched=True
    ),
    ScaleFault(
        "SIGKILL to PostgreSQL, which starts again",
        Run.GOES_ON,
        killed,
        ON_SERVER,
        untouched=True,
        quick=(Place.LOCAL,),
    ),
    ScaleFault(
        f"PostgreSQL does not answer for {1.5 * AWAY_S:g} s (half-open connections)",
        Run.GOES_ON,
        silent,
        (Place.ONE, Place.LOCAL),
        untouched=True,
        proxied=True,
    ),
    ScaleFault(
        "SIGKILL to the driver while PostgreSQL is away",
        Run.DIES,
        partial(away_and, signum=_KILL),
        ON_SERVER,
    ),
    ScaleFault(
        "SIGTERM to the driver while PostgreSQL is away",
        Run.INTERRUPTED,
        partial(away_and, signum=_TERM),
        ON_SERVER,
    ),
    ScaleFault(
        f"the network between the nodes is cut for {AWAY_S:g} s",
        Run.GOES_ON,
        cut,
        ONLY_RAY,
        cuts=True,
        parted=True,
    ),
    ScaleFault(
        "the network between the nodes is cut; SIGKILL to the driver",
        Run.DIES,
        cut_and_killed,
        ONLY_RAY,
        cuts=True,
    ),
)


# -- running ---------------------------------------------------------------------------------------


class Surroundings:
    """PostgreSQL, Ray's nodes and forking servers, made when they are needed; a context manager.

    Use it from one thread.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ending = ExitStack()
        self._cluster: Cluster | None = None
        self._nodes: Nodes | None = None
        self._starters: dict[bool, Starter] = {}
        self._cases = 0

    def __enter__(self) -> Surroundings:
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    def cluster(self) -> Cluster:
        if self._cluster is None:
            self._cluster = self._ending.enter_context(a_cluster())
        return self._cluster

    def nodes(self) -> Nodes:
        if self._nodes is None:
            self._nodes = self._ending.enter_context(Nodes())
        self._nodes.restore()
        return self._nodes

    def starter(self, place: Place) -> Starter:
        """What forks the runs, where they belong."""
        on_node = place is Place.RAY
        if on_node not in self._starters:
            wrapper = self.nodes().inside(HEAD) if on_node else ()
            made = Starter(cache=self.folder / "cache", wrapper=wrapper)
            self._starters[on_node] = self._ending.enter_context(made)
        return self._starters[on_node]

    def why_not(self, fault: ScaleFault, place: Place) -> str:
        """Why this cannot be injected here; empty: it can."""
        reasons = [postgresql.why_not()] if place is not Place.FILE else []
        if place is Place.RAY:
            reasons += [ray_nodes.why_not(), nodes.why_no_cut() if fault.cuts else None]
        elif place is not Place.ONE and len(os.sched_getaffinity(0)) < 2:
            reasons.append("two slots need two cores")
        return next(filter(None, reasons), "")

    def run(self, fault: ScaleFault, place: Place) -> Outcome:
        """Inject a fault once, and finish the study."""
        outcome = Outcome(fault.name, place)
        if why := self.why_not(fault, place):
            outcome.skipped = why
            return outcome
        self._cases += 1
        with ExitStack() as stack:
            try:
                self._run(fault, place, outcome, stack)
            except _FAULTS_OF_A_CASE as e:
                outcome.problems.append(str(e) or repr(e))
        return outcome

    def _run(self, fault: ScaleFault, place: Place, outcome: Outcome, stack: ExitStack) -> None:
        cluster = None if place is Place.FILE else self.cluster()
        ray = self.nodes() if place is Place.RAY else None
        env = {
            **(os.environ if ray is None else ray.env),
            **NO_BROWSER,
            "PGPASSWORD": PASSWORD,
            "XDG_CACHE_HOME": str(self.folder / "cache"),
        }
        server, given, proxy = None, None, None
        if cluster is not None:
            server = given = cluster.new()
            if fault.proxied:
                proxy = Proxy(cluster.port)
                stack.callback(proxy.close)
                given = cluster.by_network(server.name, port=proxy.port)
        site = self._site(place, server, given, env)
        stack.callback(site.clean_up)
        run = site.start([_FAST] * _slots(place))
        scene = Scene(site, run, [], outcome, cluster, proxy, ray)
        stack.callback(_stop, scene, cuts=fault.cuts)
        scene.launches = _measuring(site, run, _slots(place))
        scene.look()
        site.hurry()
        trials, launches = site.finished(), site.measured()
        port = site.port(scene.victim)
        fault.inject(scene)
        outcome.problems += check_end(scene.run, fault.of(place))
        outcome.problems += site.check_kept(trials, launches)
        if fault.of(place) is not Run.GOES_ON:
            if ray is not None:
                ray.restore()
            outcome.problems += check_end(site.start([_FAST] * 20), Run.GOES_ON)
        foreign = scene.foreign | ({scene.victim} if fault.parted else set())
        outcome.problems += site.check_whole(not_ours=foreign)
        if fault.parted:
            if fault.cuts:
                self.nodes().renew()  # the others took it for dead
            self.nodes()
            site.wanted += 1
            outcome.problems += check_end(site.start(), Run.GOES_ON) + site.check_whole()
        if ray is None and not port_is_free(port):
            outcome.problems.append(f"port {port} is taken")
        if fault.untouched and (count := scene.launched()) != site.wanted:
            outcome.problems.append(f"{count} launches instead of {site.wanted}")

    def _site(
        self, place: Place, server: Server | None, given: Server | None, env: dict[str, str]
    ) -> Site:
        options = {
            Place.ONE: (),
            Place.FILE: ("--parallel", "2"),
            Place.LOCAL: ("--parallel", "2"),
            Place.RAY: ("--ray", self._nodes.address if self._nodes else "auto"),
        }[place]
        return Site(
            fresh(self.folder / f"case-{self._cases}"),
            self.starter(place),
            wanted=WANTED,
            env=_SLOW,
            server=server,
            options=(*options, *(("--db", str(given)) if given is not None else ())),
            run_env=env,
        )


def _slots(place: Place) -> int:
    return 1 if place is Place.ONE else 2


def _measuring(site: Site, run: Started, count: int) -> list[str]:
    """Wait until a trial is told, so many servers are under way, and one is measured."""
    deadline = time.monotonic() + RUN_S
    while True:
        if run.poll() is not None:
            said = run.err.read_text(errors="replace")
            raise AssertionError(f"the run ended before it measured: {said[-1500:]}")
        if time.monotonic() > deadline:
            raise AssertionError(f"{count} servers were never measured at once")
        if site.is_there() and site.finished():
            found = site.query(_UNDER_WAY)
            if len(found) >= count and any(warm for _, warm in found):
                return [launch_id for launch_id, _ in found]
        time.sleep(0.05)


def _stop(scene: Scene, *, cuts: bool) -> None:
    """End what a case that failed has left."""
    for run in scene.site.runs:
        if run.poll() is None:
            run.signal(signal.SIGKILL)
            with contextlib.suppress(TimeoutError):
                run.wait(RUN_S)
    for process in {p for found in scene.workers.values() for p in found}:
        if scene.nodes is None and _lives(process):
            process.kill()
    if scene.cluster is not None:
        scene.cluster.revive()
    if scene.nodes is not None and cuts:
        scene.nodes.renew()  # the others took it for dead
