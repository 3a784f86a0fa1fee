"""Words of a command line as vLLM's parser reads them: which of them name a flag, and which one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from autotune.errors import UserError
from autotune.study.containers import parse
from autotune.study.programs import start_end

# vLLM's short flags (0.24 to 0.33), by the argument that they set.
SHORT: Mapping[str, str] = {
    "-ac": "attention_config",
    "-asc": "api_server_count",
    "-cc": "compilation_config",
    "-dc": "diffusion_config",
    "-dcp": "decode_context_parallel_size",
    "-dp": "data_parallel_size",
    "-dpa": "data_parallel_address",
    "-dpb": "data_parallel_backend",
    "-dpe": "data_parallel_external_lb",
    "-dph": "data_parallel_hybrid_lb",
    "-dpl": "data_parallel_size_local",
    "-dpm": "data_parallel_multi_port_external_lb",
    "-dpn": "data_parallel_rank",
    "-dpp": "data_parallel_rpc_port",
    "-dpr": "data_parallel_start_rank",
    "-ep": "enable_expert_parallel",
    "-n": "nnodes",
    "-O": "optimization_level",
    "-pcp": "prefill_context_parallel_size",
    "-pp": "pipeline_parallel_size",
    "-q": "quantization",
    "-r": "node_rank",
    "-sc": "speculative_config",
    "-tp": "tensor_parallel_size",
}
# A shorter beginning is never unique among vLLM's flags.
_SHORTEST = 4


def argument_of(word: str, *, short: bool) -> str | None:
    """Return the argument that a word of a command line sets, without what follows a dot.

    >>> argument_of("--Spec-Tokens=7", short=False), argument_of("-sc.method", short=True)
    ('Spec_Tokens', 'speculative_config')

    Args:
        word: The word.
        short: Whether vLLM's short flags are read, which mean something else before vLLM's words.

    Returns:
        The name with underscores; None: the word is no flag.
    """
    head = re.split(r"[=.]", word, maxsplit=1)[0]
    if word.startswith("--"):
        return head[2:].replace("-", "_") or None
    return SHORT.get(head) if short else None


def is_meant(found: str, name: str) -> bool:
    """Return whether vLLM's parser may take a flag for another one whose beginning it is."""
    return found == name or (len(found) >= _SHORTEST and name.startswith(found))


def own_words(command: Sequence[str]) -> tuple[tuple[str, ...], bool]:
    """Return the words of a command that vLLM reads, as far as the command tells where they begin.

    Args:
        command: Value of ``server.command``.

    Returns:
        The words after ``vllm serve``, after the module or after a container's image, and True.
        Where the command shows none of them, all words after the program, and False.
    """
    with suppress(UserError):  # said where the command is taken apart to be started
        if (container := parse(command)) is not None:
            return container.arguments, True
    words = [part for word in command for part in _split(word)]
    if end := start_end(words):
        return tuple(words[end:]), True
    return tuple(words[1:]), False


def _split(word: str) -> Iterator[str]:
    """Yield the words of a shell's text, as of ``bash -c 'vllm serve'``; another word is one."""
    if " " not in word or "vllm" not in word:
        yield word
        return
    try:
        yield from shlex.split(word)
    except ValueError:
        yield word
