"""Worlds that a search is replayed in: what every point of a space gives, and what fails.

**Measured** (`measured`): a grid file of `benchmarks/grid.py`. A launch is a block bootstrap of the
point's requests (`grid.resampled`) times the luck of the launch; a point's truth
is the geometric mean over such launches. What lies in the space and was not measured is left out:
parameter values are dropped until the grid is whole, but for the points that the rules forbid.

**Generated** (`surfaces_generated.py`): from how speculative decoding works.

**Held out** (`surfaces_held_out.py`): generated, too, of kinds that the search was not made with:
peaks that nothing foretells, a crash next to the best point, nothing that matters, and others.

Both are tables in the end, so that a replayed launch costs microseconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
from surfaces_base import DFLASH, SIGMA, Outcome, World
from surfaces_generated import GENERATED as _GENERATED
from surfaces_held_out import HELD_OUT

from autotune.engine.rules import why_infeasible
from autotune.study.space import ChoiceParam, IntParam, Point, Pow2Param, Space, Value

__all__ = ["GENERATED", "Outcome", "World", "measured", "names", "world"]

DATA = Path(__file__).resolve().parent / "data"
AROUND_S = 60.0  # of a launch, beside its measured requests, where it is not known
GENERATED: Mapping[str, Callable[[], World]] = {**_GENERATED, **HELD_OUT}


# -- measured --------------------------------------------------------------------------------------


@cache
def measured(path: Path, sigma: float = SIGMA) -> World:
    """The world of one grid file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no grid, or one of fewer than two points.
    """
    import yaml
    from grid import describe, load, resampled

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
