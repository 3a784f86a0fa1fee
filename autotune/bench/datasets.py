"""Files with requests: JSONL of prompts, ShareGPT's conversations, a recorded request log.

Each reader returns :class:`Entry` values in an order that depends on the file alone.
:mod:`autotune.bench.workload` decides which of them are sent, and when. Every mistake in a file is
reported in one line that names the file, the line (or the position in a JSON list) and what to do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from autotune.errors import UserError, one_line
from autotune.study.workload import ShareGptPrompts

_BOM = b"\xef\xbb\xbf"  # Windows' editors mark UTF-8 with it
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
# Keys of a line's length: the recorded answer's before the requested limit. `output_tokens` is the
# name in vLLM's custom dataset.
_LENGTHS = ("output_len", "output_tokens", "max_completion_tokens", "max_tokens")
_MOST_LEN = 10**9
_MOST_SECONDS = 10**11  # the year 5138; milliseconds since 1970 lie beyond it
_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}

Messages = list[dict[str, Any]]


class Entry(NamedTuple):
    """Content of one request of a file; exactly one of ``prompt`` and ``messages`` is set.

    Attributes:
        prompt: Text or token ids.
        messages: Messages of a chat.
        output_len: Number of tokens of the recorded answer; None: the study has one length for all.
    """

    prompt: str | list[int] | None
    messages: Messages | None
    output_len: int | None = None


class Recorded(NamedTuple):
    """A request of a log.

    Attributes:
        at: Time of the request, in seconds since 1970 or since another origin of the log.
        entry: Content of the request.
    """

    at: float
    entry: Entry


def read_prompts(path: Path, *, recorded: bool) -> list[Entry]:
    """Read the lines of a JSONL file; a repeated prompt is a mistake.

    Args:
        path: File of ``workload.prompts``.
        recorded: Whether every line must have its own length.

    Raises:
        UserError: the file cannot be read, or one of its lines is wrong.
    """
    entries: list[Entry] = []
    first_line: dict[bytes, str] = {}
    for where, row in _rows(path, "workload.prompts"):
        entry, key = _entry(where, row, recorded)
        if (same := first_line.setdefault(key, where)) != where:
            raise UserError(
                f"{where}: is the same prompt as {same.rpartition(', ')[2]}; a repeated prompt "
                "would be answered from the prefix cache"
            )
        entries.append(entry)
    return entries


def read_log(path: Path, *, recorded: bool) -> list[Recorded]:
    """Read the requests of a log, earliest first; equal times stay in the order of the lines.

    Args:
        path: File of ``workload.replay.file``.
        recorded: Whether every line must have its own length.

    Raises:
        UserError: the file cannot be read, or one of its lines is wrong.
    """
    log: list[Recorded] = []
    kinds: set[type] = set()
    for where, row in _rows(path, "workload.replay.file"):
        entry, _ = _entry(where, row, recorded)
        try:
            log.append(Recorded(_seconds(row.get("timestamp")), entry))
        except ValueError as e:
            raise UserError(f"{where}: {e}") from e
        kinds.add(str if isinstance(row["timestamp"], str) else float)
        if len(kinds) > 1:
            raise UserError(
                f"{where}: timestamp: numbers and dates in one log; write all in one form"
            )
    return sorted(log, key=lambda r: r.at)


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
    """

    def __init__(
        self, path: Path, spec: ShareGptPrompts, output_len: int | None, count: Callable[[str], int]
    ) -> None:
        self._spec = spec
        self._output_len = output_len
        self._count = count
        self._found: list[tuple[Messages, str | None]] = []
        seen: set[bytes] = set()
        for where, row in _list_or_lines(path, "workload.sharegpt.file"):
            turns = _turns(where, row)
            sent = None if turns is None else _sent(turns, spec.turns)
            if sent is None or (output_len is None and sent[1] is None):
                continue
            key = orjson.dumps(sent[0])
            if key not in seen:
                seen.add(key)
                self._found.append(sent)

    def __len__(self) -> int:
        return len(self._found)

    def entry(self, i: int) -> Entry | None:
        """Return the request of conversation ``i``; None: it is too short or too long.

        The test is vLLM's: a fixed length of the answers is not compared with ``min_len``.
        """
        messages, answer = self._found[i]
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
        return Entry(None, messages, length if self._output_len is None else None)


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


