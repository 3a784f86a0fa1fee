"""Check that a study has enough requests; the sentences are for `doctor`, `explain` and `run`.

The limits follow from :mod:`autotune.stats`:

- An interval of tok/s needs eight batches of two requests.
- Bounds of a percentile need values beyond it.
- The first check of a stopping rule comes after four requests for each unit of concurrency.
- With fewer than eight requests for each unit of concurrency, a trial is hardly more than its
  beginning (``benchmarks/coverage.py`` has the coverage by number of requests and concurrency).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from autotune.errors import UserError
from autotune.stats import bound_needs, first_look, precise_needs, rivals_need
from autotune.stats.intervals import MIN_REQUESTS
from autotune.stats.warmup import fewest
from autotune.study.files import LoadedStudy
from autotune.study.schema import StudySpec

TURNS = 8  # requests for each unit of concurrency that a measurement needs


def notes(spec: StudySpec) -> Iterator[str]:
    """Yield a sentence for each purpose that a study has too few requests for."""
    load = spec.workload
    sent, places = load.num_prompts, load.places or 1
    key = f"workload.num_prompts: {sent}"
    if places > 1 and sent < TURNS * places:
        yield (
            f"{key} requests are few at concurrency {places}, only {sent / places:.1f} for each. "
            f"Give {TURNS * places} or more ({TURNS} × max_concurrency)"
        )
    elif sent < MIN_REQUESTS:
        yield f"{key} requests give no interval of tok/s. Give {MIN_REQUESTS} or more"
    percents = [int(m[1]) for o in spec.objectives if (m := re.match(r"p(9\d)_", o.name))]
    if percents and sent < (needed := bound_needs(max(percents))):
        yield (
            f"{key} requests leave p{max(percents)} without an upper bound. Give {needed} or more"
        )
    if not load.keeps_busy(load.most_warmup):
        yield (
            f"workload.warmup_prompts: {load.most_warmup} do not keep concurrency {places} before "
            "and after the measured requests, so the first and the last "
            f"{places} of these do not count. Give {places} or more"
        )
    if 0 < load.most_warmup < (needed := fewest(places)):
        yield (
            f"workload.warmup_prompts: {load.most_warmup} are too few to see whether the server is "
            f"warm. Give {needed} or more, or leave the key out"
        )
    yield from _early_ends(spec, percents)


def _early_ends(spec: StudySpec, percents: list[int]) -> Iterator[str]:
    """Yield a sentence on why no trial can end before its last request."""
    load, alpha = spec.workload, spec.measure.dominated_error
    sent = load.num_prompts
    start = first_look(spec.measure.min_prompts, load.places)
    many = max(1, spec.budget.trials - spec.budget.confirm_of(spec.budget.trials) - 1)
    few = sent < TURNS * (load.places or 1)  # said already
    if sent <= start and few:
        return
    if sent <= start:
        tail = (rivals_need(many, alpha) or precise_needs()) if percents else 0
        yield (
            f"workload.num_prompts: {sent} requests are too few for a trial to end early, so each "
            f"is measured whole. Give {max(start + 1, tail)} or more to save that time"
        )
    elif percents and alpha and sent < (needed := rivals_need(many, alpha)):
        k = next(k for k in range(1, many + 1) if rivals_need(k, alpha) > sent)
        after = f" once {k} have finished" if k > 1 else ""
        yield (
            f"workload.num_prompts: {sent} requests are too few to end a worse trial early{after}, "
            f"because p95 is too uncertain. Give {needed} or more to save that time"
        )
    elif percents and sent < precise_needs():
        yield (
            f"workload.num_prompts: {sent} requests are too few for p95 to become precise, so each "
            f"trial is measured whole. Give {precise_needs()} or more"
        )


def check(loaded: LoadedStudy) -> None:
    """Refuse a closed loop in which too few requests would count.

    Raises:
        UserError: neither warm-up nor measured requests keep the closed loop full.
    """
    load = loaded.spec.workload
    if load.places is None or load.keeps_busy(load.most_warmup):
        return
    for key, sent in (("num_prompts", load.num_prompts), ("confirm_prompts", load.confirm_prompts)):
        if sent is not None and sent < 3 * load.places:
            raise UserError(
                f"{loaded.path}: workload.warmup_prompts: {load.most_warmup} do not keep "
                f"concurrency {load.places}, and of {sent} measured requests fewer than "
                f"{load.places} would run at that concurrency. Give warmup_prompts: "
                f"{load.places} or more, or {key}: {3 * load.places} or more"
            )
