"""Each objective's value, unit and direction, and that it is what vLLM's benchmark computes."""

from __future__ import annotations

import ast
import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import objectives
from autotune.stats import Measurement


@pytest.fixture
def measurement() -> Measurement:
    """Twenty requests at concurrency 1, taking 1 … 20 s, ten tokens each, the first after 0.5 s."""
    seconds = np.arange(1.0, 21.0)
    start = np.concatenate([[0.0], np.cumsum(seconds)[:-1]])
    return Measurement(
        intended=np.zeros(20),
        start=start,
        ttft=np.full(20, 0.5),
        end=start + seconds,
        prompt_tokens=np.full(20, 5),
        output_tokens=np.full(20, 10),
        chunks=tuple(np.linspace(0.5, s, 10) for s in seconds),
        latency_from="send",
    )


@pytest.mark.parametrize(
    ("name", "value", "unit", "direction"),
    [
        ("throughput", 200 / 210, "tok/s", "maximize"),
        ("output_throughput", 200 / 210, "tok/s", "maximize"),
        # median-unbiased: the (20 + 1/3) 0.95 + 1/3 = 19.65th of 20, and beyond the 20th the last
        ("p95_latency", 19650, "ms", "minimize"),
        ("p50_latency", 10500, "ms", "minimize"),
        ("p99_latency", 20000, "ms", "minimize"),
        ("p50_ttft", 500, "ms", "minimize"),
        ("p95_ttft", 500, "ms", "minimize"),
        ("p99_ttft", 500, "ms", "minimize"),
        ("p50_tpot", 10000 / 9, "ms", "minimize"),  # of (s - 0.5) / 9
        ("p95_tpot", 19150 / 9, "ms", "minimize"),
        ("p99_tpot", 19500 / 9, "ms", "minimize"),
        # each request has nine gaps alike, so the 180 gaps have their ranks in nines: the 171st is
        # the last of request 19, and (180 + 1/3) 0.95 + 1/3 = 171.65
        ("p50_itl", 10000 / 9, "ms", "minimize"),
        ("p95_itl", 19150 / 9, "ms", "minimize"),
        ("p99_itl", 19500 / 9, "ms", "minimize"),
        ("mean_tpot", 10000 / 9, "ms", "minimize"),  # mean of (s - 0.5) / 9
    ],
)
def test_values_units_and_directions(
    measurement: Measurement, name: str, value: float, unit: str, direction: str
) -> None:
    objective = objectives.get(name)
    assert objective.value(measurement) == pytest.approx(value)
    assert (objective.name, objective.unit, objective.direction) == (name, unit, direction)
    assert objective.title
    assert objective.formula
    assert objective.source


def test_a_closed_loop_gives_what_its_places_give(measurement: Measurement) -> None:
    """Two places that are always busy; 16 of 20 requests take at most 16 s."""
    full = Measurement(**{**vars(measurement), "concurrency": 2})
    assert objectives.get("throughput").value(full) == pytest.approx(2 * 200 / 210)
    good = objectives.get("goodput").given({"e2el_ms": 16000})
    assert good.value(full) == pytest.approx(2 * 16 / 210)
    assert objectives.get("cost").given(3.6).value(full) == pytest.approx(1e-3 * 210 / 400 * 1e6)
    # what vLLM's benchmark would say of the same requests does not change
    assert objectives.get("output_throughput").value(full) == pytest.approx(200 / 210)
    assert good.value(measurement) == pytest.approx(16 / 210)


def test_every_module_is_an_objective_by_its_own_name() -> None:
    assert "throughput" in objectives.names()
    assert list(objectives.names()) == sorted(objectives.names())
    kinds = itertools.product(("p50", "p95", "p99"), ("ttft", "tpot", "itl", "latency"))
    assert {"_".join(x) for x in kinds} == {x for x in objectives.names() if x[1].isdigit()}
    for name in objectives.names():
        assert objectives.get(name).name == name


def test_an_unknown_name_is_a_key_error() -> None:
    for name in ("p99_latencyy", "__init__", "_percentiles", "__main__", "os.path"):
        with pytest.raises(KeyError):
            objectives.get(name)


