"""Two studies against each other: an upgrade, another GPU, another draft; what got better or worse?

How their ratios are made and judged is in :mod:`autotune.results.ratios`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from autotune.errors import UserError
from autotune.results.environment import Environment, environments, values_of
from autotune.results.ratios import (
    CONFIDENCE,
    Difference,
    Finding,
    Point,
    around,
    finding,
    paired_ratio,
    scatters,
)
from autotune.results.recomputed import Recomputed
from autotune.results.standing import LEAST_DEGREES, launched, origin_of, with_points
from autotune.results.text import plain
from autotune.results.trials import study_view
from autotune.results.views import StudyView, TrialView, throttled_lines
from autotune.stats import Estimate, LaunchVariance, Scatter
from autotune.storage.location import Database, is_same, parse_named
from autotune.storage.records import attrs_of
from autotune.storage.store import Store, opened
from autotune.storage.trials import State, TrialLike
from autotune.study import differences
from autotune.study.differences import contents, files_of, fingerprints, setting_text
from autotune.study.files import LoadedStudy
from autotune.study.schema import StudySpec
from autotune.study.space import ARM, DRAFT, MNBT, N, Value, canonical
from objectives import Objective

_PHASE = "measure"
_REAL = "none: weights and acceptance are real"

Key = tuple[tuple[str, Value | None], ...]  # of a point, for all parameters that either searched


@dataclass(frozen=True)
class Where:
    """One of the two studies, as a user names it.

    Attributes:
        database: The database.
        study: Name of the study; None: the only one in it.
    """

    database: Database
    study: str | None

    @classmethod
    def parse(cls, text: str, study: str | None = None) -> Where:
        """Parse ``DB`` or ``DB:STUDY``; DB is a file, whose name may have a colon, or a URL.

        Raises:
            UserError: there is no such file, or the study is named twice.
        """
        if (found := parse_named(text)) is not None:
            database, named = found
            if named is not None and study is not None:
                raise UserError(f"{plain(text)[:200]}: names its study already")
            return cls(database, study if named is None else named)
        raise UserError(f"{plain(text)[:200]}: no such database; give FILE.db or FILE.db:STUDY")


@dataclass(frozen=True)
class Side:
    """One of the two studies with what was measured of it.

    Attributes:
        name: As the user names it: ``FILE.db:STUDY``.
        loaded: The study's file, as it was run.
        view: Trials and verdict of the study.
        points: The measured points.
        variance: Launch-to-launch variance, by objective name.
        prompts: Hash of the file of prompts; None: there is none, or it was changed since.
        lengths: Tokens of the prompts, by index.
        weights: Hashes of the measured weights, of ``target`` and ``draft``.
        environments: Variables of the user's environment that its trials were measured with.
    """

    name: str
    loaded: LoadedStudy
    view: StudyView
    points: Sequence[Point]
    variance: Mapping[str, LaunchVariance]
    prompts: str | None
    lengths: Mapping[int, int]
    weights: Mapping[str, str]
    environments: Sequence[Environment]

    @property
    def spec(self) -> StudySpec:
        """Contents of the study's file."""
        return self.loaded.spec


@dataclass(frozen=True)
class Pair:
    """One point in both studies.

    Attributes:
        point: With every parameter that either study searched.
        launches: Number of launches in A and in B.
        differences: By objective name, for objectives with numbers in both.
        lossy: Whether its launches in A or B accept drafts that the target would not have written.
    """

    point: Mapping[str, Value]
    launches: tuple[int, int]
    differences: Mapping[str, Difference]
    lossy: bool = False


@dataclass(frozen=True)
class Winners:
    """The best point of each study by one objective.

    Attributes:
        a: Best trial of A.
        b: Best trial of B.
        difference: Ratio of the objective's values.
    """

    a: TrialView
    b: TrialView
    difference: Difference


