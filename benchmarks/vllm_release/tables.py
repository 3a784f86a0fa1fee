"""Two tables of `benchmarks/vllm_rules.py` compared: what a newer vLLM decides differently."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autotune.engine import rules
from benchmarks.vllm_release.page import Section, Todo, code, table
from benchmarks.vllm_rules import DATA, Source, ask, asks, shape, unpacked, written
from benchmarks.vllm_rules_cases import groups, settings_of
from benchmarks.vllm_rules_compare import (
    HEAD,
    WRONG,
    Judged,
    Verdict,
    graphs_of,
    replays_of,
    row_of,
)

_EACH_S = 30.0  # between two lines of progress
# What a table tells of settings that start, in words.
COLUMNS = {
    "seqs": "vLLM's own max_num_seqs",
    "active": "requests that run at once",
    "sizes": "list of CUDA-graph sizes",
    "full": "rows of FULL graphs",
    "replays": "graph that a batch of requests replays",
    "runner": "model runner",
}


@contextmanager
def heard(what: str, say: Callable[[str], None]) -> Iterator[None]:
    """Say that something goes on, again and again, until the end of the block."""
    ended = threading.Event()
    begun = time.monotonic()

    def beat() -> None:
        while not ended.wait(_EACH_S):
            say(f"  {what}: {(time.monotonic() - begun) / 60:.1f} min so far")

    say(f"{what} …")
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def table_of(source: Source, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the table of a vLLM: a kept one of this very source, or vLLM's answers of now.

    A kept table may lack groups of settings, which are then not asked.

    Args:
        source: Source of the vLLM.
        folder: Folder for tables that are asked; it is looked at before the committed ones.
        say: Takes lines of progress.
    """
    for place in (folder, DATA):
        path = place / f"{source.version}.json"
        if path.is_file():
            kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if kept.get("sha256") == source.sha256:
                return kept
            say(f"{path} was made of another source: its answers are not used")
    number = sum(1 for g in groups() for _ in settings_of(g))
    with heard(f"vLLM {source.version} answers {number} settings", say):
        answers = ask(source)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{source.version}.json").write_text(written(answers), encoding="utf-8")
    return answers


@dataclass(frozen=True)
class Change:
    """Settings that two versions answer differently.

    Attributes:
        group: Group of the newer table.
        settings: The settings.
        before: Message of the older version; None: the settings started.
        now: Message of the newer version; None: they start.
    """

    group: Mapping[str, Any]
    settings: Mapping[str, Any]
    before: Mapping[str, str] | None
    now: Mapping[str, str] | None


