"""Drafts other than a DFlash folder that is named, on real vLLM servers with the demo pair."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from autotune.study.models import draft_folder
from autotune.study.space import MNBT, N
from tests.faults.real import small_demo
from tests.studies import autotune, query, trials

pytestmark = pytest.mark.real


def _study(
    folder: Path,
    draft: dict[str, Any],
    n: int,
    *,
    server: dict[str, Any] | None = None,
    **more: object,
) -> Path:
    """Write a study of the baseline and n drafts.

    Args:
        folder: Gets the file.
        draft: How to draft.
        n: Tokens drafted.
        server: Section ``server`` instead of the demo's, whose environment is added.
        more: Further sections of the study.
    """
    file = small_demo(folder, "drafts")
    raw = yaml.safe_load(file.read_text())
    if server is not None:
        raw["server"] = {**server, "env": raw["server"]["env"]}
    raw["server"]["speculative"] = draft
    raw["space"] = {
        N: {"type": "choice", "choices": [0, n]},
        MNBT: {"type": "choice", "choices": [512]},
    }
    raw |= {"search": {"method": "grid"}, **more}
    raw["workload"]["hang_timeout_s"] = 120  # a busy machine hangs for a while
    file.write_text(yaml.safe_dump(raw))
    return file


def _run(file: Path) -> list[dict[str, Any]]:
    """Run both trials of a study; return them."""
    done = autotune("run", str(file), "--trials", "2", cwd=file.parent)
    assert done.returncode == 0, done.stderr
    return trials(file.parent)


def _configs(folder: Path) -> list[dict[str, Any] | None]:
    """Return ``--speculative-config`` of each measured launch, in order."""
    out: list[dict[str, Any] | None] = []
    sql = "select argv from autotune_launches where measured_at is not null order by measured_at"
    for (argv,) in query(folder, sql):
        words = json.loads(str(argv))
        flag = "--speculative-config"
        out.append(json.loads(words[words.index(flag) + 1]) if flag in words else None)
    return out


def _baseline_does_not_draft(baseline: dict[str, Any], drafted: dict[str, Any]) -> None:
    assert baseline["state"] == drafted["state"] == "complete"
    assert baseline["params"][N] == 0
    assert baseline["acceptance_length"] is None
    assert drafted["params"][N] > 0
    assert drafted["tok_s"] > 0


def test_n_grams_without_a_model_and_a_target_without_its_weights(tmp_path: Path) -> None:
    """The first run times out; it goes on once the limit is raised."""
    draft = {"method": "ngram", "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    file = _study(tmp_path, draft, 4, rehearsal={"weights": "dummy"})
    raised = file.read_text()
    raw = yaml.safe_load(raised)
    raw["server"]["health_timeout_s"] = 1  # no vLLM is as fast
    file.write_text(yaml.safe_dump(raw))
    ended = autotune("run", str(file), "--trials", "4", cwd=tmp_path)
    assert ended.returncode != 0
    assert "no trial has results" in ended.stderr
    timed_out = trials(tmp_path)
    assert {t["failure_kind"] for t in timed_out} == {"timeout"}
    for t in timed_out:
        assert "/health did not answer within 1 s" in t["failure_reason"]
    file.write_text(raised)
    again = _run(file)
    assert all(t["failure_kind"] == "timeout" for t in again[: len(timed_out)])
    assert all(t["outdated"] for t in again[: len(timed_out)])  # the limit was another
    baseline, drafted = again[len(timed_out) :]  # the baseline was launched again
    _baseline_does_not_draft(baseline, drafted)
    assert _configs(tmp_path) == [None, {**draft, N: 4}]
    label = "weights are random, acceptance is what random weights give, step times are real"
    assert baseline["rehearsal"] == drafted["rehearsal"] == f"rehearsal: {label}"
    for argv, log in query(tmp_path, "select argv, log_path from autotune_launches"):
        assert '"--load-format", "dummy"' in str(argv)
        # the plugin, in the worker that has the model
        assert (
            "load format dummy by SeededDummyLoader: 0 tensors" in (tmp_path / str(log)).read_text()
        )


def test_a_folder_in_speculators_format_named_by_spec_flags(tmp_path: Path) -> None:
    """The demo's draft in that format, in a folder whose name says nothing."""
    folder = tmp_path / "small"
    shutil.copytree(draft_folder(), folder)
    path = folder / "config.json"
    layers = json.loads(path.read_text())
    inner = layers.pop("dflash_config")
    body = {
        "architectures": ["DFlashDraftModel"],
        "speculators_model_type": "dflash",
        "speculators_config": {
            "verifier": {"name_or_path": "demo:target"},
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 7}],
        },
        "transformer_layer_config": {k: v for k, v in layers.items() if k != "architectures"},
        "mask_token_id": inner["mask_token_id"],
        "aux_hidden_state_layer_ids": [i + 1 for i in inner["target_layer_ids"]],
        "draft_vocab_size": layers["vocab_size"],
        "sliding_window_non_causal": True,
    }
    path.write_text(json.dumps(body))
    words = ["vllm", "serve", "demo:target", "--max-num-seqs", "2", "--max-model-len", "1024"]
    words += ["--enforce-eager", "--spec-method", "dflash", "--spec-model", "small"]
    words += ["--spec-tokens", "7"]
    written = autotune("init", "--out", "mine.yaml", "--", *words, cwd=tmp_path)
    assert written.returncode == 0, written.stderr
    server = yaml.safe_load((tmp_path / "mine.yaml").read_text())["server"]
    assert server.pop("speculative") == {"method": "dflash", "model": "small"}
    server.pop("command", None)  # the vLLM of this environment

    file = _study(tmp_path, {"model": "small"}, 3, server=server)  # the folder tells the method
    baseline, drafted = _run(file)
    _baseline_does_not_draft(baseline, drafted)
    none, config = _configs(tmp_path)
    assert none is None
    assert config == {"method": "dflash", "model": str(folder), N: 3}
    assert 1.2 < drafted["acceptance_length"] < 3.5  # as the demo's own folder


def test_suffixes_without_a_model(tmp_path: Path) -> None:
    if not os.environ.get("AUTOTUNE_TEST_SUFFIX"):
        pytest.skip("AUTOTUNE_TEST_SUFFIX is not set: it needs arctic-inference, built from source")
    baseline, drafted = _run(_study(tmp_path, {"method": "suffix"}, 4))
    _baseline_does_not_draft(baseline, drafted)
    assert _configs(tmp_path) == [None, {"method": "suffix", N: 4}]
