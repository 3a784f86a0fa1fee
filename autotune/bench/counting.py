"""Server counters, machine load and energy over the measured requests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from types import TracebackType

from autotune.bench.interference import GPU_OURS_MIB, LoadWatch, MachineState, Rest, read_gpus
from autotune.bench.server_metrics import Counters
from autotune.serving.nvml import Energy, EnergyMeter


class Counting:
    """The server's counters, the machine and the energy, from one moment to the end of the block.

    Args:
        scrape: Reads the counters.
        watch: Over the machine.
        meter: Of the energy.
        gpus: The server's.
    """

    def __init__(
        self,
        scrape: Callable[[], Counters],
        watch: LoadWatch,
        meter: EnergyMeter,
        gpus: set[int],
    ) -> None:
        self._scrape, self._watch, self._meter, self._gpus = scrape, watch, meter, gpus
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
        with self._lock:  # a thread that comes too late begins nothing
            self._ended = True
        self._stack.close()

    def begin(self, *, beside: bool) -> None:
        """Begin to count.

        Args:
            beside: In a thread of its own, because streams are under way that must not wait.
        """
        if beside:
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
            self._counters.set_result(found)
        except BaseException as e:  # noqa: BLE001 – it is raised where the result is asked for
            self._counters.set_exception(e)

    @property
    def begun(self) -> bool:
        """Whether everything is counted by now."""
        return self._counters.done() and self._counters.exception() is None

    @property
    def failed(self) -> bool:
        """Whether the counters could not be read."""
        return self._counters.done() and self._counters.exception() is not None

    def energy(self) -> Energy | None:
        """What the server's GPUs took so far; None: nothing of them tells.

        Raises:
            TrialFailure: the counters could not be read.
        """
        self._counters.result()
        return self._meter.read().of(self._gpus)

    def counters(self) -> Counters:
        """The counters at the beginning.

        Raises:
            TrialFailure: they could not be read.
        """
        return self._counters.result()

    @property
    def machine(self) -> MachineState:
        """The machine meanwhile, after the block."""
        return self._watch.state


def gpus_of_server(rest: Rest) -> set[int]:
    """Numbers of the GPUs whose used memory grew since ``rest``, or that do not tell it."""
    if not rest.gpus:
        return set()
    return {
        i
        for i, (before, now) in enumerate(zip(rest.gpus, read_gpus(), strict=False))
        if before.memory_mib is None
        or now.memory_mib is None
        or now.memory_mib >= before.memory_mib + GPU_OURS_MIB
    }
