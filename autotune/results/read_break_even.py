"""Read a break-even map from the database."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from autotune.errors import UserError
from autotune.results.break_even import BreakEvenView, Launched
from autotune.results.load_map_ways import CHECK, LABEL, common, way_of
from autotune.results.read_load_map import Setting, comparable_loads, point_view, variance_of
from autotune.serving.machine import machine_line
from autotune.storage.names import break_even_name
from autotune.storage.schema import MapPointRow
from autotune.storage.store import Store
from autotune.study.files import LoadedStudy


def points_of(store: Store, study: str, setting: Setting) -> list[MapPointRow]:
    """Return the points of a break-even map, oldest first."""
    plain = setting.plain()
    rows = store.load_maps.points(break_even_name(study))
    return [x for x in rows if common(x.setting) == plain]


def stored_break_even(
    store: Store, loaded: LoadedStudy, known: Collection[str], decay: float
) -> BreakEvenView:
    """Return the study's latest break-even map; nothing is launched.

    Args:
        store: Database.
        loaded: The study.
        known: Fingerprints of the experiment.
        decay: Factor on the conditional acceptance from one position to the next.

    Raises:
        UserError: there is none.
    """
    name = loaded.spec.name
    points = store.load_maps.points(break_even_name(name))
    if not points:
        raise UserError(
            f"{store.database}: has no break-even map of {name} yet; `autotune map --break-even` "
            "makes one"
        )
    setting = Setting(**common(points[-1].setting))
    return break_even_view(store, loaded, known, setting, decay)


def break_even_view(
    store: Store, loaded: LoadedStudy, known: Collection[str], setting: Setting, decay: float
) -> BreakEvenView:
    """Return the view of a break-even map; arguments as of :func:`stored_break_even`."""
    spec = loaded.spec
    ledger = break_even_name(spec.name)
    rows = points_of(store, spec.name, setting)
    measured = {p.id: comparable_loads(store, p.id) for p in rows}
    loads = sorted({x.concurrency for found in measured.values() for x in found})

    def launched(row: MapPointRow) -> Launched:
        return _launched(store, loaded, ledger, row, loads)

    found = [(row, launched(row)) for row in rows]
    launches = [x for p in rows for x in store.launches.of_trial(ledger, p.id)]
    versions = (x.vllm_version for x in reversed(launches) if x.vllm_version)
    return BreakEvenView(
        study=spec.name,
        label=next((str(p.setting[LABEL]) for p in rows if LABEL in p.setting), ""),
        vllm=next(versions, setting.vllm),
        machine=machine_line(launches[-1].machine) if launches else "",
        point=dict(setting.params),
        loads=tuple(loads),
        launches=tuple(x for row, x in found if CHECK not in row.setting),
        checks=tuple(x for row, x in found if CHECK in row.setting),
        variance=variance_of(store, spec.name, known, setting),
        decay=decay,
    )


def _launched(
    store: Store, loaded: LoadedStudy, ledger: str, row: MapPointRow, loads: Sequence[int]
) -> Launched:
    view = point_view(store, ledger, row, comparable_loads(store, row.id), {}, loads, loaded.spec)
    failed = view.failure_kind is not None
    return Launched(
        n=row.n,
        length=1 + sum(way_of(row).rates or ()),
        rates=view.rates(),
        lengths={
            load: x.acceptance_length
            for load, x in view.loads.items()
            if x.acceptance_length is not None
        },
        failure=(view.failure_kind or "", view.failure_reason or "") if failed else None,
        load=row.setting.get(CHECK),
    )
