"""Several slots of this host: a process for each, which ends with the run.

When this process is killed, the kernel kills them, and the supervisors of their servers see it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from autotune.serving.logs import LogFolder
from autotune.serving.slots import SLOT_VARIABLES, Slot
from autotune.storage.schema import LaunchRow
from autotune.storage.store import Store
from autotune.tuning.ledger import Ledger
from autotune.tuning.load_map_requests import Requests
from autotune.tuning.prepare import Prepared
from autotune.tuning.progress import Progress
from autotune.tuning.recovery import note_left
from autotune.tuning.slot_messages import FromSlot, Setup
from autotune.tuning.slot_pool import Served
from autotune.tuning.slot_process import MODULE, SlotProcess, receive_from
from autotune.tuning.slots import slot_environment


class LocalSlots:
    """The slots of this host (:class:`autotune.tuning.slot_pool.Places`).

    Args:
        slots: The slots.
        setup: Returns what the process of a slot is given first.
        environment: Returns the variables that a slot adds to its process's environment.
        logs: Folder of the processes' own logs.
        stop_timeout_s: Grace of a server after SIGTERM, in seconds.
        module: Module whose ``main`` the processes run.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        setup: Callable[[Slot], Setup],
        environment: Callable[[Slot], Mapping[str, str]],
        logs: LogFolder,
        *,
        stop_timeout_s: float,
        module: str = MODULE,
    ) -> None:
        self._slots = {slot.number: slot for slot in slots}
        self._setup = setup
        self._environment = environment
        self._logs = logs
        self._stop_timeout_s = stop_timeout_s
        self._module = module
        self._processes: list[SlotProcess] = []
        self._cores = os.sched_getaffinity(0)

    @property
    def slots(self) -> Mapping[int, Slot]:
        """All of them, by number."""
        return self._slots

    def start(self, slot: Slot) -> SlotProcess:
        """Start the process of a slot, and send it what it needs first."""
        process = SlotProcess(
            slot,
            {**os.environ, **self._environment(slot)},
            self._logs.path(log_name(slot)),
            grace_s=self._stop_timeout_s,
            module=self._module,
        )
        self._processes.append(process)
        self._leave_cores()
        process.send(self._setup(slot))
        return process

    def _leave_cores(self) -> None:
        """Leave the slots' cores to them, if there are others for this process."""
        if rest := self._cores.difference(*(slot.cores for slot in self._slots.values())):
            os.sched_setaffinity(0, rest)

    def receive(self, timeout: float) -> Iterator[tuple[SlotProcess, FromSlot]]:
        """Wait for messages, and yield one of each process that has sent one."""
        yield from receive_from(self._processes, timeout)

    def close(self) -> None:
        """Take this process's cores back."""
        os.sched_setaffinity(0, self._cores)


def slots_of(
    prepared: Prepared, slots: Sequence[Slot], logs: LogFolder, sweep: Requests | None = None
) -> LocalSlots:
    """Return a study's slots on this host.

    Args:
        prepared: The study.
        slots: The slots.
        logs: Folder of the servers' logs, and of the processes' own.
        sweep: What the launches of a load sweep are sent; None: they run trials.
    """
    own = {name: os.environ.get(name) for name in SLOT_VARIABLES}

    def environment(slot: Slot) -> dict[str, str]:
        return slot_environment(slot, prepared.info.version)

    def setup(slot: Slot) -> Setup:
        return Setup(
            slot,
            prepared.loaded,
            prepared.info,
            prepared.workload,
            prepared.confirmation,
            logs.folder,
            own if slot.gpus else {},
            sweep=sweep,
            neighbors=len(slots) - 1,
        )

    grace = prepared.spec.server.stop_timeout_s
    return LocalSlots(slots, setup, environment, logs, stop_timeout_s=grace)


def log_name(slot: Slot) -> str:
    """Return the name of the log of a slot's process."""
    return f"slot-{slot.number}.log"


def served_by(
    store: Store, ledger: Ledger, progress: Progress, weights: Callable[[], dict[str, str]]
) -> Served:
    """Return what the processes of slots may call, by name.

    Args:
        store: Has the study.
        ledger: Where its launches are written down.
        progress: Told of stages, requests and retries.
        weights: Checks the weights that are there now.
    """

    def launches(trial: int) -> list[dict[str, Any]]:
        found = ledger.launches(trial)
        return [{f.name: getattr(row, f.name) for f in fields(LaunchRow)} for row in found]

    return {
        "check": ledger.check,
        "plan": ledger.plan,
        "started": ledger.started,
        "ready": ledger.ready,
        "failed": ledger.failed,
        "ended": ledger.ended,
        "give": ledger.give,
        "left": lambda launch_id, ended: note_left(store, launch_id, ended),
        "event": ledger.event,
        "first_request": ledger.first_request,
        "time": ledger.time,
        "launches": launches,
        "keep": store.requests.add,
        "measured": store.launches.measured,
        "weights": weights,
        "stage": progress.stage,
        "progress": progress.progress,
        "message": progress.message,
    }


def served_by_sweep(
    store: Store,
    ledger: Ledger,
    progress: Progress,
    weights: Callable[[], dict[str, str]],
    missing: Callable[[int], list[tuple[int, int]]],
) -> Served:
    """Return what the processes of a load sweep's slots may call, by name.

    Args:
        store: Has the study.
        ledger: Where the sweep's launches are written down.
        progress: Told of stages, requests and retries.
        weights: Returns the weights that are there now.
        missing: Returns what is to be measured of a point.
    """

    def part(launch_id: str, point: int, columns: Mapping[str, Any]) -> None:
        store.load_maps.add_load(launch_id, point, **columns)

    return {**served_by(store, ledger, progress, weights), "missing": missing, "part": part}
