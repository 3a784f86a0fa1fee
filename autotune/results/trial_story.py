"""All that the database knows of one trial, as lines."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime

from autotune.bench.session import Stop
from autotune.errors import UserError, one_line
from autotune.results.text import plain, point_text, value_with_interval
from autotune.results.trials import quality_warnings, study_view
from autotune.results.views import COMPUTED_AGAIN
from autotune.serving.machine import machine_line
from autotune.storage.store import Store

# Characters of a variable's value: images of NVIDIA's have one of 2000. The database has it whole.
_MOST_SHOWN = 100


def trial_story(store: Store, name: str, number: int) -> list[str]:
    """All that the database knows of one trial, as lines: launches, times, requests, failure.

    Raises:
        UserError: the study has no such trial.
    """
    view = study_view(store, name)
    trial = next((t for t in view.trials if t.number == number), None)
    if trial is None:
        raise UserError(f"{name} has no trial {number}; `autotune status` lists them")
    attrs = store.optuna_study(name).get_trials(deepcopy=False)[number].user_attrs
    lines = [f"trial {number} of {name}: {point_text(trial.point)}, {trial.state}"]
    if trial.again is not None:
        lines.append(f"measures trial {trial.again} again")
    if trial.reused is not None:
        when = datetime.fromtimestamp(trial.reused.measured_at, UTC)
        lines.append(
            f"reused: {trial.reused.text}, measured {when:%Y-%m-%d %H:%M:%S} UTC; nothing was "
            "launched for it here"
        )
    if attrs.get("challenge"):
        lines.append("a challenge: no launch seemed worth its time, and this might prove it wrong")
    elif "expected_gain" in attrs:
        lines.append(f"chosen for an expected gain of {attrs['expected_gain']:.1%} in hypervolume")
    for o in view.objectives:
        value = trial.value(o)
        if value is not None:
            interval = (trial.within or {}).get(o.name)
            lines.append(f"{o.title}: {value_with_interval(value, interval, o)}")
    if trial.requests is not None:
        lines.append(f"{trial.requests} requests: {Stop[(trial.stop or 'all').upper()]}")
    if trial.recomputed:
        lines.append(COMPUTED_AGAIN)
    lines += [f"warning: {plain(w)}" for w in trial.warnings]
    if trial.acceptance_length is not None:
        shares = ", ".join(f"{p:.2f}" for p in trial.acceptance_per_position)
        lines.append(f"acceptance length {trial.acceptance_length:.2f}, by position {shares}")
    if trial.failure_kind is not None:
        lines.append(f"failed: {trial.failure_kind}: {trial.failure_reason}")
    events = store.launches.events(name)
    caches = store.launches.compile_caches(name)
    for launch in store.launches.of_trial(name, number):
        began = datetime.fromtimestamp(launch.planned_at, UTC)
        version = launch.vllm_version or "of unknown version"
        lines += [
            "",
            f"launch {launch.attempt + 1}, {began:%Y-%m-%d %H:%M:%S} UTC",
            f"  vLLM {version} on {machine_line(launch.machine)}",
            f"  command: {shlex.join(launch.argv)}",
            *(f"  environment: {k}={one_line(v, _MOST_SHOWN)}" for k, v in launch.env.items()),
        ]
        for e in events:
            if e.launch_id == launch.launch_id:
                lines.append(f"  {e.at - launch.planned_at:6.1f} s  {plain(e.what)}")
        requests = store.requests.of_launch(launch.launch_id)
        for phase in dict.fromkeys(r.phase for r in requests):
            of = [r for r in requests if r.phase == phase]
            ok = [r for r in of if r.status == "ok"]
            tokens = sum(r.output_tokens or 0 for r in ok)
            lines.append(f"  {phase}: {len(ok)} of {len(of)} requests ok, {tokens} output tokens")
            lines += [f"    request {r.index}: {r.error}" for r in of if r.error][:5]
        lines += [f"  warning: {plain(w)}" for w in quality_warnings(launch.quality or {})]
        if launch.failure_kind is not None:
            lines.append(f"  failed: {launch.failure_kind}: {launch.failure_reason}")
            lines += [f"    {plain(line)}" for line in launch.evidence or ()]
        if (cache := caches.get(launch.launch_id)) is not None:
            lines.append(f"  torch.compile's cache: {cache.text}")
        if launch.ended_at is not None:
            lines.append(
                f"  exit code {launch.exit_code}, {launch.killed} processes needed SIGKILL; "
                f"log: {launch.log_path}"
            )
    return lines
