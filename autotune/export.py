"""The winner of a study as a file for production, in the language of what will serve it.

Production is not the tuning server: it has no random API key, listens where it is told to, and gets
its secrets from where production keeps them. A variable that looks like a secret is referred to by
its name and never written; what a database holds of one is ``***`` anyway.

Every format starts from :func:`autotune.engine.command.production`, so none can say other flags than the
shell command. What a value must survive on its way:

- YAML: words are quoted always, or a parser of YAML 1.1 or 1.2 takes ``1e3``, ``on`` or ``0o7`` for
  something else (Kubernetes refuses arguments that are no text).
- Compose: ``$`` is interpolation, ``$$`` a dollar (Compose Specification, "Interpolation").
- Kubernetes: ``$(NAME)`` in command, args and env is a reference, ``$$`` a dollar
  (kubernetes/third_party/forked/golang/expansion/expand.go: tryReadVariableName).
- systemd: ``%`` is a specifier everywhere, ``$`` a variable in ExecStart, ``\\`` an escape
  (systemd.unit(5) "Specifiers", systemd.service(5) "Command lines", systemd.syntax(7) "Quoting").
"""

from __future__ import annotations

import getpass
import ipaddress
import json
import math
import os
import re
import shlex
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml
from packaging.version import Version

from autotune._version import __version__
from autotune.engine.command import Production, production, serve_command
from autotune.engine.probe import VllmInfo, unasked
from autotune.engine.rules import why_doubtful, why_infeasible
from autotune.errors import UserError
from autotune.explain import known_for
from autotune.serving.resolve import model_resolver
from autotune.storage.store import Store
from autotune.study.schema import LoadedStudy, StudySpec
from autotune.study.space import N, as_int
from autotune.views import (
    StudyView,
    TrialView,
    bounds_text,
    plain,
    point_text,
    value_with_interval,
    verdict_lines,
)

PORT = 8000
LOCAL = "127.0.0.1"
# Seconds until /health may answer: the first start downloads and compiles what a study has cached.
_START_S = 1800
_STOP_S = 60
_WIDTH = 80
_MODELS = "/models"
_CACHE = "/root/.cache"  # of the image's user: downloads, and what torch.compile and Triton made
_IMAGES = {"cuda": "vllm/vllm-openai", "cpu": "vllm/vllm-openai-cpu"}
_HUB_TOKEN = "HF_TOKEN"  # noqa: S105 – its name
_HOST = re.compile(r"[A-Za-z0-9.:_-]+")
_SYSTEMD_PLAIN = re.compile(r"[A-Za-z0-9_@:,./=+-]+")


class Format(StrEnum):
    """What can be written."""

    SHELL = "shell"
    VLLM_CONFIG = "vllm-config"
    COMPOSE = "compose"
    KUBERNETES = "kubernetes"
    SYSTEMD = "systemd"


@dataclass(frozen=True)
class Chosen:
    """Which point is served, and why.

    Attributes:
        trial: Its trial, with numbers.
        why: In one line.
        values: Of each objective, with its unit and interval, in words.
        speedup: Over the baseline's throughput: value, low, high; None: unknown.
    """

    trial: TrialView
    why: str
    values: str
    speedup: tuple[float, float | None, float | None] | None


@dataclass(frozen=True)
class Endpoint:
    """Where it shall listen.

    Attributes:
        host: Address; None: the format's own, which is this machine only where it can be.
        port: TCP port.
    """

    host: str | None = None
    port: int = PORT


def chosen(
    view: StudyView, trial: TrialView, *, objective: str | None = None, balanced: bool = False
) -> Chosen:
    """What is known of the best trial, which :meth:`StudyView.best` named by the same rule.

    Args:
        view: The study.
        trial: The best one.
        objective: By which; the study's first one without.
        balanced: By all instead.
    """
    names = [o.name for o in view.objectives]
    index = names.index(objective) if objective else 0
    if view.verdict is None:
        rule = "all objectives alike" if balanced else plain(view.objectives[index].title)
        return replace(
            as_asked(view, trial),
            why=f"the best by {rule} of single launches; it was not measured again, and the "
            "luckiest of many is rather too good (`autotune confirm`)",
        )
    choice = view.verdict.balanced if balanced else view.verdict.winners[index]
    values = [
        value_with_interval(e.value, (e.low, e.high), o)
        for o, e in zip(view.objectives, choice.values, strict=True)
    ]
    speedup = None
    if choice.over_baseline is not None and "throughput" in names:
        e = choice.over_baseline[names.index("throughput")]
        speedup = (e.value, e.low, e.high)
    return Chosen(
        trial,
        verdict_lines(view)[-1 if balanced else index],
        _valued(view, values) + f", measured again in {_launches(trial.confirmed_launches)}",
        speedup,
    )


