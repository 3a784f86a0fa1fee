"""Arms: several ways to draft in one study, of which each trial has one.

An arm is one mapping of ``server.arms``: the keys of ``--speculative-config`` that its launches
have, and under ``space`` those that are searched for this arm only. A fixed n, a schedule by batch
size, adaptive verification, n-grams and another draft model are arms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, StringConstraints, field_validator, model_validator

from autotune.study.keys import Result
from autotune.study.space import DRAFT, IntParam, N, Param
from autotune.study.speculative import SCHEDULE, SpeculativeSpec

# Limits as in `keys`: an arm's name is in every table, and each arm needs launches of its own.
MOST_ARMS = 64
ArmName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=40)]


class ArmSpec(SpeculativeSpec):
    """One way to draft, by its name; every other key goes to vLLM's ``--speculative-config``."""

    space: Result[dict[str, Param]] = Field(
        default_factory=dict,
        description="keys of this arm that are searched, such as `num_speculative_tokens` and "
        "`prompt_lookup_max`",
    )

    @field_validator("space")
    @classmethod
    def _names(cls, value: dict[str, Any]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, p in value.items():
            root, dot, rest = key.removeprefix(DRAFT).partition(".")
            name = f"{root.replace('-', '_')}{dot}{rest}"
            if name in ("method", "model"):
                raise ValueError(f"{key} cannot be searched: an arm has one {name}")
            if name in out:
                raise ValueError(f"{key} is given twice")
            out[name] = p
        return out

    @model_validator(mode="after")
    def _fixed_or_searched(self) -> ArmSpec:
        for name in self.space:
            if name in self.given():
                raise ValueError(
                    f"space.{name}: is also fixed in the arm; keep it in one of the two"
                )
        return self

    @model_validator(mode="after")
    def _drafts_always(self) -> ArmSpec:
        """Check that n is from 1 up: n = 0 is the baseline, which all arms share."""
        if (param := self.space.get(N)) is not None:
            values = param.values()
            if values is None or not all(type(v) is int and v >= 1 for v in values):
                raise ValueError(
                    f"space.{N}: must be whole numbers from 1 up; n = 0 is the baseline of all arms"
                )
            return self
        n, given = self.fixed_n, self.given()
        if n is not None and n < 1 and N not in given:
            raise ValueError(
                f"{SCHEDULE}: one n must be from 1 up, or nothing is drafted; n = 0 is the "
                "baseline of all arms"
            )
        if n is not None and n < 1:
            raise ValueError(f"{N} must be from 1 up; n = 0 is the baseline of all arms")
        return self

    @property
    def fixed_n(self) -> int | None:
        """The arm's only n; None: it is searched. With a schedule, its largest n by default."""
        if N in self.space:
            return None
        given = self.given()
        n = given.get(N)
        if n is None and SCHEDULE in given:
            return largest_n(given[SCHEDULE])
        return n if isinstance(n, int) else None

    def own_params(self) -> dict[str, Param]:
        """Return what the arm searches by the names of a point, with its n where that is fixed."""
        out = {k if k == N else f"{DRAFT}{k}": p for k, p in self.space.items()}
        if (n := self.fixed_n) is not None:
            out[N] = IntParam(type="int", low=n, high=n)
        return out

    def given(self) -> dict[str, Any]:
        """Return the fixed keys for ``--speculative-config``."""
        return {k: v for k, v in super().given().items() if k != "space"}

    def alone(self) -> SpeculativeSpec:
        """Return the arm as the only way to draft."""
        return SpeculativeSpec.model_validate(self.given())


def largest_n(schedule: object) -> int:
    """Return the largest n of a schedule by batch size.

    Raises:
        ValueError: It is no list of whole numbers, three each.
    """
    try:
        return max(n for _, _, n in schedule if type(n) is int)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise ValueError(
            f"{SCHEDULE}: must be a list of [first batch size, last batch size, n], whole numbers"
        ) from None


def why_clash(arms: Mapping[str, ArmSpec], space: Mapping[str, Any]) -> str | None:
    """Return which key of ``space`` contradicts the arms, key first; None: none does.

    Args:
        arms: The study's arms; empty: nothing contradicts them.
        space: The study's shared parameters.
    """
    if not arms:
        return None
    for name in space:
        if name.startswith(DRAFT):
            key = name.removeprefix(DRAFT)
            return f"space.{name}: a study with arms has it per arm: server.arms.NAME.space.{key}"
    searched = [name for name, arm in arms.items() if arm.fixed_n is None and N not in arm.space]
    if searched and N not in space:
        return (
            f"server.arms.{searched[0]}: {N} is missing: give it here, or search it in the arm's "
            "own space, or in space for all arms"
        )
    if N in space and not searched:
        return f"space.{N}: every arm has its own; leave it out"
    return None
