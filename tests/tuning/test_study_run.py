"""Whole studies over the server double: trials, resuming, failures; kills are in tests/faults."""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import signal
import sqlite3
import sys
import time
from pathlib import Path

import pytest
from optuna.distributions import IntDistribution, distribution_to_json
from optuna.trial import TrialState, create_trial
from optuna_dashboard import get_note

from autotune.results.trials import study_view
from autotune.serving.interrupts import held_back
from autotune.storage.store import opened
from autotune.study.files import load_study
from autotune.tuning.study_run import converged_text
from autotune.tuning.supervise import signals
from tests.studies import (
    PATIENCE_S,
    UNENDED,
    autotune,
    finished,
    front,
    processes_of,
    query,
    spawn_autotune,
    start_autotune,
    trials,
    use_tools,
    wait_for_event,
    wait_for_tokens,
    write_study,
)
from tests.surroundings import updated_dashboard

pytestmark = pytest.mark.double


def test_why_a_search_converged_says_which_bound_it_was() -> None:
    assert "by 0.31%, less than 0.50%, and" in converged_text(9, 0.0031, 0.005)
    # launches differ by 10 %: it ends at an improvement that is above the study's own bound
    assert "by 0.80%, less than a tenth of what one launch is off by" in converged_text(
        9, 0.008, 0.005
    )


