"""Shapes: models of a known size without weights, for vLLM's ``--load-format dummy``.

A shape is a folder with a ``config.json`` and a tokenizer, and nothing else. Its numbers come from
``shapes.json``, which names the source of each. A study names a shape as ``shape:NAME:QUANT`` for
the target and ``shape:NAME:draft`` for its DFlash draft. Both are made in the user's cache folder,
on their first use; ``autotune shape`` writes them anywhere else. A shape is the language model
alone: a vision encoder is left out.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from platformdirs import user_cache_dir

from autotune.errors import UserError
from autotune.study.shape_tokenizer import (
    COPIED,
    NEEDED,
    why_another_tokenizer,
    write_tokenizer,
)

PREFIX = "shape:"
DRAFT = "draft"
_RECIPE = 1  # increase it when what is written changes: old and new then have different folders
# Of a model scaled down for a CPU: enough words for random prompts, and for every byte.
_TINY_WORDS, _TINY_WIDTH = 32_768, 256


@dataclass(frozen=True)
class Shape:
    """A model of the catalog.

    Attributes:
        name: Its name, such as ``gemma-4-26b-a4b``.
        of: Name of the model that has this shape.
        quants: Names of its quantizations; the first one is the default.
        published: Number of parameters that its publisher gives.
        published_active: Number of active parameters that its publisher gives; None: not a mixture
            of experts.
        draft_of: Name of the DFlash draft that has the shape of its draft.
        derived: Keys of the draft's config that no source has; they follow the target, or the draft
            of its family.
        sources: Where its numbers are from, by what they are for.
    """

    name: str
    of: str
    quants: tuple[str, ...]
    published: float
    published_active: float | None
    draft_of: str
    derived: tuple[str, ...]
    sources: Mapping[str, str]

    def target(self, quant: str | None = None) -> dict[str, Any]:
        """Return the target's ``config.json``.

        Args:
            quant: Quantization; None: the default one.

        Raises:
            UserError: it has no such quantization.
        """
        quant = self.quants[0] if quant is None else quant
        if quant not in self.quants:
            raise UserError(f"{self.name} has no {quant[:40]}; it has {', '.join(self.quants)}")
        body = _catalog()[self.name]
        config = _unrolled(body["config"])
        if (found := _quantization(quant, body["quants"][quant])) is not None:
            config["quantization_config"] = found
        return config

    def draft(self) -> dict[str, Any]:
        """Return the draft's ``config.json``; its weights are bfloat16."""
        given = _unrolled(_catalog()[self.name]["draft"]["config"])
        return {
            "architectures": ["DFlashDraftModel"],
            "model_type": "qwen3",
            "dtype": "bfloat16",
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "tie_word_embeddings": False,
            "max_window_layers": given["num_hidden_layers"],
            **given,
            "rope_parameters": {"rope_type": "default", "rope_theta": given["rope_theta"]},
        }


def shapes() -> tuple[Shape, ...]:
    """Return the catalog."""
    return tuple(
        Shape(
            name=name,
            of=body["of"],
            quants=tuple(body["quants"]),
            published=body["parameters"],
            published_active=body.get("active"),
            draft_of=body["draft"]["of"],
            derived=tuple(body["draft"]["derived"]),
            sources=body["sources"],
        )
        for name, body in _catalog().items()
    )


def shape_named(name: str) -> Shape:
    """Return a shape by its name.

    Raises:
        UserError: there is none of this name.
    """
    known = {shape.name: shape for shape in shapes()}
    if (found := known.get(name.lower())) is not None:
        return found
    begun = [other for other in known if name and other.startswith(name.lower())]
    close = begun or difflib.get_close_matches(name.lower()[:100], known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(known)}"
    raise UserError(f"{name[:60]}: no such shape; {hint}")


def is_shape(ref: str) -> bool:
    """Return whether a model reference of a study names a shape."""
    return ref.startswith(PREFIX)


def config_of_shape(ref: str) -> dict[str, Any]:
    """Return the ``config.json`` of a reference, ``shape:NAME:QUANT`` or ``shape:NAME:draft``.

    Raises:
        UserError: there is no such shape, or it has no such quantization.
    """
    name, _, part = ref.removeprefix(PREFIX).partition(":")
    shape = shape_named(name)
    return shape.draft() if part == DRAFT else shape.target(part or None)


