"""Ask one vLLM's own configuration code whether settings start. A script, run in its own process.

It reads a JSON object from stdin: ``source`` (folder that has the package ``vllm``), ``version``,
``platform`` (``cpu`` or ``cuda``), ``gpu`` (its name, memory in bytes and compute capability),
``models`` (name → ``config.json``) and ``groups`` (lists of settings with what each is about). It
answers with JSON on stdout; what vLLM prints goes to stderr.

No server is started: settings become flags, vLLM's own parser reads them, and
``EngineArgs.create_engine_config()`` makes the configuration, as ``vllm serve`` does first. What
vLLM checks only later, when it makes the scheduler or the KV cache, is asked by calling that check:
see ``_late``.

Nothing of vLLM is compiled here. What stands in for something:

- ``vllm._version``, which a build writes; the version text is ``X+cpu`` for a CPU, so that vLLM
  chooses its platform for CPUs, and ``X`` for a GPU;
- compiled modules (``vllm._C`` and others): empty modules; what a module asks of their operators
  when it is imported (whether the GPU has FP8 kernels) is answered with yes;
- the compiler's passes for a GPU, which name such operators: an empty class;
- the process that vLLM inspects a model's class in: the class is imported here instead;
- torchvision, torchaudio, torchcodec: hidden, for a build for another torch breaks the import;
  and Ray, which no setting here needs;
- ``has_arctic_inference`` (for suffix decoding): says yes;
- a GPU (``platform: cuda (faked)``): vLLM's class of CUDA without NVML, which answers as the GPU
  that is asked about; Triton is taken as available.
"""

from __future__ import annotations

import gc
import importlib.abc
import importlib.machinery
import importlib.metadata
import json
import os
import pickle
import re
import sys
import tempfile
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

_COMPILED = re.compile(r"vllm\.(_\w*C\w*|_rs|_rust\w*|.*\._C|vllm_flash_attn\._\w+)$")


