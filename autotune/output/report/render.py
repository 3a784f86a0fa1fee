"""Write a report as a file: HTML that needs no network, Markdown, or PDF through Chromium.

Plotly's bundle (4.8 MB, once for all figures) and the figures (5 MB of a thousand trials) are kept
compressed in the page and unpacked by the browser (``DecompressionStream``, in every browser since
May 2023). A Content-Security-Policy forbids the page to load anything at all. All text of a study,
a model or a log is escaped, by jinja2 in HTML and by :func:`_markdown_text` in Markdown.
"""

from __future__ import annotations

import base64
import gzip
import re
import tempfile
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from autotune.errors import NothingUsable, UserError
from autotune.output.figures.browser import find_chromium, print_page
from autotune.output.figures.theme import DARK, LIGHT
from autotune.output.report.content import Figure, Report
from autotune.results.text import fenced
from autotune.storage.location import Database, file_identity
from autotune.storage.names import output_folder


class Format(StrEnum):
    """Formats of a report."""

    HTML = "html"
    MD = "md"
    PDF = "pdf"


def place(
    out: Path | None, form: Format | None, database: Database, study: str
) -> tuple[Path, Format]:
    """Return the file to write and its format, from the user's options.

    Args:
        out: The file; None: ``report.html`` and so on, in the study's own folder, which is made.
        form: The format; None: as ``out`` ends, HTML otherwise.
        database: Database of the study.
        study: Name of the study.

    Raises:
        UserError: the folder does not exist or cannot be made; or the file is the database.
    """
    endings = {f".{f}": f for f in Format}
    kind = form or (Format.HTML if out is None else endings.get(out.suffix, Format.HTML))
    if out is None:
        out = output_folder(database, study) / f"report.{kind}"
        try:
            out.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as e:
            raise UserError(
                f"{out.parent}: cannot be made: {e.strerror}; name a file with --out"
            ) from e
    elif file_identity(out) is not None and file_identity(out) == file_identity(database):
        raise UserError(f"{out}: is the database itself; give another --out")
    elif not out.parent.is_dir():
        raise UserError(f"{out}: the folder {out.parent} does not exist; make it first")
    return out, kind


def write(report: Report, path: Path, form: Format) -> None:
    """Write the report.

    Raises:
        UserError: the file cannot be written.
        NothingUsable: a PDF needs a Chromium, and there is none, or it printed nothing.
    """
    match form:
        case Format.HTML:
            made = html(report).encode()
        case Format.MD:
            made = markdown(report).encode()
        case Format.PDF:
            made = pdf(report)
    try:
        path.write_bytes(made)
    except OSError as e:
        raise UserError(f"{path}: cannot be written: {e.strerror}") from e


def html(report: Report) -> str:
    """Return the report as one HTML page."""
    drawn = {}
    for section in report.sections:
        for block in section.blocks:
            if isinstance(block, Figure):
                drawn[block.name] = {"light": block.draw(LIGHT), "dark": block.draw(DARK)}
    figures = ",".join(
        f'"{name}": {{"light": {both["light"].to_json()}, "dark": {both["dark"].to_json()}}}'
        for name, both in drawn.items()
    )
    page = _environment(html=True).get_template("report.html.j2")
    return page.render(
        report=report,
        light=LIGHT,
        dark=DARK,
        figures=_packed(f"{{{figures}}}") if drawn else "",
        # Plotly compiles the drawing of parallel coordinates for WebGL in the browser
        compiles=any(t.type == "parcoords" for both in drawn.values() for t in both["light"].data),
        heights={name: both["light"].layout.height for name, both in drawn.items()},
        plotly=_plotly() if drawn else "",
    )


def markdown(report: Report) -> str:
    """Return the report in Markdown, with tables instead of figures."""
    page = _environment(html=False).get_template("report.md.j2")
    text = page.render(report=report, fenced=_fenced)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def pdf(report: Report) -> bytes:
    """Return the report as PDF: the page, printed.

    Raises:
        NothingUsable: there is no Chromium, or it printed nothing.
    """
    if find_chromium() is None:
        raise NothingUsable(
            "no Chromium was found, which a PDF takes; install one, or name one by BROWSER_PATH; "
            "--format html and md need none"
        )
    with tempfile.TemporaryDirectory(prefix="autotune-report-") as folder:
        page = Path(folder) / "report.html"
        page.write_text(html(report), encoding="utf-8")
        made = print_page(page)
    if made is None:
        raise NothingUsable("Chromium printed no PDF; the line above says why")
    return made


def _environment(*, html: bool) -> Environment:
    return Environment(
        loader=PackageLoader("autotune.output.report"),
        autoescape=html,  # noqa: S701 – Markdown has marks of its own, see `finalize`
        finalize=None if html else _markdown_text,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )


# What Markdown would take for a mark: everywhere, or only where words begin or end.
_MARKS = re.compile(r"[\\`*|~]|(?<!\w)_|_(?!\w)|(?<=\])\(|^(?=[#>]|[+-]\s)")


def _markdown_text(value: Any) -> Any:
    """Return plain text as Markdown; what is Markdown already is ``Markup``."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    text = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKS.sub(lambda m: f"\\{m[0]}", text)


def _fenced(text: str, language: str) -> Markup:
    """Return a block of code that its text cannot leave."""
    return Markup(fenced(text.rstrip(), language))  # noqa: S704 – no HTML


@cache
def _plotly() -> str:
    """Return Plotly's bundle, which never differs."""
    return _packed(get_plotlyjs())


def _packed(text: str) -> str:
    """Return a text compressed, in base64, which cannot end the element around it."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()
