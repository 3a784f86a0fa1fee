"""The expected tok/s of every n, and of a better draft, for people to read.

`autotune.search.acceptance` predicts; this module chooses the trials for it and makes the tables.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autotune.errors import NothingUsable, UserError
from autotune.results.tables import Block, Column, Line, Table, Tone
from autotune.results.tables import Row as TableRow
from autotune.results.text import lower, number, optional, plain, plural, wrapped
from autotune.results.views import STEPS_NOTE, StudyView, TrialView
from autotune.search.acceptance import MOST_N, Prediction, SpeculationLaunch, without
from autotune.search.draft_quality import (
    AtN,
    WhatIf,
    latency_constants,
    latency_of,
    limits,
    usual_lengths,
    what_if,
)
from autotune.study.space import ChoiceParam, N, Space
from autotune.study.ways import arms_by_curve
from objectives import Objective

NOTE = "predicted, never a result: launch what looks good"
QUALITY_LIMITS = (
    "a draft of the same size; all conditional acceptances shifted on the logit scale by the same "
    "amount, so none reaches 1"
)

_MOST_ROWS = 64  # of n that were not launched
_MOST_LENGTHS = 5  # in one table, or a terminal has no room for the row
_MOST_NS = 8  # rows of the table of other drafts, apart from best n


@dataclass(frozen=True)
class Wanted:
    """Which drafts of another quality are asked about.

    Attributes:
        lengths: Acceptance lengths; None: round ones around the measured one.
        at_n: The n of the lengths; None: the largest launched one.
    """

    lengths: Sequence[float] | None = None
    at_n: int | None = None


USUAL = Wanted()


@dataclass(frozen=True)
class Latency:
    """A latency of the study in a closed loop, and how it follows from tok/s.

    Attributes:
        objective: The objective.
        constants: Latency · tok/s, with drafts (True) and without.
        error: Largest relative error of the launches with drafts; None: there is only one.
    """

    objective: Objective
    constants: Mapping[bool, float]
    error: float | None

    def of(self, n: int, rate: float) -> float | None:
        """Return the latency at a rate, in the objective's unit; None: unknown."""
        return latency_of(self.constants, n, rate)


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
        drafts: What a draft of each acceptance length gives, by ascending length; the measured
            draft, whose shift is 0, is among them.
        latencies: Latencies of the study that follow from tok/s; none in an open loop.
    """

    study: str
    rows: Sequence[Row]
    drafts: Sequence[WhatIf]
    arms: tuple[str, ...] = ()
    skips_steps: bool = False
    latencies: tuple[Latency, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain data; errors are relative, latencies in their objective's unit."""
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
            "draft_quality_limits": QUALITY_LIMITS,
            "draft_quality": [
                {
                    "acceptance_length": draft.length,
                    "at_n": draft.at_n,
                    "measured": draft.shift == 0,
                    "shift": draft.shift,
                    "n": draft.best.n,
                    "predicted_tok_s": draft.best.rate,
                    "predicted_tokens_per_step": draft.best.tokens_per_step,
                    "predicted_latency": self._latency_json(draft.best),
                    "speedup": draft.speedup,
                    "acceptance_per_position": list(draft.per_position),
                    "by_n": [
                        {
                            "n": x.n,
                            "predicted_tok_s": x.rate,
                            "predicted_tokens_per_step": x.tokens_per_step,
                            "predicted_latency": self._latency_json(x),
                        }
                        for x in draft.by_n
                    ],
                }
                for draft in self.drafts
            ],
        }

    def _latency_json(self, at: AtN) -> dict[str, float | None]:
        return {x.objective.name: x.of(at.n, at.rate) for x in self.latencies}


def outlooks(
    view: StudyView, space: Space, wanted: Wanted = USUAL, *, closed: bool = False
) -> list[Outlook]:
    """Predict every n, for each acceptance of the study: one, or with arms several.

    Arms of other drafts have another acceptance. A schedule and adaptive verification bias what is
    counted, so nothing is predicted for them.

    Args:
        view: The study.
        space: Its space.
        wanted: Which drafts of another quality are asked about.
        closed: Whether its load is a closed loop, so that latencies follow from tok/s.

    Raises:
        NothingUsable: as :func:`outlook`, if it is raised for every arm.
        UserError: as :func:`outlook`.
    """
    if not space.ways:
        return [outlook(view, space, wanted, closed=closed)]
    found: list[Outlook] = []
    missing: NothingUsable | None = None
    for curve, arms in arms_by_curve(space).items():
        own = Space({N: _n_of_arms(space, arms)})
        trials = [t for t in view.trials if t.point.get(N) == 0 or t.curve == curve]
        try:
            one = outlook(replace(view, trials=trials), own, wanted, closed=closed)
            found.append(replace(one, arms=arms))
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


