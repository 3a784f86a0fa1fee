"""How the results came about: time, failures, how it was measured, how to repeat it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from autotune.engine.launch_stages import STAGES
from autotune.errors import UserError
from autotune.output.figures import trials as figures
from autotune.output.figures.timings import time_figure
from autotune.output.report.content import (
    Block,
    Code,
    DataTable,
    Figure,
    Paragraph,
    Points,
)
from autotune.output.report.source import Source, load_text, when
from autotune.results.text import (
    count,
    duration,
    number,
    objective_text,
    plain,
    upper,
    value_text,
    way_text,
)
from autotune.results.timings import time_view
from autotune.results.trials import quality_warnings
from autotune.results.views import TrialView, kinds_text, origin_lines, scatter_line
from autotune.serving.machine import machine_line
from autotune.serving.slots import slot_details
from autotune.stats.stopping import Stop
from autotune.storage.records import Quality
from autotune.storage.schema import LaunchRow
from autotune.study.differences import contents, differences, fingerprints
from autotune.study.files import LoadedStudy, bundled_studies, load_bundled, text_without_secrets
from autotune.study.keys import Affects
from autotune.study.space import ARM, AnyParam, ChoiceParam, FloatParam, IntParam, Pow2Param
from autotune.study.ways import is_lossy
from autotune.study.weights import draft_role

_MOST_SHOWN = 20  # failed trials; more are folded


def time_spent(s: Source) -> Iterator[Block]:
    """Yield how long the study took, and what the time went into."""
    ended = [x for x in s.launches if x.ended_at is not None]
    if not ended:
        yield Paragraph("No launch has ended yet.")
        return
    seconds = sum((x.ended_at or 0.0) - x.planned_at for x in ended)
    first, last = ended[0].planned_at, max(x.ended_at or 0.0 for x in ended)
    yield Paragraph(
        f"{count(len(s.view.trials), 'trial')} in {count(len(s.launches), 'launch')}, "
        f"{duration(seconds)} of servers in all, {duration(seconds / len(ended))} a launch; "
        f"from {when(first)} to {when(last)}."
    )
    try:
        view = time_view(s.store, s.view.name)
    except UserError:
        yield Paragraph(
            "The stages of the launches are not known: these launches were made before "
            "autotune noted it."
        )
        return
    shares = [(stage, x) for stage in STAGES if (x := view.share(stage)) is not None]
    most = max(shares, key=lambda pair: pair[1])
    yield Figure(
        "time",
        f"Wall time of each trial by stage, in the order in which they come. The largest part, "
        f"{most[1]:.0%}, is {most[0]}.",
        lambda theme: figures.untitled(time_figure(view, 420, theme)),
    )
    yield DataTable.of(
        "Seconds by stage: median of the trials that know it, and its share of all",
        ("stage", "median (s)", "share"),
        tuple((stage, number(view.median(stage) or 0.0), f"{x:.0%}") for stage, x in shares),
        folded=True,
    )


def failures(s: Source) -> Iterator[Block]:
    """Yield what failed, and the launches that do not count."""
    failed = s.view.failures()
    if not failed:
        yield Paragraph("No trial failed.")
    else:
        yield Paragraph(
            f"{count(len(failed), 'trial')} failed: {plain(kinds_text(failed))}. A failed trial "
            "never has numbers."
        )
        yield DataTable.of(
            "Failed trials",
            ("trial", "point", "kind", "reason"),
            tuple(
                (
                    str(t.number),
                    t.setting,
                    plain(t.failure_kind or "unknown").replace("_", " "),
                    plain(t.failure_reason or ""),
                )
                for t in failed
            ),
            {1, 2, 3},
            folded=len(failed) > _MOST_SHOWN,
        )
        kinds = {t.failure_kind: t for t in reversed(failed) if t.failure_evidence}
        for kind, t in kinds.items():
            lines = "\n".join(plain(x) for x in t.failure_evidence)
            about = f"Trial {t.number}, the first of its kind ({plain(kind or 'unknown')})"
            yield Code(f"{about}: the log lines that show it", lines, "text", folded=True)
    latest = {x.trial: x.attempt for x in s.launches}  # oldest first
    again = [x for x in s.launches if x.attempt < latest[x.trial]]
    if again:
        yield Paragraph(
            "Launches that do not count, because another one of the same trial replaced them:"
        )
        yield Points(tuple(f"Trial {x.trial}, launch {x.attempt + 1}: {_why(x)}." for x in again))


def _why(launch: LaunchRow) -> str:
    """Return why a launch does not count."""
    if launch.failure_kind is not None:
        return f"failed, {plain(launch.failure_kind)}: {plain(launch.failure_reason or '')}"
    return plain("; ".join(quality_warnings(Quality.read(launch.quality)))) or "no reason was noted"


def method(s: Source) -> Iterator[Block]:
    """Yield definitions, load, machine, versions, and the launch-to-launch variance."""
    yield Points(tuple(_definitions(s)))
    yield DataTable.of("Machine and software", ("what", "which"), tuple(_machine(s)), {0, 1})
    if lines := origin_lines(s.view):
        yield Points(tuple(f"{upper(line)}." for line in lines))
    stops = Counter(t.stop for t in s.view.trials if t.stop)
    if stops:
        parts = [f"{_stop_text(name)} ({count(n, 'trial')})" for name, n in stops.most_common()]
        yield Paragraph(f"Why measuring ended: {'; '.join(parts)}.")
    if line := scatter_line(s.view):
        yield Paragraph(f"{upper(line)}.")
    else:
        yield Paragraph("No point was launched twice, so launch-to-launch variance is not known.")
    warned: dict[str, list[TrialView]] = {}
    for t in s.view.trials:
        for w in t.warnings:
            warned.setdefault(w.partition(":")[0], []).append(t)
    if warned:
        yield Points(
            tuple(
                f"Warning, {plain(kind)}: trials {', '.join(str(t.number) for t in of)}."
                for kind, of in warned.items()
            )
        )


def _stop_text(name: str) -> str:
    return str(Stop[name.upper()]) if name.upper() in Stop.__members__ else plain(name)


def _definitions(s: Source) -> Iterator[str]:
    for o in s.view.objectives:
        yield (
            f"{objective_text(o)}, {way_text(o)}: {plain(o.formula)}. Definition: "
            f"{plain(o.source)}.".replace("`", "")
        )
    yield (
        "[low, high] is a 95% interval: batch means for tok/s, order statistics for a percentile, "
        "including launch-to-launch variance as soon as that is known. A ? is a bound that the "
        "requests are too few for."
    )
    yield from _load(s)
    yield from _servers(s)
    yield f"Searched: {'; '.join(_ranges(s))}. Launched: {count(len(_points(s)), 'point')}."
    yield "Baseline: the first trial."
    if s.view.verdict is not None:
        yield (
            "Confirmation: baseline and best points are launched again in turn, there and back "
            "(A B B A). All launches decide the choice; its numbers are from these launches only, "
            "corrected for selection bias (the winner's curse)."
        )
    if any(t.slot for t in s.view.trials):
        yield (
            "Several servers were launched at the same time, each on GPUs or cores of its own (a "
            "slot, named in the trial's note). Each block of a confirmation is on one slot and has "
            "its candidates once. How slots differ is taken out of what is compared, as far as "
            "launches of one point on several slots tell."
        )


def _load(s: Source) -> Iterator[str]:
    """Yield what is sent in every trial, and how long."""
    load, measure = s.spec.workload, s.spec.measure
    origin = "its intended start" if load.latency_origin == "intended" else "its sending"
    yield (
        f"Load: {load_text(s)}. A latency begins at {origin}. Tokens are counted by the server's "
        "usage, not by chunks."
    )
    eos = "on past the end-of-text token" if load.ignore_eos else "until the end-of-text token"
    yield (
        f"The same requests in the same order in every trial (workload seed {load.seed}, "
        f"temperature {load.temperature:g}, answers go {eos}): at most {load.num_prompts} a trial, "
        f"at least {min(measure.min_prompts, load.num_prompts)}, fewer than all where every "
        f"interval is within ± {measure.precision:.0%}."
    )
    if s.best is not None and (found := s.measurement(s.best)) is not None:
        tokens = found.prompt_tokens
        yield (
            f"Prompts have {int(np.median(tokens))} tokens in the median, "
            f"{tokens.min()} to {tokens.max()}; answers {int(np.median(found.output_tokens))}."
        )


def _servers(s: Source) -> Iterator[str]:
    """Yield what a server goes through before it is measured."""
    load = s.spec.workload
    prompts = "prompts that are measured, too" if load.repeat else "prompts of their own"
    yield (
        f"Warm-up: at most {load.most_warmup} requests with {prompts}, until the rates are steady "
        "(MSER)."
    )
    if load.repeat:
        yield "Prompts come again after the last one; the server has no prefix cache."
    idle = max((Quality.read(x.quality).beside or 0 for x in s.launches), default=0)
    if idle:
        yield (
            "Servers were prelaunched: each was measured alone, with up to "
            f"{count(idle, 'other')} idle next to it."
        )


def _ranges(s: Source) -> Iterator[str]:
    """Yield the range of each searched parameter."""
    space = s.spec.to_space()
    for arm, way in space.ways.items():
        yield f"arm {arm}: {'; '.join(_ranges_of(way.params))}"
    drafts = {name for way in space.ways.values() for name in way.params}
    yield from _ranges_of({k: p for k, p in space.params.items() if k not in {ARM, *drafts}})


def _ranges_of(params: Mapping[str, AnyParam]) -> Iterator[str]:
    for name, p in params.items():
        match p:
            case ChoiceParam():
                yield f"{plain(name)} {', '.join(map(value_text, p.choices))}"
            case IntParam() if p.low == p.high:
                yield f"{plain(name)} {p.low}"
            case Pow2Param():
                yield f"{plain(name)} {p.low} to {p.high}, powers of two"
            case IntParam() | FloatParam():
                yield f"{plain(name)} {value_text(p.low)} to {value_text(p.high)}"


def _points(s: Source) -> set[str]:
    """Return the different points that were launched."""
    return {t.setting for t in s.view.trials if t.state in {"complete", "failed"}}


def _machine(s: Source) -> Iterator[tuple[str, str]]:
    row = s.store.load_study(s.view.name)[1]
    lines = list(dict.fromkeys(machine_line(x.machine) for x in s.launches))
    for line in lines:
        yield "machine", plain(line)
    slots = (x.machine["slot"] for x in s.launches if x.machine.get("slot"))
    for text in sorted({slot_details(slot) for slot in slots}):
        yield "slot", plain(text.removeprefix("slot "))
    latest: Mapping[str, Any] = s.launches[-1].machine if s.launches else {}
    for gpu in latest.get("gpus", ()):
        yield "GPU", plain(f"{gpu['name']}, {gpu['memory_mib']} MiB, driver {gpu['driver']}")
    if latest:
        yield "system", plain(f"{latest.get('os', '')}, Python {latest.get('python', '')}")
    versions = dict.fromkeys(x.vllm_version for x in s.launches if x.vllm_version)
    yield "vLLM", plain(", ".join(versions)) or "unknown"
    yield "autotune", plain(row.autotune_version)
    weights = s.store.launches.weights(s.view.name)
    known = {role: f", weights {x}" for role, x in weights.items()}
    yield "model", plain(f"{s.spec.server.model}{known.get('target', '')}")
    for arm, draft in s.spec.server.drafts.items():
        method = draft.method or "the method that vLLM chose"
        model = draft.model or "no model of its own"
        weights_of = known.get(draft_role(arm, draft.model or ""), "")
        keys = {k: v for k, v in draft.given().items() if k not in ("method", "model")}
        more = f", {json.dumps(keys)}" if keys and arm is not None else ""
        lossy = ", lossy" if is_lossy(draft.given()) else ""
        role = "draft" if arm is None else f"arm {arm}"
        yield plain(role), plain(f"{model} ({method}{weights_of}){more}{lossy}")
    flags = [f"{k} {str(v).lower()}" for k, v in s.spec.server.flags.items()]
    yield "flags of every launch", plain(", ".join(flags)) or "none"
    yield "search", f"{s.spec.search.method}, seed {row.seed}"
    if s.launches:
        ended = [x.ended_at for x in s.launches if x.ended_at is not None]
        last = when(max(ended)) if ended else "now"
        yield "date", f"{when(s.launches[0].planned_at)} to {last}"


def repeat(s: Source) -> Iterator[Block]:
    """Yield the command that runs the study once more, and the study file."""
    loaded, row = s.store.load_study(s.view.name)
    bundled = _is_bundled(loaded, row.fingerprint)
    file = row.name if bundled else f"{row.name}.yaml"
    lines = [f"autotune run {file} --trials {row.wanted} --seed {row.seed} --db again.db"]
    again = sum(t.confirms is not None for t in s.view.trials)
    yield Code("The study once more, in a database of its own", "\n".join(lines))
    words = [
        f"With autotune {plain(row.autotune_version)}"
        + (f" and vLLM {plain(s.view.vllm_version)}" if s.view.vllm_version else "")
        + f": {count(row.wanted, 'trial')} at most"
        + (f", {again} of them to measure the best points again." if again else ".")
    ]
    if not bundled:
        words.append(f"The study file {file} is below.")
        if (source := s.spec.workload.source) is not None:
            words.append(
                f"Its prompts, {plain(str(source[1]))}, are not in this report and "
                "must be next to it."
            )
    else:
        words.append("The study comes with autotune.")
    words.append("The search meets other noise, so it may take another way to the same answer.")
    yield Paragraph(" ".join(words))
    yield Code("The study file", text_without_secrets(loaded), "yaml", folded=True)


def _is_bundled(run: LoadedStudy, fingerprint: str) -> bool:
    """Return whether a bundled study was run, unchanged but for its budget, which is given."""
    if run.spec.name not in bundled_studies():
        return False
    bundled = load_bundled(run.spec.name)
    schedule = differences(bundled.spec, run.spec, Affects.SCHEDULE)
    return not any(d.key.partition(".")[0] != "budget" for d in schedule) and (
        fingerprint in fingerprints(bundled.spec, contents(bundled.spec, bundled.base))
    )
