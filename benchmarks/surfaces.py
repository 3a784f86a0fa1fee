"""Worlds that a search is replayed in: what every point of a space gives, and what fails.

**Measured** (`measured`): a grid file of `benchmarks/grid.py`. A launch is a block bootstrap of the
point's requests times the luck of the launch, as in `benchmarks/selection_bias.py`; a point's truth
is the geometric mean over such launches. What lies in the space and was not measured is left out:
parameter values are dropped until the grid is whole, but for the points that the rules forbid.

**Generated** (`GENERATED`): from how speculative decoding works. With b requests side by side,

- tokens per step E(n) = 1 + Σ_{i≤n} Π_{j≤i} h·d^(j-1), the hazard h changing a little with n, as
  drafting n is not truncating a longer draft;
- seconds per step T(n) = draft(n) + verify((n+1)·b): affine, beyond a knee bound by computing;
- a prompt is read in ⌈prompt / (MNBT - (n+1)·b)⌉ chunks, each of which holds up the others: a
  large budget reads it at once, and makes the others' stalls longer, which p95 feels;
- steps without a full CUDA graph at some n are slower: n = 4, 5, 6 are bumps;
- more requests than max_num_seqs wait.

Both are tables in the end, so that a replayed launch costs microseconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.engine.batch_budget import Load, batch_budget
from autotune.engine.rule import METHOD, Known
from autotune.engine.rules import why_infeasible
from autotune.errors import FailureKind
from autotune.results.batch_budget import Families
from autotune.search.alike import Alike
from autotune.study.space import MNBT, ChoiceParam, IntParam, N, Point, Pow2Param, Space, Value

Floats = NDArray[np.float64]
DATA = Path(__file__).resolve().parent / "data"
# the worlds draft as DFlash does; vLLM's rules differ by method
DFLASH = {METHOD: "dflash"}
SEQS, KV = "max_num_seqs", "kv_cache_dtype"
SIGMA = 0.03  # of the logarithm of a launch's luck
AROUND_S = 60.0  # of a launch, beside its measured requests, where it is not known
DEFAULT_MNBT = 2048  # where the baseline stands
SIGNS = np.array([-1.0, 1.0])  # luck makes tok/s fall and latencies rise


@dataclass(frozen=True)
class Outcome:
    """What the tuner learns from one launch.

    Attributes:
        values: tok/s and p95 of E2EL in ms; None: it failed.
        log_variances: Of the logarithms of both, as the launch's own intervals tell: without luck.
        acceptance_per_position: Share of the drafts whose first i tokens were all accepted.
        acceptance_length: Tokens per step; None without drafts.
        seconds: From one launch to the next.
        failure: Why it failed.
    """

    values: tuple[float, float] | None
    log_variances: tuple[float, float] | None
    acceptance_per_position: tuple[float, ...]
    acceptance_length: float | None
    seconds: float
    failure: FailureKind | None = None


@dataclass(frozen=True)
class Region:
    """Where launches fail that no rule forbids.

    Attributes:
        words: What it is, in a few words.
        kind: How they fail.
        holds: Whether a point is in it.
    """

    words: str
    kind: FailureKind
    holds: Callable[[Point], bool]


@dataclass(frozen=True)
class World:
    """One load on one machine.

    Attributes:
        name: For the command line.
        words: What it is, in one line.
        space: What is searched.
        points: All points of the space, in its order.
        reasons: For each, why the rules forbid it, or None.
        regions: Unforeseen failures; hidden from a search until it launches there.
        logs: Points × (log tok/s, log p95 in ms), without noise; NaN where forbidden.
        noise: Points × standard deviations of the same in a launch, without luck.
        pool: Points × launches × 2: deviations from ``logs`` to draw from; None: normal ones.
        acceptance: Per position, for each point.
        lengths: Acceptance lengths; None without drafts.
        seconds: Of a launch, for each point.
        failed_seconds: Of a launch that fails.
        sigma: Of the logarithm of a launch's luck.
        alike: Which points are one for the objectives, as a study would know it; None: none.
    """

    name: str
    words: str
    space: Space
    points: Sequence[dict[str, Value]] = field(repr=False)
    reasons: Sequence[str | None] = field(repr=False)
    regions: Sequence[Region] = field(repr=False)
    logs: Floats = field(repr=False)
    noise: Floats = field(repr=False)
    pool: Floats | None = field(repr=False)
    acceptance: Sequence[tuple[float, ...]] = field(repr=False)
    lengths: Sequence[float | None] = field(repr=False)
    seconds: Floats = field(repr=False)
    failed_seconds: float = 60.0
    sigma: float = SIGMA
    alike: Alike | None = field(default=None, repr=False)
    _places: dict[tuple[Value, ...], int] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._places.update({tuple(q.values()): i for i, q in enumerate(self.points)})

    def place(self, point: Point) -> int:
        """Where the point stands in ``points``."""
        return self._places[tuple(point[name] for name in self.space.params)]

    def infeasible(self, point: Point) -> str | None:
        """Why the rules forbid the point, or None."""
        return self.reasons[self.place(point)]

    def crash(self, point: Point) -> str | None:
        """The unforeseen failure there, in words, or None."""
        region = self._region(point)
        return None if region is None else region.words

    def _region(self, point: Point) -> Region | None:
        return next((r for r in self.regions if r.holds(point)), None)

    def truth(self, point: Point) -> tuple[float, float]:
        """tok/s and p95 in ms without noise."""
        rate, p95 = np.exp(self.logs[self.place(point)])
        return float(rate), float(p95)

    def launchable(self) -> list[int]:
        """Places of the points that give numbers."""
        found = range(len(self.points))
        return [i for i in found if self.reasons[i] is None and not self._region(self.points[i])]

    def baseline(self) -> dict[str, Value]:
        """The first point of a study: n = 0, vLLM's default budget, else the middle."""
        point: dict[str, Value] = {}
        for name, p in self.space.params.items():
            values = p.values()
            assert values is not None
            if name in (N, MNBT):
                wanted = 0 if name == N else DEFAULT_MNBT
                point[name] = min(values, key=lambda v: abs(int(v) - wanted))
            else:
                point[name] = values[len(values) // 2]
        return point

    def launch(self, point: Point, rng: np.random.Generator) -> Outcome:
        """One launch, with its luck and noise."""
        i = self.place(point)
        region = self._region(point)
        if self.reasons[i] is not None or region is not None:
            kind = FailureKind.BUDGET if region is None else region.kind
            return Outcome(None, None, (), None, self.failed_seconds, kind)
        if self.pool is None:
            off = rng.normal(0, self.noise[i])
        else:
            off = self.pool[i, rng.integers(self.pool.shape[1])]
        rate, p95 = np.exp(self.logs[i] + off + SIGNS * rng.normal(0, self.sigma))
        variances = self.noise[i] ** 2
        return Outcome(
            (float(rate), float(p95)),
            (float(variances[0]), float(variances[1])),
            self.acceptance[i],
            self.lengths[i],
            float(self.seconds[i]),
        )


# -- measured --------------------------------------------------------------------------------------


@cache
def measured(path: Path, sigma: float = SIGMA) -> World:
    """The world of one grid file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no grid, or one of fewer than two points.
    """
    import yaml
    from grid import describe, load
    from selection_bias import resampled

    grid = load(path)
    server = yaml.safe_load(grid.yaml)["server"]
    fixed = {k.replace("-", "_"): v for k, v in server.get("flags", {}).items()}
    names = list(grid.launches[0].params)

    def forbidden(point: Point) -> str | None:
        return why_infeasible({**DFLASH, **fixed, **point}, grid.vllm_version)

    launches = {tuple(x[0].params[k] for k in names): x for x in grid.points()}
    columns = _whole(
        [sorted({key[i] for key in launches}, key=_order) for i in range(len(names))],
        lambda key: key in launches or forbidden(dict(zip(names, key, strict=True))) is not None,
    )
    if math.prod(map(len, columns)) < 2:
        raise ValueError(f"{path}: has no whole grid of two points or more")
    space = Space(dict(zip(names, map(_param, columns), strict=True)))
    points = list(space.points() or ())
    reasons = [None if tuple(q.values()) in launches else forbidden(q) for q in points]
    of = [launches.get(tuple(q.values())) for q in points]
    own = [i for i, x in enumerate(of) if x is not None]

    deviations = resampled([of[i] for i in own], np.random.default_rng(0))
    pool = np.zeros((len(points), *deviations.shape[1:]))
    logs = np.full((len(points), 2), np.nan)
    logs[own] = deviations.mean(axis=1)
    pool[own] = deviations - logs[own][:, None]
    cycles = np.diff([x.planned_at for x in grid.launches])
    measuring = [float((x.start + x.e2el).max()) for x in grid.launches]
    # what a launch takes beside its measured requests; the median, as a study may have paused, and
    # unknown where several servers were measured side by side
    around = float(np.median(cycles - measuring[:-1])) if len(cycles) else 0.0
    around = around if around >= 10 else AROUND_S
    lasts = dict(zip((x.trial for x in grid.launches), measuring, strict=True))
    stats = [None if x is None else x[0].stats for x in of]
    return World(
        name=path.stem,
        words=describe(grid),
        space=space,
        points=points,
        reasons=reasons,
        regions=(),
        logs=logs,
        noise=pool.std(axis=1),
        pool=pool,
        acceptance=[tuple((s or {}).get("acceptance_per_position") or ()) for s in stats],
        lengths=[(s or {}).get("acceptance_length") for s in stats],
        seconds=np.array([around + (lasts[x[0].trial] if x else 0.0) for x in of]),
        failed_seconds=around,
        sigma=sigma,
    )


def _order(value: Value) -> tuple[bool, Any]:
    return isinstance(value, str), value


def _whole(
    columns: Sequence[list[Value]], known: Callable[[tuple[Value, ...]], bool]
) -> list[list[Value]]:
    """Drops the values with the most holes until there are none."""
    columns = [list(c) for c in columns]
    while True:
        holes = [key for key in product(*columns) if not known(key)]
        if not holes or min(map(len, columns)) == 0:
            return columns
        shares = [
            (sum(key[i] == v for key in holes) * len(column), i, v)
            for i, column in enumerate(columns)
            for v in column
        ]
        _, i, v = max(shares, key=lambda x: (x[0], x[1]))
        columns[i].remove(v)


def _param(values: Sequence[Value]) -> IntParam | Pow2Param | ChoiceParam:
    """The parameter with exactly these values: a ladder if they are one."""
    if all(type(v) is int for v in values):
        ints = [int(v) for v in values]
        steps = set(np.diff(ints).tolist())
        if len(steps) <= 1:
            step = steps.pop() if steps else 1
            return IntParam(type="int", low=ints[0], high=ints[-1], step=step)
        if all(a > 0 and b == 2 * a and not a & (a - 1) for a, b in pairwise(ints)):
            return Pow2Param(type="pow2", low=ints[0], high=ints[-1])
    return ChoiceParam(type="choice", choices=tuple(values))


# -- generated -------------------------------------------------------------------------------------


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
            return extra * (self.step * (0.93 if small else 1.0) + computing)

        step = bump * verify(size) + drafting
        share = max(16, budget - size)
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
        alike=_alike(
            space,
            {**DFLASH, **(fixed or {})},
            version,
            Load(physics.places, physics.prompt, physics.output, images=False),
        ),
    )


