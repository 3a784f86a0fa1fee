"""A study as tables, figures and notes show it: plain values, no database, no server.

:mod:`autotune.results.trials` builds them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from autotune.results.text import (
    Bounds,
    count,
    lower,
    plain,
    plural,
    point_text,
    ranges,
    times,
    value_with_interval,
)
from autotune.stats import Estimate
from autotune.storage.records import may_win
from autotune.study.space import ARM, MNBT, N, Point

if TYPE_CHECKING:
    from autotune.results.certificates import Certificate
    from autotune.search.confirmation_verdict import Choice, ConfirmationVerdict
    from autotune.search.spending import Dropped
    from autotune.stats import LaunchVariance
    from objectives import Objective


@dataclass(frozen=True)
class Origin:
    """Origin of a reused trial: where it was measured.

    Attributes:
        database: Absolute path of the other study's database.
        study: Name of the other study.
        trial: The trial's number there.
        launch: Id of its measured launch there.
        measured_at: Unix time, s.
    """

    database: str
    study: str
    trial: int
    launch: str
    measured_at: float

    @property
    def source(self) -> str:
        """The other study, as `autotune run --reuse` takes it."""
        return f"{plain(self.database)}:{plain(self.study)}"

    @property
    def text(self) -> str:
        """Origin in words: ``trial 7 of /home/me/old.db:demo``."""
        return f"trial {self.trial} of {self.source}"


@dataclass(frozen=True)
class TrialView:
    """One trial as people see it.

    Attributes:
        number: Optuna's number of the trial, from 0.
        state: ``complete``, ``failed``, ``running`` or ``waiting``.
        point: Searched parameters with their plain values.
        values: Values by objective name, in the objective's unit; None for a trial without
            numbers. If the search launched a point several times, its first trial has the mean.
        acceptance_length: Tokens per verification step; None without speculation.
        acceptance_per_position: Share of the draft tokens at each position that were accepted.
        speedup: Ratio of the output throughput to the baseline's; None if unknown.
        baseline: Whether the other trials are compared with this one.
        front: Whether it is on the Pareto front: complete, and no other trial beats it in one
            objective without losing in another.
        failure_kind: Kind of the failure, an `autotune.errors.FailureKind`; None: it did not fail.
        failure_reason: Reason of the failure in one line.
        seconds: Duration of the whole trial, from launch to stop.
        failure_evidence: Lines of the server's log that show the failure, oldest first.
        within: Interval of each objective within its launch, in its unit, by objective name.
        errors: Standard error of each value's logarithm within one launch, by objective name.
        intervals: Intervals with launch-to-launch variance, as soon as that is known.
        speedup_interval: Interval of ``speedup``; None until launch-to-launch variance is known.
        launches: Number of launches of the search whose mean ``values`` are.
        requests: Number of measured requests of its launch.
        stop: Reason for the end of measuring, a name of :class:`autotune.stats.stopping.Stop`.
        truncated: Whether it was ended early, because another trial is better in everything: its
            numbers are rough and never win.
        throttled: Whether vLLM ran fewer requests at once than the load and ``max_num_seqs`` ask
            for: its numbers are of another load, are compared with nothing, and never win.
        running_peak: Largest number of requests that were seen to run at once; None: unknown.
        running_asked: Number of requests that the load and ``max_num_seqs`` ask for.
        outdated: Whether its numbers are of an earlier estimator and could not be computed again:
            they are shown, and compared with nothing.
        recomputed: Whether its numbers were computed again from an earlier autotune's requests.
        warnings: Warnings about the measurement: ``in short: in words``.
        replicates: Number of the trial whose point this one repeats in the search.
        confirms: Number of the trial whose point this one confirms; None: a trial of the search.
        reused: Where it was measured, if it was taken from another study.
        confirmed: Value of each objective in the confirmation, the mean of its launches.
        confirmed_intervals: Intervals of ``confirmed``, with launch-to-launch variance.
        confirmed_launches: Number of launches of the confirmation.
        confirmed_speedup: Ratio of the throughput to the confirmed baseline's: value, low, high.
        curve: Whose acceptance it tells of (:func:`autotune.study.ways.curve_of`); None: of none.
        lossy: Whether its launch accepts drafts that the target would not have written.
        skips_steps: Whether it may have steps without drafts, which ``acceptance_length`` leaves
            out.
        slot: What is kept of the slot that measured it, or launches it now
            (:meth:`autotune.serving.slots.Slot.stored`); None: the run had one server at a time.
        certificate: Whether its answers are those of n = 0; None: it drafts nothing, or has no
            numbers.
    """

    number: int
    state: str
    point: Point
    values: Mapping[str, float] | None
    acceptance_length: float | None
    acceptance_per_position: tuple[float, ...]
    speedup: float | None
    baseline: bool
    front: bool
    failure_kind: str | None
    failure_reason: str | None
    seconds: float | None
    failure_evidence: tuple[str, ...] = ()
    within: Mapping[str, Bounds] | None = None
    errors: Mapping[str, float | None] | None = None
    intervals: Mapping[str, Bounds] | None = None
    speedup_interval: Bounds | None = None
    launches: int = 1
    requests: int | None = None
    stop: str | None = None
    truncated: bool = False
    throttled: bool = False
    running_peak: int | None = None
    running_asked: int | None = None
    outdated: bool = False
    recomputed: bool = False
    warnings: tuple[str, ...] = ()
    replicates: int | None = None
    confirms: int | None = None
    reused: Origin | None = None
    confirmed: Mapping[str, float] | None = None
    confirmed_intervals: Mapping[str, Bounds] | None = None
    confirmed_launches: int = 0
    confirmed_speedup: tuple[float, float | None, float | None] | None = None
    curve: str | None = ""
    lossy: bool = False
    skips_steps: bool = False
    slot: Mapping[str, Any] | None = None
    certificate: Certificate | None = None

    @property
    def length_text(self) -> str:
        """Tokens per step in a cell, marked where they are those of some steps only."""
        mark = "*" if self.skips_steps else ""
        return "" if self.acceptance_length is None else f"{self.acceptance_length:.2f}{mark}"

    @property
    def setting(self) -> str:
        """Its point in one line, and whether that is lossy."""
        return f"{point_text(self.point)}{', lossy' if self.lossy else ''}"

    @property
    def again(self) -> int | None:
        """Number of the trial whose point this one repeats, in the search or a confirmation."""
        return self.replicates if self.confirms is None else self.confirms

    @property
    def may_win(self) -> bool:
        """Whether its numbers can be the best; see :attr:`autotune.storage.records.Quality`."""
        return may_win(truncated=self.truncated, outdated=self.outdated, throttled=self.throttled)

    @property
    def comparable(self) -> bool:
        """Whether its numbers are of the study's load and of the present estimator."""
        return not (self.outdated or self.throttled)

    def value(self, objective: Objective) -> float | None:
        """Return the finite value of an objective, or None."""
        value = (self.values or {}).get(objective.name)
        return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class StudyView:
    """One study as people see it.

    Attributes:
        objectives: One to three, with the study's directions.
        trials: In the order of their numbers.
        wanted: Number of finished trials that the study is to have.
        finished: Number of finished trials; those that it took from other studies do not count.
        machine: Description of the machine in a few words.
        vllm_version: Version of the measured servers; None until one has run.
        verdict: Verdict of the confirmation; None without one.
        variance: Launch-to-launch variance by objective name; empty until a point was launched
            twice.
        variables: Variables of the user's environment that may change figures and had several
            values: their trials by value, None: not set.
        arms: Names of the study's arms; empty: it has one way to draft.
        dropped: Why candidates of the confirmation are launched no more, by their trial's number.
        rehearsal: What of a rehearsal is real and what is not; empty: it is none.
    """

    name: str
    objectives: Sequence[Objective]
    trials: Sequence[TrialView]
    wanted: int
    finished: int
    machine: str
    vllm_version: str | None
    created: datetime
    verdict: ConfirmationVerdict | None = None
    variance: Mapping[str, LaunchVariance] = field(default_factory=dict)
    variables: Mapping[str, Mapping[str | None, Sequence[int]]] = field(default_factory=dict)
    arms: Sequence[str] = ()
    dropped: Mapping[int, Dropped] = field(default_factory=dict)
    rehearsal: str = ""

    def front(self) -> list[TrialView]:
        """Return the Pareto front, best by the first objective first."""
        first = self.objectives[0]
        front = [t for t in self.trials if t.front and t.value(first) is not None]
        return sorted(front, key=lambda t: cost(first, t.value(first)))

    def best(
        self, objective: Objective | None = None, *, balanced: bool = False
    ) -> TrialView | None:
        """Return the best trial by one objective, the first one by default, or by all of them.

        It is the confirmation's choice if there is one, because the best of many single
        measurements has a selection bias. Without one, it is the best of the Pareto front.

        Args:
            objective: Name of the objective; the first one, if None.
            balanced: Choose by the largest product of improvements instead, in which one percent of
                any objective counts the same.
        """
        chosen = objective or self.objectives[0]
        if self.verdict is not None:
            index = [o.name for o in self.objectives].index(chosen.name)
            choice = self.verdict.balanced if balanced else self.verdict.winners[index]
            return next(t for t in self.trials if t.number == choice.number)
        front = [t for t in self.front() if all(t.value(o) is not None for o in self.objectives)]
        if balanced:
            return min(front, key=self._imbalance, default=None)
        return min(front, key=lambda t: cost(chosen, t.value(chosen)), default=None)

    def _imbalance(self, trial: TrialView) -> float:
        """Return the sum of the logarithms of all costs; less is better."""
        logs = []
        for o in self.objectives:
            value = trial.value(o)
            if value is None or value <= 0:
                return math.inf
            logs.append(-math.log(value) if o.direction == "maximize" else math.log(value))
        return sum(logs)

    def failures(self) -> list[TrialView]:
        """Return the failed trials."""
        return [t for t in self.trials if t.state == "failed"]

    def parameters(self) -> list[str]:
        """Return the searched parameters: the arm, n, MNBT, then the others in their order."""
        names = dict.fromkeys(name for t in self.trials for name in t.point)
        if self.arms:
            names[ARM] = None
        return sorted(names, key=lambda name: {ARM: 0, N: 1, MNBT: 2}.get(name, 3))


