"""Choices that are reserved for a slot, because their servers are prelaunched there.

A slot asks for them when it starts the server of its trial. No other slot is given them, and the
planner knows them as pending. They are not written down: what no slot has begun was never chosen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence

from autotune.tuning.situation import Choice


class Reserved:
    """What each slot launches next, in its order.

    With one server at a time, slot 0 is the whole host.
    """

    def __init__(self) -> None:
        self._of: dict[int, deque[Choice]] = {}

    def of(self, slot: int) -> tuple[Choice, ...]:
        """Return the choices of one slot."""
        return tuple(self._of.get(slot, ()))

    def elsewhere(self, slot: int | None = None) -> tuple[Choice, ...]:
        """Return the choices of all slots but one; None: of all."""
        return tuple(x for number, own in self._of.items() if number != slot for x in own)

    def keep(self, slot: int, choices: Sequence[Choice]) -> None:
        """Replace the choices of a slot."""
        self._of[slot] = deque(choices)

    def take(self, busy: Collection[int]) -> tuple[int, Choice] | None:
        """Take the next choice of the first slot that is free and has one; None: none has."""
        free = sorted(number for number, own in self._of.items() if own and number not in busy)
        return (free[0], self._of[free[0]].popleft()) if free else None

    def release(self, usable: Collection[int]) -> None:
        """Give back the choices of slots that are gone: others may launch these points."""
        for number in self._of.keys() - usable:
            del self._of[number]

    def fair(self, slot: int, busy: Mapping[int, int], usable: Collection[int], left: int) -> int:
        """Return how many choices a slot may have, so that all slots end at about the same time.

        Args:
            slot: The slot, which runs a trial.
            busy: Slots of the trials that run, by trial.
            usable: The slots.
            left: Number of launches that no slot has.
        """
        loads = {number: len(self.of(number)) for number in {*usable, slot}}
        for number in busy.values():
            loads[number] = loads.get(number, 0) + 1
        share = -(-(sum(loads.values()) + left) // len(loads))
        own = len(self.of(slot))
        return own + min(left, max(0, share - loads[slot]))
