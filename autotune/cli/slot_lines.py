"""What the slots of a run do now, a live line for each, and how long the study still takes."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from autotune.results.text import duration

GAP = "  "  # between two parts of a line


@dataclass
class SlotLine:
    """What one slot does, which is a live line.

    Attributes:
        label: ``slot 1``; empty where there is one slot.
        trial: ``[7/40] trial 6``; empty while none runs.
        point: Point of the trial.
        remaining: Trials from this one on.
        began: When the trial began.
        stage: Stage of the trial; empty while there is none.
        stage_began: When the stage began.
        progress: Progress of the stage, in words.
    """

    label: str = ""
    trial: str = ""
    point: str = ""
    remaining: int = 0
    began: float = 0.0
    stage: str = ""
    stage_began: float = 0.0
    progress: str = ""

    @property
    def head(self) -> str:
        """Slot and trial in words."""
        return GAP.join(filter(None, [self.label, self.trial]))


class SlotLines:
    """The slots that do something; rich renders a line for each.

    Args:
        clock: Returns seconds that never go back.

    Attributes:
        durations: Seconds of each trial that is done.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._slots: dict[int, SlotLine] = {}
        self.durations: list[float] = []

    def of(self, slot: int) -> SlotLine:
        """Return the line of a slot, an empty one if it did nothing."""
        return self._slots.setdefault(slot, SlotLine())

    def begin(self, slot: int, *, label: str, trial: str, point: str, remaining: int) -> None:
        """Begin the line of a trial; arguments as the attributes of :class:`SlotLine`."""
        self._slots[slot] = SlotLine(label, trial, point, remaining, self._clock())

    def end(self, slot: int) -> None:
        """Remove the line of a slot, if it has one."""
        self._slots.pop(slot, None)

    def stage(self, slot: int, text: str, label: str) -> SlotLine | None:
        """Begin a stage of a slot; its seconds count from now.

        Args:
            slot: The slot.
            text: The stage.
            label: Label of the line, if the slot has none yet.

        Returns:
            The line; None: it is in that stage already.
        """
        line = self._slots.setdefault(slot, SlotLine(label=label))
        if text == line.stage:
            return None
        line.stage, line.progress, line.stage_began = text, "", self._clock()
        return line

    def time_left(self) -> float | None:
        """Return the seconds until the study is done, by the median trial; None: no trial yet."""
        running = self._running()
        if not self.durations or not running:
            return None
        typical = statistics.median(self.durations)
        done = sum(min(typical, self._clock() - line.began) for line in running)
        return (typical * self._remaining() - done) / len(running)

    def left_after(self, slots: int) -> float | None:
        """Return the seconds that the trials after this one take; None: it is the last, or unknown.

        Args:
            slots: Number of slots that run them.
        """
        if not self.durations or (more := self._remaining() - 1) <= 0:
            return None
        return statistics.median(self.durations) * more / slots

    def _running(self) -> list[SlotLine]:
        return [line for line in self._slots.values() if line.trial]

    def _remaining(self) -> int:
        """Return how many trials are left, with those that run."""
        running = self._running()
        return min((line.remaining for line in running), default=1) + len(running) - 1

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Return a live line for each slot that does something, cut to the window's width.

        The parameters are cut first.
        """
        left = self.time_left()
        for _, slot in sorted(self._slots.items()):
            if not slot.stage:
                continue
            after = [
                " ".join(filter(None, [slot.stage, slot.progress])),
                f"{self._clock() - slot.stage_began:.0f} s",
                f"{duration(left)} left" if left is not None else "",
            ]
            left = None  # of the whole study: said once
            before, tail = slot.head, GAP.join(filter(None, after))
            room = options.max_width - cell_len(before + GAP + GAP + tail)
            point = Text(slot.point)
            point.truncate(max(0, room), overflow="ellipsis")
            parts = [Text(before, style="bold"), point, Text(tail, style="cyan")]
            line = Text(GAP).join([p for p in parts if p.plain])
            line.no_wrap, line.overflow = True, "ellipsis"
            yield line
