"""The process of one slot: launches and measures the trials that it is given, one at a time.

With `server.ahead` it asks the driver what follows on its slot, and starts those servers, too.

It is bound to the slot's cores and sees the slot's GPUs only. A process of its own, since the
clients of several servers in one Python would wait for each other. It plans nothing and writes
nothing: what is to be written goes to the driver, which alone has the database, and a launch goes
on when the driver has written it down. It ends with its parent, which is the driver or on another
host an actor of Ray, and its servers with it. A thread tells that it lives.

SIGTERM ends its server, as Ctrl-C ends that of a run with one slot.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from socket import gethostname
from typing import Any

import psutil

from autotune.bench.interference import IdleBaseline, MachineState, disturbed, take_idle_baseline
from autotune.bench.objectives import study_objectives
from autotune.bench.sample import Sample
from autotune.bench.server_metrics import ServerStats
from autotune.bench.session import Measuring
from autotune.engine.command import LaunchPlan
from autotune.engine.compile_cache import CompileCache
from autotune.engine.launch_stages import Stages
from autotune.errors import AutotuneError, TrialFailure, UserError
from autotune.serving.interrupts import held_back
from autotune.serving.process_tree import Identity, boot_id
from autotune.serving.resolve import model_resolver
from autotune.serving.server import Server
from autotune.serving.supervisor import PR_SET_PDEATHSIG
from autotune.storage.lease import Place
from autotune.storage.schema import LaunchRow
from autotune.study.weights import shown_weights
from autotune.tuning import late_outcomes
from autotune.tuning.executor import Runner
from autotune.tuning.late_outcomes import LateOutcome
from autotune.tuning.launcher import Launcher
from autotune.tuning.ledger import Ledger
from autotune.tuning.load_map_point import SweepPoint, SweepRunner
from autotune.tuning.prepare import Prepared
from autotune.tuning.progress import OUTSIDE, At
from autotune.tuning.slot_messages import BEAT_S, LEASE_S, Answer, Beat, Call, Done, Raised, Setup
from autotune.tuning.supervise import signals
from autotune.tuning.tools import Tools
from autotune.tuning.trial import Trial, TrialRunner

# Between two reports of how many requests are done: each takes time from the client.
_REPORT_S = 0.2


class Refused(Exception):
    """The driver could not do what was asked, and ends the run."""


class Driver:
    """The driver, as the process of a slot sees it.

    Args:
        connection: To the driver.

    Attributes:
        servers: Servers whose lease is renewed as long as this process lives.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._calls = 0
        self._sending = threading.Lock()
        self.servers: list[Server] = []

    def receive(self) -> Any:
        """Wait for what the driver sends next.

        Raises:
            EOFError: the driver is gone.
        """
        return self._connection.recv()

    def send(self, message: Call | Done | Raised | Beat) -> None:
        """Send a message as a whole: an interrupt waits until it is sent."""
        with held_back(all_of_them=True), self._sending:
            self._connection.send(message)

    def offer(self, message: Call | Beat) -> None:
        """Send a message unless the driver has not read the last ones, as while it waits itself.

        Nothing is held up then: requests may be under way, and servers have leases.
        """
        with held_back(all_of_them=True):
            if self._sending.acquire(blocking=False):
                try:
                    room = select.poll()
                    room.register(self._connection.fileno(), select.POLLOUT)
                    if room.poll(0):
                        self._connection.send(message)
                finally:
                    self._sending.release()

    def beat(self) -> None:
        """Tell from now on, in a thread, that this process lives: the driver, and supervisors."""

        def tell() -> None:
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # the main thread's
            with contextlib.suppress(OSError):  # the driver is gone, and this process soon
                while True:
                    time.sleep(BEAT_S)
                    self.offer(Beat())
                    for server in [*self.servers]:
                        if not server.renew():
                            self.servers.remove(server)

        self.send(Beat())  # before anything else
        threading.Thread(target=tell, name="autotune-beat", daemon=True).start()

    def tell(self, name: str, *args: Any) -> None:
        """Call something without waiting for it."""
        self.send(Call(name, args))

    def ask(self, name: str, *args: Any) -> Any:
        """Call something, and return what it returns; an interrupt waits for that.

        Raises:
            Refused: it raised an error there.
            EOFError: the driver is gone.
        """
        with held_back(all_of_them=True):
            self._calls += 1
            with self._sending:
                self._connection.send(Call(name, args, self._calls))
            answer = self._connection.recv()
        if not isinstance(answer, Answer) or answer.refused:
            raise Refused(name)
        return answer.value


