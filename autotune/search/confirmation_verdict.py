"""The verdict of the confirmation: the choices, their values and how sure they are.

=========  ========================================================================================
term       meaning
=========  ========================================================================================
gain       logarithm of an objective with the sign that makes more better; the last one is their sum
rule       what is chosen by: one objective's gain, or the sum
T, x       mean gain by the rule of all of a candidate's launches; of those of the confirmation
θ          true mean gain
v          variance of x between launches
a          part of T that the confirmation's launches moved: their share of all launches
optimism   estimate of a choice's selection bias
=========  ========================================================================================

The best point is chosen by T; its numbers come from the confirmation only. Selection bias (the
winner's curse) remains, because the confirmation took part in the choice. For a candidate k that is
told only where it is the choice, and normal deviations, integration by parts gives (C. Stein,
"Estimation of the mean of a multivariate normal distribution", Annals of Statistics 9, 1981)

    E[(x_k - θ_k); k is the choice] = a_k v_k Σ_i f_ki,

with the density f_ki that k and i tie above all others. A tie's density is estimated by a normal
kernel at the observed leads, with half of their standard error: that is the mean over repetitions
of the choice with a part of the noise, as cross-fitting leaves out a round, without depending on
which launch came in which round or on equal numbers of launches (N. L. Oliveira, J. Lei, R. J.
Tibshirani, "Unbiased risk estimation in the normal means problem via coupled bootstrap techniques",
arXiv 2111.09447, 2021). A choice has a lead ≥ 0, so it gets twice the kernel:

    optimism of its gain = Σ_i 2 a v φ(T - T_i; h_i²) P(all others are below the tie),
    h_i² = (a² v + a_i² v_i)/4.

A speed-up is told only where the baseline lost, so the baseline's launches are as much too bad as
the choice's are too good; a tie with the baseline therefore counts with the v of both. On the other
side of such a tie nothing is told, so a slope of the density does not cancel. The search launched
the choice because it was good, hence the density rises with the lead: the kernel's value is taken
times 0.85, which was least biased over all simulated worlds. Another objective's optimism is in
proportion to its covariance with the rule. A clear choice has none.

The launches of the baseline and of the other points scatter by two amounts, pooled as far as they
agree: :mod:`autotune.stats.two_pools`. The chance that the choice is truly better than another
candidate learns from all points of the study how far points differ:
:mod:`autotune.stats.superiority`. ``benchmarks/confirmed_worlds.py`` and
``benchmarks/selection_bias.py`` count how often all of this is right, also where the number of a
candidate's launches depends on what they gave.

Launches on several slots compare within a slot, as :mod:`autotune.stats.slot_effects` does it: each
block of a confirmation is on one slot and has each of its candidates once, so that how slots differ
cancels; in the search it is estimated, from points that several slots launched.

The balanced choice maximizes the sum over the objectives of the logarithm of the improvement, so
one percent of each objective has the same weight. For the usual two it has the largest tok/s ÷ p95.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from autotune.search.confirmation import Launches, gains_of, sign_of
from autotune.search.front import Direction
from autotune.search.places import Places
from autotune.stats import Estimate, Scatter
from autotune.stats.measurement import Floats, Ints
from autotune.stats.quantiles import normal_probability
from autotune.stats.slot_effects import Layout, SlotFit, effects
from autotune.stats.superiority import Known, chances
from autotune.stats.two_pools import TwoPools

SURE = 0.95  # probability below which a choice and its rival are a tie
_WIDTH = 0.5  # standard deviation of the kernel, in units of the lead's standard error
_ONE_SIDED = 0.85  # weight of the density at a tie with the baseline
_FEW = 0.5  # degrees of freedom of launches on several slots below which no scatter is known


@dataclass(frozen=True)
class Confirmed:
    """One candidate by its launches in the confirmation.

    Attributes:
        launches: Number of launches.
        values: Mean of each objective, with an interval that holds between launches.
        over_baseline: Ratio of each objective to the baseline's; None: the baseline was not
            confirmed.
    """

    launches: int
    values: tuple[Estimate, ...]
    over_baseline: tuple[Estimate, ...] | None


@dataclass(frozen=True)
class Choice:
    """The best candidate by one rule.

    Attributes:
        number: Number of its trial.
        values: Estimate of each objective without selection bias.
        over_baseline: Ratio of each objective to the baseline's, without selection bias; None: the
            baseline was not confirmed.
        chances: Probability that the choice is truly better by this rule than each other candidate,
            the next best first; None: unknown, because no point was launched twice.
    """

    number: int
    values: tuple[Estimate, ...]
    over_baseline: tuple[Estimate, ...] | None
    chances: Mapping[int, float | None]

    @property
    def runner_up(self) -> int | None:
        """Trial number of the next best candidate; None: there is no other."""
        return next(iter(self.chances), None)

    @property
    def chance(self) -> float | None:
        """Probability that the choice is better than the runner-up; None: unknown."""
        return next(iter(self.chances.values()), None)

    @property
    def rival(self) -> int | None:
        """Trial number of the candidate that the choice is least surely better than.

        It need not be the next best: one with fewer launches may be behind by more and still tie.
        None: there is no other.
        """
        return min(self.chances, key=lambda k: self.chances[k] or 0.0, default=None)

    @property
    def ties(self) -> tuple[int, ...]:
        """Trial numbers of the candidates that may be as good, the next best first."""
        return tuple(k for k, chance in self.chances.items() if chance is None or chance < SURE)

    @property
    def tie(self) -> bool:
        """Whether another candidate may be as good."""
        return bool(self.ties)


@dataclass(frozen=True)
class ConfirmationVerdict:
    """Result of the confirmation.

    Attributes:
        candidates: Confirmed candidates by trial number.
        winners: Choice by each objective.
        balanced: Choice by all objectives; see the module.
        scatters: Scatter of launches of one point, for each objective.
    """

    candidates: Mapping[int, Confirmed]
    winners: tuple[Choice, ...]
    balanced: Choice
    scatters: tuple[Scatter, ...]


def verdict(
    confirmed: Launches,
    searched: Launches,
    directions: Sequence[Direction],
    baseline: int | None,
    places: Places | None = None,
) -> ConfirmationVerdict | None:
    """Return the result of a confirmation, whose choices also use the search's launches.

    Args:
        confirmed: Launches of the candidates, by the trial that was measured again. The
            confirmation may be unfinished, and candidates may have different numbers of launches;
            those without one are left out.
        searched: As in :func:`autotune.search.confirmation.candidates_of`; points with several
            launches add to the known scatter.
        directions: Better direction of each objective.
        baseline: As in :func:`autotune.search.confirmation.candidates_of`.
        places: Where the launches were; of several slots, how they differ is taken out. None: on
            one slot.

    Returns:
        The verdict; None: no candidate has a launch.

    Raises:
        ValueError: a value is not positive.
        KeyError: a candidate is not in ``searched``.
    """
    gains = {k: gains_of(x, directions) for k, x in confirmed.items() if x}
    if not gains:
        return None
    before = {k: gains_of(x, directions) for k, x in searched.items()}
    points: _Points
    if places is not None and places.several:
        points, degrees = _PointsOnSlots.of(gains, before, baseline, directions, places)
        covariance = points.covariance
    else:
        covariance, degrees = _scatter([*gains.values(), *before.values()])
        points = _Points(gains, before, baseline, directions, covariance)
    return ConfirmationVerdict(
        {k: Confirmed(len(x), points.values(k), points.over_baseline(k)) for k, x in gains.items()},
        tuple(points.choice(rule) for rule in range(len(directions))),
        points.choice(len(directions)),
        tuple(Scatter(math.sqrt(v), degrees) for v in np.diag(covariance)[:-1]),
    )


@dataclass(frozen=True)
class _Points:
    """Candidates by their gains; see :func:`autotune.search.confirmation.gains_of`.

    Attributes:
        confirmed: Gains of each candidate's launches in the confirmation.
        searched: Gains of every point's launches in the search.
        baseline: Number of the baseline's trial; None: there is none.
        directions: Better direction of each objective.
        covariance: Covariance of the gains between launches of a point, pooled over all points.
    """

    confirmed: Mapping[int, Floats]
    searched: Mapping[int, Floats]
    baseline: int | None
    directions: Sequence[Direction]
    covariance: Floats

    @cached_property
    def pools(self) -> tuple[TwoPools, ...]:
        """Scatter between launches, for each gain."""
        return self._pools(self.searched)

    @cached_property
    def unselected(self) -> tuple[TwoPools, ...]:
        """The same without points that the search repeated because a launch was good.

        Their first launch is too good, so their launches scatter by too much. Intervals may be
        too wide, but a selection bias may not be overrated.
        """
        base = self.searched.get(self.baseline) if self.baseline is not None else None
        found = self._pools({} if base is None or self.baseline is None else {self.baseline: base})
        return found if found[0].known else self.pools

    def _pools(self, searched: Mapping[int, Floats]) -> tuple[TwoPools, ...]:
        squares = np.zeros((2, len(self.covariance)))
        degrees = [0, 0]
        for of in (self.confirmed, searched):
            for k, x in of.items():
                squares[int(k == self.baseline)] += ((x - x.mean(axis=0)) ** 2).sum(axis=0)
                degrees[int(k == self.baseline)] += len(x) - 1
        return tuple(TwoPools((float(a), float(b)), (degrees[0], degrees[1])) for a, b in squares.T)

    def choice(self, rule: int) -> Choice:
        """Return the best candidate by a rule."""
        known = self._known(rule)
        ranked = sorted(self.confirmed, key=lambda k: -known[k].mean)
        best, rivals = ranked[0], ranked[1:]
        places = list(known)
        found = chances(
            list(known.values()),
            places.index(best),
            list(map(places.index, rivals)),
            self.pools[rule],
        )
        own, lead = self._optimism(rule, {k: known[k] for k in ranked})
        return Choice(
            best,
            self.values(best, own),
            self.over_baseline(best, lead),
            dict(zip(rivals, found, strict=True)),
        )

    def _known(self, rule: int) -> dict[int, Known]:
        """Return each point by all of its launches."""
        return {
            k: Known(
                float(np.concatenate([x, self.confirmed.get(k, x[:0])])[:, rule].mean()),
                len(x) + len(self.confirmed.get(k, ())),
                k == self.baseline,
            )
            for k, x in self.searched.items()
        }

    def _optimism(self, rule: int, known: Mapping[int, Known]) -> tuple[Floats, Floats]:
        """Return the optimism of the choice's gains, and that of its lead over the baseline.

        Args:
            rule: What was chosen by.
            known: Candidates by all of their launches, the choice first.
        """
        best, *rivals = known
        variance = self.covariance[rule, rule]
        if variance <= 0:
            none = np.zeros(len(self.covariance))
            return none, none
        # parts of the means that the confirmation's launches moved
        again = {k: len(self.confirmed[k]) for k in known}
        part = {k: again[k] / (again[k] + len(self.searched[k])) for k in known}
        moved = {k: part[k] * self._variance(rule, k) for k in known}
        error = {k: _WIDTH**2 * part[k] * moved[k] for k in known}
        own = lead = 0.0
        for rival in rivals:
            others = [k for k in rivals if k != rival]
            density = 2 * _density_of_tie(known, error, best, rival, others)
            own += moved[best] * density
            if rival == self.baseline:
                lead += _ONE_SIDED * (moved[best] + moved[rival]) * density
            else:
                lead += moved[best] * density
        share = self.covariance[rule] / variance
        return own * share, lead * share

    def _variance(self, gain: int, number: int) -> float:
        """Return the variance of the mean of a candidate's launches in the confirmation."""
        return self.unselected[gain].variance(*self._shares(number))

    def _shares(self, number: int) -> tuple[float, float]:
        share = 1 / len(self.confirmed[number])
        return (0.0, share) if number == self.baseline else (share, 0.0)

    def values(self, number: int, optimism: Floats | None = None) -> tuple[Estimate, ...]:
        """Return a candidate's values."""
        return self._estimates(self._mean(number), optimism, self._parts(number))

    def over_baseline(
        self, number: int, optimism: Floats | None = None
    ) -> tuple[Estimate, ...] | None:
        """Return a candidate's ratios to the baseline; None: it was not confirmed."""
        if self.baseline is None or self.baseline not in self.confirmed:
            return None
        if number == self.baseline:
            return tuple(Estimate(1.0, 1.0, 1.0) for _ in self.directions)
        gain = self._mean(number) - self._mean(self.baseline)
        return self._estimates(gain, optimism, self._parts(number, self.baseline))

    def _mean(self, number: int) -> Floats:
        """Return the mean gains of a candidate's launches in the confirmation."""
        return np.asarray(self.confirmed[number].mean(axis=0))

    def _parts(self, number: int, over: int | None = None) -> list[tuple[float, float]]:
        """Return the shares of a mean's variance, or a difference's, for each objective.

        Args:
            number: The candidate.
            over: The baseline; None: of the candidate's mean.
        """
        if over is None:
            found = self._shares(number)
        else:
            found = 1 / len(self.confirmed[number]), 1 / len(self.confirmed[over])
        return [found] * len(self.directions)

    def _estimates(
        self, gain: Floats, optimism: Floats | None, parts: Sequence[tuple[float, float]]
    ) -> tuple[Estimate, ...]:
        gain = gain if optimism is None else gain - optimism
        return tuple(
            pool.around(sign_of(d) * float(g), *part)
            for pool, d, g, part in zip(self.pools, self.directions, gain, parts, strict=False)
        )


