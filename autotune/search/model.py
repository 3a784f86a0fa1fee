"""Choice of the next launch: surrogates with a trend from acceptance, and the gain of a launch.

Each objective has a :mod:`autotune.search.surrogate` over the space. Its trend is the prediction of
:mod:`autotune.search.acceptance` from the launches so far. Where that prediction is wrong, the data
change its coefficient, and the process explains the rest. :mod:`autotune.search.gain` computes the
gain of a launch at each point. It is multiplied by the probability that the point does not crash
(:mod:`autotune.search.crashes`).

A belief that is wrong but certain expects no gain anywhere. Therefore, when no launch seems worth
its time, the belief is *challenged* by the launch with the largest potential in a plain surrogate
without prior knowledge. The search has converged only when several challenges in a row have changed
nothing.

While launches are pending, the next launch is chosen as if they had their expected outcomes
(:func:`expecting`), so that it does not ask again for what they will show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autotune.search.acceptance import Prediction, SpeculationLaunch
from autotune.search.alike import key_of
from autotune.search.features import unit
from autotune.search.gain import Belief, gains, potential, reference_point
from autotune.search.noise import UNKNOWN
from autotune.search.surrogate import Trend, fit
from autotune.stats.measurement import Floats, Ints
from autotune.study.space import ARM, N, Point, Space
from autotune.study.ways import curve_of

# Expected standard deviation of the part of an objective that the trend does not explain, without
# and with a prediction in the trend; without one the trend is a constant.
_SCALE, _SCALE_PREDICTED = 0.3, 0.1


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
        gain: Largest expected growth of the hypervolume by a launch, as a share; None: the point
            was drawn at random.
        challenge: Whether that gain is too small and this is another launch: the one with the best
            optimistic case in a model without knowledge of speculative decoding.
        leaders: Launched points, the best mean of the first objective by the model first; empty if
            the point was drawn at random.
    """

    point: Point
    gain: float | None = None
    challenge: bool = False
    leaders: tuple[Point, ...] = ()


def propose(
    space: Space,
    launched: Sequence[Observed],
    new: Sequence[Point],
    chances: Floats,
    doubt_below: float,
    fixed_n: int | None = None,
    known: Callable[[Point], float] | None = None,
    pending: Sequence[Point] = (),
) -> Proposal:
    """Return the launch of the largest gain, among the launched, the pending and the new points.

    Args:
        space: Searched parameters.
        launched: Launches so far, at least one.
        new: Different points that may be launched, neither launched nor pending.
        chances: Probability of each new point that it can launch.
        doubt_below: Gain below which the belief is challenged; see :class:`Proposal`.
        fixed_n: n of all points, where it is not searched.
        known: Returns a number on which objectives may depend (how well CUDA graphs cover a point);
            None: there is none.
        pending: Points of the launches whose outcomes are not known yet. They are assumed to
            succeed, so that their points can be recommended and launched again, as launched ones.

    Raises:
        ValueError: nothing was launched, or a cost is not finite.
    """
    own = [*(item.point for item in launched), *pending]
    points: list[Point] = list({key_of(q): q for q in own}.values())
    place = {key_of(q): i for i, q in enumerate(points)}
    ahead = np.array([place[key_of(q)] for q in pending], dtype=np.int64)
    recommendable = len(points)
    points += new
    chances = np.concatenate([np.ones(recommendable), chances])
    surrogates = Surrogates(space, launched, points, fixed_n, known)

    def beliefs(*, plain: bool = False) -> list[Belief]:
        return [expecting(b, ahead) for b in surrogates.beliefs(recommendable, plain=plain)]

    found = beliefs()
    reference = reference_point(np.stack([b.mean[:recommendable] for b in found], axis=-1))
    value = gains(found, reference) * chances
    best = int(value.argmax())
    measured = {key_of(item.point) for item in launched}
    own_means = found[0].mean[: recommendable - len({key_of(q) for q in pending} - measured)]
    leaders = tuple(points[i] for i in np.argsort(own_means, kind="stable"))
    if value[best] >= doubt_below or not new:
        return Proposal(points[best], float(value[best]), leaders=leaders)
    # the challenge: the best optimistic case of the new points, without prior knowledge
    hopes = (potential(beliefs(plain=True), reference) * chances)[recommendable:]
    return Proposal(new[int(hopes.argmax())], float(value[best]), challenge=True, leaders=leaders)


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
            trends = [Trend(h[self._at], mean, sd) for h, mean, sd in basis]
            model = fit(self._x[self._at], y - level, v, trends, scale)
            functions = [h for h, _, _ in basis]
            mean, variance, covariance = model.posterior(self._x, functions, first)
            noise = float(np.median(v)) + model.between**2
            out.append(Belief(mean + level, variance, covariance, noise))
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


# Trend function at all points, expected coefficient and its standard deviation.
_Basis = tuple[Floats, float, float]


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
