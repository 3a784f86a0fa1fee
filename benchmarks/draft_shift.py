"""How far off the acceptance of another draft is, by the curve of a measured one.

    python benchmarks/draft_shift.py --out benchmarks/data/draft_shift.json

`autotune predict --length` moves a measured curve to another acceptance length at one n. Whether
the lengths at the other n are then right, only another draft, or other texts, can say. Here are the
launches of all stored studies: the curve of each study is moved to the length of another one at its
largest launched n, and the lengths that follow at the other's smaller n are compared with what its
server counted. Studies whose lengths differ by less than 10 % are left out. `shift` moves all
conditional acceptances on the logit scale by the same amount, as `autotune predict` does. `factor`
multiplies them, each up to 1, as it did before. `error` is predicted over counted tokens per step,
minus 1.

The studies share a target and differ in draft, prompts, sampling and load, so this says how far the
shape of a curve carries, and not how far tok/s are off.
"""

from __future__ import annotations

import argparse
import json
import statistics
from itertools import permutations
from pathlib import Path
from typing import Any

from autotune.results.trials import study_view
from autotune.search.acceptance import Prediction, SpeculationLaunch
from autotune.search.draft_quality import shift_of, shifted
from autotune.stats import quantiles
from autotune.stats.acceptance_curve import unconditional_rates
from autotune.storage.store import opened
from autotune.study.space import N

LEAST = 1.1  # ratio of the two lengths
RESULTS = Path(__file__).parent.parent / "studies" / "results"


def launches_of(database: Path) -> list[SpeculationLaunch]:
    """Return the launches with drafts whose acceptance is that of a fixed n."""
    with opened(database) as store:
        view = study_view(store, store.pick_study(None))
    found = []
    for t in view.trials:
        n = t.point.get(N)
        if isinstance(n, int) and n > 0 and t.acceptance_per_position and t.curve is not None:
            launch = SpeculationLaunch(n, 1.0, t.acceptance_per_position, t.acceptance_length)
            found.append(launch)
    return found


def scaled(conditional: tuple[float, ...], factor: float) -> tuple[float, ...]:
    """Return conditional acceptances times a factor, each up to 1."""
    return tuple(min(1.0, h * factor) for h in conditional)


def length(conditional: tuple[float, ...]) -> float:
    """Return the tokens per step of conditional acceptances."""
    return 1 + sum(unconditional_rates(conditional))


def errors(of: Prediction, to: Prediction) -> dict[str, dict[int, float]]:
    """Return the errors at the smaller n of ``to``: by way to move ``of``'s curve, then by n."""
    most = to.launched[-1]
    wanted = to.tokens_per_step(most)
    shift = shift_of(of.hazards(most), wanted)
    factor = quantiles.root(lambda f: length(scaled(of.hazards(most), f)) - wanted, 0.0, 50.0)
    found: dict[str, dict[int, float]] = {"shift": {}, "factor": {}}
    for n in to.launched[:-1]:
        counted = to.tokens_per_step(n)
        found["shift"][n] = length(shifted(of.hazards(n), shift)) / counted - 1
        found["factor"][n] = length(scaled(of.hazards(n), factor)) / counted - 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/data/draft_shift.json"))
    args = parser.parse_args()
    known = {}
    for database in sorted(RESULTS.glob("*/autotune.db")):
        prediction = Prediction.fit(launches_of(database))
        if prediction is not None and len(prediction.launched) > 1:
            known[database.parent.name] = prediction
    rows: list[dict[str, Any]] = []
    for a, b in permutations(known, 2):
        most = known[b].launched[-1]
        lengths = [known[x].tokens_per_step(most) for x in (a, b)]
        if max(lengths) < LEAST * min(lengths):
            continue  # hardly another acceptance
        rows.append({"of": a, "to": b, "at_n": most, "lengths": lengths})
        rows[-1] |= errors(known[a], known[b])
    summary = {}
    for way in ("shift", "factor"):
        found = [abs(x) for row in rows for x in row[way].values()]
        summary[way] = {
            "median": statistics.median(found),
            "largest": max(found),
            "lengths": len(found),
        }
    out = {"command": "python benchmarks/draft_shift.py", "summary": summary, "pairs": rows}
    args.out.write_text(json.dumps(out, indent=1) + "\n")
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
