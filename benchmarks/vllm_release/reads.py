"""What autotune reads of a server: counters, addresses, answers, lines of the log, modules."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields

from autotune.bench.running import parse_gauges
from autotune.bench.server_metrics import Counters, ServerStats, difference, parse
from autotune.engine import compile_cache, failures, launch_stages
from autotune.engine.variables import is_kept, matters
from benchmarks.vllm_release.accepts import Answers, unasked
from benchmarks.vllm_release.page import Section, Todo, code, listed, table
from benchmarks.vllm_release.source import CLASSES, Read, has, imported, mentioned, named

_METRICS_FILE = "autotune/bench/server_metrics.py"
_NEEDS = ("torch", "transformers", "prometheus-client", "pydantic", "fastapi", "triton")


def unknown_of(page: str) -> list[str]:
    """Return the figures that autotune does not find on a page of ``/metrics``.

    Args:
        page: Page of a server that drafts, in Prometheus' text format; each counter is taken as
            grown since.
    """
    first = parse(page)
    grown = {name: value + 8 for name, value in first.values.items()}
    positions = tuple(value + 1 for value in first.accepted_per_position)
    found = difference(first, Counters(grown, positions, first.started, first.others))
    empty = [f.name for f in fields(ServerStats) if getattr(found, f.name) in (None, ())]
    empty = [name for name in empty if name != "unknown"]
    gauges = parse_gauges(page.encode())
    empty += [f"requests {x}" for x in ("running", "waiting") if getattr(gauges, x, None) is None]
    return empty + ([f"all: {found.unknown}"] if found.unknown else [])


def metrics_section(
    old: tuple[str, Read, Answers],
    new: tuple[str, Read, Answers],
    names: Callable[..., list[str]] = named,
) -> Section:
    """Return metrics that came and went, and what autotune still finds on the page.

    Args:
        old: Older version, its source, its answers.
        new: The same of the newer one.
        names: Returns where autotune's code has some texts.
    """
    (a_version, a, before), (b_version, b, now) = old, new
    rows, todo = [], []
    for name in sorted({*a.metrics, *b.metrics}):
        short = name.removeprefix("vllm:")
        where = names(name, f"{name}_total") or names(short, within=_METRICS_FILE)
        where = where or mentioned(name)
        if not where:
            continue
        rows.append(
            (code(name), *(code(x.metrics.get(name, "")) or "–" for x in (a, b)), listed(where, 4))
        )
        if name not in b.metrics:
            todo.append(Todo("now", f"The counter {code(name)} is gone: {listed(where, 4)}"))
    lines = ["### Counters that autotune reads", ""]
    lines += table(("metric", f"declared in {a_version}", b_version, "read in"), rows)
    added, gone = (sorted(set(x.metrics) - set(y.metrics)) for x, y in ((b, a), (a, b)))
    lines += ["", f"New: {listed(added) or 'none'}. Dropped: {listed(gone) or 'none'}.", ""]
    if near := [n for n in added if "spec" in n or "draft" in n]:
        todo.append(Todo("look", f"New counters of speculation: {listed(near)}: `{_METRICS_FILE}`"))
    why = unasked("metrics", (a_version, before), (b_version, now))
    if not why:
        missing = [unknown_of(x["metrics"]) for x in (before, now)]
        lines.append(
            f"Figures that autotune does not find on the page of a server that drafts: "
            f"{listed(missing[0]) or 'none'} in {a_version}, {listed(missing[1]) or 'none'} in "
            f"{b_version}."
        )
        if lost := [x for x in missing[1] if x not in missing[0]]:
            todo.append(Todo("now", f"autotune finds no more {listed(lost)}: `{_METRICS_FILE}`"))
    lines += ["", *_api(a_version, a, b_version, b, names, todo)]
    return Section("Metrics and API", lines, todo, why)


def _api(
    a_version: str,
    a: Read,
    b_version: str,
    b: Read,
    names: Callable[..., list[str]],
    todo: list[Todo],
) -> Iterator[str]:
    """Yield lines on addresses and fields; what is wrong is added to ``todo``."""
    yield "### Addresses and fields that autotune uses"
    yield ""
    used = [x for x in sorted(a.addresses) if names(x)]
    for address in used:
        if address not in b.addresses:
            todo.append(Todo("now", f"{code(address)} is gone: {listed(names(address), 4)}"))
    kept = [x for x in used if x in b.addresses]
    yield f"Addresses: {listed(kept) or 'none'} are in both versions."
    yield ""
    rows = []
    for name in CLASSES:
        x, y = a.fields.get(name, ()), b.fields.get(name, ())
        if x and not y:
            todo.append(
                Todo("look", f"The class {code(name)} of {a_version} has moved out of entrypoints")
            )
        gone = [f for f in x if f not in y]
        ours = [f for f in x if names(f, within="autotune/bench/")]
        lost = [f for f in gone if f in ours] if y else []
        if lost:
            todo.append(
                Todo(
                    "now",
                    f"{code(name)} has no {listed(lost)} any more: `autotune/bench/`",
                )
            )
        rows.append(
            (code(name), listed(ours, 12), listed([f for f in y if f not in x]), listed(gone))
        )
    yield from table(("class", "autotune names", f"new in {b_version}", "dropped"), rows)


def patterns() -> Iterator[tuple[str, re.Pattern[str]]]:
    """Yield what autotune looks for in a server's log, with where it is written."""
    for module in (launch_stages, compile_cache):
        file = module.__name__.rpartition(".")[2]
        for name, value in vars(module).items():
            if isinstance(value, re.Pattern):
                yield f"{file}.{name}", value
            elif isinstance(value, str) and re.match("_[A-Z]", name) and " " in value.strip():
                yield f"{file}.{name}", re.compile(re.escape(value.strip()))
    for stage in failures._STAGES:
        yield f"failures._STAGES: {stage.when}", re.compile(f"^(?:{stage.line.pattern})")


