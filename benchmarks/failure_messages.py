"""vLLM's own error messages that a launch can meet, and how many the classifier gets right.

    python -m benchmarks.failure_messages extract --source FOLDER --version 0.32.0 [--carry 0.27.0]
    python -m benchmarks.failure_messages score --version 0.32.0 [--wrong] [--write]
    python -m benchmarks.failure_messages show --version 0.32.0 [--unlabeled]

`extract` reads the Python source of an unpacked source distribution and writes
data/failure_messages/VERSION.json: one entry for each `raise X(message)` and `assert cond, message`
of the scope, with its place, its text and the process that raises it. Kinds are added by people who
read the place; a later `extract` keeps them, and `--carry` takes them over from another version
where file, function and text are the same. `score` writes each entry into a server's log, as the
API server, EngineCore or a worker would, and asks the classifier.

Scope: what the start of an OpenAI-compatible server that generates text on CUDA or CPU can raise.

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

import argparse
import ast
import builtins
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from benchmarks import failure_logs

DATA = Path(__file__).parent / "data" / "failure_messages"

_RUNTIME = re.compile(
    r"_?forward|_?apply(?!_block_size|_optim)|_?execute|_?sample|_?propose|add_request|_?add_adapter"
    r"|update_(weights|config|states|block_table)|(start|finish)_weight|_?(start|finish)_draft|_set_draft"
    r"|sleep|wake_up|_save_sleep|profile$|discard|(add|pin|remove|list)_(lora|adapter)|activate_adapter"
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
    Scope(f"{_LAYERS}/linear.py", "load_weights"),
    Scope(f"{_LAYERS}/vocab_parallel_embedding.py", "load_weights"),
    Scope(f"{_LAYERS}/activation.py", "model_init", _BUILT),
    Scope(f"{_LAYERS}/logits_processor.py", "profile_run"),
    Scope("model_executor/parameter.py", "load_weights"),
    Scope(f"{_LAYERS}/fused_moe/oracle/*.py", "model_init", _SELECTED),
    Scope(f"{_LAYERS}/fused_moe/layer.py", "model_init", _BUILT),
    Scope(f"{_LAYERS}/fused_moe/config.py", "model_init", _BUILT),
    Scope(f"{_LAYERS}/fused_moe/routed_experts.py", "load_weights"),
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
    Scope("model_executor/models/utils.py", "load_weights", r"(?!_merge)\w+"),
    Scope("model_executor/models/*eagle*.py", "load_model"),
    Scope("model_executor/models/*mtp*.py", "load_model"),
    Scope("model_executor/models/*dflash*.py", "load_model"),
    Scope("model_executor/models/*medusa*.py", "load_model"),
    Scope("model_executor/models/*dspark*.py", "load_model"),
    Scope("model_executor/models/*speculator*.py", "load_model"),
    Scope("model_executor/models/extract_hidden_states.py", "load_model"),
    Scope("models/*/nvidia/*mtp*.py", "load_model"),
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

_EXCLUDED_FUNCTIONS = ("random", "example", "dummy_input")


def scope_of(path: str) -> Scope | None:
    """Return the scope of a file, by its path below ``vllm/``."""
    found = next((s for s in SCOPES if fnmatchcase(path, s.files)), None)
    if found is None or path.startswith("platforms/"):
        return found
    return None if any(fnmatchcase("/" + path, p) for p in _NOT_FILES) else found


def _in_scope(scope: Scope, functions: Sequence[str]) -> bool:
    names = functions or ("<module>",)
    if any(_RUNTIME.match(n) for n in functions if n not in ("__call__",)):
        # what only attribute access can raise is out, except placeholders of missing packages
        return scope.files == "utils/import_utils.py" and functions[-1] == "__getattr__"
    if "__call__" in functions and scope.files != "compilation/cuda_graph.py":
        return False
    return scope.functions is None or any(re.fullmatch(scope.functions, n) for n in names)


class _Places(ast.NodeVisitor):
    """All raise and assert statements of a module, with the names around them."""

    def __init__(self) -> None:
        self.around: list[ast.AST] = []
        self.found: list[tuple[ast.Raise | ast.Assert, tuple[ast.AST, ...]]] = []

    def generic_visit(self, node: ast.AST) -> None:
        if isinstance(node, (ast.Raise, ast.Assert)):
            self.found.append((node, tuple(self.around)))
        named = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        if named:
            self.around.append(node)
        super().generic_visit(node)
        if named:
            self.around.pop()


def _text(node: ast.expr, names: dict[str, ast.expr]) -> str:
    """Return a message as a template, with expressions in braces."""
    match node:
        case ast.Constant(value=str() as text):
            return text.replace("{", "{{").replace("}", "}}")
        case ast.JoinedStr(values=values):
            return "".join(_text(v, names) for v in values)
        case ast.FormattedValue(value=value, conversion=conversion):
            return "{" + ast.unparse(value) + ("!r" if conversion == ord("r") else "") + "}"
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _text(left, names) + _text(right, names)
        case ast.BinOp(left=left, op=ast.Mod(), right=right):
            values = right.elts if isinstance(right, ast.Tuple) else [right]
            parts = re.split(r"%[-0-9.]*[sdrfxi]", _text(left, names))
            return _woven(parts, values)
        case ast.Call(func=ast.Attribute(value=ast.expr() as base, attr="format"), args=values):
            return _woven(re.split(r"\{\{[^{}]*\}\}", _text(base, names)), values)
        case ast.Call(func=ast.Attribute(attr="join")):
            return "{" + ast.unparse(node) + "}"
        case ast.Tuple(elts=[ast.expr() as first, *_]):
            return _text(first, names)
        case ast.Name(id=name) if name in names:
            return _text(names[name], {k: v for k, v in names.items() if k != name})
    return "{" + ast.unparse(node) + "}"


def _woven(parts: Sequence[str], values: Sequence[ast.expr]) -> str:
    text = parts[0]
    for i, part in enumerate(parts[1:]):
        text += "{" + (ast.unparse(values[i]) if i < len(values) else "value") + "}" + part
    return text


def _names(tree: ast.Module, function: ast.AST | None, line: int) -> dict[str, ast.expr]:
    """Return what the names of a module and of a function before a line were assigned to."""
    found: dict[str, ast.expr] = {}
    texts = (ast.Constant, ast.JoinedStr, ast.BinOp, ast.Call)
    nodes = [*tree.body, *(ast.walk(function) if function is not None else ())]
    for node in sorted(nodes, key=lambda n: getattr(n, "lineno", 0)):
        if not isinstance(node, ast.Assign) or node.lineno >= line:
            continue
        if isinstance(node.targets[0], ast.Name) and isinstance(node.value, texts):
            found[node.targets[0].id] = node.value
    return found


def _exception(node: ast.Raise | ast.Assert, imports: dict[str, str], module: str) -> str | None:
    """Return an exception's class as a traceback shows it; None: not a class that is called."""
    if isinstance(node, ast.Assert):
        return "AssertionError"
    if not isinstance(node.exc, ast.Call):
        return None
    name = ast.unparse(node.exc.func)
    head = name.split(".")[0]
    if name in _BUILTINS:
        return name
    if not re.fullmatch(r"[A-Za-z_.]+", name) or not name.split(".")[-1][0].isupper():
        return None
    return name.replace(head, imports.get(head, f"{module}.{head}"), 1)


