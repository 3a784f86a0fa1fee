"""optuna-dashboard as a first-class view: served on this machine only, with our figure and notes.

optuna-dashboard 0.21 opens a database by its URL without making Optuna's tables, so that it dies
on an empty file (``no such table: version_info``). It is given an opened storage instead.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import webbrowser
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from socketserver import ThreadingMixIn
from types import SimpleNamespace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
import optuna_dashboard
import plotly.graph_objects as go
from optuna.artifacts import FileSystemArtifactStore

from autotune.errors import UserError
from autotune.plots import pareto_figure
from autotune.plots3d import front_figure
from autotune.store import Store
from autotune.views import (
    StudyView,
    TrialView,
    bounds_text,
    confirmation_lines,
    number,
    objective_text,
    plain,
    point_text,
    scatter_line,
    verdict_lines,
)

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

HOST = "127.0.0.1"
# The height in pixels of optuna-dashboard's card for a figure; a taller one would be cut off.
_CARD_HEIGHT = 450


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: a line a request is of no use to anybody."""


def serve(
    database: Path,
    study: str | None,
    port: int,
    open_browser: bool,
    ready: Callable[[str], None],
) -> None:
    """Runs optuna-dashboard on 127.0.0.1 until Ctrl-C.

    Args:
        database: The study's SQLite file.
        study: The study whose page is named; the only one without it, or the list of several.
        port: 0 for any free one.
        open_browser: Open the page in the user's browser, where there is a display.
        ready: Called once with a line that has the address.

    Raises:
        UserError: no such database or study, or the port is taken.
    """
    # an existing file without tables is an empty database: create makes them
    store = Store(database, create=database.exists())
    try:
        names = store.study_names()
        path, what = "/dashboard", f"{len(names)} studies"
        if names and (study is not None or len(names) == 1):
            name = store.pick_study(study)
            path = f"/dashboard/studies/{store.storage.get_study_id_from_name(name)}"
            what = name
        elif study is not None:
            store.pick_study(study)  # says that there is none
        elif not names:
            what = f"{database} holds no study yet, and they show as they come"
        with _bind(port, store) as server, contextlib.suppress(KeyboardInterrupt):
            url = f"http://{HOST}:{server.server_port}{path}"
            ready(f"dashboard ({plain(what)}): {url}  (Ctrl-C ends it)")
            if open_browser and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
                webbrowser.open(url)
            server.serve_forever()
    finally:
        store.close()


def _bind(port: int, store: Store) -> _Server:
    artifacts = store.path.absolute().parent / "artifacts"
    app = _local_only(
        optuna_dashboard.wsgi(
            store.storage, FileSystemArtifactStore(artifacts) if artifacts.is_dir() else None
        )
    )
    try:
        server = make_server(HOST, port, app, _Server, _QuietHandler)
    except OSError as e:
        if e.errno not in {errno.EADDRINUSE, errno.EACCES}:
            raise
        why = "is taken" if e.errno == errno.EADDRINUSE else "may not be used by this user"
        raise UserError(f"port {port} {why}; give another --port") from e
    return server


