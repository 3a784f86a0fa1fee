"""Take apart the words that start a server in a container, and write them for an owned server.

Nothing runs here. An unknown option is refused, because nobody could tell the image from its value;
:mod:`autotune.study.container_options` has those that are known.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from autotune.errors import UserError
from autotune.study import container_options
from autotune.study.programs import ASSIGNMENT, SHELLS, program_name, start_end
from autotune.study.secrets import is_secret
from autotune.study.wrappers import unwrap

_RUNNERS = ("docker", "podman", "nerdctl", "nvidia-docker")
_COMPOSE = ("docker-compose", "podman-compose")
_HOST_ENGINES = ("apptainer", "singularity")  # their container is a child process like any other
_UNSUPPORTED = {
    "enroot": "enroot",
    "srun": "Slurm's srun",
    "kubectl": "kubectl",
    "oc": "oc",
}
_BINDING = ("numactl", "taskset")  # of the engine's client, which is not the server's parent

# Options that an owned container cannot have, and why.
_DROPPED = {
    "detach": "autotune watches the server in the foreground",
    "interactive": "there is no terminal",
    "tty": "there is no terminal",
    "no-TTY": "there is no terminal",
    "attach": "autotune reads the whole output",
    "detach-keys": "there is no terminal",
    "sig-proxy": "the end of the container is autotune's",
    "name": "each launch has a name of its own",
    "replace": "each launch has a name of its own",
    "cidfile": "each launch has a file of its own",
    "restart": "a server that ends is a result",
    "rm": "",  # written again, always
    "rmi": "the next launch needs the image",
    "publish": "each launch has a free port of its own",
    "publish-all": "each launch has a free port of its own",
    "service-ports": "each launch has a free port of its own",
}
# Those without which a command of an older study still serves the same: they are left out.
_HARMLESS = {"interactive", "no-TTY", "attach", "detach-keys", "sig-proxy", "name", "replace",
             "cidfile", "rm", "rmi"}  # fmt: skip
# Options that have no sense, or are refused, in the network of the host.
_NEEDS_NETWORK = {"ip", "ip6", "link", "link-local-ip", "mac-address", "network-alias"}
_PATHS = {"volume", "mount", "env-file", "env-from-file", "bind", "label-file"}


@dataclass(frozen=True)
class Option:
    """One option of a container's start.

    Attributes:
        name: Name without dashes, in its long form (``publish`` for ``-p``).
        value: Its value; None for a switch.
        words: The words as they were written.
    """

    name: str
    value: str | None
    words: tuple[str, ...]

    @property
    def on(self) -> bool:
        """Whether a switch is on; ``--rm=false`` is not."""
        return self.value is None or self.value.lower() not in {"false", "0", "f"}


@dataclass(frozen=True)
class Container:
    """Words that start a server in a container, taken apart.

    Attributes:
        kind: ``run`` for an engine with a container of its own (docker, podman, nerdctl),
            ``compose`` for a service of Compose, ``process`` for Apptainer and Singularity, whose
            container is a child process.
        engine: Words that call the engine for anything else, such as ``docker ps``, with its own
            options: ``("sudo", "docker", "--context", "gpu")``.
        run: Words up to the options of ``run``: the engine and its command.
        options: Options of ``run``.
        image: The image; the service for Compose.
        start: Words after the image that start vLLM, such as ``vllm serve``; empty if the image
            does that.
        arguments: The model and the flags of vLLM.
    """

    kind: str
    engine: tuple[str, ...]
    run: tuple[str, ...]
    options: tuple[Option, ...]
    image: str
    start: tuple[str, ...]
    arguments: tuple[str, ...]

    @property
    def program(self) -> str:
        """Name of the engine's program."""
        words = [program_name(w) for w in self.engine]
        return next((w for w in words if w in (*_RUNNERS, *_COMPOSE, *_HOST_ENGINES)), words[-1])

    @property
    def console(self) -> bool:
        """Whether it is written as ``vllm serve``, which takes the model without a flag."""
        return self.start[-1:] == ("serve",)

    @property
    def network(self) -> str | None:
        """Network of the container, as written; None: not said."""
        return self.last("network")

    @property
    def head(self) -> tuple[str, ...]:
        """Every word before the model: what ``server.command`` is."""
        options = tuple(word for o in self.options for word in o.words)
        return (*self.run, *options, self.image, *self.start)

    @property
    def env(self) -> dict[str, str | None]:
        """Variables given with ``-e``; None: the value comes from the caller's environment."""
        found: dict[str, str | None] = {}
        for o in self.options:
            if o.name == "env" and o.value is not None:
                name, equals, value = o.value.partition("=")
                found[name] = value if equals else None
        return found

    def last(self, name: str) -> str | None:
        """Return the value of the last option with a name; None: there is none."""
        return next((o.value for o in reversed(self.options) if o.name == name), None)

    def has(self, *names: str) -> bool:
        """Return whether an option with one of some names is given, and not switched off."""
        return any(o.name in names and (o.value is not None or o.on) for o in self.options)


