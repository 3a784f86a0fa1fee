"""Would acceptance length as a control variate make throughput less noisy? On real launches.

    python benchmarks/control_variates.py [GRID.npz | STUDY.db]

A control variate is a quantity that is measured along with the wanted one, correlates with it and
has a known mean: the wanted one is corrected by what the control is off its mean (S. S. Lavenberg,
P. D. Welch, "A perspective on the use of control variables to increase the efficiency of Monte
Carlo simulations", Management Science 27, 1981). Here: logarithm of tok/s, and of tokens per chunk,
which under speculation is tokens per verification step. The known mean could only come from another
trial with the same n that was sent the whole list of requests (the batch budget hardly changes what
is accepted), and it is the mean over that list.

1. Within a launch: R² of pace on acceptance, of requests and of ten batches of them. It is the
   share that a control would take off the variance that requests make.
2. Between launches of one point, which get the same requests: how far tok/s and acceptance scatter.
3. Between trials that measured different parts of the list, as they do if they end early: windows
   of half the list, their pace against the whole launch's, corrected by the acceptance of the same
   window and of the whole list in the launches of *other* points with that n. The coefficient is
   estimated from the window's own requests.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from grid import MEASURED, Launch, describe, load

from autotune.results.text import point_text
from autotune.stats.measurement import Floats, Ints
from autotune.study.space import N

BATCHES = 10


def log_pace(x: Launch, which: Ints | slice = slice(None)) -> float:
    """Tokens per second of one place, of some requests."""
    return math.log(x.output_tokens[which].sum() / x.e2el[which].sum())


def log_acceptance(x: Launch, which: Ints | slice = slice(None)) -> float:
    """Tokens per chunk, of some requests."""
    return math.log(x.output_tokens[which].sum() / x.chunks[which].sum())


def within(x: Launch) -> tuple[float, float, float]:
    """R² of pace on acceptance of requests and of batches, and the standard error of the pace."""
    count = len(x.e2el)
    shares = []
    for batches in (count, BATCHES):
        parts = np.array_split(np.arange(count), batches)
        pace = np.array([log_pace(x, p) for p in parts])
        shares.append(np.corrcoef(pace, [log_acceptance(x, p) for p in parts])[0, 1] ** 2)
    return shares[0], shares[1], float(pace.std(ddof=1)) / math.sqrt(BATCHES)


def windows(x: Launch, others: Sequence[Launch]) -> tuple[Floats, Floats]:
    """How far windows of half the list are from the whole in log pace: as they are, corrected.

    Args:
        x: The launch.
        others: Launches that tell the acceptance of a window and of the whole list.
    """
    count = len(x.e2el)
    tokens, chunks = np.zeros((2, x.index.max() + 1))  # by request
    for o in others:
        tokens[o.index] += o.output_tokens
        chunks[o.index] += o.chunks
    known = math.log(tokens.sum() / chunks.sum())
    plain, corrected = [], []
    for first in range(count):
        w = (first + np.arange(count // 2)) % count
        pace = np.log(x.output_tokens[w] / x.e2el[w])
        acceptance = np.log(x.output_tokens[w] / x.chunks[w])
        slope = np.cov(pace, acceptance)[0, 1] / acceptance.var(ddof=1)
        excess = math.log(tokens[x.index[w]].sum() / chunks[x.index[w]].sum()) - known
        off = log_pace(x, w) - log_pace(x)
        plain.append(off)
        corrected.append(off - slope * excess)
    return np.array(plain), np.array(corrected)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("grid", type=Path, nargs="?", default=MEASURED)
    args = parser.parse_args()
    grid = load(args.grid)
    print(describe(grid))
    print("\n1. Within a launch")
    print(
        f"{'trial':>5}  {'point':<22}{'acceptance':>11}{'error of tok/s':>15}{'R² requests':>13}"
        f"{'R² batches':>12}"
    )
    shares = []
    for x in speculative(grid.launches):
        *r2, error = within(x)
        shares.append(r2)
        print(
            f"{x.trial:>5}  {point(x):<22}{math.exp(log_acceptance(x)):>11.2f}{error:>15.1%}"
            f"{r2[0]:>13.2f}{r2[1]:>12.2f}"
        )
    print(f"median{np.median(shares, axis=0)[0]:>60.2f}{np.median(shares, axis=0)[1]:>12.2f}")

    print("\n2. Between launches of one point, the same requests (standard deviations)")
    print(f"{'':<7}{'point':<22}{'launches':>11}{'tok/s':>15}{'acceptance':>13}")
    for launches in grid.points():
        if len(launches) > 1:
            pace = np.std([math.log(x.values["throughput"]) for x in launches], ddof=1)
            acceptance = np.std([log_acceptance(x) for x in launches], ddof=1)
            print(
                f"{'':<7}{point(launches[0]):<22}{len(launches):>11}{pace:>15.1%}"
                f"{acceptance:>13.2%}"
            )

    print("\n3. Half the list against the whole (root mean square of the difference of tok/s)")
    print(f"{'trial':>5}  {'point':<22}{'known from':>11}{'as it is':>15}{'corrected':>13}")
    squares = []
    for x in speculative(grid.launches):
        others = [o for o in grid.launches if o.params[N] == x.params[N] and o.params != x.params]
        if others:
            plain, corrected = (float(np.mean(d**2)) for d in windows(x, others))
            squares.append((plain, corrected))
            print(
                f"{x.trial:>5}  {point(x):<22}{f'{len(others)} others':>11}"
                f"{math.sqrt(plain):>15.1%}{math.sqrt(corrected):>13.1%}"
            )
    if squares:
        before, after = np.mean(squares, axis=0)
        print(f"variance left: {after / before:.0%}")


def speculative(launches: Sequence[Launch]) -> list[Launch]:
    """Those with drafts."""
    return [x for x in launches if x.params[N] > 0]


def point(x: Launch) -> str:
    """Its parameters in a few words."""
    return point_text(x.params)


if __name__ == "__main__":
    main()
