"""The expected tok/s of every n, and of a better draft, for people to read.

`autotune.search.acceptance` predicts; this module chooses the trials for it and makes the tables.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autotune.errors import NothingUsable
from autotune.results.tables import Block, Column, Line, Table, Tone
from autotune.results.tables import Row as TableRow
from autotune.results.text import number, optional, plain, plural
from autotune.results.views import STEPS_NOTE, StudyView, TrialView
from autotune.search.acceptance import (
    MOST_N,
    Prediction,
    SpeculationLaunch,
    WhatIf,
    what_if,
    without,
)
from autotune.study.space import ChoiceParam, N, Space
from autotune.study.ways import arms_by_curve

GAINS = (-0.1, 0.0, 0.1, 0.25, 0.5)
NOTE = "predicted, never a result: launch what looks good"

_MOST_ROWS = 64  # of n that were not launched


@dataclass(frozen=True)
class Row:
    """One n: its measured values, and the prediction from the launches at every other n.

    Attributes:
        n: Drafted tokens; 0: no speculation, of which the launches at other n say nothing.
        trial: The fastest trial of this n; None: n was not launched.
        measured: Measured tok/s of the trial.
        predicted: Predicted tok/s, without the launches at this n; None: there is no prediction.
        measured_length: Tokens per step of the trial; None: unknown.
        predicted_length: Predicted tokens per step.
        extrapolated: Whether n is outside of the range of n that the prediction was made from.
    """

    n: int
    trial: int | None
    measured: float | None
    predicted: float | None
    measured_length: float | None
    predicted_length: float | None
    extrapolated: bool

    @property
    def error(self) -> float | None:
        """Ratio of predicted to measured tok/s, minus 1; None if one of the two is missing."""
        if self.measured is None or self.predicted is None:
            return None
        return self.predicted / self.measured - 1


@dataclass(frozen=True)
class Outlook:
    """Every n of a study, and the best one for drafts of other quality.

    Attributes:
        study: Name of the study.
        arms: Names of the arms that it holds for; empty: the study has none.
        skips_steps: Whether tokens per step are those of the steps that have drafts.
        rows: A row for each n, ascending.
        drafts: A prediction for each gain, ascending.
    """

    study: str
    rows: Sequence[Row]
    drafts: Sequence[WhatIf]
    arms: tuple[str, ...] = ()
    skips_steps: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return plain data; errors and gains are relative."""
        return {
            "study": self.study,
            **({"arms": list(self.arms)} if self.arms else {}),
            **({"skips_steps": True} if self.skips_steps else {}),
            "note": NOTE,
            "predictions": [
                {
                    "n": row.n,
                    "trial": row.trial,
                    "measured_tok_s": row.measured,
                    "predicted_tok_s": row.predicted,
                    "error": row.error,
                    "measured_tokens_per_step": row.measured_length,
                    "predicted_tokens_per_step": row.predicted_length,
                    "extrapolated": row.extrapolated,
                }
                for row in self.rows
            ],
            "draft_quality": [
                {
                    "gain": draft.gain,
                    "n": draft.n,
                    "predicted_tok_s": draft.rate,
                    "predicted_tokens_per_step": draft.tokens_per_step,
                    "speedup": draft.speedup,
                }
                for draft in self.drafts
            ],
        }


def outlooks(view: StudyView, space: Space) -> list[Outlook]:
    """Predict every n, for each acceptance of the study: one, or with arms several.

    Arms of other drafts have another acceptance. A schedule and adaptive verification bias what is
    counted, so nothing is predicted for them.

    Args:
        view: The study.
        space: Its space.

    Raises:
        NothingUsable: as :func:`outlook`, if it is raised for every arm.
    """
    if not space.ways:
        return [outlook(view, space)]
    found: list[Outlook] = []
    missing: NothingUsable | None = None
    for curve, arms in arms_by_curve(space).items():
        own = Space({N: _n_of_arms(space, arms)})
        trials = [t for t in view.trials if t.point.get(N) == 0 or t.curve == curve]
        try:
            found.append(replace(outlook(replace(view, trials=trials), own), arms=arms))
        except NothingUsable as e:
            missing = e
    if not found:
        raise missing or NothingUsable(
            f"{view.name}: nothing to predict: every arm has a schedule or adaptive verification, "
            "which bias the counted acceptance"
        )
    return found


def _n_of_arms(space: Space, arms: Sequence[str]) -> ChoiceParam:
    """Return n of some arms, and 0."""
    values = {v for arm in arms for v in space.ways[arm].params[N].values() or ()}
    ns = sorted(v for v in values if isinstance(v, int))
    return ChoiceParam(type="choice", choices=(0, *ns))


def outlook(view: StudyView, space: Space) -> Outlook:
    """Predict every n of the space.

    The fastest trial of each n represents it, because the question is what an n can give; its other
    parameters may have any values. Trials that were ended early do not count, nor those whose
    acceptance is biased.

    Args:
        view: The study; its trials with drafts have one acceptance.
        space: Its space.

    Raises:
        NothingUsable: no objective is in tok/s, or no trial with n ≥ 1 has an acceptance.
    """
    trials = _fastest(view)
    launches = [launch for _, launch in trials.values()]
    prediction = Prediction.fit(launches)
    if prediction is None:
        raise NothingUsable(
            f"{view.name}: nothing to predict from; it takes a finished trial with "
            "num_speculative_tokens of 1 or more, of whose drafts the server counted the accepted"
        )
    ns = _wanted(space, trials)
    rows = [_row(n, trials, launches, prediction) for n in ns]
    choice = [n for n in ns if n or prediction.baseline_launched]
    drafts = [what_if(prediction, gain, choice) for gain in GAINS]
    skips = any(t.skips_steps for t, _ in trials.values())
    return Outlook(view.name, rows, drafts, skips_steps=skips)


