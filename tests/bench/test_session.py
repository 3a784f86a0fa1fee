"""How a server is measured: a closed loop is warmed, measured and ended under a full load.

A stand-in for the client sends in a clock of its own, so that it is known to the second what was
under way when; whole runs over the server double show that the real client does the same.
"""

from __future__ import annotations

import heapq
import itertools
import math
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import objectives
from autotune.bench import session
from autotune.bench.interference import IdleBaseline
from autotune.bench.looks import Look, Rival
from autotune.bench.sample import Sample
from autotune.bench.server_metrics import Counters
from autotune.bench.session import Measuring, Result
from autotune.bench.workload import Request, Workload
from autotune.errors import FailureKind, MeasureError
from autotune.results.recomputed import measurement_of
from autotune.results.trials import quality_warnings
from autotune.stats import STOPPING_CONFIDENCE, look_sizes
from autotune.stats.stopping import Stop
from autotune.storage.records import Quality
from autotune.storage.store import opened
from autotune.study.files import load_study
from autotune.study.workload import WorkloadSpec
from autotune.tuning.trial import quality_of
from tests.studies import (
    autotune,
    processes_of,
    query,
    start_autotune,
    wait_for_event,
    wait_for_tokens,
    write_study,
)

PLACES = 4
TOKENS = 12
THROUGHPUT = (objectives.get("throughput"),)
REST = IdleBaseline(0.1, None, ())

Seconds = Callable[[str, int], float]  # of a request, by its phase and its place in that


def steady(phase: str, i: int) -> float:
    """Two to three seconds, never two of them alike."""
    return 2 + (i * math.sqrt(2) + len(phase) * math.sqrt(3)) % 1


@dataclass
class Client:
    """Takes the place of :func:`autotune.bench.sending.send`: one closed loop, in its own clock.

    Attributes:
        seconds: What each request takes.
        failing: Requests that fail, by phase and place.
        interrupt: When the user interrupts it.
        now: Its clock, s.
        sent: Phase, request and time of each request, in the order of sending.
        scraped: When the counters were read.
    """

    seconds: Seconds = steady
    failing: frozenset[tuple[str, int]] = frozenset()
    interrupt: float = math.inf
    now: float = 0.0
    sent: list[tuple[str, Request, float]] = field(default_factory=list)
    scraped: list[float] = field(default_factory=list)

    def scrape(self, *_: str) -> Counters:
        self.scraped.append(self.now)
        return Counters({"vllm:num_preemptions_total": self.now}, ())

    def send(
        self,
        server: object,
        load: Any,
        requests: Sequence[Request],
        arrivals: Sequence[float],
        phase: str,
        on_done: Callable[[Sample], None],
        more: Callable[[], bool] = lambda: True,
        choose: Callable[[], tuple[int, str] | None] | None = None,
        enough: Callable[[], bool] = lambda: False,
    ) -> tuple[Sample, ...]:
        assert choose is not None
        places: list[tuple[float, int, Sample]] = []
        counts: dict[str, int] = {}
        bad: list[Sample] = []

        def take() -> None:
            if bad or (taken := choose()) is None:
                return
            for thread in threading.enumerate():
                if thread.name == "counters":
                    thread.join(60)
            i, of = taken
            nth = counts[of] = counts.get(of, -1) + 1
            took = self.seconds(of, nth)
            self.sent.append((of, requests[i], self.now))
            chunks = tuple(took * (k + 1) / TOKENS for k in range(TOKENS))
            status = "server" if (of, nth) in self.failing else "ok"
            one = Sample(
                *(requests[i].index, of, arrivals[i], self.now, chunks[0], self.now + took),
                *(5, TOKENS, status, None, chunks),
            )
            heapq.heappush(places, (one.end, len(self.sent), one))

        for _ in range(load.max_concurrency):
            take()
        while places:
            end, _, one = heapq.heappop(places)
            if end > self.interrupt:
                raise KeyboardInterrupt
            self.now = end
            if one.status != "ok":
                bad.append(one)
            on_done(one)
            if enough():
                break
            take()
        if bad:
            raise MeasureError(FailureKind.SERVER_ERROR, f"{len(bad)} requests failed")
        return ()


