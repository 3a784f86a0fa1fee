"""The draft of a command: ``--speculative-config``, ``--spec-*``, and the flags of older vLLMs.

Source: ``EngineArgs.create_speculative_config`` of vLLM 0.32, and of 0.6 to 0.8 for the flags that
vLLM no longer has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autotune.errors import UserError
from autotune.study.checkpoints import config_of, speculators_of
from autotune.study.schema import FlagValue
from autotune.study.space import N
from autotune.study.speculative import NGRAM

_SHORT_FORMS = {"spec-method": "method", "spec-model": "model", "spec-tokens": N}
# Flags of vLLM before 0.9, and the key that took their place; None: there is none any more.
_FORMER = {
    "speculative-model": "model",
    "num-speculative-tokens": N,
    "speculative-model-quantization": "quantization",
    "speculative-draft-tensor-parallel-size": "draft_tensor_parallel_size",
    "speculative-max-model-len": "max_model_len",
    "ngram-prompt-lookup-max": "prompt_lookup_max",
    "ngram-prompt-lookup-min": "prompt_lookup_min",
    "speculative-disable-by-batch-size": None,
    "speculative-disable-mqa-scorer": None,
    "spec-decoding-acceptance-method": None,
    "typical-acceptance-sampler-posterior-threshold": None,
    "typical-acceptance-sampler-posterior-alpha": None,
    "disable-logprobs-during-spec-decoding": None,
    "qlora-adapter-name-or-path": None,
    "speculative-token-tree": None,
}


def draft_of(flags: dict[str, FlagValue], notes: list[str]) -> dict[str, Any]:
    """Remove all flags of the draft, and return them as keys of ``--speculative-config``.

    Args:
        flags: Flags of the command, by name with dashes.
        notes: List that gets a sentence for each flag that has no key.

    Raises:
        UserError: vLLM would refuse them, or n is no whole number from 1 up.
    """
    given = flags.pop("speculative-config", None)
    if given in (None, "null", "None", ""):
        given = {}
    if not isinstance(given, dict):
        raise UserError(
            f"--speculative-config: must be a JSON object in single quotes, not {given!s:.60}"
        )
    config = {k.replace("-", "_"): v for k, v in given.items()}
    for flag, key in _SHORT_FORMS.items():
        if flag in flags:
            if key in config:
                raise UserError(f"--{flag}: vLLM refuses it next to {key} in --speculative-config")
            config[key] = flags.pop(flag)
    for flag, former in _FORMER.items():
        value = flags.pop(flag, None)
        if value is None:
            continue
        if former is None:
            notes.append(f"left out: --{flag} (vLLM has no such setting any more)")
        else:
            config.setdefault(former, value)
    if config.get("model") in NGRAM:
        del config["model"]
        config.setdefault("method", "ngram")
    if config and not (type(config.get(N, 1)) is int and config.get(N, 1) >= 1):
        raise UserError(f"--speculative-config: {N} must be a whole number from 1 up")
    for key in ("model", "method"):
        if config.get(key) is not None and not isinstance(config[key], str):
            config[key] = str(config[key])
    if config and config.get("method") is None and config.get("model") is None:
        raise UserError("--speculative-config: names neither a draft `model` nor a `method`")
    return {k: v for k, v in config.items() if v is not None or k not in ("model", "method")}


def verifier_of(
    model: str, config: dict[str, Any], base: Path, notes: list[str]
) -> tuple[str, dict[str, Any]]:
    """Return target and draft of a model that may be a folder in speculators format.

    vLLM serves the target that such a folder names, with the folder as the draft.

    Args:
        model: The model of the command.
        config: The command's ``--speculative-config``; its keys win, but for method and model.
        base: Folder that relative paths start from.
        notes: List that gets a sentence if it is such a folder.
    """
    found = speculators_of(config_of(model, base))
    if found is None:
        return model, config
    notes.append(f"{model:.60} holds a draft for {found.verifier:.60}, which vLLM serves with it")
    n = {} if found.n is None else {N: found.n}
    return found.verifier, {**n, **config, **found.settings, "model": model}
