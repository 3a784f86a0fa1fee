"""autotune's rules against a table of `benchmarks/vllm_rules.py`.

    python -m benchmarks.vllm_rules_compare [VERSION …] [--examples N]

Two kinds of disagreement count:

- a **false refusal**: a rule refuses settings that vLLM's configuration takes;
- a **missed failure**: vLLM refuses, and no rule does. Refusals of :data:`UNCLAIMED` are not
  counted: no rule is meant to know them, for the reason that stands there.

Rules of :data:`LATER` speak of what fails after the configuration, so the table cannot judge them.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autotune.engine import rules
from autotune.engine.draft_facts import draft_facts
from autotune.engine.rule import Known
from benchmarks.vllm_rules import DATA, read, shape, unpacked
from benchmarks.vllm_rules_base import MODELS, D
from benchmarks.vllm_rules_cases import settings_of

_FLAG = "a flag that has no part in drafting or memory; nothing is said of its values"
_WORDS = "the size of the vocabulary is not read"
# Rules about what comes after the configuration, with where vLLM notices.
LATER = {
    "synthetic acceptance on a CPU": "the first request (utils/cpu_triton_utils.py)",
    "block of LiLiCorr": "the draft is loaded (model_executor/models/lilicorr.py)",
}
# What vLLM refuses and no rule is meant to know: a pattern of place, words and settings, and why.
UNCLAIMED = (
    (r"^parser: .*unrecognized arguments", "vLLM's own list of flags is asked before a launch"),
    (r"^parser: .*(performance-mode|scheduling-policy|per-request-\S+): invalid choice", _FLAG),
    (r"SchedulerConfig\.(long_prefill_token_threshold|prefill_schedule_interval)", _FLAG),
    (
        r"(is smaller than|cannot be greater than the) max_model_len (?!.*\"max_model_len\": )",
        "max_model_len is not given: a tokenizer's own length may be below the model's",
    ),
    (
        r"_set_max_num_scheduled_tokens: (?!.*\"max_num_seqs\": )",
        "vLLM's own max_num_seqs on a GPU depends on its memory: 256, or 1024 from 70 GiB on",
    ),
    (r"_reject_mismatched_float_kv_cache", "the dtype of the weights is not read"),
    (r"_validate_cache_dtype: .*Invalid kv_cache_dtype", "a plug-in of vLLM may register more"),
    (r"xpress_topc is only supported by XPress", "which DFlash draft is XPress is not read"),
    (r"dspark_draft_topk must be between 1 and the draft voc", _WORDS),
    (r"should have the same vocabulary size", _WORDS),
    (
        r"--per-request-spec-decode-metrics requires speculative decoding",
        "the flag is left out at n = 0, so no launch has it",
    ),
    (
        r"_raise_for_unsupported: .*are not supported for now",
        "which architectures a version has is not read",
    ),
    (
        r"Unsupported speculative method: 'mtp'",
        "the target has no head; which have one is not read for certain",
    ),
)


@dataclass(frozen=True)
class Disagreement:
    """Settings that rules and vLLM answer differently.

    Attributes:
        version: Version of vLLM.
        group: Group of the table.
        settings: The settings.
        ours: What the rule says, with its name; empty: no rule refuses.
        theirs: What vLLM says, with the place; empty: it starts.
    """

    version: str
    group: Mapping[str, Any]
    settings: Mapping[str, Any]
    ours: str
    theirs: str

    @property
    def false_refusal(self) -> bool:
        """Whether a rule refuses what vLLM takes."""
        return bool(self.ours)

    def __str__(self) -> str:
        what = "refuses what starts" if self.false_refusal else "misses a failure"
        said = self.ours or self.theirs
        return f"{self.version}, {self.group['platform']}: {what}: {dict(self.settings)}: {said}"


def known_of(group: Mapping[str, Any], settings: Mapping[str, Any]) -> Known:
    """Return what the rules know of the models of some settings, as a study's files tell it."""
    target = MODELS[settings["model"]]
    platform = str(group["platform"]).partition(" ")[0]
    name = settings.get(f"{D}model")
    drafts = {name: draft_facts(MODELS.get(name, target))}
    plain = rules.known_of(target, platform, None)
    runner = group.get("env", {}).get("VLLM_USE_V2_MODEL_RUNNER")
    return Known(
        platform=platform,
        model_max_len=plain.model_max_len,
        plain_attention=plain.plain_attention,
        target=target["model_type"],
        drafts=drafts,
        v2=None if runner is None else runner == "1",
    )


def disagreements(table: Mapping[str, Any]) -> Iterator[Disagreement]:
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
            message = table["messages"][code - 1] if code else None
            if (found is None) == (message is None):
                continue
            if found is not None and found.rule.name not in LATER:
                ours = f"{found.reason} [{found.rule.name}]"
                yield Disagreement(version, group, settings, ours, "")
            elif message is not None and unclaimed(message, settings) is None:
                theirs = f"{message['text']} [{message['at']}]"
                yield Disagreement(version, group, settings, "", theirs)


def unclaimed(message: Mapping[str, str], settings: Mapping[str, Any]) -> str | None:
    """Return why no rule is meant to know a refusal; None: one is."""
    said = f"{message['at']}: {message['text']} {json.dumps(settings)}"
    return next((why for pattern, why in UNCLAIMED if re.search(pattern, said)), None)


def counts(table: Mapping[str, Any]) -> Counter[tuple[str, str]]:
    """Return how many settings each method has in a table, and how many are answered wrongly.

    Keys are (method, "settings"), (method, "false refusals") and (method, "missed failures").
    """
    out: Counter[tuple[str, str]] = Counter()
    for group in table["groups"]:
        out[group["method"], "settings"] += len(unpacked(group["answers"]))
    for wrong in disagreements(table):
        what = "false refusals" if wrong.false_refusal else "missed failures"
        out[wrong.group["method"], what] += 1
    return out


def lines_of(version: str, counted: Counter[tuple[str, str]]) -> list[str]:
    """Return counts as lines: a method a line, only methods with something wrong."""
    methods = dict.fromkeys(m for m, _ in counted)
    return [
        f"{version} {m}: {counted[m, 'false refusals']} false refusals, "
        f"{counted[m, 'missed failures']} missed failures of {counted[m, 'settings']} settings"
        for m in methods
        if counted[m, "false refusals"] or counted[m, "missed failures"]
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Print what rules and tables disagree on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version", nargs="*")
    parser.add_argument("--examples", type=int, default=1, help="examples for each message")
    args = parser.parse_args(argv)
    for version in args.version or sorted(p.stem for p in DATA.glob("*.json")):
        table = read(version)
        counted = counts(table)
        print("\n".join(lines_of(version, counted)) or f"{version}: the rules agree")
        seen: Counter[str] = Counter()
        for wrong in disagreements(table):
            key = f"{wrong.false_refusal} {shape(wrong.ours or wrong.theirs)}"
            seen[key] += 1
            if seen[key] <= args.examples:
                print(f"    {wrong}")


if __name__ == "__main__":
    main()
