"""optuna-dashboard with autotune's figures and notes, served on this machine only.

optuna-dashboard 0.21 opens a database by its URL without making Optuna's tables, so that it dies
on an empty file (``no such table: version_info``). It is given an opened storage instead.

The figures are the report's, saved in the study (:func:`publish`). What is known of a trial gets
readable names with units on its way to the page only (:func:`_in_words`): the database keeps one
name for each thing, which every version reads, and Optuna writes nothing to a finished trial.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import webbrowser
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
import optuna_dashboard
import plotly.graph_objects as go
from optuna.artifacts import FileSystemArtifactStore

from autotune.errors import AutotuneError, UserError, in_short
from autotune.output.figures.pareto import pareto_figure
from autotune.output.figures.pareto3d import space_figure
from autotune.output.figures.theme import Theme
from autotune.output.figures.trials import message_figure
from autotune.output.report import build
from autotune.output.report.content import Figure, Paragraph, Report
from autotune.output.report.measured import remarks
from autotune.results.flatness import statement_of
from autotune.results.tables import Column, Row, Table, markdown_lines
from autotune.results.text import (
    Bounds,
    bounds_text,
    fenced,
    markdown,
    objective_text,
    optional,
    plain,
    upper,
    value_and_bounds,
    way_text,
)
from autotune.results.trials import study_view
from autotune.results.views import (
    StudyView,
    TrialView,
    confirmation_lines,
    dropped_lines,
    off_front_lines,
    scatter_line,
    steps_notes,
    throttled_lines,
    verdict_lines,
    why_no_best,
)
from autotune.search.spending import STEPS
from autotune.storage.failures import database_errors
from autotune.storage.location import Database, Server
from autotune.storage.names import artifact_folder
from autotune.storage.records import TRIAL_KEYS
from autotune.storage.sqlite import writable
from autotune.storage.store import Store, is_there, no_such
from autotune.study.space import keeps_exponents

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

# Of a trial, by readable name: words, or a number that can be plotted.
_Attributes = dict[str, str | float]
# The number of a trial, and what became of it in optuna-dashboard's words.
_State = tuple[int, str]

HOST = "127.0.0.1"
# The height in pixels of optuna-dashboard's card for a figure; a taller one would be cut off.
_CARD_HEIGHT = 450
# A figure is saved once for a page that is white or #1E1E1E, as its reader likes: what shows the
# page through, and text with the same contrast to both, 4 : 1.
_CARD = Theme(
    ink="#7A7F86",
    grid="rgba(128, 134, 139, 0.25)",
    axis="#80868B",
    page="rgba(0, 0, 0, 0)",
    veil="rgba(0, 0, 0, 0)",
    strip="rgba(128, 134, 139, 0.12)",
    front="#1C86C4",
    baseline="#C96A17",
)
# The report's figures in its own order; optuna-dashboard keeps none.
_ORDER = (
    *("pareto-front", "lines", "by-n", "grid-0", "grid-1", "grid-2", "acceptance", "prediction"),
    *("latency", "load", "importance", "time"),
)
_HOVER = {"bgcolor": "#22272C", "font_color": "#E3E6EA"}  # over a plot, so never seen through
_IMPORTANCE = "importance"  # card and section
# Plotly's buttons that would lie over a title; the mouse does what they do.
_NO_BUTTONS = (
    *("zoom", "pan", "select", "lasso", "zoomin", "zoomout", "autoscale", "resetscale"),
    *("orbitrotation", "tablerotation", "resetcameradefault", "resetcameralastsave"),
)
# What the dashboard asks for a study's page, every few seconds.
_STUDY = re.compile(r"/api/studies/(\d+)/?")
# autotune's own attributes, which are shown in words instead; any other is a user's, and shown.
_OWN = TRIAL_KEYS | {"moved_because"}  # of an older version

_log = logging.getLogger(__name__)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: a line for each request is of no use."""


