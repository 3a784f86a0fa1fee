"""The language model of the server double, for requests that ask for token ids or probabilities.

The likeliest next token follows from the last four, so a wrong token leads elsewhere, as in a real
model. At one of ten places two tokens are about equally likely, and a launch takes the other one
half of the time, as rounding does: launches with another n or batch budget take others, the same
ones each time. Where a synthetic acceptance is given, half of the accepted first drafts are wrong.

Environment of the double, all for launches that draft (n > 0) only:

    DOUBLE_WRONG    share of the tokens that are wrong
    DOUBLE_LOOPS    1: answers end in a loop

and for all launches:

    DOUBLE_SCORES   what is wrong with probabilities: `none` (there are none), `short`, `nan`, or
                    `die` (the server ends)
"""

from __future__ import annotations

import math
import os
import random
import zlib
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

_VOCABULARY = 900
_TIE = 0.002  # nats between two tokens that are about equally likely
_BEST, _SECOND, _OTHER = math.log(0.9), math.log(0.09), -12.0
_END = 2  # the end-of-text token


def prompt_ids(source: object, raw: bytes) -> list[int]:
    """Return the token ids of a prompt: its own ones, or one for each four bytes of its text."""
    if isinstance(source, list) and source and isinstance(source[0], int):
        return source
    return [1, *raw[::4]]


def likely(before: Sequence[int]) -> dict[int, float]:
    """Return the two likeliest next tokens with their log-probabilities, the best one first."""
    mark = zlib.crc32(array("i", before[-4:]).tobytes())
    best, second = 100 + mark % _VOCABULARY, 100 + (mark + 7) % _VOCABULARY
    if mark // _VOCABULARY % 10 == 0:
        return {best: math.log(0.5), second: math.log(0.5) - _TIE}
    return {best: _BEST, second: _SECOND}


def write(
    prompt: Sequence[int],
    count: int,
    request: Mapping[str, Any],
    env: Mapping[str, str],
    launch: str,
    *,
    drafts: bool,
    ended: bool,
) -> list[int]:
    """Return the token ids of an answer.

    Args:
        prompt: Token ids of the prompt.
        count: Number of tokens of the answer.
        request: The body of the request.
        env: The double's environment.
        launch: Settings of the launch, by which it rounds.
        drafts: Whether the server drafts.
        ended: Whether the answer ends with the end-of-text token.
    """
    draw = random.Random(request.get("seed", 0)) if request.get("temperature") else None
    rounding = random.Random(f"{launch} {prompt}")
    wrong = float(env.get("DOUBLE_WRONG", "0")) if drafts else 0.0
    ids = list(prompt)
    for _ in range(count):
        (best, a), (second, b) = likely(ids).items()
        if draw is not None:
            token = best if draw.random() < math.exp(a) / (math.exp(a) + math.exp(b)) else second
        else:
            tied = a - b < 2 * _TIE
            token = second if tied and rounding.random() < 0.5 else best
        if rounding.random() < wrong:
            token = 1000 + rounding.randrange(50)
        ids.append(token)
    out = ids[len(prompt) :]
    if drafts and env.get("DOUBLE_LOOPS") == "1" and len(out) > 4:
        out[4:] = [out[3]] * len(out[4:])
    if ended and out:
        out[-1] = _END
    return out


def score(ids: Sequence[int], env: Mapping[str, str]) -> list[dict[str, Any] | None] | None:
    """Return ``prompt_logprobs`` of a prompt: each token's, and the likeliest one's.

    Args:
        ids: Token ids of the prompt.
        env: The double's environment.
    """
    match env.get("DOUBLE_SCORES"):
        case "none":
            return None
        case "short":
            return [None]
        case "nan":
            return [None, *({str(x): {"logprob": math.nan}} for x in ids[1:])]
        case "die":
            os._exit(1)
    out: list[dict[str, Any] | None] = [None]
    for i in range(1, len(ids)):
        known = likely(ids[:i])
        best = max(known, key=lambda token: known[token])
        if ids[i] == _END:  # the end is likely wherever it comes
            known, best = {_END: _BEST}, _END
        found = {best: known[best], ids[i]: known.get(ids[i], _OTHER)}
        out.append({str(k): {"logprob": v, "rank": 1 + (k != best)} for k, v in found.items()})
    return out