@dataclass
class Measured:
    """What one measurement of a server left."""

    client: Client
    load: WorkloadSpec
    kept: list[Sample]
    result: Result | None
    looks: list[tuple[float, Look]]
    progress: list[tuple[int, int]]

    def of(self, phase: str) -> list[Sample]:
        """Its samples of a phase, in the order of sending."""
        return sorted((x for x in self.kept if x.phase == phase), key=lambda x: (x.start, x.index))


SERVER = SimpleNamespace(
    plan=SimpleNamespace(base_url="", api_key="", masked=str),
    known_processes=False,
    alive=lambda: True,
    died=lambda _: False,
)


def workload(measured: int = 40, warmup: int = 60) -> Workload:
    def some(count: int, first: int) -> tuple[Request, ...]:
        return tuple(Request(i, [first + i], None) for i in range(count))

    return Workload(some(warmup, 1000), some(measured, 0), (0.0,) * measured)


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Measured]:
    """Measures a stand-in with four places; what is not given is as in a study's file."""

    def run(
        client: Client | None = None,
        *,
        load: Workload | None = None,
        keys: Mapping[str, object] | None = None,
        raises: type[BaseException] | None = None,
        looks: bool = False,
        **kw: Any,
    ) -> Measured:
        client, load = client or Client(), load or workload()
        study = write_study(
            tmp_path,
            **{
                "workload__max_concurrency": PLACES,
                "workload__num_prompts": len(load.measured),
                "workload__warmup_prompts": len(load.warmup),
                "measure__min_prompts": 1,
                **(keys or {}),
            },
        )
        monkeypatch.setattr(session, "send", client.send)
        monkeypatch.setattr(session, "scrape", client.scrape)
        spec = load_study(str(study)).spec
        out = Measured(client, spec.workload, [], None, [], [])
        one = Measuring(
            SERVER,  # type: ignore[arg-type]
            spec,
            THROUGHPUT,
            keep=out.kept.extend,
            progress=lambda done, most: out.progress.append((done, most)),
        )
        if looks:
            kw["shadow"] = lambda look: out.looks.append((client.now, look))
        given = {"whole": False, **kw}
        if raises is None:
            out.result = one.measure(load, REST, **given)
        else:
            with pytest.raises(raises):
                one.measure(load, REST, **given)
        assert not [t for t in threading.enumerate() if t.name == "counters"]
        return out

    return run


def under_way(of: Sequence[tuple[float, float]], at: float) -> int:
    """How many of these requests run at a moment; one that begins then does, one that ends not."""
    return sum(start <= at < end for start, end in of)


def spans(found: Measured) -> list[tuple[float, float]]:
    """Begin and end of every request that was sent, answered or broken off."""
    answered = {(x.phase, x.start): x.end for x in found.kept}
    return [(at, answered.get((phase, at), math.inf)) for phase, _, at in found.client.sent]


# -- what is sent --------------------------------------------------------------------------------


def test_the_measured_requests_are_sent_into_a_full_load(
    measure: Callable[..., Measured],
) -> None:
    found = measure(whole=True)
    measured = found.of("measure")
    assert [x.index for x in measured] == list(range(40))
    every = spans(found)
    for x in measured:
        assert under_way(every, x.start) == PLACES  # itself, and three others
    # none begins before a place is free, and no two at one moment
    ends = {x.end for x in found.kept}
    assert all(x.start in ends for x in measured)
    assert len({x.start for x in measured}) == 40
    # the first ones take the places of the warm-up, which is not waited for
    assert max(x.end for x in found.of("warmup")) > measured[PLACES - 2].start
    assert [(x.start, x.phase) for x in sorted(found.kept, key=lambda x: x.start)[:PLACES]] == [
        (0.0, "warmup")
    ] * PLACES
    assert found.result is not None
    assert found.result.busy
    assert found.result.steady
    assert found.result.warmup_requests == len(found.of("warmup")) < 60
    assert found.result.requests == 40