def serve(
    database: Database,
    study: str | None,
    port: int,
    open_browser: bool,
    ready: Callable[[str], None],
) -> None:
    """Run optuna-dashboard on 127.0.0.1 until Ctrl-C; figures and notes are written again before.

    Args:
        database: The study's database.
        study: The study whose page is named; the only one without it, or the list of several.
        port: 0 for any free one.
        open_browser: Open the page in the user's browser, where there is a display.
        ready: Called once with a line that has the address.

    Raises:
        UserError: no such database or study, or the port is taken.
    """
    if not is_there(database):
        raise UserError(no_such(database))
    if isinstance(database, Server):
        _serve(database, study, port, open_browser, ready)
        return
    with writable(database) as file:
        if file != database:
            ready(f"{database} cannot be written: a copy of it is shown, as it is now")
        _serve(file, study, port, open_browser, ready)


def _serve(
    database: Database,
    study: str | None,
    port: int,
    open_browser: bool,
    ready: Callable[[str], None],
) -> None:
    # an existing file without tables is an empty database: create makes them
    store = Store(database, create=True)
    try:
        names = store.study_names()
        path, what = "/dashboard", f"{len(names)} studies"
        if names and (study is not None or len(names) == 1):
            name = store.pick_study(study)
            store.optuna_study(name)  # refuses one that has no trials yet
            path = f"/dashboard/studies/{store.storage.get_study_id_from_name(name)}"
            what, names = name, [name]
        elif study is not None:
            store.pick_study(study)  # says that there is none
        elif not names:
            what = f"{database} holds no study yet, and they show as they come"
        for name in names:
            try:
                with database_errors(database):
                    view = study_view(store, name)
                    publish(store, view, build(store, view))
            except Exception as e:  # noqa: BLE001 – to look at what is there is better than nothing
                _log.warning("figures and notes are as they were saved: %s", in_short(e))
        with _bind(port, store) as server, contextlib.suppress(KeyboardInterrupt):
            url = f"http://{HOST}:{server.server_port}{path}"
            ready(f"dashboard ({plain(what)}): {url}  (Ctrl-C ends it)")
            if open_browser and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
                webbrowser.open(url)
            server.serve_forever()
    finally:
        store.close()


def _bind(port: int, store: Store) -> _Server:
    artifacts = artifact_folder(store.database)
    shown = optuna_dashboard.wsgi(
        store.storage, FileSystemArtifactStore(artifacts) if artifacts.is_dir() else None
    )
    app = _local_only(_in_words(shown, store))
    try:
        server = make_server(HOST, port, app, _Server, _QuietHandler)
    except OSError as e:
        if e.errno not in {errno.EADDRINUSE, errno.EACCES}:
            raise
        why = "is taken" if e.errno == errno.EADDRINUSE else "may not be used by this user"
        raise UserError(f"port {port} {why}; give another --port") from e
    return server


def _local_only(app: WSGIApplication) -> WSGIApplication:
    """Return an application that answers pages of this machine only.

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


class _Known(NamedTuple):
    """What is known of a study's trials.

    Attributes:
        words: Attributes of each trial, by number.
        front: Numbers of the Pareto front; None: Optuna's own is the same.
    """

    words: Mapping[int, _Attributes]
    front: frozenset[int] | None


class _Words:
    """What is known of the trials of each study, with readable names and units."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[int, tuple[set[_State], _Known | None]] = {}

    def of(self, study: int, seen: set[_State]) -> _Known | None:
        """Return what is known of the trials; None: autotune did not make the study.

        The page asks every few seconds, also while a server is measured: they are read again only
        when a trial has begun or ended.

        Args:
            study: Optuna's id of the study.
            seen: The trials that the page shows.
        """
        before, words = self._known.get(study, (None, None))
        if before is not None and seen <= before:
            return words
        try:
            with database_errors(self._store.database):
                name = self._store.storage.get_study_name_from_id(study)
                known = name in self._store.study_names()  # or made by hand, in the dashboard
                words = _known_of(self._store, name) if known else None
        except AutotuneError as e:
            _log.warning("user attributes are shown as they are stored: %s", e)
            words = None
        self._known[study] = seen | (before or set()), words
        return words


