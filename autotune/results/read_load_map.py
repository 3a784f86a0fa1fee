"""Read a load sweep from the database, and find the schedule that is worth a launch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import objectives as objective_registry
from autotune.engine import rule
from autotune.engine.draft_schedule import speculative_argument, why_no_schedule
from autotune.errors import FailureKind, UserError
from autotune.results.load_map import LoadSweepView, LoadView, PointView
from autotune.results.load_map_ways import (
    MapWay,
    WayKind,
    common,
    draft_server,
    way_of,
    way_params,
    way_server,
)
from autotune.results.measured import resolver_of
from autotune.results.recomputed import figures_again
from autotune.results.standing import LEAST_DEGREES
from autotune.results.sweep_slots import (
    is_confirming,
    is_swept,
    place_of_point,
    rates_without_slots,
)
from autotune.results.trials import quality_warnings, study_view
from autotune.results.views import StudyView
from autotune.serving.machine import machine_line
from autotune.stats import ESTIMATOR, LaunchVariance, Measurement, percentile_interval, quantile
from autotune.stats.crossover import Rate, Rates, Schedule, by_load, combined, schedule
from autotune.storage.names import load_sweep_name
from autotune.storage.records import Quality
from autotune.storage.schema import LoadRow, MapPointRow
from autotune.storage.store import Store
from autotune.study.files import LoadedStudy
from autotune.study.schema import FlagValue, StudySpec
from autotune.study.space import DRAFT, Value
from autotune.study.ways import is_lossy

PARTS = 2
MAX_NUM_SEQS = rule.SEQS
THROUGHPUT = objective_registry.get("throughput")


@dataclass(frozen=True)
class Setting:
    """What all points of a load sweep have in common.

    Attributes:
        fingerprint: Fingerprint of the study file.
        vllm: Version without its local part; None: unknown before the launch.
        params: The study's other parameters.
        flags: Flags that differ from the study's.
        weights: Hashes of the weights, by role (:mod:`autotune.study.weights`).
        arm: Arm of the fixed n; None: the study has no arms.
        arms: Parameters of the draft of each other arm, by the arm.
    """

    fingerprint: str
    vllm: str | None
    params: Mapping[str, Value]
    flags: Mapping[str, FlagValue]
    weights: Mapping[str, str] = dataclasses.field(default_factory=dict)
    arm: str | None = None
    arms: Mapping[str, Mapping[str, Value]] = dataclasses.field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Return the setting as the database has it."""
        found: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        if not self.weights:  # the first load sweeps have none
            del found["weights"]
        if self.arm is None:
            del found["arm"], found["arms"]
        return found


def schedule_of(
    rates: Rates, loads: Sequence[int], spec: StudySpec, setting: Setting
) -> Schedule | None:
    """Return the schedule that the numbers suggest; None: one n is enough."""
    if not rates.get(0):
        return None
    most = largest_batch(loads, spec, setting)
    # n are compared within their launches: their launch-to-launch error is the same at every load
    ranges = schedule(rates, by_load(rates, None), most)
    return ranges if len(ranges) > 1 else None


def largest_batch(loads: Sequence[int], spec: StudySpec, setting: Setting) -> int:
    """Return the most requests of one step: max_num_seqs, or the highest load."""
    seqs = spec.settings({**setting.params, **setting.flags}).get(MAX_NUM_SEQS)
    return seqs if isinstance(seqs, int) and not isinstance(seqs, bool) else max(loads)


def rates_of(
    rows: Mapping[int, Sequence[LoadRow]], loads: Sequence[int]
) -> dict[int, dict[int, Rate]]:
    """Return, for each key, the rate at each concurrency whose parts were all measured.

    A concurrency that vLLM throttled is left out.
    """
    out: dict[int, dict[int, Rate]] = {}
    for key, found in rows.items():
        at = [x for x in loads if _throttled(found, x) is None]
        row = {x: rate for x in at if (rate := _rate(found, x)) is not None}
        if row:
            out[key] = row
    return out


def leveled_rates(
    store: Store, ledger: str, points: Sequence[MapPointRow], loads: Sequence[int]
) -> dict[int, dict[int, Rate]]:
    """Return the rates of points without how their slots differ, by their id and concurrency.

    Args:
        store: Database with the load sweep.
        ledger: Name under which its launches are stored.
        points: All points of one setting.
        loads: Concurrencies.
    """
    rows = {p.id: comparable_loads(store, p.id) for p in points}
    return rates_without_slots(store, ledger, points, rows, rates_of(rows, loads))


def _throttled(rows: Sequence[LoadRow], load: int) -> Quality | None:
    """Return the quality of a part that vLLM throttled at a concurrency; None: of none."""
    found = (Quality.read(x.quality) for x in rows if x.concurrency == load)
    return next((x for x in found if x.throttled), None)


def _rate(rows: Sequence[LoadRow], load: int) -> Rate | None:
    parts = {x.part: x for x in rows if x.concurrency == load}
    if len(parts) < PARTS:
        return None
    rates = []
    for _, x in sorted(parts.items()):
        error = Quality.read(x.quality).errors.get(THROUGHPUT.name)
        rates.append(Rate(float(x.values[THROUGHPUT.name]), error))
    return combined(rates)


