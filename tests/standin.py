"""A package `vllm` whose server is the double: for warm starts without imports that take seconds.

It is found before the real one by PYTHONPATH, and so is a `torch` that is next to nothing.
"""

from __future__ import annotations

from pathlib import Path

MODULE = "vllm.entrypoints.openai.api_server"
DUMPS = "STANDIN_DUMPS"  # a folder: every server writes what it inherited into it, see below
VERSION = "0.32.0"
_IMPORTED = """\
import os, sys

__version__ = "{version}"
os.environ["STANDIN_IMPORTED"] = "1"  # as a real one sets some
in_fork_server = sys.argv[0].endswith("_fork_server.py")
print("imported")
{code}
"""
_TORCH = """\
class cuda:
    @staticmethod
    def is_initialized():
        return False
"""
_PLATFORMS = """\
class current_platform:
    device_type = "{device}"

    @staticmethod
    def is_cpu():
        return {cpu}
"""
_ARGUMENTS = """\
def make_arg_parser(parser):
    for name in ("model", "served-model-name", "host", "port", "speculative-config"):
        parser.add_argument("--" + name)
    for name in ("max-num-batched-tokens", "max-num-seqs", "kv-cache-memory-bytes"):
        parser.add_argument("--" + name, type=int)
    parser.add_argument("--gpu-memory-utilization", type=float)
    return parser
"""
_SERVER = """\
import json, os, runpy, sys
from pathlib import Path


def inherited():
    umask = os.umask(0)
    os.umask(umask)
    main = sys.modules["__main__"]
    status = dict(x.split(":", 1) for x in Path("/proc/self/status").read_text().splitlines())
    files = {{}}
    for fd in sorted(os.listdir("/proc/self/fd"), key=int):
        try:
            files[fd] = os.readlink(f"/proc/self/fd/{{fd}}")
        except FileNotFoundError:  # the listing's own
            pass
    return {{
        "environ": dict(os.environ),
        "argv": sys.argv,
        "path": sys.path,
        "flags": list(sys.flags),
        "main": [main.__name__, main.__file__, main.__spec__.name],
        "umask": umask,
        "cwd": os.getcwd(),
        "limits": Path("/proc/self/limits").read_text(),
        "signals": {{k: status[k].strip() for k in ("SigBlk", "SigIgn", "SigCgt")}},
        "threads": status["Threads"].strip(),
        "affinity": sorted(os.sched_getaffinity(0)),
        "nice": os.nice(0),
        "oom": Path("/proc/self/oom_score_adj").read_text(),
        "session": os.getsid(0) == os.getpid(),
        "group": os.getpgid(0) == os.getpid(),
        "files": files,
    }}


if __name__ == "__main__":
    forked = "vllm.platforms" in sys.modules
    {code}
    if folder := os.environ.get("{dumps}"):
        Path(folder, os.environ["AUTOTUNE_LAUNCH"]).write_text(json.dumps(inherited()))
    runpy.run_path("{double}", run_name="__main__")
"""


def write_vllm(
    folder: Path,
    *,
    version: str = VERSION,
    on_import: str = "pass",
    on_start: str = "pass",
    device: str = "cuda",
) -> Path:
    """Writes the packages; the folder for PYTHONPATH.

    Args:
        folder: Where they are written to.
        version: What it says that it is.
        on_import: A line that runs when vLLM is imported; ``in_fork_server`` says by whom.
        on_start: A line that runs when a server starts; ``forked`` says how.
        device: What it is for: ``cuda`` or ``cpu``.
    """
    double = Path(__file__).with_name("double.py")
    files = {
        "torch/__init__.py": _TORCH,
        "vllm/__init__.py": _IMPORTED.format(version=version, code=on_import),
        "vllm/platforms/__init__.py": _PLATFORMS.format(device=device, cpu=device == "cpu"),
        "vllm/utils/__init__.py": "",
        "vllm/utils/argparse_utils.py": "from argparse import ArgumentParser as "
        "FlexibleArgumentParser\n",
        "vllm/entrypoints/__init__.py": "",
        "vllm/entrypoints/launchers/__init__.py": "",
        "vllm/entrypoints/launchers/cli_args.py": _ARGUMENTS,
        "vllm/entrypoints/openai/__init__.py": "",
        "vllm/entrypoints/openai/api_server.py": _SERVER.format(
            code=on_start, dumps=DUMPS, double=double
        ),
        f"vllm-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: vllm\n"
        f"Version: {version}\n",
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder
