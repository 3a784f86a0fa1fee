"""The map of a study's space: what can launch, what cannot and why, before anything is launched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import product
from typing import Any

from packaging.version import InvalidVersion, Version

from autotune.engine.active_requests import why_throttled
from autotune.engine.cuda_graphs import coverage, graphs, most_tokens
from autotune.engine.draft_method import with_method
from autotune.engine.draft_notes import draft_notes
from autotune.engine.feasibility import known_for
from autotune.engine.flags import check_flags
from autotune.engine.memory_fit import why_no_weights, why_too_large
from autotune.engine.probe import VllmInfo, probe
from autotune.engine.rehearsal import why_loaded_alike
from autotune.engine.rule import NOTHING, SEQS, Known, minor_of
from autotune.engine.rules import THROTTLED, doubts_of, infeasible
from autotune.errors import UserError
from autotune.results.batch_budget import families_of
from autotune.results.rehearsed import with_counted_acceptance
from autotune.results.text import HEADINGS, WIDTH, count, point_text, range_words, upper, wrapped
from autotune.results.views import TrialView
from autotune.search.alike import key_of
from autotune.serving.machine import has_gpu, memory_size, vllms_gpus
from autotune.study import sample_size
from autotune.study.files import LoadedStudy
from autotune.study.schema import ServerSpec, StudySpec
from autotune.study.space import (
    ARM,
    MNBT,
    FloatParam,
    N,
    Point,
    Space,
    Value,
    as_int,
    canonical,
)

# Of a larger space JSON has the counts, not each point.
_MOST_LISTED = 10_000


class State(StrEnum):
    """State of a point before its launch."""

    CAN = "can launch"
    CANNOT = "cannot launch"
    DOUBTFUL = "doubtful"
    THROTTLED = "would be throttled"
    ALIKE = "one with a smaller MNBT"
    LIKELY = "likely one with a smaller MNBT"
    SAME = "same launch as another"


_MARKS = {
    State.CAN: "·",
    State.CANNOT: "×",
    State.DOUBTFUL: "?",
    State.THROTTLED: "~",
    State.ALIKE: "≡",
    State.LIKELY: "≈",
    State.SAME: "=",
}
# States of points that a search leaves to another point, though they can launch.
_ONE = (State.ALIKE, State.LIKELY)
_SCHEDULER = "v1/core/sched/scheduler.py: Scheduler.schedule"
_OUTCOMES = {"complete": ("●", "measured"), "failed": ("!", "failed")}


@dataclass(frozen=True)
class Cell:
    """One point of the space.

    Attributes:
        point: The searched parameters.
        state: State of the point before its launch.
        reason: Reason of the state, unless the point can launch.
        outcome: ``complete`` or ``failed``, if the database has a trial of the point.
    """

    point: dict[str, Value]
    state: State
    reason: str | None
    outcome: str | None


@dataclass
class Reason:
    """Points that cannot be launched, or only perhaps, for the same reason.

    Attributes:
        state: State of the points.
        rule: Rule in a few words.
        source: Place in vLLM that has the rule.
        text: Reason in words, for the first of the points.
        example: The first of the points.
        count: Number of points.
    """

    state: State
    rule: str
    source: str
    text: str
    example: dict[str, Value]
    count: int = 0


@dataclass(frozen=True)
class SpaceMap:
    """A space as the rules see it.

    Attributes:
        study: Name of the study.
        vllm: vLLM's version; None: unknown.
        platform: vLLM's name of the device; None: unknown.
        allow_throttled: Whether the study launches points that would be throttled.
        sampled: Whether a real-valued parameter is represented by its two ends.
        cells: Every point.
        reasons: Common reasons of the points that cannot launch, the most frequent first.
        notes: Remarks on the draft, and on a number of requests that is too small.
        holes: For each n, the numbers of requests up to the study's concurrency that vLLM decodes
            without a full CUDA graph; empty if unknown.
    """

    study: str
    vllm: str | None
    platform: str | None
    sampled: bool
    cells: tuple[Cell, ...]
    reasons: tuple[Reason, ...]
    holes: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    allow_throttled: bool = False

    def count(self, state: State) -> int:
        """Return the number of points in a state."""
        return sum(c.state is state for c in self.cells)

    @property
    def saved(self) -> int:
        """Number of launches that these rules save a search of every point."""
        left_out = 0 if self.allow_throttled else self.count(State.THROTTLED)
        return self.count(State.CANNOT) + self.count(State.SAME) + left_out + self.alike

    @property
    def alike(self) -> int:
        """Number of points that are one with another for the objectives, proven or likely."""
        return sum(map(self.count, _ONE))

    @property
    def can_launch(self) -> int:
        """Number of points that can launch, those that are one with another included."""
        return self.launched + self.alike

    @property
    def launched(self) -> int:
        """Number of points that a search of every point would launch."""
        return len(self.cells) - self.saved

    def to_json(self) -> dict[str, Any]:
        """Return the map as plain data."""
        listed = self.cells if len(self.cells) <= _MOST_LISTED else ()
        return {
            "study": self.study,
            "vllm": self.vllm,
            "platform": self.platform,
            "points": len(self.cells),
            "real_parameters_at_their_ends": self.sampled,
            "can_launch": self.can_launch,
            "differ": self.launched,
            "may_crash": self.count(State.DOUBTFUL),
            "cannot_launch": self.count(State.CANNOT),
            "throttled": self.count(State.THROTTLED),
            "allow_throttled": self.allow_throttled,
            "same_launch": self.count(State.SAME),
            "launches_saved": self.saved,
            "reasons": [
                {
                    "state": str(r.state),
                    "rule": r.rule,
                    "points": r.count,
                    "reason": r.text,
                    "example": r.example,
                    "source": r.source,
                }
                for r in self.reasons
            ],
            "notes": list(self.notes),
            "without_full_graph": {str(n): list(b) for n, b in self.holes.items()},
            "map": [
                {
                    "params": c.point,
                    "state": str(c.state),
                    "reason": c.reason,
                    "outcome": c.outcome,
                }
                for c in listed
            ],
        }

    def lines(self) -> list[str]:
        """Return the map for people, in at most 80 columns."""
        where = f" ({self.platform})" if self.platform else ""
        vllm = f"vLLM {self.vllm}{where}" if self.vllm else "a vLLM of unknown version"
        out = _wrapped(
            f"{self.study} on {vllm}: {count(len(self.cells), 'point')}, {self._counts()}"
        )
        if self.vllm is None:
            out += _wrapped("only what all versions have in common is said; name one with --vllm")
        if self.sampled:
            out += _wrapped("real-valued parameters are shown at their two ends")
        table = _tables(self.cells)
        if table:
            out += ["", *table, "", *_wrapped(self._legend())]
        for r in self.reasons:
            out += ["", *_wrapped(f"{_MARKS[r.state]} {count(r.count, 'point')}: {r.rule}")]
            example = not table or ARM in r.example
            words = f"such as {point_text(r.example)}: {r.text}" if example else r.text
            if r.text != r.rule:
                out += _wrapped(words, indent="  ")
        if self.holes:
            each = "; ".join(f"n = {n}: {_ranges(b)}" for n, b in self.holes.items())
            out += ["", *_wrapped(f"requests without a full CUDA graph: {each}")]
        for note in self.notes:
            out += ["", *_wrapped(f"note: {note}")]
        out += ["", *_wrapped(self._saved())]
        return out

    def _counts(self) -> str:
        words = [f"{self.can_launch} can launch"]
        if self.alike:
            words.append(f"{self.launched} of them differ{'s' if self.launched == 1 else ''}")
        allowed = {State.DOUBTFUL} | ({State.THROTTLED} if self.allow_throttled else set())
        for state, text in (
            (State.DOUBTFUL, "are doubtful"),
            (State.THROTTLED, "would be throttled"),
            (State.SAME, "are another's launch"),
        ):
            if n := self.count(state):
                words.append(f"{n} of them {text}" if state in allowed else f"{n} {text}")
        return ", ".join(words)

    def _legend(self) -> str:
        states = [f"{_MARKS[s]} {s}" for s in State if self.count(s)]
        seen = {c.outcome for c in self.cells}
        states += [f"{mark} {word}" for key, (mark, word) in _OUTCOMES.items() if key in seen]
        return "   ".join(states)

    def _saved(self) -> str:
        cannot, same = self.count(State.CANNOT), self.count(State.SAME)
        parts = [f"{cannot} would fail"] if cannot else []
        parts += [f"{same} would start a server that another point starts"] if same else []
        throttled = 0 if self.allow_throttled else self.count(State.THROTTLED)
        parts += [f"{throttled} would measure another load"] if throttled else []
        parts += [f"{self.alike} are one with a smaller MNBT"] if self.alike else []
        words = f"launches saved: {self.saved}"
        return f"{words} ({', '.join(parts)})" if parts else words


def explain(
    loaded: LoadedStudy,
    version: str | None = None,
    trials: Iterable[TrialView] = (),
    ask: Callable[[ServerSpec], VllmInfo] | None = None,
) -> SpaceMap:
    """Return the map of a study's space.

    Args:
        loaded: The study.
        version: Version of vLLM to ask about; None: the one that the study would start.
        trials: Trials of the study in the database.
        ask: Returns the vLLM that a study would start; :func:`probe` by default.

    Raises:
        UserError: there is no vLLM to ask, no such version, or a flag is refused.
    """
    if version is None:
        try:
            info = (ask or probe)(loaded.spec.server)
        except UserError as e:
            raise UserError(f"{loaded.path}: {e}; or name a version with --vllm") from e
        return _explained(loaded, info, trials)
    try:
        Version(version)
    except InvalidVersion:
        raise UserError(f"--vllm: {version[:40]} is no version; such as 0.32.0") from None
    device = "cuda" if has_gpu() else None
    info = VllmInfo(version, None, None, device, None, (), (), gpus=vllms_gpus())
    return _explained(loaded, info, trials)


def _explained(loaded: LoadedStudy, info: VllmInfo, trials: Iterable[TrialView]) -> SpaceMap:
    """Return the map of a study that was checked as a run checks it."""
    check_flags(loaded, info)
    notes = tuple(draft_notes(loaded))
    loaded = with_counted_acceptance(with_method(loaded))
    label = loaded.spec.rehearsal_label
    why = why_loaded_alike(loaded.spec.server, info) or why_no_weights(loaded)
    if why := why or why_too_large(loaded, info, memory_size()):
        raise UserError(f"{loaded.path}: {why}")
    found = space_map(loaded.spec, info.version, known_for(loaded, info), trials)
    about = (f"{upper(label)}.",) if label else ()
    return replace(found, notes=(*about, *notes, *found.notes))


def space_map(
    spec: StudySpec, version: str | None, known: Known = NOTHING, trials: Iterable[TrialView] = ()
) -> SpaceMap:
    """Return the map of a space for a vLLM version and a machine."""
    space = spec.to_space()
    tried = {key_of(canonical(space, t.point)): t.state for t in trials if t.state in _OUTCOMES}
    judge = _Judge(spec, space, version, known)
    cells: list[Cell] = []
    reasons: dict[tuple[State, str], Reason] = {}
    for point in _points_of(space):
        found = judge.reasons(point)
        state = found[0].state if found else State.CAN
        words = "; ".join(r.text for r in found) or None
        cells.append(Cell(space.shown(point), state, words, tried.get(key_of(point))))
        for r in found:
            r.example = space.shown(r.example)
            reasons.setdefault((r.state, r.rule), r).count += 1
    return SpaceMap(
        study=spec.name,
        vllm=version,
        platform=known.platform,
        sampled=space.size() is None,
        cells=tuple(cells),
        reasons=tuple(sorted(reasons.values(), key=lambda r: -r.count)),
        holes=_holes(spec, version, known),
        notes=tuple(sample_size.notes(spec)),
        allow_throttled=known.allow_throttled,
    )


class _Judge:
    """Says what becomes of a point, without a launch."""

    def __init__(self, spec: StudySpec, space: Space, version: str | None, known: Known) -> None:
        self._spec, self._space = spec, space
        self._version, self._known = version, known
        searched = spec.search.method == "gp" and space.size() is not None
        self._families = families_of(spec, version, known) if searched else None

    def reasons(self, point: Point) -> list[Reason]:
        """Return why a point cannot be launched, or need not be, or is in doubt."""
        settings = self._spec.settings(point)
        about = (settings, self._version, self._known)
        if broken := infeasible(*about):
            state = State.THROTTLED if broken.rule is THROTTLED else State.CANNOT
            return [Reason(state, broken.rule.name, broken.rule.source, broken.reason, dict(point))]
        if canonical(self._space, point) != point:
            words, source = (
                "at n = 0 nothing of the draft matters",
                "no --speculative-config at n = 0",
            )
            return [Reason(State.SAME, words, source, words, dict(point))]
        if text := why_throttled(*about):
            return [Reason(State.THROTTLED, THROTTLED.name, THROTTLED.source, text, dict(point))]
        if (one := self._one(point)) is not None:
            return [one]
        return [
            Reason(State.DOUBTFUL, d.name, d.source, d.text, dict(point)) for d in doubts_of(*about)
        ]

    def _one(self, point: Point) -> Reason | None:
        """Return that a smaller MNBT is one with a point's; None: it is the smallest, or binds."""
        if self._families is None or self._families.stands_for(point, certain=False) == point:
            return None
        certain = self._families.stands_for(point, certain=True) != point
        state = State.ALIKE if certain else State.LIKELY
        text = self._families.sentence(point, certain=certain)
        rule = "MNBT that cannot bind" if certain else "MNBT that likely cannot bind"
        return Reason(state, rule, _SCHEDULER, text or rule, dict(point))


