"""autotune's rules against the tables of `benchmarks/vllm_rules.py`.

    python -m benchmarks.vllm_rules_compare [VERSION …] [--examples N]

It prints counts for each version, and settings that are answered wrongly:

- a **false refusal**: a rule refuses settings that vLLM starts;
- a **missed failure**: vLLM refuses settings, and autotune says nothing.

Three kinds of settings are counted apart, with the reason:

- **doubted**: vLLM refuses for want of something that a plugin or a package may add, so no rule is
  certain; the doubt that :data:`DOUBTED` names must be shown instead, else the failure is missed;
- **asked elsewhere** (:data:`ELSEWHERE`): something before the rules keeps vLLM from being asked;
- **later** (:data:`LATER`): a rule speaks of what vLLM notices after its configuration is made, so
  the table cannot judge the rule.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from autotune.engine import rules
from autotune.engine.cuda_graphs import Graphs, Mode, graphs, most_tokens
from autotune.engine.draft_facts import draft_facts
from autotune.engine.rule import Known
from benchmarks.vllm_rules import DATA, read, shape, unpacked
from benchmarks.vllm_rules_base import CUDA, GPUS, H100, MNBT, MODELS, SEQS, D, N
from benchmarks.vllm_rules_cases import settings_of

_SIGNS = {Mode.FULL: 1, Mode.PIECEWISE: -1, Mode.NONE: 0}
# What vLLM says, as place and words, and what the doubt must say.
DOUBTED = (
    (r"_raise_for_unsupported: .*are not supported for now", "no draft .*only a plugin may have"),
    (r"_validate_cache_dtype: .*Invalid kv_cache_dtype", "no kv_cache_dtype .*only a plugin may"),
    (r"Model Runner V2 requires Triton", "needs model runner V2, and so Triton"),
    (r"Model Runner V1 does not support: (?!.*, )", "needs model runner V2, and so Triton"),
    (r"Async scheduling is not supported by the V1", "async_scheduling here without Triton"),
)
# What vLLM says, as place and words, and why no launch asks for it.
ELSEWHERE = (
    (
        r"^parser: argument error: (unrecognized arguments: --|argument --\S+: invalid choice)",
        "flags and their words are asked of vLLM's own parser (autotune/engine/flags.py)",
    ),
    (
        r"--per-request-spec-decode-metrics requires speculative decoding",
        "a launch at n = 0 is started without the flag (autotune/engine/command.py)",
    ),
)
# Rules by name, and where vLLM notices.
LATER = {
    "synthetic acceptance on a CPU": "the first request (utils/cpu_triton_utils.py)",
    "block of LiLiCorr": "the draft is loaded (model_executor/models/lilicorr.py)",
}


class Verdict(StrEnum):
    """How rules and vLLM compare where they do not agree."""

    FALSE_REFUSAL = "false refusals"
    MISSED = "missed failures"
    DOUBTED = "doubted"
    ELSEWHERE = "asked elsewhere"
    LATER = "later"


HEAD = f"""\
| vLLM | settings | refused by vLLM | {" | ".join(Verdict)} |
|---|{"---:|" * (2 + len(Verdict))}"""
WRONG = (Verdict.FALSE_REFUSAL, Verdict.MISSED)


@dataclass(frozen=True)
class Judged:
    """Settings that rules and vLLM answer differently.

    Attributes:
        version: Version of vLLM.
        group: Group of the table.
        settings: The settings.
        verdict: How the answers compare.
        said: Words of the rule or of vLLM, with rule or place.
        why: Reason of a verdict that is not wrong.
    """

    version: str
    group: Mapping[str, Any]
    settings: Mapping[str, Any]
    verdict: Verdict
    said: str
    why: str = ""

    def __str__(self) -> str:
        gpu = f", {self.group['gpu']}" if "gpu" in self.group else ""
        device = f"{self.group['platform']}{gpu}"
        return f"{self.version}, {device}: {self.verdict}: {dict(self.settings)}: {self.said}"


def known_of(group: Mapping[str, Any], settings: Mapping[str, Any]) -> Known:
    """Return what the rules know of machine and models, as `autotune.engine.feasibility` would."""
    target = MODELS[settings["model"]]
    cuda = group["platform"] == CUDA
    gpus = (GPUS[group.get("gpu", H100)],) if cuda else ()
    platform = str(group["platform"]).partition(" ")[0]
    name = settings.get(f"{D}model")
    runner = group.get("env", {}).get("VLLM_USE_V2_MODEL_RUNNER")
    return replace(
        rules.known_of(target, platform, None if cuda else True, gpus),
        target=target["model_type"],
        drafts={None: draft_facts(target)}
        | ({} if name is None else {name: draft_facts(MODELS[name])}),
        v2=None if runner is None else runner == "1",
    )


def graphs_of(version: str, group: Mapping[str, Any], settings: Mapping[str, Any]) -> Graphs:
    """Return autotune's CUDA graphs of settings that give max_num_seqs and MNBT."""
    most = most_tokens(version, known_of(group, settings).gpus)
    given = settings.get("cudagraph_capture_sizes")
    return graphs(settings.get(N, 0), settings[SEQS], settings[MNBT], version, given, most=most)


