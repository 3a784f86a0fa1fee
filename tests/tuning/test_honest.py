"""What makes a trial's numbers worth something, over whole runs against the server double."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager
from pathlib import Path
from unittest import mock

import pytest

from autotune.tuning import tools
from tests.studies import (
    autotune,
    finished,
    front,
    query,
    trials,
    write_study,
    write_study_with_a_bad_point,
)

pytestmark = pytest.mark.double


def test_measuring_ends_when_enough_is_known(tmp_path: Path) -> None:
    study = write_study(
        tmp_path,
        server__env={"DOUBLE_STEP_S": "0.03"},  # a request takes long next to what others disturb
        workload__num_prompts=400,
        workload__warmup_prompts=60,
        workload__output_len=4,
        measure__precision=0.5,
        measure__min_prompts=16,
        measure__dominated_error=0,  # a busy machine can make the second one that much worse
    )
    assert autotune("run", str(study), "--trials", "2", cwd=tmp_path).returncode == 0
    for t in trials(tmp_path):
        assert "not steady" not in str(t["warnings"])  # nor by what ended after it was
        assert t["stop"] == "precise"
        assert 16 <= t["requests"] < 400  # type: ignore[operator]
        # not of p95: those under way were waited for, and can take its upper bound away again
        o = t["objectives"]["throughput"]  # type: ignore[index]
        low, high = o["interval_within_launch"]
        assert (high - low) / 2 < 0.55 * o["value"]
    # the same requests in the same order, and the warm-up ended by itself
    for phase, most in (("measure", 400), ("warmup", 60)):
        counts = 'select max("index") + 1, count(*) from autotune_requests where phase = '
        rows = query(tmp_path, f"{counts} '{phase}' group by launch_id")
        assert len(rows) == 2
        for last, count in rows:
            assert last == count < most  # type: ignore[operator]


def test_a_trial_that_is_worse_in_everything_ends_early_and_never_wins(tmp_path: Path) -> None:
    study = write_study_with_a_bad_point(tmp_path)
    assert autotune("run", str(study), "--trials", "2", cwd=tmp_path).returncode == 0
    baseline, drafted = trials(tmp_path)
    assert (baseline["stop"], baseline["requests"], baseline["truncated"]) == ("all", 400, False)
    assert (drafted["stop"], drafted["truncated"]) == ("dominated", True)
    assert drafted["requests"] < 400  # type: ignore[operator]
    assert [t["trial"] for t in front(tmp_path)] == [0]
    assert (
        "another trial is better in everything"
        in autotune("status", "--trial", "1", cwd=tmp_path).stdout
    )


def checked(**found: object) -> AbstractContextManager[object]:
    """Let the interference check say something else, as a :class:`unittest.mock.Mock` would."""
    given = dataclasses.replace(tools.REAL, disturbed=mock.Mock(**found))
    return mock.patch.object(tools, "REAL", given)


def test_a_disturbed_trial_is_launched_once_more(tmp_path: Path) -> None:
    study = write_study(tmp_path, measure__repeat_disturbed=True)
    with checked(side_effect=["others were busy", None]):
        done = autotune("run", str(study), "--trials", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "others were busy; measuring again" in done.stdout
    [t] = trials(tmp_path)
    assert query(tmp_path, "select count(*) from autotune_launches") == [(2,)]
    assert not [w for w in t["warnings"] if w.startswith("disturbed")]  # type: ignore[attr-defined]


def test_a_trial_that_is_disturbed_again_counts_and_says_so(tmp_path: Path) -> None:
    study = write_study(tmp_path, measure__repeat_disturbed=True)
    with checked(return_value="others were busy"):
        assert autotune("run", str(study), "--trials", "1", cwd=tmp_path).returncode == 0
    [t] = trials(tmp_path)
    assert query(tmp_path, "select count(*) from autotune_launches") == [(2,)]
    assert "disturbed: others were busy" in t["warnings"]  # type: ignore[operator]


def test_confirm_measures_the_winners_again(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    early = autotune("confirm", str(study), cwd=tmp_path)
    assert early.returncode == 2
    assert "no study double yet" in early.stderr
    assert autotune("run", str(study), "--trials", "3", cwd=tmp_path).returncode == 0
    done = autotune("confirm", str(study), "--launches", "4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "best by throughput" in done.stdout
    again = [t["confirms"] for t in trials(tmp_path) if t["confirms"] is not None]
    assert len(again) == 4
    assert again == again[::-1]
    assert 0 in again
    assert finished(tmp_path) == 7
    # once more is more of the same
    assert autotune("confirm", str(study), "--launches", "4", cwd=tmp_path).returncode == 0
    assert finished(tmp_path) == 11
    confirmed = {t["trial"]: t["confirmed"] for t in trials(tmp_path) if t["confirmed"]}
    assert confirmed[0]["launches"] == 4  # type: ignore[index]
    rules = {rule for c in confirmed.values() for rule in c["chosen"]}  # type: ignore[index]
    assert rules == {"throughput", "p95_latency", "balanced"}
    for args in ((), ("--balanced",), ("--objective", "p95_latency")):
        assert autotune("best", "--shell", *args, cwd=tmp_path).returncode == 0