def pairs(
    old: Mapping[str, Any], new: Mapping[str, Any]
) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Yield the groups that both tables have."""
    had = {asks(g): g for g in old["groups"]}
    for group in new["groups"]:
        if (before := had.get(asks(group))) is not None:
            yield before, group


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    """Yield the settings that start in one version only, and those refused in other words."""
    for before, group in pairs(old, new):
        codes = zip(
            settings_of(group),
            unpacked(before["answers"]),
            unpacked(group["answers"]),
            strict=True,
        )
        for settings, a, b in codes:
            first = old["messages"][a - 1] if a else None
            second = new["messages"][b - 1] if b else None
            if _said(first) != _said(second):
                yield Change(group, settings, first, second)


def _said(message: Mapping[str, str] | None) -> str | None:
    return None if message is None else shape(message["text"])


def _key(group: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    return asks(group) + json.dumps(settings)


def autotune_says(change: Change, wrong: Mapping[str, Judged]) -> str:
    """Return what autotune says of settings whose answer changed.

    Args:
        change: The settings with both answers.
        wrong: What :func:`judged` yields of the newer table, by group and settings.
    """
    found = wrong.get(_key(change.group, change.settings))
    if found is None:
        return "starts them" if change.now is None else "refuses them"
    if found.verdict in WRONG:
        return "**false refusal**" if found.verdict is Verdict.FALSE_REFUSAL else "**missed**"
    return f"{found.verdict}: {found.why}"


@dataclass
class _Row:
    """Changed settings with one message.

    Attributes:
        message: The message, with its place.
        example: Settings of the first.
        methods: Number of settings by method and platform.
        kinds: Kinds of the groups.
        ours: Number of settings by what autotune says.
    """

    message: Mapping[str, str]
    example: Mapping[str, Any]
    methods: Counter[str] = field(default_factory=Counter)
    kinds: dict[str, None] = field(default_factory=dict)
    ours: Counter[str] = field(default_factory=Counter)


def _rows(found: Sequence[Change], wrong: Mapping[str, Judged], *, refused: bool) -> list[_Row]:
    rows: dict[str, _Row] = {}
    for change in found:
        message = change.now if refused else change.before
        assert message is not None
        key = f"{message['at']} {shape(message['text'])}"
        row = rows.setdefault(key, _Row(message, change.settings))
        row.methods[f"{change.group['method']}, {_device(change.group)}"] += 1
        row.kinds[change.group["kind"]] = None
        row.ours[autotune_says(change, wrong)] += 1
    return sorted(rows.values(), key=lambda r: -r.methods.total())


def _device(group: Mapping[str, Any]) -> str:
    return str(group.get("gpu", group["platform"]))


def settings_changed(
    old: Mapping[str, Any], new: Mapping[str, Any], found_wrong: Sequence[Judged]
) -> Section:
    """Return what vLLM decides differently, by its own message.

    Args:
        old: Table of the older version.
        new: Table of the newer one.
        found_wrong: What :func:`judged` yields of the newer table.
    """
    lines = [_scope(old, new), ""]
    wrong = {_key(x.group, x.settings): x for x in found_wrong}
    found = list(changes(old, new))
    parts = (
        ("Newly refused", True, [c for c in found if c.before is None]),
        ("Newly started", False, [c for c in found if c.now is None]),
    )
    for title, refused, chosen in parts:
        rows = _rows(chosen, wrong, refused=refused)
        lines += [f"### {title}: {len(chosen)} settings", ""]
        if not rows:
            lines += ["None.", ""]
            continue
        lines += table(
            ("settings", "by", "about", "vLLM's message", "autotune", "such as"),
            [
                (
                    str(r.methods.total()),
                    "; ".join(f"{m} ({k})" for m, k in r.methods.most_common()),
                    "; ".join(r.kinds),
                    f"{code(r.message['text'], 240)} in {code(r.message['at'])}",
                    "; ".join(f"{ours} ({k})" for ours, k in r.ours.most_common()),
                    code(_shown(r.example)),
                )
                for r in rows
            ],
        )
        lines.append("")
    others = Counter(
        (c.before["text"], c.now["text"])
        for c in found
        if c.before is not None and c.now is not None
    )
    lines += [f"### Refused in other words: {others.total()} settings", ""]
    if others:
        rows_ = [(str(k), code(a), code(b)) for (a, b), k in others.most_common(20)]
        lines += table(("settings", old["vllm"], new["vllm"]), rows_)
        if len(others) > 20:
            lines.append(f"\n… and {len(others) - 20} more pairs of messages.")
    else:
        lines.append("None.")
    return Section("What vLLM's configuration decides differently", lines, _to_ask(old, new))


def _shown(settings: Mapping[str, Any]) -> str:
    """Return settings in one line, without the models that the table of cases names."""
    shown = {k: v for k, v in settings.items() if (k, v) != ("model", "target")}
    return ", ".join(f"{k} = {json.dumps(v)}" for k, v in shown.items())


def _scope(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    both = [group for _, group in pairs(old, new)]
    number = sum(len(unpacked(g["answers"])) for g in both)
    return (
        f"{number} settings in {len(both)} of {len(groups())} groups have an answer of both "
        "versions."
    )


def _to_ask(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Todo]:
    """Return what is to be done for tables that are not committed, or not complete."""
    wanted = {asks(g) for g in groups()}
    out = []
    for kept in (old, new):
        version = kept["vllm"]
        missing = len(wanted - {asks(g) for g in kept["groups"]})
        command = f"`python -m benchmarks.vllm_rules --version {version}`"
        if missing:
            out.append(
                Todo("then", f"The table of {version} lacks {missing} groups: {command}, commit")
            )
        elif not (DATA / f"{version}.json").is_file():
            out.append(
                Todo("then", f"No table of {version} is committed: {command}, then commit it")
            )
    return out


def rules_that_disagree(new: Mapping[str, Any], judgments: Sequence[Judged]) -> Section:
    """Return the settings that autotune's rules answer otherwise than the newer version.

    Args:
        new: Table of the newer version.
        judgments: What :func:`judged` yields of it.
    """
    version = new["vllm"]
    lines = [*HEAD.splitlines(), row_of(new, judgments), ""]
    todo = []
    if why := rules.why_unread(version):
        todo.append(
            Todo(
                "then",
                f"{why}. When nothing below is wrong with the rules, add {minor(version)} to "
                "`READ` of `autotune/engine/rules.py`, and run this again",
            )
        )
    found: dict[str, tuple[int, Judged]] = {}
    for wrong in judgments:
        if wrong.verdict in WRONG:
            key = f"{wrong.verdict} {shape(wrong.said)}"
            number, first = found.get(key, (0, wrong))
            found[key] = (number + 1, first)
    if not found:
        return Section("Rules that disagree", [*lines, "None."], todo)
    rows = []
    for number, wrong in sorted(found.values(), key=lambda x: -x[0]):
        what = "false refusal" if wrong.verdict is Verdict.FALSE_REFUSAL else "missed failure"
        said = code(wrong.said, 260)
        rows.append((str(number), what, wrong.group["method"], said, code(_shown(wrong.settings))))
        todo.append(Todo("now", f"{number} × {what}: {said}. {_where(wrong, version)}"))
    head = ("settings", "what", "method", "message", "such as")
    lines += [f"Examples: `python -m benchmarks.vllm_rules_compare {version}`.", ""]
    return Section("Rules that disagree", [*lines, *table(head, rows)], todo)


def _where(wrong: Judged, version: str) -> str:
    """Return which rule is to be mended, and how."""
    if wrong.verdict is Verdict.MISSED:
        return (
            f"Add a rule with `first={minor(version)}` to `autotune/engine/rules.py`, "
            "`draft_rules.py`, `draft_keys.py` or `method_rules.py`"
        )
    name = wrong.said.rpartition(" [")[2].removesuffix("]")
    rule = next((r for r in rules.RULES if r.name == name), None)
    file = "autotune/engine" if rule is None else rule.check.__module__.replace(".", "/") + ".py"
    return f"The rule “{name}” is in `{file}`: end it with `last`, or let it ask first"


def minor(version: str) -> str:
    """Return the minor version as the rules write it: ``(0, 34)``."""
    first, second = version.split(".")[:2]
    return f"({first}, {second})"


def columns(old: Mapping[str, Any], new: Mapping[str, Any]) -> Section:
    """Return where graphs, requests at once and model runner differ, and what autotune says."""
    numbers: Counter[str] = Counter()
    examples: dict[str, tuple[Mapping[str, Any], Any, Any]] = {}
    asked: Counter[str] = Counter()
    for before, group in pairs(old, new):
        for name in COLUMNS:
            if name not in before or name not in group:
                continue
            codes = [unpacked(g["answers"]) for g in (before, group)]
            values = [unpacked(g[name]) for g in (before, group)]
            for settings, a, b, x, y in zip(settings_of(group), *codes, *values, strict=True):
                if a or b:
                    continue
                asked[name] += 1
                if x != y:
                    numbers[name] += 1
                    examples.setdefault(name, (settings, x, y))
    rows = []
    for name in COLUMNS:
        if not asked[name]:
            continue
        what = f"{numbers[name]} of {asked[name]}"
        if name not in examples:
            rows.append((COLUMNS[name], what, "", "", ""))
            continue
        settings, x, y = examples[name]
        rows.append((COLUMNS[name], what, code(_shown(settings)), _short(x), _short(y)))
    lines = ["No group with these answers is in both tables."]
    if rows:
        head = ("answer", "settings that differ", "such as", old["vllm"], new["vllm"])
        lines = table(head, rows)
    wrong = list(other_graphs(new))
    todo = []
    if wrong:
        first = wrong[0]
        todo.append(
            Todo(
                "now",
                f"{len(wrong)} settings have other CUDA graphs than `autotune/engine/"
                f"cuda_graphs.py` computes for {new['vllm']}, such as {code(_shown(first[0]))}: "
                f"vLLM {_short(first[1])}, autotune {_short(first[2])}",
            )
        )
    elif any("replays" in g for g in new["groups"]):
        lines += [
            "",
            f"`autotune/engine/cuda_graphs.py` computes the graphs of {new['vllm']}. The other two",
            "numbers are compared with autotune's by `tests/engine/test_rules_table.py`, when the",
            "table is committed.",
        ]
    return Section("CUDA graphs, requests at once, model runner", lines, todo)


def other_graphs(
    new: Mapping[str, Any],
) -> Iterator[tuple[Mapping[str, Any], list[int], list[int]]]:
    """Yield settings with the FULL graphs of vLLM and those of `autotune.engine.cuda_graphs`.

    Only those are yielded where the two differ, in the list or in what a batch replays; then the
    list or the batches are given.
    """
    version = new["vllm"]
    for group in new["groups"]:
        if "replays" not in group:
            continue
        names = ("answers", "full", "replays", "runner")
        rows = zip(*(unpacked(group[x]) for x in names), strict=True)
        for settings, (refused, full, replays, runner) in zip(
            settings_of(group), rows, strict=True
        ):
            if refused or runner != "v2":
                continue
            ours = graphs_of(version, group, settings)
            batches = replays_of(ours, len(replays))
            if list(ours.full) != full:
                yield settings, full, list(ours.full)
            elif batches != replays:
                yield settings, replays, batches


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else f"{text[:76]} …"
