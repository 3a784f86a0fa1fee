"""Worlds of kinds that the search was not made with: where its beliefs are wrong or of no use.

================  ==================================================================================
world             what it is, and why it may be so
================  ==================================================================================
two-peaks         Steps are fast at n = 3 and 12, slow between and beside: kernels are tuned for
                  some numbers of tokens and take the next best elsewhere, as an H200 had n = 4 to 6
                  below 3 and 7. The acceptance foretells one broad peak in the valley.
crash-above-7     Every launch with n > 7 crashes, for a kernel serves at most 8 tokens of a request
                  at once; tok/s rise up to there, and by the acceptance far beyond.
flat              Neither n nor MNBT changes anything: one thread that sends the answers bounds the
                  server, so drafts pay exactly what they cost.
moe               128 experts of which each token reads 8, four users: up to some 50 tokens each one
                  more makes a step read more experts, so drafts are cheap only in large numbers.
load-1 … load-64  One pair of models and one GPU at concurrency 1, 4, 16 and 64: the best n falls
                  from 7 to 3 and 2, as more requests leave a step less to gain.
mnbt-from-12      vLLM 0.26 takes (n-1)·max_num_seqs slots from MNBT: of 1024 tokens too few are
                  left for a prompt from n = 12 on, which are the best n; below, nothing is lost.
================  ==================================================================================

The truth of each is in its table; nothing of it is told to a search but by launches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial

import numpy as np
from surfaces_base import SEQS, Region, World
from surfaces_generated import GRAPHS, Physics, generated, ladders

from autotune.errors import FailureKind
from autotune.study.space import N


def _peaks() -> World:
    def slow(n: int) -> float:
        """Return the factor of a step without a tuned kernel, and less next to those with one."""
        at_3, at_12 = (math.exp(-(((n - peak) / 0.6) ** 2)) for peak in (3, 12))
        return 1.4 - 0.35 * at_3 - 0.6 * at_12

    physics = Physics(
        places=8,
        prompt=400,
        hazard=0.75,
        decay=0.9,
        step=6.0,
        token=0.05,
        draft=1.0,
        draft_token=0.01,
        bumps={n: slow(n) for n in range(1, 16)},
    )
    words = "8 users, kernels tuned for n = 3 and 12: two peaks that acceptance does not foretell"
    return generated("two-peaks", words, physics, ladders(512, 8192))


def _crash() -> World:
    physics = Physics(places=8, hazard=0.8, decay=0.95, step=7.0, token=0.01)
    region = Region(
        "a kernel dies at more than 8 tokens of a request: n > 7",
        FailureKind.CRASH,
        lambda q: int(q[N]) > 7,
    )
    words = "8 users, every n > 7 crashes and n = 7 is best"
    return generated("crash-above-7", words, physics, ladders(512, 8192), regions=(region,))


def _flat() -> World:
    physics = Physics(places=8, hazard=0.7)
    words = "8 users, nothing matters: all points have the same truth"
    w = generated("flat", words, physics, ladders(512, 8192))
    logs = np.broadcast_to(w.logs[w.place(w.baseline())], w.logs.shape)
    return replace(w, logs=logs, seconds=np.full(len(w.points), w.seconds[0]))


def _experts() -> World:
    physics = Physics(
        places=4,
        hazard=0.8,
        decay=0.94,
        step=2.5,
        token=0.01,
        draft=0.8,
        draft_token=0.01,
        experts=(128, 8, 9.0),
        output=512,
    )
    words = "4 users of a mixture of 128 experts, 8 for each token"
    return generated("moe", words, physics, ladders(512, 8192))


def _load(places: int) -> World:
    physics = Physics(
        places=places,
        hazard=0.78,
        decay=0.9,
        tilt=0.0,
        step=5.0,
        token=0.03,
        knee=96,
        draft=0.8,
        draft_token=0.015,
        bumps={n: 1 + (x - 1) / 3 for n, x in GRAPHS.items()},
        prompt=512,
    )
    words = f"one study at four loads: concurrency {places}"
    return generated(f"load-{places}", words, physics, ladders(1024, 16384))


def _slots() -> World:
    physics = Physics(
        places=4,
        prompt=300,
        output=96,
        hazard=0.92,
        decay=0.985,
        step=6.0,
        token=0.03,
        draft_token=0.1,
        slots=64,
    )
    return generated(
        "mnbt-from-12",
        "4 users, vLLM 0.26: MNBT 1024 is too small for drafts of n ≥ 12, the best ones",
        physics,
        ladders(1024, 8192),
        fixed={SEQS: 64},
        version="0.26.0",
    )


HELD_OUT: Mapping[str, Callable[[], World]] = {
    "two-peaks": cache(_peaks),
    "crash-above-7": cache(_crash),
    "flat": cache(_flat),
    "moe": cache(_experts),
    **{f"load-{c}": cache(partial(_load, c)) for c in (1, 4, 16, 64)},
    "mnbt-from-12": cache(_slots),
}
