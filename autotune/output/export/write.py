"""The winner of a study as a shell command, or as a file in the language of what will serve it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from packaging.version import Version

from autotune.engine.feasibility import known_for
from autotune.engine.rule import Known
from autotune.engine.rules import why_doubtful, why_infeasible
from autotune.errors import UserError
from autotune.output.export.choice import Chosen
from autotune.output.export.compose import compose
from autotune.output.export.endpoint import Endpoint
from autotune.output.export.header import about, comment
from autotune.output.export.job import Format, Job
from autotune.output.export.kubernetes import kubernetes
from autotune.output.export.served import Served, served, shell_of
from autotune.output.export.systemd import systemd
from autotune.output.export.vllm_config import vllm_config
from autotune.results.text import plain, point_text
from autotune.results.views import StudyView, TrialView
from autotune.storage.store import Store

_HOST = re.compile(r"[A-Za-z0-9.:_-]+")


def shell_command(store: Store, name: str, trial: TrialView, where: Endpoint | None = None) -> str:
    """Return the shell command that serves a trial's point in production, and nothing else.

    No program of the study is run for it, not even its vLLM, because the database may be somebody
    else's.
    """
    return shell_of(served(store, name, trial), where or Endpoint())


def export(
    store: Store,
    view: StudyView,
    choice: Chosen,
    form: Format,
    *,
    where: Endpoint | None = None,
    version: str | None = None,
    file: str | None = None,
    today: date | None = None,
) -> str:
    """Return the text of a file that serves a point.

    Args:
        store: The database of the study.
        view: The study.
        choice: Point to serve.
        form: Format of the file.
        where: Address of the server.
        version: Version of the vLLM in production; by default the measured one.
        file: Name of the file, for the comment.
        today: Date for the comment; the present day by default.

    Raises:
        UserError: the point cannot launch on that vLLM, or the format cannot express it.
    """
    where = where or Endpoint()
    _check_endpoint(form, where)
    found = served(store, view.name, choice.trial)
    loaded, info = found.loaded, found.info
    measured = _version(view.vllm_version or info.version)  # the database may be somebody else's
    version = measured if version is None else _asked(version)
    machine = _machine(store, view.name)
    device = info.device or _device_of(machine)
    doubt = _doubt(found, device, version)
    job = Job(
        study=view.name,
        served=found,
        where=where,
        version=version,
        device=device,
        cores=machine["cores"] if machine else None,
        file=file,
    )
    body = _body(job, form)
    if doubt:
        job.say(f"Careful: {plain(doubt)}.")
    top = about(view, loaded.spec, choice, (measured, version), today or date.today())
    head = "#!/bin/sh\n" if form is Format.SHELL else ""
    return head + comment([*top, "", *job.notes]) + body


def _body(job: Job, form: Format) -> str:
    if form is not Format.SHELL:
        return _WRITERS[form](job)
    job.plan()  # for its notes
    return "\n" + shell_of(job.served, job.where) + "\n"


def _doubt(found: Served, device: str | None, version: str | None) -> str | None:
    """Return why a point may crash on a version; None: nothing is known against it.

    Raises:
        UserError: it cannot launch.
    """
    point = found.trial.point
    settings = found.loaded.spec.settings(point)
    info = replace(found.info, device=device)
    # what this machine and its folders tell is of no use for another one
    known = known_for(found.loaded, info) if found.elsewhere is None else Known(platform=device)
    # what throttles the study's load is to be known, and does not keep a point from being served
    known = replace(known, load=found.loaded.spec.workload.places, allow_throttled=True)
    if why := why_infeasible(settings, version, known):
        raise UserError(
            f"trial {found.trial.number} ({point_text(point)}) cannot be served: {why}; name "
            "another point with --trial"
        )
    return why_doubtful(settings, version, known)


def _machine(store: Store, name: str) -> Mapping[str, Any] | None:
    launches = store.launches.of_study(name)
    return launches[-1].machine if launches else None


def _device_of(machine: Mapping[str, Any] | None) -> str | None:
    """Return what a machine's servers ran on, as far as it tells."""
    if machine is None:
        return None
    return "cuda" if machine.get("gpus") else "cpu"


def _version(text: str | None) -> str | None:
    """Return a version without the spaces and line breaks around it; None: it is not a version.

    Python refuses a number of thousands of digits.
    """
    try:
        return None if text is None else str(Version(text))
    except ValueError:
        return None


def _asked(version: str) -> str:
    if found := _version(version):
        return found
    raise UserError(f"--vllm: {version[:40]} is no version; such as 0.32.0")


def _check_endpoint(form: Format, where: Endpoint) -> None:
    """Refuse an address that is not one, or that the format does not take."""
    host = where.host
    if host is None:
        return
    if form is Format.KUBERNETES:
        raise UserError("--host: a pod listens on its own address; leave it out for kubernetes")
    if form is Format.COMPOSE:
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise UserError(
                f"--host: {plain(host)[:60]} is no address; compose publishes a port on one, such "
                "as 0.0.0.0"
            ) from None
    elif not _HOST.fullmatch(host):
        raise UserError(f"--host: {plain(host)[:60]} is no name of a host")


_WRITERS: Mapping[Format, Callable[[Job], str]] = {
    Format.VLLM_CONFIG: vllm_config,
    Format.COMPOSE: compose,
    Format.KUBERNETES: kubernetes,
    Format.SYSTEMD: systemd,
}


def write(text: str, form: Format, path: Path) -> None:
    """Write a new file; a shell script is made executable.

    Raises:
        UserError: the file exists, cannot be written, or has a name that its tool would not take.
    """
    if form is Format.VLLM_CONFIG and path.suffix not in {".yaml", ".yml"}:
        raise UserError(f"{path}: vLLM takes a config only from a file named .yaml or .yml")
    try:
        with path.open("x", encoding="utf-8") as f:
            f.write(text)
        if form is Format.SHELL:
            path.chmod(path.stat().st_mode | 0o111)
    except FileExistsError:
        raise UserError(f"{path}: exists already; give another --out") from None
    except OSError as e:
        raise UserError(f"{path}: cannot be written: {e.strerror}") from e
