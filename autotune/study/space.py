"""Parameters of a space, their encoding for Optuna, and which points are one launch.

The module is pure and imports nothing of the rest of autotune. A *point* is a mapping
of parameter name (with underscores, as vLLM names its arguments) to a plain value. Optuna keeps the
point as it is. The distribution of a power of two says ``log``, so that the dashboard draws the
axis with equal steps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:  # needed to run a study only
    from optuna.distributions import BaseDistribution

Value = int | float | str | bool
Point = Mapping[str, Value]

N = "num_speculative_tokens"
MNBT = "max_num_batched_tokens"
# Prefix of the parameters that go into --speculative-config; they have no effect at n = 0.
DRAFT = "speculative."
# Not a flag of vLLM: which of the study's ways to draft a point has, see `autotune.study.arms`.
ARM = "arm"
# Not a flag of vLLM: CUDA graphs for multiples of n + 1 tokens, see `aligned_sizes` of
# `autotune.engine.cuda_graphs`.
ALIGNED = "aligned_cudagraphs"

# Prefix of a power of two in studies that autotune 0.1 or 0.2.0 began: Optuna keeps its exponent.
EXPONENT = "log2_"

# Limit of the values of one parameter that can be counted: a grid visits and shows each value.
_MOST_VALUES = 100_000
MOST_N = _MOST_VALUES - 1  # n counts from 0
_MOST_CHOICES = 1000
_MOST = 2**53  # floats and JSON know all whole numbers up to it


class _Param(BaseModel):
    """A parameter of the space."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class IntParam(_Param):
    """Whole numbers ``low, low + step, … ≤ high``."""

    type: Literal["int"]
    low: int = Field(ge=-_MOST, le=_MOST)
    high: int = Field(ge=-_MOST, le=_MOST)
    step: int = Field(default=1, ge=1, le=_MOST)

    @model_validator(mode="after")
    def _order(self) -> IntParam:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) is above high ({self.high})")
        count = (self.high - self.low) // self.step + 1
        if count > _MOST_VALUES:
            raise ValueError(
                f"has {count} values, more than {_MOST_VALUES}; take a larger step, or type: pow2"
            )
        return self

    def values(self) -> tuple[int, ...]:
        """Return every value, ascending."""
        return tuple(range(self.low, self.high + 1, self.step))


class Pow2Param(_Param):
    """Powers of two from ``low`` to ``high``, both included and both powers of two."""

    type: Literal["pow2"]
    low: int = Field(ge=1, le=_MOST)
    high: int = Field(ge=1, le=_MOST)

    @model_validator(mode="after")
    def _powers(self) -> Pow2Param:
        for name, value in (("low", self.low), ("high", self.high)):
            if value & (value - 1):
                below = 1 << (value.bit_length() - 1)
                raise ValueError(
                    f"{name} ({value}) is not a power of two; take {below} or {2 * below}"
                )
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) is above high ({self.high})")
        return self

    def values(self) -> tuple[int, ...]:
        """Return every value, ascending."""
        return tuple(1 << e for e in range(self.low.bit_length() - 1, self.high.bit_length()))


class FloatParam(_Param):
    """Real numbers from ``low`` to ``high``; ``log`` searches the logarithm."""

    type: Literal["float"]
    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _order(self) -> FloatParam:
        if not math.isfinite(self.high - self.low):
            raise ValueError("low and high must be finite numbers, and their difference")
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) is above high ({self.high})")
        if self.log and self.low <= 0:
            raise ValueError("log: true needs low above 0")
        return self

    def values(self) -> None:
        """Return None, because a continuum has no list of values."""
        return


class ChoiceParam(_Param):
    """One of a list of values without an order."""

    type: Literal["choice"]
    choices: tuple[Value, ...] = Field(min_length=1, max_length=_MOST_CHOICES)

    @model_validator(mode="after")
    def _distinct(self) -> ChoiceParam:
        # 1, 1.0 and true are one value to Python, and so to Optuna, which would mix them up
        if len(set(self.choices)) < len(self.choices):
            raise ValueError("choices has the same value twice")
        return self

    def values(self) -> tuple[Value, ...]:
        """Return every choice, as listed."""
        return self.choices


Param = Annotated[IntParam | Pow2Param | FloatParam | ChoiceParam, Field(discriminator="type")]
AnyParam = IntParam | Pow2Param | FloatParam | ChoiceParam


@dataclass(frozen=True)
class Way:
    """What one arm of a space searches.

    Attributes:
        params: Its parameters of the draft by name; its n, of at least 1, is always one of them.
        draft: Its fixed keys of ``--speculative-config``.
    """

    params: Mapping[str, AnyParam]
    draft: Mapping[str, Any]


