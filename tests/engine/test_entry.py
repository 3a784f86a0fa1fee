"""Which interpreter runs vLLM behind a study's command: only one that is certain is asked."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from autotune.engine.entry import Entry, entry_of
from autotune.engine.probe import probe
from autotune.errors import UserError
from autotune.study.programs import API_SERVER
from autotune.study.schema import ServerSpec


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs that end with status 9, and a `vllm` of this Python, alone on PATH."""
    for name in ("nice", "taskset", "numactl", "env", "uv", "conda", "docker", "sudo", "python"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "vllm").write_text(f"#!{sys.executable}\n")
    for program in tmp_path.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def entry(command: str) -> Entry:
    return entry_of(tuple(shlex.split(command)))


@pytest.mark.parametrize(
    "wrapper",
    [
        "nice -n 5",
        "numactl -N 0 --membind=0",
        "taskset -c 0-3 nice",
        "env -u HTTP_PROXY A=1",
        "nice env B=2 numactl -l",
    ],
)
def test_the_interpreter_behind_a_wrapper(wrapper: str, programs: Path) -> None:
    found = entry(f"{wrapper} vllm serve --seed 1")
    first, *more = shlex.split(wrapper)
    assert found.wrapper == (str(programs / first), *more)
    assert found.head == (*found.wrapper, str(programs / "vllm"), "serve")
    assert (found.rest, found.python, found.console) == (("--seed", "1"), sys.executable, True)
    module = entry(f"{wrapper} {sys.executable} -u -m {API_SERVER}")
    assert module.head == (*found.wrapper, sys.executable, "-u", "-m", API_SERVER)
    assert (module.rest, module.python, module.console) == ((), sys.executable, False)


@pytest.mark.parametrize(
    ("command", "console"),
    [
        ("uv run vllm serve", True),
        ("uv run python -m vllm.entrypoints.cli.main serve", True),
        (f"uv run python -m {API_SERVER}", False),
        (f"conda run -n v python -m {API_SERVER}", False),
        ("env PATH=/opt/v/bin vllm serve", True),
        ("sudo -E vllm serve", True),
        (f"docker run img python3 -m {API_SERVER}", False),
        (f"nice docker run img python3 -m {API_SERVER}", False),
        ("docker run img", False),
    ],
)
def test_a_program_that_is_not_certain_is_not_asked(command: str, console: bool) -> None:
    found = entry(command)
    assert found.python is None
    assert found.console == console
    # none of the programs ran: each would have ended with status 9
    info = probe(ServerSpec(model="m", command=tuple(shlex.split(command))))
    assert (info.version, info.options) == (None, None)
    assert "not a Python that can be asked" in info.notes[0]


@pytest.mark.parametrize(
    ("command", "rest"),
    [
        ("{} -m vllm.entrypoints.cli.main serve --seed 1", ("--seed", "1")),
        ("{} -u /opt/v/bin/vllm serve", ()),
    ],
)
def test_the_console_script_as_a_module_or_a_script(command: str, rest: tuple[str, ...]) -> None:
    found = entry(command.format(sys.executable))
    assert (found.python, found.console, found.rest) == (sys.executable, True, rest)
    assert found.head[-1] == "serve"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("setsid vllm serve", "`setsid`: autotune watches"),
        ("nice setsid vllm serve", "`setsid`"),
        ("systemd-run vllm serve", "with --scope it is one"),
        ("exec vllm serve", "`exec`: of the shell"),
        ("env -i vllm serve", "without autotune's variables"),
        ("torchrun vllm serve", "several processes"),
        ("chrt 1 vllm serve", "there is no program 'chrt'; give its full path, or install it$"),
        ("/no/vllm serve", "there is no program '/no/vllm'; .*pip install"),
    ],
)
def test_wrappers_that_are_refused(command: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        entry(command)


def test_a_scope_of_systemd_is_a_child_and_stays(programs: Path) -> None:
    (programs / "systemd-run").write_text("#!/bin/sh\nexit 9\n")
    (programs / "systemd-run").chmod(0o755)
    found = entry("systemd-run --scope -p A=1 vllm serve")
    assert found.wrapper == (str(programs / "systemd-run"), "--scope", "-p", "A=1")
    assert found.python == sys.executable
