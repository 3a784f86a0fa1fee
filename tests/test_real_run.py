"""The main job on real vLLM servers with the demo pair: killed at four points, and resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune.results.read_request_acceptance import read_request_acceptance
from autotune.results.trials import study_view
from autotune.storage.store import opened
from tests.faults.inject import PATIENCE
from tests.faults.real import QUICK, real_site, run_points
from tests.faults.start import Starter
from tests.studies import PATIENCE_S, front, query, trials

pytestmark = pytest.mark.real


def test_killed_again_and_again_it_comes_to_the_exact_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PATIENCE, str(PATIENCE_S))
    with Starter(real=True) as starter:
        site = real_site(tmp_path / "study", starter, QUICK)
        outcomes = run_points(site, QUICK)
    problems = [f"{o.fault}, {o.stage}: {p}" for o in outcomes for p in o.problems]
    assert not problems, "\n".join(problems)
    assert len(outcomes) == len(QUICK)
    assert site.kept.forked() >= 2  # of one fork server: what the last run launched again

    baseline, drafted = trials(site.folder)
    assert baseline["params"]["num_speculative_tokens"] == 0  # type: ignore[index]
    assert baseline["acceptance_length"] is None
    assert drafted["params"]["num_speculative_tokens"] == 15  # type: ignore[index]
    # what the draft's card promises for questions of people, with room for so few of them
    assert 1.2 < drafted["acceptance_length"] < 3.5  # type: ignore[operator]
    assert len(drafted["acceptance_per_position"]) == 15  # type: ignore[arg-type]
    for t in (baseline, drafted):
        assert t["tok_s"] > 0  # type: ignore[operator]
        assert t["p95_ms"] > 0  # type: ignore[operator]
    assert front(site.folder)
    # 6 requests of exactly 32 tokens by usage, in each of the two measured launches
    rows = query(
        site.folder,
        "select l.trial, count(*), sum(r.output_tokens) from autotune_requests r "
        "join autotune_launches l using (launch_id) "
        "where r.phase = 'measure' and l.measured_at is not null group by l.trial",
    )
    assert rows == [(0, 6, 192), (1, 6, 192)]
    [(argv,)] = query(
        site.folder,
        "select argv from autotune_launches where trial = 1 and measured_at is not null",
    )
    assert "127.0.0.1" in str(argv)
    assert "--speculative-config" in str(argv)
    each_request_told_its_drafts(site.folder, str(argv))


def each_request_told_its_drafts(folder: Path, argv: str) -> None:
    """Of the launch that drafts, over the chat's API, at the level that autotune asks for."""
    assert '"--per-request-spec-decode-metrics", "detailed"' in argv
    [(plain,)] = query(folder, "select group_concat(argv) from autotune_launches where trial = 0")
    assert "per-request" not in str(plain)
    with opened(folder / "autotune.db") as store:
        name = store.pick_study(None)
        baseline, drafted = study_view(store, name).trials
        assert read_request_acceptance(store, name, 0, baseline.point) is None
        told = read_request_acceptance(store, name, 1, drafted.point)
    assert told is not None
    assert (told.requests, told.untold, told.biased) == (6, 0, None)
    assert 1.2 < told.whole.length.value < 3.5
    # each answer has 32 tokens: one of the prefill, and those of the steps
    assert told.unseen == 0
    assert [g.name for g in told.parts][:2] == ["1 to 8", "9 to 16"]
    assert sum(g.steps for g in told.parts) == told.whole.steps