@dataclass(frozen=True)
class Comparison:
    """Two studies against each other; see the module.

    Attributes:
        a: The first one, such as before a change.
        b: The second one.
        objectives: The compared objectives.
        threshold: Share of a value that does not matter.
        different: Differences between the studies: what, in A, in B.
        incomparable: Why their figures cannot be compared, in words; empty: they can.
        pairs: Points that both measured.
        together: All points together, by objective name; empty with fewer than two points.
        winners: Best points, by objective name.
        lost: Trials of A with numbers whose points failed in B.
        throttled: Lines about trials that vLLM throttled, which are left out; each begins with the
            study's letter.
    """

    a: Side
    b: Side
    objectives: Sequence[Objective]
    threshold: float
    different: Sequence[tuple[str, str, str]]
    incomparable: Sequence[str]
    pairs: Sequence[Pair]
    together: Mapping[str, Difference]
    winners: Mapping[str, Winners]
    lost: Sequence[TrialView]
    throttled: Sequence[str] = ()

    def finding(self, objective: Objective) -> Finding:
        """Return what all figures of an objective show together."""
        if self.incomparable:
            return Finding.UNDECIDED
        deciding = [self.winners[objective.name].difference] if self._has_winners(objective) else []
        pairs = [p.differences[objective.name] for p in self.pairs if self._has(p, objective)]
        deciding += [self.together[objective.name]] if objective.name in self.together else pairs
        found = [d.finding for d in deciding if d.finding is not None]
        every = {*found, *(d.finding for d in pairs)}
        if Finding.WORSE in every:
            return Finding.WORSE
        if Finding.BETTER in every:
            return Finding.BETTER
        return Finding.EQUAL if found and set(found) == {Finding.EQUAL} else Finding.UNDECIDED

    def _has(self, pair: Pair, objective: Objective) -> bool:
        return objective.name in pair.differences

    def _has_winners(self, objective: Objective) -> bool:
        return objective.name in self.winners

    @property
    def regression(self) -> bool:
        """True if B is certainly worse in an objective, by more than the threshold."""
        return any(self.finding(o) is Finding.WORSE for o in self.objectives)

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as plain data; ratios are B over A."""
        return {
            "a": _side_json(self.a),
            "b": _side_json(self.b),
            "threshold": self.threshold,
            "comparable": not self.incomparable,
            "incomparable": list(self.incomparable),
            "different": [{"what": w, "a": a, "b": b} for w, a, b in self.different],
            "pairs": [
                {
                    "params": dict(p.point),
                    "launches": list(p.launches),
                    "lossy": p.lossy,
                    "objectives": {k: _difference_json(d) for k, d in p.differences.items()},
                }
                for p in self.pairs
            ],
            "together": {k: _difference_json(d) for k, d in self.together.items()},
            "winners": {
                k: {
                    "a": {"trial": w.a.number, "params": dict(w.a.point)},
                    "b": {"trial": w.b.number, "params": dict(w.b.point)},
                    **_difference_json(w.difference),
                }
                for k, w in self.winners.items()
            },
            "failed_in_b": [
                {"trial": t.number, "params": dict(t.point), "failure_kind": t.failure_kind}
                for t in self.lost
            ],
            "throttled": {
                letter: [
                    {"trial": t.number, "peak": t.running_peak, "asked": t.running_asked}
                    for t in side.view.trials
                    if t.throttled
                ]
                for letter, side in (("a", self.a), ("b", self.b))
            },
            "verdict": {o.name: self.finding(o) for o in self.objectives},
            "regression": self.regression,
        }


def _side_json(side: Side) -> dict[str, Any]:
    return {
        "name": side.name,
        "study": side.view.name,
        "vllm": side.view.vllm_version,
        "machine": side.view.machine,
        "created": side.view.created.isoformat(),
        "points": len(side.points),
        **({"rehearsal": side.view.rehearsal} if side.view.rehearsal else {}),
    }


def _difference_json(d: Difference) -> dict[str, Any]:
    return {"ratio": asdict(d.ratio), "finding": d.finding}


def compare(
    a: Where, b: Where, *, threshold: float = 0.05, objective: str | None = None
) -> Comparison:
    """Compare two studies.

    Args:
        a: The first one.
        b: The second one.
        threshold: Share of a value that does not matter.
        objective: Compare this one only.

    Raises:
        UserError: one cannot be read, both are one, or they have no such objective in common.
    """
    with opened(a.database) as store_a, opened(b.database) as store_b:
        one, two = store_a.pick_study(a.study), store_b.pick_study(b.study)
        if one == two and is_same(a.database, b.database):
            raise UserError(f"{a.database}:{one}: is compared with itself; name another study")
        side_a, side_b = _side(store_a, a.database, one), _side(store_b, b.database, two)
    return compared(side_a, side_b, _common(side_a, side_b, objective), threshold)


def _side(store: Store, database: Database, name: str) -> Side:
    loaded, row = store.load_study(name)
    view = study_view(store, name)
    stored = store.stored_study(name).trials
    found = Recomputed(store, loaded.spec, view.objectives).trials(stored)
    # trials that were taken from another study are launches of that one
    own = [t for t in with_points(found, loaded.spec.to_space()) if origin_of(t) is None]
    shown = {t.number: t for t in view.trials}
    groups: dict[int, list[TrialLike]] = {}
    for t in own:
        again = shown[t.number].again
        usable = shown[t.number].may_win
        if t.state == State.COMPLETE and usable:
            groups.setdefault(t.number if again is None else again, []).append(t)
    points = [_point(shown[first], of, view.objectives) for first, of in groups.items()]
    return Side(
        name=f"{plain(str(database))}:{plain(name)}",
        loaded=loaded,
        view=view,
        points=points,
        variance={**_by_values(points), **launched(own, view.objectives).variance},
        prompts=_prompts(loaded, row.fingerprint),
        lengths=_lengths(store, name),
        weights=store.launches.weights(name),
        environments=environments(store, name, own, loaded.spec.server.env),
    )


def _point(
    trial: TrialView, launches: Sequence[TrialLike], objectives: Sequence[Objective]
) -> Point:
    values, within = {}, {}
    for i, o in enumerate(objectives):
        of = [t.values[i] for t in launches]
        if min(of) <= 0:
            continue
        values[o.name] = of
        known = [attrs_of(t).quality.errors.get(o.name) for t in launches]
        if squares := [one**2 for one in known if one is not None]:
            within[o.name] = sum(squares) / len(squares)
    return Point(trial, values, within)


def _by_values(points: Sequence[Point]) -> dict[str, LaunchVariance]:
    """Return the variance of launches that have no intervals: all of it is between launches."""
    found = {}
    for name in {name for p in points for name in p.values}:
        total = Scatter.pooled([p.values[name] for p in points if name in p.values])
        if total.degrees:
            found[name] = LaunchVariance(total, 0.0, total.sigma)
    return found


def _prompts(loaded: LoadedStudy, fingerprint: str) -> str | None:
    """Return the hash of a study's prompts, if their file is still the one that was sent."""
    if (source := loaded.spec.workload.source) is None:
        return None
    try:
        if not all((loaded.base / file).is_file() for file in files_of(loaded.spec).values()):
            return None  # a device or a pipe would be read for ever
        if fingerprint not in fingerprints(loaded.spec, contents(loaded.spec, loaded.base)):
            return None
        return hashlib.sha256((loaded.base / source[1]).read_bytes()).hexdigest()
    except OSError:
        return None