class _Compiled(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers the import of a compiled module with an empty one."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if not _COMPILED.match(fullname):
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return types.ModuleType(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Leave it empty."""


def stand_in(source: str, version: str, platform: str, gpu: Mapping[str, Any]) -> None:
    """Let ``vllm`` be imported from a folder of Python source, with nothing compiled.

    Args:
        source: Folder that has the package ``vllm``.
        version: Version such as ``0.33.0``.
        platform: ``cpu`` or ``cuda``.
        gpu: Name, memory in bytes and compute capability of a GPU.
    """
    for name in ("torchvision", "torchaudio", "torchcodec", "ray"):
        sys.modules[name] = None  # type: ignore[assignment]
    text = version + ("+cpu" if platform == "cpu" else "")
    made = types.ModuleType("vllm._version")
    numbers = tuple(int(x) for x in re.findall(r"\d+", version)[:3])
    made.__dict__.update(
        __version__=text, version=text, __version_tuple__=numbers, version_tuple=numbers
    )
    sys.modules["vllm._version"] = made
    installed = importlib.metadata.version
    importlib.metadata.version = lambda name: text if name == "vllm" else installed(name)
    sys.path.insert(0, source)
    sys.meta_path.append(_Compiled())
    if platform == "cuda":
        _fake_gpu(gpu)
    from vllm.utils import import_utils

    import_utils.has_arctic_inference = lambda: True
    if platform == "cuda":
        from vllm import _custom_ops

        for name in [x for x in vars(_custom_ops) if "_supports_" in x]:
            setattr(_custom_ops, name, lambda *_: True)
        passes = types.ModuleType("vllm.compilation.passes.pass_manager")
        passes.__dict__.update(PostGradPassManager=object)
        sys.modules[passes.__name__] = passes
    from vllm.model_executor.models import registry

    lazy, inspected = registry._LazyRegisteredModel, {}

    def inspect(self: Any) -> Any:
        key = (self.module_name, self.class_name)
        if key not in inspected:
            inspected[key] = registry._ModelInfo.from_model_cls(self.load_model_cls())
        return inspected[key]

    lazy.inspect_model_cls = inspect
    _read_once()


def _read_once() -> None:
    """Let a model's ``config.json`` be read once: thousands of settings stand on each."""
    from transformers import PretrainedConfig
    from vllm.transformers_utils import config

    parser, read = config.HFConfigParser, {}
    parse = parser.parse

    def parsed(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        key = repr((str(model), args, sorted(kwargs.items())))
        if key not in read:
            read[key] = pickle.dumps(parse(self, model, *args, **kwargs))
        return pickle.loads(read[key])  # noqa: S301 – made a line above

    parser.parse = parsed
    PretrainedConfig.__repr__ = lambda self: type(self).__name__  # for logs that nobody reads


def _fake_gpu(gpu: Mapping[str, Any]) -> None:
    """Let vLLM see one GPU."""
    import triton.backends
    import vllm.platforms as platforms

    class Driver:
        @staticmethod
        def is_active() -> bool:
            return True

    triton.backends.backends = {"nvidia": types.SimpleNamespace(driver=Driver)}
    # the class of CUDA asks for these when it is imported
    from vllm.platforms import cuda, interface

    capability = interface.DeviceCapability(*gpu["capability"])
    answers = {
        "get_device_capability": lambda cls, device_id=0: capability,
        "get_device_name": lambda cls, device_id=0: gpu["name"],
        "get_device_total_memory": lambda cls, device_id=0: gpu["memory"],
        "is_fully_connected": lambda cls, physical_device_ids: True,
        "device_count": lambda cls: 8,
        "num_compute_units": lambda cls, device_id=0: 132,
        "is_integrated_gpu": lambda cls, device_id=0: False,
        "get_cuda_runtime_major": lambda cls: 13,
        "import_kernels": lambda cls: None,
    }
    body = {name: classmethod(answer) for name, answer in answers.items()}
    faked = type("FakedCuda", (cuda.NonNvmlCudaPlatform,), body)
    platforms._current_platform = faked()


def flags(settings: Mapping[str, Any], models: Mapping[str, str]) -> list[str]:
    """Return the words of a command line for settings, as autotune's rules have them.

    Args:
        settings: Settings as for `autotune.engine.rules.infeasible`; ``model`` and
            ``speculative.model`` name one of ``models``.
        models: Folders of the models.
    """
    draft = {k[12:]: v for k, v in settings.items() if k.startswith("speculative.")}
    plain = {k: v for k, v in settings.items() if not k.startswith("speculative.")}
    n = plain.pop("num_speculative_tokens", 0)
    if n:
        draft["num_speculative_tokens"] = n
        if draft.get("model") in models:
            draft["model"] = models[draft["model"]]
        plain["speculative_config"] = draft
    words = ["--model", models[plain.pop("model")]]
    for name, value in plain.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif value is False:
            words.append("--no-" + flag[2:])
        elif isinstance(value, dict):
            words += [flag, json.dumps(value)]
        elif isinstance(value, list):
            words += [flag, *map(str, value)]
        else:
            words += [flag, str(value)]
    return words


class Refused(Exception):
    """The parser refuses the command line."""


class Asker:
    """One vLLM that is asked about settings."""

    def __init__(self, models: Mapping[str, str]) -> None:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        self._args, self._usage, self._models = EngineArgs, UsageContext, models
        self._parser = EngineArgs.add_cli_args(FlexibleArgumentParser(prog="vllm"))
        self._parser.error = self._refuse  # type: ignore[method-assign]

    @staticmethod
    def _refuse(message: str) -> None:
        raise Refused(message)

    def config(self, settings: Mapping[str, Any]) -> Any:
        """Return vLLM's configuration of settings; anything that it raises is its refusal."""
        parsed = self._parser.parse_args(flags(settings, self._models))
        usage = self._usage.OPENAI_API_SERVER  # its defaults are those of `vllm serve`
        return self._args.from_cli_args(parsed).create_engine_config(usage_context=usage)

    def ask(
        self, settings: Mapping[str, Any], gets: Sequence[str], env: Mapping[str, str]
    ) -> tuple[Any, ...]:
        """Return why settings are refused (None: they start), where, and what else is asked."""
        os.environ.update(env)
        try:
            config = self.config(settings)
            _late(config, settings)
        except (Exception, SystemExit) as e:  # noqa: BLE001 – each is an answer
            return (*_reason(e), {})
        finally:
            for name in env:
                del os.environ[name]
        made = _graphs(config) if {"full", "replays"} & set(gets) else None
        return None, None, {name: _GETS[name](config, made) for name in gets}


def _late(config: Any, settings: Mapping[str, Any]) -> None:
    """Run what vLLM checks after the configuration, before the server is up.

    ``v1/core/sched/scheduler.py: Scheduler.__init__`` reads the schedule of n;
    ``v1/worker/utils.py: select_common_block_size`` compares the block size with what the CPU's
    attention can read.
    """
    schedule = getattr(config.speculative_config, "num_speculative_tokens_per_batch_size", None)
    if schedule:
        from vllm.v1.spec_decode.dynamic.utils import build_dynamic_sd_schedule_lookup

        build_dynamic_sd_schedule_lookup(
            schedule,
            vllm_max_batch_size=config.scheduler_config.max_num_seqs,
            vllm_num_speculative_tokens=config.speculative_config.num_speculative_tokens,
        )
    from vllm.platforms import current_platform

    if current_platform.is_cpu() and "block_size" in settings:
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
        from vllm.v1.worker.utils import select_common_block_size

        select_common_block_size(config.cache_config.block_size, [CPUAttentionBackend])


def _sizes(config: Any, _: Any) -> list[int] | None:
    sizes = config.compilation_config.cudagraph_capture_sizes
    return None if sizes is None else sorted(sizes)


def _graphs(config: Any) -> Any:
    """Return model runner V2's own table of graphs; None: the server has runner V1."""
    if not getattr(config, "use_v2_model_runner", False):
        return None
    from vllm.platforms import current_platform
    from vllm.v1.worker.gpu import cudagraph_utils

    type(current_platform).get_global_graph_pool = lambda self: None
    cudagraph_utils.get_pp_group = lambda: types.SimpleNamespace(
        is_first_rank=True, is_last_rank=True
    )
    spec = config.speculative_config
    query = 1 + (0 if spec is None else spec.num_speculative_tokens)
    mode = config.compilation_config.cudagraph_mode
    made = cudagraph_utils.CudaGraphManager(config, "cuda", mode, query)
    made._graphs_captured = True
    return made


def _full(_: Any, made: Any) -> list[int] | None:
    """Return the sizes of the FULL graphs that are captured, in tokens, ascending."""
    if made is None:
        return None
    sizes = {
        desc.num_tokens
        for mode, found in made._capture_descs.items()
        if mode.name == "FULL"
        for desc in found
    }
    return sorted(sizes)


def _replays(config: Any, made: Any) -> list[int] | None:
    """Return what batches of 1, 2, … 32 requests replay.

    A size in tokens: of a FULL graph, of a piecewise one with a minus; 0: no graph.
    """
    if made is None:
        return None
    signs = {"FULL": 1, "PIECEWISE": -1, "NONE": 0}
    out = []
    for requests in range(1, 1 + min(32, config.scheduler_config.max_num_seqs)):
        query = made.decode_query_len
        desc = made.dispatch(requests, requests * query, query, 0)
        out.append(signs[desc.cg_mode.name] * desc.num_tokens)
    return out


# What is asked of a configuration, and of model runner V2's table of graphs.
_GETS: dict[str, Callable[[Any, Any], Any]] = {
    "active": lambda c, _: getattr(c.scheduler_config, "max_num_active_seqs", None),
    "seqs": lambda c, _: c.scheduler_config.max_num_seqs,
    "sizes": _sizes,
    "full": _full,
    "replays": _replays,
    "runner": lambda c, _: "v2" if getattr(c, "use_v2_model_runner", False) else "v1",
}


def _reason(error: BaseException) -> tuple[str, str]:
    """Return an error's words, and file and function of vLLM that raised it."""
    if isinstance(error, Refused):
        return f"argument error: {error}", "parser"
    try:
        first = error.errors()[0]  # type: ignore[attr-defined]
    except (AttributeError, IndexError):
        return f"{type(error).__name__}: {error}", _place(error)
    inner = first.get("ctx", {}).get("error")
    where = ".".join(str(x) for x in first["loc"])
    text = f"{error.title}: {where + ': ' if where else ''}{first['msg']}"  # type: ignore[attr-defined]
    return text, _place(inner) if isinstance(inner, BaseException) else f"{error.title}.{where}"  # type: ignore[attr-defined]


def _place(error: BaseException) -> str:
    """Return file and function of the innermost frame of vLLM."""
    found, frame = "", error.__traceback__
    while frame is not None:
        code = frame.tb_frame.f_code
        if "/vllm/" in code.co_filename:
            file = code.co_filename.rpartition("/vllm/")[2]
            found = f"{file}: {code.co_name}"
        frame = frame.tb_next
    return found


def main() -> None:
    """Answer the groups of stdin on stdout."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    asked = json.load(sys.stdin)
    folder = Path(tempfile.mkdtemp(prefix="configs-"))
    models = {}
    for i, (name, config) in enumerate(asked["models"].items()):
        models[name] = str(folder / f"m{i}")
        (folder / f"m{i}").mkdir()
        (folder / f"m{i}" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    stand_in(asked["source"], asked["version"], asked["platform"], asked["gpu"])
    asker = Asker(models)
    gc.freeze()  # the objects of all these imports are looked at no more
    out = []
    for group in asked["groups"]:
        gets, env = group.get("gets", ()), group.get("env", {})
        out.append([asker.ask(settings, gets, env) for settings in group["settings"]])
    text = json.dumps(out).replace(str(folder), "…")
    answer.write(text)
    answer.flush()
    os._exit(0)  # threads of vLLM's imports


if __name__ == "__main__":
    main()
