"""The common input of every format: the launch, its address, and notes for the reader.

A production server differs from the tuning server: it has no random API key, listens on the given
address, and gets its secrets from where production keeps them. A variable that looks like a secret
appears by its name only; the database holds ``***`` for its value anyway.

Every format starts from :func:`autotune.engine.command.production`, so all of them have the flags
of the shell command.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from packaging.version import Version

from autotune.engine.command import Production
from autotune.engine.probe import VllmInfo
from autotune.engine.variables import names_devices
from autotune.errors import UserError
from autotune.output.export.endpoint import Endpoint
from autotune.output.export.served import Served
from autotune.results.text import plain
from autotune.study.schema import StudySpec
from autotune.study.shapes import is_shape, stands_for
from autotune.study.space import as_int

# Seconds that a stop may take.
STOP_S = 60
# Seconds until /health may answer: the first start downloads and compiles what a study has cached.
_START_S = 1800
MODELS = "/models"
CACHE = "/root/.cache"  # of the image's user: downloads, and the output of torch.compile and Triton
HUB_TOKEN = "HF_TOKEN"  # noqa: S105 – its name
_IMAGES = {"cuda": "vllm/vllm-openai", "cpu": "vllm/vllm-openai-cpu"}


class Format(StrEnum):
    """Formats that can be written."""

    SHELL = "shell"
    VLLM_CONFIG = "vllm-config"
    COMPOSE = "compose"
    KUBERNETES = "kubernetes"
    SYSTEMD = "systemd"


@dataclass
class Job:
    """Input of the writers, and the notes that they leave for the reader of the file.

    Attributes:
        study: Name of the study.
        served: What is served, and in whose words.
        where: Address of the server.
        version: Version of the vLLM in production; None: unknown.
        device: vLLM's name of the device; None: unknown.
        cores: Number of cores of the machine that it was measured on; None: unknown.
        file: Name of the file, if one is written.
        from_hub: Whether a model is downloaded; known after :meth:`plan`.
        notes: Lines for the comment at the top of the file.
    """

    study: str
    served: Served
    where: Endpoint
    version: str | None
    device: str | None
    cores: int | None
    file: str | None
    from_hub: bool = False
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.served.note is not None:
            self.say(self.served.note)
        if "VLLM_API_KEY" not in self.spec.server.env:
            self.say(
                "No API key is set: whoever reaches the port may use it. vLLM takes one from the "
                "variable VLLM_API_KEY; set it where your other secrets are."
            )

    @property
    def spec(self) -> StudySpec:
        """The study."""
        return self.served.loaded.spec

    @property
    def info(self) -> VllmInfo:
        """vLLM that it was measured with."""
        return self.served.info

    @property
    def name(self) -> str:
        """Name of the service in the file."""
        return label(self.study)

    def say(self, text: str, *commands: str) -> None:
        """Add a note, and commands to copy."""
        self.notes += [text, *(f"  {plain(c)}" for c in commands)]

    def named(self, default: str) -> str:
        """Return the file's name as a word of a command."""
        return shlex.quote(self.file or default)

    def plan(self, place: Callable[[str], str] = lambda path: path) -> Production:
        """Return the launch; ``place`` returns the path of a model's folder for the server."""
        plan = self.served.plan(place)
        server = self.spec.server
        way = server.draft_at(self.served.trial.point)
        draft = way and way.model
        drafted = any(flag[0] == "--speculative-config" for flag in plan.flags)
        refs = [server.model, *([draft] if draft and drafted else [])]
        found = {ref: self.served.resolve(ref) for ref in refs}
        there = "here it" if self.served.elsewhere is None else "it"
        for ref, path in found.items():
            if ref.startswith("demo:"):
                what = (
                    "a demo, made for trying autotune out"
                    if ref == "demo:target"
                    else ("the demo's draft, which comes with autotune")
                )
                self.say(f"{ref} is {what}: {there} is {plain(path)}.")
            elif is_shape(ref):
                self.say(f"{ref} has the shape of {stands_for(ref)}, and no weights.")
        self.from_hub = any(not Path(path).is_absolute() for path in found.values())
        if self.from_hub:
            self.say(f"A gated model needs {HUB_TOKEN}; others do without.")
        return plan

    @property
    def gpus(self) -> int:
        """Number of GPUs that the flags ask for."""
        s = self.spec.settings(self.served.trial.point)
        sizes = (f"{kind}_parallel_size" for kind in ("tensor", "pipeline", "data"))
        return math.prod(as_int(s.get(size)) or 1 for size in sizes)

    @property
    def start_s(self) -> int:
        """Longest start, in seconds: generous, because the first one downloads and compiles."""
        return max(_START_S, math.ceil(2 * self.spec.server.health_timeout_s))

    def image(self) -> str:
        """Return the container image of the version, pinned.

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


def label(study: str) -> str:
    """Return a study's name as Kubernetes, Compose and systemd take it (RFC 1035, 63 letters)."""
    return f"vllm-{re.sub(r'[^a-z0-9]+', '-', study.lower())}"[:50].strip("-")


def in_container(job: Job) -> tuple[Production, dict[str, str]]:
    """Return the launch as a container sees it, and this machine's folders by their path in it."""
    mounts: dict[str, str] = {}

    def place(path: str) -> str:
        if not Path(path).is_absolute():
            return path
        name = Path(path).name
        taken = {k for k, v in mounts.items() if v != path}
        inside = next(
            p
            for i in range(1, len(taken) + 2)
            if (p := f"{MODELS}/{name}" + (f"-{i}" if i > 1 else "")) not in taken
        )
        mounts[inside] = path
        return inside

    plan = job.plan(place)
    devices = [k for k in plan.env if names_devices(k) and k not in job.spec.server.env]
    if devices:
        job.say(
            f"{', '.join(devices)}: said which devices of the measured machine were used; the "
            "container is given its own."
        )
        plan = replace(plan, env={k: v for k, v in plan.env.items() if k not in devices})
    if job.spec.server.command is not None and job.info.python is None:
        shown = plain(shlex.join(job.spec.server.command))
        job.say(
            f"The study starts its servers with `{shown}`: every part of it that affects the speed "
            "has to be set here as well."
        )
    # words of the study, not of autotune
    texts = {flag[0]: flag[-1] for flag in plan.flags if len(flag) > 1}
    texts |= {k: v for k, v in plan.env.items() if v is not None}
    if here := [k for k, v in texts.items() if re.match(r"[./~]*/", v)]:
        job.say(
            f"{', '.join(here)}: a path of the machine that it was measured on; is it one in the "
            "container?"
        )
    return plan, mounts


def serve_words(job: Job, plan: Production) -> list[str]:
    """Return model and flags for ``vllm serve``; it listens on all of the container's addresses."""
    words = [plan.model, *plan.rest, *(word for flag in plan.flags for word in flag)]
    return [*words, "--host", "0.0.0.0", "--port", str(job.where.port)]  # noqa: S104