def test_other_requests_fill_the_places_until_the_last_measured_one_has_ended(
    measure: Callable[..., Measured],
) -> None:
    def slow_at_the_end(phase: str, i: int) -> float:
        return 30.0 if (phase, i) == ("measure", 38) else steady(phase, i)

    found = measure(Client(slow_at_the_end), whole=True)
    measured, fill, warmup = (found.of(x) for x in ("measure", "fill", "warmup"))
    assert len(measured) == 40
    last = max(x.end for x in measured)
    assert last == measured[38].end
    every = spans(found)
    for at in np.linspace(measured[0].start, last, 1000)[:-1]:
        assert under_way(every, float(at)) == PLACES
    # they come after the last measured one, and end with it: who is under way then leaves nothing
    assert len(fill) > 2 * PLACES
    assert all(measured[-1].start < x.start and x.end <= last for x in fill)
    assert len([1 for phase, _, _ in found.client.sent if phase == "fill"]) > len(fill)
    assert len(found.kept) == len(warmup) + len(measured) + len(fill)
    # their prompts are those that the warm-up did not need, then the warm-up's again
    sent = [r.index for phase, r, _ in found.client.sent if phase != "measure"]
    assert sent == [i % 60 for i in range(len(sent))]


def test_every_trial_is_measured_with_the_same_requests(measure: Callable[..., Measured]) -> None:
    load = workload()
    runs = [
        measure(Client(lambda phase, i, k=k: k * steady(phase, i + k)), load=load, whole=True)
        for k in (1, 2, 5)
    ]
    # whatever the warm-up took
    assert len({len(x.of("warmup")) for x in runs}) > 1
    for found in runs:
        sent = [r for phase, r, _ in found.client.sent if phase == "measure"]
        assert sent == list(load.measured)
        assert not {r.prompt[0] for p, r, _ in found.client.sent if p != "measure"} & {  # type: ignore[index]
            r.prompt[0]  # type: ignore[index]
            for r in load.measured
        }


def test_a_warm_up_that_is_never_steady_ends_with_its_last_request(
    measure: Callable[..., Measured],
) -> None:
    found = measure(
        Client(lambda phase, i: 100 * 0.8**i if phase == "warmup" else 1.0),
        load=workload(warmup=30),
        whole=True,
    )
    assert found.result is not None
    assert not found.result.steady
    assert found.result.warmup_requests == len(found.of("warmup")) == 30
    # the map warms up to the last request in any case
    found = measure(load=workload(warmup=30), whole=True, until_steady=False)
    assert found.result is not None
    assert found.result.steady
    assert len(found.of("warmup")) == 30


def test_without_a_warm_up_the_first_and_last_requests_do_not_count(
    measure: Callable[..., Measured],
) -> None:
    def slow_edges(phase: str, i: int) -> float:
        return 50.0 + i / 100 if i < PLACES or i >= 36 else 2.0 + i / 100

    found = measure(
        Client(slow_edges),
        load=workload(warmup=0),
        keys={"measure__precision": 0.0001},
    )
    assert {x.phase for x in found.kept} == {"measure"}
    assert found.result is not None
    assert not found.result.busy
    assert found.result.steady  # none was wanted
    inner = range(PLACES, 36)
    expected = PLACES * TOKENS * len(inner) / sum(2.0 + i / 100 for i in inner)
    assert found.result.values["throughput"] == pytest.approx(expected)
    assert found.result.requests == 40


def test_the_counters_are_those_of_the_measured_requests(
    measure: Callable[..., Measured],
) -> None:
    begun: list[float] = []
    client = Client()
    found = measure(client, whole=True, begin=lambda: begun.append(client.now))
    measured = found.of("measure")
    first, last = measured[0].start, max(x.end for x in measured)
    assert client.scraped == [first, last]
    assert begun == [first]
    assert found.result is not None
    assert found.result.stats.preemptions == round(last - first)


