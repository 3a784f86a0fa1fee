"""The fork server: imports vLLM once, and forks a supervisor with its server for every launch.

:mod:`autotune.serving.warm_start` runs this file in vLLM's Python, in a session of its own, as
``python _fork_server.py OWNER FD ENTRY CPUS``:

- OWNER is the pid of its owner.
- FD is a ``SOCK_SEQPACKET`` socket to the owner.
- ENTRY is the module or the console script that starts a server.
- CPUS are the numbers of the cores that a server may use.

One packet answers the imports: ``{"ready": true}``, or ``{"unfit": "why"}``. Then a packet
``{"bytes": …}`` comes for each launch, with four files: stdin and stdout of a supervisor
(:mod:`autotune.serving.supervisor`), the log, and a pidfd of the owner. The answer is the
supervisor's ``{"pid": …}``. The supervisor's stdin begins with that number of bytes: the server's
environment as JSON, which may be larger than a packet. The fork server ends with the socket, and
with its owner. Supervisors and their servers live on, and end as all supervisors do.

The fork is safe because nothing that a child could miss exists yet: no thread except harmless ones,
no CUDA context, no OpenMP team (:func:`obstacle` checks). In the server, EngineCore and workers are
forked too: on GPUs where CUDA's driver allows it (:func:`let_engine_fork`). On a CPU vLLM insists
on ``spawn``, because OpenMP reads its settings when its library is loaded, and then binds the
process to a core. The settings of a worker differ from those of the other processes. So the fork
server starts with what vLLM gave the worker of an earlier launch, and :func:`let_workers_fork` lets
vLLM fork where it would give the same again.
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
# Variables that OpenMP reads when its library is loaded, and that vLLM sets for a worker on CPUs
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
# Modules that a server imports in addition to its entry, later and in other processes. Some do not
# exist in every version of vLLM.
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
# Threads of libraries that vLLM too has when it forks EngineCore: those of the NVIDIA driver, which
# a child with its own context starts again, and that of pyarrow's allocator, which handles forks.
HARMLESS = ("cuda", "jemalloc_bg_thd")
FILES = 4  # number of files that come with a launch
PACKET = 1 << 16


class _InServer(BaseException):
    """Takes the forked server out of its supervisor's frames, to the bottom of the stack."""

    def __init__(self, argv: list[str]) -> None:
        self.argv = argv


