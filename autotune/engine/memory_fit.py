"""Whether a model without weights can be loaded, and fits into memory; asked before a launch.

Weights that are on the disk are vLLM's to judge: an error of it is read (:mod:`.failures`). A shape
(:mod:`autotune.study.shapes`) has none, and its launch would fail after a minute or more. Every
size here is a lower bound, so a study is refused only if no launch of it can work:

- weights of target and draft, divided by the workers that share them;
- the KV cache of one request of ``max_model_len`` tokens, which vLLM asks for at least
  (``v1/core/kv_cache_utils.py: check_enough_kv_cache_memory``), or ``kv_cache_memory_bytes``;
- of a GPU, its memory times ``gpu_memory_utilization`` (``v1/worker/utils.py: request_memory``); of
  a CPU, the memory of the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.engine.probe import VllmInfo
from autotune.study.checkpoints import config_of, has_no_weights
from autotune.study.files import LoadedStudy
from autotune.study.model_size import kv_cache_of, weight_bytes
from autotune.study.rehearsal import DRAFT_LOAD, LOAD_FORMAT
from autotune.study.schema import FlagValue, StudySpec
from autotune.study.shape_tokenizer import why_another_tokenizer, why_unchecked
from autotune.study.space import DRAFT, FloatParam, N, as_int

GIB = 1 << 30
# vLLM's default of gpu_memory_utilization (vllm/config/cache.py).
DEFAULT_UTILIZATION = 0.92
_UTILIZATION = "gpu_memory_utilization"
_KV_BYTES = "kv_cache_memory_bytes"
_LENGTH = "max_model_len"
# Load formats that read files of weights from the folder.
_FROM_FILES = (None, "auto", "hf", "safetensors", "pt")


@dataclass(frozen=True)
class Need:
    """What a launch needs at least, in bytes on each GPU, or on the CPU.

    Attributes:
        target: Weights of the target.
        draft: Weights of the draft; 0: there is none, or its size is unknown.
        cache: KV cache.
        cache_words: What the KV cache is for, in words.
    """

    target: int
    draft: int
    cache: int
    cache_words: str

    @property
    def total(self) -> int:
        """All of it."""
        return self.target + self.draft + self.cache

    @property
    def words(self) -> str:
        """All of it in words."""
        parts = [f"weights {_gib(self.target)}"]
        parts += [f"draft {_gib(self.draft)}"] if self.draft else []
        parts += [f"KV cache {_gib(self.cache)} {self.cache_words}"] if self.cache else []
        return ", ".join(parts)


def why_no_weights(loaded: LoadedStudy) -> str | None:
    """Return why a model cannot be loaded that has no files of weights, key first; None: it can.

    Args:
        loaded: The study.
    """
    spec = loaded.spec
    if _has_more_flags(spec):
        return None
    for key, ref, settings in _models(spec):
        if has_no_weights(ref, loaded.base) and _is_read(key, settings):
            return (
                f"{key}: {ref} has no files of weights: add `rehearsal: {{weights: dummy}}`, which "
                "fills it with random ones, or name a folder that has them"
            )
    return _why_other_tokenizer(loaded)


def _why_other_tokenizer(loaded: LoadedStudy) -> str | None:
    """Return why the tokenizer that is named for a model without weights is not its own."""
    words = as_int((config_of(loaded.spec.server.model, loaded.base) or {}).get("vocab_size"))
    folder = _named_tokenizer(loaded)
    why = None if words is None or folder is None else why_another_tokenizer(folder, words)
    ref = loaded.spec.server.model
    return None if why is None else f"server.flags.tokenizer: {why}; name that of {ref}"


def unchecked_tokenizer(loaded: LoadedStudy) -> str | None:
    """Return why the tokenizer of a model without weights was not checked, key first; None: it was.

    Args:
        loaded: The study.
    """
    folder = _named_tokenizer(loaded)
    why = None if folder is None else why_unchecked(folder)
    return None if why is None else f"server.flags.tokenizer: {why}"


def _named_tokenizer(loaded: LoadedStudy) -> Path | None:
    """Return the path that is named as the tokenizer of a model without weights, or None."""
    given = loaded.spec.server.flags.get("tokenizer")
    if isinstance(given, str) and has_no_weights(loaded.spec.server.model, loaded.base):
        return Path(given).expanduser()
    return None


def why_too_large(loaded: LoadedStudy, info: VllmInfo, memory: int | None) -> str | None:
    """Return why a target without weights does not fit into memory, key first; None: it may.

    Args:
        loaded: The study.
        info: The study's vLLM, with the GPUs that it sees.
        memory: Bytes of this machine's memory, which a CPU has; None: unknown.
    """
    ref = loaded.spec.server.model
    if not has_no_weights(ref, loaded.base):
        return None
    need = need_of(loaded)
    found = None if need is None else _room(loaded.spec, info, memory)
    if need is None or found is None or need.total <= found[0]:
        return None
    return (
        f"server.model: {ref} needs at least {_gib(need.total)} ({need.words}), and there are "
        f"{_gib(found[0])} ({found[1]}); {_advice(info)}"
    )


def need_of(loaded: LoadedStudy) -> Need | None:
    """Return what a launch of a study needs at least; None: the target's size is unknown.

    Args:
        loaded: The study.
    """
    spec, base = loaded.spec, loaded.base
    target = config_of(spec.server.model, base) or {}
    weights = weight_bytes(target)
    if weights is None or "quantization" in spec.server.flags or _has_more_flags(spec):
        return None
    drafts = [
        weight_bytes(config_of(draft.model, base) or {}) or 0
        for draft in spec.server.drafts.values()
        if draft.model is not None
    ]
    workers = _workers(spec)
    offloaded = round((_number(spec, "cpu_offload_gb", max) or 0) * GIB)
    tokens = _tokens(spec, target)
    cache, words = 0, ""
    if _has(spec, _KV_BYTES):
        cache, words = round(_number(spec, _KV_BYTES, min) or 0), "(kv-cache-memory-bytes)"
    elif tokens and (kv := kv_cache_of(target)) is not None:
        cache = kv.of_request(tokens, _element_bytes(spec)) // workers
        words = f"for one request of {tokens} tokens"
    return Need(
        max(0, weights // workers - offloaded), min(drafts, default=0) // workers, cache, words
    )


def _models(spec: StudySpec) -> Iterator[tuple[str, str, dict[str, FlagValue]]]:
    """Yield the key of each model of a study, its reference, and the settings of a launch."""
    yield "server.model", spec.server.model, spec.server.settings({})
    for arm, draft in spec.server.drafts.items():
        if draft.model is not None:
            place = "server.speculative" if arm is None else f"server.arms.{arm}"
            yield f"{place}.model", draft.model, spec.server.settings({N: 1})


def _is_read(key: str, settings: dict[str, FlagValue]) -> bool:
    """Return whether vLLM reads files of weights for a model."""
    given: Any = settings.get(LOAD_FORMAT)
    own = settings.get(f"{DRAFT}{DRAFT_LOAD}")
    if key != "server.model" and isinstance(own, dict) and LOAD_FORMAT in own:
        given = own[LOAD_FORMAT]
    return given in _FROM_FILES


def _room(spec: StudySpec, info: VllmInfo, memory: int | None) -> tuple[int, str] | None:
    """Return the bytes that a launch may have on each device, with their words; None: unknown."""
    if info.device == "cpu" and memory is not None:
        return memory, "memory of this machine"
    if info.device != "cuda" or not info.gpus:
        return None
    gpu = max(info.gpus, key=lambda g: g.memory)
    if _has(spec, _KV_BYTES):  # then vLLM does not keep to the share
        return gpu.memory, f"memory of the {gpu.name}"
    share = _number(spec, _UTILIZATION, max)
    share = DEFAULT_UTILIZATION if share is None else share
    return (
        int(gpu.memory * share),
        f"{_gib(gpu.memory)} of the {gpu.name} × gpu-memory-utilization {share:g}",
    )


def _advice(info: VllmInfo) -> str:
    more = "more GPUs (tensor-parallel-size)" if info.device == "cuda" else "a GPU"
    return (
        f"take a quantization with fewer bits, a smaller model, a shorter max-model-len or {more}"
    )


def _workers(spec: StudySpec) -> int:
    """Return the number of workers that may share a model's weights."""
    count = 1
    for kind in ("tensor", "pipeline", "data"):
        count *= max(1, round(_number(spec, f"{kind}_parallel_size", max) or 1))
    return count


