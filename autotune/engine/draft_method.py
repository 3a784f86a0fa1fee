"""Which speculative method vLLM would choose for a draft, found once, before anything is launched.

vLLM takes ``method`` from ``--speculative-config``, or chooses one itself
(``config/speculative.py: SpeculativeConfig.__post_init__``; 0.27, 0.32 and 0.33 were read):

1. A path or name of the draft with ``eagle-``, ``eagle3``, ``dflash`` or ``dspark`` in it decides,
   in this order. Every folder above the draft counts, too. This goes before a method that the user
   gave, unless that is one of the four methods of these names.
2. Else some architectures and model types of the draft's ``config.json`` decide.
3. Else it is ``draft_model``, an ordinary small model.

So vLLM sees most DFlash and EAGLE drafts by their path alone, and a folder that was renamed is
loaded as an ordinary model, which fails. autotune gives vLLM absolute paths, so what the path says
can differ from what it said in the user's own command. Therefore the method is found here from the
draft's ``config.json`` first, and written into the launch. Rules, differences and export use the
same one. Where the draft is a hub name whose ``config.json`` is not on this disk, and the name says
nothing, there is no method, and vLLM chooses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.engine.rule import method_name
from autotune.errors import UserError
from autotune.study.checkpoints import config_of, speculators_of
from autotune.study.files import LoadedStudy
from autotune.study.models import resolve_model
from autotune.study.shapes import is_shape, place_of_shape
from autotune.study.speculative import FOREIGN, FROM_TEXT, NGRAM, SpeculativeSpec

# Texts in a path or name that decide, in vLLM's order.
_IN_NAME = (("eagle-", "eagle"), ("eagle3", "eagle3"), ("dflash", "dflash"), ("dspark", "dspark"))
# Methods that vLLM leaves as they are given, and those that have no model whose path counts.
_KEPT = frozenset({"eagle", "eagle3", "dflash", "dspark"})
_NO_PATH = frozenset({*FROM_TEXT, *NGRAM, *FOREIGN})
# Model types that vLLM turns into a multi-token-prediction head (`hf_config_override`), with the
# key of the number of tokens that the head predicts; None: vLLM takes the number from elsewhere.
MTP_TYPES: Mapping[str, str | None] = {
    **dict.fromkeys(
        (
            *("deepseek_v3", "deepseek_v32", "glm_moe_dsa", "deepseek_mtp", "deepseek_v4"),
            *("pangu_ultra_moe", "pangu_ultra_moe_mtp", "ernie4_5_moe", "ernie_mtp"),
            *("qwen3_next", "qwen3_next_mtp", "bailing_hybrid", "bailing_hybrid_mtp"),
            *("exaone_moe", "exaone_moe_mtp", "exaone4_5_mtp", "hy_v3", "hy_v3_mtp"),
            *("hy_v4", "hy_v4_mtp", "dots3_note", "glm5_next", "longcat_flash"),
            *("longcat_flash_mtp", "bailing_hybrid_v3_mtp", "glm4_moe", "glm4_moe_lite"),
            *("glm_ocr", "mimo", "step3p5", "step3p7", "step5", "step5_vl", "kimi_k3"),
        ),
        "num_nextn_predict_layers",
    ),
    **dict.fromkeys(
        (
            *("qwen3_5", "qwen3_5_moe", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_5_mtp"),
            *("qwen4_exp", "qwen4_exp_text", "intern_s2_preview", "interns2_mobius"),
        ),
        "mtp_num_hidden_layers",
    ),
    **dict.fromkeys(("minimax_m3_vl", "minimax_m3_mtp"), "num_mtp_modules"),
    **dict.fromkeys(
        (
            *("gemma4_assistant", "gemma4_unified_assistant", "gemma4_mtp", "mtp"),
            *("mimo_v2", "mimo_v2_flash", "mimo_mtp", "mimo_v2_mtp", "inkling_mm_model"),
            *("inkling_model", "inkling_mtp"),
        ),
        None,
    ),
}


@dataclass(frozen=True)
class DraftMethod:
    """The method of a study's draft.

    Attributes:
        name: vLLM's name of the method, as it is launched; None: vLLM chooses.
        reason: What says so, in words; empty where the study gives it.
        warning: Why vLLM would take another method all the same, and what to do; None: it would
            not.
    """

    name: str | None
    reason: str = ""
    warning: str | None = None


def draft_method(draft: SpeculativeSpec, base: Path) -> DraftMethod:
    """Return the method of a draft.

    Args:
        draft: The study's draft.
        base: Folder that relative paths start from: the study's.
    """
    if draft.model is None or draft.method in _NO_PATH:
        return DraftMethod(draft.method)
    place = _seen_by_vllm(draft.model, base)
    by_name = _by_name(place)
    if draft.method is not None:
        return DraftMethod(draft.method, "", _overruled(method_name(draft.method), by_name, place))
    config = config_of(draft.model, base)
    found, reason = _by_config(config or {})
    if found in _KEPT:
        return DraftMethod(found, reason)
    if by_name is not None:
        return DraftMethod(by_name[1], f'"{by_name[0]}" is in {place}')
    if found is not None:
        return DraftMethod(found, reason)
    if config is not None and "speculators_config" not in config:
        return DraftMethod("draft_model", "its config.json is that of an ordinary model")
    return DraftMethod(None, "no name and no config.json on this disk shows it, so vLLM chooses")


def with_method(loaded: LoadedStudy) -> LoadedStudy:
    """Return a study with the method of each draft written out."""
    spec = loaded.spec
    for arm, draft in spec.server.drafts.items():
        name = draft_method(draft, loaded.base).name
        if name != draft.method:
            spec = spec.with_method(name, arm)
    return loaded if spec is loaded.spec else loaded.model_copy(update={"spec": spec})


def tokens_of_head(config: Mapping[str, Any]) -> int | None:
    """Return how many tokens a head for multi-token prediction makes at once; None: unknown.

    vLLM takes more drafts than that only in multiples of it.

    Args:
        config: ``config.json`` of the draft, or of the target that has the head.
    """
    kind = config.get("model_type")
    key = MTP_TYPES.get(kind) if isinstance(kind, str) else None
    if key is None:
        return None
    inner = config.get("text_config")
    value = config.get(key)
    if value is None and isinstance(inner, Mapping):
        value = inner.get(key)
    return value if type(value) is int and value > 0 else None


def _seen_by_vllm(ref: str, base: Path) -> str:
    """Return path or name of a draft as vLLM is given it."""
    if ref == "demo:target":
        return ref  # made on its first use; its path says nothing
    try:
        return str(place_of_shape(ref)) if is_shape(ref) else resolve_model(ref, base)
    except UserError:
        return ref


def _by_name(place: str) -> tuple[str, str] | None:
    """Return what in a path or name decides, with the method; None: nothing does."""
    return next(((text, m) for text, m in _IN_NAME if text in place.lower()), None)


def _overruled(given: str, by_name: tuple[str, str] | None, place: str) -> str | None:
    """Return why vLLM takes another method than the one that a study gives; None: it does not."""
    if by_name is None or given in _KEPT or given == by_name[1]:
        return None
    text, method = by_name
    return (
        f'vLLM takes method {method} for a draft with "{text}" in its path, whatever the study '
        f"says: {place}. Rename the folder, or give method: {method}"
    )


def _by_config(config: Mapping[str, Any]) -> tuple[str | None, str]:
    """Return the method that a ``config.json`` tells for certain, and what in it does."""
    if (found := speculators_of(config)) is not None and found.kind:
        return found.method, f"its config.json has speculators_model_type {found.kind}"
    names = config.get("architectures")
    for name in names if isinstance(names, list) else ():
        if (method := _by_architecture(str(name))) is not None:
            return method, f"its config.json has the architecture {name!s:.60}"
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in {"medusa", "mlp_speculator"}:
        return kind, f"its config.json has model_type {kind}"
    heads = config.get("num_nextn_predict_layers")
    if kind in {"nemotron_h", "nemotron_h_puzzle"} and type(heads) is int and heads > 0:
        return "mtp", f"its config.json has num_nextn_predict_layers {heads}"
    if isinstance(kind, str) and (kind in MTP_TYPES or kind.endswith("_mtp")):
        return "mtp", f"its config.json has model_type {kind}"
    return None, ""


# DFlash drafts whose architecture does not begin so.
_DFLASH = frozenset({"MuseGlimmerAssistantModel", "LiLiCorrDraftModel", "Qwen3XPressModel"})


def _by_architecture(name: str) -> str | None:
    """Return the method of a draft's architecture; the names are those of vLLM's registry."""
    low = name.lower()
    if "dspark" in low:
        return "dspark"
    if low.startswith("dflash") or name in _DFLASH:
        return "dflash"
    if "eagle3" in low or low.startswith("peagle"):
        return "eagle3"
    if low.startswith("eagle") or low.endswith("eagle"):
        return "eagle"
    return None
