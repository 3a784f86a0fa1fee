"""vLLM's own refusals, told from its text and the place where it was raised.

What vLLM raises while it starts is either a refusal (a flag, a combination, a model or a draft that
it does not serve), which every further launch repeats, or an invariant of its own code that broke.
Their texts differ in style: a refusal says what is supported, required or to be set, an invariant
says what was not to happen. Refusals raise ValueError or NotImplementedError, invariants assert;
so an assertion counts as a refusal only if it speaks to the user.

The words were found in the messages of vLLM 0.32 (``benchmarks/failure_messages.py``).
"""

from __future__ import annotations

import re

from autotune.engine.log_lines import Frame, Raised
from autotune.errors import FailureKind

# Places of drafts: proposers, draft models, and what loads them
_DRAFT_FILE = re.compile(
    r"spec_decode/|models/\w*(?:eagle|dflash|dspark|medusa|mlp_speculator|mtp)\w*\.py|"
    r"transformers_utils/configs/(?:speculators/|eagle)"
)
_DRAFT_CODE = re.compile(r"\b(?:drafter|speculator|proposer|draft_model)\b.*load_model")
# Words of a checkpoint that does not fit, at the place of a draft
_MISFIT = re.compile(
    r"(?i)size of tensor|config\.json|"
    r"draft (?:model )?config|checkpoint|weights?\b|vocab|embed|lm_head|"
    r"hidden[_ ](?:size|feature)|mask_(?:hidden|token|embedding)|layer_types|num_chunks|"
    r"target_layer_ids|n_shared_experts|conv_group_size|window size|MTP layer|stages|Pattern char|"
    r"same (?:RoPE|attn|kv cache group)|uniform|unk_token_id|model_type .* (?:Eagle|PEagle)|"
    r"speculators?[ _-](?:config|format)|proposal method|transformer_layer_config|"
    r"EAGLE-?3 interface|multimodal models|M-?RoPE|[Tt]arget model does not have"
)
# … and words of a setting there
_SETTING = re.compile(
    r"(?i)speculative_config|--\w|\bplease\b|tensor_parallel_size|model runner|V2\b|"
    r"not supported|unknown (?:speculative|method)|requires? the|custom proposer|pipeline parallel|"
    r"use_\w+ is enabled|adaptive verification"
)
# What a device or its communication library reports through vLLM's own wrappers
_OF_DEVICE = re.compile(r"(?:\w*CCL|CUDA(?:RT)?|HIP|XPU|NPU|HPU|MUSA|ACL|Triton) [Ee]rror\b")
_ABOUT_DRAFT = re.compile(r"(?i)speculative|dspark|\bMTP\b|draft")
# A draft that does not fit, in the words of the configuration
_MISFIT_CONFIG = re.compile(
    r"(?i)draft\w* (?:config|checkpoints?|vocab_size|hidden_size|target_hidden_size|\S+) (?:must|"
    r"should)|\bin the draft config|draft config\b|target_layer_ids|markov|sample_from_anchor|"
    r"same vocabulary size|does not contain MTP|classic-MTP|standalone draft checkpoint|"
    r"target thinker|use_aux_hidden_state|mtp_layer_types|(?:draft\w*|DSpark) (?:input )?vocab|"
    r"draft input vocabulary|native MTP checkpoint|draft\b.*\b(?:mismatch|does not match|"
    r"not compatible)"
)
# Functions that take weights into a model
_LOADS = re.compile(
    r"load_weights|\w*weight_loader|_load_(?:param|module|\w*weight\w*)|_build_fused\w*"
)
# What speaks to the user
_USER = re.compile(
    r"(?i)\bsupport(?:s|ed)?\b(?! for the same)|\brequires?\b|(?<!\w)--\w|\bplease\b|\buse \S|"
    r"\bdivisible\b|\bincompatible\b|\bonly\b.*\bimplemented|not implemented for|"
    r"\bset \S+(?:=|to )|\bmust be (?:one of|a |an |in |between|>|<|greater|non-negative|equal|"
    r"less)|\bneeds?\b|\binvalid (?:kv_cache_dtype|attention)|\bnot (?:valid|available|allowed|"
    r"enough)"
    r"|\bexceeds?\b|\bunsupported\b|\bcannot (?:use|be used)|\bmust divide\b|"
    r"VLLM_\w+|config_?\w*\.\w+|_config\b|match(?:es)? (?:local )?world|out of bounds|chunked"
)
# What only the code says to itself, wherever it stands
_INTERNAL = re.compile(
    r"\bby this point\b|must be present for|\b(?:is|are) not a(?:n? class| dataclass| class)\b|"
    r"\bobject was not a class|[Dd]uplicate layer name|not be reached|(?<![\w.-])_[a-z]\w+|"
    r"\bdied\b|^Executor failed|[Dd]id not receive (?:a )?response|"
    r"failed during (?:startup|engine)|failed to report|initialization failed|"
    r"\bunexpected (?:data parallel|\w+ message)|\b\w+ message from\b|normalize_value|"
    r"get_hash_factors|[Uu]nsupported type\b|should be checked|"
    r"of the same type\. [Gg]ot|(?:is|should) not (?:be )?None|must be set after|"
    r"varies across|not multimodal\.$|is an override but|not found in \w+\.$|"
    r"has not been resolved|(?:called|used) (?:outside|only|via)|only be called"
)
# … and where it is not about what a user wrote
_INVARIANT = re.compile(
    r"(?i)must be set(?: by| for| when| after| to create|,|\.?$)|\bto be set$|should be set|"
    r"(?:has|have) not been |\b(?:is|are|was|were) not (?:set|initialized|created|opened|enabled|"
    r"assigned)\b|\balready\b|\bshould (?:not|never|only) be\b|\bshould (?:support|agree)\b|"
    r"\bshould be (?:called|handled|tested|attached|merged)|\bmust be (?:provided|called|supplied|"
    r"handled|registered by|positive|non-empty|int\d+|equal to the \w+ \()|must supply|"
    r"(?:cannot|can't|not|only) be None|\bto be None|\bshard[_ ]id\b|is required (?:to|for the)|"
    r"\bassumes?\b|\bdisagree|\bmust (?:share|need)\b|not a multiple of|\bbuffers?\b(?!_)|"
    r"register it using|\bNo (?:manager|worker|module in)\b|\bAccessing\b|has been deleted|"
    r"Overwriting|conflicting values|\bmismatch in\b|\bdifferent across\b|are different during|"
    r"\bexpected (?:at least|number|model instance|multimodal|literal|3D|it to be|device)|"
    r"\bexpected '\w+' device|Failed to (?:compile the graph|get the file path)|"
    r"no \w+_value metadata|\bunknown (?:kv cache spec|process_kind|shard|supported size|"
    r"approximate)|\billegal\b|has changed since|called with|reusing a|"
    r"\binvalid (?:cudagraph runtime|device|zmq|custom op syntax)|cannot be zero|\bin the layer\b|"
    r"must be > 0|\bNo (?:allowed|matching) cudagraph|\bcompilation mode (?:cannot be|is set)|"
    r"caching is not supported|currently disabled|compilation occurred|positional argument|"
    r"exactly one of|dynamic dimensions|inconsistent with|\bdata dimension|"
    r"lead to incorrect|loading partition|will never|at least one cacheable|\b[a-z]\w+\(\)|"
    r"must have the same length|length \(\d*.*\) must match|placement groups must|"
    r"requires (?:\w+_\w+|limit) to be set|requires [a-z]+(?:_[a-z]+)+\.|requires "
    r"[a-z]+(?:_[a-z]+){2,}$|match mode|names? was not|deprecated attribute|"
    r"\b(?:integers?|elem_type)\b.*\bcontain|should (?:only )?contain (?:one|most)|"
    r"only supports 2D|output dim must|currently doesn't support|quant method must|"
    r"must be \[|scale ?s? are supported for dynamic|must be greater than 1$|"
    r"\bin the same KV cache group\b|must divide into|outside the page tail|"
    r"block type:|model version:|got query lengths"
)
# Places that only vLLM's own code talks to; a refusal there says what to do
_PLUMBING = re.compile(
    r"^(?:v1/worker/(?:block_table|mamba_utils|utils|gpu/(?:buffer|dp)_utils)\.py|"
    r"model_executor/(?:parameter|custom_op|utils)\.py|v1/kv_cache_(?:interface|spec_registry)\.py|"
    r"distributed/parallel_state\.py|config/utils\.py|v1/cudagraph_dispatcher\.py|"
    r"compilation/(?:backends|piecewise_backend|monitor|decorators|compiler_interface)\.py|"
    r"utils/(?:import|mem)_utils\.py)"
)
_ADVICE = re.compile(
    r"(?i)(?<!\w)--\w|\bplease\b|VLLM_\w+|\bset \w+=|not (?:yet )?support|does not support|"
    r"\bconsider\b|\brequires?\b|_config\b|\bremove \w+|custom_ops|Compilation\w+\b|compile_sizes "
    r"contains|No common block size|needs \S+-token|does not store|no longer supported"
)
# Where what the user wrote is read
_CONFIGURES = re.compile(
    r"^(?:config/|config\.py|engine/arg_utils|entrypoints/|utils/argparse|transformers_utils/config|"
    r"model_executor/models/config|platforms/)"
)
_VALIDATES = frozenset({"create_engine_config", "create_speculative_config", "create_model_config"})
# What Python raises where weights or a configuration have not what the code takes from them
_UNFIT = frozenset({"KeyError", "IndexError", "TypeError"})
_REFUSES = frozenset({"ValueError", "NotImplementedError", "DeprecationWarning", "ValidationError"})
_MAY_REFUSE = frozenset(
    {"RuntimeError", "TypeError", "KeyError", "IndexError", "AttributeError", "Exception",
     "ImportError", "FileNotFoundError", "OSError"}
)  # fmt: skip
# Functions of a server that has started …
_SERVING = frozenset({"run_busy_loop", "execute_model", "sample_tokens", "step_with_batch_queue"})
# … which its start runs, too
_WARMUP = frozenset(
    {"profile_run", "_dummy_run", "determine_available_memory", "compile_or_warm_up_model",
     "capture_model", "warmup_kernels", "_initialize_kv_caches", "load_model", "init_device"}
)  # fmt: skip


