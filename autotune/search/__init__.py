"""Proposes the next point: seeds, then a Gaussian process over what can launch and is untried."""

from autotune.search.front import baseline_speedup, front_numbers
from autotune.search.sampler import SpaceExhausted, StudySampler, grid_points, seed_points

__all__ = [
    "SpaceExhausted",
    "StudySampler",
    "baseline_speedup",
    "front_numbers",
    "grid_points",
    "seed_points",
]