_BUILTINS = {n for n in dir(builtins) if n[0].isupper()}


def _imports(tree: ast.Module) -> dict[str, str]:
    return {
        (a.asname or a.name): f"{node.module}.{a.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module is not None and not node.level
        for a in node.names
    } | {
        (a.asname or a.name): a.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for a in node.names
    }


def identity(file: str, function: str, template: str) -> str:
    """Return an entry's stable identity."""
    return hashlib.sha256(f"{file}\n{function}\n{template}".encode()).hexdigest()[:12]


def _entries(file: str, path: Path, scope: Scope, left: Counter[str]) -> Iterator[dict[str, Any]]:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    lines = source.splitlines()
    imports = _imports(tree)
    validated = failure_logs.validated(tree) if file.startswith("config/") else {}
    places = _Places()
    places.visit(tree)
    for node, around in places.found:
        functions = [f for f in around if not isinstance(f, ast.ClassDef)]
        names = [getattr(f, "name", "") for f in functions]
        if not _in_scope(scope, names) or any(w in n for n in names for w in _EXCLUDED_FUNCTIONS):
            continue
        exception = _exception(node, imports, "vllm." + file[:-3].replace("/", "."))
        message = node.msg if isinstance(node, ast.Assert) else None
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            message = node.exc.args[0]
        if exception is None or message is None:
            left["bare asserts" if isinstance(node, ast.Assert) else "raised without a text"] += 1
            continue
        outermost = functions[0] if functions else None
        template = _text(message, _names(tree, outermost, node.lineno))
        if not re.search(r"[A-Za-z]{3}", re.sub(r"\{[^{}]*\}", "", template.replace("{{", ""))):
            left["without fixed words"] += 1
            continue
        qualified = ".".join(getattr(a, "name", "") for a in around) or "<module>"
        owner = next((a.name for a in around if isinstance(a, ast.ClassDef)), None)
        yield {
            "id": identity(file, qualified, template),
            "file": file,
            "line": node.lineno,
            "class": owner,
            "function": qualified,
            "exception": exception,
            "template": template,
            "code": lines[node.lineno - 1].strip(),
            "process": failure_logs.process_of(file, names, owner, scope.step),
            "step": failure_logs.step_of(file, names, owner, scope.step),
            "validated": failure_logs.validated_as(file, names, owner, exception, validated),
            "kind": None,
            "unclear": None,
        }