def test_ttft_counts_the_waiting_of_an_open_loop(measurement: Measurement) -> None:
    late = Measurement(**{**vars(measurement), "latency_from": "intended"})
    assert objectives.get("p95_ttft").compute(late) > 100_000


@pytest.mark.parametrize("name", ["mean_tpot", "p50_tpot", "p99_tpot"])
def test_tpot_needs_two_tokens(measurement: Measurement, name: str) -> None:
    short = Measurement(**{**vars(measurement), "output_tokens": np.ones(20, dtype=np.int64)})
    with pytest.raises(ValueError, match=f"{name} needs requests of at least two output tokens"):
        objectives.get(name).value(short)


def test_itl_needs_two_chunks(measurement: Measurement) -> None:
    one = Measurement(**{**vars(measurement), "chunks": (np.array([0.5]),) * 20})
    with pytest.raises(ValueError, match="p95_itl needs requests of at least two chunks"):
        objectives.get("p95_itl").value(one)


def vllm_metrics() -> Callable[..., tuple[Any, Any]]:
    """``calculate_metrics`` of the installed vLLM's benchmark, by itself: vLLM imports for long."""
    found = find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        pytest.skip("vLLM is not installed")
    source = Path(found.submodule_search_locations[0]) / "benchmarks" / "serve.py"
    wanted = {"calculate_metrics", "BenchmarkMetrics"}
    body = [n for n in ast.parse(source.read_text()).body if getattr(n, "name", None) in wanted]
    names: dict[str, Any] = {"np": np, "warnings": warnings, "dataclass": dataclass, "field": field}
    names |= {"TERM_PLOTLIB_AVAILABLE": False, "MILLISECONDS_TO_SECONDS_CONVERSION": 1000}
    tree = ast.Module(body, [])
    exec(compile(tree, str(source), "exec", annotations.compiler_flag), names)  # noqa: S102
    return names["calculate_metrics"]  # type: ignore[no-any-return]


def test_values_are_those_of_vllms_benchmark(measurement: Measurement) -> None:
    outputs = [
        SimpleNamespace(
            success=True,
            input_audio_duration=0.0,
            latency=float(measurement.end[i] - measurement.start[i]),
            output_tokens=int(measurement.output_tokens[i]),
            ttft=float(measurement.ttft[i]),
            itl=np.diff(measurement.chunks[i]).tolist(),
            prompt_len=5,
            start_time=float(measurement.start[i]),
        )
        for i in range(len(measurement))
    ]
    slo = {"ttft": 600.0, "tpot": 1200.0, "e2el": 9000.0}
    seconds = float(measurement.end.max() - measurement.start.min())
    theirs, _ = vllm_metrics()([None] * 20, outputs, seconds, None, [50, 95, 99], slo)
    of = {
        "ttft": measurement.first_token,
        "tpot": measurement.tpot,
        "itl": measurement.itl,
        "e2el": measurement.e2el,
    }
    for kind, values in of.items():
        for percent, value in getattr(theirs, f"percentiles_{kind}_ms"):
            # the same latencies, of which they take NumPy's default, type 7, and we type 8
            assert 1000 * np.percentile(values, percent, method="linear") == pytest.approx(value)
            ours = objectives.get(f"p{percent}_{'latency' if kind == 'e2el' else kind}")
            unbiased = 1000 * np.percentile(values, percent, method="median_unbiased")
            assert ours.value(measurement) == pytest.approx(unbiased), ours.name
            statistic = "median" if percent == 50 else f"p{percent}"
            assert f", {statistic}_{kind}_ms, by type 8 " in ours.source
    # an open loop, as of which the measurement is; in a closed one we count otherwise
    good = objectives.get("goodput").given({f"{k}_ms": v for k, v in slo.items()})
    assert good.value(measurement) == pytest.approx(theirs.request_goodput) == 9 / 210
    assert objectives.get("output_throughput").value(measurement) == pytest.approx(
        theirs.output_throughput
    )
    assert objectives.get("mean_tpot").value(measurement) == pytest.approx(theirs.mean_tpot_ms)
