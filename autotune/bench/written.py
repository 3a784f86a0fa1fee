"""An answer of a server, and how likely another one finds its tokens: plain values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Written:
    """One answer of a server.

    Attributes:
        index: Position of its request in the workload.
        prompt_ids: Token ids of the prompt, with the chat template.
        token_ids: Token ids of the answer; the last one may be the end-of-text token.
        text: Text of the answer.
        stop: Why it ended (``finish_reason``): ``stop``, ``length``, …
    """

    index: int
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    stop: str


@dataclass(frozen=True)
class Scored:
    """How likely another server finds the tokens of an answer.

    Attributes:
        logprobs: Log-probability of each token, natural; shorter than the answer where prompt and
            answer fill the model's context.
        best: Log-probability of the likeliest token in its place.
    """

    logprobs: tuple[float, ...]
    best: tuple[float, ...]
