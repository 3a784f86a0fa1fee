"""autotune: finds the best speculative-decoding settings of a vLLM DFlash server.

From Python, see :mod:`autotune.api`: ``from autotune import Study, tune``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autotune._version import __version__
    from autotune.api import Event, Result, StopTuning, Study, tune, verify

__all__ = ["Event", "Result", "StopTuning", "Study", "__version__", "tune", "verify"]


def __getattr__(name: str) -> Any:
    """Imports what is asked for when it is: `autotune --help` needs none of it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "autotune._version" if name == "__version__" else "autotune.api"
    return getattr(import_module(module), name)
