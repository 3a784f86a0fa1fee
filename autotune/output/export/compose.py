"""A file for Docker Compose, by the Compose Specification.

``$`` is interpolation there, ``$$`` a dollar (Compose Specification, "Interpolation").
"""

from __future__ import annotations

from typing import Any

from autotune.engine.command import Production
from autotune.output.export.endpoint import LOCAL
from autotune.output.export.job import (
    CACHE,
    HUB_TOKEN,
    STOP_S,
    Job,
    in_container,
    serve_words,
)
from autotune.output.export.yaml_text import Word, literal, yaml_text


def compose(job: Job) -> str:
    """Return the text of a Compose file."""
    plan, mounts = in_container(job)
    service: dict[str, Any] = {
        "image": Word(job.image()),
        "entrypoint": [Word("vllm"), Word("serve")],
        "command": [literal(text) for text in serve_words(job, plan)],
    }
    if env := _environment(job, plan):
        service["environment"] = env
    service |= _surroundings(job, mounts)
    service["healthcheck"] = _health(job)
    if secrets := [k for k, v in plan.env.items() if v is None]:
        job.say(f"{', '.join(secrets)}: from the environment, or from .env next to this file.")
    job.say("Start it with:", f"docker compose -f {job.named('compose.yaml')} up -d")
    return yaml_text({"name": job.name, "services": {"vllm": service}, "volumes": {"cache": None}})


def _environment(job: Job, plan: Production) -> dict[str, Word | None]:
    env: dict[str, Word | None] = {}
    for name, value in plan.env.items():
        asked = Word(f"${{{name}:?set it in .env next to this file, or in the environment}}")
        env[name] = asked if value is None else literal(value)
    if job.from_hub and HUB_TOKEN not in env:
        env[HUB_TOKEN] = None  # as it is outside, if it is
    return env


def _surroundings(job: Job, mounts: dict[str, str]) -> dict[str, Any]:
    """Return the parts of the machine that the container uses: port, folders, memory, device."""
    port = {
        "target": job.where.port,
        "published": Word(job.where.port),
        "host_ip": Word(job.where.host or LOCAL),
    }
    binds = [
        {"type": "bind", "source": literal(path), "target": literal(inside), "read_only": True}
        for inside, path in mounts.items()
    ]
    cache = {"type": "volume", "source": "cache", "target": Word(CACHE)}
    found: dict[str, Any] = {
        "ports": [port],
        "volumes": [cache, *binds],
        "shm_size": "8gb",
        "restart": "unless-stopped",
        "stop_grace_period": f"{STOP_S}s",
    }
    if job.device == "cpu":
        found["cap_add"] = ["SYS_NICE"]  # for the memory policy of NUMA nodes
    else:
        device = {"driver": "nvidia", "count": job.gpus, "capabilities": ["gpu"]}
        found["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    return found


def _health(job: Job) -> dict[str, Any]:
    url = f"http://127.0.0.1:{job.where.port}/health"
    ask = f"import urllib.request; urllib.request.urlopen('{url}', timeout=5)"
    return {
        "test": [Word("CMD"), Word("python3"), Word("-c"), Word(ask)],
        "interval": "15s",
        "timeout": "10s",
        "retries": 4,
        "start_period": f"{job.start_s}s",
    }