def measured_trial(view: StudyView, number: int) -> TrialView:
    """The trial of this number, or the one whose point it measured again.

    Raises:
        UserError: there is none, or it has no numbers.
    """
    trial = next((t for t in view.trials if t.number == number), None)
    if trial is None:
        raise UserError(
            f"--trial {number}: {view.name} has no such trial; `autotune status` lists them"
        )
    trial = next((t for t in view.trials if t.number == trial.again), trial)
    if trial.state != "complete":
        why = f"{trial.state}: {trial.failure_kind}" if trial.failure_kind else trial.state
        raise UserError(
            f"--trial {number}: has no numbers ({why}); `autotune status` lists those that have"
        )
    return trial


def as_asked(view: StudyView, trial: TrialView) -> Chosen:
    """A trial with what its own launches say, the confirmation's if there are any."""
    confirmed = trial.confirmed is not None
    numbers = (trial.confirmed if confirmed else trial.values) or {}
    bounds = (trial.confirmed_intervals if confirmed else trial.intervals) or {}
    values = [value_with_interval(numbers[o.name], bounds.get(o.name), o) for o in view.objectives]
    speedup = trial.confirmed_speedup
    if not confirmed and trial.speedup is not None:
        speedup = (trial.speedup, *(trial.speedup_interval or (None, None)))
    launches = trial.confirmed_launches if confirmed else trial.launches
    how = f"measured again in {_launches(launches)}" if confirmed else _launches(launches)
    return Chosen(trial, "chosen by its number", f"{_valued(view, values)}, {how}", speedup)


def _valued(view: StudyView, values: Sequence[str]) -> str:
    return ", ".join(f"{plain(o.title)} {v}" for o, v in zip(view.objectives, values, strict=True))


def _launches(count: int) -> str:
    return f"{count} launch{'' if count == 1 else 'es'}"


def shell_command(store: Store, name: str, trial: TrialView, where: Endpoint | None = None) -> str:
    """The shell command that serves a trial's point in production, and nothing else.

    Nothing of the study is run for it, not even to ask its vLLM: the database may be somebody
    else's.
    """
    where = where or Endpoint()
    loaded, info, resolve = _served(store, name)
    return serve_command(
        loaded.spec.server,
        trial.point,
        info,
        resolve=resolve,
        host=where.host or LOCAL,
        port=where.port,
    )


def _served(store: Store, name: str) -> tuple[LoadedStudy, VllmInfo, Callable[[str], str]]:
    loaded, _row = store.load_study(name)
    info = store.vllm(name) or unasked(loaded.spec.server)
    return loaded, info, model_resolver(loaded, info)


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
    """The text of a file that serves a point.

    Args:
        store: Has the study.
        view: The study.
        choice: Which point of it.
        form: In which language.
        where: Where it shall listen.
        version: Of the vLLM in production; the one it was measured with, if None.
        file: Its name, for the comment.
        today: For the comment; the present day, if None.

    Raises:
        UserError: the point cannot launch on that vLLM, or the format cannot say it.
    """
    where = where or Endpoint()
    _check_endpoint(form, where)
    loaded, info, resolve = _served(store, view.name)
    measured = _version(view.vllm_version or info.version)  # the database may be somebody else's
    if version is not None and _version(version) is None:
        raise UserError(f"--vllm: {version[:40]} is no version; such as 0.32.0")
    version = measured if version is None else _version(version)
    launches = store.launches.of_study(view.name)
    machine = launches[-1].machine if launches else None
    device = info.device or _device_of(machine)
    spec, point = loaded.spec, choice.trial.point
    settings = spec.settings(point)
    known = known_for(loaded, replace(info, device=device))
    if why := why_infeasible(settings, version, known):
        raise UserError(
            f"trial {choice.trial.number} ({point_text(point)}) cannot be served: {why}; name "
            "another point with --trial"
        )
    job = _Job(
        view=view,
        spec=spec,
        choice=choice,
        info=info,
        resolve=resolve,
        where=where,
        version=version,
        device=device,
        cores=machine["cores"] if machine else None,
        file=file,
    )
    if form is Format.SHELL:
        job.plan()
        body = "\n" + shell_command(store, view.name, choice.trial, where) + "\n"
    else:
        body = _WRITERS[form](job)
    if doubt := why_doubtful(settings, version, known):
        job.say(f"Careful: {plain(doubt)}.")
    about = _about(view, spec, choice, measured, version, today or date.today())
    head = "#!/bin/sh\n" if form is Format.SHELL else ""
    return head + _comment([*about, "", *job.notes]) + body