@dataclass(frozen=True)
class OwnedCommand:
    """A container's start as an owned server has it.

    Attributes:
        command: Words for ``server.command``: up to the image, and those that start vLLM.
        arguments: The model and the flags of vLLM.
        notes: Sentences that say what was changed, and what is to be done.
    """

    command: tuple[str, ...]
    arguments: tuple[str, ...]
    notes: tuple[str, ...]


def is_container(words: Sequence[str]) -> bool:
    """Return whether a command calls a container engine, supported or not."""
    return _engine_at(words) is not None


def parse(words: Sequence[str]) -> Container | None:
    """Take apart a command that starts a container.

    Args:
        words: Its words; ``sudo``, ``env`` and the like may come first.

    Returns:
        None if it is no call of a container engine.

    Raises:
        UserError: it is a call that cannot be an owned server, or one that cannot be understood.
    """
    at = _engine_at(words)
    if at is None:
        return None
    name = program_name(words[at])
    shown = shlex.join(words[at : at + 2])
    if name in _UNSUPPORTED:
        raise UserError(
            f"{_UNSUPPORTED[name]} is not supported: its container is not a child of autotune. Run "
            "autotune inside the allocation or pod, with `vllm serve` as server.command"
        )
    bound = next((w for w in map(program_name, words[:at]) if w in _BINDING), None)
    if bound is not None and "podman" not in name and name not in _HOST_ENGINES:
        raise UserError(
            f"{bound} binds {name}'s client, not the container: write --cpuset-cpus and "
            f"--cpuset-mems after `{name} run`"
        )
    verb = _verb_at(words, at + 1, name)
    _refuse_remote(words[at:verb])
    what = tuple(words[verb : verb + 1])
    if name in _HOST_ENGINES:
        if what not in {("exec",), ("run",)}:
            raise UserError(f"`{shown} …` starts no server here: write `{name} run` or `exec`")
        return _taken_apart("process", words, (words[: at + 1], verb + 1))
    if name in _COMPOSE or what == ("compose",):
        start = verb if name in _COMPOSE else _verb_at(words, verb + 1, "compose")
        if tuple(words[start : start + 1]) != ("run",):
            raise UserError(
                f"`{shown} …`: of Compose, only `compose run SERVICE` is one server; write that, "
                "or the `docker run` that it stands for"
            )
        engine = [*words[:at], "docker" if "docker" in name else "podman"]
        return _taken_apart(
            "compose", words, (engine if name in _COMPOSE else words[:verb], start + 1)
        )
    end = verb
    if what == ("container",):
        end += 1
    if tuple(words[end : end + 1]) != ("run",):
        given = shlex.join(words[at : end + 1])
        raise UserError(
            f"`{given} …` is no server that autotune can own: write `{name} run … IMAGE`"
        )
    return _taken_apart("run", words, (words[:verb], end + 1))


