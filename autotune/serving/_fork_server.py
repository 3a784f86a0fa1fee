"""A process that has imported vLLM, and forks a guard with its server for every launch.

Run by :mod:`autotune.serving.warm_start` in the vLLM's own Python as ``python _template.py OWNER FD
ENTRY CPUS`` in a session of its own; OWNER is its owner's pid, FD a ``SOCK_SEQPACKET`` socket to
it, ENTRY the module or the console script that starts a server, CPUS the numbers of those that a
server may use. One packet answers the imports: ``{"ready": true}``, or ``{"unfit": "why"}``. Then,
for each launch, a packet ``{"bytes": …}`` comes with four files: stdin and stdout of a guard
(:mod:`autotune.serving.guard`), the log, and a pidfd of the owner; the answer is the guard's
``{"pid": …}``. So many bytes come first on the guard's stdin, the server's environment as JSON,
which may be larger than a packet. The end of the socket is the end of the process, and so is its
owner's death; guards and their servers live on, and end as all guards do.

The fork is safe because nothing that a child could miss exists yet: no thread but harmless ones, no
CUDA context, no OpenMP team (:func:`obstacle` looks). In the server, EngineCore and workers are
forked, too: on GPUs where CUDA's driver allows it (:func:`let_engine_fork`). On a CPU vLLM insists
on ``spawn``, because OpenMP reads its settings when its library is loaded, and then binds the
process to a core; those of a worker differ from the other processes'. So this process is started
with what vLLM gave the worker of an earlier launch, and :func:`let_workers_fork` lets vLLM fork
where it would give the same again.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib
import importlib.util
import json
import multiprocessing
import os
import runpy
import shlex
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from multiprocessing import resource_tracker
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

LAUNCH_VARIABLE = "AUTOTUNE_LAUNCH"
METHOD = "VLLM_WORKER_MULTIPROC_METHOD"
# What OpenMP reads when its library is loaded, and vLLM sets for a worker on CPUs
# (vllm/utils/ompmultiprocessing.py).
OPENMP = (
    "LD_PRELOAD",
    "OMP_NUM_THREADS",
    "GOMP_CPU_AFFINITY",
    "OMP_PLACES",
    "OMP_PROC_BIND",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "KMP_TPAUSE",
)
# What a server imports beside its entry, later and in other processes; by vLLM's version some of
# them do not exist.
MORE = (
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.spec_decode.dflash",
    "vllm.model_executor.model_loader.default_loader",
    "vllm.model_executor.models.registry",
    "vllm.model_executor.models.llama",
    "vllm.model_executor.models.qwen3",
    "vllm.model_executor.models.qwen3_dflash",
)
MORE_CPU = ("vllm.v1.worker.cpu_worker", "vllm.v1.worker.cpu_model_runner")
MORE_CUDA = ("vllm.v1.worker.gpu_worker", "vllm.v1.worker.gpu_model_runner")
# Threads of libraries that vLLM itself has when it forks EngineCore: the NVIDIA driver's, which a
# child with a context of its own starts anew, and that of the allocator of pyarrow, which knows of
# forks.
HARMLESS = ("cuda", "jemalloc_bg_thd")
FILES = 4  # that come with a launch
PACKET = 1 << 16


class _InServer(BaseException):
    """Carries the forked server out of its guard's frames, to the bottom of the stack."""

    def __init__(self, argv: list[str]) -> None:
        self.argv = argv


