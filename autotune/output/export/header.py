"""The comment at the top of a file: its origin, and what to know before it is used."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import date

from autotune._version import __version__
from autotune.output.export.choice import Chosen
from autotune.results.certificates import output_line
from autotune.results.text import WIDTH, plain, times, wrapped
from autotune.results.trials import throttled_text
from autotune.results.views import StudyView
from autotune.stats import Estimate
from autotune.study.schema import StudySpec
from autotune.study.space import N


def about(
    view: StudyView,
    spec: StudySpec,
    choice: Chosen,
    versions: tuple[str | None, str | None],
    today: date,
) -> Iterator[str]:
    """Yield lines that say where a file comes from.

    Args:
        view: The study.
        spec: What the study says.
        choice: The point that is served.
        versions: Versions of the vLLM that it was measured with, and of the one in production;
            None: unknown.
        today: The date of the file.
    """
    measured, version = versions
    t = choice.trial
    yield (
        f"Trial {t.number} of the study {view.name}: {t.setting}. Written by autotune "
        f"{__version__} on {today:%Y-%m-%d}."
    )
    why = plain(choice.why)
    yield f"{why[0].upper()}{why[1:]}."
    yield f"{choice.values}."
    if t.throttled:
        words = throttled_text(t.running_peak or 0, t.running_asked or 0)
        yield f"Careful: it was throttled: {words}."
    if t.certificate is not None:
        careful = "" if t.certificate.is_good else "Careful: "
        yield f"{careful}{output_line(t.certificate, t.number)}"
        if t.certificate.vllm is not None and version is not None:
            known = t.certificate.vllm
            if version.partition("+")[0] != known:
                yield f"That was with vLLM {plain(known)}, and this file is for vLLM {version}."
    yield _speedup(view, choice)
    yield _measured(view, spec, measured)
    if version != measured:
        yield (
            f"It is for vLLM {version}, which it was not measured with: no rule of that version "
            "forbids it, its speed may differ."
        )


def _speedup(view: StudyView, choice: Chosen) -> str:
    t = choice.trial
    if t.baseline:
        return "It is the baseline itself" + (": no speculation." if t.point.get(N) == 0 else ".")
    if choice.speedup is None:
        return "Its speed-up is unknown: the baseline has no numbers that compare."
    base = next(x for x in view.trials if x.baseline)
    return (
        f"Speed-up {times(Estimate(*choice.speedup))} (95 % interval) over the baseline "
        f"({base.setting})."
    )


def _measured(view: StudyView, spec: StudySpec, vllm: str | None) -> str:
    load = spec.workload
    loads = [f"concurrency {load.max_concurrency}"] if load.max_concurrency else []
    if not math.isinf(load.request_rate):
        loads.append(f"{load.request_rate:g} arrivals a second")
    return (
        f"Measured from {view.created:%Y-%m-%d} on with vLLM {plain(vllm or '(unknown)')} on "
        f"{plain(view.machine) or 'an unknown machine'}"
        + (f", {' and '.join(loads)}." if loads else ".")
    )


def comment(lines: Sequence[str]) -> str:
    """Return lines as comments of at most 80 columns, which are comments in every format.

    Lines that begin with a space are meant to be copied, and are not wrapped.
    """
    out: list[str] = []
    for line in lines:
        parts = wrapped(line, WIDTH - 2, long_words=False)
        out += [f"# {part}" for part in ([line] if line.startswith(" ") else parts)] or ["#"]
    return "\n".join(out) + "\n"
