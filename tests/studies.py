"""Studies over the server double, for tests that need a whole run in seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
import yaml

DOUBLE = str(Path(__file__).parent / "double.py")


def write_study(folder: Path, *, name: str = "double", **changes: object) -> Path:
    """A study file over the double; ``changes`` are dotted keys with ``__`` between."""
    raw: dict[str, object] = {
        "name": name,
        "server": {
            "command": [sys.executable, DOUBLE],
            "model": "org/double",
            "flags": {"max-num-seqs": 2},
            "speculative": {"model": "org/draft"},
            "env": {},
            "health_timeout_s": 20,
            "stop_timeout_s": 2,
        },
        "space": {
            "num_speculative_tokens": {"type": "int", "low": 0, "high": 15},
            "max_num_batched_tokens": {"type": "pow2", "low": 32, "high": 2048},
        },
        "workload": {
            "random": {"input_len": 16},
            "output_len": 12,
            "num_prompts": 6,
            "warmup_prompts": 2,
            "max_concurrency": 2,
        },
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        at = raw
        for part in path:
            at = at.setdefault(part, {})  # type: ignore[assignment]
        at[last] = value
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(raw, sort_keys=False))
    return file


# No PNGs: each start of a browser takes seconds, and tests/test_plots.py draws them.
NO_BROWSER = {"BROWSER_PATH": "/nonexistent"}


def autotune(
    *args: str, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs the command line to its end."""
    return subprocess.run(
        [sys.executable, "-m", "autotune.cli", *args],
        cwd=cwd,
        env={**os.environ, **NO_BROWSER, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def front(cwd: Path, *args: str) -> list[dict[str, object]]:
    """`autotune best --json`."""
    done = autotune("best", "--json", *args, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def processes_with(text: str) -> list[psutil.Process]:
    """Living processes whose command line holds ``text``."""
    found = []
    for p in psutil.process_iter():
        try:
            if p.status() != psutil.STATUS_ZOMBIE and any(text in a for a in p.cmdline()):
                found.append(p)
        except psutil.NoSuchProcess:
            continue
    return found
