"""Proposes the next point: seeds, then the launch that is worth most; front and confirmation."""

from autotune.search.acceptance import Prediction, SpeculationLaunch, WhatIf, what_if
from autotune.search.confirmation import Choice, Confirmed, Launches, Verdict, plan, verdict
from autotune.search.front import Direction, baseline_speedup, front_numbers
from autotune.search.sampler import (
    Converged,
    SearchEnds,
    SpaceExhausted,
    StudySampler,
    Suggestion,
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
    "SearchEnds",
    "SpaceExhausted",
    "SpeculationLaunch",
    "StudySampler",
    "Suggestion",
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
