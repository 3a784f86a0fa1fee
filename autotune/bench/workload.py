"""Prompts and arrival times, all from the study's seed: every trial sends the same requests.

Prompts, their order and the arrival times come from independent random streams (NumPy's
``SeedSequence.spawn``), each of which is read from its beginning. Therefore more prompts, or
another warm-up, do not change the other requests. A recorded log has its own order and times; only
the prompts of a trace without texts are drawn, each from a stream of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from autotune.bench.data_row import Entry
from autotune.bench.data_time import span_text
from autotune.bench.data_trace import Drawn
from autotune.bench.datasets import Conversations, Log, read_log, read_prompts, token_counter
from autotune.errors import UserError, one_line
from autotune.study.keys import MOST_TOKENS
from autotune.study.workload import RandomPrompts, ReplayPrompts, WorkloadSpec

_LONG_S = 3600.0  # a trial that sends longer than this deserves a note


@dataclass(frozen=True, slots=True)
class Request:
    """One request; exactly one of ``prompt`` and ``messages`` is set.

    Attributes:
        index: Position among the requests of its phase, from 0.
        prompt: Text or token ids, for ``/v1/completions``.
        messages: Messages of a chat, for ``/v1/chat/completions``.
        output_len: ``max_tokens`` of this request; None: ``workload.output_len``, for all requests.
        tools: Tools that are part of a chat's prompt; None: it has none.
        category: Category of the request in its dataset; None: it has none.
    """

    index: int
    prompt: str | list[int] | None
    messages: list[dict[str, Any]] | None
    output_len: int | None = None
    tools: list[Any] | None = None
    category: str | None = None

    @property
    def tool_keys(self) -> dict[str, Any]:
        """Keys of the request's body for its tools; the answer is a text in any case.

        A call would come without text, and only from a server with a parser for it
        (``--enable-auto-tool-choice``). The prompt is the same.
        """
        return {} if self.tools is None else {"tools": self.tools, "tool_choice": "none"}


@dataclass(frozen=True)
class Workload:
    """All requests of a trial.

    Attributes:
        warmup: Requests sent before the measurement until the server is warm; none of their prompts
            is measured.
        measured: Requests of the measurement, in the order of sending.
        arrivals: Intended start of each measured request, in seconds from that of the first; all
            0.0 in a closed loop.
        notes: Sentences on what is sent that the user may not expect.
    """

    warmup: tuple[Request, ...]
    measured: tuple[Request, ...]
    arrivals: tuple[float, ...]
    notes: tuple[str, ...] = field(default=(), compare=False)


def build_workload(spec: WorkloadSpec, base: Path) -> Workload:
    """Return the requests of a study.

    Args:
        spec: The study's ``workload``.
        base: Folder that the files of ``workload`` are relative to.

    Raises:
        UserError: the requests cannot be read, are wrong, repeated or too few; the text names file,
            line and key.
    """
    seeds = np.random.SeedSequence(spec.seed).spawn(4)
    order, measured_ids, warmup_ids, gaps = (np.random.default_rng(s) for s in seeds)
    if spec.replay is not None:
        return _replayed(spec, base / spec.replay.file, spec.replay)
    if spec.random is not None:
        seen: set[bytes] = set()
        measured = _random_prompts(measured_ids, spec.random, spec.num_prompts, seen)
        warmup = _random_prompts(warmup_ids, spec.random, spec.most_warmup, seen)
    else:
        measured, warmup = _drawn(spec, base, order)
    return _workload(spec, measured, warmup, _arrivals(gaps, spec))


def _workload(
    spec: WorkloadSpec,
    measured: Sequence[Entry],
    warmup: Sequence[Entry],
    arrivals: tuple[float, ...],
    notes: Sequence[str] = (),
) -> Workload:
    def requests(entries: Sequence[Entry]) -> tuple[Request, ...]:
        return tuple(
            Request(
                i, e.prompt, e.messages, e.output_len, e.tools if spec.tools else None, e.category
            )
            for i, e in enumerate(entries)
        )

    return Workload(
        requests(warmup), requests(measured), arrivals, (*notes, *_chat_notes(spec, measured))
    )


def _chat_notes(spec: WorkloadSpec, measured: Sequence[Entry]) -> Iterator[str]:
    """Yield a sentence on chats that are not sent as a user may think."""
    key = "workload" if spec.source is None else f"workload.{spec.source[0]}"
    if answered := sum(e.answered for e in measured):
        remedy = (
            "workload.sharegpt with `turns: all` sends what comes before it, and counts its tokens"
            if spec.replay is None
            else "take that message off its line if it was the answer"
        )
        yield (
            f"{key}: {answered} of {len(measured)} chats end with a message of the assistant, "
            f"which is sent as part of the prompt; {remedy}"
        )
    if not spec.tools and (with_tools := sum(e.tools is not None for e in measured)):
        yield (
            f"{key}: {with_tools} of {len(measured)} chats have `tools`, which are not sent; "
            "`workload.tools: true` sends them as part of the prompt"
        )


def _drawn(
    spec: WorkloadSpec, base: Path, order: np.random.Generator
) -> tuple[list[Entry], list[Entry]]:
    """Return measured and warm-up requests, drawn from a file without replacement.

    They are taken from the two ends of one order, so that neither number changes the prompts of the
    other. With ``workload.repeat`` each of the two starts over at its end when the file has too few
    requests.
    """
    entry: Callable[[int], Entry | None]
    if spec.sharegpt is not None:
        path = base / spec.sharegpt.file
        count = token_counter(spec.sharegpt.tokenizer or "", base)
        length = None if isinstance(spec.output_len, str) else spec.output_len
        found = Conversations(path, spec.sharegpt, length, count)
        size, what, entry = len(found), "conversations that fit", found.entry
        left_out = "; ".join(f"{n} have {why}" for why, n in found.left_out.items())
    else:
        assert spec.prompts is not None  # noqa: S101 – WorkloadSpec has exactly one source
        path = base / spec.prompts
        pool = read_prompts(path, recorded=spec.output_len == "recorded")
        size, what, entry, left_out = len(pool), "prompts", pool.__getitem__, ""
    shuffled = order.permutation(size).tolist()

    def fitting(numbers: Sequence[int]) -> Iterator[tuple[int, Entry]]:
        """Yield the requests that can be sent, with their number in the file."""
        return ((i, e) for i in numbers if (e := entry(i)) is not None)

    if spec.repeat:
        every = list(fitting(shuffled))
        front = list(islice(cycle(every), spec.num_prompts))
        back = list(islice(cycle(every[::-1]), spec.most_warmup))
    else:
        front = list(islice(fitting(shuffled), spec.num_prompts))
        used = {i for i, _ in front}
        left = [i for i in reversed(shuffled) if i not in used]
        back = list(islice(fitting(left), spec.most_warmup))
    if len(front) < spec.num_prompts or len(back) < spec.most_warmup:
        raise _too_few(path, len(front) + len(back), what, spec, left_out)
    return [e for _, e in front], [e for _, e in back]


def _replayed(spec: WorkloadSpec, path: Path, replay: ReplayPrompts) -> Workload:
    """Return the first requests of a log at their own times, and those of its end as warm-up.

    Prompts that the log repeats stay, because they were recorded. But no measured prompt is among
    the warm-up's, because that would leave it in the prefix cache.
    """
    log = read_log(path, recorded=spec.output_len == "recorded", unit=replay.timestamp_unit)
    chosen = [log[i] for i in range(min(spec.num_prompts, len(log)))]
    draws = Drawn(spec.seed, replay.vocab_low, replay.vocab_high)
    _check_tokens(path, [r.entry for r in chosen])
    measured = [draws.filled(r.entry) for r in chosen]
    seen = {_key(e) for e in measured}
    rest = (draws.filled(log[i].entry) for i in range(len(log) - 1, len(chosen) - 1, -1))
    warmup = list(islice((e for e in rest if _key(e) not in seen), spec.most_warmup))
    if len(measured) < spec.num_prompts or len(warmup) < spec.most_warmup:
        what = "requests, those left out that repeat a measured prompt after it,"
        raise _too_few(path, len(measured) + len(warmup), what, spec)
    start = chosen[0].at
    arrivals = tuple((r.at - start) / replay.speed for r in chosen)
    notes = tuple(f"workload.replay.file: {note}" for note in _log_notes(log, measured, arrivals))
    return _workload(spec, measured, warmup, arrivals, notes)


def _check_tokens(path: Path, entries: Sequence[Entry]) -> None:
    """Refuse a trace whose prompts would not fit into memory."""
    if (total := sum(e.shape.input_len for e in entries if e.shape)) > MOST_TOKENS:
        raise UserError(
            f"{one_line(str(path))}: its first {len(entries)} requests have {total} prompt tokens, "
            f"more than {MOST_TOKENS}; take fewer (workload.num_prompts)"
        )


def _log_notes(log: Log, measured: Sequence[Entry], arrivals: Sequence[float]) -> Iterator[str]:
    yield from log.notes
    if log.random:
        longest = max(len(e.prompt or ()) + (e.output_len or 0) for e in measured)
        yield (
            "is a trace of lengths, so the prompts are random token ids, on which drafts are "
            f"accepted otherwise than on text; the longest request has {longest} tokens"
        )
    if (span := arrivals[-1]) > _LONG_S:
        yield (
            f"its first {len(measured)} requests take {span_text(span)} in every trial; a larger "
            "workload.replay.speed shortens that"
        )


def _key(entry: Entry) -> bytes:
    return orjson.dumps((entry.prompt, entry.messages))


def _too_few(
    path: Path, there: int, what: str, spec: WorkloadSpec, left_out: str = ""
) -> UserError:
    wanted = spec.num_prompts + spec.most_warmup
    more = f". Left out: {left_out}" if left_out else ""
    return UserError(
        f"{one_line(str(path))} has {there} {what}, the study needs {wanted} "
        f"({spec.num_prompts} measured + up to {spec.most_warmup} warm-up){more}"
    )


def _arrivals(rng: np.random.Generator, spec: WorkloadSpec) -> tuple[float, ...]:
    """Return the intended starts in seconds, the first at 0; the gaps' mean is 1/rate.

    Poisson arrivals have exponential gaps, constant arrivals equal ones.
    """
    n, gap = spec.num_prompts, 1 / spec.request_rate  # 0 for an infinite rate
    if spec.arrivals == "constant" or gap == 0:
        return tuple((np.arange(n) * gap).tolist())
    return (0.0, *np.cumsum(rng.exponential(gap, n - 1)).tolist())


def _random_prompts(
    rng: np.random.Generator, spec: RandomPrompts, n: int, seen: set[bytes]
) -> list[Entry]:
    """Return ``n`` prompts that differ from each other and from those already in ``seen``."""
    if why := spec.why_not(len(seen) + n):
        raise UserError(f"workload.random: {why}")
    prompts: list[Entry] = []
    while len(prompts) < n:
        ids = rng.integers(spec.vocab_low, spec.vocab_high, spec.input_len)
        if (key := ids.tobytes()) not in seen:
            seen.add(key)
            prompts.append(Entry(ids.tolist(), None))
    return prompts