class _Job:
    """What the writers read, and the notes that they leave for the reader of the file."""

    def __init__(
        self,
        *,
        view: StudyView,
        spec: StudySpec,
        choice: Chosen,
        info: VllmInfo,
        resolve: Callable[[str], str],
        where: Endpoint,
        version: str | None,
        device: str | None,
        cores: int | None,
        file: str | None,
    ) -> None:
        self.name = _label(view.name)
        self.study = view.name
        self.spec = spec
        self.point = choice.trial.point
        self.info = info
        self.where = where
        self.version = version
        self.device = device
        self.cores = cores
        self.file = file
        self.from_hub = False  # whether a model is downloaded; known after `plan`
        self.notes: list[str] = []
        if "VLLM_API_KEY" not in spec.server.env:
            self.say(
                "No API key is set: whoever reaches the port may use it. vLLM takes one from the "
                "variable VLLM_API_KEY; set it where your other secrets are."
            )
        self._resolve = resolve

    def say(self, text: str, *commands: str) -> None:
        """Adds a note, and commands to copy."""
        self.notes += [text, *(f"  {plain(c)}" for c in commands)]

    def named(self, default: str) -> str:
        """The file's name as a word of a command."""
        return shlex.quote(self.file or default)

    def plan(self, place: Callable[[str], str] = lambda path: path) -> Production:
        """The launch; ``place`` says where a model's folder is for the server."""
        found: dict[str, str] = {}

        def resolve(ref: str) -> str:
            found[ref] = self._resolve(ref)
            return place(found[ref])

        plan = production(self.spec.server, self.point, self.info, resolve=resolve)
        for ref, path in found.items():
            if ref.startswith("demo:"):
                what = (
                    "a demo, made for trying autotune out"
                    if ref == "demo:target"
                    else ("the demo's draft, which comes with autotune")
                )
                self.say(f"{ref} is {what}: here it is {plain(path)}.")
        self.from_hub = any(not Path(path).is_absolute() for path in found.values())
        if self.from_hub:
            self.say(f"A gated model needs {_HUB_TOKEN}; others do without.")
        return plan

    @property
    def gpus(self) -> int:
        """How many the flags ask for."""
        s = self.spec.settings(self.point)
        sizes = (f"{kind}_parallel_size" for kind in ("tensor", "pipeline", "data"))
        return math.prod(as_int(s.get(size)) or 1 for size in sizes)

    def image(self) -> str:
        """The container image of the version, pinned.

        Raises:
            UserError: the version or the device is unknown, or has no image.
        """
        if self.version is None:
            raise UserError(
                f"{self.study}: its vLLM's version is not known, so no image can be pinned; give "
                "it with --vllm"
            )
        if self.device not in _IMAGES:
            raise UserError(
                f"{self.study}: its vLLM runs on {self.device or 'an unknown device'}, for which "
                "autotune knows no image; take --format shell into one of your own"
            )
        v = Version(self.version)
        image = f"{_IMAGES[self.device]}:v{v.base_version}"
        if v.is_devrelease:
            self.say(
                f"vLLM {plain(self.version)} is a development build, of which no image is "
                f"released; {image} is its release: measure with that one, or build your own."
            )
        elif v.is_prerelease:
            image = f"{_IMAGES[self.device]}:v{v.public}"
        if self.device == "cpu":
            self.say(
                f"The study ran on a CPU: take {image}, vLLM's image for CPUs; vllm/vllm-openai "
                "needs a GPU. On ARM see docs.vllm.ai for the tag of your processor."
            )
        return image


# -- comments ------------------------------------------------------------------------------------


