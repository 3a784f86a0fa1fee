"""The files under ``deploy/``: valid by the schemas of their readers, without a secret in them."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import jsonschema
import kubernetes_validate
import pytest
import yaml
from compose_spec import PyCompose

from autotune.cli.main import main
from autotune.errors import UserError
from autotune.storage.location import Server, parse_database
from tests.kuberay_schema import FILE, POD
from tests.paths import ROOT

DEPLOY = ROOT / "deploy"
KUBERNETES = "1.33"
PAGES = (DEPLOY / "README.md", ROOT / "docs" / "scale.md")


def rayjob() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "rayjob.yaml").read_text())
    return found


def check_rayjob(job: dict[str, Any]) -> None:
    """By KubeRay's CRD, and each pod template in it by Kubernetes."""
    schema = json.loads(FILE.read_text())
    jsonschema.Draft202012Validator(schema).validate(job)
    templates = list(pod_templates(schema, job))
    assert templates
    for template in templates:
        whole = {"apiVersion": "v1", "kind": "PodTemplate", "template": template}
        kubernetes_validate.validate(whole, KUBERNETES, strict=True)


def pod_templates(schema: dict[str, Any], value: Any) -> Iterator[dict[str, Any]]:
    if schema.get("$comment") == POD:
        yield value
    for name, of in schema.get("properties", {}).items():
        if isinstance(value, dict) and name in value:
            yield from pod_templates(of, value[name])
    for one in value if isinstance(value, list) else ():
        yield from pod_templates(schema["items"], one)


def compose(folder: Path) -> dict[str, Any]:
    """As podman-compose reads it: with anchors, variables and defaults."""
    podman = folder / "podman"
    podman.write_text("#!/bin/sh\necho podman version 5.4.0\n")
    podman.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "podman_compose", "--profile", "worker", "config"],
        cwd=DEPLOY,
        env={"PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = yaml.safe_load(done.stdout)
    return found


def test_the_rayjob_is_valid() -> None:
    check_rayjob(rayjob())


def _set(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(job: dict[str, Any]) -> None:
        *way, last = path.split(".")
        at: Any = job
        for key in way:
            at = at[int(key)] if isinstance(at, list) else at[key]
        at[last] = value

    return change


CLUSTER = "spec.rayClusterSpec"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.entryPoint", "autotune"),
        ("spec.submissionMode", 3),
        (f"{CLUSTER}.authOptions.mode", "password"),
        (f"{CLUSTER}.headGroupSpec.rayStartParams.num-gpus", 0),
        (f"{CLUSTER}.workerGroupSpecs.0.replicas", "two"),
        (f"{CLUSTER}.workerGroupSpecs.0.template.spec.container", []),
        (f"{CLUSTER}.headGroupSpec.template.spec.containers.0.env.0.from", "pgpass"),
    ],
)
def test_a_wrong_key_is_seen(path: str, value: object) -> None:
    job = copy.deepcopy(rayjob())
    _set(path, value)(job)
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check_rayjob(job)


def test_compose_is_valid(tmp_path: Path) -> None:
    # this parser is strict, but knows neither variables nor merge keys (`<<`)
    text = re.sub(r"\$\{\w+:-([^}]+)\}", r"\1", (DEPLOY / "compose.yaml").read_text())
    plain = yaml.safe_dump(yaml.safe_load(text))
    assert PyCompose.from_yaml(plain).services is not None
    services = compose(tmp_path)["services"]
    assert services.keys() == {"postgres", "head", "worker"}
    assert "--head" in services["head"]["command"]
    assert services["head"]["environment"].keys() >= {"RAY_AUTH_MODE", "PGPASSFILE"}
    assert services["worker"]["environment"].keys() == {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"}


def test_every_image_has_a_version(tmp_path: Path) -> None:
    images = [service["image"] for service in compose(tmp_path)["services"].values()]
    spec = rayjob()["spec"]["rayClusterSpec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    images += [c["image"] for g in groups for c in g["template"]["spec"]["containers"]]
    assert images
    assert all(re.search(r":v?\d", image) for image in images)


def test_all_have_the_same_ray() -> None:
    docker = (DEPLOY / "Dockerfile").read_text()
    said = re.search(r"^ARG RAY=(\S+)", docker, re.MULTILINE)
    assert said is not None
    assert rayjob()["spec"]["rayClusterSpec"]["rayVersion"] == said[1]


def test_no_secret_is_in_a_file(tmp_path: Path) -> None:
    """Passwords and tokens are files, and what names them says so."""
    found = compose(tmp_path)
    assert all(set(secret) == {"file"} for secret in found["secrets"].values())
    env = [e for s in found["services"].values() for e in s.get("environment", {}).items()]
    spec = rayjob()["spec"]["rayClusterSpec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        for container in group["template"]["spec"]["containers"]:
            env += [(e["name"], e.get("value", "")) for e in container.get("env", [])]
    secret = [e for e in env if re.search("PASS|TOKEN|KEY|SECRET", e[0])]
    assert secret
    assert all(value.startswith("/run/secrets/") for _, value in secret)
    assert "secrets/" in (DEPLOY / ".gitignore").read_text().split()


def test_only_the_head_has_the_password(tmp_path: Path) -> None:
    services = compose(tmp_path)["services"]
    assert "pgpass" not in json.dumps(services["worker"])
    workers = rayjob()["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert "pgpass" not in json.dumps(workers)


def commands() -> list[list[str]]:
    """Every `autotune` command of the files and of the pages about them."""
    texts = [rayjob()["spec"]["entrypoint"]]
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
            lines = re.sub(r"\\\n\s*", "", block).splitlines()
            texts += [line[line.index("autotune ") :] for line in lines if "autotune " in line]
    found = [shlex.split(text, comments=True) for text in texts]
    return [words for words in found if words[0] == "autotune" and words[1] in main.commands]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_is_one_of_autotune(words: list[str]) -> None:
    """Its options are there, and its databases are URLs that are taken."""
    command = main.commands[words[1]]
    command.make_parser(click.Context(command)).parse_args(words[2:])
    for word in words:
        if word.startswith("postgresql"):
            try:
                assert isinstance(parse_database(word), Server)
            except UserError as e:
                pytest.fail(f"{word}: {e}")


def test_the_commands_are_found() -> None:
    assert sum(words[1] == "run" for words in commands()) >= 3
