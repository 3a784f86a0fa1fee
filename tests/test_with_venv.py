"""`with-venv`: what it installs for which command, and with what. Nothing is installed here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.paths import ROOT

# Stands for each Python: `-m venv FOLDER` makes one that has this as its Python, too.
PYTHON = """#!/bin/sh
if [ "$1 $2" = "-m venv" ]; then
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
elif [ "$1 $2" = "-m pip" ]; then
    case "$*" in
        *" install uv") echo "pip install uv" >> "$SAID"; cp "$UV" "$(dirname "$0")/uv" ;;
        *) echo "pip ${*##*/clone}" >> "$SAID"; exit "${PIP_CODE:-0}" ;;
    esac
fi
"""
UV = """#!/bin/sh
echo "uv ${*##*/clone}" >> "$SAID"
exit "${UV_CODE:-0}"
"""
KIND = "gpu" if Path("/proc/driver/nvidia/version").exists() else "cpu"
ALONE, TESTED = f"[{KIND}]", f"[{KIND},test]"


class Clone:
    """A clone whose Python and uv only say what they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "clone"
        self.said, bins = folder / "said", folder / "bin"
        self.uv = folder / "uv"
        for path in (self.folder, bins):
            path.mkdir()
        shutil.copy(ROOT / "with-venv", self.folder)
        (self.folder / "pyproject.toml").touch()
        for path, text in ((folder / "python", PYTHON), (self.uv, UV)):
            path.write_text(text)
            path.chmod(0o755)
        for name in ("autotune", "pytest"):
            (bins / name).write_text("#!/bin/sh\n")
            (bins / name).chmod(0o755)
        for name in ("cp", "dirname", "mkdir", "touch"):  # where they are there may be a real uv
            (bins / name).symlink_to(shutil.which(name) or name)
        self.bins = bins
        self.env = {
            "PATH": str(bins),
            "PYTHON": str(folder / "python"),
            "SAID": str(self.said),
            "UV": str(self.uv),
        }

    def run(self, *command: str, **env: str) -> list[str]:
        """Run a command; return what was installed for it, in order."""
        self.said.write_text("")
        done = subprocess.run(
            ["/bin/sh", str(self.folder / "with-venv"), *command],
            env=self.env | env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return self.said.read_text().splitlines()


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def test_autotune_needs_less_than_the_tests(clone: Clone) -> None:
    assert clone.run("autotune", "best") == [f"pip {ALONE}"]
    assert clone.run("autotune", "best") == []
    assert clone.run("pytest") == [f"pip {TESTED}"]
    assert clone.run("autotune", "best") == []
    later = clone.folder / ".venv" / f"installed-{KIND},test"
    os.utime(clone.folder / "pyproject.toml", (2e9, 2e9))  # it names other packages now
    assert later.exists()
    assert clone.run("autotune", "best") == [f"pip {ALONE}"]


def test_uv_is_used_where_it_is(clone: Clone) -> None:
    shutil.copy(clone.uv, clone.bins / "uv")
    assert clone.run("pytest") == [f"uv {TESTED}"]


def test_pip_follows_where_uv_finds_not_everything(clone: Clone) -> None:
    shutil.copy(clone.uv, clone.bins / "uv")
    assert clone.run("pytest", UV_CODE="1") == [f"uv {TESTED}", f"pip {TESTED}"]


def test_uv_follows_where_pip_finds_not_everything(clone: Clone) -> None:
    said = clone.run("autotune", PIP_CODE="1")
    assert said == [f"pip {ALONE}", "pip install uv", f"uv {ALONE}"]