def load_guard() -> ModuleType:
    """The module beside this one, whose package vLLM's Python may not have."""
    path = Path(__file__).with_name("guard.py")
    spec = importlib.util.spec_from_file_location("autotune_guard", path)
    if spec is None or spec.loader is None:
        raise ImportError(str(path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def import_vllm(entry: str) -> None:
    """Imports what a server will need; what this vLLM has not is left out."""
    script = Path(entry).is_absolute()
    importlib.import_module("vllm.entrypoints.cli.serve" if script else entry)
    from vllm.platforms import current_platform

    more = MORE + (MORE_CPU if current_platform.is_cpu() else MORE_CUDA)
    for name in more:
        try:
            importlib.import_module(name)
        except ImportError as e:
            sys.stderr.write(f"not imported ahead: {name}: {e}\n")


def obstacle() -> str | None:
    """Why this process must not be forked, or None."""
    import torch

    tasks = [x for x in Path("/proc/self/task").iterdir() if x.name != str(os.getpid())]
    names = [(x / "comm").read_text().strip() for x in tasks]
    others = [x for x in names if not x.startswith(HARMLESS)]
    if others or threading.active_count() > 1:
        return f"importing vLLM started threads: {', '.join(others) or 'of Python'}"
    if torch.cuda.is_initialized():
        return "importing vLLM made a CUDA context"
    return None


def engine_can_fork() -> bool:
    """Whether a child of this process can use the GPUs: nobody has initialised CUDA's driver here.

    The driver itself says so: any call of it answers CUDA_ERROR_NOT_INITIALIZED (3) then.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return bool(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) == 3)


def start_tracker() -> None:
    """As spawning does; EngineCore's own would be killed with it, and leave shared memory."""
    resource_tracker.ensure_running()


def keep_no_ports() -> None:
    """Has a forked EngineCore let go of the API server's ports."""
    from vllm.v1.engine.core import EngineCoreProc

    holding = EngineCoreProc.run_engine_core

    @functools.wraps(holding)
    def run_engine_core(*args: Any, **kwargs: Any) -> None:
        if os.environ.get(METHOD) == "fork":
            leave_ports()
        holding(*args, **kwargs)

    EngineCoreProc.run_engine_core = staticmethod(run_engine_core)


def let_engine_fork() -> None:
    """Has vLLM's server fork EngineCore on GPUs, as vLLM's library does, where that is safe.

    The server's entry (``cli_env_setup``) prefers ``spawn`` only where nobody has said otherwise.
    """
    from vllm.platforms import current_platform

    if current_platform.is_cpu() or METHOD in os.environ or not engine_can_fork():
        return
    keep_no_ports()
    os.environ[METHOD] = "fork"


def openmp(environ: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that OpenMP reads."""
    return {k: environ[k] for k in OPENMP if k in environ}


def set_title(title: str) -> None:
    """Names this process in the process list, where vLLM has what it names its own with."""
    with contextlib.suppress(ImportError):
        import setproctitle

        setproctitle.setproctitle(title)


def leave_ports() -> None:
    """Lets go of the ports that the API server has bound, none of which a spawned process has.

    Otherwise vLLM finds EngineCore on its own port when it ends, and may stumble over it.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for path in list(Path("/proc/self/fd").iterdir()):
        if not path.is_socket():  # or the listing's own, which is closed by now
            continue
        fd = int(path.name)
        with socket.socket(fileno=os.dup(fd)) as s:
            tcp = s.family in {socket.AF_INET, socket.AF_INET6} and s.type == socket.SOCK_STREAM
            bound = tcp and s.getsockname()[1] != 0
        if bound:
            os.dup2(nothing, fd)  # not close(): some object still thinks that it is its own
    os.close(nothing)


def let_workers_fork(at_exec: Mapping[str, str], bound: set[int]) -> None:
    """Has vLLM fork its processes on CPUs where OpenMP's settings would be the same as here.

    Args:
        at_exec: The environment that this process, and so its OpenMP, was started with.
        bound: The cores that OpenMP bound this process to meanwhile, as it would a worker.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.platforms.cpu import CpuPlatform
    from vllm.utils.ompmultiprocessing import OMPProcessManager

    forced: Callable[..., None] = CpuPlatform.check_and_update_config.__func__

    def check_and_update_config(cls: type, vllm_config: Any) -> None:
        same = os.environ.get(METHOD) == "fork" and multiprocessing.parent_process() is not None
        forced(cls, vllm_config)
        if same:  # the API server has looked
            os.environ[METHOD] = "fork"
            return
        if vllm_config.parallel_config.world_size > 1:
            return  # every rank has settings of its own
        with OMPProcessManager(vllm_config).configure_omp_envs(rank=0, local_rank=0):
            same = openmp(os.environ) == openmp(at_exec)
        if same:
            os.environ[METHOD] = "fork"
            start_tracker()

    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)

    from vllm.v1.executor.multiproc_executor import WorkerProc

    keep_no_ports()
    unbound = WorkerProc.worker_main

    @functools.wraps(unbound)
    def worker_main(*args: Any, **kwargs: Any) -> None:
        if os.environ.get(METHOD) == "fork":
            os.sched_setaffinity(0, bound)
            gc.unfreeze()  # vLLM itself freezes the other processes, but not this one
        unbound(*args, **kwargs)

    WorkerProc.worker_main = staticmethod(worker_main)


def mark(launch_id: str) -> None:
    """Writes the launch into /proc/PID/environ, where its processes are looked for.

    That is the memory which the kernel laid out at exec; Python's own copy does not change it.

    Raises:
        RuntimeError: the mark of the exec is not there, or has another length.
    """
    stat = Path("/proc/self/stat").read_text(errors="replace").rpartition(")")[2].split()
    start, end = int(stat[47]), int(stat[48])  # fields 50 and 51 of `man 5 proc`
    name, value = f"\0{LAUNCH_VARIABLE}=".encode(), launch_id.encode()
    before, found, after = (b"\0" + ctypes.string_at(start, end - start)).partition(name)
    if not found or after.find(b"\0") != len(value):
        raise RuntimeError(f"no room for {LAUNCH_VARIABLE} in this process's environment")
    ctypes.memmove(start + len(before) + len(name) - 1, value, len(value))


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str | None]:
    """What was set in an environment, and with None what was taken out of it."""
    names = before.keys() | after.keys()
    return {k: after.get(k) for k in names if before.get(k) != after.get(k)}


def read_environment(size: int, imported: Mapping[str, str | None]) -> dict[str, str]:
    """The environment that a server has once it has imported vLLM.

    Args:
        size: Bytes of JSON on stdin, no more of which are read.
        imported: What the imports change in an environment.
    """
    data = b""
    while len(data) < size:
        if not (more := os.read(0, size - len(data))):
            os._exit(0)  # the owner died, or thought better of it
        data += more
    env = {**json.loads(data), **imported}
    return {k: v for k, v in env.items() if v is not None}


def become_guard(
    guard: Any, size: int, files: list[int], imported: Mapping[str, str | None]
) -> NoReturn:
    """Turns a forked process into the guard of a launch; its server leaves by an exception.

    Raises:
        _InServer: in the server.
    """
    os.setsid()
    stdin, stdout, log, owner = files
    for fd, to in ((stdin, 0), (stdout, 1), (log, 2)):
        os.dup2(fd, to)
        os.close(fd)
    env = read_environment(size, imported)
    mark(env[LAUNCH_VARIABLE])
    os.environ.clear()
    os.environ.update(env)
    set_title(f"{sys.executable} {guard.__file__}")

    def spawn(argv: list[str], in_child: Callable[[], None]) -> int:
        ready, begun = os.pipe()
        pid = os.fork()
        if pid:
            os.close(begun)
            os.read(ready, 1)  # its end: what must be done first is done
            os.close(ready)
            return pid
        os.close(ready)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setsid()
        in_child()
        os.close(begun)
        set_title(shlex.join(argv))
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        raise _InServer(argv)

    guard.watch(owner=owner, spawn=spawn)
    os._exit(0)


def serve(sock: socket.socket, guard: Any, imported: Mapping[str, str | None]) -> None:
    """Forks a guard for every packet; returns at the end of the socket.

    Raises:
        _InServer: in the forked server of a launch.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # guards that end leave no zombies
    sys.stdout.flush()  # or every child would say it again
    sys.stderr.flush()
    gc.collect()
    gc.freeze()  # or the children's first collection would copy every page
    while True:
        packet, files, _, _ = socket.recv_fds(sock, PACKET, FILES)
        if not packet:
            return
        pid = os.fork()
        if pid == 0:
            sock.close()
            become_guard(guard, json.loads(packet)["bytes"], files, imported)
        for fd in files:
            os.close(fd)
        sock.send(json.dumps({"pid": pid}).encode())


def run(argv: list[str]) -> None:
    """What ``python -m MODULE …``, or a console script, does."""
    if os.environ.get(METHOD) == "fork":
        start_tracker()
    if argv[1] == "-m":
        sys.argv = argv[2:]
        sys.modules.pop(argv[2], None)  # or runpy would warn of it
        runpy.run_module(argv[2], run_name="__main__", alter_sys=True)
    else:
        sys.argv = argv
        runpy.run_path(argv[0], run_name="__main__")


def main() -> list[str] | None:
    """Imports, then serves; in a forked server, what it is to run."""
    libc = ctypes.CDLL(None, use_errno=True)
    owner, fd, entry = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    guard = load_guard()
    libc.prctl(guard.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != owner:
        return None  # it died before the line above
    set_title(shlex.join([sys.executable, *sys.argv]))  # finds its room only before `environ` moves
    at_exec = dict(os.environ)
    if not getattr(sys.flags, "safe_path", False):  # 3.11; with it, ours is not there either
        # not our own folder, whose modules vLLM's would be taken for
        script = Path(entry).is_absolute()
        sys.path[0] = str(Path(entry).resolve().parent if script else Path.cwd())
    sock = socket.socket(fileno=fd)
    try:
        import_vllm(entry)
        let_workers_fork(at_exec, os.sched_getaffinity(0))
        let_engine_fork()
        os.sched_setaffinity(0, {int(cpu) for cpu in sys.argv[4].split(",")})
        why = obstacle()
    except Exception as e:  # noqa: BLE001 – whatever a package does when imported
        why = repr(e)
    sock.send(json.dumps({"ready": True} if why is None else {"unfit": why}).encode())
    if why is not None:
        sys.stderr.write(f"no warm starts: {why}\n")
        return None
    # From 3.12 on Python warns of every fork beside another thread, in our log and the server's.
    # `obstacle` lets none but HARMLESS ones be, beside which vLLM forks EngineCore, too.
    warnings.filterwarnings(
        "ignore", message=r".*multi-threaded, use of fork", category=DeprecationWarning
    )
    try:
        serve(sock, guard, changes(at_exec, os.environ))
    except _InServer as server:
        return server.argv
    return None


if __name__ == "__main__":
    if (_argv := main()) is not None:
        run(_argv)