def _space(low: int, high: int, **more: IntParam | Pow2Param | ChoiceParam) -> Space:
    params: dict[str, Any] = {
        N: IntParam(type="int", low=0, high=15),
        MNBT: Pow2Param(type="pow2", low=low, high=high),
    }
    return Space(params | more)


_GRAPHS = {4: 1.35, 5: 1.3, 6: 1.25, 10: 1.1}


def _one() -> World:
    physics = Physics(places=1, step=1.4, draft=1.0, draft_token=0.001, token=0.002, spread=0.6)
    return generated("gen-1", "one user on a GPU: launches bound it", physics, _space(512, 8192))


def _bumps() -> World:
    physics = Physics(places=8, step=2.0, token=0.006, draft=0.6, bumps=_GRAPHS)
    return generated("gen-8", "8 users, bumps in n", physics, _space(512, 8192))


def _busy() -> World:
    physics = Physics(
        places=32,
        hazard=0.85,
        decay=0.97,
        step=6.0,
        token=0.02,
        bumps=_GRAPHS,
        prompt=900,
        spread=0.5,
    )
    words = "32 users, code: high acceptance, bound by computing, bumps"
    return generated("gen-32", words, physics, _space(512, 16384))


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
    return generated("gen-cpu", words, physics, _space(32, 2048), start_s=60)


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
        _space(512, 16384),
        fixed={SEQS: 64},
        version="0.26.0",
        regions=(region,),
    )


