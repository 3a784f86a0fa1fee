"""What all launches of a load map have in common, and which n they compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autotune.engine.draft_schedule import schedule_problem
from autotune.errors import UserError
from autotune.results.load_map_ways import MapWay, draft_server, way_params, way_server
from autotune.results.read_load_map import MAX_NUM_SEQS, Setting
from autotune.results.text import point_text
from autotune.results.views import StudyView
from autotune.stats.crossover import Schedule
from autotune.study.schema import FlagValue, ServerSpec, StudySpec
from autotune.study.space import ARM, DRAFT, MNBT, N, Value
from autotune.study.speculative import ADAPTIVE, SCHEDULE
from autotune.study.ways import is_biased
from autotune.tuning.prepare import Prepared, baseline_point

LADDER = (1, 2, 3, 5, 7, 11, 15)
# What a load sweep decides for each launch.
_OF_A_WAY = (N, ARM, f"{DRAFT}{SCHEDULE}", f"{DRAFT}{ADAPTIVE}")
_PREFIX_CACHING = "enable_prefix_caching"
# vLLM's smallest default of max_num_seqs: a study that does not set it has at least this
_DEFAULT_SEQS = 128


@dataclass(frozen=True)
class ArmRival:
    """Another arm of the study than that of the fixed n.

    Attributes:
        prepared: The study with this arm as its only way to draft.
        params: Parameters of its draft.
        candidates: Its n, ascending.
        schedule: Its schedule of n by batch size; None: its n is fixed.
        adaptive: Whether it has adaptive verification.
    """

    prepared: Prepared
    params: Mapping[str, Value]
    candidates: tuple[int, ...]
    schedule: Schedule | None
    adaptive: bool


@dataclass(frozen=True)
class Settled:
    """A study as its load map launches it.

    Attributes:
        prepared: The study, with what the map launches otherwise.
        setting: What all points of the map have in common.
        winners: The n that the study found good, the balanced choice first.
        candidates: The n of at least 1 that can be launched, ascending.
        schedule: The study's own schedule of n by batch size; None: it has none that vLLM takes.
        arms: The other arms of the study, by name.
    """

    prepared: Prepared
    setting: Setting
    winners: tuple[int, ...]
    candidates: tuple[int, ...]
    schedule: Schedule | None
    arms: Mapping[str, ArmRival]

    def prepared_of(self, way: MapWay) -> Prepared:
        """Return the study as a way launches it."""
        base = self.prepared if way.arm is None else self.arms[way.arm].prepared
        spec = base.spec.model_copy(update={"server": way_server(base.spec.server, way)})
        return dataclasses.replace(base, loaded=base.loaded.model_copy(update={"spec": spec}))

    def point_of(self, way: MapWay) -> dict[str, Value]:
        """Return the parameters of a way."""
        return {N: way.n, **way_params(way, self.setting.params, self.setting.arms)}


def settle(
    prepared: Prepared,
    loads: Sequence[int],
    *,
    repeated: bool,
    known: StudyView | None,
    other: str | None,
    fingerprint: str,
    say: Callable[[str], None],
) -> Settled:
    """Decide what a load map launches.

    Args:
        prepared: The study, checked.
        loads: The concurrencies, ascending.
        repeated: Whether some prompts are sent several times.
        known: The study's trials; None: it has none that can be used.
        other: Why they cannot be used, where it has some.
        fingerprint: The study's.
        say: Told of what is launched otherwise than the study says.

    Raises:
        UserError: there is nothing to map, or n = 0 cannot be launched.
    """
    spec, path, most = prepared.spec, prepared.loaded.path, loads[-1]
    whole, arm = prepared, _base_arm(spec, path, known)
    if arm is not None:
        prepared = _of_arm(whole, arm)
        spec = prepared.spec
        say(f"the fixed n are those of arm {arm}")
    if spec.server.speculative is None or N not in spec.space:
        missing = "space" if spec.server.speculative else "server.speculative"
        raise UserError(
            f"{path}: {missing}: a map compares values of {N}; it needs the draft in "
            f"server.speculative, and space.{N}"
        )
    if other is not None:
        say(other)
    best = None if known is None else known.best(balanced=True)
    point = baseline_point(spec) if best is None else {**baseline_point(spec), **best.point}
    own_keys = spec.to_space().params if arm is not None else point
    params = {k: v for k, v in point.items() if k not in _OF_A_WAY and k in own_keys}
    say(
        f"the other parameters are those of the {'baseline' if best is None else 'best trial'}"
        f": {point_text(params) or 'none'}"
    )
    flags = _changed(spec, params, most, repeated=repeated, say=say)
    own = _own_schedule(spec.server)
    if own is not None:
        say(
            f"the study's own {SCHEDULE} is left out of the launches with a fixed n; with `--ways "
            "schedule` it is launched where the numbers suggest no other one"
        )
    if spec.server.speculative.given().get(ADAPTIVE):
        say(f"the study's own {ADAPTIVE} is left out; `--ways adaptive` launches with it")
    # a point is refused that is throttled at every concurrency; at the others its parts say it
    adapted = dataclasses.replace(_adapted(prepared, flags), load=loads[0])
    rivals = _rivals(whole, arm, known, flags, loads[0])
    _raise_mnbt(adapted, params, most, say)
    version = prepared.info.version
    setting = Setting(
        fingerprint=fingerprint,
        vllm=None if version is None else version.partition("+")[0],
        params=params,
        flags=flags,
        weights=whole.weights(),
        arm=arm,
        arms={name: x.params for name, x in rivals.items()},
    )
    good = _winners(known, arm)
    candidates = _feasible(adapted, params, good, say)
    return Settled(adapted, setting, good, candidates, own, rivals)


def _base_arm(spec: StudySpec, path: Path, known: StudyView | None) -> str | None:
    """Return the arm whose fixed n are launched: the best one that has a fixed n.

    Raises:
        UserError: each arm has a schedule or adaptive verification.
    """
    if not spec.server.arms:
        return None
    plain = [name for name, arm in spec.server.arms.items() if not is_biased(arm.given())]
    if not plain:
        raise UserError(
            f"{path}: server.arms: each has a schedule or adaptive verification, so there is no "
            "fixed n to compare with; add an arm without both"
        )
    best = [] if known is None else [known.best(balanced=True), *known.front()]
    good = [str(t.point[ARM]) for t in best if t is not None and t.point.get(N) and ARM in t.point]
    return next((name for name in good if name in plain), plain[0])


def _of_arm(prepared: Prepared, arm: str) -> Prepared:
    """Return the study with an arm as its only way to draft, and the arm's own parameters."""
    spec = prepared.spec
    space = {**spec.space, **dict(spec.to_space().ways[arm].params)}
    # what the baseline says of a draft may be of another arm
    baseline = {
        k: v for k, v in spec.baseline.items() if k not in (N, ARM) and not k.startswith(DRAFT)
    }
    changed = {"server": spec.server.of_arm(arm), "space": space, "baseline": baseline}
    loaded = prepared.loaded.model_copy(update={"spec": spec.model_copy(update=changed)})
    return dataclasses.replace(prepared, loaded=loaded)


