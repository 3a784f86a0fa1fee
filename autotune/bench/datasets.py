"""Files with requests: prompts and chats, ShareGPT's conversations, recorded request logs, traces.

Each reader returns :class:`Entry` values in an order that depends on the file alone.
:mod:`autotune.bench.workload` decides which of them are sent, and when. Every mistake in a file is
reported in one line that names the file, the line (or the position in a JSON list) and what to do.
docs/datasets.md has the table of the formats that are understood, and of the tools that write them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from autotune.bench import data_file, data_trace
from autotune.bench.data_row import Entry, Messages, category_of, entry_of
from autotune.bench.data_time import KEY, Times, Unit
from autotune.errors import UserError, one_line
from autotune.study.workload import ShareGptPrompts

_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",  # Gemma's and Gemini's word
    "bot": "assistant",
}
# Keys of a conversation: ShareGPT's, that of LMSYS-Chat-1M and WildChat, that of OpenAI's chats.
_TURNS = ("conversations", "conversation", "messages")


class Recorded(NamedTuple):
    """A request of a log.

    Attributes:
        at: Time of the request, in seconds since 1970 or since another origin of the log.
        entry: Content of the request.
    """

    at: float
    entry: Entry


class Log:
    """The requests of a recorded log, earliest first; equal times are in the order of the lines.

    Attributes:
        notes: Sentences on how the log was read.
        random: Whether it has no texts, so that its prompts are drawn.
    """

    def __init__(
        self,
        times: NDArray[np.float64],
        entry: Callable[[int], Entry],
        notes: Sequence[str],
        *,
        random: bool,
    ) -> None:
        self._order = np.argsort(times, kind="stable")
        self._times = times
        self._entry = entry
        self.notes = tuple(notes)
        self.random = random

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, i: int) -> Recorded:
        row = int(self._order[i])
        return Recorded(float(self._times[row]), self._entry(row))

    def __iter__(self) -> Iterator[Recorded]:
        return (self[i] for i in range(len(self)))


def read_prompts(path: Path, *, recorded: bool) -> list[Entry]:
    """Read the lines of a JSONL file, or the entries of a JSON list; a repetition is a mistake.

    Args:
        path: File of ``workload.prompts``.
        recorded: Whether every line must have its own length.

    Raises:
        UserError: the file cannot be read, or one of its lines is wrong.
    """
    entries: list[Entry] = []
    first_line: dict[bytes, str] = {}
    content = data_file.read(path, "workload.prompts")
    _refuse_trace_in_csv(path, content)
    for where, row in data_file.rows(path, content):
        if data_trace.columns_of(row) is not None:
            raise UserError(f"{where}: {_LENGTHS_ONLY}")
        entry, key = entry_of(where, row, recorded)
        if (same := first_line.setdefault(key, where)) != where:
            raise UserError(
                f"{where}: is the same prompt as {same.rpartition(', ')[2]}; a repeated prompt "
                "would be answered from the prefix cache"
            )
        entries.append(entry)
    return entries


_LENGTHS_ONLY = (
    "is a request of a trace of lengths, without text: give the file as workload.replay, which "
    "sends random prompts of these lengths"
)


def _refuse_trace_in_csv(path: Path, content: bytes) -> None:
    found = data_file.table(path, content)
    if found is not None and data_trace.Columns.of(found.columns) is not None:
        raise UserError(f"{one_line(str(path))}, line 1: {_LENGTHS_ONLY}")


def read_log(path: Path, *, recorded: bool, unit: Unit | None = None) -> Log:
    """Read the requests of a log, with texts or with lengths only.

    Args:
        path: File of ``workload.replay.file``.
        recorded: Whether every line must have its own length.
        unit: Unit of numeric timestamps; None: seconds, or what the format has.

    Raises:
        UserError: the file cannot be read, one of its lines is wrong, or the unit is uncertain.
    """
    content = data_file.read(path, "workload.replay.file")
    times = Times(unit)
    if (found := data_file.table(path, content)) is not None:
        columns, named = data_trace.read_table(path, found)
        trace = data_trace.read_rows(named, columns, times)
        return _trace_log(path, trace, times, recorded, known=columns.burstgpt)
    rows = data_file.rows(path, content)
    if (first := next(rows, None)) is None:
        return Log(times.seconds(), lambda i: Entry(None, None), (), random=False)
    rows = chain((first,), rows)
    if (lengths := data_trace.columns_of(first[1])) is not None:
        trace = data_trace.read_rows(rows, lengths, times)
        return _trace_log(path, trace, times, recorded, known="chat_id" in first[1])
    entries: list[Entry] = []
    for where, row in rows:
        entries.append(_timed(where, row, recorded, times))
    return Log(_seconds(path, times), entries.__getitem__, (), random=False)


def _timed(where: str, row: Any, recorded: bool, times: Times) -> Entry:
    """Return one line of a log, and add its time to the others."""
    if isinstance(row, dict):
        try:
            times.add(row)
        except ValueError as e:
            raise UserError(f"{where}: {e}") from e
    return entry_of(where, row, recorded)[0]


def _trace_log(
    path: Path, trace: data_trace.Trace, times: Times, recorded: bool, *, known: bool
) -> Log:
    """Return a trace as a log.

    Args:
        path: The file.
        trace: Its requests.
        times: Their times.
        recorded: Whether each request has its own length.
        known: Whether its times are in seconds: BurstGPT's and Qwen-Bailian's are. Whole numbers
            next to ``hash_ids`` are otherwise milliseconds, as in Mooncake's traces.
    """
    mooncake = trace.block_size > 0 and not known
    found = _seconds(path, times, milliseconds=mooncake, known=known)
    notes = []
    if mooncake and times.unit is None and times.in_whole_numbers:
        notes.append(f"its timestamps are taken as milliseconds, as in Mooncake's traces ({KEY})")
    if trace.block_size:
        notes.append(f"one of hash_ids stands for {trace.block_size} tokens that requests share")
    if trace.left_out:
        of = trace.left_out + len(trace)
        notes.append(
            f"requests without prompt or answer tokens are left out: {trace.left_out} of {of}"
        )
    return Log(found, lambda i: trace.entry(i, recorded), notes, random=True)


def _seconds(
    path: Path, times: Times, *, milliseconds: bool = False, known: bool = False
) -> NDArray[np.float64]:
    try:
        return times.seconds(milliseconds=milliseconds, known=known)
    except ValueError as e:
        raise UserError(f"{one_line(str(path))}: {e}") from e


class Conversations:
    """The conversations of a ShareGPT file that can be sent; repeated ones are left out.

    The length of a conversation is checked when :meth:`entry` is called for it. Counting the tokens
    of all would take minutes, while a study needs about a hundred.

    Args:
        path: File of ``workload.sharegpt.file``.
        spec: ``workload.sharegpt`` of the study.
        output_len: Length of every answer, in tokens; None: that of the recorded answer.
        count: Returns the number of tokens of a text.

    Raises:
        UserError: the file cannot be read, or one of its entries is wrong.

    Attributes:
        left_out: Numbers of the conversations that cannot be sent, by the reason; those of a wrong
            length are not among them.
    """

    def __init__(
        self, path: Path, spec: ShareGptPrompts, output_len: int | None, count: Callable[[str], int]
    ) -> None:
        self._spec = spec
        self._output_len = output_len
        self._count = count
        self._found: list[tuple[Messages, str | None, str | None]] = []
        self.left_out: Counter[str] = Counter()
        seen: set[bytes] = set()
        for where, row in data_file.rows(path, data_file.read(path, "workload.sharegpt.file")):
            turns = _turns(where, row)
            sent = None if turns is None else _sent(turns, spec.turns)
            if sent is None:
                why = "a speaker or a turn that is no text" if turns is None else "no question"
                self.left_out[why] += 1
            elif output_len is None and sent[1] is None:
                self.left_out["no answer"] += 1
            elif (key := orjson.dumps(sent[0])) in seen:
                self.left_out["the prompt of another one"] += 1
            else:
                seen.add(key)
                self._found.append((*sent, category_of(row)))

    def __len__(self) -> int:
        return len(self._found)

    def entry(self, i: int) -> Entry | None:
        """Return the request of conversation ``i``; None: it is too short or too long.

        The test is vLLM's: a fixed length of the answers is not compared with ``min_len``.
        """
        messages, answer, category = self._found[i]
        asked = sum(self._count(m["content"]) for m in messages)
        if not self._spec.min_len <= asked <= self._spec.max_input_len:
            return None
        length = self._output_len
        if length is None:
            length = self._count(answer or "")
            if length < self._spec.min_len:
                return None
        if asked + length > self._spec.max_total_len:
            return None
        given = length if self._output_len is None else None
        return Entry(None, messages, given, category=category)


def token_counter(tokenizer: str, base: Path) -> Callable[[str], int]:
    """Return a function that counts the tokens of a text, without special tokens around it.

    Args:
        tokenizer: A folder, ``demo:target`` or a hub name.
        base: Folder that a relative path starts from.

    Raises:
        UserError: there is no such tokenizer.
    """
    from autotune.study.models import resolve_model

    key = "workload.sharegpt.tokenizer"
    try:
        from tokenizers import Tokenizer
    except ImportError as e:
        raise UserError(f"{key}: counting tokens needs `pip install tokenizers`") from e
    try:
        place = resolve_model(tokenizer, base)
        if Path(place).is_absolute():
            found = Tokenizer.from_file(str(Path(place) / "tokenizer.json"))
        else:
            found = Tokenizer.from_pretrained(place)
    except Exception as e:  # the library raises bare ones
        words = one_line(" ".join(str(e).split()), 200)
        raise UserError(
            f"{key}: {tokenizer}: no tokenizer ({words}); give a folder with a tokenizer.json, or "
            "a hub name that has one"
        ) from e
    return lambda text: len(found.encode(text, add_special_tokens=False).ids)


def _turns(where: str, row: object) -> Messages | None:
    """Return a conversation as chat messages; None: one of the turns cannot be sent as such."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: must be an object with `conversations`, a list of turns")
    key = next((k for k in _TURNS if isinstance(row.get(k), list)), None)
    if key is None:
        instead = ""
        if "prompt" in row or "turns" in row:
            instead = "; a file of prompts or questions is given as workload.prompts"
        raise UserError(
            f"{where}: must be an object with `conversations`, a list of turns{instead}"
        )
    messages: Messages = []
    for i, turn in enumerate(row[key]):
        one = _turn(turn) if isinstance(turn, dict) else []
        if not one:
            raise UserError(
                f"{where}: {key}[{i}]: needs `from` and `value`, or `role` and `content`, all texts"
            )
        messages += one
    return None if any(m["role"] is None for m in messages) else messages