def _points_of(space: Space) -> Iterator[dict[str, Value]]:
    """Yield every point; a real-valued parameter has its two ends only."""
    for part in space.parts():
        columns: list[Sequence[Value]] = []
        for p in part.params.values():
            ends = dict.fromkeys((p.low, p.high)) if isinstance(p, FloatParam) else {}
            columns.append(p.values() or tuple(ends))
        for row in product(*columns):
            yield dict(zip(part.params, row, strict=True))


def _holes(spec: StudySpec, version: str | None, known: Known) -> dict[int, tuple[int, ...]]:
    """Return, by n, the numbers of requests without a full CUDA graph; empty if unknown."""
    flags, searched = spec.server.flags, spec.to_space().params.get(N)
    seqs, mnbt = as_int(flags.get(SEQS)), as_int(flags.get(MNBT))
    if MNBT in spec.space:
        mnbt = max((int(v) for v in spec.space[MNBT].values() or ()), default=None)
    load = spec.workload.max_concurrency
    chosen = any("cudagraph" in k or k.startswith("compilation_config") for k in flags)
    if known.platform != "cuda" or flags.get("enforce_eager") or chosen:
        return {}
    if version is None or minor_of(version) is None:
        return {}
    if searched is None or seqs is None or mnbt is None or load is None or seqs < 1:
        return {}
    out: dict[int, tuple[int, ...]] = {}
    for n in (int(v) for v in searched.values() or ()):
        found = graphs(n, seqs, mnbt, version, most=most_tokens(version, known.gpus))
        missed = coverage(found, min(load, seqs)).missed
        if missed:
            out[n] = missed
    return out