def _local() -> World:
    physics = Physics(places=8, hazard=0.8, decay=0.95, step=7.0, bumps=_GRAPHS)
    region = Region(
        "a kernel dies at n = 8 … 11 with MNBT ≥ 4096",
        FailureKind.CRASH,
        lambda q: 8 <= int(q[N]) <= 11 and int(q[MNBT]) >= 4096,
    )
    words = "8 users, a kernel that dies in the middle of the space"
    return generated("gen-kernel", words, physics, _space(512, 8192), regions=(region,))


def _four() -> World:
    physics = Physics(
        places=24, hazard=0.78, decay=0.95, step=7.0, token=0.02, bumps=_GRAPHS, spread=0.4
    )
    space = _space(
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
    return generated("gen-adversary", words, physics, _space(512, 8192))


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
    space = _space(2048, 16384)
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
        alike=_alike(space, fixed, version, Load(1, 256, 1024, images=False)),
    )


def _alike(
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


def world(name: str, sigma: float = SIGMA) -> World:
    """By the name of a generated one, of a file in ``benchmarks/data``, or a grid's path.

    Raises:
        OSError: there is no such file.
        ValueError: it is no grid of two points.
    """
    if name in GENERATED:
        return replace(GENERATED[name](), sigma=sigma)
    path = DATA / f"{name}.npz"
    return measured(path if path.exists() else Path(name), sigma)


def names() -> list[str]:
    """All worlds that are here: grids of ``benchmarks/data``, then the generated ones."""
    return [p.stem for p in sorted(DATA.glob("*.npz"))] + list(GENERATED)
