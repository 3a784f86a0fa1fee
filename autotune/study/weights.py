"""Identity of a model's weights: a short hash that does not depend on their place.

A model that is trained further, or fetched again, keeps its name, its shapes and its size. Trials
before and after that do not compare, and nothing in a study file shows it. A folder without weights
(a shape) is what its ``config.json`` says.

The weights are sampled. For each file the hash covers its size and :data:`SAMPLES` pieces of
:data:`PIECE` bytes, evenly spaced from its first to its last byte. Training changes every weight,
so the samples show it. Of 26 GB in six files they are 6 MB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

SAMPLES = 16  # pieces of a file
PIECE = 65536  # bytes of a piece
SUFFIXES = {".safetensors", ".gguf", ".bin", ".pt", ".pth"}
_SHAPE = "config.json"
_SHOWN = 12  # hexadecimal digits of the hash


def draft_role(arm: str | None, model: str) -> str:
    """Return what the weights of a draft are for, next to those of the ``target``.

    Args:
        arm: Name of its arm; None: the study has no arms.
        model: Name of the draft in the study.
    """
    return "draft" if arm is None else f"draft {model}"


def weights_id(path: Path, *, random: bool = False) -> str | None:
    """Return the hash of the weights in a folder or file; None: there is no model to read.

    Without weights, it is the hash of ``config.json``.

    Args:
        path: The folder or file.
        random: Whether a launch takes random weights, so that those of the folder do not count.
    """
    try:
        files = [path] if path.is_file() else sorted(path.iterdir())
        weights = [p for p in files if p.suffix in SUFFIXES and p.is_file() and not random]
        weights = weights or [p for p in files if p.name == _SHAPE and p.is_file()]
        if not weights:
            return None
        digest = hashlib.sha256()
        for file in weights:
            size = file.stat().st_size
            digest.update(f"{file.name}\0{size}\0".encode())
            with file.open("rb") as f:
                for start in _starts(size):
                    f.seek(start)
                    digest.update(f.read(PIECE))
    except OSError:
        return None
    return digest.hexdigest()[:_SHOWN]


def shown_weights(hashes: Mapping[str, str]) -> str:
    """Return hashes of weights, by role, in words."""
    return ", ".join(f"{role} {x}" for role, x in sorted(hashes.items())) or "none"


def _starts(size: int) -> list[int]:
    """Return the offsets of the pieces; a small file is covered completely."""
    if size <= SAMPLES * PIECE:
        return list(range(0, size, PIECE))
    return [(size - PIECE) * i // (SAMPLES - 1) for i in range(SAMPLES)]
