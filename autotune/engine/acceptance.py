"""vLLM's report of each request's accepted drafts: when a launch asks for it.

``--per-request-spec-decode-metrics`` exists since 0.29 (``vllm/config/observability.py``). vLLM
then adds ``metrics.speculative_decoding`` to the last chunk of a stream, the one with the usage
(``entrypoints/openai/chat_completion/serving.py``, ``completion/serving.py``); ``detailed`` adds
two numbers for each verification step to the ``summary``. Without a draft vLLM refuses to start
with it (``config/vllm.py:__post_init__``), so no launch at n = 0 has it, whoever wrote it.
"""

from __future__ import annotations

from collections.abc import Iterable

from autotune.engine.probe import VllmInfo
from autotune.study.owned import ACCEPTANCE
from autotune.study.schema import ServerSpec
from autotune.study.space import N, Point, as_int
from autotune.study.words import argument_of, is_meant

ACCEPTANCE_OPTION = "--per-request-spec-decode-metrics"
DETAILED = "detailed"


def drafted(server: ServerSpec, point: Point) -> int:
    """Return n of a launch; 0: it has no speculation."""
    return as_int(server.draft_settings(point).get(N)) or 0


def asks_acceptance(server: ServerSpec, point: Point, info: VllmInfo) -> bool:
    """Return whether autotune adds the flag to a launch.

    It does where the launch drafts, this vLLM lists the flag, and the study does not set it. A vLLM
    that cannot be asked, as in a container, might not have it.

    Args:
        server: The study's server.
        point: Searched values.
        info: Answer of :func:`autotune.engine.probe.probe` for this server.
    """
    if drafted(server, point) == 0 or ACCEPTANCE in server.settings(point):
        return False
    if any(_names(word) for word in server.command or ()):
        return False
    allowed = (info.options or {}).get(ACCEPTANCE, ())
    return allowed is None or DETAILED in allowed


def without_acceptance(command: Iterable[str]) -> tuple[str, ...]:
    """Return the words of ``server.command`` without the flag and its value."""
    out: list[str] = []
    skip = False
    for word in command:
        if skip and not word.startswith("-"):
            skip = False
            continue
        skip = _names(word) and "=" not in word
        if not _names(word):
            out.append(word)
    return tuple(out)


def _names(word: str) -> bool:
    """Return whether a word of a command is the flag, alone or with its value."""
    found = argument_of(word, short=False)
    return found is not None and is_meant(found, ACCEPTANCE)
