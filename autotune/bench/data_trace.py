"""Traces of lengths without texts, such as Mooncake's, BurstGPT's and Azure's.

A trace has the time of each request and its numbers of prompt and answer tokens. Its prompts are
drawn: uniformly random token ids, of these lengths. ``hash_ids`` name the blocks of tokens that a
prompt begins with; requests that share ids share these tokens, so that a prefix cache finds what it
found when the trace was recorded.

All columns are arrays, since a trace may have millions of rows of which a study needs a few
hundred.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from autotune.bench import data_file
from autotune.bench.data_row import Entry, Shape
from autotune.bench.data_time import Times
from autotune.errors import UserError, one_line
from autotune.study.keys import MOST_TOKENS

# Names of the columns, in lower case and with underscores. Input and output of: Mooncake, vLLM's
# timed_trace, GuideLLM and Qwen-Bailian; BurstGPT; Azure; Vidur; SplitWise; and of usage logs.
_TIMES = ("timestamp", "arrived_at", "arrival_timestamp", "arrival_time")
_INPUTS = (
    *("input_length", "request_tokens", "contexttokens", "num_prefill_tokens", "prompt_size"),
    *("input_tokens", "prompt_tokens", "prompt_tokens_count", "input_tokens_count", "input_len"),
)
_OUTPUTS = (
    *("output_length", "response_tokens", "generatedtokens", "num_decode_tokens", "token_size"),
    *("output_tokens", "completion_tokens", "output_tokens_count", "completion_tokens_count"),
    "output_len",
)
_HASHES = "hash_ids"
# Keys of a row that has a text or a chat, so that it is no row of lengths.
_CONTENT = ("messages", "prompt", "chat_messages", "body", "conversations", "conversation", "turns")
# Block sizes of known traces: Mooncake's, Qwen-Bailian's (vLLM's default). The others are tried in
# this order where neither agrees with the lengths.
_BLOCKS = (512, 16, 256, 128, 64, 32, 1024, 2048, 4096)
_MOST_LEN = MOST_TOKENS


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _one_of(names: tuple[str, ...], keys: Mapping[str, str]) -> str | None:
    return next((keys[n] for n in names if n in keys), None)


class Columns:
    """Names of the columns of a trace.

    Attributes:
        time: Column of the time, as the file spells it; None: there is none.
        inputs: Column of the prompt's tokens.
        outputs: Column of the answer's tokens.
        burstgpt: Whether the names are BurstGPT's, whose times are in seconds.
    """

    def __init__(self, time: str | None, inputs: str, outputs: str) -> None:
        self.time, self.inputs, self.outputs = time, inputs, outputs
        self.burstgpt = (inputs, outputs) == ("Request tokens", "Response tokens")

    @classmethod
    def of(cls, names: list[str]) -> Columns | None:
        """Return the columns of a trace among names; None: they are not those of a trace."""
        keys: dict[str, str] = {}
        for name in names:
            keys.setdefault(_plain(name), name)
        inputs, outputs = _one_of(_INPUTS, keys), _one_of(_OUTPUTS, keys)
        if inputs is None or outputs is None or any(key in keys for key in _CONTENT):
            return None
        return cls(_one_of(_TIMES, keys), inputs, outputs)


def columns_of(row: Any) -> Columns | None:
    """Return the columns of a JSON row that has lengths and no text; None: it is another row."""
    return Columns.of([str(k) for k in row]) if isinstance(row, dict) else None


class Trace:
    """The requests of a trace, in the order of its rows; those without tokens are left out.

    Attributes:
        left_out: Number of rows with no prompt token or no answer token: failed requests.
        block_size: Number of tokens that one of ``hash_ids`` stands for; 0: there are none.
    """

    def __init__(self) -> None:
        self.left_out = 0
        self.block_size = 0
        self._inputs, self._outputs = array("q"), array("q")
        self._blocks, self._ends = array("q"), array("q")
        self._numbers: dict[Hashable, int] = {}  # of the ids, in the order of the file
        self._least, self._most = 1, _MOST_LEN  # block sizes that agree with all rows

    def __len__(self) -> int:
        return len(self._inputs)

    def add(self, row: Mapping[str, Any], columns: Columns) -> bool:
        """Take a row and return whether it is a request; a ValueError says what is wrong."""
        asked, answered = _tokens(row, columns.inputs), _tokens(row, columns.outputs)
        if asked == 0 or answered == 0:
            self.left_out += 1
            return False
        ids = row.get(_HASHES)
        if ids is not None:
            self._add_blocks(ids, asked)
        self._inputs.append(asked)
        self._outputs.append(answered)
        self._ends.append(len(self._blocks))
        return True

    def _add_blocks(self, ids: object, asked: int) -> None:
        if not isinstance(ids, list) or not all(type(x) in (int, str) for x in ids):
            raise ValueError(f"{_HASHES}: must be a list of numbers")
        numbers = self._numbers
        self._blocks.extend(numbers.setdefault(x, len(numbers)) for x in ids)
        if ids:
            self._least = max(self._least, -(-asked // len(ids)))
        if len(ids) > 1:
            self._most = min(self._most, (asked - 1) // (len(ids) - 1))

    def close(self) -> None:
        """Find the block size after the last row: one with which all lengths agree."""
        if self._numbers:
            fitting = [b for b in _BLOCKS if self._least <= b <= self._most]
            one = self._least if self._least <= self._most else _BLOCKS[0]
            self.block_size = (fitting or [one])[0]

    def entry(self, i: int, recorded: bool) -> Entry:
        """Return request ``i`` without its prompt; with its length if ``recorded``."""
        begin = self._ends[i - 1] if i else 0
        blocks = tuple(self._blocks[begin : self._ends[i]])
        shape = Shape(i, self._inputs[i], blocks, self.block_size)
        return Entry(None, None, self._outputs[i] if recorded else None, shape=shape)


def _tokens(row: Mapping[str, Any], key: str) -> int:
    """Return a number of tokens; CSV has it as a text."""
    value = row.get(key)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or not 0 <= value <= _MOST_LEN:
        why = "is missing" if key not in row else "must be a whole number of tokens"
        raise ValueError(f"{key}: {why}")
    return value


def read_table(
    path: Path, found: data_file.Table
) -> tuple[Columns, Iterator[tuple[str, dict[str, Any]]]]:
    """Return the columns of a trace in CSV, and location and values of its rows.

    Raises:
        UserError: the file is CSV of something else. The iterator raises it for a wrong row.
    """
    columns = Columns.of(found.columns)
    if columns is None or columns.time is None:
        names = one_line(", ".join(found.columns), 120)
        raise UserError(
            f"{one_line(str(path))}: is CSV with the columns {names}; of CSV only traces of "
            "lengths are read (such as BurstGPT's and Azure's: a timestamp, prompt tokens and "
            "answer tokens). Write one JSON object a line"
        )
    return columns, _named(found, columns)


def _named(found: data_file.Table, columns: Columns) -> Iterator[tuple[str, dict[str, Any]]]:
    names = (columns.time or "", columns.inputs, columns.outputs)
    places = [found.columns.index(name) for name in names]
    for where, cells in found.rows:
        if len(cells) <= max(places):
            raise UserError(f"{where}: has {len(cells)} of {len(found.columns)} columns")
        row: dict[str, Any] = {n: cells[i] for n, i in zip(names, places, strict=True)}
        row[names[0]] = _number(row[names[0]])
        yield where, row


def _number(text: str) -> object:
    """Return a cell as a number if it is one; otherwise it may be a date."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text.strip()


