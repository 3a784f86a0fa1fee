"""The interference check: readings of this machine, of a fake NVML, and what is made of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from autotune.bench import interference
from autotune.bench.interference import (
    GpuReading,
    IdleBaseline,
    LoadWatch,
    MachineState,
    disturbed,
    kernel_seconds,
    read_gpus,
    take_idle_baseline,
)

QUIET_GPU = GpuReading(345, 45, 0, None, 480, (), 0.0)
BUSY_GPU = GpuReading(1980, 66, 99, 0, 70_000, (), 0.0)
QUIET = MachineState(
    rest=IdleBaseline(0.05, 2400.0, ()),
    seconds=60.0,
    cores=2,
    busy=1.5,
    foreign=0.03,
    steal=0.2,  # a tenth of the two cores: an ordinary day of a shared machine
    iowait=0.1,
    gpus_before=(),
    gpus_after=(),
)


def with_gpu(
    rest: GpuReading = QUIET_GPU, before: GpuReading = BUSY_GPU, after: GpuReading = BUSY_GPU
) -> MachineState:
    return replace(
        QUIET, rest=replace(QUIET.rest, gpus=(rest,)), gpus_before=(before,), gpus_after=(after,)
    )


@contextmanager
def burning() -> Iterator[psutil.Popen]:
    """A process that eats a core."""
    child = psutil.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield child
    finally:
        child.kill()
        child.wait()


# -- the machine ------------------------------------------------------------------------------


def test_the_kernel_takes_time() -> None:
    assert kernel_seconds() > 0


def looked(*seconds: float, earlier: Sequence[float] = ()) -> tuple[IdleBaseline, list[float]]:
    """What is found where the fixed computation takes so long, and the pauses between the looks."""
    pauses: list[float] = []
    left = iter(seconds)
    return take_idle_baseline(earlier, look=lambda: next(left), pause=pauses.append), pauses


def test_a_slow_look_is_looked_at_again() -> None:
    rest, pauses = looked(0.9, 0.7, 0.52, earlier=[0.5, 0.5, 9.0])
    assert rest.kernel_s == 0.52
    assert len(pauses) == 2


def test_a_machine_that_stays_slow_is_believed() -> None:
    rest, _ = looked(0.9, 0.8, 0.85, 0.8, 0.9, earlier=[0.5])
    assert rest.kernel_s == 0.8
    assert "1.60 × as long as usual" in str(disturbed(replace(QUIET, rest=rest), [0.5]))


def test_the_first_look_has_nothing_to_be_compared_with() -> None:
    rest, pauses = looked(0.9)
    assert pauses == []
    assert rest.kernel_s == 0.9
    assert disturbed(replace(QUIET, rest=rest), []) is None


def test_a_process_that_is_not_ours_is_seen() -> None:
    rest = IdleBaseline(0.05, None, ())
    with burning() as child:
        with LoadWatch(rest, lambda: []) as foreign, LoadWatch(rest, lambda: [child]) as ours:
            while interference._cpu_seconds(child) < 0.5:
                kernel_seconds()
        assert foreign.state.foreign is not None
        assert ours.state.foreign is not None
        assert foreign.state.foreign > ours.state.foreign
        assert foreign.state.busy >= foreign.state.foreign
    assert foreign.state.cores >= 1
    assert foreign.state.steal >= 0
    json.dumps(asdict(foreign.state))


def test_without_the_servers_processes_foreign_load_is_unknown() -> None:
    with LoadWatch(IdleBaseline(0.05, None, ()), None) as watch:
        kernel_seconds()
    assert watch.state.foreign is None
    assert watch.state.busy >= 0


def test_a_child_that_ended_counts_and_a_process_that_is_gone_does_no_harm() -> None:
    def ended_children() -> float:
        me = psutil.Process()
        return interference._cpu_seconds(me) - sum(me.cpu_times()[:2])

    before = ended_children()
    with burning() as child:
        while interference._cpu_seconds(child) < 0.3:
            kernel_seconds()
    assert interference._cpu_seconds(child) == 0.0
    assert ended_children() - before >= 0.2


def test_the_state_is_there_after_an_error_too() -> None:
    watch = LoadWatch(IdleBaseline(0.05, None, ()), lambda: [])
    with pytest.raises(KeyError), watch:
        raise KeyError
    assert watch.state.seconds > 0


# -- GPUs -------------------------------------------------------------------------------------


class FakeNvml(SimpleNamespace):
    """Two GPUs: one that tells everything, one that tells next to nothing."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM = 1
    NVML_TEMPERATURE_GPU = 0
    NVML_PERF_POLICY_THERMAL = 1

    def __init__(self, **changes: Any) -> None:
        super().__init__(open=0, **changes)

    def only_first(self, gpu: int, answer: Any) -> Any:
        if gpu != 0:
            raise self.NVMLError("Not Supported")
        return answer

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetClockInfo(self, gpu: int, kind: int) -> int:
        assert kind == self.NVML_CLOCK_SM
        return 1980 - gpu

    def nvmlDeviceGetTemperature(self, gpu: int, sensor: int) -> Any:
        return self.only_first(gpu, 66)

    def nvmlDeviceGetUtilizationRates(self, gpu: int) -> Any:
        return self.only_first(gpu, SimpleNamespace(gpu=99, memory=20))

    def nvmlDeviceGetMemoryInfo(self, gpu: int) -> Any:
        return self.only_first(gpu, SimpleNamespace(used=1490 << 20))

    def nvmlDeviceGetCurrentClocksEventReasons(self, gpu: int) -> Any:
        return self.only_first(gpu, 0x04 | 0x20 | 0x80)  # a power cap is no trouble

    def nvmlDeviceGetViolationStatus(self, gpu: int, policy: int) -> Any:
        assert policy == self.NVML_PERF_POLICY_THERMAL
        return self.only_first(gpu, SimpleNamespace(violationTime=2_500_000_000))

    def nvmlDeviceGetProcessUtilization(self, gpu: int, since_us: int) -> Any:
        assert since_us == 7_000_000
        used = [SimpleNamespace(pid=pid, smUtil=sm) for pid, sm in ((509, 82), (538, 18))]
        return self.only_first(gpu, used)


