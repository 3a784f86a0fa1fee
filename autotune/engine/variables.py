"""Variables of the user's own environment by which a server may be faster or slower.

A server gets the whole environment of whoever starts autotune. The variables that may change a
figure are kept with each launch. Two launches that differ in one of them are not comparable without
a word about it.

Source of the names: ``vllm/envs.py`` of vLLM 0.32, ``environment_variables`` (line 617 on), and
what ``compile_factors`` there (line 2351 on) leaves out of the key of torch.compile's cache. That
list is only a hint. It has variables that change no compiled graph and yet the speed
(``VLLM_CPU_KVCACHE_SPACE``, ``VLLM_TUNED_CONFIG_FOLDER``, ``VLLM_ENABLE_V1_MULTIPROCESSING``), and
it lacks some that change nothing (``VLLM_USAGE_SOURCE``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from autotune.study.secrets import SECRET_NAME

# Families that were kept with a launch from the first version of autotune on.
_FIRST = re.compile(
    r"(VLLM|CUDA|NVIDIA|NCCL|TORCH\w*|PYTORCH|TRITON|OMP|MKL|KMP|GOMP|HF|TRANSFORMERS)_|LD_PRELOAD$"
)
# Families that are kept since: their absence from an earlier launch says nothing.
_LATER = re.compile(
    r"(FLASHINFER|DG|CUBLAS|CUBLASLT|CUDNN|HIP|ROCR|HSA|AITER|UCX|GLOO|OPENBLAS|ONEDNN|DNNL|MALLOC"
    r"|RAY|ZE)_|(TOKENIZERS_PARALLELISM|RAYON_NUM_THREADS)$"
)
# Names that only look like a secret: of tokens of a text, or tokenizers.
_NO_SECRET = re.compile(
    r"VLLM_USE_FASTOKENS$|VLLM_\w+_TOKEN_THRESHOLD$|VLLM_MAX_\w*TOKENS\w*$|TOKENIZERS_PARALLELISM$"
)

# Variables that end like a place, and decide what is computed or with which library.
DECIDING_PLACES = frozenset(
    {
        "VLLM_TUNED_CONFIG_FOLDER",  # envs.py:1987: tuned configurations of MoE and LoRA kernels
        "VLLM_MODEL_REDIRECT_PATH",  # 1571: loads another model than the one that is named
        "VLLM_NCCL_SO_PATH",  # 752: another NCCL
        "VLLM_CUDART_SO_PATH",  # 1513
        "VLLM_CUDA_COMPATIBILITY_PATH",  # 2197
        "VLLM_RUST_FRONTEND_PATH",  # 1483
    }
)
# Name, or beginning of a name with `*`, and line in vllm/envs.py of 0.32 that says what it is.
VLLM_NO_MATTER: Mapping[str, Sequence[str]] = {
    "counts users": (
        "VLLM_USAGE_STATS_SERVER",  # 830
        "VLLM_NO_USAGE_STATS",  # 833, 2391
        "VLLM_DO_NOT_TRACK",  # 834, 2392
        "VLLM_USAGE_SOURCE",  # 842; vLLM's images set it
    ),
    "what is logged": (
        "VLLM_CONFIGURE_LOGGING",  # 847
        "VLLM_LOGGING_*",  # 2393 to 2397
        "VLLM_LOG_STATS_INTERVAL",  # 2398; not VLLM_LOG_BATCHSIZE_INTERVAL, which synchronizes
        "VLLM_LOG_MODEL_INSPECTION",  # 2157
        "VLLM_DISABLE_LOG_LOGO",  # 2186
        "VLLM_RINGBUFFER_WARNING_INTERVAL",  # 2361
        "VLLM_DEBUG_DUMP_PATH",  # 2362
    ),
    "where something is": (
        "VLLM_CACHE_ROOT",  # 2364
        "VLLM_CONFIG_ROOT",  # 2373
        "VLLM_XLA_CACHE_PATH",  # 2372
        "VLLM_RPC_BASE_PATH",  # 2359
        "VLLM_ASSETS_CACHE*",  # 2425, 2426
        "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR",  # 2401
        "VLLM_LORA_RESOLVER_CACHE_DIR",
        "VLLM_USE_MODELSCOPE",  # 2360: from where a model is downloaded; its weights are compared
        "VLLM_OBJECT_STORAGE_SHM_BUFFER_NAME",  # 2424
    ),
    "addresses": (
        "VLLM_HOST_IP",  # 2381; autotune sets it
        "VLLM_PORT",  # 2363
        "VLLM_LOOPBACK_IP",  # 1928
        "VLLM_DP_MASTER_IP",  # 2376
        "VLLM_DP_MASTER_PORT",  # 2377
        "VLLM_NIXL_SIDE_CHANNEL_*",  # 2378
        "VLLM_P2P_SIDE_CHANNEL_*",
        "VLLM_EC_SIDE_CHANNEL_*",
        "VLLM_MOONCAKE_BOOTSTRAP_PORT",
        "VLLM_PROCESS_NAME_PREFIX",  # 1932
    ),
    "how long something is waited for": (
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE",  # 2403
        "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS",  # 2404
        "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS",  # 2405
        "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH",  # 2406
        "VLLM_ENGINE_READY_TIMEOUT_S",  # 811
    ),
    "images, sounds and videos of requests": (
        "VLLM_IMAGE_FETCH_TIMEOUT",  # 2407 to 2423
        "VLLM_VIDEO_*",
        "VLLM_AUDIO_FETCH_TIMEOUT",
        "VLLM_MEDIA_*",
        "VLLM_MAX_AUDIO_*",
        "VLLM_MAX_IMAGE_PIXELS",
        "VLLM_MAX_MEDIA_*",
    ),
    "how vLLM was built": (
        "VLLM_BUILD_*",  # 686 on
        "VLLM_IMAGE_TAG",  # 689
        "VLLM_DOCKER_BUILD_CONTEXT",
        "VLLM_TARGET_DEVICE",  # 621
        "VLLM_MAIN_CUDA_VERSION",  # 623
        "VLLM_USE_PRECOMPILED*",  # 667
        "VLLM_SKIP_PRECOMPILED_VERSION_SUFFIX",
        "VLLM_SKIP_VERSION_SUFFIX",  # 2440
    ),
    "what a server answers": (
        "VLLM_API_KEY",  # 2389
        "VLLM_SERVER_DEV_MODE",  # 2375
        "VLLM_SKIP_MODEL_NAME_VALIDATION",  # 2436
    ),
}
# The same of later versions, with the line in 0.33.
VLLM_NO_MATTER_LATER = (
    "VLLM_REQUEST_BODY_LOG_LEVEL",  # 2283
    "VLLM_HTTP_MAX_REQUEST_BODY_SIZE",  # 1141: a longer request is refused
    "VLLM_CHAT_TEMPLATE_FUEL",  # 825: for templates that a request brings
)
_NO_MATTER = re.compile(
    "|".join(
        re.escape(name).replace(r"\*", r"\w*") + "$"
        for names in (*VLLM_NO_MATTER.values(), VLLM_NO_MATTER_LATER)
        for name in names
    )
)
# Of the others: what autotune sets for every launch, places, downloads, what a container image says
# of itself, and what the container's runtime reads.
_OTHERS_NO_MATTER = re.compile(
    r"AUTOTUNE_|SPT_NOENV$|PYTHON\w+$|(\w*_)?(PATH|HOME|ROOT|DIR|FOLDER|FILE|OFFLINE|KEY|VERSION)$"
    r"|(HF|TRANSFORMERS)_|NVIDIA_(REQUIRE_|DRIVER_CAPABILITIES$|PRODUCT_NAME$|VISIBLE_DEVICES$)"
    r"|CUDA_DEVICE_ORDER$|NCCL_DEBUG|TORCH_CUDA_ARCH_LIST$|RAY_(ADDRESS|TMPDIR|DEDUP_LOGS)$"
)
# Which devices of a machine are used: another machine, or a container, has others.
_DEVICES = re.compile(r"\w*VISIBLE_DEVICES$|ZE_AFFINITY_MASK$|CUDA_DEVICE_ORDER$|VLLM_RAY_BUNDLE")


def is_kept(name: str) -> bool:
    """Return whether a variable of the user's environment is kept with a launch."""
    secret = SECRET_NAME.search(name) and not _NO_SECRET.match(name)
    return not secret and bool(_FIRST.match(name) or _LATER.match(name))


