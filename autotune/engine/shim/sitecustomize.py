"""Hide the modules named in ``AUTOTUNE_HIDE``; runs first in every Python of a server.

A torchvision, torchaudio or torchcodec that was built for another torch breaks vLLM's start
(``operator torchvision::nms does not exist``), and a text model needs none of them. With ``None``
in ``sys.modules``, importing one raises ImportError and ``importlib.util.find_spec`` answers None,
as if it were not installed.
"""

import os
import sys
from pathlib import Path

for _name in os.environ.get("AUTOTUNE_HIDE", "").split(","):
    if _name:
        sys.modules[_name] = None  # type: ignore[assignment]

# Python runs only the first sitecustomize on its path: run the next one too.
_here = Path(__file__).resolve().parent
for _entry in sys.path:
    _next = Path(_entry, "sitecustomize.py")
    if Path(_entry).resolve() != _here and _next.is_file():
        exec(  # noqa: S102 – as Python itself would
            compile(_next.read_bytes(), str(_next), "exec"),
            {"__name__": "sitecustomize", "__file__": str(_next)},
        )
        break
