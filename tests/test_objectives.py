from __future__ import annotations

import numpy as np
import pytest

import objectives
from autotune.measure import Measurement


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
        ("p95_latency", 19050, "ms", "minimize"),  # 19 + 0.05 × (20 - 19) s
        ("p50_latency", 10500, "ms", "minimize"),
        ("p95_ttft", 500, "ms", "minimize"),
        ("mean_tpot", 10000 / 9, "ms", "minimize"),  # mean of (s - 0.5) / 9
    ],
)
def test_values_units_and_directions(
    measurement: Measurement, name: str, value: float, unit: str, direction: str
) -> None:
    objective = objectives.get(name)
    assert objective.compute(measurement) == pytest.approx(value)
    assert (objective.name, objective.unit, objective.direction) == (name, unit, direction)
    assert objective.title
    assert objective.formula
    assert objective.source


def test_every_module_is_an_objective_by_its_own_name() -> None:
    assert "throughput" in objectives.names()
    assert list(objectives.names()) == sorted(objectives.names())
    for name in objectives.names():
        assert objectives.get(name).name == name


def test_an_unknown_name_is_a_key_error() -> None:
    for name in ("p99_latencyy", "__init__", "os.path"):
        with pytest.raises(KeyError):
            objectives.get(name)


def test_ttft_counts_the_waiting_of_an_open_loop(measurement: Measurement) -> None:
    late = Measurement(**{**vars(measurement), "latency_from": "intended"})
    assert objectives.get("p95_ttft").compute(late) > 100_000


def test_tpot_needs_two_tokens(measurement: Measurement) -> None:
    short = Measurement(**{**vars(measurement), "output_tokens": np.ones(20, dtype=np.int64)})
    with pytest.raises(ValueError, match="at least two output tokens"):
        objectives.get("mean_tpot").compute(short)