@dataclass(frozen=True)
class Space:
    """The searched parameters.

    A study with arms searches the parameter :data:`ARM`, too. Its points have a value for each
    parameter of each arm; those of other arms have their first value. At n = 0 there is no draft,
    so there is one baseline, which has the first arm.

    Attributes:
        params: Parameters by name, in the order of the study file. With arms, the parameters of
            the draft cover the values of all arms.
        exponents: Whether Optuna keeps powers of two as their exponents, see :meth:`kept_as`.
        ways: What each arm searches, by the arm's name; empty without arms.
        draft: Fixed keys of ``--speculative-config``, without arms.
    """

    params: Mapping[str, AnyParam]
    exponents: bool = False
    ways: Mapping[str, Way] = field(default_factory=dict)
    draft: Mapping[str, Any] = field(default_factory=dict)

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms, in the order of the study file."""
        return tuple(self.ways)

    def fixed_n(self, arm: str) -> int | None:
        """Return the only n of an arm; None: it searches n."""
        values = self.ways[arm].params[N].values() or ()
        return as_int(values[0]) if len(values) == 1 else None

    def n_of(self, point: Point) -> int | None:
        """Return the tokens that a point drafts per step; None: n is not searched."""
        return as_int(canonical(self, point).get(N))

    def draft_of(self, point: Point) -> dict[str, Any]:
        """Return a point's keys of ``--speculative-config``, without n; empty at n = 0."""
        if point.get(N) == 0:
            return {}
        fixed = self.ways[str(point[ARM])].draft if self.ways else self.draft
        searched = {k: v for k, v in self.shown(point).items() if k.startswith(DRAFT)}
        whole = {**fixed, **{k.removeprefix(DRAFT): v for k, v in searched.items()}}
        return {k: v for k, v in whole.items() if k != N}

    def shown(self, point: Point) -> dict[str, Value]:
        """Return a point with the arms' parameters that its launch has, for people to read.

        At n = 0 there is no arm. :func:`canonical` brings the others back.
        """
        if not self.ways:
            return dict(point)
        if point.get(N) == 0:
            return effective(point)
        own = self.ways[str(point[ARM])].params
        return {k: v for k, v in point.items() if k in own or not k.startswith(DRAFT)}

    def parts(self) -> list[Space]:
        """Return spaces without arms that together have the points of this one, each once.

        With arms, these are the baseline's and one for each arm, with the arm's own parameters.
        """
        if not self.ways:
            return [self]
        nothing = Way({N: IntParam(type="int", low=0, high=0)}, {})
        ways = [(self.arms[0], nothing), *self.ways.items()]
        return [self._part(name, way.params) for name, way in ways]

    def _part(self, arm: str, own: Mapping[str, AnyParam]) -> Space:
        params: dict[str, AnyParam] = {}
        for name, p in self.params.items():
            if name == ARM:
                params[name] = _only(arm)
            elif name == N or name.startswith(DRAFT):
                params[name] = own.get(name) or _only(first_value(p))
            else:
                params[name] = p
        return replace(self, params=params, ways={})

    def kept_as(self, trials: Iterable[Mapping[str, object]]) -> Space:
        """Return the same space with the encoding of a study that has trials already.

        Optuna does not let a parameter change its name or its distribution within a study.

        Args:
            trials: Optuna's parameters of each trial of the study.
        """
        return replace(self, exponents=keeps_exponents(trials))

    def has_point(self, encoded: Mapping[str, object]) -> bool:
        """Return whether Optuna's parameters give every parameter of the space a value."""
        return all(name in encoded or EXPONENT + name in encoded for name in self.params)

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return Optuna's distributions of the encoded parameters."""
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        out: dict[str, BaseDistribution] = {}
        for name, p in self.params.items():
            match p:
                case IntParam():
                    high = p.values()[-1]  # Optuna warns where step does not divide the range
                    out[name] = IntDistribution(p.low, high, step=p.step)
                case Pow2Param() if self.exponents:
                    out[EXPONENT + name] = IntDistribution(_exponent(p.low), _exponent(p.high))
                case Pow2Param():
                    out[name] = IntDistribution(p.low, p.high, log=True)
                case FloatParam():
                    out[name] = FloatDistribution(p.low, p.high, log=p.log)
                case ChoiceParam():
                    out[name] = CategoricalDistribution(p.choices)
        return out

    def encode(self, point: Point) -> dict[str, Value]:
        """Return a point as Optuna's parameters.

        Raises:
            ValueError: the point is not in the space.
        """
        out: dict[str, Value] = {}
        way = self.ways.get(str(point.get(ARM))) if point.get(N) != 0 else None
        for name, p in self.params.items():
            if name not in point:
                raise ValueError(f"{name} is missing")
            value = point[name]
            if not self._contains(p, value):
                raise ValueError(f"{name} = {value!s:.60} is outside the space ({describe(p)})")
            own = None if way is None else way.params.get(name)
            if own is not None and not self._contains(own, value):
                what = f"{name} = {value!s:.60}"
                raise ValueError(f"{what} is outside arm {point[ARM]} ({describe(own)})")
            if self.exponents and isinstance(p, Pow2Param):
                out[EXPONENT + name] = _exponent(int(value))
            else:
                out[name] = value
        extra = set(point) - set(self.params)
        if extra:
            raise ValueError(f"{sorted(extra)[0]} is not a parameter of the space")
        return out

    def contains(self, point: Point) -> bool:
        """Return whether a point is one of the space."""
        try:
            self.encode(point)
        except ValueError:
            return False
        return True

    def decode(self, encoded: Mapping[str, Value]) -> dict[str, Value]:
        """Return Optuna's parameters as a point; the inverse of :meth:`encode`.

        Exponents are understood whether or not the space has :attr:`exponents`.

        >>> s = Space({"max_num_batched_tokens": Pow2Param(type="pow2", low=32, high=2048)})
        >>> s.decode(s.encode({"max_num_batched_tokens": 256}))
        {'max_num_batched_tokens': 256}
        """
        return {
            name: encoded[name] if name in encoded else 1 << int(encoded[EXPONENT + name])
            for name in self.params
        }

    @staticmethod
    def _contains(p: AnyParam, value: Value) -> bool:
        match p:
            case FloatParam():
                return isinstance(value, int | float) and p.low <= value <= p.high
            case ChoiceParam():
                return any(type(c) is type(value) and c == value for c in p.choices)
            case _:
                return isinstance(value, int) and value in p.values()

    def points(self) -> Iterator[dict[str, Value]] | None:
        """Return every point in the order of the study file; None where one parameter is real."""
        columns = [[p.values() for p in part.params.values()] for part in self.parts()]
        if any(values is None for column in columns for values in column):
            return None
        rows = (itertools.product(*(v for v in column if v)) for column in columns)
        names = list(self.params)
        return (dict(zip(names, row, strict=True)) for row in itertools.chain(*rows))

    def size(self) -> int | None:
        """Return the number of points; None where one parameter is real."""
        counts = [[p.values() for p in part.params.values()] for part in self.parts()]
        if any(values is None for column in counts for values in column):
            return None
        return sum(math.prod(len(v) for v in column if v) for column in counts)

    def clip(self, name: str, wanted: int) -> Value:
        """Return the value of a whole-number parameter that is nearest to a wanted one.

        Raises:
            ValueError: the parameter is not a whole number.
        """
        values = self.params[name].values()
        if values is None or not all(isinstance(v, int) for v in values):
            raise ValueError(f"{name} is not a whole-number parameter")
        return min(values, key=lambda v: abs(int(v) - wanted))


