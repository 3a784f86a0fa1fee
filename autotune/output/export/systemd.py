"""A systemd unit for the machine that the study ran on.

``%`` is a specifier everywhere there, ``$`` a variable in ExecStart, ``\\`` an escape
(systemd.unit(5) "Specifiers", systemd.service(5) "Command lines", systemd.syntax(7) "Quoting").
"""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from autotune.engine.command import Production
from autotune.output.export.endpoint import LOCAL
from autotune.output.export.job import HUB_TOKEN, STOP_S, Job

_SOMEBODY = "vllm"  # who measured is not known on another machine
_PLAIN = re.compile(r"[A-Za-z0-9_@:,./=+-]+")


def systemd(job: Job) -> str:
    """Return the text of a unit."""
    plan = job.plan()
    env = _environment(job, plan)
    user = _user(job)
    secrets = [k for k, v in env.items() if v is None]
    file = f"/etc/autotune/{job.name}.env"
    if secrets or job.from_hub:
        job.say(
            f"{', '.join(secrets or [HUB_TOKEN])}: from {file} (mode 0600), a line NAME=VALUE each."
        )
    unit_file = f"{job.name}.service"
    job.say(
        "Start it with:",
        f"sudo install -m 644 {job.named(unit_file)} /etc/systemd/system/{unit_file}",
        "sudo systemctl daemon-reload",
        f"sudo systemctl enable --now {job.name}",
    )
    given = [f"EnvironmentFile={file}"] if secrets else []
    given += [f"EnvironmentFile=-{file}"] if job.from_hub and not secrets else []
    return _unit(job, env, [f"User={user}", *given], _command(job, plan))


def _user(job: Job) -> str:
    """Return the user of the service: whoever exports it, if that is on the measured machine."""
    if job.served.elsewhere is None:
        return getpass.getuser()
    job.say(f"User={_SOMEBODY}: set it to the user there who may read the models.")
    return _SOMEBODY


def _environment(job: Job, plan: Production) -> dict[str, str | None]:
    env = {**plan.env, **plan.hiding}
    if job.info.python is not None and "PATH" not in env:
        # as in an activated environment: vLLM's compilers call `ninja` from there
        bin_folder = Path(job.info.python).parent
        env["PATH"] = os.pathsep.join([str(bin_folder), "/usr/local/bin", "/usr/bin", "/bin"])
    return env


def _command(job: Job, plan: Production) -> list[str]:
    """Return the lines of the command, a flag each."""
    listen = (("--host", job.where.host or LOCAL), ("--port", str(job.where.port)))
    flags = ((*plan.head, *plan.rest), *plan.flags, *listen)
    return [" ".join(_word(w, command=True) for w in flag) for flag in flags]


def _unit(
    job: Job, env: Mapping[str, str | None], given: Sequence[str], command: Sequence[str]
) -> str:
    unit = [
        "[Unit]",
        f"Description=vLLM as tuned by autotune, study {job.study}",
        "Wants=network-online.target",
        "After=network-online.target",
        "",
        "[Service]",
        "Type=exec",
        *given,
        *(f"Environment={_word(f'{k}={v}')}" for k, v in env.items() if v is not None),
        "ExecStart=" + " \\\n  ".join(command),
        "Restart=on-failure",
        "RestartSec=10",
        "KillMode=mixed",  # vLLM ends its own workers; systemd kills what is left
        f"TimeoutStopSec={STOP_S}",
        "LimitNOFILE=65536",
        "NoNewPrivileges=yes",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return "\n".join(unit) + "\n"


def _word(text: str, *, command: bool = False) -> str:
    """Return one word of a unit file; in a command line, a dollar would begin a variable."""
    text = text.replace("%", "%%")
    if command:
        text = text.replace("$", "$$")
    if _PLAIN.fullmatch(text):
        return text
    for bad, escape in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\t", "\\t")):
        text = text.replace(bad, escape)
    return f'"{text}"'
