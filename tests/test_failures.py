from __future__ import annotations

from pathlib import Path

import pytest

from autotune.errors import FailureKind
from autotune.serving.failures import MAX_EVIDENCE, MAX_WIDTH, Verdict, classify

LOGS = Path(__file__).with_name("logs")


def verdict(name: str, exit_code: int | None = 1) -> Verdict:
    return classify(
        (LOGS / f"{name}.log").read_text().splitlines(),
        exit_code=exit_code,
        default=FailureKind.CRASH,
        reason="the server died",
    )


@pytest.mark.parametrize(
    ("name", "kind", "reason", "evidence"),
    [
        ("0.32.0-bad_config", FailureKind.BAD_CONFIG, "max_model_len (100000)", "ModelConfig"),
        ("0.32.0-bad_flag", FailureKind.BAD_CONFIG, "--no-such-flag", "unrecognized"),
        ("0.32.0-bad_value", FailureKind.BAD_CONFIG, "float12", "choose from"),
        ("0.32.0-budget", FailureKind.BUDGET, "= 8 leaves no room for 15", "slots"),
        ("0.32.0-budget_seqs", FailureKind.BUDGET, "= 4 is below max_num_seqs = 8", "max_num_seqs"),
        ("0.32.0-crash_mid", FailureKind.CRASH, "VllmWorker-0 died", "died unexpectedly"),
        ("0.32.0-draft_mismatch", FailureKind.DRAFT_MISMATCH, "draft", "2880"),
        ("0.32.0-draft_missing", FailureKind.MODEL_MISSING, "/models/nodraft", "nodraft"),
        ("0.32.0-kv_cache_machine", FailureKind.KV_CACHE, "4000.0", "VLLM_CPU_KVCACHE_SPACE"),
        ("0.32.0-model_missing", FailureKind.MODEL_MISSING, "/models/nowhere", "nowhere"),
        ("0.32.0-model_missing_hub", FailureKind.MODEL_MISSING, "not there", "snapshot"),
        ("0.32.0-oom_cpu", FailureKind.OOM, "7514357760 bytes", "DefaultCPUAllocator"),
        ("0.32.0-port", FailureKind.PORT, "port", "Errno 98"),
        ("source-budget_0.26", FailureKind.BUDGET, "leaves -6 tokens", "max_num_scheduled_tokens"),
        ("source-kv_cache_none", FailureKind.KV_CACHE, "KV cache", "cache blocks"),
        ("source-oom", FailureKind.OOM, "2.00 GiB more", "CUDA out of memory"),
        ("source-oom_startup", FailureKind.OOM, "5.12 of 31.36 GiB", "cuda:0"),
    ],
)
def test_real_logs(name: str, kind: FailureKind, reason: str, evidence: str):
    v = verdict(name)
    assert v.kind is kind
    assert reason in v.reason
    assert evidence in "\n".join(v.evidence)
    assert "\n" not in v.reason
    assert len(v.evidence) <= MAX_EVIDENCE
    assert not any(line.startswith("(") or "Traceback" in line for line in v.evidence)


def test_every_log_is_tested():
    tested = {
        mark[0]
        for mark in next(m for m in test_real_logs.pytestmark if m.name == "parametrize").args[1]
    }
    assert {p.stem for p in LOGS.glob("*.log")} == tested


def test_prefixes_and_colours_are_stripped():
    line = "\x1b[1;36m(EngineCore pid=7)\x1b[0;0m ERROR 11-23 21:52:49 [core.py:1510] ValueError: x"
    v = classify([line], exit_code=1, default=FailureKind.CRASH, reason="it died")
    assert v.evidence == ("ValueError: x",)


def test_warnings_in_the_words_of_an_error_do_not_count():
    log = [
        "(Worker pid=1) WARNING 11-23 21:52:44 [v.py:2] max_num_scheduled_tokens is set to 2 based",
        "(APIServer pid=1) WARNING 11-23 21:49:58 [u.py:255] errors like `OSError: [Errno 24]`",
        "RuntimeError: something new",
    ]
    v = classify(log, exit_code=1, default=FailureKind.CRASH, reason="it died")
    assert (v.kind, v.reason) == (
        FailureKind.CRASH,
        "it died (exit code 1: RuntimeError: something new)",
    )
    assert v.evidence == ("RuntimeError: something new",)


def test_a_kill_by_the_kernel_is_out_of_memory():
    v = classify([], exit_code=-9, default=FailureKind.CRASH, reason="it died", oom_killed=True)
    assert v.kind is FailureKind.OOM


def test_a_signal_is_named():
    v = classify([], exit_code=-11, default=FailureKind.CRASH, reason="it died")
    assert v.reason == "it died (ended by SIGSEGV)"


def test_long_lines_are_cut():
    v = classify(
        ["ValueError: " + "x" * 9999], exit_code=1, default=FailureKind.CRASH, reason="it died"
    )
    assert len(v.reason) <= MAX_WIDTH
    assert all(len(line) <= MAX_WIDTH for line in v.evidence)


def test_unexplained_end_keeps_the_last_words():
    v = classify(
        ["one", "two", ""], exit_code=None, default=FailureKind.TIMEOUT, reason="no answer"
    )
    assert (v.kind, v.reason, v.evidence) == (FailureKind.TIMEOUT, "no answer", ("one", "two"))
