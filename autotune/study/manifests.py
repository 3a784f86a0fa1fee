"""Compose and Kubernetes files → the command that a service or container with vLLM runs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from autotune.errors import UserError
from autotune.study.shell import joined, marked, word_of
from autotune.study.yaml import load_all

_CONTAINER = re.compile(r"(?m)(?:^\s*(?:- )?|[{,]\s*)(?:command|args|image|entrypoint)\s*:")
_VARIABLE = re.compile(r"\$\(([A-Za-z_][\w.-]*)\)")


@dataclass
class Contained:
    """What a service of Compose, or a container of Kubernetes, runs.

    Attributes:
        name: Its name in the file.
        image: Its image.
        words: Words that it runs; without the image's own, where it keeps them.
        env: Variables that it sets.
        entry: Words in front of these, which replace the image's own.
        compose: Whether it is a service of Compose.
        options: Options of ``docker run`` that it stands for.
        notes: What was assumed or left out.
    """

    name: str
    image: str
    words: list[str]
    env: dict[str, str]
    entry: list[str] = field(default_factory=list)
    compose: bool = False
    options: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def engine_words(self) -> list[str]:
        """Return the ``docker run`` that a service of Compose stands for."""
        env = [w for k, v in self.env.items() for w in ("-e", f"{k}={v}")]
        entry = ["--entrypoint", self.entry[0]] if self.entry else []
        words = [*self.entry[1:], *self.words]
        return ["docker", "run", *self.options, *env, *entry, self.image, *words]


def is_manifest(text: str) -> bool:
    """Return whether a text is YAML of Compose or Kubernetes rather than a command."""
    first = next((s for line in text.splitlines() if (s := line.strip()) and s[0] != "#"), "")
    head = first == "---" or re.fullmatch(r"[\w.-]+:(\s.*)?|- .*", first) is not None
    return head and re.search(_CONTAINER, text) is not None


def contained(text: str) -> Contained:
    """Return the one container with vLLM in a Compose or Kubernetes file.

    Raises:
        UserError: the text is no YAML, or has no such container or several.
    """
    try:
        documents = [d for d in load_all(text) if d is not None]
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
        AttributeError,
        LookupError,
        TypeError,
    ) as e:
        why = getattr(e, "problem", None) or "it cannot be read"
        if "{{" in text:
            why = "it is a template; give what `helm template` makes of it"
        raise UserError(f"the text looks like a Compose or Kubernetes file, but: {why}") from e
    found = [c for d in documents for c in _containers(d, "", 0, pod=_is_pod(d)) if _has_vllm(c)]
    if not found:
        raise UserError("the Compose or Kubernetes file has no container that starts vLLM")
    if len(found) > 1:
        raise UserError(
            f"several containers start vLLM: {', '.join(c.name for c in found)}; give one of them"
        )
    return found[0]


def _is_pod(document: Any) -> bool:
    """Return whether a document is one of Kubernetes rather than of Compose."""
    return isinstance(document, dict) and not {"kind", "apiVersion"}.isdisjoint(document)


def _has_vllm(container: Contained) -> bool:
    if "vllm" in container.image.rpartition("/")[2] or "vllm" in container.image:
        return not container.words or container.words[0].startswith("-") or _says_vllm(container)
    return _says_vllm(container)


def _says_vllm(container: Contained) -> bool:
    words = " ".join([*container.entry, *container.words])
    return re.search(r"\bvllm serve\b|vllm\.entrypoints|--model\b|^serve ", words) is not None


def _containers(value: Any, name: str, depth: int, *, pod: bool) -> Iterator[Contained]:
    """Yield every mapping that looks like a container."""
    if depth > 30:
        return
    if isinstance(value, list):
        for item in value:
            yield from _containers(item, name, depth + 1, pod=pod)
    if not isinstance(value, dict):
        return
    keys = {"command", "args", "entrypoint", "image"} & value.keys()
    if keys and not isinstance(value.get("image"), dict | list):
        yield _container(value, str(value.get("name") or name or "container"), pod=pod)
        return
    for key, inner in value.items():
        if pod or depth or not str(key).startswith("x-"):  # Compose's keys for anchors
            yield from _containers(inner, str(key), depth + 1, pod=pod)


def _container(body: Mapping[str, Any], name: str, *, pod: bool) -> Contained:
    said: list[str] = []
    compose = not (pod or "args" in body or isinstance(body.get("env"), list))
    env = dict(_variables(body.get("environment") if compose else body.get("env"), said))

    def words(key: str) -> list[str]:
        value = body.get(key)
        if value is None:
            return []
        if isinstance(value, str) and compose:
            try:
                parts = shlex.split(value, comments=False)
            except ValueError as e:
                raise UserError(f"{name}.{key}: cannot be split into words: {e}") from e
            return [_interpolated(p, said) for p in parts]
        listed = value if isinstance(value, list) else [value]
        texts = [_scalar(v) for v in listed if not isinstance(v, dict | list)]
        if compose:
            return [_interpolated(t, said) for t in texts]
        return [_VARIABLE.sub(lambda m: env.get(m[1], marked(m[0])), t) for t in texts]

    if compose:
        entry, rest = words("entrypoint"), words("command")
    else:
        entry, rest = words("command"), words("args")
    image = _interpolated(str(body.get("image") or ""), said)
    return Contained(
        name=name,
        image=image,
        words=rest,
        env=env,
        entry=entry,
        compose=compose,
        options=_options(body, said) if compose else [],
        notes=list(dict.fromkeys(said)),
    )


# Keys of a service that a server under measure needs, as options of `docker run`.
_OPTIONS = {
    "ipc": "--ipc",
    "shm_size": "--shm-size",
    "runtime": "--runtime",
    "network_mode": "--network",
    "user": "--user",
    "working_dir": "--workdir",
    "privileged": "--privileged",
}
_LISTS = {
    "volumes": "-v",
    "devices": "--device",
    "group_add": "--group-add",
    "cap_add": "--cap-add",
    "security_opt": "--security-opt",
    "env_file": "--env-file",
}
_OF_NO_USE = {
    "image", "command", "entrypoint", "environment", "ports", "restart", "container_name", "deploy",
    "depends_on", "healthcheck", "networks", "logging", "expose", "labels", "hostname", "profiles",
    "stdin_open", "tty", "gpus", "ulimits", "init", "pull_policy", "stop_grace_period", "name",
}  # fmt: skip


def _options(body: Mapping[str, Any], said: list[str]) -> list[str]:
    """Return the options of ``docker run`` that a service stands for."""
    out: list[str] = []
    deploy = str(body.get("deploy") or "")
    if body.get("gpus") or "nvidia" in deploy or "gpu" in deploy:
        ids = re.search(r"'device_ids': \[([^\]]*)\]", deploy)
        devices = ",".join(re.findall(r"'([^']+)'", ids[1])) if ids else ""
        out += ["--gpus", f'"device={devices}"' if devices else "all"]
    for key, option in _OPTIONS.items():
        value = body.get(key)
        if value is True:
            out.append(option)
        elif value not in (None, False) and not isinstance(value, dict | list):
            out += [option, _interpolated(_scalar(value), said)]
    for key, option in _LISTS.items():
        value = body.get(key) or []
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str | int):
                out += [option, _interpolated(str(item), said)]
            else:
                said.append(
                    f"left out: an item of {key} that is a mapping; add it to server.command"
                )
    if isinstance(limits := body.get("ulimits"), dict):
        for key, value in limits.items():
            if isinstance(value, dict):
                value = f"{value.get('soft', -1)}:{value.get('hard', -1)}"
            out += ["--ulimit", f"{key}={value}"]
    given = body.get("environment")
    items = given.items() if isinstance(given, dict) else ()
    passed = [k for k, v in items if v is None]
    passed += (
        [v for v in given if isinstance(v, str) and "=" not in v] if isinstance(given, list) else []
    )
    out += [word for name in passed for word in ("-e", str(name))]  # from where Compose is called
    for key in body:
        if key not in {*_OPTIONS, *_LISTS, *_OF_NO_USE}:
            said.append(f"left out: {key!s:.40} (it has no counterpart here)")
    return out


def _scalar(value: Any) -> str:
    if value is True or value is False:
        return str(value).lower()
    return "" if value is None else str(value)


def _interpolated(text: str, said: list[str]) -> str:
    """Return a text of Compose with its variables, which stand where Compose was called."""
    halves = text.split("$$")
    return "$".join(joined(word_of(h), {}, said) if "$" in h else h for h in halves)


def _variables(value: Any, said: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the variables of a mapping, of ``NAME=value`` texts, or of name and value pairs."""
    if isinstance(value, dict):
        for k, v in value.items():
            if v is not None:
                yield str(k), _interpolated(_scalar(v), said)
        return
    for item in value if isinstance(value, list) else []:
        if isinstance(item, str):
            name, equals, text = item.partition("=")
            if equals:
                yield name, _interpolated(text, said)
        elif isinstance(item, dict) and "name" in item:
            if "value" in item:
                yield str(item["name"]), _scalar(item["value"])
            else:
                said.append(f"left out: {item['name']!s:.60} (set it in your environment)")
