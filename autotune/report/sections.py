"""What a report says, section by section, read from the database; nothing is computed anew.

Where a number is another command's, it comes from the same place: `results` and `views` for trials
and verdicts, `prediction`, `mapview` and `stages` for theirs.
"""

from __future__ import annotations

from datetime import UTC, datetime

from autotune._version import __version__
from autotune.recomputed import Recomputed
from autotune.report import answer, beyond, measured, method
from autotune.report.content import Report, Section
from autotune.report.source import Source
from autotune.storage.store import Store
from autotune.views import StudyView, plain


def build(store: Store, view: StudyView) -> Report:
    """Reads a study and says what there is to say.

    Args:
        store: Has the study.
        view: The study, as :func:`autotune.results.study_view` reads it there.
    """
    name = view.name
    loaded, _row = store.load_study(name)
    s = Source(
        store,
        view,
        loaded.spec,
        store.launches.of_study(name),
        Recomputed(store, loaded.spec, view.objectives).trials(
            store.optuna_study(name).get_trials(deepcopy=False)
        ),
    )
    sections = [
        ("command", "The command to serve", answer.command(s)),
        ("front", "What was measured", measured.front(s)),
        ("by-n", "By number of drafted tokens", measured.by_n(s)),
        ("grid", "n and batch budget together", measured.grid(s)),
        ("acceptance", "How many drafted tokens are accepted", measured.acceptance(s)),
        ("prediction", "Predicted against measured, and a better draft", beyond.prediction(s)),
        ("latency", "Latency of single requests", measured.latency(s)),
        ("load", "What if the load is another one?", beyond.other_loads(s)),
        ("importance", "Which parameter matters", beyond.importance(s)),
        ("time", "Where the time went", method.time_spent(s)),
        ("failures", "What failed", method.failures(s)),
        ("method", "How it was measured", method.method(s)),
        ("repeat", "How to repeat it", method.repeat(s)),
    ]
    return Report(
        study=plain(view.name),
        about=tuple(
            plain(x)
            for x in (
                s.spec.description,
                f"vLLM {view.vllm_version}" if view.vllm_version else "",
                view.machine,
                f"{view.created:%Y-%m-%d}",
            )
            if x
        ),
        answer=answer.answer(s),
        sections=tuple(Section(key, title, tuple(blocks)) for key, title, blocks in sections),
        made_by=f"autotune {__version__}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )
