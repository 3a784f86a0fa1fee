"""A real podman, where it runs: an image of the host's own Python, made without a registry.

The image has empty folders and links; what is needed of the host is mounted read-only. Storage,
events and control groups are chosen so that podman runs without systemd and without an overlay
file system, in folders of the test's own.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from tests.paths import TESTS

IMAGE = "localhost/autotune-double:1"
_LINKS = {"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64", "sbin": "usr/sbin"}
_FOLDERS = ("usr", "tmp", "proc", "sys", "dev", "etc", "run", "root")

# An OCI runtime that leaves the limits as they are: podman asks for limits that a sandbox without
# CAP_SYS_RESOURCE may refuse even where they are the present ones.
_RUNTIME = """\
#!{python}
import json, os, sys
for option, value in zip(sys.argv, sys.argv[1:]):
    if option in ("--bundle", "-b"):
        path = value + "/config.json"
        with open(path) as f:
            config = json.load(f)
        config["process"].pop("rlimits", None)
        config["process"].pop("oomScoreAdj", None)
        with open(path, "w") as f:
            json.dump(config, f)
os.execv({runtime!r}, [{runtime!r}, *sys.argv[1:]])
"""


@dataclass(frozen=True)
class Podman:
    """A podman that runs containers here.

    Attributes:
        words: How it is called.
        mounts: Options of ``run`` that bring the host's Python and the tests.
    """

    words: tuple[str, ...]
    mounts: tuple[str, ...]

    def call(self, *words: str) -> str:
        """What a call says on stdout."""
        argv = [*self.words, *words]
        done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120)
        return done.stdout

    def ids(self) -> list[str]:
        """Containers that are there, running or not."""
        return self.call("ps", "-a", "-q", "--no-trunc").split()


def podman_here(folder: Path) -> Podman | str:
    """Return a podman that runs, with the image; a text says why there is none."""
    program = shutil.which("podman")
    if program is None:
        return "podman is not installed"
    common = (
        program,
        *("--root", str(folder / "storage"), "--runroot", str(folder / "run")),
        *("--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "file"),
    )
    mounts: list[str] = []
    for path in sorted({"/usr", sys.base_prefix, sys.prefix, str(TESTS)}):
        if path == "/usr" or not path.startswith("/usr/"):
            mounts += ["-v", f"{path}:{path}:ro"]
    why = ""
    for words in _choices(common, folder):
        podman = Podman(words, tuple(mounts))
        try:
            subprocess.run(
                [*words, "import", "-", IMAGE], input=_root(), capture_output=True, check=True
            )
            podman.call("run", "--rm", "--network", "host", *mounts, IMAGE, sys.executable, "-V")
        except (OSError, subprocess.SubprocessError) as e:
            why = str(getattr(e, "stderr", "") or e).strip()
            continue
        return podman
    return f"podman cannot run a container here: {why}"


def _choices(common: tuple[str, ...], folder: Path) -> list[tuple[str, ...]]:
    """Return ways to call podman, the plainest first."""
    found = [common]
    if runtime := shutil.which("runc"):
        script = folder / "runc"
        script.write_text(_RUNTIME.format(python=sys.executable, runtime=runtime))
        script.chmod(0o755)
        found.append((*common, "--runtime", str(script)))
    return found


def _root() -> bytes:
    """Return the image's root file system as a tar archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in _FOLDERS:
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
        for name, target in _LINKS.items():
            if Path("/", name).is_symlink() or not Path("/", name).exists():
                link = tarfile.TarInfo(name)
                link.type, link.linkname = tarfile.SYMTYPE, target
                tar.addfile(link)
    return out.getvalue()
