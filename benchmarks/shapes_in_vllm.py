"""Are the shapes of the catalog what Transformers and vLLM take them for? No weights, no server.

    python benchmarks/shapes_in_vllm.py --out benchmarks/data/shapes_in_vllm.json [NAME …]

For each shape and each of its quantizations: Transformers' configuration class is loaded from the
folder, with the keys that the class does not have; the model is built without memory (torch's meta
device) and its parameters are counted; and vLLM makes its whole configuration
(``EngineArgs(…).create_engine_config()``), with the DFlash draft. The result has what was counted
next to what :mod:`autotune.study.model_size` says.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from autotune.engine.entry import hiding
from autotune.engine.probe import probe
from autotune.study.model_size import kv_cache_of, parameters_of, weight_bytes
from autotune.study.schema import ServerSpec
from autotune.study.shapes import Shape, shapes, write_shape

_ASKED = "AUTOTUNE_SHAPES_ASKED"
# Keys that a class of Transformers does not have, and what reads them.
READ_BY = {
    "architectures": "vLLM and Transformers",
    "model_type": "Transformers",
    "quantization_config": "vLLM",
    "allow_global_per_layer_attribute_access": "Transformers, before the class",
    "global_head_dim": "Gemma4TextConfig.__post_init__, and vLLM",
    "num_global_key_value_heads": "Gemma4TextConfig.__post_init__, and vLLM",
    "attn_output_gate": "vLLM (qwen3_next)",
    "full_attention_interval": "Qwen3_5TextConfig.__post_init__",
    "mamba_ssm_dtype": "vLLM (Qwen3_5ForCausalLMConfig)",
    "initial_context_length": "nothing; as published",
    "rope_theta": "Transformers, as rope_parameters",
    "rope_scaling": "Transformers, as rope_parameters",
    "block_size": "vLLM (dflash)",
    "dflash_config": "vLLM (dflash)",
    "num_target_layers": "vLLM (dflash)",
}


def asked(shape: Shape, quant: str, folder: Path, *, vllm: bool) -> dict[str, Any]:
    """Return what Transformers and vLLM say of a shape."""
    made = write_shape(shape, folder / f"{shape.name}-{quant}", quant=quant)
    assert made.draft is not None
    config = json.loads((made.target / "config.json").read_text())
    out: dict[str, Any] = {
        "unknown_keys": {
            "target": unknown_keys(made.target),
            "draft": unknown_keys(made.draft),
        },
        "parameters": _parameters(config),
        "weights_bytes": weight_bytes(config),
    }
    if quant == "bf16":
        out["parameters_in_transformers"] = counted(made.target)
    return {**out, **in_vllm(made.target, made.draft)} if vllm else out


def _parameters(config: dict[str, Any]) -> int:
    found = parameters_of(config)
    assert found is not None
    return found.total


def unknown_keys(folder: Path) -> list[str]:
    """Return the keys of a ``config.json`` that neither its class nor the table above has."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    given = json.loads((folder / "config.json").read_text())
    return sorted(k for k in given if k not in READ_BY and not hasattr(type(config), k))


def counted(folder: Path) -> int:
    """Return the number of parameters of Transformers' model, which is built without memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    return sum(p.numel() for p in model.parameters())


def in_vllm(target: Path, draft: Path) -> dict[str, Any]:
    """Return what vLLM's configuration makes of a shape.

    A draft with sliding and full layers needs model runner V2, which a CPU does not have. Then the
    target has its whole configuration, and the draft its own.
    """
    from vllm import __version__
    from vllm.config import SpeculativeConfig
    from vllm.engine.arg_utils import EngineArgs

    mixed = len(set(json.loads((draft / "config.json").read_text())["layer_types"])) > 1
    drafting = {"method": "dflash", "model": str(draft), "num_speculative_tokens": 7}
    config = EngineArgs(
        model=str(target),
        load_format="dummy",
        max_model_len=2048,
        max_num_seqs=1,
        max_num_batched_tokens=2048,
        enforce_eager=True,
        speculative_config=None if mixed else drafting,
    ).create_engine_config()
    spec = config.speculative_config or SpeculativeConfig(
        **drafting,
        target_model_config=config.model_config,
        target_parallel_config=config.parallel_config,
    )
    return {
        "vllm": __version__,
        "architecture": config.model_config.architecture,
        "quantization": config.model_config.quantization,
        "draft_architecture": spec.draft_model_config.architecture,
        "draft_apart": mixed,
        "method": spec.method,
        "vocabulary": config.model_config.get_vocab_size(),
        "layers": config.model_config.get_total_num_hidden_layers(),
    }


# vLLM's Qwen3.5 imports the processing of images, also for text. The torchvision that is installed
# may be built for another torch; nothing of it is called to make a configuration.
_TORCHVISION = """
import importlib.abc, importlib.machinery, sys, types
from unittest.mock import MagicMock

class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.startswith("torchvision."):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = anything
        return module

    def exec_module(self, module):
        pass

def anything(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return MagicMock()

sys.meta_path.insert(0, Finder())
__getattr__ = anything
"""


def asked_apart() -> int | None:
    """Run this program again with what its vLLM can import; None: it is run so."""
    if _ASKED in os.environ:
        return None
    env = {**os.environ, _ASKED: "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    env["VLLM_LOGGING_LEVEL"] = "ERROR"
    broken = probe(ServerSpec(model="org/m")).hidden
    with tempfile.TemporaryDirectory() as tmp:
        if "torchvision" in broken:
            (Path(tmp) / "torchvision").mkdir()
            (Path(tmp) / "torchvision" / "__init__.py").write_text(_TORCHVISION)
            env["PYTHONPATH"] = os.pathsep.join(filter(None, (tmp, env.get("PYTHONPATH"))))
        env |= hiding(tuple(x for x in broken if x != "torchvision"), env)
        return subprocess.run([sys.executable, *sys.argv], env=env).returncode


def main() -> None:
    if (code := asked_apart()) is not None:
        sys.exit(code)
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="shapes; default: all")
    parser.add_argument("--out", type=Path, help="JSON file to write; default: stdout")
    parser.add_argument("--no-vllm", action="store_true", help="ask Transformers only, of bf16")
    options = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as tmp:
        for shape in shapes():
            if options.names and shape.name not in options.names:
                continue
            asked_of = ("bf16",) if options.no_vllm else shape.quants
            quants = {q: asked(shape, q, Path(tmp), vllm=not options.no_vllm) for q in asked_of}
            cache = kv_cache_of(shape.target())
            found[shape.name] = {
                "published_parameters": shape.published,
                "kv_bytes_per_token": None if cache is None else cache.per_token(),
                "quants": quants,
            }
            text = json.dumps(found, indent=1) + "\n"
            if options.out is not None:
                options.out.write_text(text)  # so far
    if options.out is None:
        print(text, end="")


if __name__ == "__main__":
    main()
