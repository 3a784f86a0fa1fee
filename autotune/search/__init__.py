"""Proposes the next point: seeds, then the launch that is worth most; front and confirmation."""

from autotune.search.acceptance import Prediction, SpeculationLaunch, WhatIf, what_if
from autotune.search.confirmation import Choice, Confirmed, Launches, Verdict, plan, verdict
from autotune.search.front import Direction, baseline_speedup, front_numbers
from autotune.search.model import Proposal
from autotune.search.proposer import (
    Converged,
    Proposer,
    SearchEnds,
    SpaceExhausted,
    grid_points,
    seed_points,
)

__all__ = [
    "Choice",
    "Confirmed",
    "Converged",
    "Direction",
    "Launches",
    "Prediction",
    "Proposal",
    "Proposer",
    "SearchEnds",
    "SpaceExhausted",
    "SpeculationLaunch",
    "Verdict",
    "WhatIf",
    "baseline_speedup",
    "front_numbers",
    "grid_points",
    "plan",
    "seed_points",
    "verdict",
    "what_if",
]
