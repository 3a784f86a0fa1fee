"""What a person sees in the terminal: a live line while a trial runs, a row when it is done.

Without a terminal (a log, a pipe) the same is said in plain lines, one a stage and one a trial.
Texts from studies, models and logs are never read as markup and lose their control characters.
"""

from __future__ import annotations

import re
import shlex
import statistics
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich import box
from rich.cells import cell_len
from rich.console import (
    Console,
    ConsoleOptions,
    Group,
    JustifyMethod,
    RenderableType,
    RenderResult,
)
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from autotune.study.space import MNBT, N, Point
from autotune.tuning.progress import OUTSIDE, At
from autotune.views import (
    StudyView,
    TrialView,
    bounds_text,
    confirmation_lines,
    kinds_text,
    number,
    origin_lines,
    plain,
    point_text,
    scatter_line,
    value_text,
    value_with_interval,
    verdict_lines,
)

if TYPE_CHECKING:
    from objectives import Objective

_HEADINGS = {N: "n", MNBT: "MNBT"}
_GAP = "  "
_NBSP = "\xa0"
_HELD = re.compile(r" (?=[^\s\[\]]+\])|(?<=\w) (?==)|(?<==) ")  # in `[1.2, 3.4]` and `n = 8`


class Ui:
    """The terminal of a run (:class:`autotune.tuning.progress.Progress`); a context manager.

    Args:
        console: Where to write; standard output by default.
        clock: Seconds that only go forward.
    """

    def __init__(
        self, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.console = console or Console(highlight=False)
        self.live = self.console.is_terminal and not self.console.is_dumb_terminal
        self._clock = clock
        self._line: Live | None = None
        self._view: StudyView | None = None
        self._durations: list[float] = []
        self._header_shown = False
        self._trial = ""  # "[7/40] trial 6"
        self._point = ""
        self._remaining = 0  # trials, with the one that runs
        self._trial_began = 0.0
        self._stage = ""
        self._stage_began = 0.0
        self._progress = ""

    def __enter__(self) -> Ui:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Takes the live line away and gives the cursor back; may be called twice."""
        if self._line is not None:
            self._line.stop()
            self._line = None

    def study(self, view: StudyView, database: Path) -> None:
        """Says what starts or goes on; a resumed study's finished trials are shown again."""
        self._view = view
        self._durations = [t.seconds for t in view.trials if t.seconds is not None]
        done = [t for t in view.trials if t.state in {"complete", "failed"}]
        verb = "resuming" if done else "starting"
        self._print(
            f"{verb} {plain(view.name)}: {view.finished} of {view.wanted} trials finished, "
            f"database {plain(str(database))}"
        )
        if self.live:
            for trial in done:
                self._row(trial)

    def begin(self, at: At, position: int, point: Point) -> None:
        """Show that a trial begins.

        Args:
            at: Its trial and slot.
            position: Its position among the wanted trials, from 1.
            point: What will be launched.
        """
        wanted = self._view.wanted if self._view else position
        self._trial = f"[{position}/{wanted}] trial {at.trial}"
        self._point = point_text(point)
        self._remaining = max(1, wanted - position + 1)
        self._trial_began = self._clock()
        self._stage = self._progress = ""

    def stage(self, at: At, text: str) -> None:
        """Show a stage, such as ``launching``; its seconds count from now."""
        if plain(text) == self._stage:
            return
        self._stage, self._progress = plain(text), ""
        self._stage_began = self._clock()
        if not self.live:
            self._print(_GAP.join(filter(None, [self._trial, self._point, self._stage])))
        elif self._line is None:
            self._line = Live(self, console=self.console, refresh_per_second=4, transient=True)
            self._line.start()

    def progress(self, at: At, done: int, total: int) -> None:
        """Show how far the stage is, in the live line only."""
        self._progress = f"{done}/{total} requests"

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Shows what a person waits for outside of trials."""
        self.stage(OUTSIDE, text)
        try:
            yield
        finally:
            self._stage = ""
            self.close()

    def download(self, stage: str, done: float) -> None:
        """Progress of ``demo:target``; fits :func:`autotune.study.models.resolve_model`.

        Args:
            stage: ``wait``, ``download``, ``unpack``, ``convert`` or ``check``.
            done: 0 to 1.
        """
        if done >= 1:
            self._stage = ""
            self.close()
            return
        self.stage(OUTSIDE, f"demo model: {stage}")
        self._progress = f"{done:.0%}"

    def trial(self, at: At, trial: TrialView) -> None:
        """Show the row of a finished trial."""
        if trial.seconds is not None:
            self._durations.append(trial.seconds)
        if self.live:
            self._row(trial)
        else:
            words = [self._trial or f"trial {trial.number}", self._words(trial)]
            if self._durations and self._remaining > 1:
                left = statistics.median(self._durations) * (self._remaining - 1)
                words.append(f"about {_duration(left)} left")
            self._print(_GAP.join(words))
        self._trial = self._point = self._stage = self._progress = ""

    def message(self, text: str, at: At = OUTSIDE) -> None:
        """Show one line that is neither a stage nor a trial."""
        self._print(plain(text))

    def time_left(self) -> float | None:
        """Seconds until the study is done, by the median of the trials so far; None before one."""
        if not self._durations or not self._trial:
            return None
        typical = statistics.median(self._durations)
        return typical * self._remaining - min(typical, self._clock() - self._trial_began)

    def summary(
        self, view: StudyView, command: str | None, database: Path, plots: Sequence[Path]
    ) -> None:
        """The end: the front, how to serve the best of it, where the plots are, what next.

        Args:
            view: The whole study.
            command: Serves ``view.best()``; one line for a shell.
            database: The study's file.
            plots: Files that were written.
        """
        self.close()
        self._print("")
        self._print(_state(view))
        best = view.best()
        if best is None:
            self._print("no trial has results; `autotune status` shows why each one failed")
        else:
            self.best(view, best, command)
        for path in plots:
            self._print(f"Plot: {plain(str(path))}")
        db = "" if database.absolute() == Path.cwd() / "autotune.db" else _db_option(database)
        hints = {f"autotune status{db}": "all trials, and why some failed"}
        if best is not None:
            hints[f"autotune best{db} --shell"] = "print the serving command again"
        hints[f"autotune dashboard{db}"] = "open the study in a browser"
        for line, what in hints.items():
            self._print(f"Next: {line}  ({what})")

    def best(self, view: StudyView, trial: TrialView, command: str | None) -> None:
        """The front, and the command that serves one trial of it."""
        self._print("")
        self.console.print(front_table(view))
        self._print("")
        if again := confirmation_lines(view):
            self._print("Confirmation (launched again, interleaved), with 95% intervals:")
            for line in again:
                self._prose(line, "  ")
            self._print("")
            for line in verdict_lines(view):
                self._prose(line, "  ")
            self._print("")
        if scatter := scatter_line(view):
            self._prose(scatter[0].upper() + scatter[1:])
            self._print("")
        if command is not None:
            self._print(f"To serve trial {trial.number} ({point_text(trial.point)}):")
            self._print("")
            self._print(command)
            self._print("")

    def status(self, view: StudyView) -> None:
        """How far a study is, and every trial."""
        self._print(_state(view))
        about = [f"vLLM {view.vllm_version}" if view.vllm_version else "", view.machine]
        if any(about):
            self._print(plain(" on ".join(filter(None, about))))
        self._print("")
        self.console.print(trials_table(view))

    def check(self, name: str, ok: bool | None, text: str) -> None:
        """One line of `autotune doctor`; ``ok`` is None for what is worth knowing but no fault."""
        mark, style = {
            True: ("ok", "green"),
            False: ("FAIL", "bold red"),
            None: ("note", "yellow"),
        }[ok]
        line = Text.assemble((f"{mark:<6}", style), (f"{plain(name):<10}", "bold"), plain(text))
        self.console.print(line, soft_wrap=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The live line, cut where the window ends; the parameters give way first."""
        if not self._stage:
            return
        left = self.time_left()
        after = [
            " ".join(filter(None, [self._stage, self._progress])),
            f"{self._clock() - self._stage_began:.0f} s",
            f"{_duration(left)} left" if left is not None else "",
        ]
        before, tail = self._trial, _GAP.join(filter(None, after))
        room = options.max_width - cell_len(before + _GAP + _GAP + tail)
        point = Text(self._point)
        point.truncate(max(0, room), overflow="ellipsis")
        parts = [Text(before, style="bold"), point, Text(tail, style="cyan")]
        line = Text(_GAP).join([p for p in parts if p.plain])
        line.no_wrap, line.overflow = True, "ellipsis"
        yield line

    def _print(self, text: str) -> None:
        """A line as it is: never wrapped, so that it can be pasted and searched."""
        self.console.print(Text(text), soft_wrap=True)

    def _prose(self, text: str, indent: str = "") -> None:
        """Print a sentence: wrapped in a terminal, on one line in a log."""
        if not self.live:
            self._print(indent + text)
            return
        held = _HELD.sub(_NBSP, text)
        for line in textwrap.wrap(
            held,
            self.console.width,
            initial_indent=indent,
            subsequent_indent=indent + "  ",
            break_long_words=False,
            break_on_hyphens=False,
        ):
            self._print(line.replace(_NBSP, " "))

    def _row(self, trial: TrialView) -> None:
        view = self._view
        if view is None:
            raise RuntimeError("study() comes first")
        parameters = list(trial.point)
        table = _table(view.objectives, parameters, header=not self._header_shown)
        self._header_shown = True
        _add_row(table, trial, view.objectives, parameters)
        self.console.print(table)
        if trial.failure_reason:
            reason = Text(plain(trial.failure_reason), style="red")
            self.console.print(Padding(reason, (0, 0, 0, 5)))

    def _words(self, trial: TrialView) -> str:
        objectives = self._view.objectives if self._view else ()
        words = [point_text(trial.point)]
        for o in objectives:
            value = trial.value(o)
            if value is not None:
                interval = (trial.intervals or {}).get(o.name)
                words.append(f"{plain(o.title)} {value_with_interval(value, interval, o)}")
        if trial.acceptance_length is not None:
            words.append(f"acceptance length {trial.acceptance_length:.2f}")
        if trial.speedup is not None:
            words.append(f"speed-up {trial.speedup:.2f}×")
        if trial.requests is not None:
            words.append(f"{trial.requests} requests")
        words.append(_note(trial))
        if trial.failure_reason:
            words.append(plain(trial.failure_reason))
        if trial.seconds is not None:
            words.append(f"took {trial.seconds:.0f} s")
        return _GAP.join(filter(None, words))


def _state(view: StudyView) -> str:
    failed = view.failures()
    text = f"{plain(view.name)}: {view.finished} of {view.wanted} trials finished"
    if reused := sum(t.reused is not None for t in view.trials):
        text += f", {reused} reused"
    return f"{text}, {len(failed)} failed ({kinds_text(failed)})" if failed else text


def trials_table(view: StudyView) -> RenderableType:
    """Every trial with its state, and below where some were measured, and why others failed."""
    parameters = view.parameters()
    table = _table(view.objectives, parameters)
    for trial in view.trials:
        _add_row(table, trial, view.objectives, parameters)
    reasons = [
        Text(f"trial {t.number} failed: {t.failure_kind}: {plain(t.failure_reason or '')}", "red")
        for t in view.failures()
    ]
    below = [*map(Text, origin_lines(view)), *reasons]
    return Group(table, *([Text(""), *below] if below else []))


def front_table(view: StudyView) -> RenderableType:
    """The front, best by the first objective first, and the baseline; with intervals if known."""
    parameters = view.parameters()
    trials = view.front()
    trials += [t for t in view.trials if t.baseline and not t.front and t.state == "complete"]
    intervals = any(t.intervals for t in trials)
    table = _table(view.objectives, parameters, width=15 if intervals else None)
    for trial in trials:
        _add_row(table, trial, view.objectives, parameters, intervals=intervals)
    what = "Pareto front" if len(view.objectives) > 1 else "Best trial"
    what += " and baseline" if any(t.baseline for t in trials) else ""
    what += ", with 95% intervals:" if intervals else ":"
    return Group(Text(what), table)


def _table(
    objectives: Sequence[Objective],
    parameters: Sequence[str],
    *,
    header: bool = True,
    width: int | None = None,
) -> Table:
    """Columns of fixed width, so that rows printed one by one stand below each other."""
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        show_header=header,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    if len(objectives) > 2:  # or a terminal of 80 columns has no room for the note
        width = 10
    titles = [
        [
            *textwrap.wrap(plain(o.title), min(width or 12, 12)),
            *(textwrap.wrap(plain(o.unit), width or 15) or [""]),
        ]
        for o in objectives
    ]
    height = max(2, *map(len, titles))

    def column(lines: Sequence[str], width: int | None, justify: JustifyMethod = "right") -> None:
        heading = "\n".join([""] * (height - len(lines)) + list(lines))
        table.add_column(
            Text(heading), justify=justify, width=width, overflow="fold", ratio=None if width else 1
        )

    column(["#"], 3)
    for name, wide in ((N, 2), (MNBT, 5)):
        if name in parameters:
            column([_HEADINGS[name]], wide)
    for title in titles:
        column(title, width or max(8, *map(len, title)))
    column(["accepted", "tok/step"], 8)
    column(["speed-up", "×"], 8)
    column(["note"], None, "left")
    return table


def _add_row(
    table: Table,
    trial: TrialView,
    objectives: Sequence[Objective],
    parameters: Sequence[str],
    *,
    intervals: bool = False,
) -> None:
    cells = [str(trial.number)]
    cells += [_cell(trial.point, name) for name in (N, MNBT) if name in parameters]
    for o in objectives:
        value = trial.value(o)
        interval = (trial.intervals or {}).get(o.name) if intervals else None
        text = "" if value is None else number(value)
        cells.append(f"{text}\n{bounds_text(interval)}" if interval else text)
    cells.append("" if trial.acceptance_length is None else f"{trial.acceptance_length:.2f}")
    cells.append("" if trial.speedup is None else f"{trial.speedup:.2f}")
    others = [f"{plain(k)}={value_text(v)}" for k, v in trial.point.items() if k not in _HEADINGS]
    cells.append(", ".join(filter(None, [_note(trial), *others])))
    style = "red" if trial.state == "failed" else "bold green" if trial.front else ""
    table.add_row(*(Text(cell) for cell in cells), style=style)


def _cell(point: Point, name: str) -> str:
    return value_text(point[name]) if name in point else ""


def _note(trial: TrialView) -> str:
    if trial.state == "failed":
        return f"failed: {trial.failure_kind or 'unknown'}"
    words = ["baseline" if trial.baseline else "", "front" if trial.front else ""]
    words.append("" if trial.reused is None else "reused")
    words.append("" if trial.again is None else f"repeats #{trial.again}")
    words.append(f"mean of {trial.launches}" if trial.launches > 1 else "")
    words.append("ended early" if trial.truncated else "")
    words += [w.partition(":")[0] for w in trial.warnings]
    if trial.state != "complete":
        words.append(trial.state)
    return ", ".join(filter(None, words))


def _db_option(database: Path) -> str:
    return f" --db {shlex.quote(plain(str(database)))}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
