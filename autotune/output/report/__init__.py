"""One page for a reader who did not run the study: what to serve, and how certain that is.

:mod:`.sections` reads a study into the blocks of :mod:`.content`; :mod:`.render` makes HTML,
Markdown or PDF of them.
"""

from __future__ import annotations

from autotune.output.report.render import Format, html, markdown, place, write
from autotune.output.report.sections import build

__all__ = ["Format", "build", "html", "markdown", "place", "write"]