class RemoteLedger(Ledger):
    """A ledger that the driver keeps.

    Args:
        driver: The driver.
        variables: Variables that the slot sets, as :attr:`Setup.variables` has them: a launch is
            written down with those of the user's own environment.
        worker: Name of the slot's worker on this host.
    """

    def __init__(self, driver: Driver, variables: Mapping[str, str | None], worker: str) -> None:
        self._driver = driver
        self._variables = variables
        self._place = Place(gethostname(), worker, boot_id())

    def check(self) -> None:
        """Check that what is written is kept."""
        self._driver.ask("check")

    def plan(
        self,
        launch_id: str,
        trial: int,
        attempt: int,
        plan: LaunchPlan,
        machine: Mapping[str, Any],
        log_path: Path,
        place: Place | None = None,
    ) -> None:
        """Write a launch down as one of this host; nothing of it is started yet."""
        public = {k: v for k, v in plan.public_env.items() if k not in self._variables}
        public |= {k: v for k, v in self._variables.items() if v is not None}
        kept = replace(plan, env={}, public_env=dict(sorted(public.items())), api_key="")
        place = self._place if place is None else place
        self._driver.ask("plan", launch_id, trial, attempt, kept, dict(machine), log_path, place)

    def started(self, identity: Identity) -> None:
        """Write down which processes a launch has."""
        self._driver.ask("started", identity)

    def ready(self, launch_id: str, version: str | None) -> None:
        """Write down that a server answers ``/health``, and its version."""
        self._driver.ask("ready", launch_id, version)

    def failed(self, launch_id: str, failure: TrialFailure, log_tail: Sequence[str]) -> None:
        """Write down why a launch has no numbers."""
        self._driver.ask("failed", launch_id, failure, list(log_tail))

    def ended(self, launch_id: str, exit_code: int | None, killed: int) -> None:
        """Write down that nothing of a server is left."""
        self._driver.ask("ended", launch_id, exit_code, killed)

    def give(self, launch_id: str, trial: int, attempt: int) -> None:
        """Write down which trial a prelaunched server belongs to."""
        self._driver.ask("give", launch_id, trial, attempt)

    def event(self, launch_id: str, trial: int, what: str, at: float | None = None) -> None:
        """Write down what happened; nothing waits for it, since requests may be under way."""
        self._driver.tell("event", launch_id, trial, what, time.time() if at is None else at)

    def first_request(self, launch_id: str) -> float | None:
        """Return the seconds from the begin of the warm-up to the end of its first request."""
        found: float | None = self._driver.ask("first_request", launch_id)
        return found

    def time(self, launch_id: str, stages: Stages, cache: CompileCache | None) -> None:
        """Write down where the time of a launch went, and what was compiled in it."""
        self._driver.ask("time", launch_id, stages, cache)

    def launches(self, trial: int) -> list[LaunchRow]:
        """Return the launches of a trial, oldest first."""
        return [LaunchRow(**columns) for columns in self._driver.ask("launches", trial)]


class RemoteStore:
    """The part of a store that a trial needs (:class:`autotune.tuning.trial.TrialStore`)."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._samples: dict[str, list[list[Sample]]] = defaultdict(list)
        self.requests = self
        self.launches = self

    def add(self, launch_id: str, samples: Sequence[Sample]) -> None:
        """Store the requests of one phase; nothing waits for it, since measuring goes on."""
        self._samples[launch_id].append(list(samples))
        self._driver.tell("keep", launch_id, list(samples))

    def measured(
        self,
        launch_id: str,
        stats: ServerStats,
        values: Mapping[str, float],
        intervals: Mapping[str, tuple[float | None, float | None]],
        quality: Mapping[str, Any],
    ) -> None:
        """Keep a complete measurement, on this host's disk until it is written down."""
        samples = self._samples.pop(launch_id, [])
        late_outcomes.keep(
            LateOutcome(launch_id, samples, stats, dict(values), dict(intervals), dict(quality))
        )
        self._driver.ask("measured", launch_id, stats, values, intervals, quality)
        late_outcomes.forget(launch_id)

    def idle_baselines(self, study: str, machine: Mapping[str, Any]) -> list[float]:
        """Return none: see :func:`tools_of_slot`."""
        return []


class RemoteSweep:
    """The part of a store that a point of a load sweep needs.

    A part that the driver did not write down is measured again: it takes less than a launch.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.requests = self
        self.load_maps = self

    def add(self, launch_id: str, samples: Sequence[Sample]) -> None:
        """Store the requests of one phase; nothing waits for it, since measuring goes on."""
        self._driver.tell("keep", launch_id, list(samples))

    def add_load(self, launch_id: str, point: int, **part: Any) -> None:
        """Keep one measured part."""
        self._driver.ask("part", launch_id, point, part)


class RemoteProgress:
    """The part of :class:`autotune.tuning.progress.Progress` that a trial needs."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._reported = 0.0

    def stage(self, at: At, text: str) -> None:
        """Report the begin of a stage."""
        self._reported = 0.0
        self._driver.tell("stage", at, text)

    def progress(self, at: At, done: int, total: int) -> None:
        """Report how many requests are done, not too often."""
        now = time.monotonic()
        if now - self._reported >= _REPORT_S or done == total:
            self._reported = now
            self._driver.offer(Call("progress", (at, done, total)))

    def message(self, text: str, at: At = OUTSIDE) -> None:
        """Report one line."""
        self._driver.tell("message", text, at)


