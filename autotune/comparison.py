"""Two studies against each other: an upgrade, another GPU, another draft; what got better or worse?

Points that both studies measured are compared as ratios, B over A, of geometric means over all of
a point's launches. What a ratio varies by is in two parts (see :mod:`autotune.stats.launch_variance`),
for each of the two studies:

    variance of a point's mean = (between² + own · mean within²) / launches

The intervals within launches take the requests as drawn anew, but all launches were sent the same
ones. Where replicated launches scatter less than their own intervals explain, those are too wide by
a known factor: ``own`` is then ``total² / within²`` of the replicates, and 1 otherwise. So a launch
with few requests counts less than one with many, and nothing is added twice.

Each study's own scatter is taken where it has two degrees of freedom, else both studies' pooled.
The two variances add up, with the degrees of freedom of B. L. Welch ("The generalization of
'Student's' problem when several different population variances are involved", Biometrika 34, 1947)
and F. E. Satterthwaite. Three kinds of figures are judged:

- **All same points together**: the mean of their logarithms. It sees what hits every point.
- **The winners**: each study's best point by the objective, by what its confirmation says, which is
  without the luck of having been chosen. Single launches of a search are not judged: the best of
  many is the luckiest.
- **Each same point**: by an interval so wide that all of them together err with 5 % (Bonferroni).
  Their 95 % intervals are shown; of twenty, one misses.

A figure is *worse* if its interval lies beyond the threshold, *better* if it lies beyond it on the
good side, *equal* if it lies within, and undecided otherwise: nothing is called equal because
little is known of it. What changes from day to day on one machine is no scatter between launches of
one study: compare a study with its own repetition to see it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autotune.errors import UserError
from autotune.recomputed import Recomputed
from autotune.results import LEAST_DEGREES, launched, origin_of, study_view, with_points
from autotune.stats import Estimate, LaunchVariance, Scatter
from autotune.storage.lease import file_identity
from autotune.storage.records import attrs_of
from autotune.storage.store import Store, opened
from autotune.study import differences
from autotune.study.differences import contents, files_of, fingerprints, setting_text
from autotune.study.schema import LoadedStudy, StudySpec
from autotune.study.space import DRAFT, MNBT, N, Value, canonical
from autotune.views import StudyView, TrialView, number, plain, point_text, value_text
from objectives import Objective

CONFIDENCE = 0.95
_MOST_DEGREES = 10**6  # as many as are normal
_HEADINGS = {N: "n", MNBT: "MNBT"}
_PHASE = "measure"

Key = tuple[tuple[str, Value | None], ...]  # of a point, for all parameters that either searched


class Finding(StrEnum):
    """What a figure showed; see the module."""

    WORSE = "worse"
    BETTER = "better"
    EQUAL = "equal"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Where:
    """What A or B names.

    Attributes:
        database: Its file.
        study: Its name; None: the only one in it.
    """

    database: Path
    study: str | None

    @classmethod
    def parse(cls, text: str, study: str | None = None) -> Where:
        """Reads ``FILE.db`` or ``FILE.db:STUDY``; a colon may also stand in the file's name.

        Raises:
            UserError: there is no such file, or the study is named twice.
        """
        try:
            if Path(text).is_file():
                return cls(Path(text), study)
            file, _, named = text.rpartition(":")
            if file and named and Path(file).is_file():
                if study is not None:
                    raise UserError(f"{plain(text)[:200]}: names its study already")
                return cls(Path(file), named)
        except (OSError, ValueError):  # a name too long, a NUL
            pass
        raise UserError(f"{plain(text)[:200]}: no such database; give FILE.db or FILE.db:STUDY")


@dataclass(frozen=True)
class Point:
    """One point of one study.

    Attributes:
        trial: Whose point it is.
        values: By objective name, the values of its launches; of those that can be a ratio.
        within: By objective name, mean square of what the launches' own intervals say, where they
            have any: too few requests give none.
    """

    trial: TrialView
    values: Mapping[str, Sequence[float]]
    within: Mapping[str, float]


@dataclass(frozen=True)
class Side:
    """One study, as it is compared.

    Attributes:
        name: As the user names it: ``FILE.db:STUDY``.
        loaded: Its file, as it was run.
        view: What it amounts to.
        points: Its measured points.
        variance: How far launches of one point scatter, by objective name.
        prompts: Hash of the file of its prompts; None: it has none, or not the one that it had.
        lengths: Tokens of its prompts, by their index.
        weights: Hashes of the weights that it was measured with, of ``target`` and ``draft``.
    """

    name: str
    loaded: LoadedStudy
    view: StudyView
    points: Sequence[Point]
    variance: Mapping[str, LaunchVariance]
    prompts: str | None
    lengths: Mapping[int, int]
    weights: Mapping[str, str]

    @property
    def spec(self) -> StudySpec:
        """Its file."""
        return self.loaded.spec


@dataclass(frozen=True)
class Difference:
    """One figure of both studies.

    Attributes:
        ratio: B over A, with the 95 % interval.
        finding: What that shows; None: it is not judged.
    """

    ratio: Estimate
    finding: Finding | None


@dataclass(frozen=True)
class Pair:
    """One point in both studies.

    Attributes:
        point: With every parameter that either study searched.
        launches: In A and in B.
        differences: By objective name; of those that both have.
    """

    point: Mapping[str, Value]
    launches: tuple[int, int]
    differences: Mapping[str, Difference]


@dataclass(frozen=True)
class Winners:
    """The best point of each study by one objective.

    Attributes:
        a: Of A.
        b: Of B.
        difference: Of that objective.
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
        objectives: Those that are compared.
        threshold: Share of a value that does not matter.
        different: What the studies differ in: what, in A, in B.
        incomparable: Why their figures cannot be compared, in words; empty: they can.
        pairs: Points that both measured.
        together: All of them together, by objective name; empty with fewer than two.
        winners: By objective name.
        lost: Points that have numbers in A, and failed in B.
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

    def finding(self, objective: Objective) -> Finding:
        """What all figures of an objective say together."""
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
        """Whether B is certainly worse in an objective, by more than the threshold."""
        return any(self.finding(o) is Finding.WORSE for o in self.objectives)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
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
    }