def why_no_shape(ref: str, *, target: bool = True, draft: bool = True) -> str | None:
    """Return why a reference names no shape that a study may have in a place; None: it may.

    Args:
        ref: Model reference of a study; one that is of no shape may be anything.
        target: Whether the shape of a target may be there.
        draft: Whether the shape of a DFlash draft may be there.
    """
    if not is_shape(ref):
        if not ref.lower().startswith(PREFIX):
            return None
        return f"{ref[:60]}: a shape is written {PREFIX}NAME:QUANT, in small letters"
    try:
        config_of_shape(ref)
    except UserError as e:
        return f"{e}"
    name, _, part = ref.removeprefix(PREFIX).partition(":")
    if part == DRAFT and not draft:
        return f"{ref} is a draft; the target is {PREFIX}{name}, or {PREFIX}{name}:QUANT"
    if part != DRAFT and not target:
        return f"{ref} is a target; its DFlash draft is {PREFIX}{name}:{DRAFT}"
    return None


def stands_for(ref: str) -> str:
    """Return the name of the model that has the shape of a reference.

    Raises:
        UserError: there is no such shape.
    """
    name, _, part = ref.removeprefix(PREFIX).partition(":")
    shape = shape_named(name)
    return shape.draft_of if part == DRAFT else shape.of


def place_of_shape(ref: str) -> Path:
    """Return the folder of a shape in the user's cache, whether it is there or not.

    Raises:
        UserError: there is no such shape, or it has no such quantization.
    """
    config = json.dumps(config_of_shape(ref), sort_keys=True)
    key = hashlib.sha256(f"{_RECIPE} {config}".encode()).hexdigest()[:10]
    words = [w for w in ref.removeprefix(PREFIX).split(":") if w]
    # vLLM sees the method of some drafts by their path alone
    words = ["dflash" if w == DRAFT else w for w in words]
    return Path(user_cache_dir("dflash-autotune")) / "-".join(["shape", *words, key]).lower()


def folder_of_shape(ref: str) -> Path:
    """Return the folder of a shape in the user's cache; make it now if it is missing.

    Raises:
        UserError: there is no such shape, or the folder cannot be written.
    """
    config, final = config_of_shape(ref), place_of_shape(ref)
    if (final / "config.json").is_file():
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{final.name}.tmp-", dir=final.parent) as tmp:
            made = Path(tmp) / "model"
            _write(made, config)
            try:
                made.replace(final)
            except OSError:  # another process was faster
                if not (final / "config.json").is_file():
                    raise
    except OSError as e:
        raise UserError(
            f"{ref}: cannot be written to {final.parent}: {e.strerror or e} (set XDG_CACHE_HOME "
            "for another place)"
        ) from e
    return final


@dataclass(frozen=True)
class Written:
    """Folders that were written.

    Attributes:
        target: Folder of the target.
        draft: Folder of the draft; None: it was not asked for.
    """

    target: Path
    draft: Path | None


def write_shape(
    shape: Shape,
    out: Path,
    *,
    quant: str | None = None,
    tokenizer: Path | None = None,
    draft: bool = True,
    tiny: bool = False,
) -> Written:
    """Write a target's folder, and that of its draft, under a new folder.

    Args:
        shape: What is written.
        out: Folder that does not exist yet.
        quant: Quantization of the target; None: the default one.
        tokenizer: Folder whose tokenizer files are copied; None: one token for each byte.
        draft: Whether the draft is written, too.
        tiny: Whether both are scaled down to two narrow layers, for a CPU.

    Raises:
        UserError: the folder exists or cannot be written, there is no such quantization, or the
            other folder has no tokenizer.
    """
    config, other = shape.target(quant), shape.draft()
    if tiny:
        config, other = scaled_down(config, other)
    if tokenizer is not None and not any((tokenizer / name).is_file() for name in NEEDED):
        raise UserError(
            f"--tokenizer: {tokenizer} has no tokenizer ({' or '.join(NEEDED)}); name the folder "
            "of a model, or leave it out: random token ids need no trained tokenizer"
        )
    if tokenizer is not None and (why := why_another_tokenizer(tokenizer, config["vocab_size"])):
        raise UserError(f"--tokenizer: {why}; name the folder of this model, or leave it out")
    if out.exists():
        raise UserError(f"{out}: exists already; give another --out, or remove it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{out.name}.tmp-", dir=out.parent) as tmp:
            made = Path(tmp) / "made"
            _write(made / "target", config, tokenizer)
            if draft:
                _write(made / "dflash", other)
            made.replace(out)
    except OSError as e:
        raise UserError(f"{out}: cannot be written: {e.strerror or e}; give another --out") from e
    return Written(out / "target", out / "dflash" if draft else None)


