"""Containers of launches: what marks them, and which of them are left.

A container is no child of the process that starts it, so its engine has to be asked. For each
launch in a container, a small file in the user's cache folder says which engine that is. It is
there before the container is, and goes when the end of the container is proven. So `autotune ps`,
`autotune reap` and the next run find what is left, even if tuner and supervisor were killed, and
ask no engine where no container was ever started.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from platformdirs import user_cache_dir

from autotune.engine.command import OWNER_VARIABLE
from autotune.engine.container import ENGINE_VARIABLES
from autotune.errors import StopError, UserError
from autotune.serving.supervisor import ENGINE_S, LABEL, Containers
from autotune.study.containers import parse

_LATE_S = 2.0  # for an engine to make the container of a client that has ended


@dataclass(frozen=True)
class ContainerRecord:
    """What is known of a launch in a container before the container exists.

    Attributes:
        launch_id: Launch id, the label ``autotune.launch`` of the container.
        engine: Words that call the engine.
        env: Variables of the engine's client, such as ``DOCKER_HOST``.
        owner: Pid and start of the autotune that launched it, as in its environment.
        command: The words that start it.
        since: When it was written, seconds since 1970.
    """

    launch_id: str
    engine: tuple[str, ...]
    env: Mapping[str, str]
    owner: str
    command: tuple[str, ...]
    since: float

    @property
    def containers(self) -> Containers:
        """The containers of the launch."""
        return Containers(
            list(self.engine),
            self.launch_id,
            str(_file(self.launch_id, "cid")),
            {**os.environ, **self.env},
        )


def marked(
    argv: Sequence[str], launch_id: str, env: Mapping[str, str]
) -> tuple[tuple[str, ...], dict[str, object] | None]:
    """Return a command with the marks of an owned container, which is written down.

    The marks are a name and labels; docker, podman and nerdctl write the container's id into a
    file, too.

    Args:
        argv: Program and arguments.
        launch_id: Launch id.
        env: Environment of the program.

    Returns:
        The command, and how the supervisor reaches its container; the same command and None if it
        starts no container, or one that is a child process.

    Raises:
        UserError: the record cannot be written.
    """
    container = parse(argv)
    if container is None or container.kind == "process":
        return tuple(argv), None
    owner = env.get(OWNER_VARIABLE, "")
    marks = ["--name", f"autotune-{launch_id}"]
    for key, value in {
        LABEL: launch_id,
        "autotune.owner": owner,
        "autotune.host": socket.gethostname(),
        "autotune.user": str(os.getuid()),
    }.items():
        marks += ["--label", f"{key}={value}"]
    if container.kind == "run":
        marks += ["--cidfile", str(_file(launch_id, "cid"))]
    record = ContainerRecord(
        launch_id,
        container.engine,
        {k: v for k, v in env.items() if k in ENGINE_VARIABLES},
        owner,
        tuple(argv),
        time.time(),
    )
    path = _file(launch_id, "json")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(record)), encoding="utf-8")
    except OSError as e:
        raise UserError(
            f"{path}: cannot be written: {e.strerror}; without it a container could be lost"
        ) from e
    begin = len(container.run)
    reached: dict[str, object] = {
        "engine": [*container.engine],
        "cidfile": str(_file(launch_id, "cid")),
    }
    return (*argv[:begin], *marks, *argv[begin:]), reached


def record_of(launch_id: str) -> ContainerRecord | None:
    """Return the record of a launch; None: it was in no container, or its end is proven."""
    return _read(_file(launch_id, "json"))


def records() -> list[ContainerRecord]:
    """Return the record of every launch in a container whose end is not proven."""
    found = map(_read, sorted(_folder().glob("*.json")))
    return [record for record in found if record is not None]


def end_containers(launch_id: str, *, grace_s: float = 0) -> int:
    """End what is left of a launch's containers, with proof; return their number.

    Args:
        launch_id: Launch id; without a record there is nothing to do.
        grace_s: Wait after SIGTERM before SIGKILL, seconds.

    Raises:
        StopError: a container survives, or its engine does not answer.
    """
    record = record_of(launch_id)
    if record is None:
        return 0
    containers = record.containers
    try:
        found = containers.ids()
        if found and grace_s > 0:
            _wait(containers.stopping(found, grace_s), grace_s + ENGINE_S)
        ended = found | containers.end_all()
        if not ended and not containers.written_id():
            ended = _late(containers)
    except OSError as e:
        if not containers.written_id():  # the engine never told of one, such as without its daemon
            forget(launch_id)
            return 0
        raise StopError(
            f"{e}; a container of launch {launch_id} may still run: end it with "
            f"`{' '.join(record.engine)} rm -f autotune-{launch_id}`, then start again"
        ) from e
    forget(launch_id)
    return len(ended)


def _late(containers: Containers) -> set[str]:
    """End a container that its engine makes although the client is gone; return its id.

    The engine was asked for it before the client ended, and had not answered. Such a container is
    never started.

    Raises:
        OSError: as :meth:`Containers.end_all`.
    """
    deadline = time.monotonic() + _LATE_S
    while time.monotonic() < deadline:
        if ended := containers.end_all():
            return ended
        time.sleep(0.2)
    return set()


def forget(launch_id: str) -> None:
    """Remove the record of a launch that has no container any more."""
    for ending in ("json", "cid"):
        with contextlib.suppress(OSError):  # written by root: `sudo docker`
            _file(launch_id, ending).unlink(missing_ok=True)


def _wait(process: subprocess.Popen[bytes], timeout: float) -> None:
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:  # what follows kills the container
        process.kill()
        process.wait()


def _folder() -> Path:
    return Path(user_cache_dir("dflash-autotune"), "containers")


def _file(launch_id: str, ending: str) -> Path:
    return _folder() / f"{launch_id}.{ending}"


def _read(path: Path) -> ContainerRecord | None:
    """Return a record; None: it is missing, or is none of ours."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        values = json.loads(path.read_text(encoding="utf-8"))
        record = ContainerRecord(**values)
        if record.launch_id == path.stem:
            return ContainerRecord(
                record.launch_id,
                tuple(record.engine),
                dict(record.env),
                record.owner,
                tuple(record.command),
                float(record.since),
            )
    return None
