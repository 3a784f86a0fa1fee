"""Proposes the next point: seeds, then a Gaussian process over what can launch and is untried."""

from autotune.search.confirmation import Choice, Confirmed, Launches, Verdict, plan, verdict
from autotune.search.front import Direction, baseline_speedup, front_numbers
from autotune.search.sampler import SpaceExhausted, StudySampler, grid_points, seed_points

__all__ = [
    "Choice",
    "Confirmed",
    "Direction",
    "Launches",
    "SpaceExhausted",
    "StudySampler",
    "Verdict",
    "baseline_speedup",
    "front_numbers",
    "grid_points",
    "plan",
    "seed_points",
    "verdict",
]
