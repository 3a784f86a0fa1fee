"""From a study's model references to what vLLM is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from autotune.engine.probe import VllmInfo
from autotune.study.files import LoadedStudy
from autotune.study.models import resolve_model


def model_resolver(
    loaded: LoadedStudy, info: VllmInfo, progress: Callable[[str, float], None] | None = None
) -> Callable[[str], str]:
    """Return a function that turns a model reference into what vLLM is given.

    Args:
        loaded: The study.
        info: The study's vLLM. One that cannot be asked may run in a container, whose absolute
            paths cannot be checked from here.
        progress: Function that reports how the demo's target is made, on its first use: see
            :func:`autotune.study.models.resolve_model`.
    """

    def resolve(ref: str) -> str:
        if info.python is None and Path(ref).is_absolute() and not Path(ref).exists():
            return ref
        return resolve_model(ref, loaded.base, progress)

    return resolve
