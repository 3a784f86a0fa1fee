"""Which of vLLM's error messages a launch can meet: files and functions by the step of the start.

The scope is what a server's start can raise, if it generates text on CUDA or CPU.

- In: parsing of the arguments and of the configuration (engine/arg_utils, config/, launchers and
  cli), platforms/ (all of them: they refuse what they do not support), transformers_utils (files of
  a model, speculators format), choice of the attention backend and its construction, KV cache
  layout and size, scheduler, executors, start of EngineCore, workers and model runners with their
  warm-up, speculative decoding with its draft models and their registry, model loaders, choice and
  construction of quantization, of fused experts and of linear layers, torch.compile and CUDA
  graphs, process groups, LoRA managers, ports, NUMA, NCCL, and environment variables.
- Out, by path: what only a request can meet (parsers, renderers, multimodal input, sampling and
  pooling parameters), features that no study of this kind starts (KV, EC and weight transfer,
  offloading, elastic EP, expert rebalancing, snapshots, watermarks, pooling models, profiler, fault
  tolerance, engram, sleep mode), kernels and their wrappers in ops/, hardware other than CUDA and
  CPU (outside platforms/), target models' own code, tests and benchmarks.
- Out, by function: what runs for each request or step only (see `_RUNTIME`), what a subclass has to
  implement, and re-raised exceptions, which have no text of their own.
- Out, by text: messages without fixed words. They are counted, as are bare asserts.

Entries with the same text in the same function are one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

_RUNTIME = re.compile(
    r"_?forward|_?apply(?!_block_size|_optim)|_?execute|_?sample|_?propose|add_request|_?add_adapter"
    r"|update_(weights|config|states|block_table)|(start|finish)_weight|_?(start|finish)_draft|_set_draft"
    r"|_start_weight|sleep|wake_up|_save_sleep|profile$|discard|(add|pin|remove|list)_(lora|adapter)|activate_adapter"
    r"|(pause|resume)_scheduler|.*elastic|eep_|_eep|scale_(up|down)|reinitialize_distributed"
    r"|step|schedule$|_try_schedule|_preempt|_handle_invalid|allocate_slots|find_longest"
    r"|cache_blocks|__(getattr|getitem|setattr|setitem|delitem|sub)__|compute_hash"
    r"|(get|_get)_output|run_(prefill|fullgraph|decode)|_?pool$|_?pool_|_dummy_pooler|reset_"
    r"|_gather_mm|_bookkeeping|_update_states|_init_mrope|_copy_pooler|evict|get_new_blocks|popleft"
    r"|pop_request|peek_request|_relocate|add_local|_unexpected|append|prepend|remove$|get_all_free"
    r"|set_block_hash|get_unhashed|handle_client|_handle_client|call_utility|wait_for_requests"
    r"|release_kv|step_with|with_retry$|ubatch_forward|_replay|load_from_config|get_token_id|to_bytes|merge_lora"
    r"|broadcast|recv|send|irecv|isend|all_gather|all_reduce|_all_|_reduce|reduce_scatter|gather"
    r"|reload|save_|moe_sum|dequantize|_sm100|_run_masked|_compute_prefill|_compute_context"
    r"|override_weights|_warn|expect$|get_metrics|log_metrics|make_zmq|_dispatch_decode"
    r"|stage_postprocess|begin_capturable|register_oot|_raise_exception|build_pcp|gathered_prefill"
    r"|register|set_model_tag|get_\w+_group$|_register|get_\w*_dp_group$|compute_logits|cls_decorator"
    r"|get_inner|get_attention_context|copy_kv|slice_|_slice_|shutdown|compile_all|load_all"
    r"|bytecode_hook|patched_|_collective|collective_rpc|result$|startup_handshake$|get_response"
    r"|_try_promote|stage_mamba|_init_xdrope|_get_external_eep|compute_fly"
    r"|select_transfer|_check_weight_transfer|_reset_caches|_wait_for_new|get_pooling_task"
    r"|combine_sampled|_pp_broadcast|update_token_ids|set_inputs_first|rejection_sample"
    r"|_check_worker_profile|get_model$|_ensure_lora|_wait_for_new_engine"
    r"|convert_to_unpacked|_normalize_lse|fast_plan|update_dynamic|raise_if_nan"
)
"""Functions (as a prefix of the name) that no start of a server runs."""

_NOT_FILES = (
    "*rocm*", "*xpu*", "*aiter*", "*tpu*", "*hpu*", "*/hpc*", "*moonep*", "*/amd/*", "*quark*",
    "*flydsl*", "*inc/*", "*elastic*", "*eplb*", "*watermark*", "*kv_connector*", "*/pool/*",
    "*pooler*", "*/ec_*", "*engram*", "*kv_transfer*", "*kv_events*", "*weight_transfer*",
    "*profiler*", "*offload*", "*fault_tolerance*", "*speech_to_text*", "*snapshot*", "*mooncake*",
    "*nixl*", "*aux_output*", "*mm_encoder_model_runner*", "*/render/*", "*run_batch*", "*/ops/*",
    "*diffusion*", "*lora/request*", "*lora/resolver*", "*lora/lora_weights*", "*test*",
    "*pcp_manager*", "*extract_hidden_states*", "*encoder_cudagraph*", "*vllm_net_devices*",
    "*dp_supervisor*", "*/ray_executor*", "*weight_cache*", "*checkpoint_weight_patch*",
    "*tensorizer*", "*runai*", "*sharded_state*", "*ep_weight*", "*sparse*", "*mla/indexer*",
    "*tokenspeed*", "*cutlass_mla*", "*b12x*", "*diffkv*", "*modelopt_block*", "*moe_wna16*",
    "*fp_quant*", "*humming*", "*/online/*", "*turboquant*", "*fbgemm*", "*experts_int8*",
    "*qutlass*", "*lilicorr*", "*sagemaker*", "*k3_dspark*", "*bailing*", "*minimax_linear*",
    "*/kimi_gdn*", "*/olmo_gdn*", "*step3p5*", "*hy_v4*", "*inkling*", "*replayssm*",
    "*/workspace.py", "*/transform/*", "*mm_encoder_attention*", "*eagle2_5_vl*", "*mm/encoder*",
    "*encoder_decoder*", "*encoder_only*", "*cross_attention*", "*prefill_prefix*", "*short_conv*",
    "*linear_attn.py/*", "*backends/linear_attn*", "*model_states/encoder*", "*ubatch*",
    "*experts_int*", "*minimax*", "*kimi_k3*", "*qwen4_exp*", "*deepseek_v4*", "*deepseek_v32*",

)  # fmt: skip


@dataclass(frozen=True)
class Scope:
    """A part of vLLM that a launch runs.

    Attributes:
        files: Pattern of the paths below ``vllm/``; the first scope that matches decides.
        step: Step of the start that runs it, a key of :data:`failure_logs.STEPS`.
        functions: Names of the functions to take, as a pattern for the whole name; None: all that
            are not of the run time.
    """

    files: str
    step: str
    functions: str | None = None


_BUILT = (
    r"__init__|__post_init__|_?get_\w+|supports_\w+|customize_spec|_?build\w*|_?validate\w*"
    r"|_?check\w*|_?resolve\w*|_maybe_\w+|process_weights_after_loading|_?init\w*|create\w*"
    r"|from_\w+|override_\w+|_?verify\w*|_?normalize\w*|_?select\w*|make_\w+|dsa_\w+"
    r"|_return_or_raise|_raise_if\w*|set_\w+|_setup\w*|_?parse\w*|_quantization_scheme_map\w*"
)
"""Functions that build a layer, a backend or a quantization method."""
_SELECTED = r"_?select\w*|_return_or_raise|_validate\w*"
_NOT_RAY = r"(?!create_dp_placement|add_dp|_dp_nodes|_get_bundle)\w+"
_LAYERS = "model_executor/layers"
_QUANT = f"{_LAYERS}/quantization"
_COMM = "distributed/device_communicators"

SCOPES = (
    Scope("envs.py", "arguments", r"_get_validated\w*|get_vllm_port|_resolve\w*"),
    Scope("engine/arg_utils.py", "engine_arguments"),
    Scope("utils/argparse_utils.py", "arguments"),
    Scope("entrypoints/launchers/cli_args.py", "arguments"),
    Scope("entrypoints/launchers/launcher.py", "arguments", r"validate\w*|setup\w*"),
    Scope("entrypoints/launchers/grpc_server.py", "arguments"),
    Scope("entrypoints/openai/cli_args.py", "arguments"),
    Scope("entrypoints/openai/api_server.py", "arguments", r"validate\w*|setup\w*|create_\w+"),
    Scope("entrypoints/launchers/dp_supervisor.py", "arguments"),
    Scope("entrypoints/cli/serve.py", "arguments"),
    Scope("entrypoints/cli/main.py", "arguments"),
    Scope("config/speculative.py", "speculative_config"),
    Scope("config/*.py", "engine_config"),
    Scope("platforms/*.py", "engine_config"),
    Scope("transformers_utils/configs/speculators/*.py", "model_config"),
    Scope("transformers_utils/config.py", "model_config"),
    Scope("transformers_utils/config_parser_base.py", "model_config"),
    Scope("transformers_utils/configs/eagle.py", "model_config"),
    Scope("transformers_utils/model_arch*.py", "model_config"),
    Scope("transformers_utils/repo_utils.py", "model_config"),
    Scope("transformers_utils/__init__.py", "model_config"),
    Scope("plugins/__init__.py", "arguments"),
    Scope("v1/engine/core.py", "engine"),
    Scope("v1/engine/core_client.py", "engine_client"),
    Scope("v1/engine/utils.py", "engine_client", _NOT_RAY),
    Scope("v1/engine/coordinator.py", "engine_client"),
    Scope("v1/utils.py", "engine_client", r"wait_for\w*"),
    Scope("v1/executor/ray_executor.py", "engine"),
    Scope("v1/executor/ray_utils.py", "engine", r"assert_\w+|initialize\w*|_wait\w*|_verify\w*"),
    Scope("v1/executor/*.py", "engine"),
    Scope("v1/core/sched/scheduler.py", "scheduler"),
    Scope("v1/core/sched/*.py", "scheduler"),
    Scope("v1/core/kv_cache_utils.py", "kv_cache"),
    Scope("v1/core/kv_cache_planning.py", "kv_cache"),
    Scope("v1/core/*.py", "scheduler"),
    Scope("v1/kv_cache_interface.py", "kv_cache"),
    Scope("v1/kv_cache_layout.py", "kv_cache"),
    Scope("v1/kv_cache_spec_registry.py", "kv_cache"),
    Scope("v1/metrics/loggers.py", "engine_client"),
    Scope("v1/metrics/buckets.py", "engine_client"),
    Scope("v1/metrics/ray_wrappers.py", "engine_client", r"__init__"),
    Scope("v1/structured_output/__init__.py", "scheduler", r"__init__"),
    Scope("v1/sample/logits_processor/__init__.py", "load_model", r"_load\w*|build\w*"),
    Scope("v1/sample/ops/topk_topp_sampler.py", "load_model", r"__init__|flashinfer\w*"),
    Scope("v1/sample/rejection_sampler.py", "load_model", r"__init__"),
    Scope("v1/cudagraph_dispatcher.py", "capture"),
    Scope("v1/spec_decode/dynamic/*.py", "engine_config"),
    Scope("v1/spec_decode/*.py", "load_model"),
    Scope("v1/worker/gpu/spec_decode/**", "load_model"),
    Scope("v1/worker/gpu/sample/**", "load_model", r"_load\w*|build_custom_logits_processors"),
    Scope("v1/worker/gpu/cudagraph_utils.py", "capture"),
    Scope("v1/worker/gpu/**", "kv_init"),
    Scope("v1/worker/gpu_worker.py", "init_device"),
    Scope("v1/worker/cpu_worker.py", "init_device"),
    Scope("v1/worker/worker_base.py", "init_device"),
    Scope("v1/worker/workspace.py", "init_device"),
    Scope("v1/worker/encoder_cudagraph.py", "capture", "__init__"),
    Scope("v1/worker/cp_utils.py", "kv_init"),
    Scope("v1/worker/utils.py", "kv_init"),
    Scope("v1/worker/block_table.py", "kv_init"),
    Scope("v1/worker/mamba_utils.py", "kv_init"),
    Scope("v1/worker/lora_model_runner_mixin.py", "load_model"),
    Scope("v1/worker/gpu_model_runner.py", "kv_init"),
    Scope("v1/worker/cpu_model_runner.py", "load_model"),
    Scope("v1/worker/gpu_input_batch.py", "kv_init", "__init__"),
    Scope("v1/attention/selector.py", "model_init"),
    Scope("v1/attention/backends/**", "model_init", _BUILT),
    Scope(f"{_LAYERS}/attention/*.py", "model_init", _BUILT),
    Scope(f"{_LAYERS}/mamba/**", "model_init", _BUILT),
    Scope(f"{_LAYERS}/rotary_embedding/__init__.py", "model_init"),
    Scope(f"{_LAYERS}/linear.py", "draft_weights"),
    Scope(f"{_LAYERS}/vocab_parallel_embedding.py", "draft_weights"),
    Scope(f"{_LAYERS}/activation.py", "model_init", _BUILT),
    Scope(f"{_LAYERS}/logits_processor.py", "profile_run"),
    Scope("model_executor/parameter.py", "draft_weights"),
    Scope(f"{_LAYERS}/fused_moe/oracle/*.py", "model_init", _SELECTED),
    Scope(f"{_LAYERS}/fused_moe/layer.py", "model_init", _BUILT),
    Scope(f"{_LAYERS}/fused_moe/config.py", "model_init", _BUILT),
    Scope(f"{_LAYERS}/fused_moe/routed_experts.py", "draft_weights"),
    Scope(f"{_LAYERS}/fused_moe/expert_map_manager.py", "model_init", _BUILT),
    Scope(f"{_QUANT}/__init__.py", "engine_config"),
    Scope(f"{_QUANT}/utils/marlin_utils.py", "model_init", r"verify\w*|get_marlin\w*"),
    Scope(f"{_QUANT}/utils/gptq_utils.py", "engine_config"),
    Scope(f"{_QUANT}/utils/fp8_utils.py", "model_init", r"validate\w*"),
    Scope(f"{_QUANT}/utils/quant_utils.py", "model_init", r"is_layer\w*"),
    Scope(f"{_QUANT}/utils/**", "model_init", r"verify\w*|validate\w*"),
    Scope(f"{_QUANT}/**", "model_init", _BUILT),
    Scope("model_executor/model_loader/**", "load_weights"),
    Scope("model_executor/models/registry.py", "model_config"),
    Scope("model_executor/models/config.py", "engine_config"),
    Scope("model_executor/models/utils.py", "draft_weights", r"(?!_merge)\w+"),
    Scope("model_executor/models/*eagle*.py", "draft_init"),
    Scope("model_executor/models/*mtp*.py", "draft_init"),
    Scope("model_executor/models/*dflash*.py", "draft_init"),
    Scope("model_executor/models/*medusa*.py", "draft_init"),
    Scope("model_executor/models/*dspark*.py", "draft_init"),
    Scope("model_executor/models/*speculator*.py", "draft_init"),
    Scope("models/*/nvidia/*mtp*.py", "draft_init"),
    Scope("model_executor/utils.py", "load_weights"),
    Scope("model_executor/custom_op.py", "model_init", r"__new__|default_on|enabled"),
    Scope("compilation/backends.py", "profile_run"),
    Scope("compilation/compiler_interface.py", "profile_run"),
    Scope("compilation/decorators.py", "profile_run"),
    Scope("compilation/wrapper.py", "profile_run"),
    Scope("compilation/piecewise_backend.py", "profile_run"),
    Scope("compilation/cuda_graph.py", "capture", r"__call__"),
    Scope("compilation/monitor.py", "profile_run"),
    Scope("distributed/parallel_state.py", "init_device"),
    Scope("distributed/utils.py", "init_device", r"(?!barrier)\w+"),
    Scope(f"{_COMM}/pynccl*.py", "init_device", r"__init__|_?check\w*|NCCL_CHECK"),
    Scope(f"{_COMM}/shm_broadcast.py", "engine", r"__init__|wait_until_ready|create\w*"),
    Scope(f"{_COMM}/base_device_communicator.py", "init_device", r"__init__"),
    Scope(f"{_COMM}/cuda_communicator.py", "init_device", r"__init__"),
    Scope(f"{_COMM}/custom_all_reduce.py", "init_device", r"__init__"),
    Scope("lora/model_manager.py", "load_model", r"__init__|create\w*|_create\w*|register_module"),
    Scope("lora/worker_manager.py", "load_model", r"__init__|create\w*"),
    Scope("lora/peft_helper.py", "load_model"),
    Scope("utils/deep_gemm.py", "model_init", r"_missing\w*"),
    Scope("utils/flashinfer.py", "model_init", r"_missing\w*"),
    Scope("utils/hashing.py", "arguments"),
    Scope("utils/import_utils.py", "load_model", r"__getattr__|import_from_path|check\w*"),
    Scope("utils/mem_utils.py", "init_device"),
    Scope("utils/nccl.py", "init_device"),
    Scope("utils/network_utils.py", "engine_client"),
    Scope("utils/numa_utils.py", "engine_client"),
    Scope("utils/ompmultiprocessing.py", "engine_client"),
    Scope("utils/torch_utils.py", "kv_init", r"get_kv\w*|guard\w*"),
)  # fmt: skip


def scope_of(path: str) -> Scope | None:
    """Return the scope of a file, by its path below ``vllm/``."""
    found = next((s for s in SCOPES if fnmatchcase(path, s.files)), None)
    if found is None or path.startswith("platforms/"):
        return found
    return None if any(fnmatchcase("/" + path, p) for p in _NOT_FILES) else found


def takes(scope: Scope, functions: Sequence[str]) -> bool:
    """Return whether a place is in a scope, by the functions around it, outermost first."""
    names = functions or ("<module>",)
    if any(_RUNTIME.match(n) for n in functions if n not in ("__call__",)):
        # what only attribute access can raise is out, except placeholders of missing packages
        return scope.files == "utils/import_utils.py" and functions[-1] == "__getattr__"
    if "__call__" in functions and scope.files != "compilation/cuda_graph.py":
        return False
    return scope.functions is None or any(re.fullmatch(scope.functions, n) for n in names)
