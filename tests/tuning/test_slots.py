"""The executor of several slots, and which slots a host has; whole runs are in test_parallel.py."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import psutil
import pytest

from autotune.bench import interference
from autotune.bench.interference import IdleBaseline, LoadWatch
from autotune.engine.probe import UNKNOWN
from autotune.errors import FailureKind, MachineError, UserError
from autotune.serving import slots as host
from autotune.serving.logs import LogFolder
from autotune.serving.slots import Slot, SlotGpu, cores_of_slots, ranges, slot_details, slot_gpus
from autotune.storage.lease import exclusive
from autotune.study.files import load_study
from autotune.tuning.executor import OneSlot, slot_for
from autotune.tuning.launcher import no_prelaunch
from autotune.tuning.local_slots import LocalSlots
from autotune.tuning.progress import OUTSIDE
from autotune.tuning.slot_pool import SlotPool
from autotune.tuning.slots import cluster_of, slot_environment, slots_of_host
from autotune.tuning.trial import Failed, Measured, Trial
from tests.studies import wait_until, write_study
from tests.tuning.executors import check_executor, trial

CORES = tuple(sorted(os.sched_getaffinity(0)))


@dataclass
class Served:
    """What the processes call, and whom they told."""

    told: list[tuple[Any, ...]] = field(default_factory=list)
    answer: Callable[[], object] = lambda: None
    raised: Exception | None = None
    said: list[str] = field(default_factory=list)

    def calls(self) -> dict[str, Callable[..., Any]]:
        def others() -> object:
            if self.raised is not None:
                raise self.raised
            return self.answer()

        return {
            "double": lambda n: 2 * n,
            "stage": lambda *a: self.told.append(("stage", *a)),
            "ended": lambda *a: self.told.append(("ended", *a)),
            "message": lambda text, at=OUTSIDE: self.said.append(text),
            "others": others,
        }


@pytest.fixture
def served() -> Served:
    return Served()


@pytest.fixture
def executor(tmp_path: Path, served: Served) -> Iterator[SlotPool[Trial]]:
    """Two slots, each of one core, or of the only one."""
    before = psutil.Process().children()  # a server of another file's tests
    slots = [Slot(i, 2, (CORES[i % len(CORES)],)) for i in range(2)]
    places = LocalSlots(
        slots,
        lambda slot: slot,  # type: ignore[arg-type, return-value] – the double reads no setup
        lambda slot: {"SLOT_TEST": slot.name},
        LogFolder(tmp_path),
        stop_timeout_s=1,
        module="tests.tuning.slot_double",
    )
    made = SlotPool(places, served.calls(), stop_timeout_s=1)
    try:
        yield made
    finally:
        made.close()
        assert psutil.Process().children() == before


def results(executor: SlotPool[Trial], count: int) -> dict[int, Any]:
    """Outcomes by the number of their trial."""
    found: dict[int, Any] = {}
    while len(found) < count:
        done = executor.completed()
        assert done, "nothing was waited for"
        assert not found.keys() & {t.number for t, _ in done}
        found |= {t.number: outcome for t, outcome in done}
    return found


# -- what every executor does ------------------------------------------------------------------


def one_slot() -> OneSlot[Trial]:
    runner: Any = SimpleNamespace(run=lambda trial, ahead: Measured("done"))
    return OneSlot(runner, no_prelaunch)


@pytest.mark.parametrize("kind", ["one", "local"])
def test_an_executor_runs_what_it_takes_and_takes_nothing_after_its_end(
    kind: str, executor: SlotPool[Trial]
) -> None:
    check_executor(one_slot() if kind == "one" else executor, 1 if kind == "one" else 2)


# -- several slots -----------------------------------------------------------------------------


def test_each_slot_has_its_own_cores_and_variables(executor: SlotPool[Trial]) -> None:
    for number, do in enumerate(["cores", "variable"]):
        executor.submit(trial(2 * number, do, 0))
        executor.submit(trial(2 * number + 1, do, 1))
        found = results(executor, 2)
        for slot in range(2):
            outcome = found[2 * number + slot]
            cores = f"[{CORES[slot % len(CORES)]}]"
            assert outcome == Measured(cores if do == "cores" else f"slot {slot}")


def test_two_run_at_once_and_only_this_process_is_asked(
    executor: SlotPool[Trial], served: Served
) -> None:
    """Each of the two waits until the other one has begun."""
    thread = threading.get_ident()
    asked: list[int] = []

    def answer() -> str:
        asked.append(threading.get_ident())
        return f"{len(served.told)} begun"

    served.answer = answer
    executor.submit(trial(0, "wait", 0))
    executor.submit(trial(1, "sleep", 1))
    [(first, outcome)] = executor.completed()
    assert first.number == 0
    assert isinstance(outcome, Measured)
    assert asked == [thread]
    executor.submit(trial(2, "ask", 0))
    assert results(executor, 1) == {2: Measured("42")}
    assert executor.capacity == 1  # the other one still sleeps


def test_a_failed_trial_arrives_as_it_was(executor: SlotPool[Trial]) -> None:
    executor.submit(trial(0, "fail", 1))
    [(done, outcome)] = executor.completed()
    assert isinstance(outcome, Failed)
    assert (done.slot, outcome.failure.kind) == (1, FailureKind.CRASH)
    assert (outcome.failure.reason, outcome.failure.evidence) == ("it crashed", ("line",))


def test_slots_of_trials() -> None:
    assert slot_for([]) == 0
    assert slot_for([0, 2]) == 1
    assert slot_for([0, 2], home=0) == 0
    assert slot_for([], home=3) == 3


def test_one_whose_slot_is_busy_waits_for_it(executor: SlotPool[Trial]) -> None:
    executor.submit(trial(0, "cores", 0))
    executor.submit(trial(1, "cores", 0))
    assert executor.capacity == 0
    assert set(results(executor, 2)) == {0, 1}


@pytest.mark.parametrize(
    ("do", "error", "words"),
    [
        ("raise", UserError, "the weights have changed"),
        ("bug", RuntimeError, "KeyError: 'a bug'"),
        ("die", MachineError, "slot 1 of trial 7 ended with exit code -9; its log is"),
    ],
)
def test_what_ends_a_run_ends_the_other_slots_servers(
    executor: SlotPool[Trial], served: Served, do: str, error: type[Exception], words: str
) -> None:
    executor.submit(trial(6, "sleep", 0))
    while not served.told:
        executor._listen(0.1)
    executor.submit(trial(7, do, 1))
    with pytest.raises(error) as raised:
        executor.completed()
    assert words in str(raised.value)
    executor.close()
    assert served.told == [("stage", 6), ("ended", "l6", None, 0)]  # its end was written down


def test_what_cannot_be_written_ends_the_run_and_is_not_tried_again(
    executor: SlotPool[Trial], served: Served
) -> None:
    served.raised = MachineError("the disk is full")
    executor.submit(trial(0, "wait", 0))
    with pytest.raises(MachineError, match="the disk is full"):
        executor.completed()
    executor.close()


def test_a_process_that_dies_is_replaced_and_its_trial_runs_again(
    executor: SlotPool[Trial], served: Served
) -> None:
    executor.submit(trial(0, "sleep", 0))
    executor.submit(trial(1, "die once", 1))
    assert results(executor, 1) == {1: Measured("again")}
    assert len(served.said) == 1
    assert "slot 1 of trial 1 ended with exit code -9" in served.said[0]
    assert executor.capacity == 1  # the other one still sleeps


def test_a_process_that_stands_still_is_replaced(
    executor: SlotPool[Trial], served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autotune.tuning.slot_pool.SILENT_S", 5.0)  # it tells every 0.2 s
    executor.submit(trial(0, "sleep", 0))
    executor.submit(trial(1, "stop once", 1))
    assert results(executor, 1) == {1: Measured("again")}
    assert [text.partition(" has given no sign")[0] for text in served.said] == [
        "the process of slot 1",
        served.said[1],
    ]
    assert executor.capacity == 1


def test_nobody_is_silent_while_nobody_listens(
    executor: SlotPool[Trial], served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while a database is waited for."""
    monkeypatch.setattr("autotune.tuning.slot_pool.SILENT_S", 2.0)
    monkeypatch.setattr("autotune.tuning.slot_pool._SURE_S", 2.0)

    def answer() -> str:
        time.sleep(5)
        return "late"

    served.answer = answer
    executor.submit(trial(0, "sleep", 0))
    executor.submit(trial(1, "wait", 1))
    assert results(executor, 1) == {1: Measured("late")}
    assert served.said == []


def test_a_cancelled_slot_takes_trials_again(executor: SlotPool[Trial], served: Served) -> None:
    executor.submit(trial(0, "sleep", 0))
    while not served.told:
        executor._listen(0.1)
    executor.cancel()
    assert (executor.capacity, executor.completed()) == (2, [])
    executor.submit(trial(1, "ask", 0))
    assert results(executor, 1) == {1: Measured("42")}


def test_a_process_that_hangs_is_killed_in_the_end(
    executor: SlotPool[Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autotune.tuning.slot_pool._MORE_S", -30.0)  # with KILL_S: 1 s in all
    before = psutil.Process().children()
    executor.submit(trial(0, "stop", 0))
    [process] = [p for p in psutil.Process().children() if p not in before]
    wait_until(lambda: process.status() == psutil.STATUS_STOPPED)
    executor.close()
    assert not process.is_running()


def test_an_interrupt_is_passed_on_and_the_second_one_too(
    executor: SlotPool[Trial], served: Served
) -> None:
    executor.submit(trial(0, "sleep", 0))

    def twice(*_: object) -> None:
        served.told.append(_)
        signal.raise_signal(signal.SIGINT)

    executor._served = {**executor._served, "stage": twice, "ended": twice}
    with pytest.raises(KeyboardInterrupt):
        executor.completed()
    with pytest.raises(KeyboardInterrupt):  # the second came while the server was ended
        executor.close()
    assert len(served.told) == 2


# -- which slots there are ---------------------------------------------------------------------


class FakeNvml:
    """NVML with some GPUs, by name; a name with MIG is split."""

    NVMLError = OSError

    def __init__(self, *names: str, near: tuple[int, ...] = ()) -> None:
        self.names, self.near = names, near

    def nvmlInit(self) -> None: ...

    def nvmlShutdown(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return len(self.names)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    nvmlDeviceGetIndex = nvmlDeviceGetHandleByIndex

    def nvmlDeviceGetUUID(self, gpu: int) -> str:
        return f"GPU-{gpu}{gpu}"

    def nvmlDeviceGetName(self, gpu: int) -> str:
        return self.names[gpu].removesuffix(" MIG")

    def nvmlDeviceGetMigMode(self, gpu: int) -> list[int]:
        if gpu == 0 and not self.names[gpu].endswith("MIG"):
            raise OSError("not supported")
        return [int(self.names[gpu].endswith("MIG"))] * 2

    def nvmlDeviceGetCpuAffinity(self, gpu: int, words: int) -> list[int]:
        return [self.near[gpu], *[0] * (words - 1)] if self.near else [2**64 - 1] * words


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Eight cores, and none of the variables that name devices."""
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    monkeypatch.setattr(host, "_TOPOLOGY", Path("/nonexistent"))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    return monkeypatch


def prepared(folder: Path, device: str | None, **changes: Any) -> Any:
    loaded = load_study(str(write_study(folder, **changes)))
    info = SimpleNamespace(device=device, version="0.32.0")
    return SimpleNamespace(loaded=loaded, spec=loaded.spec, info=info)


H200 = "NVIDIA H200"


@pytest.mark.parametrize(
    ("flags", "parallel", "gpus"),
    [
        ({}, None, [["GPU-00"], ["GPU-11"], ["GPU-22"], ["GPU-33"]]),
        ({}, 3, [["GPU-00"], ["GPU-11"], ["GPU-22"]]),
        ({"tensor-parallel-size": 2}, None, [["GPU-00", "GPU-11"], ["GPU-22", "GPU-33"]]),
        ({"tensor-parallel-size": 2, "pipeline-parallel-size": 2}, None, []),  # the whole host
        ({"data-parallel-size": 3}, None, []),
        ({}, 1, []),
    ],
)
def test_a_slot_for_each_group_of_gpus(
    bare: pytest.MonkeyPatch,
    tmp_path: Path,
    flags: dict[str, object],
    parallel: int | None,
    gpus: list[list[str]],
) -> None:
    bare.setitem(sys.modules, "pynvml", FakeNvml(*[H200] * 4))
    study = prepared(tmp_path, "cuda", server__flags={"max-num-seqs": 2, **flags})
    found = slots_of_host(study, parallel)
    assert [[gpu.uuid for gpu in slot.gpus] for slot in found] == gpus
    assert [slot.number for slot in found] == list(range(len(gpus)))
    cores = [core for slot in found for core in slot.cores]
    assert len(set(cores)) == len(cores) <= 8
    assert len({len(slot.cores) for slot in found}) <= 1


def test_the_largest_size_that_is_searched_or_written_counts(
    bare: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bare.setitem(sys.modules, "pynvml", FakeNvml(*[H200] * 4))
    searched = prepared(
        tmp_path,
        "cuda",
        space__tensor_parallel_size={"type": "choice", "choices": [1, 2]},
    )
    assert [len(slot.gpus) for slot in slots_of_host(searched, None)] == [2, 2]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "-tp", "2"]
    written = prepared(tmp_path, "cuda", server__command=command)
    assert [len(slot.gpus) for slot in slots_of_host(written, None)] == [2, 2]


def test_the_gpus_that_the_user_names_are_used(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare.setitem(sys.modules, "pynvml", FakeNvml(*[H200] * 4))
    bare.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    found = slots_of_host(prepared(tmp_path, "cuda"), None)
    assert [slot.gpus[0].index for slot in found] == [1, 3]
    for version, named in (("0.32.0", "GPU-11"), ("0.31.0", "1"), (None, "1")):
        variables = slot_environment(found[0], version)
        assert variables == {"CUDA_VISIBLE_DEVICES": named, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    bare.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert slots_of_host(prepared(tmp_path, "cuda"), None) == ()


@pytest.mark.parametrize(
    ("gpus", "device", "changes", "parallel", "words"),
    [
        ([H200] * 2, "cuda", {"server__flags": {"tensor-parallel-size": 4}}, None, "needs 4 GPUs"),
        ([H200] * 2, "cuda", {}, 3, "give --parallel 2"),
        ([H200, "NVIDIA L40S"], "cuda", {}, None, "NVIDIA H200, NVIDIA L40S"),
        ([H200, f"{H200} MIG"], "cuda", {}, None, "MIG"),
        ([], "cuda", {}, 2, "ROCm"),
        ([], "tpu", {}, 2, "NVML"),
        ([], "cpu", {}, 9, "may use 8"),
        ([], "cpu", {"server__flags": {"tensor-parallel-size": 2}}, 5, "2 cores"),
        ([], "cpu", {"server__command": ["taskset", "-c", "0", sys.executable]}, 2, "taskset"),
        ([], "cpu", {"server__env": {"VLLM_CPU_OMP_THREADS_BIND": "0"}}, 2, "each slot has its"),
        ([H200] * 2, "cuda", {"server__env": {"CUDA_VISIBLE_DEVICES": "0"}}, 2, "each slot has"),
        ([H200] * 2, None, {"server__command": ["docker", "run", "x"]}, 2, "container"),
    ],
)
def test_what_has_no_slots_is_refused_in_one_line(
    bare: pytest.MonkeyPatch,
    tmp_path: Path,
    gpus: list[str],
    device: str | None,
    changes: dict[str, Any],
    parallel: int | None,
    words: str,
) -> None:
    if gpus:
        bare.setitem(sys.modules, "pynvml", FakeNvml(*gpus))
    with pytest.raises(UserError) as e:
        slots_of_host(prepared(tmp_path, device, **changes), parallel)
    assert words in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("gpus", "device", "name", "value"),
    [
        ([f"{H200} MIG"], "cuda", "CUDA_VISIBLE_DEVICES", "MIG-77"),
        ([], "cuda", "HIP_VISIBLE_DEVICES", "0"),
    ],
)
def test_one_device_that_is_named_is_one_slot(
    bare: pytest.MonkeyPatch, tmp_path: Path, gpus: list[str], device: str, name: str, value: str
) -> None:
    if gpus:
        bare.setitem(sys.modules, "pynvml", FakeNvml(*gpus))
    bare.setenv(name, value)
    assert slots_of_host(prepared(tmp_path, device), None) == ()
    with pytest.raises(UserError):
        slots_of_host(prepared(tmp_path, device), 2)


def test_auto_is_one_slot_on_a_cpu(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert slots_of_host(prepared(tmp_path, "cpu"), None) == ()
    assert slots_of_host(prepared(tmp_path, None), None) == ()
    two = slots_of_host(prepared(tmp_path, "cpu"), 2)
    assert [slot.cores for slot in two] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert slot_environment(two[0], "0.32.0") == {}


def test_cores_near_the_gpu_and_hyperthreads_together(
    bare: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Cores 0 to 3 are near to the second GPU; cores n and n + 4 are hyperthreads of one."""
    bare.setitem(sys.modules, "pynvml", FakeNvml(H200, H200, near=(0b11110000, 0b1111)))
    groups = [[gpu] for gpu in slot_gpus()]
    assert cores_of_slots(range(8), groups) == [(4, 5, 6, 7), (0, 1, 2, 3)]
    for core in range(8):
        folder = tmp_path / f"cpu{core}" / "topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text("0\n")
        (folder / "core_id").write_text(f"{core % 4}\n")
    bare.setattr(host, "_TOPOLOGY", tmp_path)
    assert cores_of_slots(range(8), [(), ()]) == [(0, 1, 4, 5), (2, 3, 6, 7)]
    whole = [Slot(0, 2, (0, 1, 4, 5)), Slot(1, 2, (2, 3, 6, 7))]
    halves = [Slot(0, 2, (0, 1)), Slot(1, 2, (4, 5))]
    assert [host.shares_a_core(slots) for slots in (whole, halves)] == [False, True]


def test_with_plenty_of_cores_one_is_left_to_the_tuner() -> None:
    groups = [[SlotGpu(i, f"GPU-{i}", H200)] for i in range(2)]
    assert [len(cores) for cores in cores_of_slots(range(16), groups)] == [7, 7]
    assert [len(cores) for cores in cores_of_slots(range(16), [(), ()])] == [8, 8]


def test_ports_and_words_of_slots() -> None:
    slots = [Slot(i, 3, (i,)) for i in range(3)]
    owners = [[slot.owns_port(port) for slot in slots] for port in range(30001, 30101, 2)]
    assert all(sum(of) == 1 for of in owners)
    assert all(any(of[i] for of in owners) for i in range(3))
    assert ranges([7, 0, 1, 2, 5]) == "0-2,5,7"
    gpu = SlotGpu(0, "GPU-00", H200)
    assert slot_details(Slot(1, 2, (4, 5), (gpu,)).stored()) == "slot 1 of 2: GPU-00, cores 4-5"
    assert slot_details(Slot(0, 2, (3,)).stored()) == "slot 0 of 2: core 3"


def test_a_slot_is_a_machine_of_its_own(bare: pytest.MonkeyPatch) -> None:
    bare.setitem(sys.modules, "pynvml", FakeNvml(H200, H200))
    machine = {"cpu": "x", "cores": 8, "gpus": [{"name": "a"}, {"name": "b"}]}
    found = Slot(1, 2, (4, 5, 6, 7), (slot_gpus()[1],)).machine(machine)
    assert found == {"cpu": "x", "cores": 4, "gpus": [{"name": "b"}]}


@pytest.mark.parametrize("known", [False, True])
def test_neighbors_and_the_driver_are_not_foreign(
    monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """The slot has core 0: its server uses 2 s, the driver 1 s, a stranger 4 s; core 1 is full."""
    server, driver = mock.Mock(pid=1), mock.Mock(pid=2)
    seconds = {server: [10.0, 12.0], driver: [5.0, 6.0]}

    def cores(user: tuple[float, float]) -> list[Any]:
        rest = dict.fromkeys(("nice", "system", "irq", "softirq", "steal", "iowait"), 0.0)
        return [SimpleNamespace(user=x, **rest) for x in user]

    readings = iter([cores((0.0, 0.0)), cores((7.0, 100.0))])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: next(readings))
    monkeypatch.setattr(
        interference, "_cpu_seconds", lambda p: seconds[p].pop(0) if p in seconds else 0.0
    )
    others: Any = [driver] if known else []
    rest = IdleBaseline(0.05, None, ())
    with LoadWatch(rest, lambda: [server], others) as watch:
        time.sleep(0.01)
    state = watch.state
    assert state.cores == 1
    assert state.foreign is not None
    assert state.foreign * state.seconds == pytest.approx(4.0 if known else 5.0)


def test_a_vllm_that_cannot_be_asked_has_no_device() -> None:
    assert UNKNOWN.device is None  # as the tests above have it


def test_a_second_run_is_refused_before_it_waits_for_slots_of_a_cluster(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    study: Any = None  # it is not looked at
    database = tmp_path / "autotune.db"
    database.touch()
    with (
        exclusive(database),
        pytest.raises(UserError, match=r"another autotune .* is running on it"),
        cluster_of(study, "127.0.0.1:1", None, print, database),
    ):
        raise AssertionError("it was entered")
