"""Terminal output of a run: a live line while a trial runs, and a row when it is done.

Without a terminal (a log, a pipe), the output is plain lines: one for each stage and each trial.
Texts from studies, models and logs are never read as markup and lose their control characters.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from rich import box
from rich.console import (
    Console,
    ConsoleOptions,
    Group,
    RenderableType,
    RenderResult,
)
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from autotune.cli.slot_lines import GAP, SlotLines
from autotune.results.certificates import Verdict, output_line
from autotune.results.tables import Block, Cell, Line, Tone
from autotune.results.tables import Table as TableOfValues
from autotune.results.text import (
    HELD_INTERVALS,
    duration,
    plain,
    point_text,
    upper,
    value_with_interval,
    wrapped,
)
from autotune.results.trial_tables import front_page, note, trial_table, trials_page
from autotune.results.views import (
    StudyView,
    TrialView,
    confirmation_lines,
    dropped_lines,
    kinds_text,
    off_front_lines,
    scatter_line,
    verdict_lines,
)
from autotune.storage.location import Database, full_text
from autotune.study.space import ARM, Point
from autotune.tuning.progress import OUTSIDE, At
from objectives import Objective

_STYLES = {
    Tone.NONE: "",
    Tone.GOOD: "bold green",
    Tone.BAD: "bold red",
    Tone.OPEN: "yellow",
    Tone.FAILED: "red",
    Tone.WARNING: "bold yellow",
    Tone.STRONG: "bold",
}


class Ui:
    """The terminal of a run (:class:`autotune.tuning.progress.Progress`); a context manager.

    Args:
        console: Console to write to; standard output by default.
        clock: Returns seconds that never go back.

    Attributes:
        slots: Number of slots of the run, each of which has a live line.
        slot_name: Returns the name of a slot; None: they have numbers, if there are several.
    """

    def __init__(
        self, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.console = console or Console(highlight=False)
        self.live = self.console.is_terminal and not self.console.is_dumb_terminal
        self._line: Live | None = None
        self._view: StudyView | None = None
        self._header_shown = False
        self._lines = SlotLines(clock)
        self.slots = 1
        self.slot_name: Callable[[int], str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the live line and show the cursor again; may be called twice."""
        if self._line is not None:
            self._line.stop()
            self._line = None

    def study(self, view: StudyView, database: Database) -> None:
        """Show the study that starts or resumes, with its finished trials."""
        self._view = view
        self._lines.durations = [t.seconds for t in view.trials if t.seconds is not None]
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
            at: Trial and slot.
            position: Position among the wanted trials, from 1.
            point: Point that will be launched.
        """
        wanted = self._view.wanted if self._view else position
        self._lines.begin(
            at.slot,
            label=self._name(at.slot),
            trial=f"[{position}/{wanted}] trial {at.trial}",
            point=point_text(point),
            remaining=max(1, wanted - position + 1),
        )

    def _name(self, slot: int) -> str:
        if self.slot_name is not None:
            return plain(self.slot_name(slot))
        return f"slot {slot}" if self.slots > 1 else ""

    def stage(self, at: At, text: str) -> None:
        """Show a stage, such as ``launching``; its seconds count from now.

        An empty one ends the slot's line.
        """
        if not text:
            self._lines.end(at.slot)
            return
        label = "" if at.trial is None else self._name(at.slot)
        line = self._lines.stage(at.slot, plain(text), label)
        if line is None:
            return
        if not self.live:
            self._print(GAP.join(filter(None, [line.head, line.point, line.stage])))
        elif self._line is None:
            self._line = Live(self, console=self.console, refresh_per_second=4, transient=True)
            self._line.start()

    def progress(self, at: At, done: int, total: int) -> None:
        """Show the progress of the stage, in the live line only."""
        self._lines.of(at.slot).progress = f"{done}/{total} requests"

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Show a wait outside of trials."""
        self.stage(OUTSIDE, text)
        try:
            yield
        finally:
            self._lines.end(OUTSIDE.slot)
            self.close()

    def download(self, stage: str, done: float) -> None:
        """Show the progress of ``demo:target``, for :func:`autotune.study.models.resolve_model`.

        Args:
            stage: ``wait``, ``download``, ``unpack``, ``convert`` or ``check``.
            done: Finished share, 0 to 1.
        """
        if done >= 1:
            self._lines.end(OUTSIDE.slot)
            self.close()
            return
        self.stage(OUTSIDE, f"demo model: {stage}")
        self._lines.of(OUTSIDE.slot).progress = f"{done:.0%}"

    def trial(self, at: At, trial: TrialView) -> None:
        """Show the row of a finished trial."""
        if trial.seconds is not None:
            self._lines.durations.append(trial.seconds)
        if self.live:
            self._row(trial)
        else:
            objectives = self._view.objectives if self._view else ()
            words = [
                self._lines.of(at.slot).head or f"trial {trial.number}",
                _words(trial, objectives),
            ]
            if (left := self._lines.left_after(self.slots)) is not None:
                words.append(f"about {duration(left)} left")
            self._print(GAP.join(words))
        self._lines.end(at.slot)

    def message(self, text: str, at: At = OUTSIDE) -> None:
        """Show a message."""
        self._print(plain(text))

    def time_left(self) -> float | None:
        """Return the seconds until the study is done, by the median trial; None: no trial yet."""
        return self._lines.time_left()

    def summary(
        self,
        view: StudyView,
        command: str | None,
        database: Database,
        plots: Sequence[Path],
        said: Sequence[str] = (),
    ) -> None:
        """Show the Pareto front, the command that serves its best, the plots and the next steps.

        Args:
            view: The whole study.
            command: Shell command that serves ``view.best()``, in one line.
            database: Database of the study.
            plots: Files of plots that were written.
            said: Sentences on all settings.
        """
        self.close()
        self._print("")
        self._print(_state(view))
        best = view.best()
        if best is None:
            self._print("no trial has results; `autotune status` shows why each one failed")
        else:
            self.best(view, best, command, said)
        for path in plots:
            self._print(f"Plot: {plain(str(path))}")
        db = "" if full_text(database) == full_text(Path("autotune.db")) else _db_option(database)
        hints = {f"autotune status{db}": "all trials, and why some failed"}
        if best is not None:
            hints[f"autotune best{db} --shell"] = "print the serving command again"
        hints[f"autotune dashboard{db}"] = "open the study in a browser"
        for line, what in hints.items():
            self._print(f"Next: {line}  ({what})")

    def best(
        self, view: StudyView, trial: TrialView, command: str | None, said: Sequence[str] = ()
    ) -> None:
        """Show the Pareto front, and the command that serves one of its trials.

        Args:
            view: The whole study.
            trial: The trial to serve.
            command: Shell command that serves it, in one line.
            said: Sentences on all settings.
        """
        self._print("")
        self.console.print(rendered(front_page(view)))
        self._print("")
        if again := confirmation_lines(view):
            self._print("Confirmation (launched again, interleaved), with 95% intervals:")
            for line in (*again, *dropped_lines(view)):
                self.prose(line, "  ")
            self._print("")
            for line in (*verdict_lines(view), *off_front_lines(view)):
                self.prose(line, "  ")
            self._print("")
        if scatter := scatter_line(view):
            self.prose(upper(scatter))
            self._print("")
        if said:
            self.prose(" ".join(said))
            self._print("")
        self._output(trial)
        if command is not None:
            self._print(f"To serve trial {trial.number} ({trial.setting}):")
            self._print("")
            self._print(command)
            self._print("")

    def status(self, view: StudyView) -> None:
        """Show the progress of a study, and every trial."""
        self._print(_state(view))
        about = [f"vLLM {view.vllm_version}" if view.vllm_version else "", view.machine]
        if any(about):
            self._print(plain(" on ".join(filter(None, about))))
        self._print("")
        self.console.print(rendered(trials_page(view)))
        if dropped := dropped_lines(view):
            self._print("")
            for line in dropped:
                self.prose(upper(line))
        if (best := view.best()) is not None and best.certificate is not None:
            self._print("")
            self._output(best)

    def _output(self, trial: TrialView) -> None:
        """Show whether a trial's answers are those of n = 0, and an empty line."""
        if trial.certificate is not None:
            verdict = trial.certificate.verdict
            tone = {Verdict.CERTIFIED: Tone.GOOD, Verdict.FAULT: Tone.BAD}.get(
                verdict, Tone.WARNING
            )
            text = output_line(trial.certificate, trial.number)
            self.console.print(rendered([Line(text, tone), Line()]))

    def check(self, name: str, ok: bool | None, text: str) -> None:
        """Show one line of `autotune doctor`; ``ok`` is None for a remark that is no fault."""
        mark, style = {
            True: ("ok", "green"),
            False: ("FAIL", "bold red"),
            None: ("note", "yellow"),
        }[ok]
        line = Text.assemble((f"{mark:<6}", style), (f"{plain(name):<10}", "bold"), plain(text))
        self.console.print(line, soft_wrap=True)

    def __rich__(self) -> SlotLines:
        """Return a live line for each slot that does something."""
        return self._lines

    def _print(self, text: str) -> None:
        """Print a line unwrapped, so that it can be pasted and searched."""
        self.console.print(Text(text), soft_wrap=True)

    def prose(self, text: str, indent: str = "") -> None:
        """Print a sentence: wrapped in a terminal, on one line in a log."""
        if not self.live:
            self._print(indent + text)
            return
        for line in wrapped(
            text,
            self.console.width,
            indent=indent,
            hanging=indent + "  ",
            held=HELD_INTERVALS,
            long_words=False,
        ):
            self._print(line)

    def _row(self, trial: TrialView) -> None:
        view = self._view
        if view is None:
            raise RuntimeError("study() comes first")
        names = [*([ARM] if view.arms else []), *trial.point]
        table = trial_table(view.objectives, names, [trial])
        self.console.print(rendered([table], header=not self._header_shown))
        self._header_shown = True
        if trial.failure_reason:
            reason = Text(plain(trial.failure_reason), style="red")
            self.console.print(Padding(reason, (0, 0, 0, 5)))