def _tables(cells: Sequence[Cell]) -> list[str]:
    """Return the table of marks, or one for each arm; those at n = 0, without an arm, are in all.

    An arm that does not fit into a table has a line with the numbers of its points.
    """
    arms = dict.fromkeys(str(c.point[ARM]) for c in cells if ARM in c.point)
    if not arms:
        return list(_table(cells))
    out: list[str] = []
    for arm in arms:
        own = [c for c in cells if c.point.get(ARM, arm) == arm]
        if lines := list(_table(own)):
            out += [*([""] if out else []), f"arm {arm}", *lines]
            continue
        states = Counter(c.state for c in own if ARM in c.point)
        words = ", ".join(f"{number} {state}" for state, number in states.items())
        out += [*([""] if out else []), f"arm {arm}: {words}"]
    return out


def _table(cells: Sequence[Cell]) -> Iterator[str]:
    """Yield two parameters as rows and columns of marks; nothing if they do not fit."""
    points = [{k: v for k, v in c.point.items() if k != ARM} for c in cells]
    names = list(points[0]) if points else []
    if len(names) != 2 or any(list(point) != names for point in points):
        return
    values = [list(dict.fromkeys(point[name] for point in points)) for name in names]
    across, down = (0, 1) if len(values[0]) >= len(values[1]) else (1, 0)
    heads = [HEADINGS.get(name, name) for name in names]
    left = max(len(f"{heads[down]} {v}") for v in values[down])
    left = max(left, len(heads[across]))
    cell = max(len(str(v)) for v in values[across]) + 1
    if left + cell * len(values[across]) > WIDTH or len(values[down]) > 100:
        return
    marks = {tuple(q.values()): _mark(c) for q, c in zip(points, cells, strict=True)}
    yield heads[across].rjust(left) + "".join(str(v).rjust(cell) for v in values[across])
    for i, v in enumerate(values[down]):
        label = f"{heads[down]} {v}" if i == 0 else str(v)
        row = ((w, v) if across == 0 else (v, w) for w in values[across])
        yield label.rjust(left) + "".join(marks.get(pair, "").rjust(cell) for pair in row)


def _mark(c: Cell) -> str:
    return _OUTCOMES[c.outcome][0] if c.outcome else _MARKS[c.state]


def _ranges(numbers: Sequence[int]) -> str:
    """Return ``3, 6, 9 to 12``; of more than six parts, five are shown."""
    words = range_words(numbers)
    return ", ".join(words if len(words) <= 6 else [*words[:5], "…"])


def _wrapped(text: str, indent: str = "") -> list[str]:
    return wrapped(text, indent=indent, hanging=indent or "  ")
