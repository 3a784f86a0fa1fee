"""How long and how the fuzz tests look."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# AUTOTUNE_FUZZ=20 looks that many times longer, at other examples each time
LONGER = int(os.environ.get("AUTOTUNE_FUZZ", "1"))


def fuzz(examples: int) -> settings:
    return settings(
        max_examples=examples * LONGER,
        deadline=None,
        derandomize=LONGER == 1,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