def _engine_at(words: Sequence[str]) -> int | None:
    """Return the position of the engine's program, after words such as ``sudo -E``."""
    known = {*_RUNNERS, *_COMPOSE, *_HOST_ENGINES, *_UNSUPPORTED}
    at = 0
    while at < len(words):
        if program_name(words[at]) in known:
            return at
        if ASSIGNMENT.match(words[at]):
            at += 1
            continue
        try:
            wrapped = unwrap(words[at:])
        except UserError:  # said where the wrapper is taken off
            return None
        if wrapped is None:
            return None
        at += len(wrapped.words)
    return None


def _verb_at(words: Sequence[str], i: int, engine: str) -> int:
    """Return the position of the engine's command, after the engine's own options."""
    while i < len(words) and words[i].startswith("-"):
        name, equals, _ = words[i].lstrip("-").partition("=")
        long = words[i].startswith("--")
        takes = (
            name in container_options.GLOBAL_VALUES
            if long
            else name in container_options.GLOBAL_SHORT
        )
        if engine in _HOST_ENGINES:
            takes = name in {"config", "c"}
        i += 2 if takes and not equals else 1
    return i


def _refuse_remote(engine: Sequence[str]) -> None:
    """Refuse an engine of another machine.

    Raises:
        UserError: the engine's own options name one.
    """
    for word in engine[1:]:
        if re.match(r"(-H=?|--\w+=)?(tcp|ssh)://", word) or word in {"--remote", "-r"}:
            raise UserError(
                f"{word:.60}: a container of another machine cannot be measured; run autotune there"
            )


def _taken_apart(kind: str, words: Sequence[str], split: tuple[Sequence[str], int]) -> Container:
    """Take apart what follows ``run``.

    Args:
        kind: Kind of the container.
        words: All words.
        split: Words that call the engine, and the position of the first option.
    """
    engine, begin = split
    options, i = _options(kind, words, begin)
    if i >= len(words):
        what = "service" if kind == "compose" else "image"
        raise UserError(f"`{shlex.join(words[:begin])} …` names no {what}")
    container = Container(
        kind, tuple(engine), tuple(words[:begin]), tuple(options), words[i], (), ()
    )
    return _split_start(container, tuple(words[i + 1 :]))


def _tables(kind: str) -> tuple[frozenset[str], frozenset[str], dict[str, str]]:
    """Return switches, options with a value, and short names of a kind."""
    return {
        "run": (container_options.SWITCHES, container_options.VALUES, container_options.SHORT),
        "compose": (
            container_options.COMPOSE_SWITCHES,
            container_options.COMPOSE_VALUES,
            container_options.COMPOSE_SHORT,
        ),
        "process": (
            container_options.APPTAINER_SWITCHES,
            container_options.APPTAINER_VALUES,
            container_options.APPTAINER_SHORT,
        ),
    }[kind]


def _options(kind: str, words: Sequence[str], i: int) -> tuple[list[Option], int]:
    """Return the options of ``run`` and the position of the word after them."""
    switches, values, _ = _tables(kind)
    found: list[Option] = []
    while i < len(words) and words[i].startswith("-") and words[i] != "-":
        if words[i] == "--":
            return found, i + 1
        if not words[i].startswith("--"):
            i = _short(kind, words, i, found)
            continue
        name, equals, value = words[i][2:].partition("=")
        long = {"net": "network", "net-alias": "network-alias"}.get(name, name)
        if name == "help":
            raise UserError("--help starts no server")
        if equals or name in switches:
            found.append(Option(long, value if equals else None, (words[i],)))
        elif name in values:
            found.append(Option(long, _value_at(words, i), (words[i], words[i + 1])))
            i += 1
        else:
            raise UserError(
                f"--{name:.60}: is not known as an option of the container's start: with a value "
                f"write --{name:.60}=VALUE; options of vLLM come after the image"
            )
        i += 1
    return found, i


