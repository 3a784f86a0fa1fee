"""Bounds that vLLM stated when it refused a launch: no further launch has to find them.

A refusal such as "block_size (2096) must be <= max_num_batched_tokens (2048)" rules out every point
with a smaller MNBT. The bound may depend on the other parameters (a block is larger with another
cache or on fewer GPUs), so it holds only where these are equal; n may be larger, or any if n has no
part in the bound. A bound is not believed where a launch ran below it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autotune.study.space import MNBT, N, Point, Space, Value, as_int

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

LEAST = "failure_least"  # a trial's attribute: {"mnbt": 2096, "every_n": true}


@dataclass(frozen=True)
class _Bound:
    """One stated bound."""

    trial: int
    mnbt: int
    n: int  # it holds from this n on
    others: frozenset[tuple[str, Value]]  # parameters that are neither n nor MNBT

    def rules_out(self, point: Point) -> bool:
        mnbt, n = as_int(point.get(MNBT)), as_int(point.get(N, self.n))
        if mnbt is None or n is None:
            return False
        return mnbt < self.mnbt and n >= self.n and _others(point) == self.others


class StatedBounds:
    """Everything that the failed launches of a study stated about MNBT.

    Args:
        space: Searched parameters.
        trials: Trials of the study.

    Attributes:
        bounds: The bounds that hold.
    """

    def __init__(self, space: Space, trials: Sequence[FrozenTrial]) -> None:
        found = [] if MNBT not in space.params else [b for t in trials if (b := _bound(space, t))]
        self.bounds: tuple[_Bound, ...] = ()
        if found:
            ran = [
                space.decode(t.params)
                for t in trials
                if t.values is not None and space.has_point(t.params)
            ]
            self.bounds = tuple(b for b in found if not any(map(b.rules_out, ran)))

    def why_not(self, point: Point) -> str | None:
        """Return why a point cannot launch; None: no bound says so."""
        bound = next((b for b in self.bounds if b.rules_out(point)), None)
        if bound is None:
            return None
        return f"{MNBT} must be at least {bound.mnbt} there, as vLLM said in trial {bound.trial}"

    @property
    def trials(self) -> frozenset[int]:
        """Numbers of the trials that stated a bound, which says all about their failure."""
        return frozenset(b.trial for b in self.bounds)


def _bound(space: Space, trial: FrozenTrial) -> _Bound | None:
    """Return the bound that a trial stated; None: it stated none that can be read."""
    kept = trial.user_attrs.get(LEAST)
    if not isinstance(kept, Mapping) or not space.has_point(trial.params):
        return None
    point = space.decode(trial.params)
    mnbt, n = as_int(kept.get("mnbt")), as_int(point.get(N, 0))
    if mnbt is None or n is None:
        return None
    return _Bound(trial.number, mnbt, 0 if kept.get("every_n") is True else n, _others(point))


def _others(point: Point) -> frozenset[tuple[str, Value]]:
    return frozenset((name, value) for name, value in point.items() if name not in {N, MNBT})