def _tokens(spec: StudySpec, target: dict[str, Any]) -> int | None:
    """Return the shortest max_model_len of a study; None: vLLM chooses one that fits."""
    if not _has(spec, _LENGTH):
        return as_int(target.get("max_position_embeddings"))
    shortest = _number(spec, _LENGTH, min)
    return None if shortest is None or shortest < 1 else round(shortest)


def _has(spec: StudySpec, name: str) -> bool:
    return name in spec.server.flags or name in spec.space


def _has_more_flags(spec: StudySpec) -> bool:
    """Return whether the command has flags of its own, which are not read here."""
    return any(word.startswith("--") for word in spec.server.command or ())


def _element_bytes(spec: StudySpec) -> int:
    """Return the bytes of an element of the KV cache: 2, unless it may be of another type."""
    name = "kv_cache_dtype"
    given = spec.server.flags.get(name, "auto")
    return 2 if name not in spec.space and given in ("auto", "bfloat16", "float16") else 1


def _number(spec: StudySpec, name: str, choose: Callable[[list[float]], float]) -> float | None:
    """Return a flag's number, of a searched one the chosen of its values; None: there is none."""
    given: list[Any] = [spec.server.flags.get(name)]
    if (param := spec.space.get(name)) is not None:
        ends = [param.low, param.high] if isinstance(param, FloatParam) else param.values()
        given = list(ends or ())
    found = []
    for value in given:
        try:
            found.append(float(value))
        except (TypeError, ValueError):  # a word such as 4G
            continue
    return choose(found) if found else None


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