def in_draft(raised: Raised) -> bool:
    """Return whether an exception was raised where a draft is loaded, built or run."""
    return any(
        (f.in_vllm is not None and _DRAFT_FILE.search(f.in_vllm)) or _DRAFT_CODE.search(f.code)
        for f in raised.frames
    )


def loads_weights(raised: Raised) -> bool:
    """Return whether an exception was raised while weights were taken into a model."""
    return any(map(_LOADS.fullmatch, raised.functions))


def kind_of(raised: Raised, text: str) -> FailureKind | None:
    """Return the kind of a refusal; None: it is none, or the exception is not vLLM's.

    Args:
        raised: The exception.
        text: Its whole text in one line.
    """
    place = raised.innermost
    if place is None and raised.frames == ():
        return None
    if not raised.text and not text:
        return _bare(raised, place)
    if _OF_DEVICE.match(text):
        return None
    drafts = in_draft(raised)
    if drafts and loads_weights(raised) and raised.name != "RuntimeError":
        own = _INVARIANT.search(text) is not None and _MISFIT.search(text) is None
        return None if own else FailureKind.DRAFT_MISMATCH
    if raised.name in _UNFIT and _starts(raised) and not _INVARIANT.search(text):
        if drafts:
            return FailureKind.DRAFT_MISMATCH
        if loads_weights(raised):
            return FailureKind.BAD_CONFIG
    if drafts and _MISFIT.search(text) and not _INTERNAL.search(text) and not _SETTING.search(text):
        return FailureKind.DRAFT_MISMATCH
    if not _is_refusal(raised, text, place):
        return None
    if drafts:
        return _of_draft(text)
    path = "" if place is None else place.in_vllm or ""
    if _ABOUT_DRAFT.search(path + text) and _MISFIT_CONFIG.search(text):
        return FailureKind.DRAFT_MISMATCH
    return FailureKind.BAD_CONFIG


