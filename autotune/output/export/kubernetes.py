"""A Deployment for Kubernetes, and its Service.

``$(NAME)`` in command, args and env is a reference there, ``$$`` a dollar
(kubernetes/third_party/forked/golang/expansion/expand.go: tryReadVariableName).
"""

from __future__ import annotations

import math
from typing import Any

from autotune.engine.command import Production
from autotune.output.export.job import (
    CACHE,
    HUB_TOKEN,
    MODELS,
    STOP_S,
    Job,
    in_container,
    serve_words,
)
from autotune.output.export.yaml_text import Word, literal, yaml_text
from autotune.results.text import plain


def kubernetes(job: Job) -> str:
    """Return the text of a Deployment and its Service."""
    plan, mounts = in_container(job)
    container = _container(job, plan)
    volumes: list[dict[str, Any]] = [
        {"name": "cache", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}},
    ]
    if mounts:
        volumes.append(_models(job, mounts))
        container["volumeMounts"].append({"name": "models", "mountPath": MODELS, "readOnly": True})
    secrets = [k for k, v in plan.env.items() if v is None]
    if secrets or job.from_hub:
        secret = _secret(job)
        job.say(
            f"{', '.join(secrets or [HUB_TOKEN])}: from the Secret {secret}, made of a file of "
            "lines NAME=VALUE with:",
            f"kubectl create secret generic {secret} --from-env-file=FILE",
        )
    job.say("The cache is emptied with the pod; a claim instead saves downloads and compiling.")
    job.say("Start it with:", f"kubectl apply -f {job.named('vllm.yaml')}")
    return yaml_text(_deployment(job, container, volumes)) + "---\n" + yaml_text(_service(job))


def _secret(job: Job) -> str:
    return f"{job.name}-secrets"


def _labels(job: Job) -> dict[str, str]:
    return {"app.kubernetes.io/name": "vllm", "app.kubernetes.io/instance": job.name}


def _container(job: Job, plan: Production) -> dict[str, Any]:
    env, resources = _environment(job, plan), _resources(job)
    return {
        "name": "vllm",
        "image": Word(job.image()),
        "command": [Word("vllm"), Word("serve")],
        "args": [literal(text) for text in serve_words(job, plan)],
        **({"env": env} if env else {}),
        "ports": [{"name": "http", "containerPort": job.where.port}],
        **({"resources": resources} if resources else {}),
        **_probes(job),
        "volumeMounts": [
            {"name": "cache", "mountPath": CACHE},
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 – in the container
        ],
    }


def _environment(job: Job, plan: Production) -> list[dict[str, Any]]:
    env: list[dict[str, Any]] = []
    for name, value in plan.env.items():
        if value is None:
            env.append(_from_secret(_secret(job), name, optional=False))
        else:
            env.append({"name": Word(name), "value": literal(value)})
    if job.from_hub and HUB_TOKEN not in plan.env:
        env.append(_from_secret(_secret(job), HUB_TOKEN, optional=True))
    return env


def _from_secret(secret: str, name: str, *, optional: bool) -> dict[str, Any]:
    ref = {"name": secret, "key": Word(name), "optional": optional}
    return {"name": Word(name), "valueFrom": {"secretKeyRef": ref}}


def _resources(job: Job) -> dict[str, Any]:
    if job.device == "cuda":
        return {"limits": {"nvidia.com/gpu": Word(job.gpus)}}
    return {} if job.cores is None else {"requests": {"cpu": Word(job.cores)}}


def _probes(job: Job) -> dict[str, Any]:
    health = {"httpGet": {"path": "/health", "port": "http"}}
    return {
        "startupProbe": {
            **health,
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": math.ceil(job.start_s / 10),
        },
        "readinessProbe": {**health, "periodSeconds": 5, "timeoutSeconds": 5},
        "livenessProbe": {
            **health,
            "periodSeconds": 15,
            "timeoutSeconds": 10,
            "failureThreshold": 4,
        },
    }


def _models(job: Job, mounts: dict[str, str]) -> dict[str, Any]:
    """Return the volume of the models, and note what has to be copied into it."""
    claim = f"{job.name}-models"
    for inside, path in mounts.items():
        job.say(
            f"Copy {plain(path)} into the claim {claim}, as "
            f"{plain(inside.removeprefix(f'{MODELS}/'))}."
        )
    return {"name": "models", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}


def _deployment(
    job: Job, container: dict[str, Any], volumes: list[dict[str, Any]]
) -> dict[str, Any]:
    pod = {
        # a Service's variables are named VLLM_…, too, and vLLM would read them as its own
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": STOP_S,
        "containers": [container],
        "volumes": volumes,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": job.name, "labels": _labels(job)},
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},  # the new pod needs the GPU of the old one
            "selector": {"matchLabels": _labels(job)},
            "template": {"metadata": {"labels": _labels(job)}, "spec": pod},
        },
    }


def _service(job: Job) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": job.name, "labels": _labels(job)},
        "spec": {
            "selector": _labels(job),
            "ports": [{"name": "http", "port": job.where.port, "targetPort": "http"}],
        },
    }
