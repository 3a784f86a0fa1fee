"""What a launch adds to the words that start a server in a container: environment, network, host.

The server binds a port of autotune's. In the network of the host it binds 127.0.0.1, as without a
container. In another network it binds every address in there, and the port is published on the
host's 127.0.0.1 only. Variables are given by name (``-e NAME``), so no value is in a command line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autotune.errors import UserError
from autotune.study.containers import Container, normalized, parse
from autotune.study.programs import program_name

# Variables of the engine's client, which are not the server's.
ENGINE_VARIABLES = frozenset(
    {
        "CONTAINERD_ADDRESS",
        "CONTAINERD_NAMESPACE",
        "CONTAINERS_CONF",
        "CONTAINERS_STORAGE_CONF",
        "CONTAINER_CONNECTION",
        "CONTAINER_HOST",
        "DOCKER_CONFIG",
        "DOCKER_CONTEXT",
        "DOCKER_HOST",
        "HOME",
        "NERDCTL_TOML",
        "PATH",
        "XDG_RUNTIME_DIR",
    }
)
LOOPBACK = "127.0.0.1"
# Variables that autotune sets, but for a user's environment that has them.
_FROM_OUTSIDE = ("HF_HUB_DISABLE_TELEMETRY", "VLLM_HOST_IP", "VLLM_NO_USAGE_STATS")


@dataclass(frozen=True)
class Placed:
    """A command that is ready for a port.

    Attributes:
        argv: Program and arguments, without host and port of vLLM.
        host: Address that the server binds.
        env: Variables that the program needs on top.
    """

    argv: tuple[str, ...]
    host: str
    env: Mapping[str, str]


def own_variables(env: Mapping[str, str], added: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a server in a container must have.

    Args:
        env: Environment of the launch.
        added: The part of it that study and autotune added.
    """
    outside = {k: env[k] for k in _FROM_OUTSIDE if k in env}
    return {**outside, **added}


def placed(argv: Sequence[str], *, port: int, env: Mapping[str, str]) -> Placed:
    """Return a command with what a container needs; any other command as it is.

    Args:
        argv: Program and arguments, without host and port of vLLM.
        port: Port that the server binds, on this machine as in the container.
        env: Variables that the server must have.

    Raises:
        UserError: the command starts a container that autotune cannot own.
    """
    try:
        container = parse(argv)
        if container is None:
            return Placed(tuple(argv), LOOPBACK, {})
        if container.kind == "process":
            words = (*container.head, *_arguments(container))
            return Placed(words, LOOPBACK, _through_cleaned(container, env))
        owned = normalized(container)
        container = parse((*owned.command, *owned.arguments))
    except UserError as e:
        raise UserError(f"server.command: {e}") from None
    assert container is not None  # noqa: S101 – it was one before it was written anew
    names = [n for n in sorted(env) if n not in ENGINE_VARIABLES and n not in container.env]
    options = [word for name in names for word in ("-e", name)]
    host = LOOPBACK
    if container.network != "host":
        options += ["-p", f"{LOOPBACK}:{port}:{port}"]
        host = "0.0.0.0"  # noqa: S104 – in the container; the host publishes it on its loopback
    run = _kept_by_sudo(container.run, names)
    rest = container.head[len(container.run) :]
    return Placed((*run, *options, *rest, *_arguments(container)), host, {})


def _arguments(container: Container) -> tuple[str, ...]:
    """Return the arguments of vLLM; after ``vllm serve`` the model comes without a flag."""
    words = container.arguments
    return words[1:] if container.console and words[:1] == ("--model",) else words


def _kept_by_sudo(words: tuple[str, ...], names: Sequence[str]) -> tuple[str, ...]:
    """Return words in which ``sudo`` asks for no password and keeps some variables."""
    at = next((i for i, w in enumerate(words) if program_name(w) == "sudo"), None)
    if at is None:
        return words
    kept = f"--preserve-env={','.join(names)}"
    return (*words[: at + 1], "-n", kept, *words[at + 1 :])


def _through_cleaned(container: Container, env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables by which Apptainer or Singularity gets an environment it would clean."""
    if not container.has("cleanenv", "containall"):
        return {}
    prefix = "SINGULARITYENV_" if container.program == "singularity" else "APPTAINERENV_"
    return {f"{prefix}{k}": v for k, v in env.items() if k not in ENGINE_VARIABLES}