def test_progress_tells_of_the_warm_up_and_then_of_the_measured_ones(
    measure: Callable[..., Measured],
) -> None:
    found = measure(whole=True)
    warm = [done for done, most in found.progress if most == 60]
    assert warm == list(range(1, len(warm) + 1))
    done = [x for x, most in found.progress if most == 40]
    assert len(warm) + len(done) == len(found.progress)
    assert done == sorted(done)
    assert done[-1] == 40


# -- when it ends --------------------------------------------------------------------------------


def test_a_look_sees_no_request_behind_one_that_still_runs(
    measure: Callable[..., Measured],
) -> None:
    def one_slow(phase: str, i: int) -> float:
        return 25.0 if (phase, i) == ("measure", 20) else steady(phase, i)

    found = measure(Client(one_slow), load=workload(100), looks=True)
    measured = found.of("measure")
    spec_sizes = look_sizes(16, 100)[:-1]  # four of each place at first, whatever `min_prompts` is
    assert spec_sizes[0] == 16
    sizes = [look.size for _, look in found.looks]
    assert set(sizes) <= set(spec_sizes)
    assert sizes == sorted(set(sizes))
    for at, look in found.looks:
        seen = measured[: look.size]
        assert all(x.end <= at for x in seen)
        seconds = sum(x.end - x.start for x in seen)
        assert look.values == (pytest.approx(PLACES * TOKENS * look.size / seconds),)
        assert look.sent == sum(x.start < at for x in measured)
    # the one before the slow request at once, those behind it when it has ended
    assert [size for size in sizes if size <= 20] == [16]
    behind = [at for at, look in found.looks if look.size > 20]
    assert min(behind) == measured[20].end
    assert len([x for x in measured if x.end < measured[20].end and x.start > measured[20].start])
    # a shadow only looks: everything was sent
    assert found.result is not None
    assert (found.result.stop, found.result.requests) == (Stop.ALL, 100)


def test_enough_is_known_when_all_that_were_under_way_have_ended(
    measure: Callable[..., Measured],
) -> None:
    found = measure(Client(steady), load=workload(400), keys={"measure__precision": 0.2})
    result = found.result
    assert result is not None
    assert result.stop is Stop.PRECISE
    # looked at when so many had ended, the first size of at least eight of each place; who was
    # sent by then is waited for, and counts
    ended = found.of("measure")
    size = next(x for x in look_sizes(16, 400) if x >= 8 * PLACES)
    at = max(x.end for x in ended[:size])
    sent = sum(x.start < at for x in [*ended, *found.of("fill")])
    assert size < sent < size + 2 * PLACES
    assert result.requests == sent == len(ended)
    assert [x.index for x in ended] == list(range(sent))
    # who was sent later does not, and is kept as one that filled a place
    assert all(x.start >= at for x in found.of("fill"))
    assert {x.index for x in found.of("fill")} <= set(range(sent, 400))
    seconds = sum(x.end - x.start for x in ended)
    value = PLACES * TOKENS * sent / seconds
    assert result.values["throughput"] == pytest.approx(value)
    assert result.intervals["throughput"].confidence == STOPPING_CONFIDENCE
    # the database gives the same again
    m = measurement_of(found.of("measure"), found.load, quality_of(result))
    assert THROUGHPUT[0].value(m) == result.values["throughput"]
    assert result.errors == {"throughput": THROUGHPUT[0].bounds(m).error}


def test_a_trial_that_is_certainly_worse_ends_by_its_rival(
    measure: Callable[..., Measured],
) -> None:
    load = workload(400)
    first = measure(load=load, whole=True)
    assert first.result is not None
    m = measurement_of(first.of("measure"), first.load, quality_of(first.result))
    slow = Client(lambda phase, i: 3 * steady(phase, i))
    keys = {"measure__precision": 0.0001}
    found = measure(slow, load=load, keys=keys, rivals=[Rival(7, m)])
    assert found.result is not None
    assert (found.result.stop, found.result.dominated_by) == (Stop.DOMINATED, 7)
    assert 16 < found.result.requests < 60
    # the same server, and one that is twice as fast, are not
    for factor in (1.0, 0.5):
        same = Client(lambda phase, i, k=factor: k * steady(phase, i + 1))
        found = measure(same, load=load, keys=keys, rivals=[Rival(7, m)])
        assert found.result is not None
        assert found.result.stop is Stop.ALL
    # nor is any that is measured whole
    found = measure(
        Client(lambda phase, i: 3 * steady(phase, i)), load=load, whole=True, rivals=[Rival(7, m)]
    )
    assert found.result is not None
    assert found.result.requests == 400


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.9, 0.99])
def test_interrupted_it_keeps_every_answer(measure: Callable[..., Measured], share: float) -> None:
    whole = measure(whole=True)
    moment = share * whole.client.now
    found = measure(Client(interrupt=moment), whole=True, raises=KeyboardInterrupt)
    expected = [x for x in whole.kept if x.end <= moment]
    assert len(expected) == pytest.approx(share * len(whole.kept), abs=PLACES)
    assert sorted(found.kept, key=lambda x: x.end) == sorted(expected, key=lambda x: x.end)


@pytest.mark.parametrize("bad", [("warmup", 3), ("measure", 0), ("measure", 21), ("fill", 0)])
def test_a_request_that_fails_ends_it_and_every_answer_is_kept(
    measure: Callable[..., Measured], bad: tuple[str, int]
) -> None:
    phase, nth = bad

    def slow_at_the_end(of: str, i: int) -> float:
        return 30.0 if (of, i) == ("measure", 39) else steady(of, i)

    client = Client(slow_at_the_end, frozenset({bad}))
    found = measure(client, whole=True, raises=MeasureError)
    assert len(found.kept) == len(client.sent)  # those under way have ended, no other was sent
    [failed] = [x for x in found.kept if x.status != "ok"]
    assert (failed.phase, found.of(phase)[nth]) == (phase, failed)
    assert all(start < failed.end for _, _, start in client.sent)


def test_a_failure_ends_no_measurement_as_one_that_is_precise(
    measure: Callable[..., Measured],
) -> None:
    # a look is due at 34, and the request that fails is among those
    client = Client(steady, frozenset({("measure", 30)}))
    keys = {"measure__precision": 0.9}
    found = measure(client, keys=keys, load=workload(400), raises=MeasureError)
    assert len(found.of("measure")) >= 34
    assert len(found.kept) == len(client.sent)  # nothing was broken off