def _about(
    view: StudyView,
    spec: StudySpec,
    choice: Chosen,
    measured: str | None,
    version: str | None,
    today: date,
) -> Iterator[str]:
    """Where a file comes from, in lines."""
    t = choice.trial
    yield (
        f"Trial {t.number} of the study {view.name}: {point_text(t.point)}. Written by autotune "
        f"{__version__} on {today:%Y-%m-%d}."
    )
    why = plain(choice.why)
    yield f"{why[0].upper()}{why[1:]}."
    yield f"{choice.values}."
    if t.baseline:
        yield "It is the baseline itself" + (": no speculation." if t.point.get(N) == 0 else ".")
    elif choice.speedup is None:
        yield "Its speed-up is unknown: the baseline has no numbers."
    else:
        value, low, high = choice.speedup
        base = next(x for x in view.trials if x.baseline)
        yield (
            f"Speed-up {value:.2f}× {bounds_text((low, high))} (95 % interval) over the baseline "
            f"({point_text(base.point)})."
        )
    load = spec.workload
    loads = [f"at most {load.max_concurrency} requests at a time"] if load.max_concurrency else []
    if not math.isinf(load.request_rate):
        loads.append(f"{load.request_rate:g} arrivals a second")
    yield (
        f"Measured from {view.created:%Y-%m-%d} on with vLLM {plain(measured or '(unknown)')} on "
        f"{plain(view.machine) or 'an unknown machine'}"
        + (f", {' and '.join(loads)}." if loads else ".")
    )
    if version != measured:
        yield (
            f"It is for vLLM {version}, which it was not measured with: no rule of that version "
            "forbids it, its speed may differ."
        )


def _comment(lines: Sequence[str]) -> str:
    """Lines as comments of at most 80 columns, in every one of the languages.

    Those that begin with a space are to be copied, and stay whole.
    """
    out: list[str] = []
    for line in lines:
        glued = line.replace(" = ", "\xa0=\xa0").replace("MNBT ", "MNBT\xa0")
        parts = textwrap.wrap(glued, _WIDTH - 2, break_long_words=False, break_on_hyphens=False)
        whole = [line] if line.startswith(" ") else parts
        out += [f"# {part}".replace("\xa0", " ") for part in whole] or ["#"]
    return "\n".join(out) + "\n"


# -- vLLM ----------------------------------------------------------------------------------------


def _vllm_config(job: _Job) -> str:
    """A file for ``--config`` (vLLM: utils/argparse_utils.py, load_config_file).

    Its entries become flags again: true is a switch, a list its values, a mapping JSON.
    """
    plan = job.plan()
    program = plan.head[:-2] if plan.head[-2:-1] == ("--model",) else plan.head[:-1]
    env = {**plan.env, **plan.hiding}
    if env:
        words = [f'{k}="${k}"' if v is None else f"{k}={shlex.quote(v)}" for k, v in env.items()]
        job.say("A config has no environment; set:", *(f"export {w}" for w in words))
    entries: dict[str, Any] = {"model": _Word(plan.model)}
    for flag in (*_split(plan.rest), *plan.flags):
        name, equals, joined = flag[0].removeprefix("--").partition("=")
        if equals and joined.startswith("-"):
            entries[f"{name}={joined}"] = True  # a value alone would be taken for a flag
            continue
        values = [_scalar(v) for v in ((joined,) if equals else flag[1:])]
        entries.pop(name, None)
        entries[name] = True if not values else values[0] if len(values) == 1 else values
    entries |= {"host": _Word(job.where.host or LOCAL), "port": job.where.port}
    job.say("Start it with:", f"{shlex.join(program)} --config {job.named('vllm.yaml')}")
    return _yaml(entries)


def _split(words: Sequence[str]) -> list[list[str]]:
    """Words of a command as flags with their values."""
    flags: list[list[str]] = []
    for word in words:
        if word.startswith("--"):
            flags.append([word])
        elif word.startswith("-") and as_int(word) is None:
            raise UserError(
                f"server.command: {word} has no long name here; write the flag in full, with --"
            )
        elif not flags:
            raise UserError(f"server.command: {word} is no flag, and a config has flags only")
        else:
            flags[-1].append(word)
    return flags


