"""Features of a point: the coordinates by which models measure how far points are apart."""

from __future__ import annotations

import math

from autotune.study.space import ChoiceParam, FloatParam, N, Point, Space


def unit(space: Space, point: Point) -> list[float]:
    """Return the features of a point: its coordinates, by which the model measures distances.

    n counts by its square root, because acceptance falls with every position. Whether there are
    drafts is a separate feature, because the step from 0 to 1 changes the whole program. Any two
    choices are equally far apart.
    """
    out: list[float] = []
    for name, p in space.params.items():
        v = point[name]
        match p:
            case ChoiceParam():
                out += [0.5 if c == v and type(c) is type(v) else 0.0 for c in p.choices]
            case FloatParam():
                f = math.log if p.log else float
                span = f(p.high) - f(p.low)
                out.append((f(float(v)) - f(p.low)) / span if span else 0.0)
            case _:
                values = p.values()
                if name == N:
                    out.append(math.sqrt(int(v) / max(1, values[-1])))
                    out.append(0.5 if v else 0.0)
                else:
                    out.append(values.index(int(v)) / max(1, len(values) - 1))
    return out
