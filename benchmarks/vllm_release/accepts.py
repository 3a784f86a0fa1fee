"""What a server of each version accepts: flags, keys of ``--speculative-config``, own defaults.

The answers are those of `worker.py`: a mapping by part, in which a part that could not be asked is
a list with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from autotune.engine.cache_dtypes import cache_dtypes
from autotune.engine.draft_keys import _unknown_key, _unknown_method, _unknown_word
from autotune.engine.draft_method import _by_architecture
from autotune.engine.removed_flags import REMOVED
from autotune.engine.rule import METHOD, NOTHING, Launch, minor_of
from autotune.engine.rules import READ
from autotune.study.space import DRAFT, N
from autotune.study.vllm_flags import table_version
from benchmarks.vllm_release.page import Section, Todo, code, listed, table
from benchmarks.vllm_release.source import Read, named
from benchmarks.vllm_release.tables import minor

Answers = Mapping[str, Any]
# Words in the names of flags that decide what autotune searches or how it measures.
_NEAR = (
    *("spec", "batch", "seqs", "graph", "kv_cache", "prefill", "schedul", "compil", "draft"),
    *("gpu_memory", "stats", "metrics", "block_size", "performance", "eager", "usage"),
)
_KEYS_FILE = "`autotune/engine/draft_keys.py`"


def unasked(part: str, *answers: tuple[str, Answers]) -> str:
    """Return why a part of the answers is not known, with the version; empty: it is.

    Args:
        part: Name of the part.
        answers: Versions with their answers.
    """
    for version, each in answers:
        found = each.get(part)
        if found is None or (isinstance(found, list) and len(found) == 1):
            return f"vLLM {version}: {found[0] if found else 'was not asked'}"
    return ""


def flags_section(
    old: str, new: str, before: Answers, now: Answers, *, names: Callable[..., list[str]] = named
) -> Section:
    """Return new, dropped and changed flags.

    Args:
        old: Older version.
        new: Newer version.
        before: Answers of the older version.
        now: Answers of the newer one.
        names: Returns where autotune's code has some texts.
    """
    title = "Flags"
    if why := unasked("flags", (old, before), (new, now)) or unasked(
        "options", (old, before), (new, now)
    ):
        words = f"autotune's probe does not read the flags of {new}: `autotune/engine/_probe.py`"
        lost = unasked("options", (new, now)) and not unasked("options", (old, before))
        return Section(title, [], [Todo("now", words)] if lost else [], why)
    a, b = ({f["names"][0]: f for f in x["flags"]["flags"]} for x in (before, now))
    todo = []
    lines = [f"{len(a)} flags in {old}, {len(b)} in {new}.", "", "### New", ""]
    added = sorted(set(b) - set(a))
    near = [f for f in added if any(w in _plain(f) for w in _NEAR)]
    lines += table(
        ("flag", "takes", "choices"),
        [(code(f), _takes(b[f]), listed(now["options"].get(_plain(f)) or (), 12)) for f in added],
    )
    if near:
        todo.append(
            Todo(
                "look",
                f"New flags that may decide what is searched or measured: {listed(near)}. What "
                "does each do to n, MNBT, batches and counters? A rule, a doubt "
                "(`autotune/engine/doubts.py`), a word in docs/study-file.md, or nothing",
            )
        )
    gone = sorted(set(a) - set(b))
    lines += ["", "### Dropped", ""]
    lines += table(
        ("flag", "autotune names it in"), [(code(f), listed(_where(f, names), 6)) for f in gone]
    )
    for flag in gone:
        if owned := [p for p in _where(flag, names) if "engine/command.py" in p]:
            todo.append(Todo("now", f"autotune starts servers with {code(flag)} ({listed(owned)})"))
        if _plain(flag) not in REMOVED:
            todo.append(
                Todo(
                    "then",
                    f"{code(flag)} is gone: say in `autotune/engine/removed_flags.py` what took "
                    "its place",
                )
            )
    lines += ["", "### Changed", ""]
    lines += _spellings(a, b, todo)
    changed = list(_changed(a, b, before["options"], now["options"]))
    lines += table(("flag", "what", old, new), changed)
    table_of = table_version()
    todo.append(
        Todo(
            "then",
            f"`autotune/study/vllm_flags.json` is that of {table_of}: when the `cpu` extra of "
            f"pyproject.toml moves to {new}, `python -m benchmarks.vllm_flags`",
        )
    )
    return Section(title, lines, todo)


def _plain(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _where(flag: str, names: Callable[..., list[str]]) -> list[str]:
    places = names(flag, _plain(flag), flag.removeprefix("--"))
    return [p for p in places if "removed_flags" not in p]


def _takes(flag: Mapping[str, Any]) -> str:
    words = {"none": "nothing", "one": "a value", "maybe": "perhaps a value", "some": "values"}
    what = words[flag["takes"]]
    return "a JSON object" if flag.get("mapping") and flag["takes"] == "one" else what


def _spellings(
    a: Mapping[str, Mapping[str, Any]], b: Mapping[str, Mapping[str, Any]], todo: list[Todo]
) -> Iterator[str]:
    """Yield lines on spellings of flags that both versions have; what to do is added."""
    for what, old, new in (("more", a, b), ("fewer", b, a)):
        names = [n for f in sorted(set(old) & set(new)) for n in new[f]["names"]
                 if n not in old[f]["names"]]  # fmt: skip
        if not names:
            continue
        yield f"{len(names)} spellings {what} of flags that both have: {listed(names, 8)}."
        yield ""
        if what == "fewer":
            words = "does a launch, an export or `init` write them (`autotune/engine/command.py`)?"
            todo.append(Todo("look", f"Spellings that are gone: {listed(names, 8)}; {words}"))
        else:
            words = "does `init` read them (`autotune/study/vllm_flags.py`)?"
            todo.append(Todo("look", f"New spellings: {listed(names, 4)}; {words}"))


def _changed(
    a: Mapping[str, Mapping[str, Any]],
    b: Mapping[str, Mapping[str, Any]],
    before: Mapping[str, Any],
    now: Mapping[str, Any],
) -> Iterator[tuple[str, str, str, str]]:
    for flag in sorted(set(a) & set(b)):
        for key in ("takes", "text", "mapping", "repeats"):
            x, y = a[flag].get(key, False), b[flag].get(key, False)
            if x != y:
                yield code(flag), key, code(json.dumps(x)), code(json.dumps(y))
        x, y = (each.get(_plain(flag)) for each in (before, now))
        if x != y:
            more = [c for c in y or () if c not in (x or ())]
            less = [c for c in x or () if c not in (y or ())]
            if x and y:
                shown = [f"also {listed(each)}" if each else "" for each in (less, more)]
                yield code(flag), "choices", shown[0], shown[1]
            else:
                shown = [listed(each or (), 30) or "any" for each in (x, y)]
                yield code(flag), "choices", shown[0], shown[1]


def speculative_section(
    old: str, new: str, before: Answers, now: Answers, drafts: tuple[Read, Read]
) -> Section:
    """Return keys, words, methods and architectures of drafts, and which autotune does not know."""
    title = "Ways to speculate"
    if why := unasked("spec", (old, before), (new, now)):
        return Section(title, [], [], why)
    a, b = before["spec"], now["spec"]
    rows, todo = [], []
    level = "now" if minor_of(new) in READ else "then"
    for what, x, y in (
        ("keys", set(a["keys"]), set(b["keys"])),
        ("methods", set(a["methods"]), set(b["methods"])),
        *(
            (f"words of `{key}`", set(a["words"].get(key, ())), set(b["words"].get(key, ())))
            for key in sorted({*a["words"], *b["words"]})
        ),
        ("architectures of drafts", set(drafts[0].drafts), set(drafts[1].drafts)),
    ):
        if x != y:
            rows.append((what, listed(sorted(y - x)), listed(sorted(x - y))))
    lines = table(("what", f"new in {new}", f"not in {new} any more"), rows)
    moved = [
        (code(k), code(a["keys"][k] or "None"), code(b["keys"][k] or "None"))
        for k in sorted(set(a["keys"]) & set(b["keys"]))
        if a["keys"][k] != b["keys"][k]
    ]
    if moved:
        lines += ["", "Other defaults:", "", *table(("key", old, new), moved)]
    todo += [Todo(level, text) for text in wrong_of_draft(new, a, b)]
    for name in sorted(set(drafts[1].drafts) - set(drafts[0].drafts)):
        # heads for multi-token prediction are found by their model_type
        if _by_architecture(name) is None and "mtp" not in name.lower():
            todo.append(
                Todo(
                    "look",
                    f"`autotune/engine/draft_method.py` finds no method for a draft of the new "
                    f"architecture {code(name)} (registry: {code(drafts[1].drafts[name])})",
                )
            )
    return Section(title, lines, todo)


def wrong_of_draft(version: str, old: Answers, new: Answers) -> Iterator[str]:
    """Yield what autotune's rules say wrongly of keys, words and methods of a version.

    Args:
        version: The newer version.
        old: Part ``spec`` of the older version.
        new: That of the newer one.
    """

    def launch(**draft: Any) -> Launch:
        settings = {N: 3, **{f"{DRAFT}{k}": v for k, v in draft.items()}}
        return Launch(settings, NOTHING, f"vLLM {version}", minor_of(version))

    since = minor(version)
    for key in sorted(new["keys"]):
        if key != N and _unknown_key(launch(**{key: 1})):
            yield f"The key {code(key)} is new: `_LATER_KEYS` of {_KEYS_FILE}, {since}"
    for key in sorted(set(old["keys"]) - set(new["keys"])):
        if not _unknown_key(launch(**{key: 1})):
            yield f"The key {code(key)} is gone, and the rules take it: {_KEYS_FILE}"
    for method in sorted(new["methods"]):
        if _unknown_method(Launch({N: 3, METHOD: method}, NOTHING, "vLLM", minor_of(version))):
            yield f"The method {code(method)} is new: `_LATER_METHODS` of {_KEYS_FILE}, {since}"
    for method in sorted(set(old["methods"]) - set(new["methods"])):
        if not _unknown_method(Launch({N: 3, METHOD: method}, NOTHING, "vLLM", minor_of(version))):
            yield f"The method {code(method)} is gone: `_DROPPED_METHODS` of {_KEYS_FILE}"
    for key, words in sorted(new["words"].items()):
        for word in words:
            if _unknown_word(launch(**{key: word})):
                yield f"{code(key)} may now be {code(word)}: `_WORDS` of {_KEYS_FILE}, {since}"
        for word in sorted(set(old["words"].get(key, ())) - set(words)):
            if key in ("rejection_sample_method", "draft_sample_method") and not _unknown_word(
                launch(**{key: word})
            ):
                yield f"{code(key)} has no word {code(word)} any more: `_WORDS` of {_KEYS_FILE}"
    known = cache_dtypes(minor_of(version) or READ[-1])
    if more := [w for w in new["words"].get("kv_cache_dtype", ()) if w not in known]:
        yield f"New values of `kv_cache_dtype`: {listed(more)}: `autotune/engine/cache_dtypes.py`"


def defaults_section(
    old: str, new: str, before: Sequence[Answers], now: Sequence[Answers]
) -> Section:
    """Return vLLM's own MNBT, max_num_seqs and most requests at once.

    Args:
        old: Older version.
        new: Newer version.
        before: Answers of the older version, for a CPU and a GPU.
        now: Answers of the newer one.
    """
    rows, whys, differ = [], [], 0
    for a, b in zip(before, now, strict=True):
        if why := unasked("defaults", (old, a), (new, b)):
            whys.append(why)
            continue
        for case, y in b["defaults"].items():
            x = a["defaults"].get(case)
            differ += x != y
            rows.append((case, _batch(x), _batch(y), "**changed**" if x != y else ""))
    todo = []
    if differ:
        todo.append(
            Todo(
                "look",
                f"{differ} of {len(rows)} own defaults changed: `autotune/engine/rule.py: "
                "Launch.seqs`, docs/study-file.md, and the default space of `init`",
            )
        )
    head = ("settings left out on", old, new, "")
    intro = "MNBT / max_num_seqs, and the most requests at once where vLLM states it."
    lines = [intro, "", *table(head, rows)] if rows else []
    return Section("vLLM's own batch", lines, todo, "; ".join(whys))


def _batch(found: Any) -> str:
    if not isinstance(found, list):
        return code(found or "not asked")
    mnbt, seqs, active = found
    return f"{mnbt} / {seqs}" + ("" if active in (None, seqs) else f", at most {active} at once")