def comparable_loads(store: Store, point: int) -> list[LoadRow]:
    """Return the measured parts of a point, as the present estimator computes them.

    Parts of autotune 0.1 are computed again from their requests. Parts with too few requests for
    that are left out, and `autotune map` measures them again.
    """
    return [x for row in store.load_maps.loads(point) if (x := _comparable(store, row)) is not None]


def _measured(store: Store, row: LoadRow) -> Measurement:
    """Return what the requests of a part measure.

    Raises:
        ValueError: too few of them ran at the full concurrency.
    """
    samples = store.requests.samples(row.launch_id, row.phase)
    return Measurement.of(samples, "send", row.concurrency, busy=Quality.read(row.quality).busy)


def _comparable(store: Store, row: LoadRow) -> LoadRow | None:
    quality = Quality.read(row.quality)
    if quality.estimator == ESTIMATOR:
        return row
    try:
        m = _measured(store, row)
    except ValueError:
        return None
    again = figures_again((THROUGHPUT,), m, quality)
    row.values = {**row.values, **again.values}
    row.intervals = {**row.intervals, **again.intervals}
    row.requests = len(m)
    row.quality = again.quality.to_json()
    return row


def failure_of_point(store: Store, ledger: str, point: MapPointRow) -> tuple[str, str] | None:
    """Return kind and reason of a point that is not launched again; None: it did not fail."""
    failed = [
        (x.failure_kind, x.failure_reason or "")
        for x in store.launches.of_trial(ledger, point.id)
        if x.failure_kind is not None and not FailureKind(x.failure_kind).of_the_machine
    ]
    if not failed:
        return None
    kind, reason = failed[-1]
    return (kind, reason) if FailureKind(kind).is_final(len(failed)) else None


def launched_version(store: Store, ledger: str) -> str | None:
    found = [x.vllm_version for x in store.launches.of_study(ledger) if x.vllm_version]
    return found[-1] if found else None


def study_in(store: Store, name: str, known: Collection[str]) -> StudyView | None:
    """Return the study itself, if the database has it and it is the same experiment.

    Args:
        store: Database.
        name: Of the study.
        known: Fingerprints of the experiment: :meth:`autotune.storage.store.Store.fingerprints`.
    """
    if name not in store.study_names() or not store.ran(name):
        return None
    _, row = store.load_study(name)
    return study_view(store, name) if row.fingerprint in known else None


def stored_view(store: Store, loaded: LoadedStudy, known: Collection[str]) -> LoadSweepView:
    """Return the study's latest load sweep; no server and no code of the study runs.

    Args:
        store: Database with the load sweep.
        loaded: The study.
        known: Fingerprints of the experiment. The caller gives them, because on another machine the
            prompts that they are computed from are missing.

    Raises:
        UserError: there is none.
    """
    points = store.load_maps.points(loaded.spec.name)
    if not points:
        raise UserError(
            f"{store.database}: has no load sweep of {loaded.spec.name} yet; `autotune map` runs "
            "one"
        )
    last = common(points[-1].setting)
    setting = Setting(**last)
    rows = [x for p in points if common(p.setting) == last for x in comparable_loads(store, p.id)]
    loads = sorted({x.concurrency for x in rows})
    if not loads:
        raise UserError(
            f"{store.database}: the load sweep of {loaded.spec.name} has no numbers yet; "
            "`autotune map` continues it"
        )
    ledger = load_sweep_name(loaded.spec.name)
    launches = [
        (x, p.arm or p.setting.get("arm"))
        for p in points
        for x in store.launches.of_trial(ledger, p.id)
    ]
    resolve = resolver_of(loaded, launches)
    return load_sweep_view(store, loaded, known, loads, setting, resolve)


