"""Generated worlds, from how speculative decoding works, and those of Gemma 4.

With b requests side by side,

- tokens per step E(n) = 1 + Σ_{i≤n} Π_{j≤i} h·d^(j-1), the hazard h changing a little with n, as
  drafting n is not truncating a longer draft;
- seconds per step T(n) = draft(n) + verify((n+1)·b): affine, beyond a knee bound by computing;
- of a mixture of experts, a step also reads those that its t tokens choose: of E experts with k for
  each token these are E·(1 - (1 - k/E)^t) if all are as popular (Z. Huang et al., "MoESD: Unveil
  speculative decoding's potential for accelerating sparse MoE", arXiv 2505.19645);
- a prompt is read in ⌈prompt / (MNBT - (n+1)·b)⌉ chunks, each of which holds up the others: a
  large budget reads it at once, and makes the others' stalls longer, which p95 feels; up to vLLM
  0.27 the slots of drafts, (n-1)·max_num_seqs, are also taken from that budget;
- steps without a full CUDA graph at some n are slower: n = 4, 5, 6 are bumps;
- more requests than max_num_seqs wait.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from surfaces_base import DFLASH, KV, SEQS, SIGNS, Floats, Region, World

from autotune.engine.batch_budget import Load, batch_budget
from autotune.engine.rule import Known
from autotune.engine.rules import why_infeasible
from autotune.errors import FailureKind
from autotune.results.batch_budget import Families
from autotune.search.alike import Alike
from autotune.study.space import MNBT, ChoiceParam, IntParam, N, Point, Pow2Param, Space, Value


@dataclass(frozen=True)
class Physics:
    """Of one machine, one pair of models and one load; times in ms.

    Attributes:
        places: Concurrent requests.
        prompt: Tokens of a prompt.
        output: Tokens of an answer.
        hazard: Chance that the first draft token is accepted.
        decay: Factor of that chance from position to position.
        tilt: Relative change of all hazards from n = 0 to n = 15.
        step: A step without drafts and of no tokens.
        token: Each further token of a step, above the knee.
        knee: Tokens that are nearly free; 0: none is.
        draft: The draft's step.
        draft_token: Each of its tokens and places.
        bumps: Factor of a step by n.
        stall: Share of others' prompt chunks that p95 feels at once.
        report: What of the acceptance is reported, as a power: below 1 it is flattered.
        spread: How far answers differ in acceptance; p95 feels it, the more the larger n.
        experts: Experts, those that each token chooses, and the time to read all of them.
        slots: Of each request of ``max_num_seqs`` that are taken from MNBT, by token beyond the
            first.
    """

    places: int = 8
    prompt: int = 1200
    output: int = 256
    hazard: float = 0.65
    decay: float = 0.93
    tilt: float = 0.05
    step: float = 8.0
    token: float = 0.02
    knee: float = 128.0
    draft: float = 1.5
    draft_token: float = 0.002
    bumps: Mapping[int, float] = field(default_factory=dict)
    stall: float = 1.5
    report: float = 1.0
    spread: float = 0.12
    experts: tuple[int, int, float] = (1, 1, 0.0)
    slots: int = 0

    def survival(self, n: int, *, quality: float = 1.0) -> Floats:
        """Chance that the first i draft tokens are all accepted, i = 1 … n."""
        first = self.hazard * quality * (1 + self.tilt * n / 15)
        hazards = np.minimum(first * self.decay ** np.arange(n), 0.99)
        return np.cumprod(hazards)

    def logs(self, point: Point) -> tuple[float, float]:
        """log tok/s and log p95."""
        n, budget = int(point[N]), int(point[MNBT])
        seqs = int(point.get(SEQS, self.places))
        small = point.get(KV) == "fp8"  # faster attention, a little less acceptance
        b = min(self.places, seqs)
        tokens = 1 + float(self.survival(n, quality=0.96 if small else 1.0).sum())
        size = (n + 1) * b
        # larger budgets and more slots keep more memory and graphs busy
        extra = 1 + 0.01 * max(0.0, math.log2(budget / 2048))
        extra *= 1 + 0.015 * max(0.0, math.log2(seqs / self.places))
        bump = self.bumps.get(n, 1.0) if b > 1 or self.report != 1 else 1.0
        drafting = self.draft + self.draft_token * size if n else 0.0

        def verify(tokens: float) -> float:
            computing = self.token * tokens * tokens / (tokens + self.knee)
            every, each, reading = self.experts
            computing += reading * (1 - (1 - each / every) ** tokens)
            return extra * (self.step * (0.93 if small else 1.0) + computing)

        step = bump * verify(size) + drafting
        share = max(16, budget - size - self.slots * max(0, n - 1))
        chunks = math.ceil(self.prompt / share)
        chunk = verify(size + min(share, self.prompt)) + drafting
        steps = self.output / tokens
        held_up = (b - 1) * chunks * max(0.0, chunk - step)
        service = chunks * chunk + steps * step + held_up
        rate = 1000 * b * self.output / service
        waiting = service * (self.places / b - 1)
        spread = 1.645 * (0.06 + self.spread * (1 - 1 / tokens))
        tail = self.stall * math.sqrt(b - 1) * max(0.0, chunk - step)
        return math.log(rate), math.log(service * (1 + spread) + waiting + tail)


def generated(
    name: str,
    words: str,
    physics: Physics,
    space: Space,
    *,
    fixed: Mapping[str, Value] | None = None,
    version: str = "0.32.0",
    regions: Sequence[Region] = (),
    start_s: float = 70.0,
) -> World:
    """The world of one physics.

    Args:
        fixed: Flags that are not searched, for the rules.
        version: Of vLLM, for the rules.
        start_s: Until a server is healthy and again gone.
    """
    points = list(space.points() or ())
    reasons = [why_infeasible({**DFLASH, **(fixed or {}), **q}, version) for q in points]
    logs = np.array([physics.logs(q) for q in points])
    acceptance, lengths = [], []
    for q in points:
        n = int(q[N])
        real = physics.survival(n, quality=0.96 if q.get(KV) == "fp8" else 1.0)
        reported = real**physics.report
        acceptance.append(tuple(float(x) for x in reported))
        lengths.append(1 + float(reported.sum()) if n else None)
    # 100 answers, or so many that it lasts half a minute
    lasts = np.maximum(30.0, 100 * physics.output / np.exp(logs[:, 0]))
    noise = np.broadcast_to([0.015, 0.03], logs.shape)
    return World(
        name,
        words,
        space,
        points,
        reasons,
        regions,
        logs,
        noise,
        None,
        acceptance,
        lengths,
        start_s + lasts,
        failed_seconds=start_s,
        alike=alike_of(
            space,
            {**DFLASH, **(fixed or {})},
            version,
            Load(physics.places, physics.prompt, physics.output, images=False),
        ),
    )


def ladders(low: int, high: int, **more: IntParam | Pow2Param | ChoiceParam) -> Space:
    """n from 0 to 15, MNBT in powers of two, and more."""
    params: dict[str, Any] = {
        N: IntParam(type="int", low=0, high=15),
        MNBT: Pow2Param(type="pow2", low=low, high=high),
    }
    return Space(params | more)


GRAPHS = {4: 1.35, 5: 1.3, 6: 1.25, 10: 1.1}


def _one() -> World:
    physics = Physics(places=1, step=1.4, draft=1.0, draft_token=0.001, token=0.002, spread=0.6)
    return generated("gen-1", "one user on a GPU: launches bound it", physics, ladders(512, 8192))


def _bumps() -> World:
    physics = Physics(places=8, step=2.0, token=0.006, draft=0.6, bumps=GRAPHS)
    return generated("gen-8", "8 users, bumps in n", physics, ladders(512, 8192))


def _busy() -> World:
    physics = Physics(
        places=32,
        hazard=0.85,
        decay=0.97,
        step=6.0,
        token=0.02,
        bumps=GRAPHS,
        prompt=900,
        spread=0.5,
    )
    words = "32 users, code: high acceptance, bound by computing, bumps"
    return generated("gen-32", words, physics, ladders(512, 16384))


def _cpu() -> World:
    physics = Physics(
        places=4,
        prompt=300,
        output=96,
        hazard=0.5,
        decay=0.85,
        step=12,
        token=3.0,
        knee=0,
        draft=3,
        draft_token=0.3,
        stall=0.5,
    )
    words = "4 users on a CPU: speculation loses"
    return generated("gen-cpu", words, physics, ladders(32, 2048), start_s=60)


def _memory() -> World:
    physics = Physics(places=16, hazard=0.88, decay=0.98, step=9.0, token=0.015, prompt=3000)
    region = Region(
        "out of memory at n ≥ 10 with MNBT ≥ 8192",
        FailureKind.OOM,
        lambda q: int(q[N]) >= 10 and int(q[MNBT]) >= 8192,
    )
    return generated(
        "gen-oom",
        "16 users, vLLM 0.26: large n and MNBT tempt, the corner is out of memory",
        physics,
        ladders(512, 16384),
        fixed={SEQS: 64},
        version="0.26.0",
        regions=(region,),
    )


def _local() -> World:
    physics = Physics(places=8, hazard=0.8, decay=0.95, step=7.0, bumps=GRAPHS)
    region = Region(
        "a kernel dies at n = 8 … 11 with MNBT ≥ 4096",
        FailureKind.CRASH,
        lambda q: 8 <= int(q[N]) <= 11 and int(q[MNBT]) >= 4096,
    )
    words = "8 users, a kernel that dies in the middle of the space"
    return generated("gen-kernel", words, physics, ladders(512, 8192), regions=(region,))


def _four() -> World:
    physics = Physics(
        places=24, hazard=0.78, decay=0.95, step=7.0, token=0.02, bumps=GRAPHS, spread=0.4
    )
    space = ladders(
        512,
        8192,
        **{
            SEQS: Pow2Param(type="pow2", low=8, high=128),
            KV: ChoiceParam(type="choice", choices=("auto", "fp8")),
        },
    )
    regions = (
        Region(
            "out of memory in the capture of graphs at max_num_seqs = 128 with MNBT = 8192",
            FailureKind.OOM_CAPTURE,
            lambda q: int(q[SEQS]) >= 128 and int(q[MNBT]) >= 8192,
        ),
        Region(
            "fp8 cannot attend both ways: no draft of more than 7",
            FailureKind.BAD_CONFIG,
            lambda q: q[KV] == "fp8" and int(q[N]) > 7,
        ),
    )
    return generated(
        "gen-4d",
        "24 users, vLLM 0.26, four parameters: n, MNBT, max_num_seqs, kv-cache-dtype",
        physics,
        space,
        version="0.26.0",
        regions=regions,
    )


def _adversary() -> World:
    bumps = {n: 1.0 + 0.045 * n + 0.2 * (n % 3 == 1) for n in range(1, 16)}
    bumps |= {4: 0.95, 5: 0.9, 6: 0.95, 11: 0.7, 12: 0.75}
    physics = Physics(places=8, hazard=0.75, decay=0.9, step=7.0, bumps=bumps, report=0.3)
    words = "reported acceptance flatters, steps are slow and fast where no theory says so"
    return generated("gen-adversary", words, physics, ladders(512, 8192))


# Launches on an H200 with 0.26 of Gemma 4 26B A4B's shape: synthetic acceptance, concurrency 1, 256
# tokens in, 1024 out; n, tok/s and p95 of E2EL in ms. MNBT was 4096 or 8192.
_GEMMA = (
    *((0, 243, 4239), (0, 253, 4263), (0, 251, 4626), (1, 277, 4083), (3, 412, 2998)),
    *((7, 626, 1952), (11, 679, 1685), (11, 641, 1760), (13, 678, 1679), (14, 650, 1723)),
    *((15, 719, 1682), (15, 650, 1831)),
)
_GEMMA_TOKENS = 1 + np.cumsum(
    [0, 0.75, 0.58, 0.46, 0.37, 0.3, 0.24, 0.19, 0.15, 0.12, 0.095, 0.075, 0.06, 0.05, 0.04, 0.03]
)


def _gemma_table() -> Floats:
    """log tok/s and log p95 by n: means of the launches, and between them the step's cost."""
    table = np.array(_GEMMA, dtype=np.float64)
    ns = np.unique(table[:, 0])
    means = np.array([np.log(table[table[:, 0] == n, 1:]).mean(axis=0) for n in ns])
    per_step = means + SIGNS * np.log(_GEMMA_TOKENS[ns.astype(int)])[:, None]
    each = [np.interp(np.arange(16), ns, column) for column in per_step.T]
    out = np.column_stack(each) - SIGNS * np.log(_GEMMA_TOKENS)[:, None]
    out[0] = means[0]
    return np.asarray(out)


