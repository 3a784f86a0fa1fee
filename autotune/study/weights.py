"""Which weights a model has: a short hash that is the same wherever they lie.

A model that is trained on, or fetched again, keeps its name, its shapes and its size. Trials before
and after that do not compare, and nothing in a study file shows it.

Weights are sampled, not read: of each file its size and :data:`SAMPLES` pieces of :data:`PIECE`
bytes count, evenly spaced from its first to its last byte. Training changes every weight, so they
find it; of 26 GB in six files they are 6 MB.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

SAMPLES = 16
PIECE = 65536
SUFFIXES = {".safetensors", ".gguf", ".bin", ".pt", ".pth"}
_SHOWN = 12


def weights_id(path: Path) -> str | None:
    """The hash of a model's folder, or of one file; None: no weights that can be read."""
    try:
        files = [path] if path.is_file() else sorted(path.iterdir())
        weights = [p for p in files if p.suffix in SUFFIXES and p.is_file()]
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


def _starts(size: int) -> list[int]:
    """Where pieces begin; of a small file they are all of it."""
    if size <= SAMPLES * PIECE:
        return list(range(0, size, PIECE))
    return [(size - PIECE) * i // (SAMPLES - 1) for i in range(SAMPLES)]
