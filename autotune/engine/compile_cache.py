"""Use of torch.compile's cache in one launch, inferred from the server's log.

A vLLM that compiles keeps what it compiled in ``$VLLM_CACHE_ROOT/torch_compile_cache``, under a
hash of everything that changes the code. The lines were read in the source of 0.26 and 0.32; older
wordings are from logs and from a version of 2025:

- loaded: "Directly load the compiled graph(s) for … from the cache, took … s"
  (``compilation/backends.py:CompilerManager.compile``; … is ``compile range (…)``, in older ones
  ``dynamic shape`` or ``shape (…)``), and "Directly load AOT compilation from path …"
  (``compilation/decorators.py``); in 0.32 with the tag of a draft or an encoder in front;
- compiled: "Compiling a graph for … takes … s" (same place), and "Compiling model again due to a
  load failure from …, reason: …" (older: "Cannot load aot compilation from path …, error: …");
- off: "vLLM's torch.compile cache is disabled.";
- folder: "Using cache directory: … for vLLM's torch.compile".

A server that compiles nothing (``enforce-eager``) logs none of these lines. Nor does one for CPUs,
which compiles without vLLM's cache (``platforms/cpu.py``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

_LOADED = re.compile(
    r"Directly load (the compiled graph\(s\) for .{1,200} from the cache"
    r"|AOT compilation from path )"
)
_COMPILED = re.compile(
    r"Compiling a graph for .{1,200} takes |Compiling model again due to a load failure from "
    r"|Cannot load aot compilation from path "
)
_OFF = "torch.compile cache is disabled"
_FOLDER = re.compile(r"Using cache directory: (.{1,1000}?) for vLLM's torch\.compile")
_GRAPHS_OF = re.compile(r"/rank_\d+_\d+(/.*)?$")  # part of a path below the folder of the key


class CacheUse(StrEnum):
    """Use of the cache in one launch; the values are shown to the user."""

    HIT = "hit"
    PARTLY = "partly hit"  # such as the target's graphs, not the draft's
    MISSED = "missed"
    OFF = "off"


@dataclass(frozen=True)
class CompileCache:
    """torch.compile's cache in one launch.

    Attributes:
        use: Whether the launch found its graphs in the cache.
        folder: Folder of the graphs, whose last part is the key; None: the log does not say.
    """

    use: CacheUse
    folder: str | None

    @property
    def text(self) -> str:
        """Use and folder, as ``hit (/home/me/.cache/vllm/torch_compile_cache/7a48b06768)``."""
        return f"{self.use} ({self.folder})" if self.folder else str(self.use)


def compile_cache_of(lines: Iterable[str]) -> CompileCache | None:
    """Return what a server's log says about the cache; None: nothing.

    Args:
        lines: Lines of the log, or of its beginning.
    """
    loaded = compiled = off = False
    folder: str | None = None
    for line in lines:
        loaded = loaded or _LOADED.search(line) is not None
        compiled = compiled or _COMPILED.search(line) is not None
        off = off or _OFF in line
        if folder is None and (found := _FOLDER.search(line)) is not None:
            folder = _GRAPHS_OF.sub("", found[1])
    if off:
        return CompileCache(CacheUse.OFF, None)
    if loaded and compiled:
        return CompileCache(CacheUse.PARTLY, folder)
    if loaded or compiled:
        return CompileCache(CacheUse.HIT if loaded else CacheUse.MISSED, folder)
    return None
