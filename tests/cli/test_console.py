"""The terminal: plain lines, live line, tables; 80 columns; nothing read as markup."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

import objectives
from autotune.cli.console import Ui, rendered
from autotune.results.trial_tables import front_page, trials_page
from autotune.results.views import off_front_lines, verdict_lines
from autotune.search.confirmation_verdict import Choice, ConfirmationVerdict
from autotune.stats import Estimate
from autotune.study.space import MNBT, N
from autotune.tuning.progress import At
from tests.study_views import P95, ROWS, THROUGHPUT, study, trial


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def plain_ui() -> tuple[Ui, io.StringIO]:
    out = io.StringIO()
    return Ui(Console(file=out, width=80)), out


def live_ui(**kwargs: Any) -> tuple[Ui, io.StringIO, Clock]:
    out, clock = io.StringIO(), Clock()
    console = Console(
        file=out,
        width=80,
        force_terminal=True,
        highlight=False,
        _environ={"TERM": "xterm"},
        **kwargs,
    )
    return Ui(console, clock), out, clock


def shown(renderable: Any) -> str:
    out = io.StringIO()
    Console(file=out, width=80).print(renderable)
    return out.getvalue()


def visible(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def run_one(ui: Ui, number: int = 4) -> None:
    view = study()
    with ui:
        ui.study(replace(view, trials=view.trials[:number], finished=number), Path("x.db"))
        ui.begin(At(number), number + 1, view.trials[number].point)
        ui.stage(At(), "launching")
        ui.stage(At(), "measuring")
        ui.progress(At(), 14, 40)
        ui.trial(At(), view.trials[number])


def test_a_log_gets_one_line_a_stage_and_a_trial() -> None:
    ui, out = plain_ui()
    run_one(ui, 3)
    lines = out.getvalue().splitlines()
    assert lines[0] == "resuming demo-cpu: 3 of 40 trials finished, database x.db"
    assert lines[1] == "[4/40] trial 3  n = 7, MNBT 256  launching"
    assert lines[2] == "[4/40] trial 3  n = 7, MNBT 256  measuring"
    assert lines[3].startswith("[4/40] trial 3  n = 7, MNBT 256  Throughput 92.0 tok/s  p95 lat")
    assert lines[3].endswith("speed-up 0.94×  took 63 s  about 37 min left")
    assert len(lines) == 4
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", out.getvalue())


def test_a_failed_trial_says_kind_and_reason() -> None:
    ui, out = plain_ui()
    run_one(ui)
    assert "failed: budget  MNBT is too small" in out.getvalue().splitlines()[-1]


def test_a_new_study_starts() -> None:
    ui, out = plain_ui()
    ui.study(study(()), Path("x.db"))
    assert out.getvalue().startswith("starting demo-cpu: 0 of 40")


def test_the_live_line_has_stage_progress_and_seconds() -> None:
    ui, out, clock = live_ui()
    view = study()
    ui.study(replace(view, trials=view.trials[:2], finished=2), Path("x.db"))
    ui.begin(At(2), 3, view.trials[2].point)
    ui.stage(At(), "measuring")
    ui.progress(At(), 14, 40)
    clock.now = 23
    line = shown(ui).rstrip()
    assert line.startswith("[3/40] trial 2  n = 2, MNBT 1024  measuring 14/40 requests  23 s")
    assert line.endswith("  38 min left")  # 38 trials of 60.5 s, less 23 s
    ui.close()
    assert "\x1b[?25h" in out.getvalue()  # the cursor is back


def test_the_live_line_never_wraps() -> None:
    ui, _out, _clock = live_ui()
    ui.study(study(), Path("x.db"))
    ui.begin(At(6), 7, {N: 3, MNBT: 512, "long_prefill_token_threshold": 2048})
    ui.stage(At(), "measuring")
    ui.progress(At(), 14, 40)
    text = shown(ui)
    ui.close()
    assert len(text.splitlines()) == 1
    assert len(text.rstrip("\n")) <= 80
    assert "measuring 14/40 requests" in text


def test_rows_on_a_terminal_stand_below_one_heading() -> None:
    ui, out, _clock = live_ui(color_system=None)
    run_one(ui, 5)
    lines = visible(out.getvalue()).splitlines()
    assert sum("tok/s" in line for line in lines) == 1
    heading = next(line for line in lines if "tok/s" in line)
    rows = [line for line in lines if re.match(r" +\d+ +\d+ +\d+ ", line)]
    assert [row.split()[0] for row in rows] == ["0", "1", "2", "3", "4", "5"]
    for row in (rows[0], rows[-1]):
        assert row[: heading.index("tok/s") + 5].split()[-1] in {"98.1", "100.1"}
    assert max(map(len, lines)) <= 80


def test_a_dumb_terminal_gets_plain_lines() -> None:
    out = io.StringIO()
    ui = Ui(Console(file=out, force_terminal=True, width=80, _environ={"TERM": "dumb"}))
    run_one(ui, 3)
    assert "\x1b[?25l" not in out.getvalue()
    assert "[4/40] trial 3  n = 7, MNBT 256  launching" in visible(out.getvalue())


def test_no_color_has_no_colour() -> None:
    ui, out, _clock = live_ui(no_color=True)
    run_one(ui, 5)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", out.getvalue())


def test_tables_fit_80_columns_and_have_units() -> None:
    view = study(extra={"max_num_seqs": 4})
    for text in (shown(rendered(trials_page(view))), shown(rendered(front_page(view)))):
        assert max(map(len, text.splitlines())) <= 80
        assert "tok/s" in text
        assert "ms" in text
        assert "tok/step" in text
        assert "max_num_seqs=4" in text
    assert "trial 4 failed: budget: MNBT is too small" in shown(rendered(trials_page(view)))


def test_the_front_is_ordered_by_the_first_objective() -> None:
    text = shown(rendered(front_page(study(objectives=(P95,)))))
    found = re.findall(r"^ +(\d+) ", text, flags=re.MULTILINE)
    assert found == ["0", "5", "2", "1"]


def test_the_front_table_shows_intervals() -> None:
    t = replace(trial(1, ROWS[1]), intervals={"throughput": (105.0, 114.0)})
    text = shown(rendered(front_page(study(trials=[trial(0, ROWS[0]), t]))))
    assert "[105.0, 114.0]" in text
    assert max(map(len, text.splitlines())) <= 80


def test_notes_have_room_beside_three_objectives() -> None:
    goodput = objectives.get("goodput").given({"ttft_ms": 200.0, "tpot_ms": 20.0})
    view = study(objectives=(THROUGHPUT, P95, goodput))
    trials = []
    for t in view.trials:
        values = t.values and {**t.values, "goodput": 1.5}
        bounds = {k: (v * 0.95, v * 1.05) for k, v in (values or {}).items()}
        trials.append(replace(t, values=values, intervals=bounds or None))
    view = replace(view, trials=trials)
    for text in (shown(rendered(front_page(view))), shown(rendered(trials_page(view)))):
        assert max(map(len, text.splitlines())) <= 80
        assert "baseline" in text
        assert "Throughput" in text


def test_a_chance_is_never_called_certain() -> None:
    def words(chance: float) -> str:
        choice = Choice(1, (Estimate(2000, 1900, 2100),), None, {2: chance})
        found = ConfirmationVerdict({}, (choice,), choice, ())
        return verdict_lines(replace(study(objectives=(P95,)), verdict=found))[0]

    assert "with more than 99% probability" in words(0.9996)
    assert "with 97% probability" in words(0.97)


def test_without_a_second_launch_of_any_point_that_is_said() -> None:
    choice = Choice(1, (Estimate(2000, None, None),), None, {0: None})
    found = ConfirmationVerdict({}, (choice,), choice, ())
    (line,) = verdict_lines(replace(study(objectives=(P95,)), verdict=found))
    assert "not comparable with the baseline" in line
    assert line.endswith("because no point was launched twice")


def test_a_choice_that_is_not_on_the_front_is_explained() -> None:
    view = study()
    on, off = (next(t for t in view.trials if t.front is x and t.values) for x in (True, False))
    for chosen, lines in ((on, 0), (off, 1)):
        choice = Choice(chosen.number, (Estimate(1, None, None),) * 2, None, {0: 0.97})
        found = ConfirmationVerdict({}, (choice, choice), choice, ())
        told = off_front_lines(replace(view, verdict=found))
        assert len(told) == lines
        assert all(chosen.setting in x and "among confirmed points" in x for x in told)
    assert off_front_lines(view) == []


def test_sentences_are_wrapped_in_a_terminal_and_whole_in_a_log() -> None:
    choice = Choice(1, (Estimate(2000, 1900, 2100),), None, {0: 0.97})
    view = replace(study(objectives=(P95,)), verdict=ConfirmationVerdict({}, (choice,), choice, ()))
    confirmed = {"confirmed": {"p95_latency": 4327.0}, "confirmed_launches": 2}
    bounds = {"confirmed_intervals": {"p95_latency": (3965.0, 4722.0)}}
    speedup = {"confirmed_speedup": (1.452, 1.263, 1.684)}
    view = replace(
        view,
        trials=[
            replace(t, **confirmed, **bounds, **speedup)  # type: ignore[arg-type]
            for t in view.trials
        ],
    )
    whole = "speed-up 1.45× [1.26, 1.68]; 2 launches"
    for ui, out in (plain_ui(), live_ui()[:2]):
        ui.best(view, view.trials[1], None)
        lines = visible(out.getvalue()).splitlines()
        (first,) = (i for i, line in enumerate(lines) if line.startswith("  trial 1 (n = 3, "))
        if ui.live:
            assert max(map(len, lines)) <= 80
            assert not any(line.count("[") != line.count("]") for line in lines)
            assert lines[first + 1].startswith("    ")
        else:
            assert lines[first].endswith(whole)


def test_the_command_can_be_pasted_in_one_piece() -> None:
    command = "KEY=$KEY vllm serve " + "/models/[bold]x[/bold]" * 10 + " --x '{\"a\": 1}'"
    for ui, out in (plain_ui(), live_ui()[:2]):
        ui.summary(study(), command, Path("/data/my studies/a.db"), [Path("pareto.html")])
        lines = visible(out.getvalue()).splitlines()
        assert command in lines
        assert "Plot: pareto.html" in lines
        assert any("autotune best --db '/data/my studies/a.db' --shell" in line for line in lines)


def test_the_default_database_is_not_repeated(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    ui, out = plain_ui()
    ui.summary(study(), "vllm serve x", Path("autotune.db"), [])
    assert "--db" not in out.getvalue()


def test_a_summary_without_a_front_offers_no_command() -> None:
    ui, out = plain_ui()
    ui.summary(study(ROWS[4:5]), None, Path("autotune.db"), [])
    assert "no trial has results" in out.getvalue()
    assert "--shell" not in out.getvalue()


def test_nothing_is_read_as_markup_or_as_control_codes() -> None:
    evil = "[bold]x[/bold] [/] \x1b[31mred\x07\rover"
    failed = replace(trial(4, ROWS[4], {evil: evil}), failure_reason=evil)
    view = study(name=evil, trials=[*study().trials[:4], failed])
    ui, out = plain_ui()
    ui.study(view, Path(evil))
    ui.begin(At(4), 5, failed.point)
    ui.stage(At(), evil)
    ui.trial(At(), failed)
    ui.message(evil)
    ui.check(evil, False, evil)
    ui.status(view)
    ui.summary(view, "vllm serve x", Path(evil), [Path(evil)])
    assert "[bold]x[/bold] [/] red  over" in out.getvalue()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", out.getvalue())


def test_waiting_and_downloading_say_so_once() -> None:
    ui, out = plain_ui()
    with ui.waiting("drawing the plots"):
        pass
    for done in (0.0, 0.5, 1.0):
        ui.download("download", done)
    assert out.getvalue().splitlines() == ["drawing the plots", "demo model: download"]


def test_doctor_lines() -> None:
    ui, out = plain_ui()
    ui.check("vLLM", True, "0.32.0")
    ui.check("port", False, "8000 is taken")
    ui.check("GPU", None, "none")
    assert [line.split()[0] for line in out.getvalue().splitlines()] == ["ok", "FAIL", "note"]


def run_two(ui: Ui) -> None:
    """Trials 4 and 5 on two slots, up to the end of the second one."""
    view = study()
    ui.slots = 2
    ui.study(replace(view, trials=view.trials[:4], finished=4), Path("x.db"))
    for slot, number in enumerate((4, 5)):
        at = At(number, slot)
        ui.begin(at, number + 1, view.trials[number].point)
        ui.stage(at, "launching")
    ui.stage(At(4, 0), "measuring")
    ui.progress(At(4, 0), 14, 40)


def test_two_slots_have_a_line_each_and_then_come_the_finished_trials() -> None:
    ui, out, clock = live_ui()
    with ui:
        run_two(ui)
        clock.now += 9
        lines = shown(ui).splitlines()
        assert len(lines) == 2
        assert lines[0].startswith("slot 0  [5/40] trial 4  n = ")
        assert "measuring 14/40 requests  9 s" in lines[0]
        assert lines[0].endswith(" left")  # of the whole study: once
        assert re.fullmatch(r"slot 1  \[6/40\] trial 5  n = .*  launching  9 s", lines[1].rstrip())
        ui.trial(At(5, 1), study().trials[5])
        assert [line[:6] for line in shown(ui).splitlines()] == ["slot 0"]
    assert all(len(line.rstrip()) <= 80 for line in visible(out.getvalue()).splitlines())


def test_the_time_left_goes_by_the_trials_that_run() -> None:
    ui, _, clock = live_ui()
    with ui:
        run_two(ui)
        one = ui.time_left()
        ui._lines.durations = [60.0]
        assert ui.time_left() == 36 * 60 / 2  # 36 trials are left, two at a time
        clock.now += 30
        assert ui.time_left() == (36 * 60 - 2 * 30) / 2
    assert one is not None


def test_a_log_names_the_slot_of_each_line() -> None:
    ui, out = plain_ui()
    with ui:
        run_two(ui)
        ui.trial(At(5, 1), study().trials[5])
        ui.trial(At(4, 0), study().trials[4])
        with ui.waiting("drawing the plots"):
            pass
    lines = out.getvalue().splitlines()[1:]
    heads = ["slot 0  [5/40] trial 4", "slot 1  [6/40] trial 5"]
    assert lines.pop() == "drawing the plots"  # of no slot
    assert [line[: len(heads[0])] for line in lines] == [heads[i] for i in (0, 1, 0, 1, 0)]
    assert [line.rsplit("  ")[-1] for line in lines[:3]] == ["launching", "launching", "measuring"]
