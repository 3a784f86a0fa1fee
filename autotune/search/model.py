"""Choice of the next launch: surrogates with a trend from acceptance, and the gain of a launch.

Each objective has a :mod:`autotune.search.surrogate` over the space. Its trend is the prediction of
:mod:`autotune.search.acceptance` from the launches so far. Where that prediction is wrong, the data
change its coefficient, and the process explains the rest. :mod:`autotune.search.gain` computes the
gain of a launch at each point. It is multiplied by the probability that the point does not crash
(:mod:`autotune.search.crashes`).

The gain that ranks the points is that of the hypervolume; whether the best launch is worth its time
is asked in the objectives themselves (:func:`autotune.search.gain.improvements`), because a
hypervolume has no unit and where nothing matters it is noise. That improvement is multiplied by the
chance that anything matters (:mod:`autotune.search.evidence`).

A belief that is wrong but certain expects no gain anywhere. Therefore, when no launch seems worth
its time, the belief is *challenged* (:mod:`autotune.search.challenges`): first in the gaps between
the launches. Then the improvement is asked for once more, now averaged over all surrogates and
hyperparameters that the launches allow (:meth:`Surrogates.expected`), since the most probable ones
may be too smooth, and the prediction may be wrong. At last come the points right next to the best
ones, as a peak may be narrower than any surrogate believes. The belief is *settled* when no
challenge is left.

While launches are pending, the next launch is chosen as if they had their expected outcomes
(:func:`expecting`), so that it does not ask again for what they will show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from autotune.search.acceptance import Prediction, SpeculationLaunch
from autotune.search.alike import key_of
from autotune.search.challenges import beside, compared, unseen
from autotune.search.evidence import Evidence, weigh
from autotune.search.features import unit
from autotune.search.gain import (
    Belief,
    gains,
    improvements,
    leading,
    optimism,
    potential,
    reference_point,
)
from autotune.search.noise import UNKNOWN
from autotune.search.surrogate import Surrogate, Trend, fit, process
from autotune.stats.measurement import Floats, Ints
from autotune.study.space import ARM, N, Point, Space
from autotune.study.ways import curve_of

# Expected standard deviation of the part of an objective that the trend does not explain, without
# and with a prediction in the trend; without one the trend is a constant.
_SCALE, _SCALE_PREDICTED = 0.3, 0.1
# Chance that nothing matters above which only n is asked for next to the best points: the rest is
# likely the same. Chosen by replays.
_SAME = 0.1
# Chance above which it is rather believed than that anything matters.
_FLAT = 0.5
# Fewest launches that may say so: of three, the prior speaks.
_LEAST = 6
# Launches after which it is no longer asked for while that is open: where nothing matters a search
# ends soon.
_UNSURE = 10
# Improvement that launches could show, in standard deviations of one launch.
_SEEN = 0.1
_THETAS = 16  # draws of θ that an improvement is averaged over
# Trend function at all points, expected coefficient and its standard deviation.
_Basis = tuple[Floats, float, float]


@dataclass(frozen=True)
class Observed:
    """One launch as the model sees it.

    Attributes:
        point: Launched point.
        costs: Cost of each objective: its logarithm, with the sign that makes less better.
        variances: Variances of the costs within the launch; NaN: unknown.
        rate: Output tok/s, or another speed that is proportional to it; None: unknown.
        per_position: Shares of the drafts whose token at position 1, 2, … was accepted.
        acceptance_length: Tokens per verification step; None: unknown.
        curve: Whose acceptance it is (:func:`autotune.study.ways.curve_of`); None: of no fixed n.
            It has no meaning at n = 0.
    """

    point: Point
    costs: tuple[float, ...]
    variances: tuple[float, ...]
    rate: float | None = None
    per_position: tuple[float, ...] = ()
    acceptance_length: float | None = None
    curve: str | None = ""


@dataclass(frozen=True)
class Proposal:
    """The next launch.

    Attributes:
        point: Point to launch.
        gain: Largest expected improvement of an objective, or of their geometric mean, by a launch,
            as a share; None: the point was drawn at random.
        challenge: Whether that gain is too small and this is another launch, which may prove the
            model wrong.
        leaders: Launched points, the best mean of the first objective by the model first; empty if
            the point was drawn at random.
        settled: Whether the gain is too small and no challenge is left that does not wait for the
            outcome of a pending launch.
        fills_gap: Whether this challenge is one in a gap.
    """

    point: Point
    gain: float | None = None
    challenge: bool = False
    leaders: tuple[Point, ...] = ()
    settled: bool = False
    fills_gap: bool = False


def propose(
    space: Space,
    launched: Sequence[Observed],
    new: Sequence[Point],
    chances: Floats,
    doubt_below: float,
    fixed_n: int | None = None,
    known: Callable[[Point], float] | None = None,
    pending: Sequence[Point] = (),
    seen: Sequence[Point] = (),
    *,
    ends: bool = True,
) -> Proposal:
    """Return the launch of the largest gain, among the launched, the pending and the new points.

    Args:
        space: Searched parameters.
        launched: Launches so far, at least one.
        new: Different points that may be launched, neither launched nor pending.
        chances: Probability of each new point that it can launch.
        doubt_below: Improvement below which the belief is challenged, at least a tenth of what one
            launch is off by; see :class:`Proposal`.
        fixed_n: n of all points, where it is not searched.
        known: Returns a number on which objectives may depend (how well CUDA graphs cover a point);
            None: there is none.
        pending: Points of the launches whose outcomes are not known yet. They are assumed to
            succeed, so that their points can be recommended and launched again, as launched ones.
        seen: Points of other launches, such as those that failed.
        ends: Whether the search may end. If not, no improvement is averaged before its end.

    Raises:
        ValueError: nothing was launched, or a cost is not finite.
    """
    own = [*(item.point for item in launched), *pending]
    points: list[Point] = list({key_of(q): q for q in own}.values())
    place = {key_of(q): i for i, q in enumerate(points)}
    ahead = np.array([place[key_of(q)] for q in pending], dtype=np.int64)
    recommendable = len(points)
    points += new
    measured = len({key_of(item.point) for item in launched})
    # a point that was never measured is not launched again before its outcome is known
    chances = np.concatenate([np.arange(recommendable) < measured, chances])
    surrogates = Surrogates(space, launched, points, fixed_n, known)

    def beliefs(*, plain: bool = False) -> list[Belief]:
        return [expecting(b, ahead) for b in surrogates.beliefs(recommendable, plain=plain)]

    found = beliefs()
    order = np.argsort(found[0].mean[:measured], kind="stable")
    leaders = tuple(points[i] for i in order)
    gain = float((improvements(found) * chances).max())
    doubt_below = max(doubt_below, _SEEN * math.sqrt(max(b.noise for b in found)))
    if gain >= doubt_below:
        gain *= 1 - surrogates.chance_of_same
    reference = reference_point(np.stack([b.mean[:recommendable] for b in found], axis=-1))
    if gain >= doubt_below or not new:
        value = gains(found, reference) * chances
        return Proposal(points[int(value.argmax())], gain, leaders=leaders)
    plain = beliefs(plain=True)
    asked = unseen(space, new, [*own, *seen])
    best_points = [points[i] for i in leading(found, measured)]
    gap = bool(asked.any())
    if (alone := asked & compared(space, new, best_points)).any():
        asked = alone  # nothing but n differs from the best
    if not asked.any() and not pending:
        same = surrogates.chance_of_same if len(launched) >= _LEAST else 0.0
        if ends and same < _FLAT:
            worth = surrogates.expected(recommendable) * chances * (1 - same)
            if worth.max() >= doubt_below:
                return Proposal(points[int(worth.argmax())], float(worth.max()), leaders=leaders)
        unsure = _SAME <= same < _FLAT and len(launched) < _UNSURE
        if same < _SAME or unsure:
            asked = beside(space, new, best_points)
            asked &= optimism(plain)[recommendable:] >= doubt_below
        if unsure:
            asked &= compared(space, new, best_points)
            if not asked.any() and sum(q.get(N) == points[0].get(N) for q in own) < 2:
                return Proposal(points[0], gain, True, leaders)  # which all differ from
    # of the challenges the one with the best optimistic case, without prior knowledge
    hopes = (potential(plain, reference) * chances)[recommendable:]
    best = int(np.where(asked, hopes, -np.inf).argmax() if asked.any() else hopes.argmax())
    return Proposal(new[best], gain, True, leaders, settled=not asked.any(), fills_gap=gap)


def optimistic(
    space: Space,
    launched: Sequence[Observed],
    points: Sequence[Point],
    fixed_n: int | None = None,
    known: Callable[[Point], float] | None = None,
) -> Floats:
    """Return how much each point would improve an objective, were it two deviations better.

    The arguments are those of :func:`propose`. The result has the shape (points,); less than 0 is
    worse than the best launched point.

    Raises:
        ValueError: nothing was launched, or a cost is not finite.
    """
    own = list({key_of(item.point): item.point for item in launched}.values())
    surrogates = Surrogates(space, launched, [*own, *points], fixed_n, known)
    return optimism(surrogates.beliefs(len(own)))[len(own) :]


class Surrogates:
    """What the launches of a study say about points: one surrogate for each objective.

    Args:
        space: Searched parameters.
        launched: Launches so far, at least one; the point of each is among ``points``.
        points: Different points.
        fixed_n: As in :func:`propose`.
        known: As in :func:`propose`.

    Raises:
        ValueError: nothing was launched, or a cost is not finite.
    """

    def __init__(
        self,
        space: Space,
        launched: Sequence[Observed],
        points: Sequence[Point],
        fixed_n: int | None = None,
        known: Callable[[Point], float] | None = None,
    ) -> None:
        if not launched:
            raise ValueError("a surrogate needs at least one launch")
        place = {key_of(q): i for i, q in enumerate(points)}
        self._x = np.array([unit(space, q) for q in points])
        self._at = np.array([place[key_of(item.point)] for item in launched])
        self._costs = np.array([item.costs for item in launched])
        variances = np.array([item.variances for item in launched])
        self._variances = np.where(np.isfinite(variances), variances, UNKNOWN)
        ns = np.array([int(q.get(N, fixed_n or 0)) for q in points])
        curves = [curve_of(space, q) if n else None for q, n in zip(points, ns, strict=True)]
        predictions = _predictions(ns[self._at], launched)
        self._basis = _basis(points, ns, self._at, curves, predictions, known)
        self._scale = _SCALE_PREDICTED if predictions else _SCALE

    @cached_property
    def chance_of_same(self) -> float:
        """The chance, 0 … 1, that all points are the same for all objectives."""
        return self._evidence.same

    @cached_property
    def _ways(self) -> list[tuple[Sequence[_Basis], float]]:
        """The surrogates without and with prior knowledge: trend and median of the prior of s."""
        plain = (self._basis[:1], _SCALE)
        return [plain, (self._basis, self._scale)] if len(self._basis) > 1 else [plain]

    @cached_property
    def _evidence(self) -> Evidence:
        """What the launches say of these surrogates, and of that all points are the same."""
        return weigh(
            self._x[self._at],
            self._costs,
            self._variances,
            [(self._trends(basis), scale) for basis, scale in self._ways],
        )

    def expected(self, first: int) -> Floats:
        """Return the expected improvement by a launch at each point, if points differ at all.

        It is averaged over the surrogates without and with prior knowledge and over their
        hyperparameters, by their posterior chances for each objective (C. E. Rasmussen, C. K. I.
        Williams, "Gaussian Processes for Machine Learning", MIT Press 2006, section 5.2): few
        launches say neither how rough an objective is nor how far launches differ.

        Args:
            first: As of :meth:`beliefs`.

        Returns:
            Improvements as those of :func:`autotune.search.gain.improvements`, of shape (points,);
            0 after so many launches that the most probable hyperparameters say it all.
        """
        thetas, weights = self._evidence.thetas, self._evidence.weights
        if not len(weights):
            return np.zeros(len(self._x))
        rng = np.random.default_rng(0)
        at = (np.arange(_THETAS) + 0.5) / _THETAS
        picks = [
            rng.permutation(np.searchsorted(np.cumsum(own)[:-1], at))
            for own in weights.reshape(len(weights), -1)
        ]
        made: dict[tuple[int, int], Belief] = {}
        for j, own in enumerate(picks):
            for i in set(own.tolist()):
                way, draw = divmod(i, thetas.shape[1])
                basis = self._ways[way][0]
                y, v = self._costs[:, j], self._variances[:, j]
                level = float(y.mean())
                model = process(
                    self._x[self._at], y - level, v, self._trends(basis), thetas[way, draw]
                )
                made[j, i] = self._belief(model, basis, level, v, first)
        total = np.zeros(len(self._x))
        for pick in zip(*picks, strict=True):
            total += improvements([made[j, int(i)] for j, i in enumerate(pick)])
        return total / _THETAS

    def _belief(
        self, model: Surrogate, basis: Sequence[_Basis], level: float, v: Floats, first: int
    ) -> Belief:
        """Return the posterior of the objective whose costs less their level a process is of."""
        functions = [h for h, _, _ in basis]
        mean, variance, covariance = model.posterior(self._x, functions, first)
        noise = float(np.median(v)) + model.between**2
        return Belief(mean + level, variance, covariance, noise)

    def _trends(self, basis: Sequence[_Basis]) -> list[Trend]:
        """Return trend functions at the launches."""
        return [Trend(h[self._at], mean, sd) for h, mean, sd in basis]

    def beliefs(self, first: int, *, plain: bool = False) -> list[Belief]:
        """Return the posterior of each objective.

        Args:
            first: Number of the first points whose covariance with all points is wanted.
            plain: Whether to leave out all prior knowledge of speculative decoding.
        """
        basis = self._basis[:1] if plain else self._basis
        scale = _SCALE if plain else self._scale
        out = []
        for y, v in zip(self._costs.T, self._variances.T, strict=True):
            level = float(y.mean())
            model = fit(self._x[self._at], y - level, v, self._trends(basis), scale)
            out.append(self._belief(model, basis, level, v, first))
        return out


def _predictions(ns: Ints, launched: Sequence[Observed]) -> dict[str, Prediction]:
    """Return the prediction from acceptance for each draft, by launches with these n.

    Launches at n = 0 belong to all. A draft whose launches do not suffice has none.
    """
    curves = {item.curve for n, item in zip(ns, launched, strict=True) if n}
    out: dict[str, Prediction] = {}
    for curve in curves - {None}:
        prediction = Prediction.fit(
            [
                SpeculationLaunch(int(n), item.rate, item.per_position, item.acceptance_length)
                for n, item in zip(ns, launched, strict=True)
                if item.rate is not None and (not n or item.curve == curve)
            ]
        )
        if prediction is not None and curve is not None:
            out[curve] = prediction
    return out


def _basis(
    points: Sequence[Point],
    ns: Ints,
    at: Ints,
    curves: Sequence[str | None],
    predictions: Mapping[str, Prediction],
    known: Callable[[Point], float] | None,
) -> list[_Basis]:
    """Return the trend: a constant, the prediction and the known number, where there are such.

    Points of a draft without a prediction have that of no speculation; where other drafts have one,
    each arm of such points has a level of its own, about which nothing is known.

    Args:
        points: All points.
        ns: n of each point.
        at: Index of each launch's point.
        curves: Whose acceptance each point has; None: of no fixed n, or n = 0.
        predictions: Predictions from acceptance, by whose it is.
        known: As in :func:`propose`.
    """
    basis: list[_Basis] = [(np.ones(len(points)), 0.0, 1.0)]
    if predictions:
        told = [_told(predictions, c, int(n)) for c, n in zip(curves, ns, strict=True)]
        none = next(iter(predictions.values())).rate(0)
        rates = [none if p is None else p.rate(int(n)) for p, n in zip(told, ns, strict=True)]
        slow = -np.log(rates)
        basis.append((slow - slow[at].mean(), 1.0, 0.4))
        untold = [q.get(ARM) if p is None else None for p, q in zip(told, points, strict=True)]
        for arm in dict.fromkeys(x for x in untold if x is not None):
            own = np.array([float(x == arm) for x in untold])
            basis.append((own - own[at].mean(), 0.0, _SCALE))
    if known is not None:
        given = np.array([known(q) for q in points])
        basis.append((given - given[at].mean(), 0.0, 0.3))
    return basis


def _told(predictions: Mapping[str, Prediction], curve: str | None, n: int) -> Prediction | None:
    """Return the prediction that tells the speed of a point; None: there is none."""
    if n == 0:
        return next(iter(predictions.values()))
    return None if curve is None else predictions.get(curve)


def expecting(belief: Belief, pending: Ints) -> Belief:
    """Return the belief after pending launches whose outcomes are not known yet.

    A Gaussian's covariance after a launch does not depend on its outcome (Rasmussen and Williams,
    equation 2.24). The means stay, as if each launch had its expected outcome: the "kriging
    believer" of D. Ginsbourger, R. Le Riche, L. Carraro, "Kriging is well-suited to parallelize
    optimization", 2010. The gain of one more launch is then that of the last of a batch (J. Wu,
    P. Frazier, "The parallel knowledge gradient method for batch Bayesian optimization", NIPS
    2016), whose launches are chosen one after the other, without the mean over the outcomes of the
    pending ones.

    Args:
        belief: Belief by the measured launches.
        pending: Index of each pending launch among the rows of the belief's covariance; a point
            that is launched twice has two entries.
    """
    rows = belief.covariance[pending]
    gain = np.linalg.solve(rows[:, pending] + belief.noise * np.eye(len(pending)), rows)
    return Belief(
        belief.mean,
        np.maximum(belief.variance - (rows * gain).sum(axis=0), 0.0),
        belief.covariance - belief.covariance[:, pending] @ gain,
        belief.noise,
    )
