"""Importance of the searched parameters for each objective, beyond that of shuffled values.

=========  ========================================================================================
symbol     meaning
=========  ========================================================================================
y          cost of each point: the logarithm of an objective, or the objective where it has none
g_j        part of y that parameter j explains
K_j        kernel of parameter j: how close two points are in it alone; Matérn 5/2
λ          variance of what no parameter explains, over that of one that does
S          smoother of all parameters but j: S = K(K + λI)⁻¹ with K = 1 + Σ_{k≠j} K_k
r          residuals without j: (I − S)y
T_j        rᵀK_j r, large where points that are close in j have similar residuals
p_j        share of T_j with shuffled residuals that reach it, times the number of tests
=========  ========================================================================================

    y = constant + Σ_j g_j(x_j) + rest

An additive model, fitted by kernel ridge regression. T_j is the score statistic of a kernel (D.
Liu, X. Lin, D. Ghosh, "Semiparametric regression of multidimensional genetic pathway data",
Biometrics 63, 2007). Its null distribution is that of the same statistic with shuffled residuals
(D. Freedman, D. Lane, "A nonstochastic interpretation of reported significance levels", Journal of
Business & Economic Statistics 1, 1983). Without it, the fit of few points gives every parameter a
share, also where nothing but noise differs. Because of the residuals, a parameter is not said to
matter for having been varied together with one that does. λ minimizes the leave-one-out error of
the model without j. A parameter is *seen* to matter if p_j is at most ``_LEVEL``, where p_j counts
every parameter of every objective as a test (Bonferroni). Its share is the variance of g_j over the
points, in the model of the parameters that are seen to matter, of the sum of these variances.

Optuna's PED-ANOVA compares the best quarter of the trials with all of them. A search launches
mostly near the best, where the two differ little, so it has hardly any power beyond shuffled
values. fANOVA would need scikit-learn.

Shuffled values are exchangeable. Those of a search are not quite: it goes where they were good, and
the mean of several launches scatters less. So ``_LEVEL`` is below the stated error, ``ERROR``,
which `benchmarks/statements.py` measures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autotune.search.features import unit
from autotune.stats.measurement import Floats
from autotune.study.space import Point, Space
from objectives import Objective

# Fewer points are too few for a shuffle to be rare enough.
LEAST_POINTS = 8
# With fewer points, that nothing is seen says little.
_TELLING = 20
# Largest probability that anything is said to matter where nothing does …
ERROR = 0.05
# … and the level of the tests that keeps to it: values of a search are not quite exchangeable.
_LEVEL = 0.02
_LENGTH = 0.4  # length scale of a feature from 0 to 1, as the surrogate's prior has it
_RATIOS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)  # λ
_SHUFFLES = 1999
_SEED = 0


@dataclass(frozen=True)
class Importance:
    """Importance of the parameters for one objective.

    Attributes:
        shares: Share of each parameter that is seen to matter, largest first, of 1 together; empty:
            none is.
        chances: For every searched parameter, the probability (at most 1) that any parameter seems
            to matter as much by chance, for any objective.
    """

    shares: Mapping[str, float]
    chances: Mapping[str, float]


def importances(
    space: Space, points: Sequence[Point], values: Floats, objectives: Sequence[Objective]
) -> dict[str, Importance]:
    """Return the importance of the parameters for each objective, by its name.

    Args:
        space: Searched parameters.
        points: Different points.
        values: Mean values over the launches of each point, of shape (points, objectives).
        objectives: The objectives with the study's directions.

    Returns:
        Nothing of fewer than ``LEAST_POINTS`` points, or where fewer than two parameters differ.
    """
    if len(points) < LEAST_POINTS:
        return {}
    kernels = {name: _kernel(space, name, points) for name in space.params}
    kernels = {name: k for name, k in kernels.items() if np.ptp(k) > 0}
    if len(kernels) < 2:
        return {}
    tests = len(kernels) * len(objectives)
    return {
        o.name: _importance(kernels, _costs(values[:, i]), tests) for i, o in enumerate(objectives)
    }


def nothing_seen_text(points: int) -> str:
    """Return the sentence of a study in which no parameter is seen to matter.

    Args:
        points: Number of points that were looked at.
    """
    if points < _TELLING:
        return (
            f"Not known: no parameter is seen to matter by {points} points, but fewer than "
            f"{_TELLING} often hide a large effect."
        )
    return f"No parameter is seen to matter by {points} points."


def _kernel(space: Space, name: str, points: Sequence[Point]) -> Floats:
    """Return how close points are in one parameter, of shape (points, points), from 0 to 1."""
    alone = Space({name: space.params[name]})
    x = np.array([unit(alone, q) for q in points])
    r = np.sqrt(5 * ((x[:, None] - x[None]) ** 2).sum(axis=2)) / _LENGTH
    return np.asarray((1 + r + r**2 / 3) * np.exp(-r))


def _costs(values: Floats) -> Floats:
    """Return standardized costs; a sign is of no matter for how much a parameter explains."""
    y = np.log(values) if (values > 0).all() else values
    spread = float(y.std())
    return np.asarray((y - y.mean()) / (spread or 1.0))


def _importance(kernels: Mapping[str, Floats], y: Floats, tests: int) -> Importance:
    """Return what each parameter explains of costs."""
    if not y.any():
        return Importance({}, dict.fromkeys(kernels, 1.0))
    rng = np.random.default_rng(_SEED)
    order = rng.permuted(np.tile(np.arange(len(y)), (_SHUFFLES, 1)), axis=1).T  # points × shuffles
    chances = {}
    for name, own in kernels.items():
        others = np.sum([k for other, k in kernels.items() if other != name], axis=0)
        smooth = _smoother(others, _ratio(others, y))
        fitted = smooth @ y
        shuffled = fitted[:, None] + (y - fitted)[order]
        residuals = np.column_stack([y, shuffled])
        residuals = residuals - smooth @ residuals
        reached = (residuals * (own @ residuals)).sum(axis=0) / (residuals**2).sum(axis=0)
        chance = float(np.mean(reached >= reached[0] * (1 - 1e-9)))
        chances[name] = min(1.0, chance * tests)
    return Importance(
        _shares({name: k for name, k in kernels.items() if chances[name] <= _LEVEL}, y), chances
    )


def _shares(kernels: Mapping[str, Floats], y: Floats) -> dict[str, float]:
    """Return the share of each parameter in the variance that all of them explain, largest first.

    Args:
        kernels: Kernels of the parameters that are seen to matter.
        y: Costs.
    """
    if not kernels:
        return {}
    every = np.sum(list(kernels.values()), axis=0)
    weights = np.linalg.solve(1.0 + every + _ratio(every, y) * np.eye(len(y)), y)
    variances = {name: float((k @ weights).var()) for name, k in kernels.items()}
    ranked = sorted(variances, key=lambda name: -variances[name])
    return {name: variances[name] / sum(variances.values()) for name in ranked}


def _ratio(kernel: Floats, y: Floats) -> float:
    """Return the λ with the smallest leave-one-out error."""
    return min(_RATIOS, key=lambda ratio: _left_out(kernel, y, ratio))


def _smoother(kernel: Floats, ratio: float) -> Floats:
    """Return the matrix that fits a constant and a kernel to costs."""
    whole = 1.0 + kernel
    return np.asarray(np.linalg.solve(whole + ratio * np.eye(len(kernel)), whole))


def _left_out(kernel: Floats, y: Floats, ratio: float) -> float:
    """Return the mean squared error of each cost as predicted by the others, in closed form."""
    smooth = _smoother(kernel, ratio)
    return float(np.mean(((y - smooth @ y) / (1 - np.diag(smooth))) ** 2))