def load_supervisor() -> ModuleType:
    """Load the supervisor, whose package vLLM's Python may not have."""
    path = Path(__file__).with_name("supervisor.py")
    spec = importlib.util.spec_from_file_location("autotune_supervisor", path)
    if spec is None or spec.loader is None:
        raise ImportError(str(path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def import_vllm(entry: str) -> None:
    """Import the modules that a server needs; those that this vLLM does not have are left out."""
    script = Path(entry).is_absolute()
    importlib.import_module("vllm.entrypoints.cli.serve" if script else entry)
    from vllm.platforms import current_platform

    more = MORE + (MORE_CPU if current_platform.is_cpu() else MORE_CUDA)
    for name in more:
        try:
            importlib.import_module(name)
        except ImportError as e:
            sys.stderr.write(f"not imported: {name}: {e}\n")


def obstacle() -> str | None:
    """Return why this process must not be forked, or None."""
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
    """Return whether a child of this process can use the GPUs.

    It can if CUDA's driver is not initialized here: any call then answers
    CUDA_ERROR_NOT_INITIALIZED (3).
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return bool(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) == 3)


def start_tracker() -> None:
    """Start the resource tracker, as spawning does.

    EngineCore's own tracker would be killed with it, and leave shared memory behind.
    """
    resource_tracker.ensure_running()


def keep_no_ports() -> None:
    """Make a forked EngineCore release the API server's ports."""
    from vllm.v1.engine.core import EngineCoreProc

    holding = EngineCoreProc.run_engine_core

    @functools.wraps(holding)
    def run_engine_core(*args: Any, **kwargs: Any) -> None:
        if os.environ.get(METHOD) == "fork":
            leave_ports()
        holding(*args, **kwargs)

    EngineCoreProc.run_engine_core = staticmethod(run_engine_core)


def let_engine_fork() -> None:
    """Let vLLM's server fork EngineCore on GPUs, as vLLM's library does, where that is safe.

    The server's entry (``cli_env_setup``) prefers ``spawn`` only where the variable is not set.
    """
    from vllm.platforms import current_platform

    if current_platform.is_cpu() or METHOD in os.environ or not engine_can_fork():
        return
    keep_no_ports()
    os.environ[METHOD] = "fork"


def openmp(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of an environment that OpenMP reads."""
    return {k: environ[k] for k in OPENMP if k in environ}


def set_title(title: str) -> None:
    """Name this process in the process list, where vLLM's Python has setproctitle."""
    with contextlib.suppress(ImportError):
        import setproctitle

        setproctitle.setproctitle(title)


def leave_ports() -> None:
    """Release the ports that the API server has bound; a spawned process has none of them.

    Otherwise vLLM finds EngineCore on its own port when it ends, which can make it fail.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for path in list(Path("/proc/self/fd").iterdir()):
        if not path.is_socket():  # or it is the listing's own file, which is closed by now
            continue
        fd = int(path.name)
        with socket.socket(fileno=os.dup(fd)) as s:
            tcp = s.family in {socket.AF_INET, socket.AF_INET6} and s.type == socket.SOCK_STREAM
            bound = tcp and s.getsockname()[1] != 0
        if bound:
            os.dup2(nothing, fd)  # not close(): an object still owns the number
    os.close(nothing)


def let_workers_fork(at_exec: Mapping[str, str], bound: set[int]) -> None:
    """Let vLLM fork its processes on CPUs where OpenMP's settings would be the same as here.

    Args:
        at_exec: Environment that this process, and so its OpenMP, was started with.
        bound: Cores that OpenMP has bound this process to, as it would bind a worker.
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
        if same:  # the API server has compared
            os.environ[METHOD] = "fork"
            return
        if vllm_config.parallel_config.world_size > 1:
            return  # every rank has its own settings
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
            gc.unfreeze()  # vLLM freezes the other processes, but not this one
        unbound(*args, **kwargs)

    WorkerProc.worker_main = staticmethod(worker_main)


def mark(launch_id: str) -> None:
    """Write the launch id into /proc/PID/environ, where its processes are looked for.

    It is the memory that the kernel laid out at exec. A change of Python's copy does not reach it.

    Raises:
        RuntimeError: the id of the exec is not there, or has another length.
    """
    stat = Path("/proc/self/stat").read_text(errors="replace").rpartition(")")[2].split()
    start, end = int(stat[47]), int(stat[48])  # fields 50 and 51 of `man 5 proc`
    name, value = f"\0{LAUNCH_VARIABLE}=".encode(), launch_id.encode()
    before, found, after = (b"\0" + ctypes.string_at(start, end - start)).partition(name)
    if not found or after.find(b"\0") != len(value):
        raise RuntimeError(f"no room for {LAUNCH_VARIABLE} in this process's environment")
    ctypes.memmove(start + len(before) + len(name) - 1, value, len(value))


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str | None]:
    """Return the variables that were set, and with None those that were removed."""
    names = before.keys() | after.keys()
    return {k: after.get(k) for k in names if before.get(k) != after.get(k)}


def read_environment(size: int, imported: Mapping[str, str | None]) -> dict[str, str]:
    """Return the environment that a server has once it has imported vLLM.

    Args:
        size: Bytes of JSON on stdin; no more are read.
        imported: Changes of the imports, as :func:`changes` returns them.
    """
    data = b""
    while len(data) < size:
        if not (more := os.read(0, size - len(data))):
            os._exit(0)  # the owner died, or gave the launch up
        data += more
    env = {**json.loads(data), **imported}
    return {k: v for k, v in env.items() if v is not None}


def become_supervisor(
    supervisor: Any, size: int, files: list[int], imported: Mapping[str, str | None]
) -> NoReturn:
    """Turn a forked process into the supervisor of a launch; its server leaves by an exception.

    Args:
        supervisor: The module of the supervisor.
        size: Bytes of the environment on stdin.
        files: Files of the launch, as the module docstring lists them.
        imported: Changes of the imports, as :func:`changes` returns them.

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
    set_title(f"{sys.executable} {supervisor.__file__}")

    def spawn(argv: list[str], in_child: Callable[[], None]) -> int:
        ready, begun = os.pipe()
        pid = os.fork()
        if pid:
            os.close(begun)
            os.read(ready, 1)  # its end: ``in_child`` is done
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

    supervisor.watch(owner=owner, spawn=spawn)
    os._exit(0)


def serve(sock: socket.socket, supervisor: Any, imported: Mapping[str, str | None]) -> None:
    """Fork a supervisor for every packet; return at the end of the socket.

    Raises:
        _InServer: in the forked server of a launch.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors that end leave no zombies
    sys.stdout.flush()  # or every child would write it again
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
            become_supervisor(supervisor, json.loads(packet)["bytes"], files, imported)
        for fd in files:
            os.close(fd)
        sock.send(json.dumps({"pid": pid}).encode())


def run(argv: list[str]) -> None:
    """Run ``python -m MODULE …``, or a console script."""
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
    """Import vLLM, then serve; in a forked server, return what it is to run."""
    libc = ctypes.CDLL(None, use_errno=True)
    owner, fd, entry = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    supervisor = load_supervisor()
    libc.prctl(supervisor.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != owner:
        return None  # the owner died before the line above
    set_title(
        shlex.join([sys.executable, *sys.argv])
    )  # finds its space only before `environ` moves
    at_exec = dict(os.environ)
    if not getattr(
        sys.flags, "safe_path", False
    ):  # since 3.11; with it, this file's folder is not there
        # not this file's folder, whose modules would shadow others
        script = Path(entry).is_absolute()
        sys.path[0] = str(Path(entry).resolve().parent if script else Path.cwd())
    sock = socket.socket(fileno=fd)
    try:
        import_vllm(entry)
        let_workers_fork(at_exec, os.sched_getaffinity(0))
        let_engine_fork()
        os.sched_setaffinity(0, {int(cpu) for cpu in sys.argv[4].split(",")})
        why = obstacle()
    except Exception as e:  # noqa: BLE001 – a package may raise anything on import
        why = repr(e)
    sock.send(json.dumps({"ready": True} if why is None else {"unfit": why}).encode())
    if why is not None:
        sys.stderr.write(f"no warm starts: {why}\n")
        return None
    # From 3.12 on Python warns of every fork next to another thread, in this log and the server's.
    # `obstacle` accepts only the HARMLESS ones, next to which vLLM forks EngineCore too.
    warnings.filterwarnings(
        "ignore", message=r".*multi-threaded, use of fork", category=DeprecationWarning
    )
    try:
        serve(sock, supervisor, changes(at_exec, os.environ))
    except _InServer as server:
        return server.argv
    return None


if __name__ == "__main__":
    if (_argv := main()) is not None:
        run(_argv)