def _lengths(store: Store, name: str) -> dict[int, int]:
    """Return the tokens of each prompt of a study's first measured launch, by index."""
    first = next((x for x in store.launches.of_study(name) if x.measured_at is not None), None)
    requests = [] if first is None else store.requests.of_launch(first.launch_id, _PHASE)
    return {r.index: r.prompt_tokens for r in requests if r.prompt_tokens is not None}


def _common(a: Side, b: Side, wanted: str | None) -> list[Objective]:
    """Return the objectives that both studies have, by the same definition."""
    others = {o.name: o for o in b.view.objectives}
    same = [
        o
        for o in a.view.objectives
        if (p := others.get(o.name)) is not None
        and (o.title, o.unit, o.direction) == (p.title, p.unit, p.direction)
    ]
    names = [o.name for o in same]
    if wanted is not None and wanted not in names:
        raise UserError(
            f"--objective: {wanted} is not one of both studies; these are: {', '.join(names)}"
        )
    if not same:
        raise UserError(f"{a.name} and {b.name} have no objective in common")
    return [o for o in same if wanted in (None, o.name)]


def compared(a: Side, b: Side, objectives: Sequence[Objective], threshold: float) -> Comparison:
    """Compare two studies by the given objectives."""
    searched = {*a.spec.to_space().params, *b.spec.to_space().params}
    names = sorted(searched, key=lambda k: (_ORDER.get(k, len(_ORDER)), k))
    in_a = {_key(a, p.trial, names): p for p in a.points}
    in_b = {_key(b, p.trial, names): p for p in b.points}
    both = [k for k in in_a if k in in_b]
    scatter = {o.name: scatters(a.variance.get(o.name), b.variance.get(o.name)) for o in objectives}
    incomparable = list(_incomparable(a, b))

    def judged(o: Objective, ratio: Estimate) -> Finding | None:
        return None if incomparable else finding(o, ratio, threshold)

    shared = {
        key: (in_a[key], in_b[key])
        for key in sorted(both, key=lambda k: [(str(type(v)), v) for _, v in k])
    }
    pairs = _pairs(shared, objectives, scatter, judged)
    together = {}
    for o in objectives:
        of = [(in_a[k], in_b[k]) for k in both if _both_have(o, in_a[k], in_b[k])]
        if len(of) > 1:
            ratio = paired_ratio(of, o.name, scatter[o.name], CONFIDENCE)
            together[o.name] = Difference(ratio, judged(o, ratio))
    failed = {_key(b, t, names): t for t in b.view.failures()}
    return Comparison(
        a=a,
        b=b,
        objectives=objectives,
        threshold=threshold,
        different=list(_different(a, b)),
        incomparable=incomparable,
        pairs=pairs,
        together=together,
        winners={o.name: w for o in objectives if (w := _winners(a, b, o, judged)) is not None},
        lost=[failed[k] for k in in_a if k in failed and k not in in_b],
        throttled=[
            f"{letter}: {line}"
            for letter, side in (("A", a), ("B", b))
            for line in throttled_lines(side.view)
        ],
    )