def _short(kind: str, words: Sequence[str], i: int, found: list[Option]) -> int:
    """Take in one word of short options, such as ``-itd`` or ``-p8000:8000``; return what follows.

    Raises:
        UserError: one of them is unknown.
    """
    switches, _, short = _tables(kind)
    rest = words[i][1:]
    while rest:
        letter, rest = rest[0], rest[1:]
        name = short.get(letter)
        if name is None:
            raise UserError(f"-{letter}: is not known as an option of the container's start")
        if name in switches:
            found.append(Option(name, None, (f"-{letter}",)))
            continue
        if rest:
            value = rest.removeprefix("=")
            found.append(Option(name, value, (f"-{letter}", value)))
            return i + 1
        found.append(Option(name, _value_at(words, i), (f"-{letter}", words[i + 1])))
        return i + 2
    return i + 1


def _value_at(words: Sequence[str], i: int) -> str:
    if i + 1 >= len(words):
        raise UserError(f"{words[i]:.60}: its value is missing, and so is the image")
    return words[i + 1]


def _split_start(container: Container, words: tuple[str, ...]) -> Container:
    """Split the words after the image into those that start vLLM and its arguments."""
    entry = program_name(container.last("entrypoint") or "")
    if entry in SHELLS or (words and program_name(words[0]) in SHELLS):
        return _from_shell(container, words if entry in SHELLS else words[1:])
    end = 0
    module = words[:1] == ("-m",) and entry.startswith("python")
    if words[:1] == ("serve",):
        end = 1
    elif module or (words and not words[0].startswith("-")):
        end = _program_end(words)
    return replace(container, start=words[:end], arguments=words[end:])


def _program_end(words: Sequence[str]) -> int:
    """Return the number of words that start vLLM; 0: the image does."""
    return start_end([*takewhile(lambda word: not word.startswith("--"), words)])


def _from_shell(container: Container, words: tuple[str, ...]) -> Container:
    """Take a container whose program is a shell with one plain command.

    Raises:
        UserError: the shell has more to do, so autotune's flags would not reach vLLM.
    """
    options = [o for o in container.options if o.name != "entrypoint"]
    script = words[1] if len(words) == 2 and re.fullmatch(r"-l?c", words[0]) else ""
    try:
        inner = shlex.split(script)
    except ValueError:
        inner = []
    if inner[:1] == ["exec"]:
        inner = inner[1:]
    end = _program_end(inner)
    if not end or re.search(r"[;&|<>`$\n]", script) or "serve" not in inner[:end]:
        raise UserError(
            "the container runs a shell, and autotune's flags would not reach vLLM: write "
            "`--entrypoint vllm IMAGE serve` and what the shell does as -e NAME or in the image"
        )
    entry = Option("entrypoint", inner[0], ("--entrypoint", inner[0]))
    return replace(
        container,
        options=(*options, entry),
        start=tuple(inner[1:end]),
        arguments=tuple(inner[end:]),
    )


def normalized(container: Container) -> OwnedCommand:
    """Return the words with which autotune owns the server.

    For an engine with containers of its own, what a person needs (``-d``, ``-it``, ``--name``,
    ``--restart``, ``-p``) is left out, ``--rm`` is kept or added, and ``--network host`` takes the
    place of published ports unless the command names another network. Secrets are ``-e NAME``, and
    ``~`` and ``$HOME``, which no shell expands, are written out.

    Raises:
        UserError: the command has a network in which the server cannot be reached.
    """
    notes: list[str] = []
    if container.kind == "process":
        options = tuple(o for old in container.options for o in _written(old, notes, own=False))
        return OwnedCommand(
            replace(container, options=options).head, container.arguments, tuple(notes)
        )
    _check_network(container)
    kept: list[Option] = []
    for old in container.options:
        if old.name not in _DROPPED:
            kept += _written(old, notes)
        elif _DROPPED[old.name]:
            notes.append(f"left out: {shlex.join(old.words)} ({_DROPPED[old.name]})")
    rm = Option("rm", None, ("--rm",))
    if not container.has("rm"):
        notes.append("added: --rm (nothing of a launch may stay behind)")
    if container.kind == "run" and _takes_host(container):
        kept.append(Option("network", "host", ("--network", "host")))
        notes.append("added: --network host (the server is asked on this machine's loopback)")
    if entry := _entry_note(container):
        notes.append(entry)
    head = replace(container, options=(rm, *kept)).head
    return OwnedCommand(head, container.arguments, tuple(notes))