def logs_section(
    old: str,
    new: str,
    before: Mapping[str, str],
    now: Mapping[str, str],
    looked_for: Sequence[tuple[str, re.Pattern[str]]] | None = None,
) -> Section:
    """Return the lines of a log that autotune looks for and a version no longer writes.

    Args:
        old: Older version.
        new: Newer version.
        before: Texts that the older version logs, with their files.
        now: Those of the newer one.
        looked_for: What autotune looks for; by default :func:`patterns`.
    """
    rows, todo, same = [], [], 0
    for name, pattern in looked_for if looked_for is not None else list(patterns()):
        a = [t for t in before if pattern.search(t)]
        b = [t for t in now if pattern.search(t)]
        gone = [t for t in a if t not in b]
        if not a:
            continue
        if not gone:
            same += 1
            continue
        rows.append((code(name), "; ".join(code(t) for t in gone), "; ".join(code(t) for t in b)))
        what = f"`autotune/engine/{name.partition('.')[0]}.py` ({code(name)})"
        if b:
            words = f"{what} still finds {code(b[0])}; {old} also wrote {code(gone[0])}"
            todo.append(Todo("look", words))
        else:
            words = f"{what} looks for a line that {new} does not write: {code(gone[0])}"
            todo.append(Todo("now", words))
    lines = [f"{same} of {same + len(rows)} texts are written as before."]
    if rows:
        lines += ["", *table(("looked for by", f"only in {old}", f"found in {new}"), rows)]
    return Section("Lines of the log that autotune reads", lines, todo)


def modules_section(old: tuple[str, Read], new: tuple[str, Read]) -> Section:
    """Return modules and names of vLLM that autotune imports and the newer version lacks."""
    (a_version, a), (b_version, b) = old, new
    rows, todo, same = [], [], 0
    for (module, name), places in sorted(
        imported().items(), key=lambda x: (x[0][0], x[0][1] or "")
    ):
        if not has(a.root, module, name):
            continue
        if has(b.root, module, name):
            same += 1
            continue
        text = module if name is None else f"{module}: {name}"
        others = [m for m in _tried(places) if has(b.root, m) and not has(a.root, m)]
        rows.append((code(text), listed(places, 4), listed(others)))
        if not others:
            todo.append(
                Todo("now", f"{code(text)} is gone, which {listed(places, 4)} imports or names")
            )
    lines = [f"{same} of {same + len(rows)} modules and names that {a_version} has are there."]
    if rows:
        lines += ["", *table(("gone", "named in", f"there, too, and in {b_version}"), rows)]
    return Section(f"Modules of vLLM that autotune imports ({b_version})", lines, todo)


def _tried(places: Sequence[str]) -> list[str]:
    """Return the modules of vLLM that are named in the same files."""
    files = {place.partition(":")[0] for place in places}
    return [
        module
        for (module, name), where in imported().items()
        if name is None and files & {place.partition(":")[0] for place in where}
    ]


def environment_section(old: Read, new: Read, version: str) -> Section:
    """Return environment variables and requirements that came and went."""
    added, gone = sorted(new.variables - old.variables), sorted(old.variables - new.variables)
    rows = [
        (code(name), "compared" if matters(name) else "not compared")
        for name in added
        if is_kept(name)
    ]
    compared = [name for name in added if is_kept(name) and matters(name)]
    todo = [
        Todo("now", f"autotune names {code(name)}, which is gone: {listed(named(name), 4)}")
        for name in gone
        if named(name)
    ]
    if compared:
        todo.append(
            Todo(
                "look",
                f"Do the new variables {listed(compared)} change figures? Those that do not (logs, "
                "places, addresses, waiting) belong into `VLLM_NO_MATTER_LATER` of "
                "`autotune/engine/variables.py`",
            )
        )
    lines = [f"Dropped: {listed(gone) or 'none'}.", ""]
    lines += table((f"new in {version}", "in two launches"), rows)
    changed = [
        (name, code(old.needs.get(name, "–")), code(new.needs.get(name, "–")))
        for name in sorted({*old.needs, *new.needs})
        if old.needs.get(name) != new.needs.get(name)
    ]
    lines += ["", "### Requirements", ""]
    lines += table(("package", "before", "now"), changed) if changed else ["As before."]
    if near := [name for name, *_ in changed if name in _NEEDS]:
        todo.append(
            Todo(
                "look",
                f"Other requirements: {listed(near)}: the tables were asked with the packages that "
                "the head of this page names",
            )
        )
    return Section("Environment", lines, todo)