def _scalar(word: str) -> Any:
    """A value as YAML shows it best, of which vLLM makes the same word again."""
    try:
        value = json.loads(word)
    except ValueError:
        return _Word(word)
    if isinstance(value, dict) and json.dumps(value) == word:
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if number and str(value) == word else _Word(word)


# -- containers ----------------------------------------------------------------------------------


def _in_container(job: _Job) -> tuple[Production, dict[str, str]]:
    """The launch as a container sees it, and the folders of this machine by their place in it."""
    mounts: dict[str, str] = {}

    def place(path: str) -> str:
        if not Path(path).is_absolute():
            return path
        name = Path(path).name
        taken = {k for k, v in mounts.items() if v != path}
        inside = next(
            p
            for i in range(1, len(taken) + 2)
            if (p := f"{_MODELS}/{name}" + (f"-{i}" if i > 1 else "")) not in taken
        )
        mounts[inside] = path
        return inside

    plan = job.plan(place)
    if job.spec.server.command is not None and job.info.python is None:
        shown = plain(shlex.join(job.spec.server.command))
        job.say(
            f"The study starts its servers with `{shown}`: what of that decides the speed has to "
            "be set here as well."
        )
    # of the study's words, not of ours
    texts = {flag[0]: flag[-1] for flag in plan.flags if len(flag) > 1}
    texts |= {k: v for k, v in plan.env.items() if v is not None}
    if here := [k for k, v in texts.items() if re.match(r"[./~]*/", v)]:
        job.say(
            f"{', '.join(here)}: a path of the machine that it was measured on; is it one in the "
            "container?"
        )
    return plan, mounts


def _serve_words(job: _Job, plan: Production) -> list[str]:
    """Model and flags for ``vllm serve``; a container's own addresses are all its own."""
    words = [plan.model, *plan.rest, *(word for flag in plan.flags for word in flag)]
    return [*words, "--host", "0.0.0.0", "--port", str(job.where.port)]  # noqa: S104