@dataclass(frozen=True)
class _Rows:
    """Launches one below the other.

    Attributes:
        gains: Gains of each, of shape (launches, rules).
        layout: Which point and slot it is of.
        numbers: Number of each launch's point, of shape (launches,).
    """

    gains: Floats
    layout: Layout
    numbers: Ints

    @classmethod
    def of(cls, *parts: tuple[Mapping[int, Floats], Mapping[int, Sequence[str]]]) -> _Rows:
        """Return the launches of some mappings, each with the places of its launches."""
        numbers = [k for launches, _ in parts for k, x in launches.items() for _ in x]
        at = [place for launches, places in parts for k in launches for place in places[k]]
        gains = np.concatenate([x for launches, _ in parts for x in launches.values()])
        return cls(gains, Layout.of(numbers, at), np.array(numbers))

    @property
    def points(self) -> list[int]:
        """Number of each point, in the order of the layout."""
        return list(dict.fromkeys(self.numbers.tolist()))

    def fits(self, ratios: Sequence[float]) -> list[SlotFit]:
        """Return the fit of each gain."""
        both = zip(self.gains.T, ratios, strict=True)
        return [SlotFit.at(y, self.layout, ratio) for y, ratio in both]


@dataclass(frozen=True)
class _PointsOnSlots(_Points):
    """The same of launches on several slots: how slots differ is taken out.

    A mean is the estimate of what a point gives on a typical slot. The scatter is that of launches
    within a slot. What is not known of how slots differ adds to the variances of what does not
    compare within slots.

    Attributes:
        places: Where the launches were.
        ratios: ρ of each gain, by all launches (:mod:`autotune.stats.slot_effects`).
    """

    places: Places
    ratios: Sequence[float]

    @classmethod
    def of(
        cls,
        confirmed: Mapping[int, Floats],
        searched: Mapping[int, Floats],
        baseline: int | None,
        directions: Sequence[Direction],
        places: Places,
    ) -> tuple[_PointsOnSlots, int]:
        """Return the points, and the degrees of freedom of their scatter."""
        rows = _Rows.of((searched, places.searched), (confirmed, places.confirmed))
        ratios = [effects(y, rows.layout).ratio for y in rows.gains.T]
        fits = rows.fits(ratios)
        rest = np.stack([fit.residuals for fit in fits])
        free = np.array([fit.free.sum() for fit in fits])
        covariance = rest @ rest.T / np.sqrt(np.outer(free, free).clip(_FEW**2))
        found = cls(confirmed, searched, baseline, directions, covariance, places, ratios)
        return found, round(float(free[:-1].min()))

    def _rows(self, searched: Mapping[int, Floats]) -> _Rows:
        """Return launches of the search together with those of the confirmation."""
        return _Rows.of((searched, self.places.searched), (self.confirmed, self.places.confirmed))

    def _pools(self, searched: Mapping[int, Floats]) -> tuple[TwoPools, ...]:
        rows = self._rows(searched)
        base = rows.numbers == self.baseline
        found = []
        for fit in rows.fits(self.ratios):
            squares, free = fit.residuals**2, fit.free
            degrees = [round(float(free[of].sum()), 3) for of in (~base, base)]
            few = sum(degrees) < _FEW
            found.append(
                TwoPools(
                    (float(squares[~base].sum()), float(squares[base].sum())),
                    (0.0, 0.0) if few else (degrees[0], degrees[1]),
                )
            )
        return tuple(found)

    def _known(self, rule: int) -> dict[int, Known]:
        rows = self._rows(self.searched)
        ratio, y = self.ratios[rule], rows.gains[:, rule]
        weights = SlotFit.at(y, rows.layout, ratio).weights
        # what all points share of the slots' effects moves none of them against the others
        at = weights @ rows.layout.z
        share = (weights**2).sum(axis=1) + ratio * ((at - 1 / at.shape[1]) ** 2).sum(axis=1)
        return {
            k: Known(float(mean), 1 / float(own), k == self.baseline)
            for k, mean, own in zip(rows.points, weights @ y, share, strict=True)
        }

    @cached_property
    def _again(self) -> tuple[_Rows, list[SlotFit]]:
        """The launches of the confirmation, and the fit of each gain."""
        rows = _Rows.of((self.confirmed, self.places.confirmed))
        return rows, rows.fits(self.ratios)

    def _mean(self, number: int) -> Floats:
        rows, fits = self._again
        own = rows.points.index(number)
        return np.array([f.weights[own] @ y for f, y in zip(fits, rows.gains.T, strict=True)])

    def _parts(self, number: int, over: int | None = None) -> list[tuple[float, float]]:
        rows, fits = self._again
        base, out = rows.numbers == self.baseline, []
        for fit in fits[:-1]:
            w = fit.weights[rows.points.index(number)]
            if over is not None:
                w = w - fit.weights[rows.points.index(over)]
            slots = fit.ratio * ((w @ rows.layout.z) ** 2).sum()
            out.append((float((w[~base] ** 2).sum() + slots), float((w[base] ** 2).sum())))
        return out


def _density_of_tie(
    known: Mapping[int, Known],
    error: Mapping[int, float],
    a: int,
    b: int,
    others: Sequence[int],
) -> float:
    """Return the probability density that two candidates tie above all others.

    Args:
        known: Candidates by all of their launches.
        error: Variance of the normal kernel around each one's mean.
        a: The one.
        b: The other.
        others: All others.
    """
    both = error[a] + error[b]
    if both <= 0:
        return 0.0
    at = (known[a].mean * error[b] + known[b].mean * error[a]) / both
    around = error[a] * error[b] / both
    z = (known[a].mean - known[b].mean) / math.sqrt(both)
    density = math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi * both)
    for k in others:
        density *= normal_probability((at - known[k].mean) / math.sqrt(error[k] + around))
    return density


def _scatter(groups: Sequence[Floats]) -> tuple[Floats, int]:
    """Return the pooled covariance between launches of one point, and its degrees of freedom.

    Args:
        groups: Gains of the launches of each point.

    Returns:
        The covariance, of shape (rules, rules), and the degrees.
    """
    degrees = sum(len(x) - 1 for x in groups)
    rest = np.concatenate([x - x.mean(axis=0) for x in groups])
    return rest.T @ rest / max(degrees, 1), degrees
