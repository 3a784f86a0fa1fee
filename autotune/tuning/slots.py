"""Which slots a run has: ``--parallel auto`` or a number on this host, ``--ray`` on a cluster.

A slot has as many GPUs as one server needs: the product of :data:`SIZES` among its flags, each of
which is 1 in vLLM where it is not given (vllm/config/parallel.py). On a host without GPUs a slot
has cores.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.engine.rule import minor_of
from autotune.errors import UserError, one_line
from autotune.results.text import count
from autotune.serving.slots import Slot, SlotGpu, cores_of_slots, shares_a_core, slot_gpus
from autotune.storage.lease import check_free
from autotune.storage.location import Database
from autotune.storage.store import Store
from autotune.study.containers import is_container
from autotune.study.schema import StudySpec
from autotune.study.space import as_int
from autotune.study.words import argument_of, own_words
from autotune.tuning.prepare import Prepared

if TYPE_CHECKING:
    from autotune.tuning.slot_pool import Cluster

# Flags whose product is the number of GPUs that one server needs.
SIZES = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "prefill_context_parallel_size",
    "data_parallel_size",
)
# Programs and variables that would put the servers of all slots on the same GPUs or cores.
_BINDING = {"taskset", "numactl"}
_PLACES = ("CUDA_VISIBLE_DEVICES", "VLLM_CPU_OMP_THREADS_BIND")
# First version that takes UUIDs in CUDA_VISIBLE_DEVICES in all its processes.
_UUIDS = (0, 32)


def slots_of_host(prepared: Prepared, parallel: int | None) -> tuple[Slot, ...]:
    """Return the slots of a run; empty: one server at a time, which may use the whole host.

    Args:
        prepared: The study.
        parallel: Number of slots; None: as many as there are groups of GPUs that a server needs,
            and one on a host without GPUs.

    Raises:
        UserError: there are too few GPUs or cores, the GPUs differ, or servers cannot be kept on
            the slots' own.
    """
    if parallel == 1:
        return ()
    device = prepared.info.device
    gpus = slot_gpus() if device in ("cuda", None) else []
    if device not in ("cuda", "cpu", None) or (device == "cuda" and not gpus):
        return _not_here(prepared, parallel)
    if not gpus and parallel is None:
        return ()
    need, flags = gpus_needed(prepared.spec)
    path = prepared.loaded.path
    if not gpus:
        groups: list[tuple[SlotGpu, ...]] = [()] * (parallel or 1)
    else:
        if any(gpu.split for gpu in gpus) or "MIG-" in os.environ.get("CUDA_VISIBLE_DEVICES", ""):
            return _split_gpus(parallel)
        if need > len(gpus):
            raise UserError(
                f"{path}: {flags or 'one server'} needs {need} GPUs, and this host has "
                f"{len(gpus)}. Lower it, or run on a larger host"
            )
        most = len(gpus) // need
        wanted = most if parallel is None else parallel
        if wanted > most:
            of = f"{need} GPUs ({flags})" if need > 1 else "a GPU"
            raise UserError(
                f"--parallel {wanted}: a slot needs {of}, and the {len(gpus)} GPUs here are enough "
                f"for {most}; give --parallel {most}, or auto"
            )
        groups = [tuple(gpus[i * need : (i + 1) * need]) for i in range(wanted)]
        if wanted == 1:
            return ()
    _check_alike(groups)
    check_bound(prepared, "--parallel")
    usable = sorted(os.sched_getaffinity(0))
    workers = 1 if gpus else need
    if len(groups) * workers > len(usable):
        each = f"{workers} cores ({flags})" if workers > 1 else "a core"
        raise UserError(
            f"--parallel {len(groups)}: a slot needs {each} of its own, and this process may use "
            f"{len(usable)}; give a smaller number"
        )
    cores = cores_of_slots(usable, groups)
    return tuple(
        Slot(number, len(groups), mine, of)
        for number, (mine, of) in enumerate(zip(cores, groups, strict=True))
    )


@contextmanager
def cluster_of(
    prepared: Prepared,
    address: str | None,
    parallel: int | None,
    say: Callable[[str], None],
    database: Database | None = None,
) -> Iterator[Cluster | None]:
    """Yield the slots of a study on a Ray cluster; None without an address.

    Args:
        prepared: The study.
        address: ``auto``, or host and port of the cluster's head.
        parallel: Number of slots of a node without GPUs; None: one.
        say: Told what a user should know before the run.
        database: The study's; one that another run holds is refused before slots are waited for.

    Raises:
        UserError: another run holds the database, Ray is not installed, there is no such cluster,
            or no node of it can run the study.
    """
    if address is None:
        yield None
        return
    try:
        from autotune.tuning.ray_slots import RayCluster
    except ImportError as e:
        raise UserError(
            f"--ray needs Ray, which cannot be imported here ({one_line(str(e), 200)}); "
            "pip install 'dflash-autotune[ray]'"
        ) from e
    if database is not None:
        check_free(database)
    with RayCluster(prepared, address, parallel or 1, say) as cluster:
        yield cluster


def slot_environment(slot: Slot, version: str | None) -> dict[str, str]:
    """Return the variables that keep a slot's servers on its GPUs.

    Args:
        slot: The slot.
        version: Version of the study's vLLM; one before 0.32 gets numbers, for it cannot read
            UUIDs.
    """
    if not slot.gpus:
        return {}
    minor = None if version is None else minor_of(version)
    by_uuid = minor is not None and minor >= _UUIDS
    named = [gpu.uuid if by_uuid else str(gpu.index) for gpu in slot.gpus]
    return {"CUDA_VISIBLE_DEVICES": ",".join(named), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def check_slots(
    prepared: Prepared,
    store: Store,
    machine: Mapping[str, Any],
    *,
    in_slots: bool,
    launched_as: str | None = None,
) -> None:
    """Refuse servers with other cores than the earlier ones, where cores run the model.

    Without slots, now as before, another number of cores is another machine, which is only said.

    Args:
        prepared: The study.
        store: Has its trials.
        machine: The machine as one server has it.
        in_slots: Whether the run has slots; otherwise a server may use the whole host.
        launched_as: Name under which its launches are stored; None: the study's own.

    Raises:
        UserError: the earlier trials would not compare with those of the run.
    """
    earlier, _ = store.launches.measured_on(launched_as or prepared.spec.name)
    if earlier is None or prepared.info.device == "cuda" or machine.get("gpus"):
        return
    before, slotted = earlier.get("cores"), in_slots or earlier.get("slot")
    if slotted and before is not None and before != machine["cores"]:
        what = "a slot" if in_slots else "a server without slots"
        raise UserError(
            f"{store.database}: the trials of {prepared.spec.name} were measured on "
            f"{count(before, 'core')}, and {what} has {machine['cores']}: they are not "
            "comparable. `autotune run` with as many slots as before (--parallel), change the "
            "study's name or use another --db"
        )


def slot_notes(slots: Sequence[Slot]) -> Iterator[str]:
    """Yield what to know of a run's slots, a line each.

    Args:
        slots: Slots of the run; empty: one server at a time.
    """
    if not slots:
        return
    each = what_it_has(slots[0])
    yield f"{len(slots)} slots of {each}; each block of the confirmation stays on one of them"
    if shares_a_core(slots):
        yield "two slots share a physical core (hyperthreads): they slow each other down"


def what_it_has(slot: Slot) -> str:
    """Return how many GPUs and cores a slot has, in words."""
    cores = count(len(slot.cores), "core")
    return f"{count(len(slot.gpus), 'GPU')} and {cores}" if slot.gpus else cores


def gpus_needed(spec: StudySpec) -> tuple[int, str]:
    """Return how many GPUs the largest server of a study needs, and the flags that say so."""
    params, written = spec.to_space().params, _written(spec.server.command or ())
    sizes = {}
    for name in SIZES:
        searched = params[name].values() if name in params else None
        values = [spec.server.flags.get(name), written.get(name), *(searched or ())]
        sizes[name] = max(as_int(value) or 1 for value in values)
    named = [f"{name.replace('_', '-')} {size}" for name, size in sizes.items() if size > 1]
    return prod(sizes.values()), " × ".join(named)


def _written(command: Sequence[str]) -> dict[str, int]:
    """Return the sizes among the words that a study wrote after ``vllm serve``."""
    words, certain = own_words(command)
    found: dict[str, int] = {}
    for word, after in zip(words, [*words, ""][1:], strict=True):
        name = argument_of(word, short=certain)
        value = word.partition("=")[2] or after
        found |= {size: int(value) for size in SIZES if size == name and value.isdecimal()}
    return found


def _not_here(prepared: Prepared, parallel: int | None) -> tuple[Slot, ...]:
    """Refuse slots on devices that they were not made for, unless only one is used."""
    named = [os.environ.get(k) for k in ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")]
    if parallel is None and any(x is not None and "," not in x for x in named):
        return ()
    raise UserError(
        f"{prepared.loaded.path}: --parallel needs GPUs that NVIDIA's NVML shows (the package "
        "nvidia-ml-py), or a vLLM for CPUs; ROCm and other devices have one slot. Leave --parallel "
        "out"
    )


def _split_gpus(parallel: int | None) -> tuple[Slot, ...]:
    """Refuse slots on GPUs that MIG splits, unless only one part is used."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if parallel is None and named is not None and "," not in named:
        return ()
    raise UserError(
        "--parallel: MIG splits a GPU of this host, and slots need whole GPUs. Name one part in "
        "CUDA_VISIBLE_DEVICES and leave --parallel out, or name whole GPUs only"
    )


