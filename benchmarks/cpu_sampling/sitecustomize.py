"""Mend vLLM's drawn tokens with drafts on a CPU, to tell that fault from others.

    PYTHONPATH=benchmarks/cpu_sampling autotune verify STUDY --sampling

The ``expand_kernel`` of vLLM 0.32 for CPUs fills a copy of its output, where that is no int64
(https://github.com/vllm-project/vllm/issues/55005). So the temperature of each drafted position,
and top-p and top-k, are what lay in memory. This module, which Python imports at its start,
replaces that function when vLLM has defined it.
"""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

MODULE = "vllm.utils.cpu_triton_utils"


def expand(
    output: Any, values: Any, ends: Any, replace_from: float, replace_to: float, *_more: Any
) -> None:
    """Write each request's value to all of its drafted positions, in the type that they have.

    Args:
        output: Value of each position, to be written.
        values: Value of each request.
        ends: Number of positions up to each request, and with it.
        replace_from: Value that is replaced.
        replace_to: What by.
    """
    at = 0
    for value, end in zip(values.tolist(), ends.tolist(), strict=True):
        output[at:end] = replace_to if value == replace_from else value
        at = end


class _Mending(Loader):
    """Loads a module as it is, and mends it."""

    def __init__(self, own: Any) -> None:
        self._own = own

    def create_module(self, spec: ModuleSpec) -> Any:
        return self._own.create_module(spec)

    def exec_module(self, module: Any) -> None:
        self._own.exec_module(module)
        module._expand_kernel_impl = expand


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        found = PathFinder.find_spec(name, path, target) if name == MODULE else None
        if found is not None:
            found.loader = _Mending(found.loader)
        return found


sys.meta_path.insert(0, _Finder())
