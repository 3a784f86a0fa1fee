"""What a study says of itself, against the truth: whether a parameter is seen to matter.

    python benchmarks/statements.py [--worlds flat …] [--noise 0.005 0.03 0.1] [--seeds 60]
    python benchmarks/statements.py --show benchmarks/data/statements.json

A search is replayed in worlds of `benchmarks/surfaces.py`, and in nearly flat ones that are made
here, as `autotune run --all-trials` does it, without replicates and confirmation. After 20, 30 and
40 launches the report's importance is asked whether n, or MNBT, is seen to matter for tok/s or p95.
A point that was launched several times has the mean of its launches, and fewer than 20 points get
no answer.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the matrices are tiny: threads wait for each other

import argparse
import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState
from search import DIRECTIONS
from surfaces import SIGNS, World, names, world

from autotune.output.report.importance import importances
from autotune.results.tables import Column, Row, Table, text_lines
from autotune.search.proposer import Proposer, SearchEnds, nearest, seed_points
from autotune.study.space import MNBT, N, Point
import objectives

NOISE = (0.005, 0.03, 0.1)
ASKED_AT = (8, 14, 20, 30, 40)


@dataclass(frozen=True)
class Launch:
    """One measured launch: its point, tok/s and p95, and the variances of their logarithms."""

    point: Point
    values: tuple[float, float]
    variances: tuple[float, float]


# -- worlds ----------------------------------------------------------------------------------------


def nearly_flat(shape: str, difference: float, sigma: float, seed: int) -> World:
    """Return a world whose largest true difference from the baseline is known.

    Args:
        shape: ``slope`` along n, ``budget``: a step in MNBT, ``bump`` at three n, ``smooth``: any.
        difference: Largest difference from the baseline, of the logarithms of tok/s and p95.
        sigma: Standard deviation of a launch.
        seed: Of what is drawn: whether it is better or worse, and where.
    """
    base = world("gen-8", sigma)
    rng = np.random.default_rng([seed, 7])
    ns = np.array([int(q[N]) for q in base.points])
    budgets = np.log2([int(q[MNBT]) for q in base.points])
    at = base.place(base.baseline())
    match shape:
        case "slope":
            gain = ns / 15
        case "budget":
            gain = (budgets > budgets[at]) * 1.0
        case "bump":
            gain = (abs(ns - rng.integers(2, 15)) <= 1) * 1.0
        case "smooth":
            centers = rng.uniform([0, budgets.min()], [15, budgets.max()], (4, 2))
            far = [((ns - n) / 4) ** 2 + ((budgets - b) / 2) ** 2 for n, b in centers]
            gain = np.exp(-np.array(far) / 2).T @ rng.normal(size=4)
        case _:
            gain = np.zeros(len(ns))
    gain = gain - gain[at]
    size = np.nanmax(abs(gain[base.launchable()])) or 1.0
    gain = gain * difference / size * rng.choice([-1, 1])
    level = base.logs[at]
    return replace(
        base, name=shape, logs=np.where(np.isnan(base.logs), np.nan, level - SIGNS * gain[:, None])
    )


# -- replays ---------------------------------------------------------------------------------------


def searched(w: World, seed: int, most: int) -> list[Launch]:
    """Return the measured launches of a search, in their order."""
    rng = np.random.default_rng([seed, 1])

    def feasible(point: Point) -> bool:
        return w.infeasible(point) is None

    baseline = nearest(w.space, w.baseline(), feasible)
    assert baseline is not None
    proposer = Proposer(w.space, w.infeasible, DIRECTIONS, method="gp", seed=seed)
    study = optuna.create_study(directions=DIRECTIONS)
    points = seed_points(w.space, baseline, feasible)
    found: list[Launch] = []
    while points:
        for point in points:
            study.enqueue_trial(w.space.encode(point))
            trial = study.ask(w.space.distributions())
            outcome = w.launch(point, rng)
            if outcome.values is None:
                trial.set_user_attr("failure_kind", str(outcome.failure))
                study.tell(trial, state=TrialState.FAIL)
                continue
            assert outcome.log_variances is not None
            trial.set_user_attr("log_variances", list(outcome.log_variances))
            trial.set_user_attr("acceptance_per_position", list(outcome.acceptance_per_position))
            trial.set_user_attr("acceptance_length", outcome.acceptance_length)
            study.tell(trial, outcome.values)
            found.append(Launch(dict(point), outcome.values, outcome.log_variances))
        if len(study.trials) >= most:
            return found
        try:
            points = [proposer.propose(study.get_trials(deepcopy=False)).point]
        except SearchEnds:
            return found
    return found


# -- importance ------------------------------------------------------------------------------------


def matters(w: World, launches: Sequence[Launch]) -> dict[str, bool] | None:
    """Return whether each parameter is seen to matter for anything; None: too few points."""
    by: dict[int, list[Launch]] = {}
    for x in launches:
        by.setdefault(w.place(x.point), []).append(x)
    found = importances(
        w.space,
        [group[0].point for group in by.values()],
        np.array([np.mean([x.values for x in group], axis=0) for group in by.values()]),
        [objectives.get("throughput"), objectives.get("p95_latency")],
    )
    if not found:
        return None
    return {name: any(name in x.shares for x in found.values()) for name in w.space.params}
