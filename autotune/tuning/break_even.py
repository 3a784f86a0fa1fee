"""How good must a draft be to pay at each load? Launches with a given acceptance.

`autotune map --break-even` launches n = 0, then a few n twice each: once with a low acceptance that
vLLM plays, and once with a high one. Each launch serves all loads, as in a load sweep. n = 0 is
launched once more at the end, so that a machine that grows faster or slower is seen.
:mod:`autotune.stats.break_even` says what these launches give. Then two points next to the line are
launched, one just below it and one just above.

The weights may be random, too, where the study is a rehearsal. vLLM plays no acceptance on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from autotune.engine.given_acceptance import with_acceptance
from autotune.errors import NothingUsable, UserError
from autotune.results.break_even import BreakEvenView
from autotune.results.load_map_ways import (
    CHECK,
    LABEL,
    RATES,
    MapWay,
    WayKind,
    counted,
    way_of,
)
from autotune.results.read_break_even import break_even_view
from autotune.stats.acceptance_curve import from_conditional, from_length
from autotune.storage.location import Database
from autotune.storage.names import break_even_name
from autotune.storage.schema import MapPointRow
from autotune.storage.store import Store
from autotune.study.speculative import FROM_TEXT
from autotune.tuning.load_map import SweepRun
from autotune.tuning.load_map_choice import NOTHING
from autotune.tuning.load_map_setting import Settled
from autotune.tuning.load_map_state import SweepState, Underway
from autotune.tuning.prepare import Prepared
from autotune.tuning.progress import Progress
from autotune.tuning.supervise import StopReason, run_on
from autotune.tuning.tools import Tools, real

# Conditional acceptance of the two launches of an n. 1 / L is then far apart, and the break-even of
# usual steps lies between them: drafting costs a step a fifth more, or several times as much.
LOW, HIGH = 0.2, 0.8
NO_DRAFTS = 2  # launches of n = 0


def map_break_even(
    prepared: Prepared,
    *,
    database: Database,
    loads: Sequence[int],
    launches: int,
    decay: float,
    timeout_s: float | None,
    progress: Progress,
    tools: Tools | None = None,
) -> tuple[BreakEvenView, StopReason]:
    """Bring the break-even map of a study to ``launches`` values of n, from wherever it is.

    Args:
        prepared: The study, checked.
        database: Database; its tables are made if missing. It need not have the study.
        loads: Concurrencies, different ones.
        launches: Most n, n = 0 included.
        decay: Factor on the conditional acceptance from one position to the next, by which drafts
            are named.
        timeout_s: Seconds after which no launch begins.
        progress: Told of what happens.
        tools: What servers are made and measured with; None: this machine's.

    Raises:
        UserError: nothing can be launched, as on a CPU, or the database cannot be used.
        MachineError: the disk is full, the database was damaged or stayed locked.
        NothingUsable: there is no number of n = 0, so nothing to compare with.
        KeyboardInterrupt: SIGINT, SIGTERM or SIGHUP; the server is gone, and the map resumes.
    """
    spec, path = prepared.spec, prepared.loaded.path
    if not spec.workload.ignore_eos:
        raise UserError(
            f"{path}: workload.ignore_eos: must be true for a break-even map, because texts under "
            "a given acceptance may end anywhere"
        )
    draft = spec.server.speculative
    if draft is not None and draft.method in FROM_TEXT:
        raise UserError(
            f"{path}: server.speculative.method: {draft.method} drafts only where the text "
            "repeats, so a given acceptance by position does not say how much it gives; a "
            "break-even map needs a draft with a model"
        )
    used = real(tools)
    deadline = None if timeout_s is None else used.clock() + timeout_s
    name = break_even_name(spec.name)

    def go(store: Store) -> tuple[BreakEvenView, StopReason]:
        def choose(run: SweepRun[BreakEvenView]) -> BreakEvenChooser:
            return BreakEvenChooser(
                store, run.settled, run.loads, launches, run.view, progress.message
            )

        def show(run: SweepRun[BreakEvenView]) -> BreakEvenView:
            return break_even_view(store, run.loaded, run.fingerprints, run.setting, decay)

        run = SweepRun(
            prepared,
            store,
            sorted(loads),
            kept_as=name,
            launched_as=name,
            choose=choose,
            show=show,
            deadline=deadline,
            progress=progress,
            tools=used,
        )
        with run.launcher:
            reason = run.go()
        return run.view(), reason

    return run_on(database, progress, go)


def spread(candidates: Sequence[int], count: int) -> tuple[int, ...]:
    """Return so many of ascending n, the smallest and the largest among them.

    >>> spread((1, 2, 3, 5, 7, 11, 15), 4)
    (1, 3, 7, 15)
    >>> spread((1, 3, 7), 1)
    (3,)
    """
    if count >= len(candidates):
        return tuple(candidates)
    if count == 1:
        return (candidates[len(candidates) // 2],)
    last = len(candidates) - 1
    return tuple(candidates[i * last // (count - 1)] for i in range(count))


class BreakEvenChooser:
    """Chooses the points of one break-even map, from what was measured.

    Args:
        store: Database.
        settled: The study as the map launches it.
        loads: Concurrencies, ascending.
        launches: Most n, n = 0 included.
        view: Returns what the map amounts to by now.
        say: Told of what is not launched, and why.

    Raises:
        UserError: no n can be launched with a given acceptance.
    """

    def __init__(
        self,
        store: Store,
        settled: Settled,
        loads: Sequence[int],
        launches: int,
        view: Callable[[], BreakEvenView],
        say: Callable[[str], None],
    ) -> None:
        self.store, self.settled = store, settled
        self.setting, self.p = settled.setting, settled.prepared
        self.study = self.p.spec.name
        name = break_even_name(self.study)
        self.state = SweepState(store, name, name, self.setting, loads)
        self._view, self._say = view, say
        reasons = {n: self._why_not(_played(n, LOW)) for n in settled.candidates}
        able = [n for n, why in reasons.items() if why is None]
        if not able:
            why = next(iter(reasons.values()), "no n can be launched")
            raise UserError(f"{self.p.loaded.path}: map --break-even: {why}")
        self.ns = spread(able, launches - 1)

    def _why_not(self, way: MapWay) -> str | None:
        return self.settled.prepared_of(way).infeasible(self.settled.point_of(way))

    def next(self, now: Underway = NOTHING) -> MapPointRow | None:
        """Return the point to launch: n = 0, each n twice, n = 0 again, and two next to the line.

        Args:
            now: What is being launched: nothing, as there is one slot.

        Raises:
            NothingUsable: n = 0 gave no numbers.
        """
        known = self.state.points()
        return (
            self._none(known, 1)
            or self._pairs(known)
            or self._none(known, NO_DRAFTS)
            or self._check(known)
        )

    def _none(self, known: Sequence[MapPointRow], repeat: int) -> MapPointRow | None:
        """Return a launch of n = 0 that is not whole.

        Raises:
            NothingUsable: the first one failed.
        """
        own = [x for x in known if x.n == 0]
        if len(own) < repeat:
            return self._add(MapWay(0), repeat=None if repeat == 1 else repeat)
        point = own[repeat - 1]
        why = self.state.failure(point)
        if why is not None and repeat == 1:
            raise NothingUsable(
                f"{self.study}: n = 0 gave no numbers, so there is nothing to compare with: "
                f"{why[1]}"
            )
        return point if self.state.missing(point) else None

    def _pairs(self, known: Sequence[MapPointRow]) -> MapPointRow | None:
        """Return the next launch of an n with a low or a high acceptance."""
        for n in self.ns:
            for way in (_played(n, LOW), _played(n, HIGH)):
                point = next((x for x in known if way_of(x) == way), None)
                if point is None:
                    return self._add(way)
                if self.state.missing(point):
                    return point
        return None

    def _check(self, known: Sequence[MapPointRow]) -> MapPointRow | None:
        """Return a launch next to the line that is not whole; they are chosen once."""
        own = [x for x in known if CHECK in x.setting]
        if begun := [x for x in own if self.state.missing(x)]:
            return begun[0]
        plans = self._view().check_plans()
        if not plans and not own:
            self._say("nothing is checked: at no concurrency a draft can reach the line")
        # what was launched of the line as it was then is not launched again
        for plan in plans[len(own) :]:
            rates = from_length(plan.length, 1.0, plan.n).rates
            way = MapWay(plan.n, rates=tuple(round(x, 6) for x in rates))
            return self._add(way, check=plan.load)
        return None

    def _add(
        self, way: MapWay, *, repeat: int | None = None, check: int | None = None
    ) -> MapPointRow:
        setting = self.setting.plain() | counted(self.p.spec)
        if way.rates is not None:
            server = with_acceptance(self.p.spec.server, way.rates)
            setting |= {RATES: list(way.rates)}
            setting |= {LABEL: server.played.label} if server.played is not None else {}
        if check is not None:
            setting |= {CHECK: check}
        kind = None if way.kind is WayKind.FIXED else str(way.kind)
        name = break_even_name(self.study)
        self.state.changed()
        return self.store.load_maps.add_point(name, setting, way.n, None, way=kind, repeat=repeat)


def _played(n: int, conditional: float) -> MapWay:
    return MapWay(n, rates=tuple(round(x, 6) for x in from_conditional(conditional, n).rates))