# What the mark of `TrialView.length_text` says.
STEPS_NOTE = "* tokens in a step that has drafts; vLLM does not count the other steps"


def steps_notes(trials: Iterable[TrialView]) -> list[str]:
    """Return the line below a table that says what its marks mean; none without a mark."""
    marked = any(t.skips_steps and t.acceptance_length is not None for t in trials)
    return [STEPS_NOTE] if marked else []


def cost(objective: Objective, value: float | None) -> float:
    """Return a value for sorting, less is better; infinite where there is none."""
    if value is None:
        return math.inf
    return -value if objective.direction == "maximize" else value


def kinds_text(failed: Iterable[TrialView]) -> str:
    """Return how many trials failed with each kind: ``2 oom, 1 timeout``."""
    counts: dict[str, int] = {}
    for trial in failed:
        kind = trial.failure_kind or "unknown"
        counts[kind] = counts.get(kind, 0) + 1
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())


def confirmation_lines(view: StudyView) -> list[str]:
    """Return what the confirmation found, a line for each point, the best one first."""
    first = view.objectives[0]
    again = [t for t in view.trials if t.confirmed]
    lines = []
    for t in sorted(again, key=lambda t: cost(first, (t.confirmed or {})[first.name])):
        parts = [
            value_with_interval(
                (t.confirmed or {})[o.name], (t.confirmed_intervals or {}).get(o.name), o
            )
            for o in view.objectives
        ]
        if t.confirmed_speedup is not None and not t.baseline:
            value, low, high = t.confirmed_speedup
            parts.append(f"speed-up {times(Estimate(value, low, high))}")
        lines.append(
            f"{_name(view, t.number)}: {', '.join(parts)}; {count(t.confirmed_launches, 'launch')}"
        )
    return lines