def test_a_study_ends_with_a_front_and_a_command(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    done = autotune("run", str(study), "--trials", "6", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    all_trials = trials(tmp_path)
    assert [t["state"] for t in all_trials] == ["complete"] * 6
    assert all_trials[0]["baseline"]
    assert all_trials[0]["params"] == {
        "num_speculative_tokens": 0,
        "max_num_batched_tokens": 2048,
    }
    assert all_trials[0]["acceptance_length"] is None
    assert all_trials[0]["speedup"] == 1.0
    drafted = [t for t in all_trials if t["params"]["num_speculative_tokens"] > 0]  # type: ignore[index]
    assert all(1.0 < t["acceptance_length"] <= 3.0 for t in drafted)  # type: ignore[operator]
    best = front(tmp_path)
    assert best
    assert all(t["tok_s"] > 0 and t["p95_ms"] > 0 for t in best)  # type: ignore[operator]
    shell = autotune("best", "--shell", cwd=tmp_path)
    assert "--max-num-batched-tokens" in shell.stdout
    assert (tmp_path / "autotune-double" / "pareto.html").stat().st_size > 10_000

    # everything is in the one file
    assert query(tmp_path, "select count(*) from autotune_launches") == [(6,)]
    requests = "select count(*), min(output_tokens) from autotune_requests where phase = 'measure'"
    assert query(tmp_path, requests) == [(36, 12)]
    assert query(tmp_path, UNENDED) == [(0,)]
    assert query(tmp_path, "pragma integrity_check") == [("ok",)]
    assert processes_of(tmp_path) == []

    # a trial can be explained from it alone
    story = autotune("status", "--trial", "1", cwd=tmp_path).stdout
    for words in ("n = 15", "double.py", "healthy", "measure: 6 of 6 requests ok", "exit code 0"):
        assert words in story
    assert autotune("status", "--trial", "99", cwd=tmp_path).returncode == 2

    # the same command again: nothing to do, and it says so
    again = autotune("run", str(study), "--trials", "6", cwd=tmp_path)
    assert again.returncode == 0
    assert finished(tmp_path) == 6
    # more trials: it does the rest
    more = autotune("run", str(study), "--trials", "8", cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert finished(tmp_path) == 8
    rows = trials(tmp_path)
    points = [tuple(t["params"].values()) for t in rows if t["replicates"] is None]  # type: ignore[attr-defined]
    assert len(set(points)) == len(points)  # none twice but as a replicate, such as …
    assert [t["replicates"] for t in rows if t["replicates"] is not None][:1] == [0]  # the baseline
    assert rows[0]["launches"] == 2


def test_interrupted_it_ends_the_server_and_keeps_what_is_measured(tmp_path: Path) -> None:
    study = write_study(tmp_path, server__env={"DOUBLE_STEP_S": "0.05"})
    run = start_autotune("run", str(study), "--trials", "2", cwd=tmp_path)
    wait_for_event(tmp_path, "warm", 1)
    wait_for_tokens(tmp_path, (2 + 2 + 2) * 12)  # of warm-up, measured, and under way
    run.send_signal(signal.SIGINT)
    _, err = run.communicate()
    assert run.returncode == 130, err
    assert "Traceback" not in err
    assert processes_of(tmp_path) == []
    assert query(tmp_path, UNENDED) == [(0,)]
    kept = "select count(*) from autotune_requests where phase = 'measure' and status = 'ok'"
    assert query(tmp_path, kept) > [(0,)]
    done = autotune("run", str(study), "--trials", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert finished(tmp_path) == 1


def test_in_a_scripts_background_it_ends_by_sigterm_too(tmp_path: Path) -> None:
    study = write_study(tmp_path, server__env={"DOUBLE_STEP_S": "0.1"})
    # a shell starts `command &` with SIGINT ignored
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run = spawn_autotune("run", str(study), "--trials", "2", cwd=tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    wait_for_event(tmp_path, "warm", 1)
    run.send_signal(signal.SIGTERM)
    _, err = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 130, err
    assert processes_of(tmp_path) == []


def test_an_interrupt_during_a_garbage_collection_is_not_lost() -> None:
    class Late:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def run() -> None:
        with signals():
            late = [Late()]
            late.append(late)  # type: ignore[arg-type]
            del late
            gc.collect()
            time.sleep(PATIENCE_S)

    with pytest.raises(KeyboardInterrupt):
        run()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_what_an_interrupt_broke_off_complains_to_nobody(
    signum: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", heard.append)

    class HalfDone:
        def __del__(self) -> None:
            raise AssertionError("no key yet")

    def run() -> None:
        with signals():
            HalfDone()  # destroyed at once, before any interrupt: heard
            half_done = HalfDone()
            signal.raise_signal(signum)
            del half_done

    with pytest.raises(KeyboardInterrupt):
        run()
    assert len(heard) == 1


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_for_the_end_of_what_must_not_be_broken_off(signum: int) -> None:
    done: list[str] = []

    def once() -> None:
        with signals(), held_back():
            signal.raise_signal(signum)
            done.append("to its end")

    def twice() -> None:
        with signals(), held_back():
            signal.raise_signal(signum)
            signal.raise_signal(signum)
            done.append("never")

    for run in (once, twice):
        with pytest.raises(KeyboardInterrupt):
            run()
    assert done == ["to its end"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interrupted_twice_it_does_not_wait_for_a_stubborn_server(tmp_path: Path) -> None:
    study = write_study(
        tmp_path,
        server__env={"DOUBLE_STEP_S": "0.1", "DOUBLE_STUBBORN": "1"},
        server__stop_timeout_s=600,
    )
    run = start_autotune("run", str(study), "--trials", "1", cwd=tmp_path)
    wait_for_event(tmp_path, "warm", 1)
    run.send_signal(signal.SIGINT)
    run.wait_for_words("stopping")
    assert run.poll() is None  # it waits for the server, which ignores SIGTERM
    run.send_signal(signal.SIGINT)
    _, err = run.communicate()
    assert run.returncode == 130, err
    assert "Traceback" not in err
    assert processes_of(tmp_path) == []


def test_a_failed_launch_is_a_failure_and_no_number(tmp_path: Path) -> None:
    study = write_study(
        tmp_path,
        server__env={"DOUBLE_FAIL": "crash_mid", "DOUBLE_FAIL_IF": "num_speculative_tokens>=7"},
    )
    done = autotune("run", str(study), "--trials", "4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    failed = [t for t in trials(tmp_path) if t["state"] == "failed"]
    assert failed
    for t in failed:
        assert t["failure_kind"] == "crash"
        assert "tok_s" not in t
        assert t["objectives"] == {}
        # transient: it was tried once more, and only once
        launches = query(tmp_path, "select trial from autotune_launches")
        assert launches.count((t["trial"],)) == 2
    assert all(t["failure_kind"] is None for t in front(tmp_path))


@pytest.mark.usefixtures("lives_on")
def test_a_baseline_that_failed_is_still_named_as_one(tmp_path: Path) -> None:
    study = write_study(
        tmp_path,
        server__env={"DOUBLE_FAIL": "http400", "DOUBLE_FAIL_IF": "num_speculative_tokens==0"},
    )
    assert autotune("run", str(study), "--trials", "2", cwd=tmp_path).returncode == 0
    baseline, drafted = trials(tmp_path)
    assert (baseline["state"], baseline["baseline"]) == ("failed", True)
    assert (drafted["state"], drafted["baseline"], drafted["speedup"]) == ("complete", False, None)


@pytest.mark.usefixtures("lives_on")
def test_a_bound_that_vllm_states_costs_one_launch(tmp_path: Path) -> None:
    study = write_study(
        tmp_path,
        space__max_num_batched_tokens__high=4096,
        server__env={
            "DOUBLE_FAIL": "budget_hybrid",
            "DOUBLE_FAIL_IF": "max_num_batched_tokens<2096",
        },
    )
    assert autotune("run", str(study), "--trials", "5", cwd=tmp_path).returncode == 0
    first, second, *others = trials(tmp_path)
    assert (first["failure_kind"], first["baseline"]) == ("budget", True)
    assert (second["state"], second["baseline"], second["speedup"]) == ("complete", True, 1.0)
    assert [t["state"] for t in others] == ["complete"] * 3
    budgets = {t["params"]["max_num_batched_tokens"] for t in (second, *others)}  # type: ignore[index]
    assert budgets == {4096}


@pytest.mark.usefixtures("lives_on")
def test_a_fault_of_the_machine_ends_the_run_after_one_launch(tmp_path: Path) -> None:
    study = write_study(tmp_path, server__env={"DOUBLE_FAIL": "driver"})
    done = autotune("run", str(study), "--trials", "5", cwd=tmp_path)
    assert done.returncode == 1
    assert "driver is too old" in done.stderr
    assert "run the same command again" in done.stderr
    assert len(done.stderr.strip().splitlines()[-1]) < 400
    assert query(tmp_path, "select count(*) from autotune_launches") == [(1,)]


@pytest.mark.usefixtures("lives_on")
@pytest.mark.parametrize(
    ("env", "failed", "words"),
    [
        ({"DOUBLE_N": "7"}, 0, "n = 0, but the server counted"),
        ({"DOUBLE_IDLE": "1"}, 1, "n = 15, but the server counted no draft"),
        ({"DOUBLE_N": "0"}, 1, "n = 15, but the server has no counters of drafts"),
    ],
)
def test_a_server_that_does_not_draft_as_launched_gives_no_number(
    tmp_path: Path, env: dict[str, str], failed: int, words: str
) -> None:
    study = write_study(tmp_path, server__env=env)
    assert autotune("run", str(study), "--trials", "2", cwd=tmp_path).returncode == 0
    found = trials(tmp_path)
    assert found[failed]["failure_kind"] == "wrong_server"
    assert words in str(found[failed]["failure_reason"])
    assert found[failed]["objectives"] == {}
    assert found[1 - failed]["state"] == "complete"
    assert query(tmp_path, "select count(*) from autotune_launches") == [(2,)]  # not repeated


def test_a_transient_failure_is_tried_once_more(tmp_path: Path) -> None:
    once = tmp_path / "once"
    study = write_study(
        tmp_path, server__env={"DOUBLE_FAIL": "crash", "DOUBLE_FAIL_ONCE": str(once)}
    )
    done = autotune("run", str(study), "--trials", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [t["state"] for t in trials(tmp_path)] == ["complete"]
    assert query(tmp_path, "select count(*) from autotune_launches") == [(2,)]


@pytest.mark.usefixtures("lives_on")
def test_when_nothing_works_the_run_ends_with_the_reason(tmp_path: Path) -> None:
    study = write_study(tmp_path, server__env={"DOUBLE_FAIL": "http500"})
    done = autotune("run", str(study), "--trials", "9", cwd=tmp_path)
    assert done.returncode == 1
    assert "500" in done.stderr
    assert "Traceback" not in done.stderr
    assert len([t for t in trials(tmp_path) if t["state"] == "failed"]) == 3
    assert autotune("best", cwd=tmp_path).returncode == 1


def test_a_grid_never_launches_what_the_rules_forbid(tmp_path: Path) -> None:
    study = write_study(
        tmp_path,
        server__speculative={"method": "dflash", "model": "org/draft"},
        search={"method": "grid"},
        space={
            "num_speculative_tokens": {"type": "choice", "choices": [0, 15]},
            "max_num_batched_tokens": {"type": "choice", "choices": [14, 64]},
        },
        baseline={"max_num_batched_tokens": 64},
    )
    done = autotune("run", str(study), "--trials", "9", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = trials(tmp_path)
    forbidden = [t for t in rows if t["failure_kind"] == "infeasible"]
    assert [t["params"] for t in forbidden if t["params"]] == [
        {"num_speculative_tokens": 15, "max_num_batched_tokens": 14}
    ]
    reason = str(forbidden[0]["failure_reason"])  # the double is no vLLM that was read
    assert "at least 16 on vLLM 0.28 to 0.32, 32 to run on all of 0.24 to 0.33" in reason
    assert query(tmp_path, "select count(*) from autotune_launches") == [(3,)]
    assert "every point" in done.stdout + done.stderr


def test_an_edited_study_is_not_mixed_with_the_old_one(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    assert autotune("run", str(study), "--trials", "1", cwd=tmp_path).returncode == 0
    write_study(tmp_path, workload__output_len=13)
    done = autotune("run", str(study), "--trials", "2", cwd=tmp_path)
    assert done.returncode == 2
    assert "workload.output_len (12 then, 13 now)" in done.stderr
    assert finished(tmp_path) == 1


def test_time_out_ends_between_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()  # the clock goes on by a second whenever it is looked at
    use_tools(monkeypatch, clock=lambda: float(next(ticks)))
    study = write_study(tmp_path)
    done = autotune("run", str(study), "--trials", "50", "--timeout", "0.05", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 1 <= finished(tmp_path) < 50
    assert "the time limit was reached" in done.stdout + done.stderr


def test_winners_are_measured_again_beside_the_baseline(tmp_path: Path) -> None:
    study = write_study(
        tmp_path,
        space={
            "num_speculative_tokens": {"type": "int", "low": 0, "high": 3},
            "max_num_batched_tokens": {"type": "pow2", "low": 64, "high": 64},
        },
        budget={"confirm": 4},
        workload__confirm_prompts=5,
    )
    done = autotune("run", str(study), "--trials", "8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = trials(tmp_path)
    again = [t for t in rows if t["confirms"] is not None]
    assert len(rows) == 8
    assert [t["trial"] for t in again] == [4, 5, 6, 7]  # the last ones
    numbers = [t["confirms"] for t in again]
    assert numbers == [0, numbers[1], numbers[1], 0]  # there and back
    sent = "select count(*) from autotune_requests r join autotune_launches l using (launch_id)"
    where = "where r.phase = 'measure' and l.trial = 5"
    assert query(tmp_path, sent + " " + where) == [(5,)]
    confirmed = {t["trial"]: t["confirmed"] for t in rows if t["confirmed"]}
    assert set(confirmed) == set(numbers)
    for c in confirmed.values():
        assert c["launches"] == 2  # type: ignore[index]
        low, high = c["intervals"]["throughput"]  # type: ignore[index]
        assert low < c["values"]["throughput"] < high  # type: ignore[index]
    assert confirmed[0]["speedup"][0] == 1.0  # type: ignore[index]
    assert not any(t["front"] for t in again)
    assert "Confirmation (launched again, interleaved)" in done.stdout
    # the space is exhausted, and nothing is left to confirm
    more = autotune("run", str(study), "--trials", "8", cwd=tmp_path)
    assert more.returncode == 0
    assert finished(tmp_path) == 8


def test_no_confirmation_where_it_could_not_be_one(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    assert autotune("run", str(study), "--trials", "4", cwd=tmp_path).returncode == 0
    assert all(t["confirms"] is None for t in trials(tmp_path))


def test_another_machine_is_said(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    assert autotune("run", str(study), "--trials", "1", cwd=tmp_path).returncode == 0
    with contextlib.closing(sqlite3.connect(tmp_path / "autotune.db")) as c:
        c.execute("update autotune_launches set machine = json_set(machine, '$.cores', 999)")
        c.commit()
    done = autotune("run", str(study), "--trials", "1", cwd=tmp_path)
    assert done.returncode == 0
    assert "999 cores" in done.stdout


def test_a_point_that_was_planned_before_a_kill_is_not_planned_twice(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    assert autotune("run", str(study), "--trials", "1", cwd=tmp_path).returncode == 0
    # as if the run had been killed between planning trial 1 and taking it
    space = load_study(str(study)).spec.to_space()
    waiting = {"num_speculative_tokens": 3, "max_num_batched_tokens": 2048}
    with opened(tmp_path / "autotune.db") as store:
        store.optuna_study("double").add_trial(
            create_trial(
                state=TrialState.WAITING,
                params=space.encode(waiting),
                distributions=space.distributions(),
            )
        )
        assert study_view(store, "double").trials[1].point == waiting
    assert autotune("run", str(study), "--trials", "3", cwd=tmp_path).returncode == 0
    points = [tuple(t["params"].values()) for t in trials(tmp_path)]  # type: ignore[attr-defined]
    assert points[1] == (3, 2048)
    assert len(set(points)) == len(points) == 3


def test_a_study_that_an_earlier_version_began_goes_on_as_it_was_kept(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    assert autotune("run", str(study), "--trials", "2", cwd=tmp_path).returncode == 0
    before = trials(tmp_path)
    exponents = distribution_to_json(IntDistribution(5, 11))
    with contextlib.closing(sqlite3.connect(tmp_path / "autotune.db")) as c:
        c.create_function("exponent", 1, math.log2)
        c.execute(
            "update trial_params set param_name = 'log2_' || param_name, "
            "param_value = exponent(param_value), distribution_json = ? "
            "where param_name = 'max_num_batched_tokens'",
            (exponents,),
        )
        c.commit()
    assert trials(tmp_path) == before
    # as if it had been killed between planning trial 2 and taking it
    with opened(tmp_path / "autotune.db") as store:
        waiting = {"num_speculative_tokens": 3, "log2_max_num_batched_tokens": 11}
        store.optuna_study("double").enqueue_trial(waiting)
    done = autotune("run", str(study), "--trials", "4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = trials(tmp_path)
    shown = [(t["params"], t["tok_s"]) for t in found]
    assert shown[:2] == [(t["params"], t["tok_s"]) for t in before]
    assert [t["state"] for t in found] == ["complete"] * 4
    points = [tuple(t["params"].values()) for t in found]  # type: ignore[attr-defined]
    assert len(set(points)) == 4
    kept = query(tmp_path, "select distinct param_name from trial_params order by 1")
    assert kept == [("log2_max_num_batched_tokens",), ("num_speculative_tokens",)]
    with opened(tmp_path / "autotune.db") as store:
        made = store.optuna_study("double").get_trials()
        (lost,) = (t for t in made if not t.params)
        assert lost.state == TrialState.FAIL
        assert lost.user_attrs["failure_reason"] == "the run ended before the point was chosen"


def test_what_cannot_be_drawn_or_saved_at_the_end_is_one_line_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = write_study(tmp_path)

    def broken(*_: object) -> None:
        raise ValueError("no such\nfigure")

    monkeypatch.setattr("autotune.output.dashboard.publish", broken)
    (tmp_path / "autotune-double").mkdir()
    (tmp_path / "autotune-double" / "pareto.html").mkdir()  # nothing can be written there
    with updated_dashboard():
        done = autotune("run", str(study), "--trials", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = (done.stdout + done.stderr).splitlines()
    (plots,) = (line for line in said if line.startswith("plots not drawn: "))
    assert "autotune-double: cannot be written: Is a directory. " in plots
    assert plots.endswith("No measurement is lost; draw them with `autotune pareto`")
    (page,) = (line for line in said if line.startswith("dashboard not updated: "))
    assert "ValueError: no such figure. No measurement is lost; " in page
    assert page.endswith("update it with `autotune dashboard`")
    # the summary comes all the same, without plots
    assert "double: 1 of 1 trials finished" in said
    assert any(line.startswith("To serve trial 0 ") for line in said)
    assert not any(line.startswith("Plot: ") for line in said)

    monkeypatch.undo()
    (tmp_path / "autotune-double" / "pareto.html").rmdir()
    assert autotune("pareto", cwd=tmp_path).returncode == 0
    assert (tmp_path / "autotune-double" / "pareto.html").is_file()
    with updated_dashboard():
        again = autotune("run", str(study), "--trials", "2", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "dashboard not updated" not in again.stdout + again.stderr
    assert any(line.startswith("Plot: ") for line in again.stdout.splitlines())
    with opened(tmp_path / "autotune.db") as store:
        made = store.optuna_study("double")
        kept = store.storage.get_study_system_attrs(made._study_id)
        assert any(key.startswith("dashboard:plot_data:pareto-front:") for key in kept)
        assert get_note(made).startswith("# double\n\n2 of 2 trials finished")
