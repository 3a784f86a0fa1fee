"""Flags that vLLM has dropped, with what took their place, and hints for names that are not known.

A hint by spelling alone misleads: the nearest name of ``--disable-log-requests`` says the opposite.
So a flag that vLLM once had is looked up, and a name is guessed only if it is a slip of a few
letters. Sources: vLLM's release notes and ``vllm/engine/arg_utils.py`` of 0.6 to 0.33.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

_OFF = "it is off unless --enable-log-requests is given: leave it out"
_DRAFT = "write it as server.speculative"
_V0 = "it belonged to the V0 engine: leave it out"


@dataclass(frozen=True)
class Removed:
    """A flag that vLLM once had.

    Attributes:
        what: What to do about it, in words.
        successor: Flag that took its place, with underscores; None: there is none.
    """

    what: str
    successor: str | None = None


def _key(option: str, key: str) -> Removed:
    return Removed(f"write it as {option.replace('_', '-')}.{key}", option)


_STRUCTURED, _EPLB = "structured_outputs_config", "eplb_config"
_ADAPTERS = Removed("vLLM has no prompt adapters any more: leave it out")
_OUT = Removed("leave it out")
REMOVED: Mapping[str, Removed] = {
    # requests are logged only if asked for, since 0.10
    "disable_log_requests": Removed(_OFF),
    "enable_reasoning": Removed("reasoning-parser alone turns it on: leave it out"),
    "guided_decoding_backend": _key(_STRUCTURED, "backend"),
    "guided_decoding_disable_fallback": _OUT,
    "guided_decoding_disable_any_whitespace": _key(_STRUCTURED, "disable_any_whitespace"),
    "guided_decoding_disable_additional_properties": _key(
        _STRUCTURED, "disable_additional_properties"
    ),
    "num_scheduler_steps": Removed(_V0),
    "multi_step_stream_outputs": Removed(_V0),
    "scheduler_delay_factor": Removed(_V0),
    "preemption_mode": Removed(_V0),
    "num_lookahead_slots": Removed(_V0),
    "use_v2_block_manager": Removed(_V0),
    "disable_async_output_proc": Removed(_V0),
    "engine_use_ray": Removed(_V0),
    "worker_use_ray": Removed(
        "write distributed-executor-backend: ray", "distributed_executor_backend"
    ),
    "swap_space": Removed("nothing is swapped to the CPU any more: leave it out"),
    "device": Removed("an installed vLLM is for one kind of device: leave it out"),
    "task": Removed("write runner and convert, or leave it out to generate text", "runner"),
    "max_seq_len_to_capture": Removed("CUDA graphs have no such limit any more: leave it out"),
    "max_context_len_to_capture": Removed("CUDA graphs have no such limit any more: leave it out"),
    "cuda_graph_sizes": Removed("write it as cudagraph-capture-sizes", "cudagraph_capture_sizes"),
    "rope_scaling": Removed("write it as rope_parameters in hf-overrides", "hf_overrides"),
    "rope_theta": Removed("write it as rope_parameters in hf-overrides", "hf_overrides"),
    "enable_prompt_adapter": _ADAPTERS,
    "max_prompt_adapters": _ADAPTERS,
    "max_prompt_adapter_token": _ADAPTERS,
    "qlora_adapter_name_or_path": Removed("write it as lora-modules", "lora_modules"),
    "lora_extra_vocab_size": Removed("an adapter adds no tokens any more: leave it out"),
    "long_lora_scaling_factors": _OUT,
    "enable_lora_bias": _OUT,
    "override_neuron_config": Removed("vLLM for Neuron is a plugin of its own: leave it out"),
    "override_pooler_config": Removed("write it as pooler-config", "pooler_config"),
    "disable_mm_preprocessor_cache": Removed(
        "write mm-processor-cache-gb: 0", "mm_processor_cache_gb"
    ),
    "enable_multimodal_encoder_data_parallel": Removed(
        "write mm-encoder-tp-mode: data", "mm_encoder_tp_mode"
    ),
    "tokenizer_pool_size": _OUT,
    "tokenizer_pool_type": _OUT,
    "tokenizer_pool_extra_config": _OUT,
    "disable_frontend_multiprocessing": Removed(
        "the engine always has a process of its own: leave it out"
    ),
    "max_num_partial_prefills": Removed("prompts are prefilled together anyway: leave it out"),
    "max_long_partial_prefills": Removed(
        "write long-prefill-token-threshold, or leave it out", "long_prefill_token_threshold"
    ),
    "num_redundant_experts": _key(_EPLB, "num_redundant_experts"),
    "eplb_window_size": _key(_EPLB, "window_size"),
    "eplb_step_interval": _key(_EPLB, "step_interval"),
    "eplb_log_balancedness": _key(_EPLB, "log_balancedness"),
    "calculate_kv_scales": Removed("scales are read from the checkpoint: leave it out"),
    "quantization_param_path": Removed("scales are read from the checkpoint: leave it out"),
    "ngram_prompt_lookup_max": Removed(f"{_DRAFT}, with prompt_lookup_max"),
    "ngram_prompt_lookup_min": Removed(f"{_DRAFT}, with prompt_lookup_min"),
    "typical_acceptance_sampler_posterior_threshold": Removed(_V0),
    "typical_acceptance_sampler_posterior_alpha": Removed(_V0),
    "disable_logprobs_during_spec_decoding": Removed(_V0),
}
# A name is a slip if it is this similar (difflib's ratio, 0 to 1), apart from `enable_` and such.
_SLIP = 0.8
_SWITCH = re.compile(r"no_|(enable|disable)_")


def hint(name: str, options: Collection[str]) -> str:
    """Return what to write instead of a flag that vLLM does not have; empty: nothing is known.

    Args:
        name: The flag, with underscores.
        options: The flags that this vLLM has.
    """
    found = REMOVED.get(name) or REMOVED.get(name.removeprefix("no_"))
    if found is not None:
        there = found.successor is None or found.successor in options
        return f"; {found.what if there else _OUT.what}"
    if (opposite := _opposite(name)) in options:
        return f"; it has {opposite}, which says the opposite"
    close = difflib.get_close_matches(name, options, n=3, cutoff=_SLIP)
    close = [x for x in close if _is_slip(name, x)]
    return f"; did you mean {close[0]}?" if close else ""


def _opposite(name: str) -> str:
    """Return the name of the switch that turns off what a name turns on, or the reverse."""
    if name.startswith("disable_"):
        return name.replace("disable_", "enable_", 1)
    return name.replace("enable_", "disable_", 1)


def _is_slip(name: str, other: str) -> bool:
    """Return whether two names differ by a few letters of what they are about."""
    switches = [m[0] if (m := _SWITCH.match(x)) else "" for x in (name, other)]
    same = switches[0] == switches[1] or "" in switches
    a, b = name.removeprefix(switches[0]), other.removeprefix(switches[1])
    return same and difflib.SequenceMatcher(None, a, b).ratio() >= _SLIP