def _of_draft(text: str) -> FailureKind:
    if _SETTING.search(text) and not re.search(
        r"config\.json|checkpoint|EAGLE3 interface|speculators-format", text
    ):
        return FailureKind.BAD_CONFIG
    return FailureKind.DRAFT_MISMATCH if _MISFIT.search(text) else FailureKind.BAD_CONFIG


def _bare(raised: Raised, place: Frame | None) -> FailureKind | None:
    """Return the kind of an exception without a text: the same launch fails there again."""
    if place is None or raised.frames[-1] is not place or not _starts(raised):
        return None
    if raised.name not in {"AssertionError", "NotImplementedError"}:
        return None
    return FailureKind.DRAFT_MISMATCH if in_draft(raised) else FailureKind.BAD_CONFIG


def _starts(raised: Raised) -> bool:
    """Return whether an exception was raised while the server started."""
    return not raised.functions & _SERVING or bool(raised.functions & _WARMUP)


def _is_refusal(raised: Raised, text: str, place: Frame | None) -> bool:
    path = "" if place is None else place.in_vllm or ""
    if _INTERNAL.search(text):
        return False
    written = _CONFIGURES.match(path) is not None or bool(raised.functions & _VALIDATES)
    if not written and _INVARIANT.search(text) and not re.search(r"\buse_\w+ is enabled", text):
        return False
    speaks = _USER.search(text) is not None
    if _PLUMBING.match(path) is not None:
        return _ADVICE.search(text) is not None
    if not _starts(raised) or (raised.name == "AssertionError" and not written):
        return speaks and place is not None
    if raised.name in _REFUSES or raised.name == "AssertionError":
        return place is not None or speaks
    if raised.name in _MAY_REFUSE and place is not None:
        own = raised.frames[-1] is place  # else a library raised it
        return speaks or (own and place.code.startswith("raise "))
    return False
