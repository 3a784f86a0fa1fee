"""Whether a way to draft promises the answers of the target alone."""

from __future__ import annotations

from autotune.study.rehearsal import ROUTING_VARIABLE, SYNTHETIC
from autotune.study.schema import StudySpec
from autotune.study.space import N, Point, as_int
from autotune.study.speculative import FLY, REJECTION
from autotune.study.unsaid import Unsaid, unsaid
from autotune.study.ways import is_lossy


def drafts(spec: StudySpec, point: Point) -> bool:
    """Return whether a point drafts anything.

    Args:
        spec: The study.
        point: A point of it.
    """
    return bool(spec.server.drafts) and (as_int(spec.settings(point).get(N)) or 0) > 0


def why_lossy(spec: StudySpec, point: Point) -> str | None:
    """Return why a point's answers are others by construction; None: they should be the same.

    Args:
        spec: The study.
        point: A point of it.
    """
    if spec.rehearsal is not None:
        return "the study is a rehearsal, whose answers are those of no real model"
    plays = unsaid(spec, point)
    if Unsaid.WEIGHTS in plays:
        return "the weights are random (load-format: dummy), so its answers are noise"
    if Unsaid.ROUTING in plays:
        return f"{ROUTING_VARIABLE} routes tokens to experts, so its answers are noise"
    if not drafts(spec, point):
        return None
    if is_lossy(spec.server.draft_settings(point)):
        return f"{REJECTION}: {FLY} accepts drafts that the target would not have written"
    if Unsaid.ACCEPTANCE in plays:
        return (
            f"{REJECTION}: {SYNTHETIC} accepts drafts as often as is given, not as often as they "
            "are right"
        )
    return None