def scaled_down(
    target: Mapping[str, Any], draft: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return configs of the same architecture that a CPU serves: one layer of each kind, narrow.

    Args:
        target: ``config.json`` of the target.
        draft: ``config.json`` of its draft.
    """
    kinds = list(dict.fromkeys(target.get("layer_types") or ["full_attention"] * 2))
    kinds = sorted(kinds, key="full_attention".__eq__)  # Gemma's last layer sees all tokens
    layers = max(2, len(kinds))
    # vLLM writes a chat to gpt-oss in OpenAI's own tokens, whatever the tokenizer
    own_words = target["model_type"] == "gpt_oss"
    small = {
        "vocab_size": target["vocab_size"] if own_words else _TINY_WORDS,
        "hidden_size": _TINY_WIDTH,
        "intermediate_size": 2 * _TINY_WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        **{f"{role}_token_id": i for i, role in enumerate(("pad", "eos", "bos"))},
    }
    narrow = {
        "moe_intermediate_size": _TINY_WIDTH // 2,
        "shared_expert_intermediate_size": _TINY_WIDTH // 2,
        "num_experts": 8,
        "num_local_experts": 8,
        "top_k_experts": 2,
        "num_experts_per_tok": 2,
        "num_global_key_value_heads": 1,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    }
    kept = {k: v for k, v in target.items() if k != "layer_types"}
    config = {**kept, **small, **{k: v for k, v in narrow.items() if k in target}}
    if "layer_types" in target:
        config["layer_types"] = kinds * (layers // len(kinds))
    # one layer: model runner V1 wants all layers of a draft in one group of the KV cache
    other = {**draft, **small, "num_hidden_layers": 1, "num_target_layers": layers}
    other["max_window_layers"] = 1
    # vLLM asks a target for the state after each of these layers, and hears none after the last
    other["dflash_config"] = {"mask_token_id": 4, "target_layer_ids": list(range(layers - 1))}
    other["layer_types"] = ["full_attention"]
    for key in ("sliding_window", "use_sliding_window"):
        other.pop(key, None)
    return config, other


# -- catalog -------------------------------------------------------------------------------------


@cache
def _catalog() -> dict[str, dict[str, Any]]:
    """Return the content of the catalog, with what one model has from another."""
    path = Path(str(files("autotune.study"))) / "shapes.json"
    raw: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    for body in raw.values():
        if (other := raw.get(str(body.get("like")))) is not None:
            body["config"], body["quants"] = other["config"], other["quants"]
            own = body["draft"]["config"]
            body["draft"]["config"] = {**other["draft"]["config"], **own}
    return raw


def _unrolled(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with the kinds of its layers written out."""
    out: dict[str, Any] = json.loads(json.dumps(config))
    match out.get("layer_types"):
        case {"cycle": [*kinds]}:
            layers = out["num_hidden_layers"]
            out["layer_types"] = [kinds[i % len(kinds)] for i in range(layers)]
    return out


def _quantization(name: str, given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return ``quantization_config`` of a quantization; None: there is none."""
    if name == "bf16":
        return None
    if name == "mxfp4":
        kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router"]
        kept += ["model.embed_tokens", "lm_head"]
        return {"quant_method": "mxfp4", "modules_to_not_convert": kept}
    weights: dict[str, Any] = {"symmetric": True, "dynamic": False, "actorder": None}
    inputs: dict[str, Any] | None = None
    if name == "w4a16":
        form = "pack-quantized"
        weights |= {"num_bits": 4, "type": "int", "strategy": "group"}
        weights |= {"group_size": given["group_size"], "observer": "minmax"}
    else:
        form = "float-quantized"
        weights |= {"num_bits": 8, "type": "float", "strategy": "channel", "observer": "minmax"}
        inputs = {"num_bits": 8, "type": "float", "strategy": "token"}
        inputs |= {"symmetric": True, "dynamic": True, "observer": None}
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": inputs,
        "output_activations": None,
        "format": form,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": list(given["ignore"]),
        "kv_cache_scheme": None,
    }


def _write(folder: Path, config: Mapping[str, Any], tokenizer: Path | None = None) -> None:
    """Write a model's folder; a draft has the target's tokenizer."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    if config["architectures"] == ["DFlashDraftModel"]:
        return
    if tokenizer is None:
        write_tokenizer(folder, config)
        return
    for name in COPIED:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)