def always_kept(name: str) -> bool:
    """Return whether every version of autotune kept a variable: then none means that none was set.

    autotune 0.1 kept some families only; its launches have no host.
    """
    return bool(_FIRST.match(name))


def matters(name: str) -> bool:
    """Return whether a variable that was kept with a launch may change its figures."""
    if name in DECIDING_PLACES:
        return True
    return not (_NO_MATTER.match(name) or _OTHERS_NO_MATTER.match(name))


def deciding(env: Mapping[str, str], study: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the user's own environment that may change a launch's figures.

    Args:
        env: Variables that are kept with the launch.
        study: Variables that the study sets, which are compared as its keys.
    """
    return {k: v for k, v in env.items() if k not in study and is_kept(k) and matters(k)}


def names_devices(name: str) -> bool:
    """Return whether a variable says which devices of a machine are used."""
    return bool(_DEVICES.match(name))


def changed(
    then: Mapping[str, str], now: Mapping[str, str], *, complete: bool = True
) -> Iterator[tuple[str, str | None, str | None]]:
    """Yield the variables in which two launches differ: name, value then, value now; None: not set.

    Args:
        then: Variables of the earlier launch, from :func:`deciding`.
        now: Variables of the later one.
        complete: Whether the earlier launch was kept with every family of variables; without, only
            those count that were always kept.
    """
    for name in sorted({*then, *now}):
        if then.get(name) != now.get(name) and (complete or always_kept(name)):
            yield name, then.get(name), now.get(name)