def _difference_json(d: Difference) -> dict[str, Any]:
    return {"ratio": asdict(d.ratio), "finding": d.finding}


def compare(
    a: Where, b: Where, *, threshold: float = 0.05, objective: str | None = None
) -> Comparison:
    """Compares two studies.

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
        if one == two and file_identity(a.database) == file_identity(b.database):
            raise UserError(f"{a.database}:{one}: is compared with itself; name another study")
        side_a, side_b = _side(store_a, a.database, one), _side(store_b, b.database, two)
    return compared(side_a, side_b, _common(side_a, side_b, objective), threshold)


def _side(store: Store, database: Path, name: str) -> Side:
    loaded, row = store.load_study(name)
    view = study_view(store, name)
    stored = store.optuna_study(name).get_trials(deepcopy=False)
    found = Recomputed(store, loaded.spec, view.objectives).trials(stored)
    # trials that were taken from another study are launches of that one
    own = [t for t in with_points(found, loaded.spec.to_space()) if origin_of(t) is None]
    shown = {t.number: t for t in view.trials}
    groups: dict[int, list[FrozenTrial]] = {}
    for t in own:
        again = shown[t.number].again
        usable = not (shown[t.number].truncated or shown[t.number].outdated)
        if t.state == TrialState.COMPLETE and usable:
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
    )


def _point(
    trial: TrialView, launches: Sequence[FrozenTrial], objectives: Sequence[Objective]
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
    """The scatter of launches that have no intervals of their own: all of it is between them."""
    found = {}
    for name in {name for p in points for name in p.values}:
        total = Scatter.pooled([p.values[name] for p in points if name in p.values])
        if total.degrees:
            found[name] = LaunchVariance(total, 0.0, total.sigma)
    return found


def _prompts(loaded: LoadedStudy, fingerprint: str) -> str | None:
    """Hash of the file of a study's prompts, if it is still the one that was sent."""
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
    """Tokens of the prompts of a study's first measured launch, by index."""
    first = next((x for x in store.launches.of_study(name) if x.measured_at is not None), None)
    requests = [] if first is None else store.requests.of_launch(first.launch_id, _PHASE)
    return {r.index: r.prompt_tokens for r in requests if r.prompt_tokens is not None}