def _rivals(
    whole: Prepared,
    base: str | None,
    known: StudyView | None,
    flags: Mapping[str, FlagValue],
    load: int,
) -> dict[str, ArmRival]:
    """Return the other arms of a study, by name.

    Args:
        whole: The study with all its arms.
        base: The arm of the fixed n; None: the study has no arms.
        known: The study's trials, or None.
        flags: Flags that the load sweep launches otherwise.
        load: The lowest concurrency.
    """
    out = {}
    for name in whole.spec.server.arms if base is not None else ():
        if name == base:
            continue
        prepared = _of_arm(whole, name)
        server = prepared.spec.server
        point = baseline_point(prepared.spec)
        trials = [] if known is None else [known.best(balanced=True), *known.front()]
        mine = [t.point for t in trials if t and t.point.get(ARM) == name and t.point.get(N)]
        own = {k: v for k, v in {**point, **(mine[0] if mine else {})}.items() if k in point}
        out[name] = ArmRival(
            prepared=dataclasses.replace(_with_flags(prepared, server, flags), load=load),
            params={k: v for k, v in own.items() if k.startswith(DRAFT)},
            candidates=tuple(_drafts(prepared.spec)),
            schedule=_own_schedule(server),
            adaptive=bool(server.speculative and server.speculative.given().get(ADAPTIVE)),
        )
    return out


def _own_schedule(server: ServerSpec) -> Schedule | None:
    """Return the server's own schedule, or None."""
    given = server.speculative.given().get(SCHEDULE) if server.speculative else None
    if not given or schedule_problem(given) is not None:
        return None
    ranges = tuple(sorted((int(a), int(b), int(n)) for a, b, n in given))
    return ranges if any(n for _, _, n in ranges) else None