def replays_of(found: Graphs, batches: int) -> list[int]:
    """Return what batches of 1 to ``batches`` requests replay, as the tables write it.

    That is a graph's size in tokens, negative for a piecewise graph, and 0 for none.
    """
    runs = [found.replay(b) for b in range(1, batches + 1)]
    return [_SIGNS[mode] * size for mode, size in runs]


def judged(table: Mapping[str, Any]) -> Iterator[Judged]:
    """Yield the settings of a table that rules and vLLM answer differently."""
    version = table["vllm"]
    for group in table["groups"]:
        known: dict[Any, Known] = {}
        answers = unpacked(group["answers"])
        for settings, code in zip(settings_of(group), answers, strict=True):
            models = (settings["model"], settings.get(f"{D}model"))
            if models not in known:
                known[models] = known_of(group, settings)
            asked = {k: v for k, v in settings.items() if k != "model"}
            found = rules.infeasible(asked, version, known[models])
            if (found is None) == (code == 0):
                continue
            if found is not None:
                said = f"{found.reason} [{found.rule.name}]"
                why = LATER.get(found.rule.name, "")
                verdict = Verdict.LATER if why else Verdict.FALSE_REFUSAL
            else:
                message = table["messages"][code - 1]
                said = f"{message['text']} [{message['at']}]"
                doubts = rules.doubts_of(asked, version, known[models])
                verdict, why = _unrefused(message, [x.text for x in doubts])
            yield Judged(version, group, settings, verdict, said, why)


def _unrefused(message: Mapping[str, str], doubts: Sequence[str]) -> tuple[Verdict, str]:
    """Return the verdict on settings that vLLM refuses and no rule does."""
    said = f"{message['at']}: {message['text']}"
    for pattern, doubt in DOUBTED:
        if re.search(pattern, said):
            told = next((x for x in doubts if re.search(doubt, x)), None)
            return (Verdict.MISSED, "") if told is None else (Verdict.DOUBTED, doubt)
    for pattern, why in ELSEWHERE:
        if re.search(pattern, said):
            return Verdict.ELSEWHERE, why
    return Verdict.MISSED, ""


def row_of(table: Mapping[str, Any], found: Sequence[Judged]) -> str:
    """Return the counts of a table as a row of :data:`HEAD`."""
    codes = [code for g in table["groups"] for code in unpacked(g["answers"])]
    counted = Counter(x.verdict for x in found)
    refused = sum(1 for code in codes if code)
    numbers = [len(codes), refused, *(counted[v] for v in Verdict)]
    return f"| {table['vllm']} | {' | '.join(f'{x:,}' for x in numbers)} |"


def main(argv: Sequence[str] | None = None) -> None:
    """Print what rules and tables disagree on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version", nargs="*")
    parser.add_argument("--examples", type=int, default=1, help="examples for each message")
    args = parser.parse_args(argv)
    print(HEAD)
    examples = []
    for version in args.version or sorted(p.stem for p in DATA.glob("*.json")):
        table = read(version)
        found = list(judged(table))
        print(row_of(table, found))
        seen: Counter[str] = Counter()
        for wrong in (x for x in found if x.verdict in WRONG):
            key = f"{wrong.verdict} {shape(wrong.said)}"
            seen[key] += 1
            if seen[key] <= args.examples:
                examples.append(str(wrong))
    print("\n".join(examples))


if __name__ == "__main__":
    main()
