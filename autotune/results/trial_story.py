"""Everything that the database knows of one trial, as lines."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from autotune.errors import UserError, one_line
from autotune.results.certificates import judgement_lines, output_line
from autotune.results.read_request_acceptance import read_request_acceptance
from autotune.results.request_acceptance import acceptance_lines
from autotune.results.rows import trial_row
from autotune.results.text import plain, value_with_interval
from autotune.results.trials import quality_warnings, study_view
from autotune.results.views import COMPUTED_AGAIN, StudyView, TrialView
from autotune.serving.machine import machine_line
from autotune.serving.slots import slot_details
from autotune.stats.stopping import Stop
from autotune.storage.records import Quality, TrialAttrs, attrs_of
from autotune.storage.schema import LaunchRow, RequestRow
from autotune.storage.store import Store

# Most characters of a variable's value: NVIDIA's images have one of 2000. The database has all.
_MOST_SHOWN = 100
_MOST_ERRORS = 5  # of the requests of a phase
_EVENTS = {"told": "result recorded"}  # stored names that do not explain themselves


def trial_story(store: Store, name: str, number: int) -> list[str]:
    """Return everything that the database knows of one trial, as lines.

    These are its point and numbers; then commands, times, requests and failure of each launch.

    Raises:
        UserError: the study has no such trial.
    """
    view, trial = _found(store, name, number)
    attrs = attrs_of(store.stored_study(name).trials[number])
    lines = [f"trial {number} of {name}: {trial.setting}, {trial.state}"]
    lines += [view.rehearsal] if view.rehearsal else []
    lines += _why(trial, attrs)
    lines += _measured(view, trial)
    told = read_request_acceptance(store, name, number, trial.point)
    lines += [] if told is None else acceptance_lines(told)
    events = store.launches.events(name)
    caches = store.launches.compile_caches(name)
    for launch in store.launches.of_trial(name, number):
        lines += ["", *_launched(launch)]
        for e in events:
            if e.launch_id == launch.launch_id:
                what = plain(_EVENTS.get(e.what, e.what))
                lines.append(f"  {e.at - launch.planned_at:6.1f} s  {what}")
        lines += _requests(store.requests.of_launch(launch.launch_id))
        lines += [f"  warning: {plain(w)}" for w in quality_warnings(Quality.read(launch.quality))]
        cache = caches.get(launch.launch_id)
        lines += _ended(launch, None if cache is None else cache.text)
    return lines


def trial_json(store: Store, name: str, number: int) -> dict[str, Any]:
    """Return a trial's row (:func:`autotune.results.rows.trial_row`) with ``request_acceptance``.

    That is null, or what :meth:`RequestAcceptance.to_json` returns.

    Raises:
        UserError: the study has no such trial.
    """
    view, trial = _found(store, name, number)
    told = read_request_acceptance(store, name, number, trial.point)
    return {**trial_row(view, trial), "request_acceptance": told and told.to_json()}


def _found(store: Store, name: str, number: int) -> tuple[StudyView, TrialView]:
    view = study_view(store, name)
    trial = next((t for t in view.trials if t.number == number), None)
    if trial is None:
        raise UserError(f"{name} has no trial {number}; `autotune status` lists them")
    return view, trial


def _why(trial: TrialView, attrs: TrialAttrs) -> Iterator[str]:
    """Yield why the trial exists."""
    if trial.again is not None:
        yield f"repeats trial {trial.again}'s point"
    if trial.reused is not None:
        when = datetime.fromtimestamp(trial.reused.measured_at, UTC)
        yield (
            f"reused: {trial.reused.text}, measured {when:%Y-%m-%d %H:%M:%S} UTC; nothing was "
            "launched for it here"
        )
    if attrs.challenge:
        yield "a challenge: no launch seemed worth its time, and this might prove it wrong"
    elif attrs.expected_improvement is not None:
        yield (
            "chosen by the model, which expected the next launch to improve an objective by up to "
            f"{attrs.expected_improvement:.1%}"
        )
    elif attrs.expected_gain is not None:
        yield f"chosen for an expected gain of {attrs.expected_gain:.1%} in hypervolume"


def _measured(view: StudyView, trial: TrialView) -> Iterator[str]:
    """Yield the trial's numbers, warnings and failure."""
    for o in view.objectives:
        value = trial.value(o)
        if value is not None:
            interval = (trial.within or {}).get(o.name)
            yield f"{o.title}: {value_with_interval(value, interval, o)}"
    if trial.requests is not None:
        yield f"{trial.requests} requests: {Stop[(trial.stop or 'all').upper()]}"
    if trial.recomputed:
        yield COMPUTED_AGAIN
    yield from (f"warning: {plain(w)}" for w in trial.warnings)
    if trial.certificate is not None:
        yield output_line(trial.certificate, trial.number)
        yield from (f"  {line}" for line in judgement_lines(trial.certificate))
    if trial.acceptance_length is not None:
        shares = ", ".join(f"{p:.2f}" for p in trial.acceptance_per_position)
        of = " in the steps that have drafts" if trial.skips_steps else ""
        yield f"acceptance length {trial.acceptance_length:.2f}{of}, by position {shares}"
    if trial.failure_kind is not None:
        yield f"failed: {trial.failure_kind}: {trial.failure_reason}"


def _launched(launch: LaunchRow) -> Iterator[str]:
    """Yield what was launched, where and how."""
    began = datetime.fromtimestamp(launch.planned_at, UTC)
    version = launch.vllm_version or "of unknown version"
    yield f"launch {launch.attempt + 1}, {began:%Y-%m-%d %H:%M:%S} UTC"
    yield f"  vLLM {version} on {machine_line(launch.machine)}"
    if slot := launch.machine.get("slot"):
        yield f"  {slot_details(slot)}"
    yield f"  command: {shlex.join(launch.argv)}"
    yield from (f"  environment: {k}={one_line(v, _MOST_SHOWN)}" for k, v in launch.env.items())


def _requests(requests: Sequence[RequestRow]) -> Iterator[str]:
    """Yield how many requests of each phase succeeded, and the first errors of the others."""
    for phase in dict.fromkeys(r.phase for r in requests):
        of = [r for r in requests if r.phase == phase]
        ok = [r for r in of if r.status == "ok"]
        tokens = sum(r.output_tokens or 0 for r in ok)
        yield f"  {phase}: {len(ok)} of {len(of)} requests ok, {tokens} output tokens"
        yield from [f"    request {r.index}: {r.error}" for r in of if r.error][:_MOST_ERRORS]


def _ended(launch: LaunchRow, cache: str | None) -> Iterator[str]:
    """Yield why the launch failed, what torch.compile's cache did, and how the server ended."""
    if launch.failure_kind is not None:
        yield f"  failed: {launch.failure_kind}: {launch.failure_reason}"
        yield from (f"    {plain(line)}" for line in launch.evidence or ())
    if cache is not None:
        yield f"  torch.compile's cache: {cache}"
    if launch.ended_at is not None:
        yield (
            f"  exit code {launch.exit_code}, {launch.killed} processes needed SIGKILL; "
            f"log: {launch.log_path}"
        )
