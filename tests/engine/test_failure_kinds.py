"""Kinds of failures in the words of vLLM's engine and workers, drivers, compilers, hubs, Docker."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from autotune.engine.failures import classify
from autotune.errors import FailureKind, LeastBudget
from tests.engine.failed_logs import (
    API,
    BOOT,
    CONFIG,
    CORE,
    DRAFT,
    ENDED,
    LOAD,
    PROFILE,
    SERVE,
    SITE,
    WORKER,
    bare,
    engine_line,
    logged,
    traceback,
    verdict,
)

K = FailureKind
HUB = f"{SITE}/huggingface_hub/utils/_http.py:hf_raise_for_status"

# -- C: what vLLM refuses inside engine and workers --------------------------------------------


@pytest.mark.parametrize(
    ("frames", "error", "kind"),
    [
        (
            (*DRAFT, "v1/spec_decode/llm_base_proposer.py:_init_parallel_drafting_params"),
            (
                "ValueError: For parallel drafting, the draft model config must have "
                "`dflash_config.mask_token_id`, `mask_token_id` or `ptd_token_id` in its "
                "config.json."
            ),
            K.DRAFT_MISMATCH,
        ),
        (
            (*LOAD, "v1/worker/gpu/spec_decode/utils.py:get_parallel_drafting_token_id"),
            (
                "ValueError: Model config must specify `dflash_config.mask_token_id`, "
                "`mask_token_id`, "
                "`dspark_noise_token_id`, `pard_token`, or `ptd_token_id` for parallel drafting."
            ),
            K.DRAFT_MISMATCH,
        ),
        (
            (*DRAFT, "v1/spec_decode/llm_base_proposer.py:_raise_if_multimodal"),
            (
                "NotImplementedError: Speculative Decoding with draft models or parallel "
                "drafting does "
                "not support multimodal models yet"
            ),
            K.DRAFT_MISMATCH,
        ),
        (
            (*DRAFT, "v1/spec_decode/draft_model.py:_raise_if_draft_tp_mismatch"),
            (
                "ValueError: Currently, 'draft_tensor_parallel_size' and 'tensor_parallel_size' "
                "must be "
                "the same. Got 1 and 2. Please pass 'draft_tensor_parallel_size' in the "
                "speculative_config."
            ),
            K.BAD_CONFIG,
        ),
        (
            (*DRAFT, "v1/spec_decode/llm_base_proposer.py:_raise_if_padded_drafter_batch_disabled"),
            (
                "NotImplementedError: Speculative Decoding with draft models or parallel "
                "drafting only "
                "supports padded drafter batch. Please unset disable_padded_drafter_batch in the "
                "speculative_config."
            ),
            K.BAD_CONFIG,
        ),
        (
            (*LOAD, "v1/attention/backends/triton_attn.py:__init__"),
            (
                "ValueError: FP8 KV cache is not supported by the Triton attention backend on an "
                "old "
                "GPU (compute capability 8.6). Re-run with --kv-cache-dtype auto."
            ),
            K.BAD_CONFIG,
        ),
        (
            (*LOAD, "v1/attention/backends/flex_attention.py:__init__"),
            "NotImplementedError: FlexAttention does not support logits soft cap yet.",
            K.BAD_CONFIG,
        ),
        (
            (*BOOT, "v1/core/kv_cache_utils.py:unify_kv_cache_spec_page_size"),
            (
                "NotImplementedError: The page size of the layer is not divisible by the maximum "
                "page "
                "size. Cannot unify by adjusting block_size."
            ),
            K.BAD_CONFIG,
        ),
        (
            (*BOOT, "v1/worker/gpu_model_runner.py:may_reinitialize_input_batch"),
            (
                "ValueError: max_num_seqs (512) exceeds available Mamba cache blocks (300). Please "
                "lower max_num_seqs to at most 300."
            ),
            K.KV_CACHE,
        ),
        (
            (*DRAFT, "model_executor/model_loader/weight_utils.py:default_weight_loader"),
            (
                "AssertionError: Attempted to load weight (torch.Size([32000, 4096])) into "
                "parameter "
                "(torch.Size([32000, 2560]))"
            ),
            K.DRAFT_MISMATCH,
        ),
        (
            (*LOAD, "model_executor/model_loader/weight_utils.py:default_weight_loader"),
            (
                "AssertionError: Attempted to load weight (torch.Size([8])) into parameter "
                "(torch.Size([9])) of a layer that is not supported"
            ),
            K.BAD_CONFIG,
        ),
        (
            (*DRAFT, "model_executor/models/llama_eagle3.py:load_weights"),
            "KeyError: 'layers.3.mlp.experts.w13_weight_scale'",
            K.DRAFT_MISMATCH,
        ),
        (
            (*LOAD, "model_executor/models/qwen3.py:load_weights"),
            "KeyError: 'model.layers.0.mlp.gate_up_proj.weight_scale_2'",
            K.BAD_CONFIG,
        ),
        (
            (*DRAFT, "model_executor/model_loader/utils.py:initialize_model"),
            "TypeError: Eagle3ForCausalLM.__init__() got an unexpected keyword argument 'prefix'",
            K.DRAFT_MISMATCH,
        ),
        (
            (*LOAD, "model_executor/models/qwen3_dspark.py:load_weights"),
            "ValueError: Reduced-vocabulary checkpoints must include a d2t mapping.",
            K.DRAFT_MISMATCH,
        ),
        (
            (*SERVE, "v1/spec_decode/dflash.py:build_per_group_and_layer_attn_metadata"),
            (
                "AssertionError: Attention metadata for layer model.layers.9.attn does not have "
                "non-causal support, which is required for DFlash. Consider another backend."
            ),
            K.BAD_CONFIG,
        ),
        (
            (*LOAD, "model_executor/layers/quantization/fp8.py:create_weights"),
            "ValueError: Weight output_size_per_partition = 96 is not divisible by the block.",
            K.BAD_CONFIG,
        ),
    ],
)
def test_a_refusal_in_engine_or_worker_is_final(
    frames: Sequence[str], error: str, kind: FailureKind
) -> None:
    v = verdict(logged(frames, error))
    assert v.kind is kind
    assert not v.kind.transient
    assert error in v.evidence
    assert not any(line.startswith("(") or "ERROR" in line for line in v.evidence)


@pytest.mark.parametrize(
    ("frames", "error"),
    [
        ((*BOOT, "distributed/parallel_state.py:initialize_model_parallel"),
         "AssertionError: pipeline model parallel group is already initialized"),
        ((*LOAD, "model_executor/layers/attention/attention.py:__init__"),
         "ValueError: Duplicate layer name: model.layers.0.attn"),
        ((*BOOT, "engine/arg_utils.py:create_engine_config"),
         "AssertionError: max_num_seqs must be set by this point"),
        ((*SERVE, f"{SITE}/torch/nn/modules/module.py:_call_impl"),
         "torch.AcceleratorError: CUDA error: an illegal memory access was encountered"),
        ((*SERVE,), "RuntimeError: Expected all tensors to be on the same device"),
        ((f"{SITE}/torch/_ops.py:__call__",), "RuntimeError: something of torch"),
    ],
)  # fmt: skip
def test_what_broke_inside_is_a_crash(frames: Sequence[str], error: str) -> None:
    v = verdict(logged(frames, error))
    assert v.kind is K.CRASH
    assert error in v.reason


def test_a_bare_assertion_shows_where_it_stands() -> None:
    frames = (*BOOT, "v1/core/sched/scheduler.py:__init__")
    v = verdict(logged(frames, "AssertionError", code="assert block_size % unit == 0"))
    words = "AssertionError in vllm/v1/core/sched/scheduler.py:218, __init__: assert block_size"
    assert v.kind is K.BAD_CONFIG
    assert words in v.reason
    assert any(words in line for line in v.evidence)
    draft = (*DRAFT, "v1/spec_decode/eagle.py:validate")
    assert verdict(logged(draft, "AssertionError")).kind is K.DRAFT_MISMATCH
    served = verdict(logged((*SERVE, "v1/sample/sampler.py:forward"), "AssertionError"))
    assert served.kind is K.CRASH
    assert "vllm/v1/sample/sampler.py:218, forward" in served.reason


def test_the_first_of_chained_exceptions_that_tells_it_counts() -> None:
    log = [
        *bare((*CONFIG,), "KeyError: 'qwen9'"),
        f"{API} ",
        f"{API} During handling of the above exception, another exception occurred:",
        f"{API} ",
        *bare(
            (*CONFIG, "config/model.py:__post_init__"),
            "ValueError: The model type qwen9 is not supported; use a newer transformers.",
        ),
    ]
    v = verdict(log)
    assert v.kind is K.BAD_CONFIG
    assert "qwen9" in v.reason


# -- D: too small a batch budget ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words", "least"),
    [
        (
            (
                "AssertionError: In Mamba cache align mode, block_size (1072) must be <= "
                "max_num_batched_tokens (1024)."
            ),
            "= 1024 is below the block size 1072",
            LeastBudget(1072, every_n=False),
        ),
        (
            (
                "ValueError: Chunked MM input disabled but max_tokens_per_mm_item (3136) is "
                "larger than "
                "max_num_batched_tokens (2048). Please increase max_num_batched_tokens."
            ),
            "= 2048 is below the 3136 tokens of one image",
            LeastBudget(3136, every_n=True),
        ),
        (
            (
                "ValueError: max_num_batched_tokens (64) must be greater than or equal to "
                "max_num_seqs "
                "(128)."
            ),
            "= 64 is below max_num_seqs = 128",
            LeastBudget(128, every_n=True),
        ),
        (
            (
                "ValueError: VllmConfig does not have enough slots to schedule a token and "
                "support the "
                "settings. Got max_num_batched_tokens=16 and scheduled_token_delta=16"
            ),
            "leaves no room for 16",
            LeastBudget(17, every_n=False),
        ),
        (
            "AssertionError: Dummy run with 520 tokens exceeds max_num_batched_tokens (512)",
            "520 tokens of the warm-up",
            LeastBudget(520, every_n=False),
        ),
        (
            "ValueError: max_num_batched_tokens (512) must be at least the encoder's 729 tokens.",
            "at least 729",
            LeastBudget(729, every_n=False),
        ),
        (
            "ValueError: a page (784) exceeds max_num_batched_tokens (512).",
            "a page (784)",
            LeastBudget(784, every_n=False),
        ),
        (
            "RuntimeError: no token could be scheduled. Try increasing --max-num-batched-tokens.",
            "no token could be scheduled",
            None,
        ),
    ],
)
def test_a_batch_budget_that_is_too_small_states_its_bound(
    error: str, words: str, least: LeastBudget | None
) -> None:
    for log in (
        logged((*BOOT, "v1/core/sched/scheduler.py:__init__"), error),
        bare((*CONFIG, "config/vllm.py:__post_init__"), error),
    ):
        v = verdict(log)
        assert v.kind is K.BUDGET
        assert words in v.reason
        assert v.least == least


# -- E: warnings of other loggers --------------------------------------------------------------

ILLEGAL = "torch.AcceleratorError: CUDA error: an illegal memory access was encountered"


@pytest.mark.parametrize(
    "warning",
    [
        "2026-03-01 08:00:00,123\tWARNING worker.py:88 -- {}",
        "2026-03-01 08:00:00,123 - WARNING - autotuner.py:13 - flashinfer.jit: {}",
        "2026-03-01 08:00:00,123 - flashinfer.jit - WARNING - {}",
        "2026-03-01 08:00:00 | WARNING  | module:function:12 - {}",
        "[2026-03-01 08:00:00,123] [WARNING] [runner.py:12:run] {}",
        "[2026-03-01 08:00:00,123 W 11 22] (raylet) file_system_monitor.cc:111: {}",
        "2026-03-01T08:00:00.123456Z  WARN hyper::client: {}",
        "[2026-03-01 08:00:00] WARNING utils.py:12: {}",
        "WARNING:root:{}",
        "WARNING:2026-03-01 08:00:00,123:jax._src: {}",
        "[WARNING] {}",
        "W0301 08:00:00.123456 4711 allocator.cc:88] {}",
        "[rank0]:W0301 08:00:00.123 4711 site.py:88] {}",
        "[W301 08:00:00.123456789 socket.cpp:88] {}",
        f"{SITE}/torch/cuda/__init__.py:61: FutureWarning: {{}}",
        "node-3:202016:202235 [0] transport.cc:88 NCCL WARN {}",
        '{{"level": "warning", "message": "{}"}}',
        "(RayWorkerProc pid=773, ip=10.0.0.2) WARNING 03-20 23:26:06 [cache.py:5] {}",
        "(APIServer pid=1) (EngineCore_DP0 pid=68) WARNING 02-06 16:34:16 [x.py:1] {}",
        "vllm-1  | WARNING 02-06 16:34:16 [x.py:1] {}",
        "Loading shards:  50%|█████     | 1/2 [00:01<00:01,  1.00it/s] {}",
    ],
)
@pytest.mark.parametrize(
    "words",
    [
        "No space left on device",
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "ImportError: libcudart.so.13: cannot open shared object file",
    ],
)
def test_a_warning_of_any_logger_is_no_cause(warning: str, words: str) -> None:
    v = verdict([warning.format(words), *logged(SERVE, ILLEGAL)])
    assert v.kind is K.CRASH
    assert v.evidence == (ILLEGAL,)


@pytest.mark.parametrize(
    "error",
    [
        "2026-03-01 08:00:00,123\tERROR worker.py:88 -- {}",
        "2026-03-01 08:00:00,123 - flashinfer.jit - ERROR - {}",
        "ERROR:root:{}",
        "E0301 08:00:00.123456 4711 allocator.cc:88] {}",
        "[rank0]: {}",
        "(RayWorkerProc pid=773, ip=10.0.0.2) {}",
        "ERROR 02-06 16:34:16 engine.py:381] {}",
    ],
)
def test_an_error_of_any_logger_counts_without_its_header(error: str) -> None:
    words = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    v = verdict([error.format(words)])
    assert v.kind is K.OOM
    assert v.evidence == (words,)


@pytest.mark.parametrize(
    "log",
    [
        [
            ("n1:22:33 [0] misc/shmutils.cc:88 NCCL WARN Error: failed to extend /dev/shm/nccl-aB "
            "to 9637892 bytes, error: No space left on device (28)"),
            *logged(BOOT, "torch.distributed.DistBackendError: NCCL error in: NCCLUtils.cpp:94, "
                    "unhandled system error (run with NCCL_DEBUG=INFO for details)"),
        ],
        logged(BOOT, "OSError: [Errno 28] No space left on device: '/psm_1a2b3c'"),
        logged(BOOT, "OSError: [Errno 28] No space left on device: '/dev/shm/sem.mp-x'"),
        logged(BOOT, "RuntimeError: unable to write to file </torch_12_34>: No space left on "
               "device (28)"),
        logged(BOOT, "RuntimeError: DataLoader worker is killed by signal: Bus error. It is "
               "possible that dataloader's workers are out of shared memory. insufficient shared "
               "memory (shm)."),
    ],
)  # fmt: skip
def test_full_shared_memory_is_not_the_disk(log: list[str]) -> None:
    v = verdict(log)
    assert v.kind is K.MACHINE
    assert "shared memory" in v.reason
    assert "--ipc=host" in v.reason
    assert "--shm-size" in v.reason


def test_a_full_disk_is_still_the_disk() -> None:
    v = verdict(logged(BOOT, "OSError: [Errno 28] No space left on device: '/root/.cache/x'"))
    assert (v.kind, "/root/.cache/x" in v.reason) == (K.DISK, True)


# -- J: the hub --------------------------------------------------------------------------------


def hub(name: str, *text: str, frames: Sequence[str] = CONFIG) -> list[str]:
    return [engine_line(), *bare((*frames, HUB), f"huggingface_hub.errors.{name}: {text[0]}",
                                 *text[1:])]  # fmt: skip


URL = "https://huggingface.co/{}/resolve/main/config.json"


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (
            hub("GatedRepoError", "403 Client Error.", "",
                f"Cannot access gated repo for url {URL.format('org/big')}."),
            ("the target org/big", "ask for access", "HF_TOKEN"),
        ),
        (
            hub("GatedRepoError", "401 Client Error.", "",
                f"Cannot access gated repo for url {URL.format('org/small')}."),
            ("the draft org/small", "https://huggingface.co/org/small", "HF_TOKEN"),
        ),
        (
            hub("RepositoryNotFoundError", "401 Client Error.", "",
                "Repository Not Found for url: https://huggingface.co/api/models/org/big."),
            ("the target org/big", "HF_TOKEN"),
        ),
        (
            hub("HfHubHTTPError", "403 Forbidden: Please enable access to public gated "
                "repositories in your fine-grained token settings to view this repository..",
                f"Cannot access content at: {URL.format('org/else')}."),
            ("the model org/else", "token's settings"),
        ),
        (
            hub("RevisionNotFoundError", "404 Client Error.", "",
                "Revision Not Found for url: https://huggingface.co/org/big/resolve/v7/x.json.",
                "Invalid rev id: v7"),
            ("the target org/big", "v7", "revision"),
        ),
        (
            hub("RemoteEntryNotFoundError", "404 Client Error.", "",
                f"Entry Not Found for url: {URL.format('org/small')}."),
            ("the draft org/small", "config.json"),
        ),
        (
            hub("LocalEntryNotFoundError", "Cannot find the requested files in the disk cache and "
                "outgoing traffic has been disabled.",
                frames=(*CONFIG, "config/speculative.py:__post_init__")),
            ("the draft org/small", "HF_HUB_OFFLINE"),
        ),
        (
            hub("OfflineModeIsEnabled", "Cannot reach https://huggingface.co/api/models/org/big: "
                "offline mode is enabled."),
            ("org/big", "hf download"),
        ),
        (
            hub("HfHubHTTPError", "503 Server Error: Service Unavailable for url: "
                + URL.format("org/big")),
            ("the target org/big", "503"),
        ),
        (
            bare((*CONFIG, f"{SITE}/transformers/utils/hub.py:cached_files"),
                 "OSError: We couldn't connect to 'https://huggingface.co' to load the files, and "
                 "couldn't find them in the cached files."),
            ("network", "HF_HUB_OFFLINE"),
        ),
        (
            bare((*CONFIG, f"{SITE}/transformers/utils/hub.py:cached_files"),
                 "OSError: org/typo is not a local folder and is not a valid model identifier "
                 "listed on 'https://huggingface.co/models'"),
            ("org/typo", "HF_TOKEN"),
        ),
        (
            bare((*CONFIG, HUB), "requests.exceptions.ReadTimeout: HTTPSConnectionPool("
                 "host='huggingface.co', port=443): Read timed out. (read timeout=10)"),
            ("network",),
        ),
        (
            bare((*CONFIG, HUB), "httpx.ConnectError: [Errno -3] Temporary failure in name "
                 "resolution"),
            ("network",),
        ),
    ],
)  # fmt: skip
def test_an_error_of_the_hub_names_the_model_and_what_to_do(
    log: list[str], words: tuple[str, ...]
) -> None:
    v = verdict(log)
    assert v.kind is K.MODEL_MISSING
    for word in words:
        assert word in v.reason


# -- O, P: compilers, drivers, installations ---------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ("RuntimeError: Ninja build failed. Ninja output:", "ninja: Entering directory `/c'",
             "FAILED: [code=127] a.o", "/bin/sh: 1: /usr/local/cuda/bin/nvcc: not found",
             "ninja: build stopped: subcommand failed."),
            "nvcc: not found",
        ),
        (
            ("triton.runtime.errors.PTXASError: PTXAS error: Internal Triton PTX codegen error",
             "`ptxas` stderr:", "ptxas fatal   : Value 'sm_199' is not defined for 'gpu-name'"),
            "sm_199",
        ),
        (
            (("subprocess.CalledProcessError: Command '['/usr/bin/gcc', 'main.c']' returned "
             "non-zero exit status 1."), ("main.c:5:10: fatal error: Python.h: No such file or "
             "directory")),
            "python3-dev",
        ),
        (
            ("torch._inductor.exc.InductorError: CppCompileError: C++ compile error", "Output:",
             "/usr/bin/ld: cannot find -lcuda: No such file or directory"),
            "-lcuda",
        ),
    ],
)  # fmt: skip
def test_the_telling_line_of_a_compiler_is_shown(error: tuple[str, ...], words: str) -> None:
    v = verdict(logged(BOOT, *error))
    assert v.kind is K.MACHINE
    assert words in f"{v.reason} {v.evidence}"


def test_the_telling_line_of_an_unknown_tool_is_shown() -> None:
    error = ("RuntimeError: Kernel build failed, output:", "step 1 done",
             "widget.cu(12): error: identifier is undefined", "stopped")  # fmt: skip
    v = verdict(logged((f"{SITE}/kernels/build.py:build",), *error))
    assert v.kind is K.CRASH
    assert "identifier is undefined" in v.reason
    assert any("identifier is undefined" in line for line in v.evidence)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (("RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 803: system has "
         "unsupported display driver / cuda driver combination"), "cuda-compat"),
        (("RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 804: forward "
         "compatibility was attempted on non supported HW"), "cuda-compat"),
        (("RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 802: system not yet "
         "initialized"), "fabric manager"),
        ("RuntimeError: The NVIDIA driver on your system is too old (found version 12020).",
         "too old"),
        ("RuntimeError: CUDA error: CUDA driver version is insufficient for CUDA runtime version",
         "too old"),
        (("torch.AcceleratorError: CUDA error: no kernel image is available for execution on the "
         "device"), "generation"),
        ("RuntimeError: HIP error: invalid device function", "generation"),
        ("RuntimeError: No CUDA GPUs are available", "nvidia-smi"),
        ("RuntimeError: Found no NVIDIA driver on your system.", "nvidia-smi"),
        ("pynvml.NVMLError_LibraryNotFound: NVML Shared Library Not Found", "nvidia-smi"),
        ("RuntimeError: Failed to infer device type, please set VLLM_LOGGING_LEVEL=DEBUG",
         "nvidia-smi"),
        ("torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered", "dmesg"),
        (("torch._inductor.exc.InductorError: RuntimeError: Failed to find C compiler. Please "
         "specify via CC environment variable"), "install gcc"),
        ("RuntimeError: Could not find nvcc and default cuda_home='/usr/local/cuda' doesn't exist",
         "CUDA_HOME"),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'ninja'", "ninja"),
        ("ImportError: /env/x/_C.abi3.so: undefined symbol: _ZN3c104cuda9SetDeviceEi",
         "undefined symbol"),
        ("ImportError: libcudart.so.13: cannot open shared object file: No such file or directory",
         "libcudart.so.13"),
        ("ModuleNotFoundError: No module named 'flashinfer'", "'flashinfer'"),
        ("ImportError: cannot import name 'AutoX' from 'transformers'", "AutoX"),
        ("RuntimeError: operator torchvision::nms does not exist", "torchvision::nms"),
        ("RuntimeError: FlashInfer requires GPUs with sm75 or higher", "sm75"),
        (("ImportError: Arctic Inference is required for suffix decoding. Install via `pip install "
         "arctic-inference==0.1.1`."), "arctic-inference"),
    ],
)  # fmt: skip
def test_a_fault_of_the_machine_stops_the_study_and_says_what_to_do(error: str, words: str) -> None:
    for log in (logged(LOAD, error), bare(CONFIG, error)):
        v = verdict(log)
        assert v.kind is K.MACHINE
        assert v.kind.of_the_machine
        assert not v.kind.transient
        assert words in v.reason


# -- Q: how it ended, and prefixes -------------------------------------------------------------


@pytest.mark.parametrize(
    ("exit_code", "words"),
    [
        (135, "shared memory"),
        (137, "SIGKILL"),
        (139, "SIGSEGV"),
        (134, "SIGABRT"),
        (143, "SIGTERM"),
        (-9, "SIGKILL"),
        (3, "exit code 3"),
        (255, "exit code 255"),
        (-99, "signal 99"),
    ],
)
def test_an_exit_code_above_128_is_a_signal(exit_code: int, words: str) -> None:
    v = verdict([engine_line()], exit_code)
    assert (v.kind, words in v.reason) == (K.CRASH, True)


@pytest.mark.parametrize(
    ("line", "exit_code", "kind"),
    [
        (('docker: Error response from daemon: could not select device driver "" with '
         "capabilities: [[gpu]]."), 125, K.MACHINE),
        ("Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is it running?", 1,
         K.MACHINE),
        ("docker: Error response from daemon: pull access denied for acme/vllm", 125,
         K.BAD_CONFIG),
        ("docker: invalid reference format: repository name must be lowercase", 125, K.BAD_CONFIG),
        (("docker: Error response from daemon: Conflict. The container name \"/v\" is already in "
         "use by container"), 125, K.BAD_CONFIG),
        (("docker: Error response from daemon: driver failed programming external connectivity: "
         "Bind for 127.0.0.1:8000 failed: port is already allocated."), 125, K.PORT),
        (
            'docker: Error response from daemon: pull access denied for nvidia/cuda:13.0',
            125,
            K.BAD_CONFIG,
        ),
        ("unknown shorthand flag: 'x' in -x", 125, K.BAD_CONFIG),
        ("Error: short-name \"vllm\" did not resolve to an alias", 125, K.BAD_CONFIG),
        ("FATAL:   could not open image /data/vllm.sif", 255, K.BAD_CONFIG),
        ("bash: line 1: vllm: command not found", 127, K.BAD_CONFIG),
        ("env: 'vllm': No such file or directory", 127, K.BAD_CONFIG),
        ("nohup: failed to run command 'vllm': No such file or directory", 127, K.BAD_CONFIG),
        ("vllm serve: error: ambiguous option: --spec could match --spec-method, --spec-model", 2,
         K.BAD_CONFIG),
        ("api_server.py: error: argument --dtype: invalid choice: 'x' (choose from 'auto')", 2,
         K.BAD_CONFIG),
        ("vllm serve: error: the following arguments are required: model", 2, K.BAD_CONFIG),
    ],
)  # fmt: skip
def test_the_program_s_own_last_line_is_the_reason(
    line: str, exit_code: int, kind: FailureKind
) -> None:
    v = verdict(["usage: …", line], exit_code)
    assert v.kind is kind
    assert not v.kind.transient or v.kind is K.PORT
    assert line in v.evidence
    if kind is K.BAD_CONFIG:
        assert line.split(": ")[-1] in v.reason


@pytest.mark.parametrize(
    "prefix",
    [
        "(APIServer pid=1) (EngineCore_DP0 pid=68) ERROR 02-06 16:34:16 [core.py:866] ",
        "(RayWorkerProc pid=773, ip=10.0.0.2) ERROR 03-20 23:26:06 [ray_executor.py:375] ",
        "(Worker_TP0_EP0 pid=9) ERROR 03-20 23:26:06 [multiproc_executor.py:870] ",
        "(pid=9) ",
        "vllm-1  | (EngineCore pid=9) ERROR 03-20 23:26:06 [core.py:1] ",
        "ERROR 03-20 23:26:06 core.py:390] ",
        "[rank1]: ",
    ],
)
def test_prefixes_are_no_part_of_an_error(prefix: str) -> None:
    error = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    v = verdict([prefix + line for line in traceback(LOAD, error)])
    assert v.kind is K.OOM_LOAD
    assert v.evidence == (error,)


def test_pydantic_s_words_in_nested_processes() -> None:
    lines = traceback(
        CONFIG,
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig",
        "  Value error, one thing needs another [type=value_error, input_value=ArgsKwargs(())]",
        "    For further information visit https://errors.pydantic.dev/2.14/v/value_error",
    )
    v = verdict([f"{API} (EngineCore_DP0 pid=68) {line}" for line in lines])
    assert v.kind is K.BAD_CONFIG
    assert v.reason == "vLLM rejected the configuration: one thing needs another"
    assert not any("pid=" in line for line in v.evidence)


@pytest.mark.parametrize(
    "error",
    [
        (
            "RuntimeError: level_zero backend failed with error: 39 "
            "(UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"
        ),
        "torch.OutOfMemoryError: XPU out of memory. Tried to allocate 1.00 GiB.",
        "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 1.00 GiB.",
        "RuntimeError: HIP error: out of memory",
        "RuntimeError: NPU out of memory. Tried to allocate 1.00 GiB (NPU 0)",
        "jaxlib.xla_extension.XlaRuntimeError: RESOURCE_EXHAUSTED: Attempting to allocate 4.00G.",
        "RuntimeError: [Rank:0] FATAL ERROR :: MODULE:PT_DEVMEM Allocation failed for size::42",
        "RuntimeError: CUDA driver error: out of memory",
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_out_of_memory_on_any_device(error: str) -> None:
    assert verdict(logged(PROFILE, error)).kind is K.KV_CACHE
    assert verdict(logged(SERVE, error)).kind is K.OOM


# -- a server that is up, and cannot be reached ------------------------------------------------


def test_a_time_out_of_a_server_that_is_up_says_so() -> None:
    log = [
        (
            f"{API} INFO 04-02 10:00:00 [api_server.py:1] Starting vLLM API server 0 on "
            "http://127.0.0.1:41234"
        ),
        f"{API} INFO:     Application startup complete.",
    ]
    v = verdict(log, None, K.TIMEOUT)
    assert "127.0.0.1:41234" in v.reason
    assert "--network host" in v.reason
    assert not v.kind.transient  # it would not be reachable a second time
    assert verdict(log[:1], None, K.TIMEOUT).kind is K.TIMEOUT
    assert verdict(log, 1).kind is K.CRASH


def test_the_worker_s_words_count_more_than_what_engine_and_api_server_say_of_it() -> None:
    head = f"{WORKER} ERROR 04-02 10:00:09 [multiproc_executor.py:953] "
    error = "NotImplementedError: FlexAttention does not support kv sharing yet."
    place = "v1/attention/backends/flex_attention.py:__init__"
    log = [
        engine_line(),
        *(head + line for line in traceback((*LOAD, place), error)),
        (
            f"{CORE} ERROR 04-02 10:00:10 [core.py:1] Exception: WorkerProc initialization "
            f"failed due "
            "to an exception in a background process. See stack trace for root cause."
        ),
        ENDED,
    ]
    v = verdict(log)
    assert (v.kind, v.evidence) == (K.BAD_CONFIG, (error,))


# -- who wrote it in front, and when ------------------------------------------------------------

ILLEGAL = "torch.AcceleratorError: CUDA error: an illegal memory access was encountered"
TOO_LONG = (
    "ValueError: To serve at least one request with the models's max seq len (4096), 3.10 GiB KV "
    "cache is needed, which is larger than the available KV cache memory (2.00 GiB)."
)
UP = f"{API} INFO:     Application startup complete."
CAPTURE = (*BOOT, "v1/worker/gpu_model_runner.py:capture_model")


@pytest.mark.parametrize(
    "front",
    [
        "server  | ",
        "server-1  | 2026-05-04T10:00:00.123456789Z ",
        "2026-05-04T10:00:00.123456789Z ",
        "2026-05-04T10:00:00.123456789Z stderr F ",
        "[pod/server-7c9d4-x2x4z/main] ",
        "server-7c9d4-x2x4z main ",
        "May  4 10:00:00 box vllm[91]: ",
        "2026-05-04T10:00:00+0200 box python3[91]: ",
        "[2026-05-04 10:00:00] ",
        "0: ",
        "[default0]:",
    ],
)
def test_what_a_collector_writes_in_front_of_every_line_is_left_out(front: str) -> None:
    refused = "ValueError: Model architectures ['NewOne'] are not supported for now."
    memory = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    warning = "WARNING 05-04 10:00:00 [tuner.py:5] CUDA out of memory. Tried to allocate 9.00 GiB"
    for lines, kind in (
        (logged(LOAD, refused), K.BAD_CONFIG),
        (logged(CAPTURE, memory), K.OOM_CAPTURE),
        (logged(PROFILE, TOO_LONG), K.KV_CACHE),
        ([engine_line(), warning, *bare(SERVE, ILLEGAL, process=CORE)], K.CRASH),
    ):
        found = verdict([front + line for line in lines])
        assert found.kind is kind
        assert not any(front.strip() in line for line in found.evidence)


def test_a_logger_that_begins_with_the_time_keeps_its_level() -> None:
    log = [f"2026-05-04 10:00:0{i} WARNING tuner: CUDA out of memory" for i in range(9)]
    assert verdict(log).kind is K.CRASH


@pytest.mark.parametrize("exit_code", [1, -9, -11])
@pytest.mark.parametrize(
    "line",
    [
        "/bin/sh: 1: gcc: not found",
        "/entry.sh: line 3: nvidia-smi: command not found",
        "nice: cannot set niceness: Permission denied",
        "Unable to find image 'registry/vllm:1' locally",
        "No module named 'extra'",
        (
            "Triton compile failed: out of resource: shared memory, Required: 147456, Hardware "
            "limit: 101376."
        ),
        "[[Forward compatibility was attempted on non supported HW (code 804)]]",
        (
            "ERROR 05-04 10:00:00 [kernels.py:34] Failed to import Triton kernels: cannot import "
            "name 'x' from 'y'"
        ),
        "[1777888999.123456] [box:12   :0]  file.c:233  UCX  WARN  No space left on device",
        "2026-05-04 10:00:00.123456: E external/cuda.cc:266] CUDA_ERROR_NO_DEVICE",
    ],
)
def test_what_a_server_did_without_is_not_its_end(line: str, exit_code: int) -> None:
    end = bare(SERVE, ILLEGAL, process=CORE) if exit_code == 1 else []
    assert verdict([engine_line(), line, UP, *end], exit_code).kind is K.CRASH
    assert verdict([engine_line(), line, *end], exit_code).kind is K.CRASH


def test_an_api_servers_words_about_a_request_are_not_its_end() -> None:
    request = (
        "entrypoints/openai/serving_chat.py:create_chat_completion",
        "entrypoints/openai/serving_engine.py:_validate_input",
    )
    asked = bare(request, "ValueError: This model's maximum context length is 4096 tokens. Please "
                 "reduce the length of the messages.")  # fmt: skip
    died = bare(SERVE, ILLEGAL, process=CORE)
    found = verdict([engine_line(), UP, *asked, *died])
    assert found.kind is K.CRASH
    assert "illegal memory access" in found.reason
    assert verdict([engine_line(), UP, *asked], -9).kind is K.CRASH
    memory = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    last = [engine_line(), UP, *asked, *bare(SERVE, memory, process=CORE)]
    assert verdict(last).kind is K.OOM
    # the beginning of a long log is not at hand
    late = classify(asked, exit_code=-9, default=K.CRASH, reason="the server died", up=True)
    assert late.kind is K.CRASH


@pytest.mark.parametrize(
    ("frames", "error"),
    [
        (
            "distributed/device_communicators/pynccl_wrapper.py:NCCL_CHECK",
            "RuntimeError: NCCL error: internal error - please report this issue",
        ),
        ("v1/worker/gpu_worker.py:init_device", "RuntimeError: CUDA error: operation failed"),
        ("v1/engine/core.py:startup", "RuntimeError: Did not receive response from front-end"),
    ],
)
def test_what_may_pass_is_no_refusal(frames: str, error: str) -> None:
    log = logged((*BOOT, frames), error, code="raise RuntimeError(error_str)")
    assert verdict(log).kind is K.CRASH


@pytest.mark.parametrize(
    ("line", "exit_code", "kind"),
    [
        ("error: Failed to spawn: `vllm`", 2, K.BAD_CONFIG),
        ("libnuma: Warning: cpu argument 0-127 is out of range", 1, K.BAD_CONFIG),
        ("taskset: failed to set pid 0's affinity: Invalid argument", 1, K.BAD_CONFIG),
        ("EnvironmentLocationNotFound: Not a conda environment: /opt/none", 1, K.BAD_CONFIG),
        ("exec /usr/bin/python3: exec format error", 1, K.BAD_CONFIG),
        ("no such service: vllm", 1, K.BAD_CONFIG),
        ("/usr/bin/python3: No module named vllm", 1, K.MACHINE),
        (
            (
                'docker: Error response from daemon: Get "https://registry/v2/": net/http: TLS '
                "handshake timeout"
            ),
            125,
            K.CRASH,
        ),
    ],
)
def test_programs_in_front_of_vllm_say_why_they_cannot(
    line: str, exit_code: int, kind: FailureKind
) -> None:
    found = verdict([line], exit_code)
    assert found.kind is kind
    assert line in found.evidence


@pytest.mark.parametrize(
    ("frames", "error", "kind"),
    [
        (CAPTURE, "RuntimeError: Triton Error [CUDA]: out of memory", K.OOM_CAPTURE),
        (
            CAPTURE,
            (
                "triton.runtime.errors.OutOfResources: out of resource: shared memory, Required: "
                "147456, Hardware limit: 101376. Reducing block sizes may help."
            ),
            K.BAD_CONFIG,
        ),
        (
            PROFILE,
            (
                "torch._inductor.exc.InductorError: CalledProcessError: Command '['/usr/bin/gcc', "
                "'/tmp/a/cuda_utils.c', '-O3']' returned non-zero exit status 1."
            ),
            K.MACHINE,
        ),
        (
            LOAD,
            "torch.AcceleratorError: CUDA error: CUDA-capable device(s) is/are busy or unavailable",
            K.MACHINE,
        ),
        (
            ("config.py:_get_and_verify_max_len",),
            (
                "ValueError: User-specified max_model_len (131072) is greater than the derived "
                "max_model_len. This may lead to incorrect model outputs."
            ),
            K.BAD_CONFIG,
        ),
    ],
)
def test_errors_of_compilers_devices_and_older_versions(
    frames: Sequence[str], error: str, kind: FailureKind
) -> None:
    assert verdict(logged(frames, error)).kind is kind


@pytest.mark.parametrize("code", [429, 503])
def test_a_busy_hub_is_not_a_missing_model(code: int) -> None:
    error = (
        f"huggingface_hub.errors.HfHubHTTPError: {code} Server Error: busy for url: "
        "https://huggingface.co/api/models/org/big"
    )
    found = verdict(bare((HUB,), error))
    assert found.kind is K.MODEL_MISSING
    assert f"HTTP {code}" in found.reason
    assert "look at its name" not in found.reason
