"""Files of requests as rows: a JSON object a line (JSONL), a JSON list, or CSV.

A file of another kind (compressed, Parquet, plain text, …) is refused in one line that says what it
is and what to do. Locations are given in words, such as ``log.jsonl, line 3``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from autotune.errors import UserError, one_line

_BOM = b"\xef\xbb\xbf"  # Windows' editors mark UTF-8 with it
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_TO_JSONL = (
    'convert it, such as with pandas: read_parquet("FILE").to_json("FILE.jsonl", '
    'orient="records", lines=True)'
)
# First bytes of files that are no text: what such a file is, and what to do.
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "compressed (gzip)", "unpack it with gunzip"),
    (b"\x28\xb5\x2f\xfd", "compressed (zstd)", "unpack it with unzstd"),
    (b"BZh", "compressed (bzip2)", "unpack it with bunzip2"),
    (b"\xfd7zXZ", "compressed (xz)", "unpack it with unxz"),
    (b"PK\x03\x04", "a zip archive", "unpack it"),
    (b"Rar!", "a rar archive", "unpack it"),
    (b"PAR1", "Parquet, as data sets of the hub are", _TO_JSONL),
    (b"ARROW1", "Arrow", _TO_JSONL.replace("read_parquet", "read_feather")),
    (b"SQLite format 3", "an SQLite database", "export its requests as JSONL"),
    (
        b"version https://git-lfs",
        "a pointer of Git LFS, not the file that it stands for",
        "run git lfs pull",
    ),
    (b"<!DOCTYPE", "a web page", "download the file itself (its raw form)"),
    (b"<html", "a web page", "download the file itself (its raw form)"),
)
_SHOWN_KEYS = 6


class Table(NamedTuple):
    """A CSV file.

    Attributes:
        columns: Names in its first line.
        rows: Location in words and cells of each further line that is not blank.
    """

    columns: list[str]
    rows: Iterator[tuple[str, list[str]]]


def read(path: Path, key: str) -> bytes:
    """Return the content of a file of requests, without a byte-order mark.

    Args:
        path: The file.
        key: Key of the study that names it.

    Raises:
        UserError: the file cannot be read, or it is no text.
    """
    shown = one_line(str(path))
    try:
        content = path.read_bytes()
    except OSError as e:
        raise UserError(f"{shown}: {key} cannot be read: {e.strerror}") from e
    if content.startswith(_UTF16):
        raise UserError(f"{shown}: {key} is UTF-16; save it as UTF-8")
    for first, what, remedy in _MAGIC:
        if content.startswith(first):
            raise UserError(f"{shown}: {key} is {what}; {remedy}")
    return content.removeprefix(_BOM)


def rows(path: Path, content: bytes) -> Iterator[tuple[str, Any]]:
    """Yield location and value of the entries of a JSON list, or of the lines of JSONL.

    Args:
        path: The file.
        content: Its content, from :func:`read`.

    Raises:
        UserError: the content is no JSON.
    """
    if not _is_list(content):
        yield from _lines(path, content)
        return
    shown = one_line(str(path))
    try:
        entries = orjson.loads(content)
    except orjson.JSONDecodeError as e:
        raise UserError(f"{shown}, line {e.lineno}: is not JSON: {e.msg}") from e
    for number, row in enumerate(entries, start=1):
        yield f"{shown}, entry {number}", row


def _is_list(content: bytes) -> bool:
    """Return whether the content is one JSON list, not a list a line."""
    if not content.lstrip().startswith(b"["):
        return False
    first, _, rest = content.lstrip().partition(b"\n")
    return not (rest.strip() and first.rstrip().endswith(b"]") and _json(first) is not None)


def _json(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _lines(path: Path, content: bytes) -> Iterator[tuple[str, Any]]:
    """Yield location and value of every line that is not blank."""
    shown, first = one_line(str(path)), True
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{shown}, line {number}"
        try:
            yield where, orjson.loads(line)
        except orjson.JSONDecodeError as e:
            raise UserError(f"{where}: {_no_json(content, line, first, e.msg)}") from e
        first = False


def _no_json(content: bytes, line: bytes, first: bool, why: str) -> str:
    """Return what a line is that is no JSON, and what to do."""
    if not first:
        return f"is not JSON: {why}"
    if line.lstrip().startswith(b"{"):
        if isinstance(whole := _json(content), dict):
            return (
                f"is one JSON object over several lines (with {keys_text(whole)}); write one "
                "object a line, or a list of objects"
            )
        if line.strip() == b"{":
            return (
                "begins an object of several lines; write one object a line, or a list of objects"
            )
        return f"is not JSON: {why}"
    if b"," in line or b"\t" in line:
        return (
            f"is not JSON: {why}. If it is CSV: only traces of lengths are read as CSV, by "
            "workload.replay; write one JSON object a line"
        )
    return (
        'is plain text, not JSON; write one object a line, such as {"prompt": "Once upon a time"}'
    )


def keys_text(row: dict[str, Any]) -> str:
    """Return the keys of an object in words, at most six of them."""
    shown = [f"`{one_line(key, 40)}`" for key in list(row)[:_SHOWN_KEYS]]
    more = len(row) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "") if shown else "no key"


def table(path: Path, content: bytes) -> Table | None:
    """Return the content as CSV; None: its first line is JSON, or has one column only.

    Raises:
        UserError: the content is not UTF-8. The iterator raises it as well, for a wrong line.
    """
    begin = content.lstrip()
    head = begin.partition(b"\n")[0]
    delimiter = max(",;\t", key=lambda d: head.count(d.encode()))  # spreadsheets write `;`
    if begin[:1] in (b"", b"{", b"[") or delimiter.encode() not in head:
        return None
    shown = one_line(str(path))
    try:
        text = content.decode()
    except UnicodeDecodeError as e:
        raise UserError(f"{shown}: is not UTF-8; save it as UTF-8") from e
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        columns = next((row for row in reader if row), [])
    except csv.Error as e:
        raise UserError(f"{shown}, line {reader.line_num}: is no CSV: {e}") from e
    return Table([c.strip() for c in columns], _cells(shown, reader))


def _cells(shown: str, reader: Any) -> Iterator[tuple[str, list[str]]]:
    try:
        for row in reader:
            if row:
                yield f"{shown}, line {reader.line_num}", row
    except csv.Error as e:
        raise UserError(f"{shown}, line {reader.line_num}: is no CSV: {e}") from e
