"""How the held launches of a confirmation are spent so far, as a study keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

STEPS = "confirmation_steps_"  # a study keeps it under this name and the number of wanted trials


@dataclass(frozen=True)
class Dropped:
    """Why a candidate is launched no more.

    Attributes:
        launches: Number of its launches in confirmations that gave numbers.
        better: Number of the trial that is better; None: all of its launches failed.
        chance: Probability that the trial is better, the smallest by any rule; None: see
            ``better``.
    """

    launches: int
    better: int | None = None
    chance: float | None = None


@dataclass(frozen=True)
class Spending:
    """Launches of one confirmation.

    Attributes:
        order: Trial numbers of the planned launches, in their order; it grows with every step.
        held: Number of launches that the confirmation is to have.
        dropped: Candidates that are launched no more, by trial number.
        blocks: Lengths of the blocks of ``order``, each of which stays on one slot; empty: all are
            one block.
    """

    order: Sequence[int]
    held: int
    dropped: Mapping[int, Dropped] = field(default_factory=dict)
    blocks: Sequence[int] = ()

    @classmethod
    def read(cls, order: Sequence[int], kept: Mapping[str, Any] | None) -> Spending:
        """Return what a study keeps.

        Args:
            order: As stored.
            kept: As :meth:`to_json` gave it; None: an autotune kept it that planned all launches
                at once.
        """
        if kept is None:
            return cls(list(order), len(order))
        dropped = {int(k): Dropped(*x) for k, x in kept["dropped"].items()}
        return cls(list(order), kept["held"], dropped, tuple(kept.get("blocks", ())))

    def to_json(self) -> dict[str, Any]:
        """Return everything but the order as plain data."""
        dropped = {str(k): [x.launches, x.better, x.chance] for k, x in self.dropped.items()}
        blocks = {"blocks": list(self.blocks)} if self.blocks else {}
        return {"held": self.held, "dropped": dropped, **blocks}
