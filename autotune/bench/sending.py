"""Sending one phase of requests to one server; a failed request becomes the trial's failure."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from autotune.bench.client import run_phase
from autotune.bench.sample import Sample
from autotune.bench.workload import Request
from autotune.errors import FailureKind, MeasureError, TrialFailure
from autotune.study.workload import WorkloadSpec

if TYPE_CHECKING:
    from autotune.serving.server import Server

# Seconds that a server has to end after a failed request: the API process outlives its engine.
DYING_S = 3.0
# Seconds by which the two clocks may differ without a sleep: they are read one after the other.
MOST_ASLEEP_S = 0.5


def send(
    server: Server,
    load: WorkloadSpec,
    requests: Sequence[Request],
    arrivals: Sequence[float],
    phase: str,
    on_done: Callable[[Sample], None],
    more: Callable[[], bool] = lambda: True,
    choose: Callable[[], tuple[int, str] | None] | None = None,
    enough: Callable[[], bool] = lambda: False,
) -> tuple[Sample, ...]:
    """Send one phase of requests; arguments as of :func:`autotune.bench.client.run_phase`.

    Returns:
        The answered requests in their order, all of them successful.

    Raises:
        TrialFailure: the server died, the machine slept, or a request failed; one is enough,
            because a number without it would be better than what users get.
    """

    def masked(sample: Sample) -> Sample:
        """Return the sample with secrets masked: its error is the server's text."""
        error = sample.error and server.plan.masked(sample.error)
        return sample if error == sample.error else replace(sample, error=error)

    failed = False

    def seen(sample: Sample) -> None:
        nonlocal failed
        failed = failed or sample.status != "ok"
        on_done(masked(sample))

    # without a limit on concurrency a request may wait long behind others although nothing hangs
    hang = load.request_timeout_s if load.max_concurrency is None else load.hang_timeout_s
    asleep = _asleep()
    samples = asyncio.run(
        run_phase(
            server.plan.base_url,
            server.plan.served_name,
            requests,
            arrivals,
            load,
            api_key=server.plan.api_key,
            phase=phase,
            hang_timeout_s=hang,
            on_done=seen,
            more=lambda: not failed and more(),  # every further request could hang as long
            choose=choose,
            enough=enough,
        )
    ).samples
    if (asleep := _asleep() - asleep) > MOST_ASLEEP_S:
        raise MeasureError(FailureKind.CLOCK, f"the machine slept for {asleep:.0f} s meanwhile")
    if bad := [masked(s) for s in samples if s.status != "ok"]:
        raise blamed(server, _failure(bad, len(samples)))
    return samples


def _failure(bad: Sequence[Sample], sent: int) -> MeasureError:
    """Return the failure of a phase in which some of the sent requests failed."""
    kinds = {"timeout": FailureKind.HANG, "server": FailureKind.SERVER_ERROR}
    kind = kinds.get(bad[0].status, FailureKind.REQUESTS)
    return MeasureError(kind, f"{len(bad)} of {sent} requests failed: {bad[0].error}")


def _asleep() -> float:
    """Return the seconds since boot in which the machine was suspended.

    No other clock of this program counts them.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


def blamed(server: Server, failure: TrialFailure) -> TrialFailure:
    """Return the server's own failure if it died, else ``failure``."""
    if server.died(DYING_S):
        return server.failure(FailureKind.CRASH, "the server died while it was being measured")
    return failure