def _check_network(container: Container) -> None:
    """Refuse networks in which no port can be published.

    Raises:
        UserError: the container has one.
    """
    network = container.network or ""
    if network == "none" or network.startswith("container:") or container.has("pod"):
        shown = "--pod" if container.has("pod") else f"--network {network}"
        raise UserError(
            f"{shown}: the server cannot be reached in there; write --network host, or a network "
            "of which a port can be published"
        )


def _takes_host(container: Container) -> bool:
    """Return whether ``--network host`` is to be added."""
    # `--sysctl net.…` is refused in the network of the host
    own = any(o.name == "sysctl" and (o.value or "").startswith("net.") for o in container.options)
    return container.network is None and not own and not container.has(*_NEEDS_NETWORK)


def _written(option: Option, notes: list[str], *, own: bool = True) -> Iterator[Option]:
    """Return an option as an owned server has it: without a secret, with its paths written out.

    Args:
        option: The option.
        notes: Sentences, to which what was changed is added.
        own: Whether the container has an environment of its own; if not, it has the caller's.
    """
    value = option.value
    if option.name == "label" and (value or "").startswith("autotune."):
        return
    if option.name == "env" and value is not None:
        name, equals, text = value.partition("=")
        if name == "VLLM_API_KEY":
            notes.append("left out: VLLM_API_KEY (autotune gives its servers one)")
            return
        same = text in {f"${name}", f"${{{name}}}"}
        if equals and (same or is_secret(name, text)):
            if not same:
                notes.append(f"left out: the value of {name} (set it in your environment)")
            if own:
                yield Option("env", name, ("-e", name))
            return
    if option.name in _PATHS and value is not None and (new := _path(value)) != value:
        words = (f"--{option.name}", new) if len(option.words) == 1 else (option.words[0], new)
        yield Option(option.name, new, words)
        return
    yield option


def _path(value: str) -> str:
    """Return a value with the caller's folders written out, as a shell would do."""
    value = re.sub(r"(^|(?<=[=:,]))~(?=/|$|:)", lambda _: str(Path.home()), value)
    value = re.sub(r"\$HOME\b|\$\{HOME\}", lambda _: str(Path.home()), value)
    return re.sub(r"\$PWD\b|\$\{PWD\}|\$\(pwd\)|`pwd`", lambda _: str(Path.cwd()), value)


def _entry_note(container: Container) -> str | None:
    """Return a sentence for an image whose entrypoint would read the start as its arguments."""
    official = re.search(r"(^|/)vllm/vllm-openai(-\w+)?(:|@|$)", container.image)
    if official and container.start and container.last("entrypoint") is None:
        return (
            f"{container.image} already starts `vllm serve`: with `{shlex.join(container.start)}` "
            f"after it, give --entrypoint, or leave these words out"
        )
    return None


def refusal(command: Sequence[str]) -> str | None:
    """Return why a study's command is no owned server, and what to write; None: it is one.

    Options that make no difference to an owned server, such as ``--name``, are no reason: a launch
    leaves them out.

    Args:
        command: Value of ``server.command``.
    """
    try:
        container = parse(command)
        if container is None:
            return None
        owned = normalized(container)
    except UserError as e:
        return str(e)
    if container.kind == "process":
        return None
    harmless = _HARMLESS | ({"publish", "publish-all"} if container.network == "host" else set())
    wrong = [
        shlex.join(o.words)
        for o in container.options
        if o.name in _DROPPED and o.name not in harmless and (o.value is not None or o.on)
    ]
    if not wrong:
        return None
    return (
        f"an owned container has no {', '.join(wrong)}, because autotune watches it, ends it and "
        f"gives it a free port; write `{shlex.join(owned.command)}`"
    )