def _check_alike(groups: Sequence[Sequence[SlotGpu]]) -> None:
    """Refuse slots whose GPUs are not of one model: their trials would not compare."""
    names = {gpu.name for gpus in groups for gpu in gpus}
    if len(names) > 1:
        raise UserError(
            f"--parallel: the slots would have different GPUs ({', '.join(sorted(names))}), and "
            "their trials would not compare. Name those of one model in CUDA_VISIBLE_DEVICES"
        )


def check_bound(prepared: Prepared, option: str) -> None:
    """Refuse a server that does not stay on the GPUs and cores of its slot.

    Args:
        prepared: The study.
        option: Option that asks for slots, which the message says to leave out.

    Raises:
        UserError: its command or its variables bind it elsewhere.
    """
    server, path = prepared.spec.server, prepared.loaded.path
    command = server.command or ()
    if any(is_container(command[i:]) for i in range(len(command))):
        raise UserError(
            f"{path}: server.command starts a container, which would not stay on the GPUs and "
            f"cores of its slot; leave {option} out"
        )
    for name in _PLACES:
        if name in server.env or any(word.startswith(f"{name}=") for word in command):
            raise UserError(
                f"{path}: server.env or server.command sets {name} for every server, but each slot "
                f"has its own; take it out, or leave {option} out"
            )
    if os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "auto") not in ("auto", "nobind"):
        raise UserError(
            "VLLM_CPU_OMP_THREADS_BIND is set for every server, but each slot has cores of its "
            f"own; unset it, or leave {option} out"
        )
    if bound := next((word for word in command if Path(word).name in _BINDING), None):
        raise UserError(
            f"{path}: server.command has `{Path(bound).name}`, which binds every server to the "
            f"same cores, but each slot has its own; take it out, or leave {option} out"
        )
