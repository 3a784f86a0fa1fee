"""Sections of a report in their order; nothing is computed for the report alone.

A number that another command shows comes from the same module of :mod:`autotune.results`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime

from autotune._version import __version__
from autotune.output.report import answer, beyond, measured, method
from autotune.output.report.content import Block, Report, Section, labeled
from autotune.output.report.source import Source
from autotune.results.recomputed import Recomputed
from autotune.results.text import plain, upper
from autotune.results.views import StudyView
from autotune.storage.store import Store


def build(store: Store, view: StudyView) -> Report:
    """Return the report of a study.

    Args:
        store: The database of the study.
        view: The study, as :func:`autotune.results.trials.study_view` reads it there.
    """
    name = view.name
    loaded, _row = store.load_study(name)
    s = Source(
        store,
        view,
        loaded.spec,
        store.launches.of_study(name),
        Recomputed(store, loaded.spec, view.objectives).trials(store.stored_study(name).trials),
    )
    about = (
        upper(view.rehearsal),
        s.spec.description,
        f"vLLM {view.vllm_version}" if view.vllm_version else "",
        view.machine,
        f"{view.created:%Y-%m-%d}",
    )
    return Report(
        study=plain(view.name),
        about=tuple(plain(x) for x in about if x),
        answer=answer.answer(s),
        sections=tuple(
            Section(key, title, tuple(labeled(b, view.rehearsal) for b in blocks))
            for key, title, blocks in _parts(s)
        ),
        made_by=f"autotune {__version__}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )


def _parts(s: Source) -> list[tuple[str, str, Iterator[Block]]]:
    return [
        ("command", "The command to serve", answer.command(s)),
        *_if_any("output", "Is the output still the same?", answer.output(s)),
        ("front", "What was measured", measured.front(s)),
        ("by-n", "By number of drafted tokens", measured.by_n(s)),
        ("grid", "n and batch budget together", measured.grid(s)),
        ("acceptance", "How many drafted tokens are accepted", measured.acceptance(s)),
        ("prediction", "Predicted against measured, and a better draft", beyond.prediction(s)),
        ("latency", "Latency of single requests", measured.latency(s)),
        ("load", "What if the load is another one?", beyond.other_loads(s)),
        *_if_any("break-even", "How good must a draft be?", beyond.break_even(s)),
        ("importance", "Which parameter matters", beyond.importance(s)),
        ("time", "Where the time went", method.time_spent(s)),
        ("failures", "What failed", method.failures(s)),
        ("method", "How it was measured", method.method(s)),
        ("repeat", "How to repeat it", method.repeat(s)),
    ]


def _if_any(
    key: str, title: str, blocks: Iterator[Block]
) -> list[tuple[str, str, Iterator[Block]]]:
    """Return a section, or nothing where it has no blocks."""
    first = next(blocks, None)
    return [] if first is None else [(key, title, itertools.chain([first], blocks))]
