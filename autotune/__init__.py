"""autotune: finds the best speculative-decoding settings of a vLLM DFlash server.

From Python, see :mod:`autotune.api`: ``from autotune import Study, tune``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from autotune._version import __version__

if TYPE_CHECKING:
    from autotune.api import Event, Result, StopTuning, Study, tune

__all__ = ["Event", "Result", "StopTuning", "Study", "__version__", "tune"]


def __getattr__(name: str) -> Any:
    """Imports what is asked for when it is: `autotune --help` needs none of it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("autotune.api"), name)