def _common(a: Side, b: Side, wanted: str | None) -> list[Objective]:
    """The objectives that both have, by the same definition."""
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
    """Two studies by the given objectives."""
    names = sorted({*a.spec.space, *b.spec.space}, key=lambda k: (_ORDER.get(k, len(_ORDER)), k))
    in_a = {_key(a, p.trial, names): p for p in a.points}
    in_b = {_key(b, p.trial, names): p for p in b.points}
    both = [k for k in in_a if k in in_b]
    scatters = {o.name: _scatters(a, b, o.name) for o in objectives}
    incomparable = list(_incomparable(a, b))

    def judged(o: Objective, ratio: Estimate) -> Finding | None:
        return None if incomparable else _finding(o, ratio, threshold)

    comparisons = max(1, len(both) * len(objectives))
    pairs = []
    for key in sorted(both, key=lambda k: [(str(type(v)), v) for _, v in k]):
        p, q = in_a[key], in_b[key]
        differences = {}
        for o in objectives:
            if o.name in p.values and o.name in q.values:
                one = [(p, q)]
                ratio = _ratio(one, o.name, scatters[o.name], CONFIDENCE)
                sure = _ratio(one, o.name, scatters[o.name], 1 - (1 - CONFIDENCE) / comparisons)
                differences[o.name] = Difference(ratio, judged(o, sure))
        launches = tuple(max(map(len, x.values.values()), default=0) for x in (p, q))
        point = {name: value for name, value in key if value is not None}
        pairs.append(Pair(point, (launches[0], launches[1]), differences))
    together = {}
    for o in objectives:
        of = [
            (in_a[k], in_b[k])
            for k in both
            if o.name in in_a[k].values and o.name in in_b[k].values
        ]
        if len(of) > 1:
            ratio = _ratio(of, o.name, scatters[o.name], CONFIDENCE)
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
    )


_ORDER = {N: 0, MNBT: 1}


def _key(side: Side, trial: TrialView, names: Sequence[str]) -> Key:
    """A point by all parameters that either study searched; what one fixed counts for it."""
    settings = side.spec.settings(canonical(side.spec.to_space(), trial.point))
    draft = settings.get(N, 0) != 0
    found: list[tuple[str, Value | None]] = []
    for name in names:
        value = settings.get(name)
        says = draft or not name.startswith(DRAFT)  # nothing of the draft does at n = 0
        plain_value = value if isinstance(value, bool | int | float | str) else None
        found.append((name, plain_value if says else None))
    return tuple(found)


# -- figures -------------------------------------------------------------------------------------


def _scatters(a: Side, b: Side, name: str) -> tuple[LaunchVariance, LaunchVariance] | None:
    """How launches of one point differ, in A and in B; one for both where one knows too little."""
    own = a.variance.get(name), b.variance.get(name)
    known = [v for v in own if v is not None]
    if len(known) == 2 and all(v.total.degrees >= LEAST_DEGREES for v in known):
        return known[0], known[1]
    degrees = sum(v.total.degrees for v in known)
    if degrees < LEAST_DEGREES:
        return None

    def pooled(squares: Sequence[float]) -> float:
        weighted = (v.total.degrees * s for v, s in zip(known, squares, strict=True))
        return sum(weighted) / degrees

    total2 = pooled([v.total.sigma**2 for v in known])
    within2 = pooled([v.within**2 for v in known])
    between = math.sqrt(max(0.0, total2 - within2))
    both = LaunchVariance(Scatter(math.sqrt(total2), degrees), math.sqrt(within2), between)
    return both, both


