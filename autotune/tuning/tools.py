"""What a launch is made, watched and measured with; a test gives others."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autotune.bench.interference import IdleBaseline, MachineState, disturbed, take_idle_baseline
from autotune.bench.session import Measuring
from autotune.serving.server import Server


@dataclass(frozen=True)
class Tools:
    """The seams between a run and its machine.

    Attributes:
        server: Makes a server from its plan (:class:`autotune.serving.server.Server`).
        take_idle_baseline: Looks at the idle machine before a launch.
        disturbed: Says why a measured launch was disturbed.
        measuring: Makes the measurement of one server (:class:`autotune.bench.session.Measuring`).
        clock: Seconds that only go forward.
    """

    server: Callable[..., Server] = Server
    take_idle_baseline: Callable[[Sequence[float]], IdleBaseline] = take_idle_baseline
    disturbed: Callable[[MachineState, Sequence[float]], str | None] = disturbed
    measuring: Callable[..., Measuring] = Measuring
    clock: Callable[[], float] = time.monotonic


REAL = Tools()


def real(given: Tools | None) -> Tools:
    """Return the tools that are given, or those of this machine."""
    return REAL if given is None else given
