"""Server counters, machine load and energy, counted over the measured requests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from types import TracebackType

from autotune.bench.interference import (
    GPU_OURS_MIB,
    IdleBaseline,
    LoadWatch,
    MachineState,
    read_gpus,
)
from autotune.bench.running import AtOnce, RunningWatch
from autotune.bench.server_metrics import Counters
from autotune.serving.nvml import Energy, EnergyMeter


class Counting:
    """Count in a ``with`` block, from :meth:`begin` to its end.

    Args:
        scrape: Reads the server's counters.
        watch: Counts who uses the machine.
        meter: Measures the energy.
        gpus: Numbers of the server's GPUs.
        running: Watches the running requests; None: nothing does.
    """

    def __init__(
        self,
        scrape: Callable[[], Counters],
        watch: LoadWatch,
        meter: EnergyMeter,
        gpus: set[int],
        running: RunningWatch | None = None,
    ) -> None:
        self._scrape, self._watch, self._meter, self._gpus = scrape, watch, meter, gpus
        self._running = running
        self._stack = ExitStack()
        self._lock = threading.Lock()
        self._ended = False
        self._counters: Future[Counters] = Future()

    def __enter__(self) -> Counting:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:  # a thread that comes later begins nothing
            self._ended = True
        self._stack.close()

    def begin(self, *, in_thread: bool) -> None:
        """Begin to count.

        Args:
            in_thread: Begin in a thread, because streams are under way that must not wait.
        """
        if in_thread:
            threading.Thread(target=self._begin, name="counters").start()
        else:
            self._begin()

    def _begin(self) -> None:
        try:
            found = self._scrape()
            with self._lock:
                if not self._ended:
                    self._stack.enter_context(self._watch)
                    self._stack.enter_context(self._meter)
                    if self._running is not None:
                        self._stack.enter_context(self._running)
            self._counters.set_result(found)
        except BaseException as e:  # noqa: BLE001 – it is raised where the result is asked for
            self._counters.set_exception(e)

    @property
    def begun(self) -> bool:
        """Whether counting has begun."""
        return self._counters.done() and self._counters.exception() is None

    @property
    def failed(self) -> bool:
        """Whether the counters could not be read."""
        return self._counters.done() and self._counters.exception() is not None

    def energy(self) -> Energy | None:
        """Return the energy of the server's GPUs so far; None: none of them reports it.

        Raises:
            TrialFailure: the counters could not be read.
        """
        self._counters.result()
        return self._meter.read().of(self._gpus)

    def counters(self) -> Counters:
        """Return the server's counters at the beginning.

        Raises:
            TrialFailure: they could not be read.
        """
        return self._counters.result()

    @property
    def at_once(self) -> AtOnce | None:
        """Requests that ran at once; None: nothing watched them."""
        return None if self._running is None else self._running.seen

    @property
    def machine(self) -> MachineState:
        """State of the machine during the block; read it after the block."""
        return self._watch.state


def gpus_of_server(idle: IdleBaseline) -> set[int]:
    """Return the numbers of the GPUs whose used memory grew since ``idle``, or is unknown."""
    if not idle.gpus:
        return set()
    return {
        i
        for i, (before, now) in enumerate(zip(idle.gpus, read_gpus(), strict=False))
        if before.memory_mib is None
        or now.memory_mib is None
        or now.memory_mib >= before.memory_mib + GPU_OURS_MIB
    }