@dataclass(frozen=True)
class _Mean:
    """What a mean of logarithms varies by.

    Attributes:
        share: Launches' ``between²`` in it.
        within2: What the launches' own intervals add.
    """

    share: float
    within2: float

    def variance(self, scatter: LaunchVariance) -> float:
        own = 1.0
        if scatter.between == 0 and scatter.within > 0:
            own = scatter.total.sigma**2 / scatter.within**2
        return self.share * scatter.between**2 + own * self.within2

    def degrees(self, scatter: LaunchVariance) -> float:
        """Of freedom, by Satterthwaite; what the intervals within launches say counts as known."""
        if scatter.between == 0:
            return scatter.total.degrees
        share = self.variance(scatter) / (self.share * scatter.total.sigma**2)
        return scatter.total.degrees * share**2


def _ratio(
    pairs: Sequence[tuple[Point, Point]],
    name: str,
    scatters: tuple[LaunchVariance, LaunchVariance] | None,
    confidence: float,
) -> Estimate:
    """B over A, the geometric mean over points."""
    logs = [np.mean(np.log(q.values[name])) - np.mean(np.log(p.values[name])) for p, q in pairs]
    log = float(np.mean(logs))
    if scatters is None:
        return Estimate(math.exp(log), None, None)
    a, b = (_mean([pair[i] for pair in pairs], name, scatters[i]) for i in (0, 1))
    if scatters[0] is scatters[1]:
        both = _Mean(a.share + b.share, a.within2 + b.within2)
        return _around(log, [(both.variance(scatters[0]), both.degrees(scatters[0]))], confidence)
    parts = [(x.variance(s), x.degrees(s)) for x, s in zip((a, b), scatters, strict=True)]
    return _around(log, parts, confidence)


def _mean(points: Sequence[Point], name: str, scatter: LaunchVariance) -> _Mean:
    launches = [len(p.values[name]) for p in points]
    usual = scatter.within**2
    squares = [p.within.get(name, usual) / n for p, n in zip(points, launches, strict=True)]
    return _Mean(sum(1 / n for n in launches) / len(points) ** 2, sum(squares) / len(points) ** 2)


def _around(log: float, parts: Sequence[tuple[float, float]], confidence: float) -> Estimate:
    """``exp(log)`` with its interval, by Welch: of each part variance and degrees."""
    variance = sum(v for v, _ in parts)
    if variance == 0:
        return Estimate(math.exp(log), math.exp(log), math.exp(log))
    spent = sum(v**2 / degrees for v, degrees in parts)
    degrees = _MOST_DEGREES if spent == 0 else min(variance**2 / spent, _MOST_DEGREES)
    return Scatter(math.sqrt(variance), int(degrees)).around(log, 1.0, confidence)


def _finding(objective: Objective, ratio: Estimate, threshold: float) -> Finding:
    if ratio.low is None or ratio.high is None:
        return Finding.UNDECIDED
    below, above = ratio.high < 1 - threshold, ratio.low > 1 + threshold
    if below or above:
        more_is_better = objective.direction == "maximize"
        return Finding.BETTER if above is more_is_better else Finding.WORSE
    within = 1 - threshold <= ratio.low and ratio.high <= 1 + threshold
    return Finding.EQUAL if within else Finding.UNDECIDED


def _winners(
    a: Side,
    b: Side,
    objective: Objective,
    judged: Callable[[Objective, Estimate], Finding | None],
) -> Winners | None:
    """Each study's best point by one objective; None: one has no numbers."""
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
        ratio = _around(log_b - log_a, [part_a, part_b], CONFIDENCE)
    return Winners(best[0], best[1], Difference(ratio, judged(objective, ratio)))