def extract(source: Path, version: str, carry: Sequence[str] = ()) -> dict[str, Any]:
    """Return the entries of a version, with the labels that are known for them.

    Args:
        source: Folder of the unpacked source distribution.
        version: Version of vLLM.
        carry: Other versions whose labels are taken where the identity is the same.
    """
    root = source / "vllm"
    if not root.is_dir():
        raise SystemExit(f"error: {source} has no folder vllm: give a source distribution")
    labels: dict[str, dict[str, Any]] = {}
    for other in (*carry, version):
        if (DATA / f"{other}.json").exists():
            labels |= {e["id"]: e for e in read(other)["entries"] if e["kind"] or e["unclear"]}
    left: Counter[str] = Counter()
    entries: dict[str, dict[str, Any]] = {}
    for path in sorted(root.rglob("*.py")):
        file = path.relative_to(root).as_posix()
        if (scope := scope_of(file)) is not None:
            for entry in _entries(file, path, scope, left):
                if (known := labels.get(entry["id"])) is not None:
                    entry |= {"kind": known["kind"], "unclear": known["unclear"]}
                entries.setdefault(entry["id"], entry)
    return {
        "version": version,
        "left_out": dict(sorted(left.items())),
        "frames": failure_logs.frames(root),
        "entries": list(entries.values()),
    }


def read(version: str) -> dict[str, Any]:
    """Return the entries of a version, as they were written."""
    data: dict[str, Any] = json.loads((DATA / f"{version}.json").read_text(encoding="utf-8"))
    return data


def write(data: dict[str, Any]) -> Path:
    """Write the entries of a version, one a line."""
    head = {k: v for k, v in data.items() if k != "entries"}
    lines = ",\n  ".join(json.dumps(e, ensure_ascii=False) for e in data["entries"])
    start = json.dumps(head, indent=1, ensure_ascii=False)[:-2]
    text = f'{start},\n "entries": [\n  {lines}\n ]\n}}\n'
    DATA.mkdir(parents=True, exist_ok=True)
    target = DATA / f"{data['version']}.json"
    target.write_text(text, encoding="utf-8")
    return target


@dataclass(frozen=True)
class Answer:
    """What the classifier says of an entry."""

    entry: dict[str, Any]
    kind: str
    reason: str

    @property
    def right(self) -> bool:
        """Whether it is the kind of the label."""
        return self.kind == self.entry["kind"]


def answers(data: dict[str, Any]) -> list[Answer]:
    """Return what the classifier says of each entry's log."""
    from autotune.engine.failures import classify
    from autotune.errors import FailureKind

    found = []
    for entry in data["entries"]:
        log, exit_code = failure_logs.rendered(entry, data["frames"])
        cause = classify(
            log, exit_code=exit_code, default=FailureKind.CRASH, reason="the server ended"
        )
        found.append(Answer(entry, str(cause.kind), cause.reason))
    return found


