"""Makes a file of a report: HTML that needs no network, Markdown, or PDF through Chromium.

Plotly's bundle (4.8 MB, once for all figures) and the figures (5 MB of a thousand trials) are kept
compressed in the page and unpacked by the browser (``DecompressionStream``, in every browser since
May 2023). A Content-Security-Policy forbids the page to load anything at all. Whatever comes from a
study, a model or a log is escaped, by jinja2 in HTML and by :func:`_markdown_text` in Markdown.
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
from autotune.plots import DARK, LIGHT, find_chromium, print_page
from autotune.report.content import Figure, Report
from autotune.storage.lease import file_identity, output_folder


class Format(StrEnum):
    """What a report can be."""

    HTML = "html"
    MD = "md"
    PDF = "pdf"


def place(out: Path | None, form: Format | None, database: Path, study: str) -> tuple[Path, Format]:
    """The file to write and what it is, of what a user has said of both.

    Args:
        out: None: ``report.html`` and so on, in the study's own folder, which is made.
        form: None: as ``out`` ends, HTML otherwise.
        database: Of the study.
        study: Its name.

    Raises:
        UserError: the folder is not there, or cannot be made; or the file is the database.
    """
    endings = {f".{f}": f for f in Format}
    kind = form or (Format.HTML if out is None else endings.get(out.suffix, Format.HTML))
    if out is None:
        out = output_folder(database, study) / f"report.{kind}"
        try:
            out.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as e:
            raise UserError(f"{out.parent}: cannot be made: {e.strerror}") from e
    elif file_identity(out) is not None and file_identity(out) == file_identity(database):
        raise UserError(f"{out}: is the database itself; give another --out")
    elif not out.parent.is_dir():
        raise UserError(f"{out}: the folder {out.parent} does not exist; make it first")
    return out, kind


def write(report: Report, path: Path, form: Format) -> None:
    """Writes the report.

    Raises:
        UserError: the file cannot be written.
        NothingUsable: a PDF without a Chromium, or with one that gives none.
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
    """The whole page."""
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
    """The same facts; tables take the places of the figures."""
    page = _environment(html=False).get_template("report.md.j2")
    text = page.render(report=report, fenced=_fenced)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def pdf(report: Report) -> bytes:
    """The page, printed.

    Raises:
        NothingUsable: there is no Chromium, or it gave nothing.
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
        loader=PackageLoader("autotune.report"),
        autoescape=html,  # noqa: S701 – Markdown has marks of its own, see `finalize`
        finalize=None if html else _markdown_text,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )


# What Markdown would take for a mark: everywhere, or only where words begin or end.
_MARKS = re.compile(r"[\\`*|~]|(?<!\w)_|_(?!\w)|(?<=\])\(|^(?=[#>]|[+-]\s)")


def _markdown_text(value: Any) -> Any:
    """Plain text as Markdown; what is Markdown already is ``Markup``."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    text = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKS.sub(lambda m: f"\\{m[0]}", text)


def _fenced(text: str, language: str) -> Markup:
    """A block of code that its text cannot leave."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup(f"{fence}{language}\n{text.rstrip()}\n{fence}")  # noqa: S704 – no HTML


@cache
def _plotly() -> str:
    """Plotly's bundle, which never differs."""
    return _packed(get_plotlyjs())


def _packed(text: str) -> str:
    """A text compressed, in base64, which cannot end the element that it stands in."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()
