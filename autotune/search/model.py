"""Chooses the next launch: surrogates with a trend from acceptance, and what a launch is worth.

For each objective one :mod:`autotune.search.surrogate` over the space, with what is known of
speculative decoding as its trend: the prediction of :mod:`autotune.search.acceptance` from the
launches so far. Where that prediction is wrong its coefficient goes to what the data say and the
process carries the rest. :mod:`autotune.search.gain` says what a launch at each point is worth;
chances of a crash (:mod:`autotune.search.crashes`) count against it.

A belief that is wrong and sure of itself sees no worth anywhere. So when no launch seems worth its
time, the belief is *challenged*: by the launch that a plain surrogate, without any foreknowledge,
hopes most of. Only when several challenges in a row changed nothing has the search converged.

While launches are under way whose outcomes nobody knows, the next one is chosen as if they had
given what is expected of them (:func:`expecting`): what they will tell is not asked for again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from autotune.search.acceptance import Prediction, SpeculationLaunch
from autotune.search.gain import Belief, gains, potential, reference_point
from autotune.search.surrogate import Trend, fit
from autotune.stats.measurement import Floats, Ints
from autotune.study.space import ChoiceParam, FloatParam, N, Point, Space

# Variance of a logarithm where a launch does not tell its own: 5 %.
_UNKNOWN = 0.05**2
# Standard deviation of the part of an objective that the trend does not explain, as expected:
# without a prediction the trend is a constant.
_SCALE, _SCALE_PREDICTED = 0.3, 0.1


@dataclass(frozen=True)
class Observed:
    """One launch as the model sees it.

    Attributes:
        point: Where.
        costs: Of each objective, less is better: its logarithm with a sign.
        variances: Of the costs, within the launch; NaN: unknown.
        rate: Output tok/s, or another speed that is in proportion to it; None: unknown.
        per_position: Share of the drafts whose token at position 1, 2, … was accepted.
        acceptance_length: Tokens per verification step; None: unknown.
    """

    point: Point
    costs: tuple[float, ...]
    variances: tuple[float, ...]
    rate: float | None = None
    per_position: tuple[float, ...] = ()
    acceptance_length: float | None = None


@dataclass(frozen=True)
class Proposal:
    """What to launch next.

    Attributes:
        point: Where.
        gain: Expected growth of the hypervolume by the launch that is worth most, as a share;
            None: drawn blindly.
        challenge: That gain is too small, and this is another launch: the one that looks best to
            a model that knows nothing of speculative decoding, in the best case.
    """

    point: Point
    gain: float | None = None
    challenge: bool = False


def unit(space: Space, point: Point) -> list[float]:
    """A point's place in the unit cube, as the model measures distances.

    n counts by its square root, since acceptance falls off with every position, and whether there
    are drafts at all is a feature of its own: the step from 0 to 1 changes the whole program. Any
    two choices are equally far apart.
    """
    out: list[float] = []
    for name, p in space.params.items():
        v = point[name]
        match p:
            case ChoiceParam():
                out += [0.5 if c == v and type(c) is type(v) else 0.0 for c in p.choices]
            case FloatParam():
                f = math.log if p.log else float
                span = f(p.high) - f(p.low)
                out.append((f(float(v)) - f(p.low)) / span if span else 0.0)
            case _:
                values = p.values()
                if name == N:
                    out.append(math.sqrt(int(v) / max(1, values[-1])))
                    out.append(0.5 if v else 0.0)
                else:
                    out.append(values.index(int(v)) / max(1, len(values) - 1))
    return out


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
    """The launch that is worth most, of the launched points, the pending and the new ones.

    Args:
        space: The searched parameters.
        launched: At least one.
        new: Points that were not launched, are not pending and may be launched; different ones.
        chances: That each of them can launch.
        doubt_below: A smaller gain is not believed: see :class:`Proposal`.
        fixed_n: n of all points, where it is not searched.
        known: A number for each point that objectives may depend on (how well CUDA graphs cover
            it); None: there is none.
        pending: Of each launch whose outcome is not known yet, where; they are taken to succeed,
            so that their points can be recommended and launched once more, as launched ones can.

    Raises:
        ValueError: nothing was launched, or a cost is not finite.
    """
    own = [*(item.point for item in launched), *pending]
    points: list[Point] = list({frozenset(q.items()): q for q in own}.values())
    place = {frozenset(q.items()): i for i, q in enumerate(points)}
    ahead = np.array([place[frozenset(q.items())] for q in pending], dtype=np.int64)
    recommendable = len(points)
    points += new
    chances = np.concatenate([np.ones(recommendable), chances])
    x = np.array([unit(space, q) for q in points])
    at = np.array([place[frozenset(item.point.items())] for item in launched])
    costs = np.array([item.costs for item in launched])
    variances = np.array([item.variances for item in launched])
    variances = np.where(np.isfinite(variances), variances, _UNKNOWN)

    ns = np.array([int(q.get(N, fixed_n or 0)) for q in points])
    prediction = Prediction.fit(
        [
            SpeculationLaunch(int(ns[i]), item.rate, item.per_position, item.acceptance_length)
            for i, item in zip(at, launched, strict=True)
            if item.rate is not None
        ]
    )
    basis = [(np.ones(len(points)), 0.0, 1.0)]
    if prediction is not None:
        rates = {int(n): prediction.rate(int(n)) for n in np.unique(ns)}
        slow = -np.log([rates[int(n)] for n in ns])
        basis.append((slow - slow[at].mean(), 1.0, 0.4))
    if known is not None:
        given = np.array([known(q) for q in points])
        basis.append((given - given[at].mean(), 0.0, 0.3))

    def beliefs(basis: Sequence[tuple[Floats, float, float]], scale: float) -> list[Belief]:
        out = []
        for y, v in zip(costs.T, variances.T, strict=True):
            level = float(y.mean())
            trends = [Trend(h[at], mean, sd) for h, mean, sd in basis]
            model = fit(x[at], y - level, v, trends, scale)
            mean, variance, covariance = model.posterior(x, [h for h, _, _ in basis], recommendable)
            noise = float(np.median(v)) + model.between**2
            out.append(expecting(Belief(mean + level, variance, covariance, noise), ahead))
        return out

    found = beliefs(basis, _SCALE if prediction is None else _SCALE_PREDICTED)
    reference = reference_point(np.stack([b.mean[:recommendable] for b in found], axis=-1))
    value = gains(found, reference) * chances
    best = int(value.argmax())
    if value[best] >= doubt_below or not new:
        return Proposal(points[best], float(value[best]))
    # what a search without foreknowledge would try: the best case of what was not launched yet
    plain = beliefs(basis[:1], _SCALE)
    hopes = (potential(plain, reference) * chances)[recommendable:]
    return Proposal(new[int(hopes.argmax())], float(value[best]), challenge=True)


def expecting(belief: Belief, pending: Ints) -> Belief:
    """What is believed while launches are under way, before one knows what they give.

    How sure one will be does not depend on the outcomes: a Gaussian's covariance is conditioned on
    them unseen (Rasmussen and Williams, equation 2.24). The means stay, as if each launch gave what
    is expected of it: the "kriging believer" of D. Ginsbourger, R. Le Riche, L. Carraro, "Kriging
    is well-suited to parallelize optimization", 2010. The gain of one more launch is then that of
    the last of a batch (J. Wu, P. Frazier, "The parallel knowledge gradient method for batch
    Bayesian optimization", NIPS 2016), each chosen after the one before, without the mean over what
    the pending ones may give.

    Args:
        belief: By what was measured.
        pending: The place of each such launch among the points of the belief's covariance; a point
            that is to be launched twice stands twice.
    """
    rows = belief.covariance[pending]
    gain = np.linalg.solve(rows[:, pending] + belief.noise * np.eye(len(pending)), rows)
    return Belief(
        belief.mean,
        np.maximum(belief.variance - (rows * gain).sum(axis=0), 0.0),
        belief.covariance - belief.covariance[:, pending] @ gain,
        belief.noise,
    )
