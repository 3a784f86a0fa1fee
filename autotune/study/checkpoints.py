"""What the ``config.json`` of a model says, read where it is on this disk; nothing is downloaded.

A folder in the *speculators* format holds a draft, and its ``config.json`` names the method, the
verifier (the target that it was trained for) and a number of draft tokens. vLLM that is given such
a folder as its model serves the verifier with that draft, and no flag turns the draft off
(``transformers_utils/config.py: maybe_override_with_speculators``, the same in 0.24 to 0.33).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.errors import UserError
from autotune.study.models import draft_folder, target_folder
from autotune.study.shapes import config_of_shape, is_shape
from autotune.study.weights import SUFFIXES

_MOST_BYTES = 8 << 20  # of a config.json; the largest that is known has 0.1 MB
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# vLLM's method where it differs from the format's own `speculators_model_type`
# (transformers_utils/configs/speculators/base.py: build_vllm_speculative_config).
_METHODS = {"peagle": "eagle3", "dflash2": "dflash"}


@dataclass(frozen=True)
class Speculators:
    """What a ``config.json`` in speculators format says.

    Attributes:
        kind: Its ``speculators_model_type``, such as ``peagle``.
        method: vLLM's method for it.
        verifier: Hub name or path of the target that it was trained for.
        n: Number of draft tokens that vLLM takes if the folder is served as a model; None: none is
            named, which vLLM refuses.
    """

    kind: str
    method: str
    verifier: str
    n: int | None

    @property
    def settings(self) -> dict[str, Any]:
        """Keys of ``--speculative-config`` that vLLM takes from the folder, without n."""
        parallel = {"parallel_drafting": True} if self.kind == "peagle" else {}
        return {"method": self.method, **parallel}


def config_of(ref: str, base: Path) -> dict[str, Any] | None:
    """Return the content of a model's ``config.json``; None: it is not on this disk.

    Args:
        ref: Model reference of a study: a folder, a ``demo:`` or ``shape:`` name, or a hub name,
            which is looked up in the cache of Hugging Face's hub.
        base: Folder that relative paths start from: the study's.
    """
    if is_shape(ref):
        try:
            return config_of_shape(ref)
        except UserError:
            return None
    folder = _folder(ref, base)
    if folder is None:
        return None
    path = folder / "config.json"
    try:
        if path.stat().st_size > _MOST_BYTES:
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def has_no_weights(ref: str, base: Path) -> bool:
    """Return whether a model is a shape: its folder is on this disk, and no file of weights in it.

    The hub's cache may have the ``config.json`` of a model whose weights vLLM is still to fetch.

    Args:
        ref: Model reference of a study.
        base: Folder that relative paths start from: the study's.
    """
    if is_shape(ref):
        return True
    if ref.startswith("demo:"):  # made whole, on its first use
        return False
    folder = _named_folder(ref, base)
    try:
        return (
            folder is not None
            and (folder / "config.json").is_file()
            and not any(p.suffix in SUFFIXES for p in folder.iterdir())
        )
    except OSError:
        return False


def speculators_of(config: Mapping[str, Any] | None) -> Speculators | None:
    """Return what a ``config.json`` in speculators format says; None: it is in no such format.

    Args:
        config: Answer of :func:`config_of`.
    """
    match config:
        case None:
            return None
        case {"speculators_config": {"verifier": {"name_or_path": str(verifier)}} as body}:
            kind = str(config.get("speculators_model_type") or "")
            match body.get("proposal_methods"):
                case [{"speculative_tokens": int(n)}, *_] if not isinstance(n, bool):
                    return Speculators(kind, _METHODS.get(kind, kind), verifier, n)
            return Speculators(kind, _METHODS.get(kind, kind), verifier, None)
    return None


def _folder(ref: str, base: Path) -> Path | None:
    """Return the folder of a model on this disk; None: there is none."""
    if ref == "demo:draft":
        return draft_folder()
    if ref == "demo:target":
        return target_folder()
    if (found := _named_folder(ref, base)) is not None:
        return found
    return _snapshot(ref) if _HUB_NAME.fullmatch(ref) else None


def _named_folder(ref: str, base: Path) -> Path | None:
    """Return the folder that a path names; None: there is none."""
    try:
        path = base / Path(ref).expanduser()
        return path if path.is_dir() else None
    except (OSError, ValueError, RuntimeError):  # a name that no file system takes
        return None


def _snapshot(name: str) -> Path | None:
    """Return the folder of a hub name in the hub's cache, at its main revision."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    repository = cache / f"models--{name.replace('/', '--')}"
    try:
        commit = (repository / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    folder = repository / "snapshots" / commit
    return folder if re.fullmatch(r"[0-9a-f]{40}", commit) and folder.is_dir() else None