def _slow_draft() -> Floats:
    """The same with a draft whose every token costs 0.12 ms: the best n is 11."""
    ms = np.array([4.0, *(6.4 + 0.12 * n for n in range(1, 16))])
    rates = 1000 * _GEMMA_TOKENS / ms
    return np.log(np.column_stack([rates, 1.12 * 1024_000 / rates]))


def _gemma(
    name: str,
    words: str,
    by_n: Floats,
    *,
    version: str = "0.26.0",
    seqs: int = 1,
    loss: Callable[[Point], float] = lambda q: 0.0,
) -> World:
    """The bundled study of Gemma 4 26B: 64 points, of which 16 differ where MNBT cannot bind.

    Args:
        by_n: log tok/s and log p95, n × 2.
        version: Of vLLM.
        seqs: ``max_num_seqs``.
        loss: What a point loses, in logarithms.
    """
    space = ladders(2048, 16384)
    points = list(space.points() or ())
    fixed = {**DFLASH, SEQS: seqs, "max_model_len": 2048}
    logs = np.array([by_n[int(q[N])] + SIGNS * loss(q) for q in points])
    rates = np.diff(_GEMMA_TOKENS)
    return World(
        name=name,
        words=words,
        space=space,
        points=points,
        reasons=[None] * len(points),
        regions=(),
        logs=logs,
        noise=np.broadcast_to([0.015, 0.03], logs.shape),
        pool=None,
        acceptance=[tuple(map(float, rates[: int(q[N])])) for q in points],
        lengths=[float(_GEMMA_TOKENS[int(q[N])]) if q[N] else None for q in points],
        seconds=110.0 + 20 * 1024 / np.exp(logs[:, 0]),
        alike=alike_of(space, fixed, version, Load(1, 256, 1024, images=False)),
    )