def _compose(job: _Job) -> str:
    """A file for Docker Compose, by the Compose Specification."""
    plan, mounts = _in_container(job)

    def word(text: str) -> _Word:
        return _Word(text.replace("$", "$$"))

    env: dict[str, _Word | None] = {}
    secrets = [k for k, v in plan.env.items() if v is None]
    for name, value in plan.env.items():
        asked = _Word(f"${{{name}:?set it in .env beside this file, or in the environment}}")
        env[name] = asked if value is None else word(value)
    if job.from_hub and _HUB_TOKEN not in env:
        env[_HUB_TOKEN] = None  # as it is outside, if it is
    service: dict[str, Any] = {
        "image": _Word(job.image()),
        "entrypoint": [_Word("vllm"), _Word("serve")],
        "command": [word(text) for text in _serve_words(job, plan)],
    }
    if env:
        service["environment"] = env
    host = job.where.host or LOCAL
    service["ports"] = [
        {"target": job.where.port, "published": _Word(job.where.port), "host_ip": _Word(host)}
    ]
    binds = [
        {"type": "bind", "source": word(path), "target": word(inside), "read_only": True}
        for inside, path in mounts.items()
    ]
    cache = {"type": "volume", "source": "cache", "target": _Word(_CACHE)}
    service |= {"volumes": [cache, *binds], "shm_size": "8gb", "restart": "unless-stopped"}
    service["stop_grace_period"] = f"{_STOP_S}s"
    if job.device == "cpu":
        service["cap_add"] = ["SYS_NICE"]  # for the memory policy of NUMA nodes
    else:
        device = {"driver": "nvidia", "count": job.gpus, "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    url = f"http://127.0.0.1:{job.where.port}/health"
    ask = f"import urllib.request; urllib.request.urlopen('{url}', timeout=5)"
    service["healthcheck"] = {
        "test": [_Word("CMD"), _Word("python3"), _Word("-c"), _Word(ask)],
        "interval": "15s",
        "timeout": "10s",
        "retries": 4,
        "start_period": f"{_start_s(job)}s",
    }
    if secrets:
        job.say(f"{', '.join(secrets)}: from the environment, or from .env beside this file.")
    job.say("Start it with:", f"docker compose -f {job.named('compose.yaml')} up -d")
    return _yaml({"name": job.name, "services": {"vllm": service}, "volumes": {"cache": None}})


def _kubernetes(job: _Job) -> str:
    """A Deployment and its Service."""
    plan, mounts = _in_container(job)

    def word(text: str) -> _Word:
        return _Word(text.replace("$", "$$"))

    secret = f"{job.name}-secrets"
    env: list[dict[str, Any]] = []
    secrets = [k for k, v in plan.env.items() if v is None]
    for name, value in plan.env.items():
        if value is None:
            env.append(_from_secret(secret, name, optional=False))
        else:
            env.append({"name": _Word(name), "value": word(value)})
    if job.from_hub and _HUB_TOKEN not in plan.env:
        env.append(_from_secret(secret, _HUB_TOKEN, optional=True))
    labels = {"app.kubernetes.io/name": "vllm", "app.kubernetes.io/instance": job.name}
    resources: dict[str, Any] = {}
    if job.device == "cuda":
        resources = {"limits": {"nvidia.com/gpu": _Word(job.gpus)}}
    elif job.cores is not None:
        resources = {"requests": {"cpu": _Word(job.cores)}}
    health = {"httpGet": {"path": "/health", "port": "http"}}
    container: dict[str, Any] = {
        "name": "vllm",
        "image": _Word(job.image()),
        "command": [_Word("vllm"), _Word("serve")],
        "args": [word(text) for text in _serve_words(job, plan)],
        **({"env": env} if env else {}),
        "ports": [{"name": "http", "containerPort": job.where.port}],
        **({"resources": resources} if resources else {}),
        "startupProbe": {
            **health,
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": math.ceil(_start_s(job) / 10),
        },
        "readinessProbe": {**health, "periodSeconds": 5, "timeoutSeconds": 5},
        "livenessProbe": {
            **health,
            "periodSeconds": 15,
            "timeoutSeconds": 10,
            "failureThreshold": 4,
        },
        "volumeMounts": [
            {"name": "cache", "mountPath": _CACHE},
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 – in the container
        ],
    }
    volumes: list[dict[str, Any]] = [
        {"name": "cache", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}},
    ]
    if mounts:
        claim = f"{job.name}-models"
        volumes.append(
            {"name": "models", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
        )
        container["volumeMounts"].append({"name": "models", "mountPath": _MODELS, "readOnly": True})
        for inside, path in mounts.items():
            job.say(
                f"Copy {plain(path)} into the claim {claim}, as "
                f"{plain(inside.removeprefix(f'{_MODELS}/'))}."
            )
    if secrets or job.from_hub:
        job.say(
            f"{', '.join(secrets or [_HUB_TOKEN])}: from the Secret {secret}, made of a file of "
            "lines NAME=VALUE with:",
            f"kubectl create secret generic {secret} --from-env-file=FILE",
        )
    job.say(
        "The cache is emptied with the pod; a claim in its place spares downloads and compiling."
    )
    job.say("Start it with:", f"kubectl apply -f {job.named('vllm.yaml')}")
    meta = {"name": job.name, "labels": labels}
    pod = {
        # a Service's variables are VLLM_…, too, and vLLM would read them as its own
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _STOP_S,
        "containers": [container],
        "volumes": volumes,
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": meta,
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},  # the new pod needs the GPU of the old one
            "selector": {"matchLabels": dict(labels)},
            "template": {"metadata": {"labels": dict(labels)}, "spec": pod},
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": job.name, "labels": dict(labels)},
        "spec": {
            "selector": dict(labels),
            "ports": [{"name": "http", "port": job.where.port, "targetPort": "http"}],
        },
    }
    return _yaml(deployment) + "---\n" + _yaml(service)


def _from_secret(secret: str, name: str, *, optional: bool) -> dict[str, Any]:
    ref = {"name": secret, "key": _Word(name), "optional": optional}
    return {"name": _Word(name), "valueFrom": {"secretKeyRef": ref}}


def _start_s(job: _Job) -> int:
    """Longest start, in seconds: generous, for the first one downloads and compiles."""
    return max(_START_S, math.ceil(2 * job.spec.server.health_timeout_s))


# -- systemd -------------------------------------------------------------------------------------


