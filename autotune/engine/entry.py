"""How a study's command starts a server, and in which environment.

The probe and the launch use both, so what is asked is what is started.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from autotune.errors import UserError
from autotune.study.containers import is_container
from autotune.study.programs import API_SERVER, ASSIGNMENT, CONSOLE_MODULE, is_python, start_end
from autotune.study.schema import ServerSpec
from autotune.study.wrappers import Fate, unwrap

INSTALL = "install it (`pip install 'dflash-autotune[gpu]'`, or `[cpu]` for machines without a GPU)"
# Wrappers whose program is no child of autotune, or that are words of a shell.
_ESCAPES = {"setsid", "systemd-run", "exec", "command", "eval"}
_SHIM = Path(__file__).with_name("shim")


@dataclass(frozen=True)
class Entry:
    """How a study's command starts a server.

    Attributes:
        head: Words before the model, wrappers included.
        rest: Words after the model.
        python: Interpreter that runs vLLM; None where the command does not tell.
        console: Whether it is the `vllm` command, which takes the model without a flag.
        wrapper: Words before the program, such as ``numactl -N 0``.
    """

    head: tuple[str, ...]
    rest: tuple[str, ...]
    python: str | None
    console: bool
    wrapper: tuple[str, ...] = ()


def entry_of(command: tuple[str, ...] | None) -> Entry:
    """Return how a study's command starts a server.

    Args:
        command: Value of ``server.command``; None: the vLLM of autotune's own environment.

    Raises:
        UserError: the program does not exist.
    """
    if command is None:
        return Entry((sys.executable, "-m", API_SERVER), (), sys.executable, console=False)
    wrapper, inner, certain = _behind_wrappers(command)
    if not wrapper:
        return _unwrapped(inner)
    wrapper = (_which(wrapper[0]), *wrapper[1:])
    if certain:
        entry = _unwrapped(inner)
    else:  # only the wrapper knows which program the words stand for
        words, rest = _console_words(inner)
        entry = Entry(words, rest, None, console=words[-1:] == ("serve",))
    return replace(entry, head=(*wrapper, *entry.head), wrapper=wrapper)


def _behind_wrappers(
    command: tuple[str, ...],
) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    """Return a command's wrappers, the program behind them, and whether it is certain which.

    Raises:
        UserError: a server behind one of them cannot be owned.
    """
    wrapper: tuple[str, ...] = ()
    inner, certain = command, True
    while not is_container(inner):
        found = unwrap(inner)
        if found is None or not found.rest:
            break
        if found.name in _ESCAPES and found.wrapper.fate is not Fate.KEEP:  # `--scope` keeps it
            raise UserError(
                f"server.command: `{found.name}`: {found.wrapper.why}; leave it out of the command"
            )
        wrapper, inner = (*wrapper, *found.words), found.rest
        certain = certain and found.wrapper.fate is not Fate.BLIND and not found.wrapper.other_user
        while found.name == "env" and inner[1:] and ASSIGNMENT.match(inner[0]):
            certain = certain and not inner[0].startswith(("PATH=", "PYTHON"))
            wrapper, inner = (*wrapper, inner[0]), inner[1:]
    if is_container(inner):
        return (), command, False
    return wrapper, inner, certain


def _console_words(words: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split a command behind `vllm serve`, if it has these words."""
    end = start_end(words)
    return (words[:end], words[end:]) if words[end - 1 : end] == ("serve",) else (words, ())


def _unwrapped(command: tuple[str, ...]) -> Entry:
    """Return how a command without wrappers starts a server.

    Raises:
        UserError: the program does not exist.
    """
    program = _which(command[0])
    words, rest = _console_words(command)
    if Path(command[0]).name == "vllm" and len(words) == 2:
        return Entry((program, "serve"), rest, _interpreter(program), console=True)
    if is_python(command[0]):
        module = next((b for a, b in pairwise(command) if a == "-m"), "")
        script = words[-1:] == ("serve",) and all(w.startswith("-") for w in words[1:-2])
        if script and module in ("", CONSOLE_MODULE):
            return Entry((program, *words[1:]), rest, program, console=True)
        if module.startswith("vllm."):
            return Entry((program, *command[1:]), (), program, console=False)
    return Entry((program, *command[1:]), (), None, console=False)


def server_environment(
    server: ServerSpec, python: str | None
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the environment of a server's Python, and the part that study and autotune added.

    Args:
        server: The study's server.
        python: Interpreter that runs vLLM, if it is known.
    """
    defaults = {
        # a measuring tool calls nobody, and its servers talk to each other on this machine only
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    added = {k: v for k, v in defaults.items() if k not in os.environ} | server.env
    added |= {
        "PYTHONUNBUFFERED": "1",  # the last words of a crash reach the log
        # vLLM names its processes by setproctitle. Without this, that overwrites
        # /proc/PID/environ, where the launch id is looked for.
        "SPT_NOENV": "1",
    }
    path = added.get("PATH", os.environ.get("PATH", os.defpath))
    if python is not None and str(Path(python).parent) not in path.split(os.pathsep):
        # as in an activated venv: vLLM's just-in-time compilers call `ninja` from there
        added["PATH"] = f"{Path(python).parent}{os.pathsep}{path}"
    env = {**os.environ, **added}
    # with the key of the user's own servers, this server would refuse autotune's requests
    env.pop("VLLM_API_KEY", None)
    added.pop("VLLM_API_KEY", None)
    return env, added


def hiding(hidden: tuple[str, ...], env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that hide modules from a server and all its processes.

    Args:
        hidden: Names of the modules: :attr:`autotune.engine.probe.VllmInfo.hidden`.
        env: Environment that the variables are added to; its ``PYTHONPATH`` stays in effect.
    """
    if not hidden:
        return {}
    path = [str(_SHIM), *([env["PYTHONPATH"]] if env.get("PYTHONPATH") else [])]
    return {"PYTHONPATH": os.pathsep.join(path), "AUTOTUNE_HIDE": ",".join(hidden)}


def _which(name: str) -> str:
    """Return the full path of a program: on PATH, or next to autotune's own interpreter."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        ours = Path(name).name == "vllm" or is_python(name)
        other = f"{INSTALL} and leave server.command out" if ours else "install it"
        raise UserError(
            f"server.command: there is no program {name!r}; give its full path, or {other}"
        )
    return str(Path(found).absolute())  # not resolve(): a venv's python is a link


def _interpreter(script: str) -> str | None:
    """Return the interpreter of a console script, by its first lines; None: it is no Python."""
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