def alike_of(
    space: Space, fixed: Mapping[str, Value], version: str | None, load: Load
) -> Alike | None:
    """Which points of a world are one, as a study on a GPU would know it."""
    values = space.params[MNBT].values() if MNBT in space.params else ()
    known = Known("cuda")
    return Families(
        [int(x) for x in values or ()],
        lambda q: batch_budget({**fixed, **q}, version, load, known),
    ).alike(space)


# Versions that nobody read: of them nothing is certain.
_UNREAD = "0.40.0"


def _gemma_worlds() -> Iterator[World]:
    """MNBT without effect, proven or likely; with one at n ≥ 12; with one that is not foreseen."""
    for name, by_n in (("gemma-c1", _gemma_table()), ("gemma-slow", _slow_draft())):
        yield _gemma(name, "Gemma 4 26B, one user: MNBT cannot bind", by_n)
        yield _gemma(f"{name}-likely", "the same, but likely only", by_n, version=_UNREAD)
    yield _gemma(
        "gemma-12",
        "MNBT 2048 binds at n ≥ 12 only, and costs 15 % there: the best n is 15",
        _gemma_table(),
        seqs=165,
        loss=lambda q: 0.15 * (int(q[N]) >= 12 and q[MNBT] == 2048),
    )
    yield _gemma(
        "gemma-split",
        "likely without effect, but MNBT below 8192 costs 20 % at n ≥ 1",
        _gemma_table(),
        version=_UNREAD,
        loss=lambda q: 0.2 * (int(q[N]) >= 1 and int(q[MNBT]) < 8192),
    )


GENERATED: Mapping[str, Callable[[], World]] = {
    "gen-1": cache(_one),
    "gen-8": cache(_bumps),
    "gen-32": cache(_busy),
    "gen-cpu": cache(_cpu),
    "gen-oom": cache(_memory),
    "gen-kernel": cache(_local),
    "gen-4d": cache(_four),
    "gen-adversary": cache(_adversary),
    **{w.name: lambda w=w: w for w in _gemma_worlds()},
}