def _words(trial: TrialView, objectives: Sequence[Objective]) -> str:
    """Return the row of a finished trial in words, for a log."""
    words = [trial.setting]
    for o in objectives:
        value = trial.value(o)
        if value is not None:
            interval = (trial.intervals or {}).get(o.name)
            words.append(f"{plain(o.title)} {value_with_interval(value, interval, o)}")
    if trial.acceptance_length is not None:
        of = " in steps with drafts" if trial.skips_steps else ""
        words.append(f"acceptance length {trial.acceptance_length:.2f}{of}")
    if trial.speedup is not None:
        words.append(f"speed-up {trial.speedup:.2f}×")
    if trial.requests is not None:
        words.append(f"{trial.requests} requests")
    words.append(note(trial))
    if trial.failure_reason:
        words.append(plain(trial.failure_reason))
    if trial.seconds is not None:
        words.append(f"took {trial.seconds:.0f} s")
    return GAP.join(filter(None, words))


def _state(view: StudyView) -> str:
    failed = view.failures()
    text = f"{plain(view.name)}: {view.finished} of {view.wanted} trials finished"
    if reused := sum(t.reused is not None for t in view.trials):
        text += f", {reused} reused"
    return f"{text}, {len(failed)} failed ({kinds_text(failed)})" if failed else text


