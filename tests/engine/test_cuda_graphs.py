"""Which decode batches replay a full CUDA graph."""

from __future__ import annotations

import pytest

from autotune.engine.cuda_graphs import (
    Mode,
    aligned_sizes,
    capture_sizes,
    coverage,
    graphs,
    most_tokens,
)
from autotune.engine.gpus import Gpu

READ = tuple(f"0.{minor}.0" for minor in range(24, 34))
ONE_ROW = ("0.25.0", "0.26.0", "0.27.0", "0.28.0")
TWO_ROWS = tuple(v for v in READ if v not in ONE_ROW)


@pytest.mark.parametrize(
    ("n", "count"), [(1, 10), (2, 14), (3, 17), (4, 21), (5, 25), (6, 29), (7, 32)]
)
def test_as_many_graphs_as_an_h200_captured(n: int, count: int) -> None:
    """vLLM 0.26, max_num_seqs 32: counted in the servers' logs."""
    assert len(capture_sizes(n, 32, 8192, "0.26.0")) == count


@pytest.mark.parametrize("version", READ)
@pytest.mark.parametrize(("seqs", "mnbt"), [(1, 64), (5, 100), (32, 2048), (300, 8192)])
def test_full_graphs_are_of_whole_requests(version: str, seqs: int, mnbt: int) -> None:
    for n in range(16):
        sizes = capture_sizes(n, seqs, mnbt, version)
        assert sizes
        assert sizes == tuple(sorted(set(sizes)))
        assert all(s % (n + 1) == 0 and s <= min(seqs * (n + 1), mnbt, 512) for s in sizes)


@pytest.mark.parametrize(
    ("n", "missed_8"), [(1, ()), (2, (4, 5)), (3, ()), (4, (3, 6)), (5, (5,)), (6, ()), (7, ())]
)
def test_holes_of_one_row(n: int, missed_8: tuple[int, ...]) -> None:
    """0.25 to 0.28 look only under the next size of either kind; the others know no holes."""
    for version in ONE_ROW:
        assert coverage(graphs(n, 32, 8192, version), 8).missed == missed_8
    for version in TWO_ROWS:
        assert coverage(graphs(n, 32, 8192, version), 32).missed == ()
    assert coverage(graphs(n, 32, 8192, "0.26.0", runner="v1"), 32).missed == ()


def test_holes_do_not_explain_every_bump() -> None:
    """At n = 6, 20 to 30 % slow on an H200, up to 8 requests miss nothing, and no full batch."""
    for n in (4, 5, 6):
        found = graphs(n, 32, 8192, "0.26.0")
        assert found.replay(8) == (Mode.FULL, 8 * (n + 1))
        assert found.replay(32) == (Mode.FULL, 32 * (n + 1))
    assert coverage(graphs(6, 32, 8192, "0.26.0"), 8).full == 1.0
    assert coverage(graphs(6, 32, 8192, "0.26.0"), 32).missed == (9, 17, 25)


def test_a_batch_in_a_hole_replays_a_piecewise_graph() -> None:
    for version in ONE_ROW:
        found = graphs(4, 32, 8192, version)
        assert found.replay(3) == (Mode.PIECEWISE, 16)
        assert found.replay(4) == (Mode.FULL, 20)
    for version in TWO_ROWS:
        assert graphs(4, 32, 8192, version).replay(3) == (Mode.FULL, 20)


@pytest.mark.parametrize("version", READ)
def test_beyond_the_last_size_there_is_no_graph(version: str) -> None:
    found = graphs(7, 256, 8192, version)
    assert found.replay(64) == (Mode.FULL, 512)
    assert found.replay(65) == (Mode.NONE, 520)
    assert coverage(found, 128).full == 0.5


def test_coverage_counts_padding() -> None:
    found = graphs(0, 32, 8192, "0.26.0")  # 1, 2, 4, 8, …
    c = coverage(found, 4)
    assert (c.full, c.exact) == (1.0, 0.75)
    assert c.padding == pytest.approx(0.25 / 4)  # 3 requests in a graph of 4


@pytest.mark.parametrize("version", READ)
@pytest.mark.parametrize("seqs", [1, 2, 5, 8, 32])
def test_aligned_sizes_leave_no_hole_and_no_padding(version: str, seqs: int) -> None:
    for n in range(16):
        sizes = aligned_sizes(n, seqs, 8192)
        c = coverage(graphs(n, seqs, 8192, version, sizes), seqs)
        assert (c.full, c.exact, c.padding, c.missed) == (1.0, 1.0, 0.0, ())
        # prompts that run with the batch still have piecewise graphs, as far as by default
        usual = graphs(n, seqs, 8192, version).piecewise[-1]
        assert sizes[-1] > usual - (n + 1)


@pytest.mark.parametrize("version", READ)
def test_many_requests_get_thinned_sizes_up_to_the_last(version: str) -> None:
    sizes = aligned_sizes(7, 300)
    assert len(sizes) < 80
    assert sizes[-1] == 300 * 8
    c = coverage(graphs(7, 300, 8192, version, sizes), 300)
    assert c.full == 1.0
    assert c.padding < 0.05


def test_aligned_sizes_stay_within_the_budget() -> None:
    assert aligned_sizes(15, 32, 256)[-1] == 256


@pytest.mark.parametrize("version", READ)
def test_the_list_has_the_last_request_from_one_version_on(version: str) -> None:
    minor = int(version.split(".")[1])
    assert (5 in graphs(0, 5, 8192, version).piecewise) is (minor >= 31)
    # 5 requests of 3 tokens
    assert (15 in graphs(2, 5, 8192, version).piecewise) is (minor >= 29)


@pytest.mark.parametrize("version", READ)
def test_the_list_is_longer_on_blackwell(version: str) -> None:
    wide = int(version.split(".")[1]) >= 28
    b200, h100 = (Gpu(name, 1 << 37, (major, 0)) for name, major in (("B200", 10), ("H100", 9)))
    for gpus in ((), (h100,), (b200, h100)):
        assert most_tokens(version, gpus) == 512
    assert most_tokens(None, (b200,)) == 512
    most = most_tokens(version, (b200,))
    assert most == (1024 if wide else 512)
    assert graphs(7, 256, 8192, version, most=most).piecewise[-1] == most