def counts(found: Sequence[Answer]) -> dict[str, Any]:
    """Return right, wrong and unclear answers: in all, by labeled kind, and by process."""
    table: dict[str, Any] = {"all": Counter(), "kinds": {}, "processes": {}}
    for answer in found:
        entry = answer.entry
        word = "unclear" if entry["kind"] is None else "right" if answer.right else "wrong"
        table["all"][word] += 1
        table["kinds"].setdefault(entry["kind"] or "unclear", Counter())[word] += 1
        table["processes"].setdefault(entry["process"], Counter())[word] += 1
    total = table["all"]
    table["share_right"] = round(total["right"] / max(1, total["right"] + total["wrong"]), 4)
    for name in ("kinds", "processes"):
        table[name] = {k: dict(sorted(v.items())) for k, v in sorted(table[name].items())}
    table["all"] = dict(sorted(total.items()))
    return table


def _score(version: str, wrong: bool, keep: bool) -> None:
    data = read(version)
    found = answers(data)
    table = counts(found)
    share = f"{table['share_right']:.1%} of the clear ones right"
    print(f"vLLM {version}: {len(found)} messages, {share}")
    for name in ("kinds", "processes"):
        for key, row in table[name].items():
            words = ", ".join(f"{n} {w}" for w, n in row.items())
            print(f"  {name[:-1]:8} {key:15} {words}")
    for answer in found if wrong else ():
        e = answer.entry
        if e["kind"] is not None and not answer.right:
            print(f"{e['id']} {e['file']}:{e['line']} {e['function']} [{e['process']}]")
            print(f"    {e['exception']}: {e['template'][:300]}")
            print(f"    label {e['kind']}, answer {answer.kind}: {answer.reason[:200]}")
    print(f"unclear: {sum(a.entry['kind'] is None for a in found)}")
    for answer in found:
        e = answer.entry
        if e["kind"] is None and e["unclear"]:
            print(f"    {e['file']}:{e['line']}: {e['template'][:100]!r}: {e['unclear']}")
    if keep:
        target = DATA / "scores.json"
        scores = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
        scores[version] = table | {"left_out": data["left_out"]}
        target.write_text(json.dumps(scores, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _show(version: str, unlabeled: bool) -> None:
    file = function = None
    for e in read(version)["entries"]:
        if unlabeled and (e["kind"] or e["unclear"]):
            continue
        if e["file"] != file:
            print(f"== {e['file']}")
        if (e["file"], e["function"]) != (file, function):
            print(f" {e['function']} [{e['process']}, {e['step']}]")
        file, function = e["file"], e["function"]
        label = e["kind"] or (f"unclear: {e['unclear']}" if e["unclear"] else "")
        print(f"  {e['id']} {e['line']} {e['exception'].split('.')[-1]}: {e['template']!r} {label}")


def main(words: Sequence[str]) -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.failure_messages")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("extract", help="write the entries of a source distribution")
    one.add_argument("--source", type=Path, required=True, help="unpacked source distribution")
    one.add_argument("--carry", action="append", default=[], help="version whose labels are taken")
    two = commands.add_parser("score", help="count what the classifier gets right")
    two.add_argument("--wrong", action="store_true", help="show the wrong ones")
    two.add_argument("--write", action="store_true", help="keep the counts in scores.json")
    three = commands.add_parser("show", help="show the entries with their labels")
    three.add_argument("--unlabeled", action="store_true", help="only those without a label")
    for command in (one, two, three):
        command.add_argument("--version", required=True, help="version of vLLM")
    args = parser.parse_args(words)
    if args.command == "extract":
        data = extract(args.source, args.version, args.carry)
        target = write(data)
        print(f"{target}: {len(data['entries'])} entries; left out: {data['left_out']}")
    elif args.command == "score":
        _score(args.version, args.wrong, args.write)
    else:
        _show(args.version, args.unlabeled)


if __name__ == "__main__":
    main(sys.argv[1:])