def rendered(blocks: Iterable[Block], *, header: bool = True) -> RenderableType:
    """Return lines and tables for rich to print.

    Args:
        blocks: In their order.
        header: Show the tables' headings.
    """
    return Group(
        *(_Wrapped(b) if isinstance(b, Line) else _table(b, header=header) for b in blocks)
    )


class _Wrapped:
    """A line for rich, which would break it within names and intervals."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        texts = wrapped(self._line.text, options.max_width, held=HELD_INTERVALS, long_words=False)
        for text in texts or [""]:
            yield Text(text, _STYLES[self._line.tone])


def _table(values: TableOfValues, *, header: bool) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        show_header=header,
        padding=(0, values.gap - 1, 0, 0),
        pad_edge=False,
    )
    for c in values.columns:
        table.add_column(
            Text(c.heading),
            justify="right" if c.right else "left",
            width=c.width,
            min_width=c.least,
            overflow="fold" if c.folds else "ellipsis",
            ratio=1 if c.stretches else None,
        )
    for row in values.rows:
        if row.ruled:
            table.add_section()
        cells = (Cell(c) if isinstance(c, str) else c for c in row.cells)
        table.add_row(*(Text(c.text, _STYLES[c.tone]) for c in cells), style=_STYLES[row.tone])
    return table


def _db_option(database: Database) -> str:
    return f" --db {shlex.quote(plain(str(database)))}"
