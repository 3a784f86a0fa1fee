"""A stand-in for docker: a daemon that owns containers, and a client named ``docker``.

As with the real one, a container is a child of the daemon, has an id, a name and labels, gets only
the variables that the client gives it, and outlives its client. Its process id 1 is a program; the
rest ends with it. Unlike the real one, it has the file system of the host, and an image is a word
for a command, given to the daemon.

A container's processes hide ``AUTOTUNE_LAUNCH``, as those of another user do (a daemon of root):
they have it as ``DOUBLE_LAUNCH``. So only the engine can tell them.

Environment of the client:

    ENGINE_PULL_S      seconds before the client asks for the container (an image is pulled)
    ENGINE_CREATE_S    seconds that the daemon takes to make it, even if the client is gone
    ENGINE_DOWN        1: the daemon does not answer
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autotune.study.containers import parse

HIDDEN = {"AUTOTUNE_LAUNCH": "DOUBLE_LAUNCH"}


@dataclass
class Box:
    """A container."""

    id: str
    name: str
    labels: dict[str, str]
    argv: list[str]
    env: dict[str, str]
    rm: bool
    state: str = "created"
    process: subprocess.Popen[bytes] | None = None
    code: int | None = None
    done: threading.Event = field(default_factory=threading.Event)


class Daemon:
    """Owns containers; every request comes in a thread of its own."""

    def __init__(self, images: Mapping[str, list[str]]) -> None:
        self.images = images
        self.boxes: dict[str, Box] = {}
        self.calls: list[list[str]] = []
        self.making = 0  # containers that are made just now
        self.lock = threading.Lock()

    def serve(self, listener: socket.socket) -> None:
        """Answers requests until the listener is closed."""
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(peer,), daemon=True).start()

    def _answer(self, peer: socket.socket) -> None:
        with peer:
            data, fds, _, _ = socket.recv_fds(peer, 1 << 20, 2)
            request = json.loads(data)
            answer = getattr(self, request.pop("do"))(fds=fds, **request)
            for fd in fds:
                os.close(fd)
            with contextlib.suppress(OSError):  # the client is gone
                peer.sendall(json.dumps(answer).encode())

    def create(self, *, image: str, args: list[str], slow_s: float, **rest: Any) -> dict[str, Any]:
        rest.pop("fds")
        with self.lock:
            self.making += 1
        try:
            return self._create(image, args, slow_s, rest)
        finally:
            with self.lock:
                self.making -= 1

    def _create(
        self, image: str, args: list[str], slow_s: float, rest: dict[str, Any]
    ) -> dict[str, Any]:
        time.sleep(slow_s)
        if image not in self.images:
            return {"error": f"No such image: {image}"}
        box = Box(uuid.uuid4().hex * 2, argv=[*self.images[image], *args], **rest)
        with self.lock:
            if any(b.name == box.name for b in self.boxes.values()):
                return {"error": f"Conflict. The container name {box.name} is already in use"}
            self.boxes[box.id] = box
        return {"id": box.id}

    def start(self, *, id: str, fds: list[int]) -> dict[str, Any]:
        box = self.boxes[id]
        out, err = fds
        box.process = subprocess.Popen(
            box.argv,
            env={HIDDEN.get(k, k): v for k, v in box.env.items()},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        box.state = "running"
        threading.Thread(target=self._watch, args=(box, box.process), daemon=True).start()
        return {}

    def _watch(self, box: Box, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        with contextlib.suppress(ProcessLookupError):  # a container ends with its process 1
            os.killpg(process.pid, signal.SIGKILL)
        box.code = code if code >= 0 else 128 - code
        box.state = "exited"
        if box.rm:
            self.boxes.pop(box.id, None)
        box.done.set()

    def wait(self, *, id: str, fds: list[int]) -> dict[str, Any]:
        box = self.boxes.get(id)
        if box is None:
            return {"code": 0}
        box.done.wait()
        return {"code": box.code}

    def kill(self, *, ids: list[str], number: int, fds: list[int]) -> dict[str, Any]:
        for box in self._running(ids):
            if box.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(box.process.pid, number)
            if number == signal.SIGKILL:
                box.done.wait(120)
        return {}

    def stop(self, *, ids: list[str], grace_s: float, fds: list[int]) -> dict[str, Any]:
        for box in self._running(ids):
            self.kill(ids=[box.id], number=signal.SIGTERM, fds=[])
            if not box.done.wait(grace_s):
                self.kill(ids=[box.id], number=signal.SIGKILL, fds=[])
        return {}

    def rm(self, *, ids: list[str], fds: list[int]) -> dict[str, Any]:
        self.kill(ids=ids, number=signal.SIGKILL, fds=[])
        for id in ids:
            self.boxes.pop(id, None)
        return {}

    def ps(self, *, labels: dict[str, str], fds: list[int]) -> dict[str, Any]:
        boxes = list(self.boxes.values())
        return {"ids": [b.id for b in boxes if labels.items() <= b.labels.items()]}

    def called(self, *, argv: list[str], fds: list[int]) -> dict[str, Any]:
        self.calls.append(argv)
        return {}

    def end(self) -> None:
        """Ends every container."""
        self.rm(ids=list(self.boxes), fds=[])

    def _running(self, ids: list[str]) -> list[Box]:
        found = [b for b in list(self.boxes.values()) if b.id in ids or b.name in ids]
        return [b for b in found if b.state == "running"]


@dataclass(frozen=True)
class Engine:
    """A running daemon.

    Attributes:
        client: Program that is called, named as the engine.
        daemon: The daemon, in this process.
    """

    client: Path
    daemon: Daemon

    @property
    def running(self) -> list[Box]:
        """Containers that are there, running or not."""
        return list(self.daemon.boxes.values())


@contextmanager
def engine(folder: Path, name: str = "docker", **images: list[str]) -> Iterator[Engine]:
    """Runs a daemon in a thread of this process; its children are the containers."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "daemon"  # a socket's path may have about 100 characters
    client = folder / name
    client.write_text(
        f"#!{sys.executable}\n"
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        f"from tests.engine_double import client\nclient({str(path)!r}, sys.argv[1:])\n"
    )
    client.chmod(0o755)
    daemon = Daemon(images)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(50)
        thread = threading.Thread(target=daemon.serve, args=(listener,), daemon=True)
        thread.start()
        try:
            yield Engine(client, daemon)
        finally:
            daemon.end()
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)