def load_sweep_view(
    store: Store,
    loaded: LoadedStudy,
    known: Collection[str],
    loads: Sequence[int],
    setting: Setting,
    resolve: Callable[[str], str],
) -> LoadSweepView:
    """Return the view of a load sweep.

    Args:
        store: Database with the load sweep.
        loaded: The study.
        known: Fingerprints of the experiment.
        loads: Concurrencies to show.
        setting: Setting of the load sweep.
        resolve: Turns the draft's reference into a path or name for vLLM.
    """
    spec = loaded.spec
    ledger = load_sweep_name(spec.name)
    rows = [x for x in store.load_maps.points(spec.name) if common(x.setting) == setting.plain()]
    comparable = {p.id: {x.id: x for x in comparable_loads(store, p.id)} for p in rows}
    leveled = leveled_rates(store, ledger, rows, loads)
    points = [
        point_view(
            store, ledger, p, [*comparable[p.id].values()], leveled.get(p.id, {}), loads, spec
        )
        for p in rows
    ]
    launches = [x for p in rows for x in store.launches.of_trial(ledger, p.id)]
    version = next((x.vllm_version for x in reversed(launches) if x.vllm_version), setting.vllm)
    sweep = [p for p, row in zip(points, rows, strict=True) if is_swept(row)]
    rates = {p.n: row for p in sweep if p.is_fixed and (row := p.rates())}
    lost = {
        x.concurrency
        for p in rows
        for x in store.load_maps.loads(p.id)
        if x.id not in comparable[p.id]
    }
    ranges = schedule_of(rates, loads, spec, setting)
    real = spec.server.playing(None)  # what is recommended plays nothing

    def argument(way: MapWay) -> str:
        draft = draft_server(real, way.arm or setting.arm, plain=way.arm is None)
        params = way_params(way, setting.params, setting.arms)
        return speculative_argument(way_server(draft, way), way.n, params, way.schedule, resolve)

    def is_there(way: MapWay) -> bool:
        """Return whether the study file still has the arm of a way."""
        return (way.arm or setting.arm) in (spec.server.arms or {None})

    def searched(arm: str | None) -> dict[str, Value]:
        """Return the searched keys of a draft that the sweep launches with."""
        params = setting.params if arm == setting.arm else setting.arms.get(arm or "", {})
        return {k.removeprefix(DRAFT): v for k, v in params.items() if k.startswith(DRAFT)}

    return LoadSweepView(
        study=spec.name,
        vllm=version,
        machine=machine_line(launches[-1].machine) if launches else "",
        point=dict(setting.params),
        flags=dict(setting.flags),
        loads=tuple(loads),
        points=tuple(sweep),
        confirmed=tuple(p for p, row in zip(points, rows, strict=True) if is_confirming(row)),
        variance=variance_of(store, spec.name, known, setting),
        schedule=ranges,
        why_no_schedule=why_no_schedule(version),
        arguments={n: argument(MapWay(n)) for n in sorted(rates) if n > 0 and is_there(MapWay(n))},
        same_file=setting.fingerprint in known,
        way_arguments={p.way: argument(p.way) for p in sweep if not p.is_fixed and is_there(p.way)},
        arm=setting.arm,
        lossy=tuple(
            name or "the draft"
            for name, draft in spec.server.drafts.items()
            if name in {setting.arm, *(p.arm for p in sweep)}
            and is_lossy({**draft.given(), **searched(name)})
        ),
        outdated=tuple(sorted(lost.intersection(loads))),
        slots=len({place_of_point(store, ledger, p.id) for p in rows} - {None}),
        rehearsal=spec.rehearsal_label,
    )


def variance_of(
    store: Store, name: str, known: Collection[str], setting: Setting
) -> LaunchVariance | None:
    """Return the launch-to-launch variance of throughput; None: too little is known of it."""
    view = study_in(store, name, known)
    if view is None or setting.fingerprint not in known:
        return None
    found = view.variance.get(THROUGHPUT.name)
    return found if found is not None and found.total.degrees >= LEAST_DEGREES else None


def point_view(
    store: Store,
    ledger: str,
    point: MapPointRow,
    rows: Sequence[LoadRow],
    leveled: Mapping[int, Rate],
    loads: Sequence[int],
    spec: StudySpec,
) -> PointView:
    failure = failure_of_point(store, ledger, point)
    found = {}
    for load in loads:
        if (rate := leveled.get(load) or _rate(rows, load)) is not None:
            parts = sorted((x for x in rows if x.concurrency == load), key=lambda x: x.part)
            found[load] = _load_view(store, parts, rate, spec, _throttled(rows, load))
    way = way_of(point)
    return PointView(
        n=way.n,
        schedule=way.schedule,
        failure_kind=None if failure is None else failure[0],
        failure_reason=None if failure is None else failure[1],
        loads={} if failure is not None else found,
        adaptive=way.adaptive,
        arm=way.arm,
        asked=point.way == WayKind.SCHEDULE,
    )


def _load_view(
    store: Store,
    parts: Sequence[LoadRow],
    rate: Rate,
    spec: StudySpec,
    throttled: Quality | None,
) -> LoadView:
    e2el = np.concatenate([_measured(store, x).e2el for x in parts])
    p95 = percentile_interval(e2el, 95).scaled(1000)
    drafts = [x.stats.get("drafts") for x in parts]
    accepted = [x.stats.get("accepted_tokens") for x in parts]
    length = None
    if all(drafts) and all(x is not None for x in accepted):
        length = 1 + sum(x for x in accepted if x) / sum(x for x in drafts if x)
    warnings = dict.fromkeys(w for x in parts for w in quality_warnings(Quality.read(x.quality)))
    if any(Quality.read(x.quality).recomputed is not None for x in parts):
        warnings["computed again: from the stored requests of autotune 0.1"] = None
    return LoadView(
        rate=rate,
        p95_ms=quantile(e2el, 95) * 1000,
        p95_bounds=(p95.low, p95.high),
        requests=sum(x.requests for x in parts),
        acceptance_length=length,
        warnings=tuple(warnings),
        throttled=throttled is not None,
        running_peak=None if throttled is None else throttled.running_peak,
    )
