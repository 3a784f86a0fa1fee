"""Slots on Ray nodes with GPUs, which Ray only counts and NVML only pretends to have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from autotune.cli.console import Ui
from autotune.errors import UserError
from autotune.study.files import load_study
from autotune.tuning.prepare import Prepared, prepare
from autotune.tuning.slot_pool import Cluster
from autotune.tuning.slots import cluster_of
from tests.paths import ROOT
from tests.ray_nodes import RayNodes, why_not
from tests.studies import write_study

pytestmark = [
    pytest.mark.double,
    pytest.mark.skipif(why_not() is not None, reason=why_not() or ""),
]


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    """One node, to which only the GPUs 1 to 3 belong."""
    fake = Path(__file__).parent / "fake_nvml"
    env = {"PYTHONPATH": f"{fake}:{ROOT}", "CUDA_VISIBLE_DEVICES": "1,2,3"}
    with RayNodes(1, gpus=3, **env) as made:
        yield made


def prepared(folder: Path, **flags: Any) -> Prepared:
    study = write_study(folder, server__flags={"max-num-seqs": 2, **flags})
    return prepare(load_study(str(study)), Ui())


def gpus_of(cluster: Cluster | None) -> list[tuple[str, ...]]:
    assert cluster is not None
    return sorted(tuple(gpu.uuid for gpu in slot.gpus) for slot in cluster.slots.values())


def test_slots_have_the_gpus_that_ray_gave_by_uuid(nodes: RayNodes, tmp_path: Path) -> None:
    said: list[str] = []
    with mock.patch.dict(os.environ, nodes.env, clear=True):
        with cluster_of(prepared(tmp_path), nodes.address, 1, said.append) as cluster:
            assert gpus_of(cluster) == [("GPU-11",), ("GPU-22",), ("GPU-33",)]
            assert cluster is not None
            assert [gpu["driver"] for gpu in cluster.machine["gpus"]] == ["580.1"]
            assert len({slot.cores for slot in cluster.slots.values()}) <= len(cluster.slots)
        two = prepared(tmp_path, **{"tensor-parallel-size": 2})
        with cluster_of(two, nodes.address, 1, said.append) as cluster:
            assert gpus_of(cluster) in [[("GPU-11", "GPU-22")], [("GPU-22", "GPU-33")]]
        four = prepared(tmp_path, **{"tensor-parallel-size": 4})
        with (
            pytest.raises(UserError, match=r"tensor-parallel-size 4 needs 4 GPUs, and the largest"),
            cluster_of(four, nodes.address, 1, said.append),
        ):
            pass