# -- the client ------------------------------------------------------------------------------------


def ask(path: str, fds: tuple[int, ...] = (), **request: Any) -> dict[str, Any]:
    """Sends a request to the daemon; its answer."""
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(path)
        socket.send_fds(s, [json.dumps(request).encode()], list(fds))
        data = b""
        while part := s.recv(65536):
            data += part
    answer: dict[str, Any] = json.loads(data or b"{}")
    if "error" in answer:
        sys.stderr.write(f"docker: Error response from daemon: {answer['error']}.\n")
        sys.exit(125)
    return answer


def client(path: str, argv: list[str]) -> None:
    """What ``docker ARGV`` does."""
    if os.environ.get("ENGINE_DOWN"):
        sys.stderr.write("Cannot connect to the Docker daemon. Is the docker daemon running?\n")
        sys.exit(1 if argv[0] != "run" else 125)
    ask(path, do="called", argv=argv)
    verb, words = argv[0], argv[1:]
    match verb:
        case "run":
            run(path, argv)
        case "ps":
            assert words[:4] == ["-a", "-q", "--no-trunc", "--filter"], words
            key, _, value = words[4].removeprefix("label=").partition("=")
            found = ask(path, do="ps", labels={key: value})["ids"]
            sys.stdout.write("".join(f"{id}\n" for id in found))
        case "stop":
            assert words[0] == "-t", words
            ask(path, do="stop", ids=words[2:], grace_s=float(words[1]))
        case "kill":
            ask(path, do="kill", ids=words, number=signal.SIGKILL)
        case "rm":
            assert words[0] == "-f", words
            ask(path, do="rm", ids=words[1:])
        case _:
            sys.exit(f"docker: unknown command: docker {verb}")


def run(path: str, argv: list[str]) -> None:
    """Makes a container, starts it, passes signals on, and ends with its exit code."""
    found = parse(["docker", *argv])
    assert found is not None
    allowed = {"rm", "name", "label", "cidfile", "network", "env", "publish", "gpus", "ipc"}
    assert {o.name for o in found.options} <= allowed, found.options
    env = {k: os.environ.get(k) if v is None else v for k, v in found.env.items()}
    labels = [o.value or "" for o in found.options if o.name == "label"]
    cidfile = Path(found.last("cidfile") or "/nonexistent")
    if cidfile.exists():
        sys.exit(f"docker: container ID file found, make sure {cidfile} is not in use")
    time.sleep(float(os.environ.get("ENGINE_PULL_S", "0")))
    made = ask(
        path,
        do="create",
        image=found.image,
        args=[*found.start, *found.arguments],
        name=found.last("name") or uuid.uuid4().hex,
        labels=dict(x.split("=", 1) for x in labels),
        env={k: v for k, v in env.items() if v is not None} | {"PATH": os.environ["PATH"]},
        rm=found.has("rm"),
        slow_s=float(os.environ.get("ENGINE_CREATE_S", "0")),
    )
    cidfile.write_text(made["id"])

    def passed_on(number: int, _frame: object) -> None:
        ask(path, do="kill", ids=[made["id"]], number=number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, passed_on)
    ask(path, (1, 2), do="start", id=made["id"])
    sys.exit(ask(path, do="wait", id=made["id"])["code"])
