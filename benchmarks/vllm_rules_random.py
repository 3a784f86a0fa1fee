"""autotune's rules against what a vLLM says of settings drawn at random.

    python -m benchmarks.vllm_rules_random SOURCE … [--seed S] [--settings N]

The tables of `benchmarks/vllm_rules.py` ask about chosen settings, mostly one key at a time, and
the rules were mended with them at hand. Here every setting has n, MNBT, mostly max_num_seqs, and up
to four more keys together, each with a value that a table has. Settings that the rules have never
seen tell how many false refusals and missed failures are left; nothing is written. A SOURCE is one
of `benchmarks/vllm_rules.py`.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks import vllm_rules_compare as compare
from benchmarks.vllm_rules import ask, source_of
from benchmarks.vllm_rules_base import CPU, CUDA, METHODS, MNBT, SEQS, D, Group, N, draft, group
from benchmarks.vllm_rules_cases import groups, settings_of

_MNBT = [8, 16, 17, 33, 64, 100, 128, 256, 300, 512, 1000, 1024, 2048, 4096, 8192, 16384]
_SEQS = [1, 2, 4, 7, 16, 31, 32, 64, 100, 128, 256, 300]
# Drafts of a method besides its first.
_DRAFTS = {
    "dflash": ["dflash-7", "dflash-mixed"],
    "dspark": ["dspark-7", "dspark-own-7", "dspark-fill", "dspark-few"],
    "draft_model": ["other-words"],
}
_SHARE_WITHOUT_SEQS, _SHARE_WITHOUT_DRAFTS = 0.2, 0.1
_KEYS = (0, 0, 1, 1, 2)  # as many more keys, of the server and of the draft


def drawn(seed: int, count: int) -> list[Group]:
    """Return groups of about ``count`` random settings in all, the same for a seed."""
    rng, values = random.Random(seed), _values()
    made = []
    for platform, share in ((CUDA, 0.8), (CPU, 0.2)):
        each = max(1, round(count * share / (len(METHODS) + 1)))
        plain = [_case(rng, values, plain=True) for _ in range(each)]
        made.append(group("none", "random", platform, {"model": "target"}, cases=plain))
        for method in METHODS:
            cases = [_case(rng, values, plain=False) for _ in range(each)]
            others = _DRAFTS.get(method, [])
            for case in cases:
                if others and rng.random() < 0.5:
                    case[f"{D}model"] = rng.choice(others)
            made.append(group(method, "random", platform, draft(method), cases=cases))
    return made


def _values() -> dict[str, list[Any]]:
    """Return the values that the tables have of each key that a random setting may have."""
    found: dict[str, list[Any]] = defaultdict(list)
    chosen = (N, MNBT, SEQS, "model", f"{D}method", f"{D}model")
    for each in groups():
        for settings in settings_of(each):
            for key, value in settings.items():
                if key not in (*chosen, *each["fixed"]) and value not in found[key]:
                    found[key].append(value)
    return dict(found)


def _case(rng: random.Random, values: Mapping[str, list[Any]], *, plain: bool) -> dict[str, Any]:
    case: dict[str, Any] = {MNBT: rng.choice(_MNBT)}
    if rng.random() >= _SHARE_WITHOUT_SEQS:
        case[SEQS] = rng.choice(_SEQS)
    if not plain:
        case[N] = 0 if rng.random() < _SHARE_WITHOUT_DRAFTS else rng.randint(1, 16)
    for of_draft in (False, True):
        names = [k for k in values if k.startswith(D) is of_draft]
        for name in rng.sample(names, rng.choice(_KEYS) if not (plain and of_draft) else 0):
            case[name] = rng.choice(values[name])
    return case


def _lines(table: Mapping[str, Any]) -> Iterator[str]:
    found = list(compare.judged(table))
    yield compare.row_of(table, found)
    yield from (f"    {x}" for x in found if x.verdict in compare.WRONG)


def main(argv: Sequence[str] | None = None) -> None:
    """Print counts, and each setting that rules and vLLM answer differently."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="+", help="folder, source distribution or wheel")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--settings", type=int, default=1500)
    args = parser.parse_args(argv)
    print(compare.HEAD)
    for given in args.source:
        with source_of(given) as source:
            table = ask(source, drawn(args.seed, args.settings))
        print("\n".join(_lines(table)), flush=True)


if __name__ == "__main__":
    main()
