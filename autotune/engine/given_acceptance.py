"""A server whose drafts are accepted as often as is given, not as often as they are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autotune.study.rehearsal import Played, weights_text
from autotune.study.schema import ServerSpec


def with_acceptance(server: ServerSpec, rates: Sequence[float]) -> ServerSpec:
    """Return the server with a given acceptance, and the rest of its rehearsal, if it is one.

    Args:
        server: Server with a draft.
        rates: Probability that each position is accepted, unconditional and not increasing; a
            launch takes the first n.
    """
    own = server.played or Played(target=False, draft=False, curves=None, seed=0, label="")
    weights = weights_text(own.routing, mixture=own.mixture, target=own.target, draft=own.draft)
    label = f"rehearsal: {weights}, acceptance was given, step times are real"
    return server.playing(replace(own, curves=(tuple(rates),), label=label))