def _own(side: Side, objective: Objective) -> Objective:
    return next(o for o in side.view.objectives if o.name == objective.name)


def _confirmed(side: Side, objective: Objective) -> tuple[float, tuple[float, float]] | None:
    """The logarithm of what the confirmed winner gives, its variance and degrees of freedom."""
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
    """What the studies differ in, beside their points."""
    for what, x, y in (
        ("vLLM", a.view.vllm_version, b.view.vllm_version),
        ("machine", a.view.machine, b.view.machine),
    ):
        if x != y:
            yield what, plain(x or "unknown"), plain(y or "unknown")
    for role in a.weights.keys() & b.weights.keys():
        if a.weights[role] != b.weights[role]:
            yield f"weights of the {plain(role)}", plain(a.weights[role]), plain(b.weights[role])
    for d in _keys(a, b):
        yield d.key, plain(setting_text(d.there)), plain(setting_text(d.here))
    if _same_prompts(a, b) is False:
        yield "workload's prompts", _source(a), _source(b)


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
    """Whether the requests have the same prompts; None: that cannot be told."""
    if a.spec.workload.source is None and b.spec.workload.source is None:
        return True  # drawn by what the study says
    if a.prompts is not None and b.prompts is not None:
        return a.prompts == b.prompts
    common = a.lengths.keys() & b.lengths.keys()
    if not common or a.spec.server.model != b.spec.server.model:
        return None
    return all(a.lengths[i] == b.lengths[i] for i in common)


def _incomparable(a: Side, b: Side) -> Iterator[str]:
    """Why the figures of two studies cannot be compared."""
    for what, _, _ in _different(a, b):
        if what.startswith("workload"):
            yield what
    if _same_prompts(a, b) is None:
        yield "the workload's prompts (their files are gone or were changed: nobody can tell)"


# -- for people ----------------------------------------------------------------------------------


def tables(c: Comparison) -> RenderableType:
    """All of it in 80 columns."""
    parts: list[RenderableType] = [_sides(c), Text("")]
    if c.different:
        parts += [Text("What differs between them:"), Text(""), _differences(c), Text("")]
    else:
        parts += [Text("They were set up alike, on like machines."), Text("")]
    if c.incomparable:
        parts += [_warning(c), Text("")]
    if c.pairs:
        title = "B against A where both measured, with the 95 % interval:"
        parts += [Text(title), Text(""), _pairs(c), Text("")]
    else:
        parts += [Text("They have no measured point in common."), Text("")]
    for o in c.objectives:
        if (w := c.winners.get(o.name)) is not None:
            parts.append(_winners_line(o, w))
    if c.lost:
        kinds = "; ".join(f"{point_text(t.point)} ({t.failure_kind})" for t in c.lost[:5])
        more = f" and {len(c.lost) - 5} more" if len(c.lost) > 5 else ""
        parts.append(Text(f"Measured in A, failed in B: {plain(kinds)}{more}.", "yellow"))
    parts.append(Text(""))
    parts += [Text(line, _STYLES.get(found, "")) for found, line in verdict_lines(c)]
    return Group(*parts)


_STYLES = {Finding.WORSE: "bold red", Finding.BETTER: "bold green", Finding.UNDECIDED: "yellow"}