def _in_words(app: WSGIApplication, store: Store) -> WSGIApplication:
    """Return an application that shows readable names and units of what is known of a trial."""
    words = _Words(store)

    def answer(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        asked = _STUDY.fullmatch(environ.get("PATH_INFO", ""))
        if asked is None or environ["REQUEST_METHOD"] != "GET":
            return app(environ, start)
        # bottle keeps what it read of a request in it
        asked_for_all = {k: v for k, v in environ.items() if not k.startswith("bottle.")}
        asked_for_all["QUERY_STRING"] = ""
        begun: list[Any] = []

        def hold(status: str, headers: list[tuple[str, str]], _error: Any = None) -> Any:
            begun[:] = status, headers

        body = b"".join(app(environ, hold))
        status, headers = begun
        if status.startswith("200"):
            study = json.loads(body)
            seen = {(t["number"], t["state"]) for t in study["trials"]}
            if (found := words.of(int(asked[1]), seen)) is not None:
                if found.front is not None:
                    whole = study
                    if not found.front <= {t["number"] for t in study["trials"]}:  # later ones only
                        whole = json.loads(b"".join(app(asked_for_all, hold)))
                    best = (t for t in whole["trials"] if t["number"] in found.front)
                    study["best_trials"] = [dict(t) for t in best]
                _put(found.words, study)
                body = json.dumps(study).encode()
        headers = [(k, v) for k, v in headers if k.lower() != "content-length"]
        start(status, [*headers, ("Content-Length", str(len(body)))])
        return [body]

    return answer


def _put(words: Mapping[int, _Attributes], study: dict[str, Any]) -> None:
    """Replace the stored attributes in the study that the page asked for.

    The figures are put into their order, which would otherwise differ between processes.
    """
    sortable: dict[str, bool] = {}  # numbers, which can be an axis of a plot as well
    for of in words.values():
        for key, value in of.items():
            sortable[key] = sortable.get(key, True) and not isinstance(value, str)
    own = [a for a in study["union_user_attrs"] if a["key"] not in _OWN]
    study["union_user_attrs"] = [{"key": k, "sortable": x} for k, x in sortable.items()] + own
    for trial in (*study["trials"], *study["best_trials"]):
        if (found := words.get(trial["number"])) is not None:  # it has a point
            own = [a for a in trial["user_attrs"] if a["key"] not in _OWN]
            trial["user_attrs"] = [{"key": k, "value": str(v)} for k, v in found.items()] + own
    for attribute in study["user_attrs"]:
        attribute["key"] = _study_key(attribute["key"])
    order = {name: i for i, name in enumerate(_ORDER)}
    study["plotly_graph_objects"].sort(key=lambda f: (order.get(f["id"], len(order)), f["id"]))


def _study_key(key: str) -> str:
    """Return a user attribute of a study in words, if autotune wrote it."""
    wanted = key.removeprefix("confirmation_")
    if wanted != key and wanted.isdigit():
        return f"trials launched again, in this order (--trials {wanted})"
    wanted = key.removeprefix(STEPS)
    if wanted != key:
        return f"launches held for that, and what was dropped (--trials {wanted})"
    if key.partition("_")[0] == "converged":  # with the version of the estimator, if not the first
        return "--trials that the search did not need"
    return key


def _known_of(store: Store, name: str) -> _Known:
    """Return what is known of a study's trials.

    Optuna compares all numbers that it is told, also those of a load that vLLM throttled.
    """
    view = study_view(store, name)
    throttled = any(t.throttled for t in view.trials)
    healthy = {  # seconds; of several launches the latest one counts, as everywhere
        x.trial: x.ready_at - x.planned_at
        for x in store.launches.of_study(name)
        if x.ready_at is not None
    }
    return _Known(
        {t.number: _attributes(view, t, healthy.get(t.number)) for t in view.trials},
        frozenset(t.number for t in view.trials if t.front) if throttled else None,
    )


def _attributes(view: StudyView, t: TrialView, healthy_s: float | None) -> _Attributes:
    """Return what is known of a trial except its parameters and objectives; nothing empty.

    Args:
        view: The study.
        t: The trial.
        healthy_s: Time from its launch to its server's first healthy answer, s.
    """
    found: dict[str, str | float | None] = {
        "remarks": remarks(t),
        "failure reason": plain(t.failure_reason or ""),
        "warnings": plain("; ".join(t.warnings)),
        "rehearsal": plain(view.rehearsal),
        "output": None if t.certificate is None else t.certificate.verdict.value,
    }
    for o in view.objectives:
        name = objective_text(o)
        found[f"{name}, 95% interval"] = _interval((t.intervals or {}).get(o.name))
        found[f"{name}, confirmed"] = _rounded((t.confirmed or {}).get(o.name))
        found[f"{name}, confirmed, 95% interval"] = _interval(
            (t.confirmed_intervals or {}).get(o.name)
        )
    found["speed-up (×)"] = _rounded(t.speedup)
    found["speed-up (×), 95% interval"] = _interval(t.speedup_interval)
    per = "tokens/step with drafts" if t.skips_steps else "tokens/step"
    found[f"acceptance length ({per})"] = _rounded(t.acceptance_length)
    found["accepted by position"] = ", ".join(f"{x:.0%}" for x in t.acceptance_per_position)
    found["requests"] = t.requests
    found["launch to healthy (s)"] = _rounded(healthy_s)
    return {key: value for key, value in found.items() if value is not None and value != ""}


def _interval(bounds: Bounds | None) -> str | None:
    return None if bounds is None else bounds_text(bounds)


def _rounded(value: float | None) -> float | None:
    """Return a value with four digits."""
    return None if value is None else float(f"{value:.4g}")


_FRONT_NOTE = """\
No other trial beats one on the front in one objective without losing in another. A plot further
down on the study's first page shows it with the dominated and the failed trials."""
_IMPORTANCE_NOTE = """\
optuna-dashboard's own plot of importances is not autotune's: it shares out 100 % also where nothing
but noise differs."""
_READING_NOTE = """\
## How to read the parameters

- `num_speculative_tokens` (n): draft tokens for each step; 0 is the baseline without speculation.
- `max_num_batched_tokens` (MNBT): most tokens of one step.{exponents}
- Failed trials have no numbers; the note of each says why.

*autotune writes this note, and replaces it as the study goes on: put your own text into the notes
of the trials.*"""
_EXPONENTS_NOTE = """ A name with `log2_` in front is searched
  as the exponent of two: 9 means 512."""


def publish(store: Store, view: StudyView, report: Report) -> None:
    """Save figures and notes where optuna-dashboard shows them.

    A figure replaces its last version. The study's note is autotune's and follows the study; a
    failed trial's note is written once, so that what a user adds to it stays.

    Args:
        store: The database that has the study.
        view: The study.
        report: Its report, whose figures are shown.
    """
    study = store.optuna_study(view.name)
    cards = dict(_cards(view, report))
    importance = [
        b.text
        for section in report.sections
        if section.name == _IMPORTANCE
        for b in section.blocks
        if isinstance(b, Paragraph)
    ]
    if importance and _IMPORTANCE not in cards and _has_card(store, view.name, _IMPORTANCE):
        # the dashboard cannot take a card away, and this one would show an earlier state
        cards[_IMPORTANCE] = _as_card(message_figure(importance[0], _CARD))
    for key, figure in cards.items():
        optuna_dashboard.save_plotly_graph_object(study, figure, graph_object_id=key)
    params = (t.params for t in study.get_trials(deepcopy=False))
    found = statement_of(store, view)
    said = [] if found is None else found.lines(view.objectives)
    _save(study, _study_note(view, said, importance, exponents=keeps_exponents(params)))
    for trial in view.failures():
        target = optuna.Trial(study, store.trial_id(view.name, trial.number))
        if not optuna_dashboard.get_note(target):
            _save(target, _failure_note(trial, view.rehearsal))


def _cards(view: StudyView, report: Report) -> Iterator[tuple[str, go.Figure]]:
    """Yield the report's figures as the dashboard's cards, each with the id that it is saved by."""
    front = space_figure if len(view.objectives) == 3 else pareto_figure
    yield "pareto-front", _as_card(front(view, _CARD_HEIGHT, _CARD))
    for section in report.sections:
        for block in section.blocks:
            if isinstance(block, Figure) and block.name != "front":
                yield block.name, _as_card(_headed(block.draw(_CARD), section.title))


def _has_card(store: Store, study: str, name: str) -> bool:
    """Return whether a card of this id was saved in the study before."""
    kept = store.storage.get_study_system_attrs(store.storage.get_study_id_from_name(study))
    return any(key.startswith(f"dashboard:plot_data:{name}:") for key in kept)


def _headed(figure: go.Figure, title: str) -> go.Figure:
    """Return a figure of the report with the title of its section."""
    return figure.update_layout(
        title={
            "text": f"<b>{title}</b>",
            "font_size": 15,
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad_t": 16,
        },
        margin_t=92,
    )


def _as_card(figure: go.Figure) -> go.Figure:
    """Return a figure that fits a card: half the page wide."""
    small = {"title_font_size": 11, "title_standoff": 6}
    figure.update_layout(
        height=_CARD_HEIGHT,
        modebar={
            "remove": _NO_BUTTONS,
            "bgcolor": _CARD.page,
            "color": _CARD.axis,
            "activecolor": _CARD.ink,
        },
        hoverlabel=_HOVER,
    )
    figure.update_traces(colorbar_title_font_size=11, selector={"type": "heatmap"})
    figure.update_xaxes(**small)
    figure.update_yaxes(**small)
    smaller = {"title_font_size": 10, "tickfont_size": 9, "nticks": 5}
    return figure.update_scenes(xaxis=smaller, yaxis=smaller, zaxis=smaller)


def _save(target: optuna.Study | optuna.Trial, body: str) -> None:
    if optuna_dashboard.get_note(target) != body:
        optuna_dashboard.save_note(target, body)


def _study_note(
    view: StudyView, said: Sequence[str], importance: Sequence[str], *, exponents: bool
) -> str:
    failed = view.failures()
    about = [f"{view.finished} of {view.wanted} trials finished"]
    about += [f"{len(failed)} failed"] if failed else []
    about += [f"vLLM {view.vllm_version}"] if view.vllm_version else []
    about += [view.machine] if view.machine else []
    lines = [
        f"# {markdown(view.name)}",
        "",
        markdown(", ".join(about)) + ".",
        *(["", f"**{markdown(upper(view.rehearsal))}.**"] if view.rehearsal else []),
        "",
        "## Objectives",
        "",
    ]
    for o in view.objectives:
        lines.append(f"- **{markdown(objective_text(o))}**, {way_text(o)}: {markdown(o.formula)}")
    lines += ["", "## The Pareto front", ""]
    front = view.front()
    if not front:
        lines.append(markdown(upper(why_no_best(view))) + ".")
    else:
        base = [t for t in view.trials if t.baseline and not t.front and t.values]
        lines += markdown_lines(_front_table(view, [*front, *base]), markdown)
        lines += ["", *(f"{markdown(x)}.\n" for x in steps_notes([*front, *base])), _FRONT_NOTE]
        if again := confirmation_lines(view):
            lines += ["", "## Measured again, side by side", ""]
            lines += [f"- {markdown(line)}" for line in (*again, *dropped_lines(view))]
            chosen = (*verdict_lines(view), *off_front_lines(view))
            lines += ["", *(f"- {markdown(line)}" for line in chosen)]
        if scatter := scatter_line(view):
            lines += ["", markdown(upper(scatter)) + "."]
    if said:
        lines += ["", markdown(" ".join(said))]
    if throttled := throttled_lines(view):
        lines += ["", *(f"- {markdown(upper(line))}." for line in throttled)]
    if importance:
        lines += ["", "## Which parameter matters", "", *(f"{markdown(x)}\n" for x in importance)]
    lines += [
        "",
        _IMPORTANCE_NOTE,
        "",
        _READING_NOTE.format(exponents=_EXPONENTS_NOTE if exponents else ""),
    ]
    return "\n".join(lines)


def _front_table(view: StudyView, trials: Iterable[TrialView]) -> Table:
    heads = ["trial", "parameters", *map(objective_text, view.objectives)]
    heads += ["acceptance length (tokens/step)", "speed-up (×)"]
    rows = (
        (
            f"{t.number} (baseline)" if t.baseline else str(t.number),
            t.setting,
            *(
                value_and_bounds(t.value(o), (t.intervals or {}).get(o.name))
                for o in view.objectives
            ),
            t.length_text,
            optional(t.speedup, ".2f"),
        )
        for t in trials
    )
    return Table(tuple(map(Column, heads)), tuple(map(Row, rows)))


def _failure_note(trial: TrialView, rehearsal: str) -> str:
    lines = [plain(line) for line in (trial.failure_reason or "", *trial.failure_evidence)]
    return "\n".join(
        [
            f"# Failed: {markdown(trial.failure_kind or 'unknown')}",
            "",
            markdown(trial.setting),
            *(["", markdown(upper(rehearsal))] if rehearsal else []),
            "",
            fenced("\n".join(filter(None, lines))),
        ]
    )