def _read(path: Path, key: str) -> bytes:
    shown = one_line(str(path))
    try:
        content = path.read_bytes()
    except OSError as e:
        raise UserError(f"{shown}: {key} cannot be read: {e.strerror}") from e
    if content.startswith(_UTF16):
        raise UserError(f"{shown}: {key} is UTF-16; save it as UTF-8")
    return content.removeprefix(_BOM)


def _lines(path: Path, content: bytes) -> Iterator[tuple[str, Any]]:
    """Yield the location in words and the value of every line that is not blank."""
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{one_line(str(path))}, line {number}"
        try:
            yield where, orjson.loads(line)
        except orjson.JSONDecodeError as e:
            raise UserError(f"{where}: is not JSON: {e.msg}") from e


def _rows(path: Path, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, row in _lines(path, _read(path, key)):
        if not isinstance(row, dict):
            raise UserError(f"{where}: must be an object with `messages` or `prompt`")
        yield where, row


def _list_or_lines(path: Path, key: str) -> Iterator[tuple[str, Any]]:
    """Yield location and value of the entries of a JSON list, or of the lines of JSONL."""
    content = _read(path, key)
    if not content.lstrip().startswith(b"["):
        yield from _lines(path, content)
        return
    shown = one_line(str(path))
    try:
        rows = orjson.loads(content)
    except orjson.JSONDecodeError as e:
        raise UserError(f"{shown}, line {e.lineno}: is not JSON: {e.msg}") from e
    for number, row in enumerate(rows, start=1):
        yield f"{shown}, entry {number}", row


def _entry(where: str, row: dict[str, Any], recorded: bool) -> tuple[Entry, bytes]:
    """Return one line of prompts or of a log, and a key that equal prompts share."""
    try:
        prompt, messages = _prompt(row)
        length = _length(row) if recorded else None
        key = orjson.dumps((prompt, messages))
    except ValueError as e:
        raise UserError(f"{where}: {e}") from e
    except TypeError as e:  # orjson reads more levels than it writes
        raise UserError(f"{where}: messages: are nested too deeply") from e
    return Entry(prompt, messages, length), key


def _prompt(row: dict[str, Any]) -> tuple[str | None, Messages | None]:
    """Return text or chat of a line; a ValueError says what is wrong, beginning with the key."""
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


def _length(row: dict[str, Any]) -> int:
    """Return a line's own length; a ValueError says what is wrong, beginning with the key."""
    key = next((k for k in _LENGTHS if row.get(k) is not None), None)
    if key is None:
        raise ValueError(
            "output_len: is missing; `output_len: recorded` in the study needs it in every line"
        )
    length = row[key]
    if type(length) is not int or not 1 <= length <= _MOST_LEN:
        raise ValueError(f"{key}: must be a whole number of tokens from 1 up")
    return length


def _seconds(value: object) -> float:
    """Return a timestamp in seconds; a ValueError says what is wrong, beginning with the key.

    A date without an offset is taken as UTC, because only the gaps matter.
    """
    if isinstance(value, str):
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(
                "timestamp: is no ISO 8601 date such as 2026-01-31T12:00:00.250Z; numbers go "
                "without quotes"
            ) from None
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("timestamp: must be seconds, or an ISO 8601 date")
    if abs(value) > _MOST_SECONDS:
        raise ValueError("timestamp: must be in seconds, not in milliseconds or less")
    return float(value)


def _turns(where: str, row: object) -> Messages | None:
    """Return a conversation as chat messages; None: a speaker has no role in a chat."""
    turns = row.get("conversations") if isinstance(row, dict) else None
    if not isinstance(turns, list):
        raise UserError(f"{where}: must be an object with `conversations`, a list of turns")
    messages: Messages = []
    for i, turn in enumerate(turns):
        if not isinstance(turn, dict) or not all(
            isinstance(turn.get(key), str) for key in ("from", "value")
        ):
            raise UserError(f"{where}: conversations[{i}]: needs `from` and `value`, both texts")
        role = _ROLES.get(turn["from"])
        if role is None:
            return None
        messages.append({"role": role, "content": turn["value"]})
    return messages


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
