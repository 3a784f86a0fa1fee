"""What came out of replayed searches: one table, old and new with the same seeds side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from search_replay import OURS
from surfaces import names

Record = dict[str, Any]  # of one replay, as `search.record` makes it
Key = tuple[str, float, str, int]  # world, sigma, strategy, seed
Found = Mapping[str, list[Record]]  # by "new" and "old"

_OF_ALL = ("world", "sigma", "strategy", "most")  # equal in a column
_NOT_PACKED = {"shares", "minutes", "proposal_s"}


def key_of(found: Record) -> Key:
    """Which replay it is."""
    return found["world"], found["sigma"], found["strategy"], found["seed"]


# -- files -----------------------------------------------------------------------------------------


def read(new: Sequence[Path], old: Sequence[Path] = ()) -> dict[str, list[Record]]:
    """Replays of files, each once; a packed file has old ones, too.

    Raises:
        OSError: a file cannot be read.
        ValueError: it has no replays.
    """
    found: dict[str, dict[Key, Record]] = {"new": {}, "old": {}}
    for way, paths in (("new", new), ("old", old)):
        for path in paths:
            for to, records in _records(path, way):
                found[to].update((key_of(r), r) for r in records)
    return {way: list(records.values()) for way, records in found.items()}


def _records(path: Path, way: str) -> Iterator[tuple[str, list[Record]]]:
    text = path.read_text()
    if path.suffix == ".json":
        for to, columns in json.loads(text).items():
            yield to, [r for column in columns for r in _unpacked(column)]
        return
    lines = text.split("\n")
    # a run that was killed leaves half a line
    yield way, [json.loads(x) for x in lines if x.endswith("}")]


def packed(found: Found) -> dict[str, list[dict[str, Any]]]:
    """All replays in columns, without the curves."""
    out: dict[str, list[dict[str, Any]]] = {}
    for way, records in found.items():
        columns: dict[tuple[Any, ...], list[Record]] = {}
        for r in sorted(records, key=key_of):
            columns.setdefault(tuple(r[k] for k in _OF_ALL), []).append(r)
        out[way] = [
            dict(zip(_OF_ALL, of_all, strict=True))
            | {k: [r[k] for r in rows] for k in rows[0] if k not in {*_OF_ALL, *_NOT_PACKED}}
            for of_all, rows in columns.items()
        ]
    return out


def _unpacked(column: Mapping[str, Any]) -> Iterator[Record]:
    of_all = {k: column[k] for k in _OF_ALL}
    each = {k: v for k, v in column.items() if k not in of_all}
    for values in zip(*each.values(), strict=True):
        yield of_all | dict(zip(each, values, strict=True))


# -- the table -------------------------------------------------------------------------------------

Rows = Mapping[int, Record]  # by seed
Groups = Mapping[tuple[str, float, str], Rows]

_RIVALS = ("gp", "tpe", "nsga2", "botorch", "sweep", "grid", "shuffled", "random")


def table(found: Found) -> Iterator[str]:
    """Markdown, a row for each world, noise and batch."""
    groups = {way: _groups(records) for way, records in found.items()}
    new, old = groups["new"], groups.get("old", {})
    order = {name: i for i, name in enumerate(names())}
    places = sorted(
        {key[:2] for key in (*new, *old)}, key=lambda x: (order.get(x[0], len(order)), *x)
    )
    rivals = [s for s in _RIVALS if any(key[2] == s for key in new)]
    head = ["world", "noise", "batch", *(f"99 %: {s}" for s in rivals)]
    head += ["99 %: old", "99 %: new", "new - old", "ends: old, new", "crash: old, new"]
    head += ["missing: old", "missing: new", "new - old", "short: old", "short: new", "says so"]
    yield _line(head)
    yield _line(["---"] + ["--:"] * (len(head) - 1))
    for name, sigma in places:
        others = [_one(_launches, new.get((name, sigma, s))) for s in rivals]
        for strategy, batch in OURS.items():
            key = (name, sigma, strategy)
            if key in new or key in old:
                figures = _figures(old.get(key), new.get(key))
                yield _line([name, f"{100 * sigma:g} %", str(batch), *others, *figures])
                others = [""] * len(rivals)
        if any(others):
            yield _line([name, f"{100 * sigma:g} %", "", *others, *[""] * 11])
    yield ""
    for way, by in groups.items():
        for strategy in (*_RIVALS, *OURS):
            counts = sorted({len(rows) for key, rows in by.items() if key[2] == strategy})
            if counts:
                yield f"{way}, {strategy}: replays {' or '.join(map(str, counts))}"


def _groups(records: Sequence[Record]) -> dict[tuple[str, float, str], Rows]:
    out: dict[tuple[str, float, str], dict[int, Record]] = {}
    for r in records:
        out.setdefault((r["world"], r["sigma"], r["strategy"]), {})[r["seed"]] = r
    return dict(out)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _figures(old: Rows | None, new: Rows | None) -> list[str]:
    """The cells of one row after those of other strategies."""
    ends, crashes = (
        ", ".join(x for x in (_one(f, old), _one(f, new)) if x) for f in (_end, _crashed)
    )
    return [
        *(_one(_launches, rows) for rows in (old, new)),
        _paired(old, new, _capped),
        ends,
        crashes if crashes.strip("0., ") else "",
        *(_one(_missing, rows) for rows in (old, new)),
        _paired(old, new, _missed),
        *(_one(_short, rows) for rows in (old, new)),
        _one(_says, new),
    ]


def _one(figure: Callable[[Sequence[Record]], str], rows: Rows | None) -> str:
    return "" if rows is None else figure(list(rows.values()))


def _launches(rows: Sequence[Record]) -> str:
    """Median [quartiles]; –: beyond what was replayed."""
    values = [math.inf if r["reached"] is None else r["reached"] for r in rows]
    low, middle, high = ("–" if math.isinf(x) else f"{x:.0f}" for x in quartiles(values))
    return f"{middle} [{low}, {high}]"


def quartiles(values: Sequence[float]) -> list[float]:
    """The lower of two neighbors, as no launch is a half one."""
    return [float(x) for x in np.quantile(values, [0.25, 0.5, 0.75], method="lower")]


def _end(rows: Sequence[Record]) -> str:
    """Median and ninth decile."""
    middle, most = np.quantile([r["end"] for r in rows], [0.5, 0.9], method="lower")
    return f"{middle:.0f} ({most:.0f})"


def _crashed(rows: Sequence[Record]) -> str:
    """Mean number at the end."""
    return f"{np.mean([r['crashed'] for r in rows]):.1f}"


def _missing(rows: Sequence[Record]) -> str:
    """Median and mean, in percent."""
    values = [100 * r["missing"] for r in rows]
    return f"{np.median(values):.1f} ({np.mean(values):.1f})"


def _short(rows: Sequence[Record]) -> str:
    """Means of tok/s and p95, in percent."""
    rate, p95 = 100 * np.mean([r["short"] for r in rows], axis=0)
    return f"{rate:.1f}, {p95:.1f}"


def _says(rows: Sequence[Record]) -> str:
    """How often it says that nothing differs and that nothing is better, and the bounds."""
    if any(r["says"] is None for r in rows):
        return ""
    differs, better = ([r["says"][x] for r in rows if r["says"][x]] for x in ("differs", "better"))
    text = f"{100 * len(differs) / len(rows):.0f}, {100 * len(better) / len(rows):.0f} %"
    if not differs:
        return text
    rate, p95 = 100 * np.median(differs, axis=0)
    return f"{text} ({rate:.0f}, {p95:.0f})"


def _capped(r: Record) -> float:
    """Launches to 99 %; of a replay that did not get there, the most that it had."""
    return float(r["most"] if r["reached"] is None else r["reached"])


def _missed(r: Record) -> float:
    return 100 * float(r["missing"])


def _paired(old: Rows | None, new: Rows | None, figure: Callable[[Record], float]) -> str:
    """Mean of new less old over the same seeds ± its standard error; bold: worse beyond two."""
    found = None if old is None or new is None else difference(old, new, figure)
    if found is None:
        return ""
    mean, error = found
    text = f"{mean:+.1f} ± {error:.1f}".replace("-", "−")
    return f"**{text}**" if mean > 2 * error else text


def difference(
    old: Rows, new: Rows, figure: Callable[[Record], float]
) -> tuple[float, float] | None:
    """Mean of new less old over the same seeds, and its standard error; None: fewer than two."""
    seeds = sorted(old.keys() & new.keys())
    if len(seeds) < 2:
        return None
    d = np.array([figure(new[s]) - figure(old[s]) for s in seeds])
    return float(d.mean()), float(d.std(ddof=1) / math.sqrt(len(d)))
