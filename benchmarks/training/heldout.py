"""How much of a draft is accepted, on sequences that it was not trained on.

Greedy speculative decoding as a server walks it: draft n tokens at p, accept those that are the
target's own up to the first that is not, go on behind the token that the target gives itself. Only
blocks that lie within the answer and its first 256 tokens are taken, so the last n tokens of a
short answer are never drafted.

The acceptance length is 1 + accepted tokens per step, the sum of the shares by position.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .data import KINDS, Sequences
from .model import Draft, drafted
from .target import Target

MOST_TOKENS = 256
_ROWS = 64


@dataclass(frozen=True)
class Acceptance:
    """Of one kind of sequences at one n.

    Attributes:
        per_position: Share of steps in which the tokens up to each position were accepted.
        steps: How many there were.
    """

    per_position: tuple[float, ...]
    steps: int

    @property
    def length(self) -> float:
        """Tokens per step; 1: nothing is accepted."""
        return 1 + sum(self.per_position)


Results = Mapping[str, Mapping[int, Acceptance]]  # by kind and n


def measure(
    draft: Draft, target: Target, sequences: Sequences, ns: Iterable[int], most: int
) -> Results:
    """Acceptance on at most so many held-out sequences of each kind with greedy answers.

    Kinds of which none is held out, and n of which no block fits, are left out.
    """
    found: dict[str, dict[int, Acceptance]] = {}
    ns = tuple(ns)
    for i, kind in enumerate(KINDS):
        held = sequences.held_out(i, most)
        results = {n: walk(draft, target, held, n) for n in ns} if len(held) else {}
        if kept := {n: a for n, a in results.items() if a.steps}:
            found[kind] = kept
    return found


def walk(draft: Draft, target: Target, sequences: Sequences, n: int) -> Acceptance:
    """Acceptance of n drafted tokens on all of the sequences."""
    accepted, steps = torch.zeros(n, device=target.device), 0
    slot = torch.arange(1, n + 1, device=target.device)
    for at in range(0, len(sequences), _ROWS):
        part = sequences[np.arange(at, min(at + _ROWS, len(sequences)))]
        tokens, start, end = (
            torch.from_numpy(a.astype(np.int64)).to(target.device)
            for a in (part.tokens, part.start, part.end)
        )
        with torch.no_grad():
            context = draft.context(target.streams(tokens, draft.target_layers))
        last = torch.minimum(start + MOST_TOKENS, end) - 1 - n
        p = start.clone()
        while bool((live := p <= last).any()):
            here = torch.minimum(p, last.clamp(min=1))
            guess = drafted(draft, context, target.embedding, tokens, here, n)
            right = guess == tokens.gather(1, here[:, None] + slot)
            run = right.long().cumprod(-1) * live[:, None]
            accepted += run.float().sum(0)
            steps += int(live.sum())
            p = p + run.sum(-1) + 1
    return Acceptance(tuple((accepted / max(steps, 1)).tolist()), steps)


def as_json(results: Results) -> dict[str, dict[str, object]]:
    """For metrics.json."""
    return {
        kind: {
            str(n): {
                "acceptance_length": round(a.length, 4),
                "per_position": [round(x, 4) for x in a.per_position],
                "steps": a.steps,
            }
            for n, a in by_n.items()
        }
        for kind, by_n in results.items()
    }


def table(results: Results) -> list[str]:
    """For people: a line for each kind and n."""
    lines = [f"{'':10}{'n':>3}{'length':>8}{'steps':>7}  accepted at position 1, 2, …"]
    for kind, by_n in results.items():
        for n, a in by_n.items():
            lines.append(f"{kind:10}{n:3}{a.length:8.2f}{a.steps:7}  {positions(a.per_position)}")
    return lines


def positions(shares: Sequence[float]) -> str:
    """The first positions of a draft, in short."""
    return " ".join(f"{x:.2f}" for x in shares[:7]) + (" …" if len(shares) > 7 else "")
