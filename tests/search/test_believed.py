"""What is believed of points, as ratios to the baseline."""

from __future__ import annotations

import numpy as np
import pytest

from autotune.search.believed import believed
from autotune.search.proposer import grid_points, launched_of
from autotune.study.space import MNBT, N
from tests.search.test_proposer import BOTH, SPACE, finished, measured

BASE = {N: 0, MNBT: 64}


def test_the_baseline_differs_from_itself_by_nothing_and_others_by_what_was_measured() -> None:
    trials = [
        finished(0, BASE, (100.0, 1000.0)),
        finished(1, {N: 15, MNBT: 64}, (50.0, 2000.0)),
        finished(2, {N: 3, MNBT: 16}, (100.0, 1000.0)),
        finished(3, BASE, (100.0, 1000.0)),
    ]
    points = grid_points(SPACE)
    found = believed(SPACE, launched_of(SPACE, trials, BOTH), points, BASE)
    assert found.mean.shape == (2, len(points))
    assert found.covariance.shape == (2, len(points), len(points))
    at = points.index(BASE)
    assert found.mean[:, at] == pytest.approx(0, abs=1e-12)
    assert found.covariance[:, at] == pytest.approx(0, abs=1e-12)
    # half the tok/s and twice the latency are both a cost of log 2
    slow = points.index({N: 15, MNBT: 64})
    assert found.mean[:, slow] == pytest.approx(np.log(2), abs=0.05)
    sd = np.sqrt(np.diagonal(found.covariance, axis1=1, axis2=2))
    far = points.index({N: 8, MNBT: 8})
    assert (sd[:, far] > 2 * sd[:, slow]).all()


def test_the_difference_of_two_points_does_not_depend_on_the_baseline() -> None:
    launched = launched_of(SPACE, measured(8), BOTH)
    points = [{N: n, MNBT: 32} for n in (1, 4, 9)]
    found = believed(SPACE, launched, points, BASE)
    assert np.allclose(found.covariance, found.covariance.transpose(0, 2, 1))
    assert (np.linalg.eigvalsh(found.covariance) > -1e-9).all()
    other = believed(SPACE, launched, points, {N: 15, MNBT: 32})
    a, b = (f.mean[:, 0] - f.mean[:, 2] for f in (found, other))
    assert a == pytest.approx(b)
    c, d = (
        f.covariance[:, 0, 0] + f.covariance[:, 2, 2] - 2 * f.covariance[:, 0, 2]
        for f in (found, other)
    )
    assert c == pytest.approx(d, rel=1e-6)


def test_nothing_is_believed_without_a_launch() -> None:
    with pytest.raises(ValueError, match="launch"):
        believed(SPACE, [], [BASE], BASE)