def _changed(
    spec: StudySpec,
    params: dict[str, Value],
    most: int,
    *,
    repeated: bool,
    say: Callable[[str], None],
) -> dict[str, FlagValue]:
    """Return the flags that the map launches otherwise; takes them out of ``params``."""
    flags: dict[str, FlagValue] = {}

    def change(name: str, value: int | bool, why: str) -> None:
        params.pop(name, None)
        flags[name] = value
        words = str(value).lower() if isinstance(value, bool) else value
        say(f"{name.replace('_', '-')} is {words} in this map: {why}")

    seqs = spec.settings(params).get(MAX_NUM_SEQS)
    seqs = seqs if isinstance(seqs, int) and not isinstance(seqs, bool) else _DEFAULT_SEQS
    if seqs < most:
        change(MAX_NUM_SEQS, most, f"with {seqs}, requests would wait at higher loads")
    caching = spec.settings(params).get(_PREFIX_CACHING)
    if repeated and caching is not False:
        change(_PREFIX_CACHING, value=False, why="too few prompts, some are sent twice")
    return flags


def _raise_mnbt(
    adapted: Prepared, params: dict[str, Value], most: int, say: Callable[[str], None]
) -> None:
    """Take the next larger MNBT at which anything can be compared, where that needs one.

    Raises:
        UserError: there is none.
    """

    def why_not(point: Mapping[str, Value]) -> str | None:
        if (why := adapted.infeasible({N: 0, **point})) is not None:
            return why
        drafts = [adapted.infeasible({N: n, **point}) for n in _drafts(adapted.spec)]
        return drafts[0] if drafts and None not in drafts else None

    if (why := why_not(params)) is None:
        return
    values = adapted.spec.space[MNBT].values() if MNBT in adapted.spec.space else None
    for value in values or ():
        above = isinstance(value, int) and value > int(params.get(MNBT, 0))
        if above and why_not({**params, MNBT: value}) is None:
            params[MNBT] = value
            say(f"MNBT is {value} in this map: {why}")
            return
    raise UserError(f"{adapted.loaded.path}: nothing can be launched at a load of {most}: {why}")


def _feasible(
    adapted: Prepared,
    params: Mapping[str, Value],
    winners: Sequence[int],
    say: Callable[[str], None],
) -> tuple[int, ...]:
    """Return which n of at least 1 can be launched, ascending; say which cannot.

    Raises:
        UserError: the space has none.
    """
    wanted = sorted({*_drafts(adapted.spec), *winners})
    if not wanted:
        raise UserError(
            f"{adapted.loaded.path}: space.{N}: has no value of at least 1, so nothing to map"
        )
    reasons = {n: adapted.infeasible({N: n, **params}) for n in wanted}
    if bad := {n: why for n, why in reasons.items() if why is not None}:
        n, why = next(iter(bad.items()))
        rest = f" ({len(bad) - 1} larger ones likewise)" if len(bad) > 1 else ""
        say(f"n = {n} is never launched: {why}{rest}")
    return tuple(n for n, why in reasons.items() if why is None)


def _winners(known: StudyView | None, arm: str | None) -> tuple[int, ...]:
    """Return the n that the study found good with an arm, the balanced choice first."""
    if known is None:
        return ()
    found = [known.best(balanced=True), *known.front()]
    ns = [t.point[N] for t in found if t is not None and t.point.get(ARM) == arm]
    return tuple(dict.fromkeys(n for n in ns if isinstance(n, int) and n > 0))


def _drafts(spec: StudySpec) -> list[int]:
    """Return the values of n in the space that are nearest to the ladder's, ascending."""
    values = [v for v in spec.space[N].values() or () if isinstance(v, int) and v > 0]
    if not values:
        return []
    return sorted({min(values, key=lambda v: (abs(v - n), v)) for n in LADDER if n <= max(values)})


def _adapted(prepared: Prepared, flags: Mapping[str, FlagValue]) -> Prepared:
    """Return the study with other flags, and a plain fixed n."""
    return _with_flags(prepared, draft_server(prepared.spec.server, None, plain=True), flags)


def _with_flags(prepared: Prepared, server: ServerSpec, flags: Mapping[str, FlagValue]) -> Prepared:
    server = server.model_copy(update={"flags": {**server.flags, **flags}})
    spec = prepared.spec.model_copy(update={"server": server})
    return dataclasses.replace(prepared, loaded=prepared.loaded.model_copy(update={"spec": spec}))