def _fastest(view: StudyView) -> dict[int, tuple[TrialView, SpeculationLaunch]]:
    """Return the fastest trial of the search, by n."""
    speed = next((o for o in view.objectives if o.unit == "tok/s"), None)
    if speed is None:
        raise NothingUsable(
            f"{view.name}: nothing to predict; none of its objectives is in tok/s, "
            "such as throughput"
        )
    found: dict[int, tuple[TrialView, SpeculationLaunch]] = {}
    for t in view.trials:
        n, rate = t.point.get(N), t.value(speed)
        left_out = t.again is not None or not t.may_win or t.curve is None
        if left_out or rate is None or not isinstance(n, int):
            continue
        if n not in found or rate > found[n][1].rate:
            launch = SpeculationLaunch(n, rate, t.acceptance_per_position, t.acceptance_length)
            found[n] = (t, launch)
    return found


def _wanted(space: Space, launched: Iterable[int]) -> list[int]:
    """Return every n worth a row: launched ones and those of the space; of many, the small ones."""
    values = (space.params[N].values() if N in space.params else None) or ()
    listed = sorted(v for v in values if type(v) is int and 0 <= v <= MOST_N)
    return sorted({*listed[:_MOST_ROWS], *launched})


def _row(
    n: int,
    trials: dict[int, tuple[TrialView, SpeculationLaunch]],
    launches: Sequence[SpeculationLaunch],
    prediction: Prediction,
) -> Row:
    trial, launch = trials.get(n, (None, None))
    others = None if n == 0 else without(launches, n) if launch is not None else prediction
    return Row(
        n=n,
        trial=None if trial is None else trial.number,
        measured=None if launch is None else launch.rate,
        predicted=None if others is None else others.rate(n),
        measured_length=None if launch is None else launch.acceptance_length,
        predicted_length=None if others is None else others.tokens_per_step(n),
        extrapolated=others is not None and others.extrapolated(n),
    )


def outlook_page(found: Outlook) -> list[Block]:
    """Return both tables with their explanation, in 80 columns."""
    return [
        Line(f"{plain(found.study)}{_of_arms(found.arms)}: tok/s by n, {NOTE}."),
        Line("The fastest trial of each n represents it. A launched n is predicted from the"),
        Line("launches at other n only."),
        Line(),
        _rows_table(found.rows),
        *([Line(STEPS_NOTE.replace("*", "tok/step:", 1))] if found.skips_steps else []),
        *(Line(text) for text in _accuracy(found.rows)),
        Line(),
        Line("If each drafted token were accepted more often, where those before it were:"),
        Line(),
        _drafts_table(found.drafts),
    ]


def _of_arms(arms: Sequence[str]) -> str:
    return f", {plural(len(arms), 'arm')} {', '.join(map(plain, arms))}" if arms else ""


def _accuracy(rows: Sequence[Row]) -> list[str]:
    errors = {row.n: abs(row.error) for row in rows if row.error is not None}
    lines = (
        ["* extrapolated, so less certain: n is outside of the range of the other launches"]
        if any(r.extrapolated for r in rows)
        else []
    )
    if errors:
        worst = max(errors, key=lambda n: errors[n])
        typical = statistics.median(errors.values())
        lines.append(
            f"Predictions are off by {typical:.0%} in the median, at most by {errors[worst]:.0%} "
            f"(n = {worst})"
        )
    return lines


def _rows_table(rows: Sequence[Row]) -> Table:
    columns = (
        Column("n", width=4),
        Column("tok/step\npredicted", width=9),
        Column("tok/step\nmeasured", width=9),
        Column("tok/s\npredicted", width=10),
        Column("tok/s\nmeasured", width=9),
        Column("\nerror", width=6),
        Column("\ntrial", width=5),
    )
    return Table(columns, tuple(map(_shown_row, rows)))


def _shown_row(row: Row) -> TableRow:
    mark = "*" if row.extrapolated else " "
    cells = (
        str(row.n),
        optional(row.predicted_length, ".2f"),
        optional(row.measured_length, ".2f"),
        "" if row.predicted is None else f"{number(row.predicted)}{mark}",
        "" if row.measured is None else number(row.measured),
        optional(row.error, "+.0%"),
        "" if row.trial is None else str(row.trial),
    )
    return TableRow(cells, Tone.NONE if row.trial is None else Tone.STRONG)


def _drafts_table(drafts: Sequence[WhatIf]) -> Table:
    columns = (
        Column("draft\nquality", width=7),
        Column("best\nn", width=4),
        Column("\ntok/step", width=8),
        Column("\ntok/s", width=8),
        Column("over no\nspeculation", width=11),
    )
    rows = (
        TableRow(
            (
                f"{draft.gain:+.0%}" if draft.gain else "as is",
                str(draft.n),
                f"{draft.tokens_per_step:.2f}",
                number(draft.rate),
                "" if draft.speedup is None else f"{draft.speedup:.2f}×",
            )
        )
        for draft in drafts
    )
    return Table(columns, tuple(rows))