def test_what_nvml_tells_and_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    full, poor = read_gpus({509}, 7.0)
    slowed = ("heat (software)", "power brake")
    assert full == GpuReading(1980, 66, 99, 18, 1490, slowed, 2.5)
    assert poor == GpuReading(1979, None, None, None, None, (), None)
    assert nvml.open == 0
    json.dumps(asdict(full))
    # the driver's pids are not ours: nothing can be said
    assert read_gpus({1, 2}, 7.0)[0].foreign is None


@pytest.mark.parametrize(
    ("named", "clocks"),
    [
        (None, [1980, 1979]),
        ("1", [1979]),
        ("1,0", [1980, 1979]),
        ("GPU-b", [1979]),
        ("MIG-7", [1980, 1979]),
        ("7", []),
    ],
)
def test_only_the_gpus_that_servers_may_use_count(
    monkeypatch: pytest.MonkeyPatch, named: str | None, clocks: list[int]
) -> None:
    """Two runs on one machine, each on a GPU of its own: neither looks at the other's."""
    nvml = FakeNvml(nvmlDeviceGetUUID=lambda gpu: f"GPU-{'ab'[gpu]}0")
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert [g.sm_mhz for g in read_gpus()] == clocks


def test_no_nvml_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as if it were not installed
    assert read_gpus() == ()

    def no_driver() -> None:
        raise FakeNvml.NVMLError("Driver Not Loaded")

    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(nvmlInit=no_driver))
    assert read_gpus() == ()


# -- the verdict ------------------------------------------------------------------------------


def test_ordinary_noise_is_not_a_disturbance() -> None:
    assert disturbed(QUIET, [0.045, 0.05, 0.052]) is None
    assert disturbed(replace(QUIET, foreign=0.19), []) is None
    assert disturbed(replace(QUIET, rest=IdleBaseline(0.06, None, ())), [0.05]) is None
    assert disturbed(with_gpu(), []) is None
    # one of sixteen cores is not missed
    assert disturbed(replace(QUIET, cores=16, foreign=1.0), []) is None


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (replace(QUIET, foreign=1.0), "other processes used 1.0 of 2 cores"),
        (replace(QUIET, cores=1, foreign=0.5), "other processes used 0.5 of one core"),
        (replace(QUIET, steal=0.6), "the hypervisor withheld 30% of the CPU time"),
        (replace(QUIET, rest=IdleBaseline(0.065, None, ())), "took 1.30 × as long as usual"),
        (
            with_gpu(rest=replace(QUIET_GPU, utilisation=43)),
            "GPU 0 was 43 % busy before the server was started",
        ),
        (
            with_gpu(after=replace(BUSY_GPU, foreign=18)),
            "GPU 0 was used to 18 % by other processes",
        ),
        (
            with_gpu(before=replace(BUSY_GPU, slowed=("power brake",))),
            "GPU 0 was slowed: power brake",
        ),
        (
            with_gpu(after=replace(BUSY_GPU, thermal_s=6.0)),
            "GPU 0 was slowed by heat for 10% of the time",
        ),
    ],
)
def test_each_disturbance_is_told_in_words(state: MachineState, words: str) -> None:
    told = disturbed(state, [0.05, 0.05, 0.2])
    assert told is not None
    assert told.endswith(words)
    assert "\n" not in told


def test_several_disturbances_are_one_line() -> None:
    told = disturbed(replace(QUIET, foreign=1.2, steal=0.7), [])
    assert told is not None
    assert told.count("; ") == 1


def test_a_gpu_that_the_server_does_not_use_does_not_matter() -> None:
    elsewhere = replace(QUIET_GPU, utilisation=100, memory_mib=40_000, slowed=("power brake",))
    assert disturbed(with_gpu(elsewhere, elsewhere, elsewhere), []) is None
    # without a count of memory, every GPU may be ours
    silent = replace(elsewhere, memory_mib=None)
    assert disturbed(with_gpu(silent, silent, silent), []) is not None
