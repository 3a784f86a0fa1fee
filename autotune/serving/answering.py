"""Who answers on a port, where it is not the launch's vLLM.

Other engines speak the same API, so a wrong one would be measured without an error. They name
themselves in the ``owned_by`` of ``/v1/models``, in the ``Server`` header, or by an endpoint that
only they have.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import httpx
import psutil

from autotune.engine.command import LaunchPlan
from autotune.engine.probe import VllmInfo
from autotune.errors import FailureKind, LaunchError
from autotune.serving.process_tree import processes_of

_ANSWER_S = 30.0  # for a server that is up to say what it is; a busy machine may need seconds

# owned_by of /v1/models, in lower case; vLLM says "vllm"
_OWNERS = {
    "sglang": "SGLang",
    "llamacpp": "llama.cpp",
    "lmdeploy": "LMDeploy",
    "tensorrt_llm": "TensorRT-LLM",
    "library": "Ollama",
    "tabbyapi": "TabbyAPI",
    "pygmalionai": "Aphrodite",
    "mlc-llm": "MLC LLM",
    "organization_owner": "LM Studio",
}
_HEADERS = {"llama.cpp": "llama.cpp", "ollama": "Ollama", "litellm": "LiteLLM"}
# an endpoint, a key of its JSON answer, and whose it is
_ENDPOINTS = (
    ("/get_model_info", "model_path", "SGLang"),
    ("/props", "default_generation_settings", "llama.cpp"),
    ("/info", "max_concurrent_requests", "TGI"),
    ("/api/tags", "models", "Ollama"),
)


@dataclass(frozen=True)
class Answer:
    """What a server says of itself.

    Attributes:
        models: Names of the models that it serves.
        engine: Engine that it is; None: vLLM, or nobody known.
        version: vLLM's version; None: it tells none.
        status: HTTP status of the answer to the question for the version.
    """

    models: tuple[str, ...]
    engine: str | None
    version: str | None
    status: int

    def why_another(self, served_name: str, version: str | None) -> str | None:
        """Return why it is not the server that was launched; None: it is.

        Args:
            served_name: Name of the model that it must serve.
            version: Version that it must have; None: any.
        """
        if self.engine is not None:
            return f"is {self.engine}, not vLLM"
        if served_name not in self.models:
            return f"serves {', '.join(self.models) or 'nothing'}, not {served_name}"
        if version is None or _same_version(self.version, version):
            return None
        if self.version is not None:
            return f"is vLLM {self.version}, not {version}"
        return (
            f"tells no version (GET /version gave HTTP {self.status}), and {version} was expected; "
            "a proxy in front must pass it on"
        )


def own_version(
    client: httpx.Client,
    plan: LaunchPlan,
    launch_id: str,
    info: VllmInfo,
    failure: Callable[[FailureKind, str], LaunchError],
) -> str | None:
    """Return the version of the server that answers; None: it tells none, and none was expected.

    Args:
        client: Asks it, with the launch's key.
        plan: Plan of the launch.
        launch_id: Launch id that the plan was made with.
        info: The study's vLLM, which the running server must agree with.
        failure: Returns the failure that the launch's log tells, or the given one.

    Raises:
        LaunchError: it is not the server of this launch.
    """
    if info.python is not None and not _owns_port(launch_id, plan.port):
        # a container's port belongs to its daemon; there the name of the model must do
        raise LaunchError(FailureKind.PORT, f"somebody else's server answers on port {plan.port}")
    try:
        models = client.get("/v1/models", timeout=_ANSWER_S).raise_for_status()
        version = client.get("/version", timeout=_ANSWER_S)
        answer = answer_of(models, version)
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as e:
        other = engine_behind(client)
        raise failure(
            FailureKind.WRONG_SERVER,
            f"what answers on port {plan.port} is no vLLM: {other or said(e)}",
        ) from e
    if (why := answer.why_another(plan.served_name, info.version)) is not None:
        raise LaunchError(FailureKind.WRONG_SERVER, f"the server on port {plan.port} {why}")
    return answer.version


def _owns_port(launch_id: str, port: int) -> bool:
    """Return whether a process of a launch listens on a port."""
    for process in processes_of(launch_id):
        with contextlib.suppress(psutil.Error):
            for c in process.net_connections(kind="tcp"):
                if c.status == psutil.CONN_LISTEN and c.laddr.port == port:
                    return True
    return False


def answer_of(models: httpx.Response, version: httpx.Response) -> Answer:
    """Return what a server says of itself.

    Args:
        models: Its answer at ``/v1/models``.
        version: Its answer at ``/version``.

    Raises:
        ValueError, KeyError, TypeError: they are not vLLM's.
    """
    cards = models.json()["data"]
    names = tuple(str(card["id"]) for card in cards)
    told = version.json()["version"] if version.status_code == 200 else None
    return Answer(
        names,
        engine_of(cards, models),
        None if told is None else str(told),
        version.status_code,
    )


def engine_of(cards: Sequence[Mapping[str, object]], response: httpx.Response) -> str | None:
    """Return the engine whose list of models that is; None: vLLM, or nobody known."""
    for card in cards:
        if (found := _OWNERS.get(str(card.get("owned_by")).lower())) is not None:
            return found
    server = response.headers.get("server", "").lower()
    return next((name for mark, name in _HEADERS.items() if mark in server), None)


def engine_behind(client: httpx.Client) -> str | None:
    """Return the engine that answers endpoints of its own; None: none that is known."""
    for path, key, name in _ENDPOINTS:
        with contextlib.suppress(httpx.HTTPError, ValueError):
            answer = client.get(path)
            if answer.status_code == 200 and key in answer.json():
                return name
    return None


def said(error: Exception) -> str:
    """Return in a few words what was wrong with an answer."""
    if not isinstance(error, httpx.HTTPStatusError):
        return f"{type(error).__name__}: {error}"[:200]
    code = error.response.status_code
    words = f"GET {error.request.url.path} gave HTTP {code}"
    if code in {401, 403}:
        words += " for the launch's own key"
    server = error.response.headers.get("server", "")
    return f"{words} (server {server})" if server else words


def _same_version(answered: object, expected: str) -> bool:
    """Compare versions without the local part, which metadata and server may give differently.

    For example, a server of ``0.26.0+cu129`` may answer ``0.26.0``.
    """
    return str(answered).partition("+")[0] == expected.partition("+")[0]
