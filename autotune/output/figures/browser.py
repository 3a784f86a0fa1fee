"""Figures as files: one HTML page, or drawn and printed by a Chromium."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from choreographer import Browser, Tab
from choreographer.browsers import Chromium

from autotune.errors import UserError
from autotune.results.text import plain

if TYPE_CHECKING:
    import plotly.graph_objects as go

_log = logging.getLogger(__name__)
logging.getLogger("choreographer").addHandler(logging.NullHandler())  # what matters is raised

_PNG_SIZE = {"width": 1000, "scale": 2}

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ margin: 0; background: white; }}
main {{ max-width: 1200px; margin: 0 auto; }}
</style>
</head>
<body>
<main>{body}</main>
</body>
</html>
"""


def write_html(fig: go.Figure, path: Path, title: str) -> None:
    """Write one file that needs no network (about 5 MB, most of it Plotly itself).

    Raises:
        OSError: the file cannot be written.
    """
    body = fig.to_html(
        full_html=False,
        include_plotlyjs=True,
        config={"displaylogo": False, "responsive": True},
    )
    path.write_text(_PAGE.format(title=escape(plain(title)), body=body), encoding="utf-8")


def write_figure(fig: go.Figure, path: Path, title: str) -> None:
    """Write one file as :func:`write_html` does, where a user named it.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        write_html(fig, path, title)
    except OSError as e:
        raise UserError(f"{path}: cannot be written: {e.strerror}") from e


def find_chromium() -> str | None:
    """Return a Chromium or Chrome that can draw, or None.

    The variable BROWSER_PATH names another one.
    """
    found: str | None = Chromium.find_browser(skip_local=False)
    return found if found and Path(found).is_file() else None


def write_png(fig: go.Figure, path: Path, timeout_s: float = 90) -> bool:
    """Draw the figure with a Chromium.

    Returns:
        False where there is no Chromium, or where the one there is gave no picture within
        ``timeout_s`` seconds, which is logged.

    Raises:
        OSError: the file cannot be written.
    """
    import kaleido  # takes a second, with Plotly

    if find_chromium() is None:
        return False
    browser = kaleido.Kaleido(timeout=timeout_s, mathjax=False)  # MathJax would be downloaded

    async def draw() -> bytes:
        image: bytes = await browser.calc_fig(
            fig, opts={"format": "png", "height": fig.layout.height, **_PNG_SIZE}
        )
        return image

    image = _with_browser(browser, draw, timeout_s)
    if image is None:
        return False
    path.write_bytes(image)
    return True


def print_page(page: Path, timeout_s: float = 120) -> bytes | None:
    """Return a page as PDF, printed as soon as its promise ``figuresDrawn`` is kept.

    Returns:
        None where there is no Chromium, or where the one there is printed nothing within
        ``timeout_s`` seconds, which is logged.
    """
    if find_chromium() is None:
        return None
    browser = Browser(headless=True)

    async def command(tab: Tab, name: str, **params: Any) -> dict[str, Any]:
        answer = await tab.send_command(name, params=params)
        if "error" in answer or "exceptionDetails" in answer["result"]:
            raise RuntimeError(f"{name}: {answer.get('error') or answer['result']}")
        found: dict[str, Any] = answer["result"]
        return found

    async def draw() -> bytes:
        tab = await browser.create_tab(page.absolute().as_uri())
        await command(tab, "Page.enable")
        while True:  # the tab is there before the page is
            loaded = await command(
                tab, "Runtime.evaluate", expression="Boolean(window.figuresDrawn)"
            )
            if loaded["result"]["value"]:
                break
            await asyncio.sleep(0.1)
        await command(tab, "Runtime.evaluate", expression="figuresDrawn", awaitPromise=True)
        printed = await command(
            tab,
            "Page.printToPDF",
            printBackground=True,
            preferCSSPageSize=True,
            generateTaggedPDF=True,
            generateDocumentOutline=True,
        )
        return base64.b64decode(printed["data"])

    return _with_browser(browser, draw, timeout_s)


def _with_browser(
    browser: Browser, work: Callable[[], Awaitable[bytes]], timeout_s: float
) -> bytes | None:
    """Return what a browser makes; None, and a line in the log, where it makes nothing in time."""
    with ThreadPoolExecutor(1) as pool:  # a notebook's own event loop must not be in the way
        return pool.submit(asyncio.run, _drawn(browser, work, timeout_s)).result()


async def _drawn(
    browser: Browser, work: Callable[[], Awaitable[bytes]], timeout_s: float
) -> bytes | None:
    # Kaleido's own time-out covers the drawing, not a browser that starts and never answers. With
    # its processes gone, all that waits for it ends.
    late = False

    def give_up() -> None:
        nonlocal late
        late = True
        _kill(browser)

    killer = asyncio.get_running_loop().call_later(timeout_s, give_up)
    try:
        async with browser:
            return await work()
    except (Exception, asyncio.CancelledError) as e:  # noqa: BLE001 – a picture is not worth a run
        why = f"no answer within {timeout_s:g} s" if late else f"{type(e).__name__}: {e}"
        _log.warning("%s drew no picture: %s", find_chromium(), why)
        return None
    finally:
        killer.cancel()
        _kill(browser)


def _kill(browser: Browser) -> None:
    """Kill what is left of a browser; it was started as a process group of its own."""
    process = getattr(browser, "subprocess", None)
    if process is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