def _both_have(o: Objective, p: Point, q: Point) -> bool:
    return o.name in p.values and o.name in q.values


def _pairs(
    shared: Mapping[Key, tuple[Point, Point]],
    objectives: Sequence[Objective],
    scatter: Mapping[str, tuple[LaunchVariance, LaunchVariance] | None],
    judged: Callable[[Objective, Estimate], Finding | None],
) -> list[Pair]:
    """Return each point that both studies measured, judged so that all together err with 5 %."""
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(shared) * len(objectives))
    pairs = []
    for key, (p, q) in shared.items():
        differences = {}
        for o in objectives:
            if _both_have(o, p, q):
                ratio = paired_ratio([(p, q)], o.name, scatter[o.name], CONFIDENCE)
                sure = paired_ratio([(p, q)], o.name, scatter[o.name], confidence)
                differences[o.name] = Difference(ratio, judged(o, sure))
        a, b = (max(map(len, x.values.values()), default=0) for x in (p, q))
        point = {name: value for name, value in key if value is not None and name != ARM}
        if (arm := p.trial.point.get(ARM, q.trial.point.get(ARM))) is not None:
            point = {ARM: arm, **point}
        pairs.append(Pair(point, (a, b), differences, p.trial.lossy or q.trial.lossy))
    return pairs


_ORDER = {ARM: 0, N: 1, MNBT: 2}


def _key(side: Side, trial: TrialView, names: Sequence[str]) -> Key:
    """Return a point with every parameter that either study searched; a fixed value counts, too.

    Two arms are one if they have the same keys of ``--speculative-config``, under any name.
    """
    space = side.spec.to_space()
    point = canonical(space, trial.point)
    settings = side.spec.settings(point)
    draft = settings.get(N, 0) != 0
    found: list[tuple[str, Value | None]] = []
    for name in names:
        if name == ARM:
            keys = space.draft_of(point) if draft else None
            found.append((name, None if keys is None else json.dumps(keys, sort_keys=True)))
            continue
        value = settings.get(name)
        says = draft or not name.startswith(DRAFT)  # nothing of the draft does at n = 0
        plain_value = value if isinstance(value, bool | int | float | str) else None
        found.append((name, plain_value if says else None))
    return tuple(found)


def _winners(
    a: Side,
    b: Side,
    objective: Objective,
    judged: Callable[[Objective, Estimate], Finding | None],
) -> Winners | None:
    """Return each study's best point by one objective; None: one study has no numbers."""
    best = a.view.best(_own(a, objective)), b.view.best(_own(b, objective))
    if best[0] is None or best[1] is None:
        return None
    parts = [_confirmed(side, objective) for side in (a, b)]
    if parts[0] is None or parts[1] is None:
        values = [t.value(objective) for t in best if t is not None]
        if not all(v is not None and v > 0 for v in values):
            return None
        ratio = Estimate((values[1] or 0) / (values[0] or 1), None, None)
        return Winners(best[0], best[1], Difference(ratio, None))
    (log_a, part_a), (log_b, part_b) = parts[0], parts[1]
    ratio = Estimate(math.exp(log_b - log_a), None, None)
    if part_a[1] >= LEAST_DEGREES and part_b[1] >= LEAST_DEGREES:
        ratio = around(log_b - log_a, [part_a, part_b], CONFIDENCE)
    return Winners(best[0], best[1], Difference(ratio, judged(objective, ratio)))