def test_counters_that_cannot_be_read_are_a_failure_and_no_hang(
    measure: Callable[..., Measured], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client()

    def broken(*_: str) -> Counters:
        raise MeasureError(FailureKind.SERVER_ERROR, "no /metrics")

    monkeypatch.setattr(client, "scrape", broken)
    found = measure(client, raises=MeasureError)
    assert len(found.of("measure")) <= 1  # no trial is measured whole that cannot be counted
    assert len(found.of("warmup")) >= 8


def test_a_warm_up_request_that_never_ends_is_said(measure: Callable[..., Measured]) -> None:
    def one_hangs(phase: str, i: int) -> float:
        return 1e9 if (phase, i) == ("warmup", 5) else steady(phase, i)

    result = measure(Client(one_hangs)).result
    assert result is not None
    assert result.unanswered == 1
    [warning] = [w for w in quality_warnings(quality_of(result)) if w.startswith("slow warm-up")]
    assert "1 of its requests ran until the last measured one" in warning
    usual = measure().result
    assert usual is not None
    assert usual.unanswered == 0
    assert not any("slow warm-up" in w for w in quality_warnings(quality_of(usual)))


@pytest.mark.parametrize(("warmup", "places", "said"), [(7, 1, 0), (8, 1, 1), (31, 16, 0)])
def test_a_warm_up_that_can_tell_nothing_is_not_called_unsteady(
    warmup: int, places: int, said: int
) -> None:
    found = Quality(steady=False, warmup_requests=warmup, running_asked=places)
    assert len(quality_warnings(found)) == said


# -- the same over the double --------------------------------------------------------------------


def samples(folder: Path, phase: str) -> list[list[Sample]]:
    """Of each launch, in the order of sending."""
    with opened(folder / "autotune.db") as store:
        return [
            sorted(store.requests.samples(x.launch_id, phase), key=lambda s: s.start)
            for x in store.launches.of_study("double")
        ]


@pytest.mark.double
def test_on_a_server_all_places_are_busy_from_the_first_request_to_the_last(
    tmp_path: Path,
) -> None:
    study = write_study(
        tmp_path,
        server__flags={"max-num-seqs": 4},
        server__env={"DOUBLE_STEP_S": "0.1"},
        space__num_speculative_tokens={"type": "choice", "choices": [2]},
        space__max_num_batched_tokens={"type": "choice", "choices": [2048]},
        search={"method": "grid"},
        baseline={"num_speculative_tokens": 2},
        workload__max_concurrency=4,
        workload__num_prompts=24,
        workload__warmup_prompts=16,
    )
    done = autotune("run", str(study), "--trials", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [warmup], [measured], [fill] = (samples(tmp_path, x) for x in ("warmup", "measure", "fill"))
    assert [x.index for x in measured] == list(range(24))
    first, last = measured[0].start, max(x.end for x in measured)
    assert 8 <= len(warmup) <= 16
    # the warm-up is waited for by nobody: it had all places until the first measured request
    everyone = [*warmup, *measured, *fill]
    soon = min(x.end - x.start for x in everyone) / 2  # what a client may need on a busy machine
    assert all(x.start < first for x in warmup)
    assert sum(x.end > first - soon for x in warmup) >= PLACES
    assert any(x.end > first for x in warmup)
    for x in measured:  # each as soon as a place was free
        assert min(abs(x.start - y.end) for y in (*warmup, *measured)) < soon
    assert all(x.start > measured[-1].start and x.end <= last + soon for x in fill)
    # seconds of places, of all that there were until the last measured one was sent: more than
    # three of them could have
    until = measured[-1].start
    busy = sum(max(0.0, min(y.end, until) - max(y.start, first)) for y in everyone)
    assert PLACES - 0.9 < busy / (until - first) <= PLACES + 0.001
    [(quality,)] = query(tmp_path, "select quality from autotune_launches")
    assert '"busy": true' in str(quality)
    assert '"estimator": 2' in str(quality)


@pytest.mark.double
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_interrupted_while_it_measures_keeps_every_answer(
    tmp_path: Path, signum: signal.Signals
) -> None:
    study = write_study(
        tmp_path,
        server__env={"DOUBLE_STEP_S": "0.02"},
        workload__num_prompts=200,
        workload__warmup_prompts=8,
    )
    run = start_autotune("run", str(study), "--trials", "1", cwd=tmp_path)
    wait_for_event(tmp_path, "warm", 1)
    wait_for_tokens(tmp_path, (8 + 4 + 4) * 12)  # of warm-up, measured, and under way
    run.send_signal(signum)
    _, err = run.communicate()
    assert run.returncode == 130, err
    assert "Traceback" not in err
    [warmup], [measured] = samples(tmp_path, "warmup"), samples(tmp_path, "measure")
    assert 4 <= len(warmup) <= 8
    assert len(measured) >= 4
    # what is kept is one piece of the list, but for those that were under way
    assert {x.index for x in measured} >= set(range(len(measured) - 2))
    assert all(x.status == "ok" for x in itertools.chain(warmup, measured))
    assert processes_of(tmp_path) == []
    assert replace(measured[0], phase="warmup") not in warmup