def dropped_lines(view: StudyView) -> list[str]:
    """Return which candidates the confirmation launches no more and why, a line for each."""
    known = {t.number for t in view.trials}
    lines = []
    for number, why in view.dropped.items():
        if not {number, why.better} <= {*known, None}:
            continue  # a trial that this version does not show
        if why.better is None:
            reason = "because its launches failed"
        else:
            chance = _chance_text(why.chance or 0)
            reason = f"because {_name(view, why.better)} is better with {chance} probability"
        launches = f" after {count(why.launches, 'launch')}" if why.launches else ""
        lines.append(f"{_name(view, number)}: dropped{launches}, {reason}")
    return lines


def verdict_lines(view: StudyView) -> list[str]:
    """Return the best point and its certainty: by each objective, then by all of them."""
    if view.verdict is None:
        return []
    rules = [lower(o.title) for o in view.objectives]
    choices = list(zip(rules, view.verdict.winners, strict=True))
    if len(rules) > 1:
        every = "both" if len(rules) == 2 else "all"
        choices.append((f"{every}, equally weighted", view.verdict.balanced))
    return [f"best by {plain(rule)}: {_choice(view, choice)}" for rule, choice in choices]


def off_front_lines(view: StudyView) -> list[str]:
    """Return the line that says why a choice is not on the Pareto front; none if all are on it."""
    if view.verdict is None:
        return []
    numbers = dict.fromkeys(x.number for x in (*view.verdict.winners, view.verdict.balanced))
    off = [_name(view, k) for k in numbers if not _trial(view, k).front]
    if not off:
        return []
    why = (
        "the front is of the search's launches, a choice is among confirmed points, by all launches"
    )
    return [f"not on the Pareto front: {', '.join(off)}; {why}"]


