"""What a study plays by settings of its own, without `rehearsal`: weights, acceptance, routing.

Its step times are real, and its answers are those of no model. Whoever asks, of a study or of one
launch, asks here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from autotune.study.options import Clash, merged
from autotune.study.rehearsal import (
    DRAFT_LOAD,
    DUMMY,
    LOAD_FORMAT,
    ROUTING_VARIABLE,
    SYNTHETIC,
)
from autotune.study.space import DRAFT, N, Point, as_int
from autotune.study.speculative import REJECTION
from autotune.study.words import argument_of, is_meant, own_words

if TYPE_CHECKING:
    from autotune.study.schema import ServerSpec, StudySpec


class Unsaid(StrEnum):
    """What is played, in words."""

    WEIGHTS = "random weights (load-format)"
    DRAFT_WEIGHTS = f"random weights of the draft ({DRAFT_LOAD})"
    ACCEPTANCE = f"a given acceptance ({REJECTION})"
    ROUTING = f"a given routing to experts ({ROUTING_VARIABLE})"


def unsaid(spec: StudySpec, point: Point | None = None) -> tuple[Unsaid, ...]:
    """Return what a study plays by settings of its own, next to what its `rehearsal` says.

    Args:
        spec: The study.
        point: A point of it, whose launch is asked about; None: any launch of the study.
    """
    server, found = spec.server, []
    own = server.playing(None)  # without what the rehearsal sets
    places = [*_of_study(spec)] if point is None else [_of_launch(own, point)]
    if any(_is_dummy(x) for x, _ in places) or _in_command(server):
        found.append(Unsaid.WEIGHTS)
    if any(_is_dummy(draft.get(DRAFT_LOAD)) for _, draft in places):
        found.append(Unsaid.DRAFT_WEIGHTS)
    if any(draft.get(REJECTION) == SYNTHETIC for _, draft in places):
        found.append(Unsaid.ACCEPTANCE)
    words = server.command or ()
    if server.env.get(ROUTING_VARIABLE) or any(f"{ROUTING_VARIABLE}=" in word for word in words):
        found.append(Unsaid.ROUTING)
    return tuple(found)


def unsaid_text(spec: StudySpec) -> str:
    """Return what a study without `rehearsal` plays by settings of its own; empty: nothing."""
    found = [] if spec.rehearsal is not None else [x.value for x in unsaid(spec)]
    return " and ".join(", ".join(found).rsplit(", ", 1))


def unsaid_label(spec: StudySpec) -> str:
    """Return in one line that a study without `rehearsal` is none of a real model; empty: it is."""
    found = unsaid_text(spec)
    return f"no real model: the study sets {found} itself, step times are real" if found else ""


def _of_launch(server: ServerSpec, point: Point) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the flags of a point's launch, and the keys of its draft; empty: it drafts nothing."""
    settings = server.settings(point)
    flags = {k: v for k, v in settings.items() if k != N and not k.startswith(DRAFT)}
    drafting = bool(server.drafts) and (as_int(settings.get(N)) or 0) > 0
    return _nested(flags), _nested(server.draft_settings(point)) if drafting else {}


def _of_study(spec: StudySpec) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Yield flags, and keys of a draft: those that are fixed, and each searched value alone."""
    server = spec.server
    yield _nested(server.flags), {}
    for draft in server.drafts.values():
        yield {}, _nested(draft.given())
    for name, param in spec.to_space().params.items():
        for value in param.choices if param.type == "choice" else ():
            one = {name.removeprefix(DRAFT): value}
            yield ({}, _nested(one)) if name.startswith(DRAFT) else (_nested(one), {})


def _nested(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return settings with keys with dots under their root; a study with a clash as it is."""
    try:
        return merged(settings)
    except Clash:  # of a study that was run; a new one is refused
        return settings


def _is_dummy(settings: object) -> bool:
    """Return whether settings load random weights; vLLM reads the word in any case."""
    load = settings.get(LOAD_FORMAT) if isinstance(settings, Mapping) else None
    return isinstance(load, str) and load.lower() == DUMMY


def _in_command(server: ServerSpec) -> bool:
    """Return whether the command's own words load random weights."""
    words, _sure = own_words(server.command or ())
    split = [part for word in words for part in word.split("=", 1)]
    return any(
        value.lower() == DUMMY and is_meant(argument_of(word, short=False) or "", LOAD_FORMAT)
        for word, value in pairwise(split)
    )
