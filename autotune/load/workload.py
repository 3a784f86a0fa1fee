"""Prompts and arrival times, all from the study's seed: every trial sends the same requests.

Prompts, their order and the arrival times come from independent random streams (NumPy's
``SeedSequence.spawn``), and each stream is only ever read from its beginning. So more prompts, or
another warm-up, leave the requests that were there as they were.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from autotune.errors import UserError, one_line
from autotune.spec import RandomPrompts, WorkloadSpec


@dataclass(frozen=True, slots=True)
class Request:
    """One request; exactly one of ``prompt`` and ``messages`` is set.

    Attributes:
        index: Place among the requests of its phase, from 0.
        prompt: Text or token ids, for ``/v1/completions``.
        messages: A chat, for ``/v1/chat/completions``.
    """

    index: int
    prompt: str | list[int] | None
    messages: list[dict[str, Any]] | None


@dataclass(frozen=True)
class Workload:
    """All requests of a trial.

    Attributes:
        warmup: Requests sent before the measurement until the server is warm; no prompt of them is
            measured.
        measured: Requests of the measurement, in the order in which they are sent.
        arrivals: Intended start of each measured request, in seconds from the first one's;
            all 0.0 without a request rate.
    """

    warmup: tuple[Request, ...]
    measured: tuple[Request, ...]
    arrivals: tuple[float, ...]


def build_workload(spec: WorkloadSpec, base: Path) -> Workload:
    """The requests of a study.

    Args:
        spec: The study's ``workload``.
        base: Folder that ``workload.prompts`` is relative to.

    Raises:
        UserError: the prompts cannot be read, are wrong, repeated or too few; names file, line
            and key.
    """
    seeds = np.random.SeedSequence(spec.seed).spawn(4)
    order, measured_ids, warmup_ids, gaps = (np.random.default_rng(s) for s in seeds)
    if spec.prompts is not None:
        pool = _read_prompts(base / spec.prompts)
        wanted = spec.num_prompts + spec.most_warmup
        if len(pool) < wanted:
            raise UserError(
                f"{one_line(str(base / spec.prompts))} has {len(pool)} prompts, the study needs "
                f"{wanted} ({spec.num_prompts} measured + up to {spec.most_warmup} warm-up)"
            )
        shuffled = [pool[i] for i in order.permutation(len(pool))]
        measured = shuffled[: spec.num_prompts]
        # from the other end, so that neither number moves the other's prompts
        warmup = shuffled[::-1][: spec.most_warmup]
    else:
        assert spec.random is not None  # noqa: S101 – WorkloadSpec has exactly one of the two
        seen: set[bytes] = set()
        measured = _random_prompts(measured_ids, spec.random, spec.num_prompts, seen)
        warmup = _random_prompts(warmup_ids, spec.random, spec.most_warmup, seen)
    return Workload(
        warmup=tuple(Request(i, *prompt) for i, prompt in enumerate(warmup)),
        measured=tuple(Request(i, *prompt) for i, prompt in enumerate(measured)),
        arrivals=_arrivals(gaps, spec),
    )


_Prompt = tuple[str | list[int] | None, list[dict[str, Any]] | None]  # (prompt, messages)


def _arrivals(rng: np.random.Generator, spec: WorkloadSpec) -> tuple[float, ...]:
    """Intended starts, the first at 0; the gaps' mean is 1/rate.

    Poisson: exponential gaps. Constant: all gaps are the same.
    """
    n, gap = spec.num_prompts, 1 / spec.request_rate  # 0 for an infinite rate
    if spec.arrivals == "constant" or gap == 0:
        return tuple((np.arange(n) * gap).tolist())
    return (0.0, *np.cumsum(rng.exponential(gap, n - 1)).tolist())


def _random_prompts(
    rng: np.random.Generator, spec: RandomPrompts, n: int, seen: set[bytes]
) -> list[_Prompt]:
    """``n`` prompts that differ from each other and from those already in ``seen``."""
    if why := spec.why_not(len(seen) + n):
        raise UserError(f"workload.random: {why}")
    prompts: list[_Prompt] = []
    while len(prompts) < n:
        ids = rng.integers(spec.vocab_low, spec.vocab_high, spec.input_len)
        if (key := ids.tobytes()) not in seen:
            seen.add(key)
            prompts.append((ids.tolist(), None))
    return prompts


def _read_prompts(path: Path) -> list[_Prompt]:
    shown = one_line(str(path))
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as e:
        raise UserError(f"{shown}: workload.prompts cannot be read: {e.strerror}") from e
    lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")  # Windows' editors mark UTF-8 so
    prompts: list[_Prompt] = []
    first_line: dict[bytes, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{shown}, line {number}"
        try:
            prompt = _parse_prompt(orjson.loads(line))
        except orjson.JSONDecodeError as e:
            raise UserError(f"{where}: is not JSON: {e.msg}") from e
        except ValueError as e:
            raise UserError(f"{where}: {e}") from e
        try:
            same = first_line.setdefault(orjson.dumps(prompt), number)
        except TypeError as e:  # it reads more levels than it writes
            raise UserError(f"{where}: messages: are nested too deeply") from e
        if same != number:
            raise UserError(
                f"{where}: is the same prompt as line {same}; a repeated prompt would be answered "
                "from the prefix cache"
            )
        prompts.append(prompt)
    return prompts


def _parse_prompt(row: object) -> _Prompt:
    """One line of the file; a ValueError says what is wrong, beginning with the key."""
    if not isinstance(row, dict):
        raise ValueError("must be an object with `messages` or `prompt`")
    if ("messages" in row) == ("prompt" in row):
        raise ValueError("needs exactly one of `messages` and `prompt`")
    if "prompt" in row:
        prompt = row["prompt"]
        if not isinstance(prompt, str) or not prompt:
            raise ValueError("prompt: must be a text that is not empty")
        return prompt, None
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages: must be a list that is not empty")
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            raise ValueError(f"messages[{i}]: must be an object with `role` and `content`")
        if not isinstance(message.get("role"), str):
            raise ValueError(f"messages[{i}].role: must be a text such as user")
        if not isinstance(message.get("content"), str | list):
            raise ValueError(f"messages[{i}].content: must be a text, or a list of parts")
    return None, messages