def _choice(view: StudyView, choice: Choice) -> str:
    words = [_name(view, choice.number)]
    if choice.over_baseline is not None and not _trial(view, choice.number).baseline:
        names = [o.name for o in view.objectives]
        if "throughput" in names:
            e = choice.over_baseline[names.index("throughput")]
            words.append(f"speed-up {times(e)}")
    chance = None if choice.rival is None else choice.chances[choice.rival]
    if choice.rival is not None:
        the = "the " if _trial(view, choice.rival).baseline else ""
        rival = the + _name(view, choice.rival)
        if chance is None:
            words.append(f"not comparable with {rival} yet, because no point was launched twice")
        elif choice.tie:
            words.append(f"a tie with {rival}: better with only {tied_text(chance)} probability")
        else:
            words.append(f"better than {rival} with {_chance_text(chance)} probability")
    return ", ".join(words)


def tied_text(chance: float) -> str:
    """Return the probability of a tie in percent, below the 95 % from which on it would be none."""
    return f"{min(chance, 0.94):.0%}"


def _chance_text(chance: float) -> str:
    # even 99.96 % is no certainty, which "100%" would claim
    return "more than 99%" if chance > 0.99 else f"{chance:.0%}"


def _trial(view: StudyView, number: int) -> TrialView:
    return next(t for t in view.trials if t.number == number)


def _name(view: StudyView, number: int) -> str:
    t = _trial(view, number)
    return f"{'baseline' if t.baseline else f'trial {number}'} ({t.setting})"


# Of trials that were measured by autotune 0.1 (:mod:`autotune.results.recomputed`).
COMPUTED_AGAIN = (
    "measured by autotune 0.1, computed again from the stored requests by today's definitions"
)


def origin_lines(view: StudyView) -> list[str]:
    """Return which trials were measured for another study, by an earlier autotune, or otherwise.

    A line for each such study, one for all of an earlier autotune, and one for each variable of the
    environment that changed.
    """
    found: dict[str, list[int]] = {}
    for t in view.trials:
        if t.reused is not None:
            found.setdefault(t.reused.source, []).append(t.number)
    lines = [f"reused from {source}: {_trials(numbers)}" for source, numbers in found.items()]
    if again := [t.number for t in view.trials if t.recomputed]:
        lines.append(f"{_trials(again)}: {COMPUTED_AGAIN}")
    return [*lines, *variable_lines(view)]


def variable_lines(view: StudyView) -> list[str]:
    """Return which variables of the user's environment had several values, a line for each."""
    return [
        f"measured with different values of {plain(name)}: "
        + ", ".join(
            f"{'not set' if value is None else plain(value)} in {_trials(numbers)}"
            for value, numbers in values.items()
        )
        for name, values in view.variables.items()
    ]


def _trials(numbers: Sequence[int]) -> str:
    return f"{plural(len(numbers), 'trial')} {ranges(numbers)}"


def throttled_lines(view: StudyView) -> list[str]:
    """Return which trials vLLM throttled and how far, a line for each peak of running requests."""
    found: dict[tuple[int | None, int | None], list[int]] = {}
    for t in view.trials:
        if t.throttled:
            found.setdefault((t.running_peak, t.running_asked), []).append(t.number)
    return [
        f"throttled, so never the best: {_trials(numbers)}: at most {peak} of {asked} requests ran "
        "at once"
        for (peak, asked), numbers in found.items()
    ]


def why_no_best(view: StudyView) -> str:
    """Return why a study without a best trial has none: no trial has results, or they never win."""
    if lines := throttled_lines(view):
        return f"no trial can be recommended; {'; '.join(lines)}"
    return "no trial has results"


def scatter_line(view: StudyView) -> str | None:
    """Return the launch-to-launch variance; None while no point was launched twice."""
    parts = [
        f"{plain(lower(o.title))} {v.total.sigma:.1%} ({v.between:.1%} beyond request noise)"
        for o in view.objectives
        if (v := view.variance.get(o.name)) is not None
    ]
    return "launch-to-launch standard deviation: " + ", ".join(parts) if parts else None