def _systemd(job: _Job) -> str:
    """A unit of the machine that the study ran on."""
    plan = job.plan()
    env = {**plan.env, **plan.hiding}
    if job.info.python is not None and "PATH" not in env:
        # as in an activated environment: vLLM's compilers call `ninja` from there
        bin_folder = Path(job.info.python).parent
        env["PATH"] = os.pathsep.join([str(bin_folder), "/usr/local/bin", "/usr/bin", "/bin"])
    secrets = [k for k, v in env.items() if v is None]
    file = f"/etc/autotune/{job.name}.env"
    lines = [_systemd_word(w, command=True) for w in (*plan.head, *plan.rest)]
    lines = [" ".join(lines)]
    listen = (("--host", job.where.host or LOCAL), ("--port", str(job.where.port)))
    for flag in (*plan.flags, *listen):
        lines.append(" ".join(_systemd_word(w, command=True) for w in flag))
    if secrets or job.from_hub:
        job.say(
            f"{', '.join(secrets or [_HUB_TOKEN])}: from {file} (mode 0600), a line NAME=VALUE "
            "each."
        )
    unit_file = f"{job.name}.service"
    job.say(
        "Start it with:",
        f"sudo install -m 644 {job.named(unit_file)} /etc/systemd/system/{unit_file}",
        "sudo systemctl daemon-reload",
        f"sudo systemctl enable --now {job.name}",
    )
    unit = [
        "[Unit]",
        f"Description=vLLM as tuned by autotune, study {job.study}",
        "Wants=network-online.target",
        "After=network-online.target",
        "",
        "[Service]",
        "Type=exec",
        f"User={getpass.getuser()}",
        *(f"Environment={_systemd_word(f'{k}={v}')}" for k, v in env.items() if v is not None),
        *([f"EnvironmentFile={file}"] if secrets else []),
        *([f"EnvironmentFile=-{file}"] if job.from_hub and not secrets else []),
        "ExecStart=" + " \\\n  ".join(lines),
        "Restart=on-failure",
        "RestartSec=10",
        "KillMode=mixed",  # vLLM ends its own workers; whoever is left goes with the unit
        f"TimeoutStopSec={_STOP_S}",
        "LimitNOFILE=65536",
        "NoNewPrivileges=yes",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return "\n".join(unit) + "\n"


def _systemd_word(text: str, *, command: bool = False) -> str:
    """One word of a unit file; of a command line, a dollar would begin a variable."""
    text = text.replace("%", "%%")
    if command:
        text = text.replace("$", "$$")
    if _SYSTEMD_PLAIN.fullmatch(text):
        return text
    for bad, escape in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\t", "\\t")):
        text = text.replace(bad, escape)
    return f'"{text}"'


# -- YAML and names ------------------------------------------------------------------------------


class _Word(str):
    """A text that YAML is to quote, whatever it looks like."""

    def __new__(cls, text: object) -> _Word:
        return super().__new__(cls, text)


class _Dumper(yaml.SafeDumper):
    """Lists stand deeper than their key, and nothing is an alias."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _quoted(dumper: yaml.SafeDumper, text: _Word) -> yaml.ScalarNode:
    style = '"' if "\n" in text else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style=style)


_Dumper.add_representer(_Word, _quoted)


def _yaml(data: Mapping[str, Any]) -> str:
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)


def _label(study: str) -> str:
    """A study's name as Kubernetes, Compose and systemd take one (RFC 1035, 63 characters)."""
    return f"vllm-{re.sub(r'[^a-z0-9]+', '-', study.lower())}"[:50].strip("-")


def _device_of(machine: Mapping[str, Any] | None) -> str | None:
    """What a machine's servers ran on, as far as it tells."""
    if machine is None:
        return None
    return "cuda" if machine.get("gpus") else "cpu"


def _version(text: str | None) -> str | None:
    """A version without the spaces and line breaks that one may have around it; None: it is none.

    A number of thousands of digits is none for Python.
    """
    try:
        return None if text is None else str(Version(text))
    except ValueError:
        return None


def _check_endpoint(form: Format, where: Endpoint) -> None:
    """Refuses an address that the format has no place for, or that is none."""
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


_WRITERS: Mapping[Format, Callable[[_Job], str]] = {
    Format.VLLM_CONFIG: _vllm_config,
    Format.COMPOSE: _compose,
    Format.KUBERNETES: _kubernetes,
    Format.SYSTEMD: _systemd,
}


def write(text: str, form: Format, path: Path) -> None:
    """Writes a new file; a shell script can be run.

    Raises:
        UserError: it exists, cannot be written, or has a name that its tool would not take.
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