def _exponent(power: int) -> int:
    return power.bit_length() - 1


def keeps_exponents(trials: Iterable[Mapping[str, object]]) -> bool:
    """Return whether trials with such parameters of Optuna keep powers of two as exponents."""
    return any(name.startswith(EXPONENT) for params in trials for name in params)


def describe(p: AnyParam) -> str:
    """Return the values of a parameter in a few words, for messages."""
    match p:
        case IntParam():
            step = f" in steps of {p.step}" if p.step > 1 else ""
            return f"{p.low} to {p.high}{step}"
        case Pow2Param():
            return f"powers of two from {p.low} to {p.high}"
        case FloatParam():
            return f"{p.low:g} to {p.high:g}"
        case ChoiceParam():
            words = ", ".join(f"{c!s:.60}" for c in p.choices)
            return "one of " + (words if len(words) <= 200 else words[:200] + "…")


def effective(point: Point) -> dict[str, Value]:
    """Return the part of a point that reaches vLLM: without speculation, nothing of the draft.

    >>> effective({"num_speculative_tokens": 0, "speculative.draft_tensor_parallel_size": 2})
    {'num_speculative_tokens': 0}
    """
    if point.get(N) != 0:
        return dict(point)
    return {k: v for k, v in point.items() if k != ARM and not k.startswith(DRAFT)}


def same_launch(a: Point, b: Point) -> bool:
    """Return whether two points start the same server."""
    return effective(a) == effective(b)


def canonical(space: Space, point: Point) -> dict[str, Value]:
    """Return the point that stands for all points that start the same server.

    It is the one that is launched, shown and stored. At n = 0 the draft's parameters have their
    first value, and the arm is the first one. With n above 0 an arm has its n, if it has only one,
    and parameters of other arms have their first value.
    """
    out = dict(point)
    drafts = point.get(N) != 0
    if not drafts and space.ways:
        out[ARM] = space.arms[0]
    way = space.ways.get(str(point.get(ARM))) if drafts else None
    for name, p in space.params.items():
        if not name.startswith(DRAFT):
            continue
        if not drafts or (way is not None and name not in way.params):
            out[name] = first_value(p)
    if way is not None and (n := space.fixed_n(str(point[ARM]))) is not None:
        out[N] = n
    return out


def first_value(p: AnyParam) -> Value:
    """Return the first value of a parameter."""
    return p.choices[0] if isinstance(p, ChoiceParam) else p.low


def _only(value: Value) -> ChoiceParam:
    return ChoiceParam(type="choice", choices=(value,))


def as_int(value: object) -> int | None:
    """Return an integer setting; None: it is not given, or is a word such as ``auto``."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return int(value)
    except (ValueError, OverflowError):  # a word, or infinite
        return None