def _own(side: Side, objective: Objective) -> Objective:
    return next(o for o in side.view.objectives if o.name == objective.name)


def _confirmed(side: Side, objective: Objective) -> tuple[float, tuple[float, float]] | None:
    """Return the logarithm of the confirmed winner's value, its variance and degrees of freedom."""
    verdict = side.view.verdict
    if verdict is None:
        return None
    index = [o.name for o in side.view.objectives].index(objective.name)
    choice, scatter = verdict.winners[index], verdict.scatters[index]
    launches = verdict.candidates[choice.number].launches
    log = math.log(choice.values[index].value)
    return log, (scatter.sigma**2 / launches, scatter.degrees)


# -- what differs --------------------------------------------------------------------------------


def _different(a: Side, b: Side) -> Iterator[tuple[str, str, str]]:
    """Yield what the studies differ in, apart from their points: what, in A, in B."""
    for what, x, y in (
        ("vLLM", a.view.vllm_version, b.view.vllm_version),
        ("machine", a.view.machine, b.view.machine),
    ):
        if x != y:
            yield what, plain(x or "unknown"), plain(y or "unknown")
    for role in a.weights.keys() & b.weights.keys():
        if a.weights[role] != b.weights[role]:
            yield f"weights of the {plain(role)}", plain(a.weights[role]), plain(b.weights[role])
    yield from _variables(a, b)
    mixed = (a.spec.rehearsal is None) != (b.spec.rehearsal is None)
    if mixed:
        yield "rehearsal", plain(a.view.rehearsal or _REAL), plain(b.view.rehearsal or _REAL)
    for d in _keys(a, b):
        if mixed and d.key.startswith("rehearsal."):
            continue  # said as a whole
        yield d.key, plain(setting_text(d.there)), plain(setting_text(d.here))
    if _same_prompts(a, b) is False:
        yield "workload's prompts", _source(a), _source(b)


def _variables(a: Side, b: Side) -> Iterator[tuple[str, str, str]]:
    """Yield the variables of the measuring users' environments that have other values."""
    one, two = values_of(a.environments), values_of(b.environments)
    for name in sorted({*one, *two}):
        texts = [_values_text(name, of.get(name), side) for of, side in ((one, a), (two, b))]
        if texts[0] != texts[1] and None not in texts:
            yield f"variable {plain(name)}", str(texts[0]), str(texts[1])


def _values_text(
    name: str, values: Mapping[str | None, Sequence[int]] | None, side: Side
) -> str | None:
    """Return a variable's values in a study, in words; None: they were not kept."""
    if values is None:
        known = side.environments and all(e.knows(name) for e in side.environments)
        return "not set" if known else None
    texts = ("not set" if v is None else plain(v)[:200] for v in values)
    return " and ".join(sorted(texts))


def _keys(a: Side, b: Side) -> list[differences.Difference]:
    """Return the keys with different values, but for the points and the prompts.

    Points are compared one by one, and prompts by :func:`_same_prompts`.
    """

    def spec(side: Side) -> StudySpec:
        directions = {o.name: o.direction for o in side.view.objectives}
        return differences.in_any_order(side.spec, directions)

    prompts = {key for key in differences.FILES if key.startswith("workload.")}
    return [
        d
        for d in differences.differences(spec(a), spec(b))
        if d.key not in prompts and d.key.partition(".")[0] not in differences.POINTS
    ]


def _source(side: Side) -> str:
    source = side.spec.workload.source
    return "random" if source is None else plain(str(source[1]))


def _same_prompts(a: Side, b: Side) -> bool | None:
    """Return whether the requests have the same prompts; None: unknown."""
    if a.spec.workload.source is None and b.spec.workload.source is None:
        return True  # drawn by what the study says
    if a.prompts is not None and b.prompts is not None:
        return a.prompts == b.prompts
    common = a.lengths.keys() & b.lengths.keys()
    if not common or a.spec.server.model != b.spec.server.model:
        return None
    return all(a.lengths[i] == b.lengths[i] for i in common)


def _incomparable(a: Side, b: Side) -> Iterator[str]:
    """Yield the reasons why figures of two studies cannot be compared."""
    for what, _, _ in _different(a, b):
        if what.startswith("workload"):
            yield what
    if _same_prompts(a, b) is None:
        yield "the workload's prompts (their files are gone or were changed: nobody can tell)"