def _local_only(app: WSGIApplication) -> WSGIApplication:
    """Answers pages of this machine only.

    Any page in the user's browser can send requests to 127.0.0.1: with an Origin of its own, or as
    a name that it has let point there ("DNS rebinding"), which then is the Host. The dashboard's
    API reads and deletes studies and asks for no password.
    """

    def answer(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        host, origin = environ.get("HTTP_HOST", ""), environ.get("HTTP_ORIGIN")
        if _is_local(f"//{host}") and (origin is None or _is_local(origin)):
            return app(environ, start)
        start("403 Forbidden", [("Content-Type", "text/plain")])
        return [f"Open it as http://{HOST}, or as localhost.\n".encode()]

    return answer


def _is_local(url: str) -> bool:
    try:
        return urlsplit(url).hostname in {HOST, "localhost", "::1"}
    except ValueError:
        return False


_FRONT_NOTE = """\
No other trial beats one of the front in one objective without losing in another. The plot at the
foot of the study's first page shows it with the dominated and the failed trials."""
_READING_NOTE = """\
## How to read the parameters

- `num_speculative_tokens` (n): draft tokens for each step; 0 is the baseline without speculation.
- `max_num_batched_tokens` (MNBT): most tokens of one step. A name with `log2_` in front is searched
  as the exponent of two: 9 means 512.
- Failed trials have no numbers; the note of each says why.

*Written by autotune, and written anew as the study goes on: put words of your own into the notes of
the trials.*"""


def publish(study: optuna.Study, view: StudyView) -> None:
    """Puts our figure and notes where optuna-dashboard shows them.

    The study's note is ours and follows the study; a failed trial's note is written once, so that
    what a user adds to it stays.
    """
    optuna_dashboard.save_plotly_graph_object(study, _figure(view), graph_object_id="pareto-front")
    _save(study, _study_note(view))
    ids = {t.number: t._trial_id for t in study.get_trials(deepcopy=False)}
    for trial in view.failures():
        # save_note() wants Optuna's Trial, which exists only while one runs; it reads these three
        target = SimpleNamespace(storage=study._storage, study=study, _trial_id=ids[trial.number])
        if not optuna_dashboard.get_note(target):
            _save(target, _failure_note(trial))


def _figure(view: StudyView) -> go.Figure:
    if len(view.objectives) != 3:
        return pareto_figure(view, _CARD_HEIGHT)
    figure = front_figure(view, _CARD_HEIGHT)
    # the card has room for the space only, and optuna-dashboard draws parallel coordinates itself
    figure.data = [trace for trace in figure.data if trace.type != "parcoords"]
    figure.layout.annotations = ()  # what explains them
    small = {"title_font_size": 10, "tickfont_size": 9, "nticks": 5}
    figure.update_scenes(domain_y=[0, 1], xaxis=small, yaxis=small, zaxis=small)
    return figure


def _save(target: object, body: str) -> None:
    if optuna_dashboard.get_note(target) != body:
        optuna_dashboard.save_note(target, body)


def _study_note(view: StudyView) -> str:
    failed = view.failures()
    about = [f"{view.finished} of {view.wanted} trials finished"]
    about += [f"{len(failed)} failed"] if failed else []
    about += [f"vLLM {view.vllm_version}"] if view.vllm_version else []
    about += [view.machine] if view.machine else []
    lines = [f"# {_md(view.name)}", "", _md(", ".join(about)) + ".", "", "## Objectives", ""]
    for o in view.objectives:
        way = "more" if o.direction == "maximize" else "less"
        lines.append(f"- **{_md(objective_text(o))}**, {way} is better: {_md(o.formula)}")
    lines += ["", "## The front", ""]
    front = view.front()
    if not front:
        lines.append("No trial has given numbers yet.")
    else:
        heads = ["trial", "parameters", *map(objective_text, view.objectives)]
        heads += ["acceptance length (tokens/step)", "speed-up (×)"]
        lines += [_row(heads), _row(["---"] * len(heads), escape=False)]
        base = [t for t in view.trials if t.baseline and not t.front and t.values]
        for t in [*front, *base]:
            lines.append(_row(_cells(view, t)))
        lines += ["", _FRONT_NOTE]
        if again := confirmation_lines(view):
            lines += ["", "## Measured again, side by side", ""]
            lines += [f"- {_md(line)}" for line in again]
            lines += ["", *(f"- {_md(line)}" for line in verdict_lines(view))]
        if scatter := scatter_line(view):
            lines += ["", _md(scatter[0].upper() + scatter[1:]) + "."]
    lines += ["", _READING_NOTE]
    return "\n".join(lines)


def _cells(view: StudyView, trial: TrialView) -> list[str]:
    cells = [f"{trial.number} (baseline)" if trial.baseline else str(trial.number)]
    cells.append(point_text(trial.point))
    for o in view.objectives:
        value = trial.value(o)
        interval = (trial.intervals or {}).get(o.name)
        shown = "" if value is None else number(value)
        cells.append(f"{shown} {bounds_text(interval)}" if interval else shown)
    length, speedup = trial.acceptance_length, trial.speedup
    cells += ["" if x is None else f"{x:.2f}" for x in (length, speedup)]
    return cells


def _failure_note(trial: TrialView) -> str:
    lines = [plain(line) for line in (trial.failure_reason or "", *trial.failure_evidence)]
    text = "\n".join(filter(None, lines))
    # a fence longer than any in the text keeps a log from being read as Markdown or HTML
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return "\n".join(
        [
            f"# Failed: {_md(trial.failure_kind or 'unknown')}",
            "",
            _md(point_text(trial.point)),
            "",
            f"{fence}text",
            text,
            fence,
        ]
    )


def _row(cells: Sequence[str], *, escape: bool = True) -> str:
    return "| " + " | ".join(_md(c) if escape else c for c in cells) + " |"


def _md(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>|#~!&])", r"\\\1", plain(text))