def _grid(*headings: str) -> Table:
    """A table without a frame, as those of the other commands."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in headings:
        table.add_column(Text(heading), overflow="fold")
    return table


def _sides(c: Comparison) -> RenderableType:
    lines = []
    for letter, side in (("A", c.a), ("B", c.b)):
        vllm = f"vLLM {plain(side.view.vllm_version)}" if side.view.vllm_version else "unknown vLLM"
        lines.append(
            Text(
                f"{letter}: {side.name}, begun {side.view.created:%Y-%m-%d}, {vllm}, "
                f"{_count(len(side.points), 'point')}"
            )
        )
    return Group(*lines)


def _differences(c: Comparison) -> Table:
    table = _grid("", "A", "B")
    for row in c.different:
        table.add_row(*map(Text, row))
    return table


def _warning(c: Comparison) -> Text:
    return Text(
        f"Warning: the workload differs ({'; '.join(c.incomparable)}): figures under another load "
        "are not comparable, and nothing is concluded from them.",
        "bold yellow",
    )


def _pairs(c: Comparison) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    names = list(dict.fromkeys(name for p in c.pairs for name in p.point))
    shown = [name for name in names if name in _HEADINGS]
    others = [name for name in names if name not in _HEADINGS]
    for name in shown:
        table.add_column(Text(_HEADINGS[name]), justify="right")
    if others:
        table.add_column(Text("other"), overflow="fold", ratio=1)
    table.add_column(Text("launches"), justify="right")
    for o in c.objectives:
        way = "more" if o.direction == "maximize" else "less"
        table.add_column(
            Text(f"{plain(o.title)}\n({way} is better)"), justify="right", min_width=16
        )
    for p in c.pairs:
        cells = [Text(value_text(p.point[n]) if n in p.point else "") for n in shown]
        if others:
            words = (f"{plain(n)}={value_text(p.point[n])}" for n in others if n in p.point)
            cells.append(Text(", ".join(words)))
        cells.append(Text(f"{p.launches[0]} + {p.launches[1]}"))
        cells += [_cell(p.differences.get(o.name)) for o in c.objectives]
        table.add_row(*cells)
    if c.together:
        table.add_section()
        label = [Text("all")] + [Text("")] * (len(shown) + bool(others))
        table.add_row(*label, *(_cell(c.together.get(o.name)) for o in c.objectives))
    return table


def _cell(d: Difference | None) -> Text:
    """Two lines: ``−12.3 % worse`` and the interval."""
    if d is None:
        return Text("")
    word = d.finding if d.finding not in (None, Finding.UNDECIDED) else ""
    return Text(f"{_percent(d.ratio.value)} % {word}".rstrip() + f"\n{_bounds(d.ratio)}", _style(d))


def _style(d: Difference) -> str:
    return "" if d.finding in (None, Finding.UNDECIDED) else _STYLES.get(d.finding, "")


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f}".replace("-", "−")


def _bounds(ratio: Estimate) -> str:
    low, high = ("?" if x is None else _percent(x) for x in (ratio.low, ratio.high))
    return f"[{low}, {high}]"


def _winners_line(objective: Objective, w: Winners) -> Text:
    d = w.difference
    one, two = point_text(w.a.point), point_text(w.b.point)
    points = f"{one} in both" if one == two else f"{one} in A, {two} in B"
    text = f"Best by {plain(objective.title).lower()}: {points}: {_percent(d.ratio.value)} %"
    if d.finding is None and d.ratio.low is None:
        return Text(f"{text}; not judged, for not both were measured again (`autotune confirm`).")
    word = "" if d.finding in (None, Finding.UNDECIDED) else f", {d.finding}"
    return Text(f"{text} {_bounds(d.ratio)}{word}.", _style(d))


def verdict_lines(c: Comparison) -> list[tuple[Finding, str]]:
    """What is to be concluded, a line for each objective."""
    if c.incomparable:
        return [(Finding.UNDECIDED, "Undecided: the two are not comparable.")]
    limit = f"{number(100 * c.threshold).rstrip('0').rstrip('.') if c.threshold else '0'} %"
    findings = [(o, c.finding(o)) for o in c.objectives]
    words = {
        Finding.WORSE: f"B is worse than A, certainly by more than {limit}",
        Finding.BETTER: f"B is better than A, certainly by more than {limit}",
        Finding.EQUAL: f"no difference of more than {limit}",
        Finding.UNDECIDED: f"undecided: more launches would tell whether it is more than {limit}",
    }
    return [(found, f"{plain(o.title)}: {words[found]}.") for o, found in findings]


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