def tools_of_slot(
    owner: int, driver: int | None = None, servers: list[Server] | None = None
) -> Tools:
    """Return what a slot measures with.

    Servers of other slots have cores and GPUs of their own, so their load is not counted. The
    driver's may be, and is known, as is that of an actor. The fixed computation of the interference
    check is done, but compared with no earlier one: the servers of other slots use the same memory
    and caches, which makes it slower.

    Args:
        owner: Pid of the process that owns the servers: the driver, or an actor of Ray.
        driver: Pid of the driver, where that is another process of this host.
        servers: Gets the servers, which have a lease; None: they have none.
    """
    known = [psutil.Process(owner)]
    with contextlib.suppress(psutil.Error):  # it just ended
        known += [psutil.Process(driver)] if driver not in (None, owner) else []

    def baseline(_earlier: Sequence[float]) -> IdleBaseline:
        return take_idle_baseline()

    def why_disturbed(state: MachineState, _earlier: Sequence[float]) -> str | None:
        return disturbed(state, ())

    def server(*args: Any, **kwargs: Any) -> Server:
        if servers is None:
            return Server(*args, owner=owner, **kwargs)
        servers.append(Server(*args, owner=owner, lease_s=LEASE_S, **kwargs))
        return servers[-1]

    return Tools(
        server=server,
        take_idle_baseline=baseline,
        disturbed=why_disturbed,
        measuring=partial(Measuring, known=tuple(known)),
    )


def prepared_of(setup: Setup) -> Prepared:
    """Return the study of a slot."""
    return Prepared(
        setup.loaded,
        setup.info,
        setup.workload,
        setup.confirmation,
        study_objectives(setup.loaded),
        model_resolver(setup.loaded, setup.info),
    )


def runner_of(setup: Setup, driver: Driver) -> tuple[Launcher, Runner[Any]]:
    """Return what runs the trials of a slot, or points; the launcher is to be entered."""
    prepared, slot = prepared_of(setup), setup.slot
    tools = tools_of_slot(os.getppid(), setup.driver, driver.servers)
    ledger = RemoteLedger(driver, setup.variables, str(slot.number))
    launcher = Launcher(
        prepared, ledger, setup.logs, tools=tools, slot=slot, neighbors=setup.neighbors
    )
    progress = RemoteProgress(driver)

    def weights() -> dict[str, str]:
        there: dict[str, str] = driver.ask("weights")
        if slot.host and (here := prepared.weights()) != there:
            raise UserError(
                f"{slot.name}: the weights there are no longer those of the driver's host "
                f"({shown_weights(here)} instead of {shown_weights(there)}); restore them, and run "
                "the same command again to resume"
            )
        return there

    if setup.sweep is not None:
        points = SweepRunner(
            prepared,
            setup.sweep,
            RemoteSweep(driver),
            ledger,
            launcher,
            progress,
            lambda point: driver.ask("missing", point),
            tools=tools,
        )
        return launcher, points
    trials = TrialRunner(
        prepared,
        RemoteStore(driver),
        ledger,
        launcher,
        progress,
        weights,
        slot=slot.number,
        tools=tools,
    )
    return launcher, trials


def serve(driver: Driver) -> None:
    """Run trials, or points of a load sweep, until the driver sends None."""
    launcher, runner = runner_of(driver.receive(), driver)
    with launcher:
        while isinstance(job := driver.receive(), Trial | SweepPoint):
            driver.send(Done(job.number, runner.run(job, partial(driver.ask, "ahead", job.number))))


def main(fd: int, owner: int, serve: Callable[[Driver], None] = serve) -> None:
    """Be the process of a slot.

    Args:
        fd: Number of the file of the socket to the driver.
        owner: Pid of the parent: the driver, or an actor of Ray.
        serve: What is done; tests do something else.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != owner:
        return  # it died before the line above
    os.set_inheritable(fd, False)  # or a server would keep it open
    driver = Driver(Connection(fd))
    driver.beat()
    try:
        with signals():
            serve(driver)
    except (KeyboardInterrupt, Refused, EOFError, BrokenPipeError):
        sys.exit(1)
    except AutotuneError as e:
        driver.send(Raised(e))
    except Exception:  # noqa: BLE001 – the driver says it
        driver.send(Raised(RuntimeError(traceback.format_exc())))
