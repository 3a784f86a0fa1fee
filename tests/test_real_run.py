"""The main job on real vLLM servers with the demo pair: killed in mid-measurement, and resumed."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest
import yaml

from autotune.spec import find_study
from tests.studies import (
    autotune,
    finished,
    front,
    query,
    start_autotune,
    trials,
    wait_for_event,
)

pytestmark = pytest.mark.real

STARTING_S = 600  # the demo model may have to be converted first


def small_demo(folder: Path) -> Path:
    """demo-cpu with little load."""
    demo = find_study("demo-cpu")
    raw = yaml.safe_load(demo.read_text())
    raw["workload"] |= {
        "prompts": str(demo.parent / raw["workload"]["prompts"]),
        "num_prompts": 6,
        "warmup_prompts": 2,
        "output_len": 32,
    }
    raw["measure"]["repeat_disturbed"] = False
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(raw))
    return file


def living(launch_id: object) -> list[psutil.Process]:
    """Processes of a launch, by the mark in their environment."""
    found = []
    for p in psutil.process_iter():
        try:
            if p.environ().get("AUTOTUNE_LAUNCH") == launch_id:
                found.append(p)
        except psutil.Error:
            continue
    return found


def test_killed_in_mid_measurement_it_resumes_to_the_exact_number(tmp_path: Path) -> None:
    study = small_demo(tmp_path)
    run = start_autotune("run", str(study), "--trials", "2", cwd=tmp_path)
    wait_for_event(tmp_path, "warm", 1, STARTING_S)
    [(first,)] = query(tmp_path, "select launch_id from autotune_launches")
    assert len(living(first)) >= 3  # the guard, the API server, the engine, …
    run.kill()
    run.communicate()
    deadline = time.monotonic() + 10
    while living(first) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert living(first) == []

    done = autotune("run", str(study), "--trials", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert finished(tmp_path) == 2
    baseline, drafted = trials(tmp_path)
    assert baseline["params"]["num_speculative_tokens"] == 0  # type: ignore[index]
    assert baseline["acceptance_length"] is None
    assert drafted["params"]["num_speculative_tokens"] == 3  # type: ignore[index]
    # what the draft's card promises for questions of people, with room for so few of them
    assert 1.2 < drafted["acceptance_length"] < 3.5  # type: ignore[operator]
    assert len(drafted["acceptance_per_position"]) == 3  # type: ignore[arg-type]
    for t in (baseline, drafted):
        assert t["tok_s"] > 0  # type: ignore[operator]
        assert t["p95_ms"] > 0  # type: ignore[operator]
    assert front(tmp_path)
    # 6 requests of exactly 32 tokens by usage, in each of the two measured launches
    rows = query(
        tmp_path,
        "select l.trial, count(*), sum(r.output_tokens) from autotune_requests r "
        "join autotune_launches l using (launch_id) "
        "where r.phase = 'measure' and l.measured_at is not null group by l.trial",
    )
    assert rows == [(0, 6, 192), (1, 6, 192)]
    for (launch_id,) in query(tmp_path, "select launch_id from autotune_launches"):
        assert living(launch_id) == []
    [(argv,)] = query(tmp_path, "select argv from autotune_launches where trial = 1")
    assert "127.0.0.1" in str(argv)
    assert "--speculative-config" in str(argv)
