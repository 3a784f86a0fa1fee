from __future__ import annotations

import pytest

from autotune.engine.failures import MAX_EVIDENCE, MAX_WIDTH, Cause, classify
from autotune.errors import FailureKind
from tests.paths import TESTS

LOGS = TESTS / "logs"


def verdict(name: str, exit_code: int | None = 1, *, oom_killed: bool = False) -> Cause:
    return classify(
        (LOGS / f"{name}.log").read_text().splitlines(),
        exit_code=exit_code,
        default=FailureKind.CRASH,
        reason="the server died",
        oom_killed=oom_killed,
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
        ("0.32.0-disk", FailureKind.DISK, "the disk is full", "Errno 28"),
        ("0.32.0-draft_missing", FailureKind.MODEL_MISSING, "/models/nodraft", "nodraft"),
        ("0.32.0-engine_killed", FailureKind.CRASH, "ended without a word", "EngineDeadError"),
        ("0.32.0-kv_cache_machine", FailureKind.KV_CACHE, "4000.0", "VLLM_CPU_KVCACHE_SPACE"),
        ("0.32.0-model_missing", FailureKind.MODEL_MISSING, "/models/nowhere", "nowhere"),
        ("0.32.0-model_missing_hub", FailureKind.MODEL_MISSING, "not there", "snapshot"),
        ("0.32.0-no_config", FailureKind.MODEL_MISSING, "/models/noconfig", "noconfig"),
        ("0.32.0-oom_cpu", FailureKind.KV_CACHE, "the KV cache: 7514357760 bytes", "CPUAllocator"),
        ("0.32.0-oom_load", FailureKind.OOM_LOAD, "loading the weights: 3538944", "CPUAllocator"),
        ("0.32.0-port", FailureKind.PORT, "port", "Errno 98"),
        ("0.32.0-weights_torn", FailureKind.MODEL_MISSING, "/models/torn cannot be", "incomplete"),
        ("0.32.0-worker_killed", FailureKind.CRASH, "ended without a word", "WorkerProc"),
        ("source-budget_0.26", FailureKind.BUDGET, "leaves -6 tokens", "max_num_scheduled_tokens"),
        ("source-budget_hybrid", FailureKind.BUDGET, "below the block size 2096", "Mamba"),
        ("source-driver", FailureKind.MACHINE, "driver is too old", "12080"),
        ("source-kv_cache_none", FailureKind.KV_CACHE, "KV cache", "cache blocks"),
        ("source-oom", FailureKind.OOM, "while serving: 2.00 GiB more", "CUDA out of memory"),
        ("source-oom_capture", FailureKind.OOM_CAPTURE, "CUDA graphs: 128.00 MiB", "CUDA out of"),
        ("source-oom_capture_trial", FailureKind.OOM_CAPTURE, "CUDA graphs", "CUDA error: out of"),
        (
            "source-oom_load",
            FailureKind.OOM_LOAD,
            "the weights: 2.00 GiB more",
            "CUDA out of memory",
        ),
        ("source-oom_profile", FailureKind.KV_CACHE, "a full batch", "Tried to allocate 3.50 GiB"),
        ("source-oom_sampler", FailureKind.OOM, "warming up: it cannot sample for 1024", "sampler"),
        ("source-oom_startup", FailureKind.OOM_LOAD, "5.12 of 31.36 GiB", "cuda:0"),
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


def test_torchs_own_warnings_do_not_count():
    log = [
        "[rank0]:W1124 19:36:55.747000 3433 cache.py:1342] [Errno 28] No space left on device",
        "[W1123 22:10:07.308616488 utils.cpp:68] Warning: Cannot allocate memory there",
    ]
    v = classify(log, exit_code=1, default=FailureKind.CRASH, reason="it died")
    assert (v.kind, v.evidence) == (FailureKind.CRASH, ())


def test_a_kill_by_the_kernel_is_out_of_memory():
    v = classify([], exit_code=-9, default=FailureKind.CRASH, reason="it died", oom_killed=True)
    assert (v.kind, v.reason) == (
        FailureKind.OOM,
        "the kernel killed it: the machine is out of memory",
    )


@pytest.mark.parametrize(
    ("name", "kind", "when"),
    [
        ("0.32.0-worker_killed", FailureKind.OOM_LOAD, "while loading the weights"),
        ("0.32.0-engine_killed", FailureKind.OOM, "while serving"),
    ],
)
def test_a_kill_by_the_kernel_happened_in_the_last_stage_of_the_log(
    name: str, kind: FailureKind, when: str
):
    """SIGKILL leaves the same log whoever sends it."""
    v = verdict(name, oom_killed=True)
    assert (v.kind, v.reason) == (
        kind,
        f"the kernel killed it {when}: the machine is out of memory",
    )


@pytest.mark.parametrize(
    ("last", "kind"),
    [
        ("Initializing a V1 LLM engine (v0.26.0) with config: model='m'", FailureKind.OOM_LOAD),
        ("Starting to load model m...", FailureKind.OOM_LOAD),
        ("Loading weights took 3.91 seconds", FailureKind.OOM_LOAD),
        ("Model loading took 15.27 GiB memory and 4.1 seconds", FailureKind.KV_CACHE),
        ("Profiling CUDA graph memory: PIECEWISE=19 (largest=128)", FailureKind.OOM_CAPTURE),
        ("GPU KV cache size: 120,832 tokens", FailureKind.KV_CACHE),
        ("Graph capturing finished in 4 secs, took 0.39 GiB", FailureKind.OOM),
        ("init engine (profile, create kv cache, warmup model) took 9.1 s", FailureKind.OOM),
    ],
)
def test_an_error_without_a_traceback_happened_in_the_last_stage_before_it(
    last: str, kind: FailureKind
):
    log = [
        "(EngineCore pid=7) INFO 11-23 21:00:00 [core.py:1] something else",
        f"(EngineCore pid=7) INFO 11-23 21:00:00 [core.py:133] {last}",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "(EngineCore pid=8) INFO 11-23 21:00:01 [core.py:9] Capturing CUDA graphs",  # later
    ]
    v = classify(log, exit_code=-6, default=FailureKind.CRASH, reason="it died")
    assert v.kind is kind


def test_a_traceback_says_more_than_the_last_stage():
    """Another process of the same server may be further on, and write in between."""
    core = "(Worker_TP1 pid=8) ERROR 11-23 21:00:00 [multiproc_executor.py:953] "
    log = [
        f"{core}Traceback (most recent call last):",
        f'{core}  File "/v/vllm/v1/worker/gpu_model_runner.py", line 5050, in load_model',
        "(Worker_TP0 pid=7) INFO 11-23 21:00:00 [model_runner.py:424] Model loading took 9 GiB",
        f"{core}    self.model = model_loader.load_model(",
        f"{core}torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
    ]
    v = classify(log, exit_code=1, default=FailureKind.CRASH, reason="it died")
    assert v.kind is FailureKind.OOM_LOAD


def test_out_of_memory_at_an_unknown_stage_stays_plain():
    v = classify(["MemoryError"], exit_code=1, default=FailureKind.CRASH, reason="it died")
    assert (v.kind, v.reason) == (FailureKind.OOM, "the machine is out of memory")


def test_a_root_cause_is_told_rather_than_that_a_process_is_gone():
    log = [
        "(EngineCore pid=7) ERROR 11-23 21:00:00 [core.py:1512] RuntimeError: something new",
        "(APIServer pid=1) ERROR 11-23 21:00:00 [async_llm.py:906] EngineDeadError: see above",
    ]
    v = classify(log, exit_code=0, default=FailureKind.CRASH, reason="it died")
    assert v.reason == "it died (exit code 0: RuntimeError: something new)"
    assert v.evidence == ("RuntimeError: something new",)


def test_torn_weights_of_the_draft_are_the_drafts():
    core = "(Worker pid=8) ERROR 11-23 21:00:00 [multiproc_executor.py:953] "
    said = "(EngineCore pid=7) INFO 11-23 21:00:00 [core.py:133] Initializing a V1 LLM engine"
    draft = "SpeculativeConfig(method='dflash', model='/models/draft', num_spec_tokens=3)"
    torn = "safetensors._safetensors_rust.SafetensorError: Error while deserializing header"
    log = [
        f"{said} (v0.32.0) with config: model='/models/target', speculative_config={draft}",
        f"{core}    self.drafter.load_model(self.model)",
        f"{core}{torn}: header too large",
    ]
    v = classify(log, exit_code=1, default=FailureKind.CRASH, reason="it died")
    assert v.kind is FailureKind.MODEL_MISSING
    assert "of the draft /models/draft cannot be read (header too large)" in v.reason


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