def read_rows(found: Iterator[tuple[str, Any]], columns: Columns, times: Times) -> Trace:
    """Read all rows of a trace.

    Args:
        found: Locations and values of the rows.
        columns: Names of its columns.
        times: Takes the time of each request.

    Raises:
        UserError: a row is wrong.
    """
    trace = Trace()
    for where, row in found:
        if not isinstance(row, dict):
            raise UserError(f"{where}: must be an object with `{columns.inputs}`")
        try:
            if trace.add(row, columns):
                times.add(row, columns.time or "timestamp")
        except ValueError as e:
            raise UserError(f"{where}: {e}") from e
    trace.close()
    return trace


class Drawn:
    """Draws the prompts of a trace: the same for the same seed, whichever others are drawn.

    Args:
        seed: Seed of the workload.
        low: Lowest token id.
        high: One above the highest token id.
    """

    def __init__(self, seed: int, low: int, high: int) -> None:
        self._seed, self._low, self._high = seed, low, high
        self._blocks: dict[int, list[int]] = {}

    def filled(self, entry: Entry) -> Entry:
        """Return a request with its prompt; one that has a text stays as it is."""
        if entry.shape is None:
            return entry
        return entry._replace(prompt=self._prompt(entry.shape), shape=None)

    def _prompt(self, shape: Shape) -> list[int]:
        ids: list[int] = []
        for block in shape.blocks:
            if len(ids) >= shape.input_len:
                break
            if block not in self._blocks:
                self._blocks[block] = self._ids(1, block, shape.block_size)
            ids += self._blocks[block]
        if (missing := shape.input_len - len(ids)) > 0:
            ids += self._ids(0, shape.number, missing)
        return ids[: shape.input_len]

    def _ids(self, stream: int, number: int, count: int) -> list[int]:
        rng = np.random.default_rng([self._seed, stream, number])
        found: list[int] = rng.integers(self._low, self._high, count).tolist()
        return found