def _turn(turn: dict[str, Any]) -> Messages:
    """Return the messages of a turn, none if it is wrong; a role of None cannot be sent."""
    if isinstance(turn.get("from"), str) and isinstance(turn.get("value"), str):
        return [{"role": _ROLES.get(turn["from"].lower()), "content": turn["value"]}]
    if isinstance(turn.get("role"), str):
        role = {**_ROLES, "developer": "system"}.get(turn["role"].lower())
        text = turn.get("content", turn.get("value"))
        # tool calls have no text, pictures are parts: neither can be counted
        return [{"role": role if isinstance(text, str) else None, "content": text}]
    pair = [turn.get("human"), turn.get("assistant")]
    if all(isinstance(text, str) for text in pair):
        return [{"role": r, "content": t} for r, t in zip(("user", "assistant"), pair, strict=True)]
    return []


def _sent(turns: Sequence[dict[str, Any]], how: str) -> tuple[Messages, str | None] | None:
    """Return the messages to send and the recorded answer; None: there is no user's message."""
    asks = [i for i, m in enumerate(turns) if m["role"] == "user"]
    if not asks:
        return None
    last = asks[0] if how == "first" else asks[-1]
    before = turns[:last] if how == "all" else [m for m in turns[:last] if m["role"] == "system"]
    after = turns[last + 1] if last + 1 < len(turns) else None
    answer = after["content"] if after is not None and after["role"] == "assistant" else None
    return [*before, turns[last]], answer
