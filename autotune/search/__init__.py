"""Search: seeds, then the launch of the largest expected gain; Pareto front and confirmation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autotune._lazy import importer

if TYPE_CHECKING:
    from autotune.search.acceptance import Prediction, SpeculationLaunch, WhatIf, what_if
    from autotune.search.confirmation import (
        Choice,
        ConfirmationVerdict,
        Confirmed,
        Launches,
        plan,
        verdict,
    )
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
    "ConfirmationVerdict",
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
    "WhatIf",
    "baseline_speedup",
    "front_numbers",
    "grid_points",
    "plan",
    "seed_points",
    "verdict",
    "what_if",
]

__getattr__ = importer(
    __name__,
    {
        "Prediction": "acceptance",
        "SpeculationLaunch": "acceptance",
        "WhatIf": "acceptance",
        "what_if": "acceptance",
        "Choice": "confirmation",
        "Confirmed": "confirmation",
        "Launches": "confirmation",
        "ConfirmationVerdict": "confirmation",
        "plan": "confirmation",
        "verdict": "confirmation",
        "Direction": "front",
        "baseline_speedup": "front",
        "front_numbers": "front",
        "Proposal": "model",
        "Converged": "proposer",
        "Proposer": "proposer",
        "SearchEnds": "proposer",
        "SpaceExhausted": "proposer",
        "grid_points": "proposer",
        "seed_points": "proposer",
    },
)