def outlook(
    view: StudyView, space: Space, wanted: Wanted = USUAL, *, closed: bool = False
) -> Outlook:
    """Predict every n of the space.

    The fastest trial of each n represents it, because the question is what an n can give; its other
    parameters may have any values. Trials that were ended early do not count, nor those whose
    acceptance is biased.

    Args:
        view: The study; its trials with drafts have one acceptance.
        space: Its space.
        wanted: Which drafts of another quality are asked about.
        closed: Whether its load is a closed loop, so that latencies follow from tok/s.

    Raises:
        NothingUsable: no objective is in tok/s, or no trial with n ≥ 1 has an acceptance.
        UserError: no draft can have a wanted acceptance length.
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
    return Outlook(
        study=view.name,
        rows=rows,
        drafts=_drafts(prediction, choice, wanted, view.name),
        skips_steps=any(t.skips_steps for t, _ in trials.values()),
        latencies=_latencies(view, trials) if closed else (),
    )


def _drafts(prediction: Prediction, ns: Sequence[int], wanted: Wanted, study: str) -> list[WhatIf]:
    """Return what the measured draft and those of other lengths give, by ascending length."""
    at_n = prediction.launched[-1] if wanted.at_n is None else wanted.at_n
    hazards = prediction.hazards(at_n)
    lengths = wanted.lengths
    if lengths is None:
        lengths = usual_lengths(prediction.tokens_per_step(at_n), *limits(hazards))
    try:
        found = [what_if(prediction, x, at_n, ns) for x in (None, *lengths)]
    except ValueError as e:
        raise UserError(f"{study}: {e}") from e
    return sorted(found, key=lambda x: x.length)


def _latencies(
    view: StudyView, trials: Mapping[int, tuple[TrialView, SpeculationLaunch]]
) -> tuple[Latency, ...]:
    """Return the latencies of whole requests, and how they follow from tok/s."""
    found = []
    for objective in view.objectives:
        if not objective.name.endswith("_latency"):
            continue
        known = [
            (n, launch.rate, value)
            for n, (trial, launch) in trials.items()
            if (value := trial.value(objective)) is not None
        ]
        constants = latency_constants(known)
        errors = [abs(constants[True] / (rate * value) - 1) for n, rate, value in known if n > 0]
        found.append(Latency(objective, constants, max(errors) if len(errors) > 1 else None))
    return tuple(found)


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
        *drafts_blocks(found),
    ]


def drafts_blocks(found: Outlook) -> list[Block]:
    """Return what drafts of other acceptance lengths would give, in 80 columns."""
    at = found.drafts[0].at_n
    lines: list[Block] = [
        Line(f"If the draft had another acceptance length at n = {at} (tokens per step):"),
        Line(),
        _best_table(found),
        Line(),
        Line("tok/s, and tokens per step, by n and that acceptance length:"),
        Line(),
    ]
    for i in range(0, len(found.drafts), _MOST_LENGTHS):
        lines += [_lengths_table(found, found.drafts[i : i + _MOST_LENGTHS]), Line()]
    return [*lines, *map(Line, wrapped(quality_text(found)))]


def quality_text(found: Outlook) -> str:
    """Return what the rows of other drafts assume, and how far they can be trusted."""
    errors = [abs(row.error) for row in found.rows if row.error is not None]
    error = (
        f" Expect at least the error of the table of n, {max(errors):.0%} at most there, and more "
        "the further a length is from the measured one."
        if errors
        else " How far off they are is not known, because too few n were launched."
    )
    return f"Assumed for these rows: {QUALITY_LIMITS}.{error}{_latency_text(found.latencies)}"


def _latency_text(latencies: Sequence[Latency]) -> str:
    """Return how a latency follows from tok/s, and how far off that is in the launches."""
    if not latencies:
        return ""
    first = latencies[0]
    off = (
        ""
        if first.error is None
        else f"; in the launches with drafts that is off by at most {first.error:.0%}"
    )
    return (
        f" The {lower(first.objective.title)} is taken to be inversely proportional to tok/s{off}."
    )


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


def length_name(draft: WhatIf) -> str:
    """Return the acceptance length of a draft, and whether it is the measured one."""
    return f"{draft.length:.2f}{', as is' if draft.shift == 0 else ''}"


def shown_ns(found: Outlook) -> list[int]:
    """Return which n the table of other drafts shows: best ones, and of launched ones a few."""
    launched = [row.n for row in found.rows if row.trial is not None and row.n > 0]
    there = {x.n for draft in found.drafts for x in draft.by_n}
    few = launched[:: max(1, -(-len(launched) // _MOST_NS))]
    return sorted({*few, *(draft.best.n for draft in found.drafts)} & there)


def at_n_text(draft: WhatIf, n: int) -> str:
    """Return tok/s and tokens per step of one n: ``712 (4.20)``."""
    at = next(x for x in draft.by_n if x.n == n)
    return f"{number(at.rate)} ({at.tokens_per_step:.2f})"


def _best_table(found: Outlook) -> Table:
    latency = next(iter(found.latencies), None)
    columns = [
        Column(f"tok/step\nat n = {found.drafts[0].at_n}", width=13),
        Column("best\nn", width=4),
        Column("\ntok/step", width=8),
        Column("\ntok/s", width=8),
        Column("over no\nspeculation", width=11),
    ]
    if latency is not None:
        title = f"{latency.objective.title}\n({latency.objective.unit})"
        columns.append(Column(title, width=min(24, max(map(len, title.split("\n"))))))
    rows = []
    for draft in found.drafts:
        best = draft.best
        cells = [
            length_name(draft),
            str(best.n),
            f"{best.tokens_per_step:.2f}",
            number(best.rate),
            "" if draft.speedup is None else f"{draft.speedup:.2f}×",
        ]
        if latency is not None:
            value = latency.of(best.n, best.rate)
            cells.append("" if value is None else number(value))
        rows.append(TableRow(tuple(cells), Tone.STRONG if draft.shift == 0 else Tone.NONE))
    return Table(tuple(columns), tuple(rows))


def _lengths_table(found: Outlook, drafts: Sequence[WhatIf]) -> Table:
    columns = (
        Column("n", width=4),
        *(Column(length_name(draft), width=13) for draft in drafts),
    )
    rows = (TableRow((str(n), *(at_n_text(draft, n) for draft in drafts))) for n in shown_ns(found))
    return Table(columns, tuple(rows))
