"""Remarks on a study's draft, from its ``config.json`` where that is on this disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from autotune.engine.draft_method import draft_method
from autotune.study.checkpoints import config_of, speculators_of
from autotune.study.files import LoadedStudy
from autotune.study.space import DRAFT, N, as_int
from autotune.study.speculative import REJECTION, SpeculativeSpec
from autotune.study.ways import LOSSY, is_lossy

_DFLASH = frozenset({"dflash", "dflash2"})


def draft_notes(loaded: LoadedStudy) -> Iterator[str]:
    """Yield what a user should know about the draft before the first launch.

    Args:
        loaded: The study as the user wrote it.
    """
    arms: dict[str, list[str]] = {}
    for arm, draft in loaded.spec.server.drafts.items():
        for note in _notes(loaded, arm, draft):
            arms.setdefault(note, []).extend([] if arm is None else [arm])
    for note, names in arms.items():
        where = f"arm{'s' if len(names) > 1 else ''} {', '.join(names)}: " if names else ""
        yield f"{where}{note}"


def _notes(loaded: LoadedStudy, arm: str | None, draft: SpeculativeSpec) -> Iterator[str]:
    """Yield the remarks on one way to draft."""
    if _may_be_lossy(loaded, arm, draft):
        yield LOSSY
    found = draft_method(draft, loaded.base)
    if draft.method is None and found.name is not None:
        yield f"the draft's method is {found.name}: {found.reason}; it is written into each launch"
    elif found.name is None:
        yield f"the draft's method is unknown: {found.reason}. Rules that need it do not apply"
    if found.warning is not None:
        yield found.warning
    if draft.model is None:
        return
    config = config_of(draft.model, loaded.base) or {}
    if why := causal_by_mistake(config):
        yield f"{draft.model:.80}: {why}"
    yield from _beyond_training(_most_n(loaded, arm, draft), config)


def _may_be_lossy(loaded: LoadedStudy, arm: str | None, draft: SpeculativeSpec) -> bool:
    """Return whether a way to draft is lossy, or the study searches a value with which it is."""
    space = loaded.spec.to_space()
    param = (space.params if arm is None else space.ways[arm].params).get(f"{DRAFT}{REJECTION}")
    searched = (param.values() if param is not None else None) or ()
    return is_lossy(draft.given()) or any(is_lossy({REJECTION: v}) for v in searched)


def causal_by_mistake(config: Mapping[str, Any]) -> str | None:
    """Return why vLLM gives a DFlash draft a causal mask that it was not trained with, or None.

    In speculators format ``sliding_window_non_causal: false`` is meant for sliding layers, and
    speculators writes it by default. vLLM makes ``dflash_config.causal`` of it, which counts for
    every layer (``transformers_utils/configs/speculators/algos.py: update_dflash``,
    ``model_executor/models/qwen3_dflash.py: _dflash_layer_causal``; 0.27, 0.32 and 0.33).

    Args:
        config: ``config.json`` of the draft.
    """
    found, layers = speculators_of(config), config.get("transformer_layer_config")
    if found is None or found.kind not in _DFLASH or not isinstance(layers, Mapping):
        return None
    if config.get("sliding_window_non_causal", True) or layers.get("is_causal") is not None:
        return None
    types = layers.get("layer_types") or ["full_attention"] * (
        as_int(layers.get("num_hidden_layers")) or 1
    )
    full = sum(kind != "sliding_attention" for kind in types)
    if not full:
        return None
    what = (
        "vLLM has no key for such a mix; expect fewer accepted tokens"
        if full < len(types)
        else "set it to true in config.json"
    )
    return (
        "sliding_window_non_causal: false makes vLLM serve its full-attention layers with a causal "
        f"mask too, without which a DFlash draft is trained: {what}"
    )


def trained_for(config: Mapping[str, Any]) -> int | None:
    """Return the block size that a draft was trained for, in tokens with the one it starts from."""
    inner = config.get("dflash_config")
    for place in (config, inner if isinstance(inner, Mapping) else {}):
        for key in ("block_size", "dspark_block_size"):
            if (size := as_int(place.get(key))) is not None and size > 1:
                return size
    return None


def _most_n(loaded: LoadedStudy, arm: str | None, draft: SpeculativeSpec) -> int:
    """Return the largest n of a way to draft."""
    space = loaded.spec.to_space()
    param = space.params.get(N) if arm is None else space.ways[arm].params.get(N)
    values = [as_int(v) or 0 for v in param.values() or ()] if param else []
    return max([*values, as_int((draft.model_extra or {}).get(N)) or 0])


def _beyond_training(most: int, config: Mapping[str, Any]) -> Iterator[str]:
    """Yield that the space has more draft tokens than the draft was trained for."""
    size = trained_for(config)
    if size is not None and most >= size:
        yield (
            f"n goes up to {most}, but the draft was trained for blocks of {size}, that is "
            f"{size - 1} draft tokens. vLLM takes more, and drafts them badly"
        )
