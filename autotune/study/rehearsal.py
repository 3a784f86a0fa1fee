"""The section ``rehearsal`` of a study: real step times without the real weights.

vLLM fills a model with random weights (``--load-format dummy``) and plays a given acceptance
(``rejection_sample_method: synthetic``). What a step takes is then measured; what a draft is worth
is said by the study. See docs/rehearsal.md.

A server knows what of it is rehearsed (:class:`Played`). So everything that asks for the settings
of a launch, the rules as well as the command, gets those of the rehearsal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from autotune.study.arms import largest_n
from autotune.study.keys import Model, Nothing, Result
from autotune.study.secrets import argument_secret
from autotune.study.shapes import config_of_shape, is_shape, why_no_shape
from autotune.study.space import DRAFT, MOST_N, N, as_int
from autotune.study.speculative import ADAPTIVE, FROM_TEXT, REJECTION, SCHEDULE

if TYPE_CHECKING:
    from autotune.stats.acceptance_curve import AcceptanceCurve
    from autotune.study.schema import StudySpec

LOAD_FORMAT = "load_format"
DUMMY = "dummy"
SYNTHETIC = "synthetic"  # a value of REJECTION: drafts are accepted as often as is given
RATES = "synthetic_acceptance_rates"
LENGTH = "synthetic_acceptance_length"
BY_WEIGHTS, UNIFORM, COLLAPSED = "weights", "uniform", "collapsed"  # who routes tokens to experts
ROUTING_VARIABLE = "VLLM_MOE_ROUTING_SIMULATION_STRATEGY"  # of vLLM
_ROUTED = {
    UNIFORM: "experts are drawn evenly (one end of a band)",
    COLLAPSED: "every token has the same experts (one end of a band)",
}
_BY_ACCIDENT = ", and so is routing to experts (one point of a band)"
DRAFT_LOAD = "draft_load_config"  # of the draft, where it is not loaded as the target
# Keys of a config.json: experts of a layer, and of a token.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_TEXT = ("text_config", "thinker_config", "language_config", "llm_config", "ffn_config")
_USED = ("top_k_experts", "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k")
_DIGITS = 6  # of a rate in a command
_SAY_ACCEPTANCE = "write it as rehearsal.acceptance, so that every table says so"


class AcceptanceSpec(Model):
    """How often drafts are accepted; a list instead of a mapping has a rate for each position."""

    rates: Result[list[float] | None] = Field(
        default=None,
        description="probability that each position of a draft is accepted, and so all before it",
    )
    by_n: Result[list[list[float]] | None] = Field(
        default=None,
        description="several such lists, each for the n of its length; another n has the first of "
        "the next larger one",
    )
    rate: Result[float | None] = Field(
        default=None,
        description="or one probability that a position is accepted if all before it were",
    )
    length: Result[float | None] = Field(
        default=None,
        description="or the tokens per step of a draft of `positions` tokens, with `decay`",
    )
    positions: Result[int | None] = Field(
        default=None, ge=1, le=MOST_N, description="drafted tokens that `length` is for"
    )
    decay: Result[float | None] = Field(
        default=None,
        gt=0,
        le=10,
        description="factor on the conditional probability from one position to the next: with "
        "`length`, and beyond the last position that is given or was measured",
    )
    from_: Nothing[str | None] = Field(
        default=None,
        alias="from",
        description="or what the fixed n of another study counted: DB or DB:STUDY, relative to "
        "the study file",
    )

    @model_validator(mode="after")
    def _one_form(self) -> AcceptanceSpec:
        forms = ("rates", "by_n", "rate", "length")
        given = [name for name in forms if getattr(self, name) is not None]
        source = self.from_ or ""
        if argument_secret("from", source) or "password=" in source:
            raise ValueError(
                "from: has a password, which every table and the database would show; put it into "
                "~/.pgpass or PGPASSWORD"
            )
        if self.from_ is not None and given not in ([], ["by_n"]):
            raise ValueError(f"{given[0]}: `from` has the rates; leave one of the two out")
        if not given and self.from_ is None:
            raise ValueError(f"needs one of {', '.join(forms)} and from")
        if len(given) > 1:
            raise ValueError(f"{given[1]}: {given[0]} is given, too; keep one of the two")
        if (self.length is None) != (self.positions is None):
            raise ValueError("positions: goes with length, and length with positions")
        if self.length is not None and self.decay is None:
            raise ValueError("decay: is missing; 1: all positions are equal")
        if self.rate is not None and self.decay is not None:
            raise ValueError("decay: one `rate` holds for every position; leave decay out")
        lists = [self.rates] if self.rates is not None else self.by_n
        if lists is not None and not all(lists or [[]]):
            raise ValueError(f"{given[0]}: needs at least one rate")
        lengths = [len(x) for x in self.by_n or ()]
        if len(set(lengths)) < len(lengths):
            raise ValueError("by_n: two lists have the same length, which is their n")
        return self

    @property
    def resolved(self) -> bool:
        """Whether the rates are known; those of another study are read before a launch."""
        return self.from_ is None or self.by_n is not None

    @property
    def known_to(self) -> int | None:
        """Last position that is given or was measured; None: every position is, or none yet."""
        if self.rates is not None:
            return len(self.rates)
        if self.positions is not None:
            return self.positions
        return max(map(len, self.by_n)) if self.by_n else None

    def curves(self, most: int) -> tuple[AcceptanceCurve, ...]:
        """Return the curve of each n that has one of its own, the shortest first.

        Args:
            most: Largest n of the study; the last curve has at least so many positions.

        Raises:
            ValueError: a rate is impossible, or the largest n has none; begins with the key.
        """
        from autotune.stats import acceptance_curve as make

        try:
            if self.rate is not None:
                return (make.from_conditional(self.rate, max(1, most)),)
            if self.length is not None:
                found = [make.from_length(self.length, self.decay or 1, self.positions or 1)]
            else:
                lists = self.by_n or [self.rates or []]
                found = [make.from_rates(x) for x in sorted(lists, key=len) if x]
        except ValueError as e:
            raise ValueError(f"rehearsal.acceptance: {e}") from e
        if found and len(found[-1].rates) < most:
            if self.decay is None:
                what = "was measured" if self.from_ is not None else "is given"
                raise ValueError(
                    f"rehearsal.acceptance: {what} up to n = {len(found[-1].rates)}, and n goes up "
                    f"to {most}; search no larger n, or add `decay` to assume the rest"
                )
            found.append(make.extend(found[-1], self.decay, most))
        return tuple(found)


def _rates(value: object) -> object:
    if isinstance(value, list):
        return {"rates": value}
    if isinstance(value, bool | int | float | str):
        raise ValueError(
            f"must be a list of rates or a mapping such as {{rate: 0.7}}, not {_shown(value)}"
        )
    return value


def _both(value: object) -> object:
    if isinstance(value, str):
        return {"target": value, "draft": value}
    if isinstance(value, bool | int | float | list):
        raise ValueError(
            f"must be dummy or a mapping such as {{target: dummy}}, not {_shown(value)}"
        )
    return value


def _shown(value: object) -> str:
    return json.dumps(value, default=str)[:60]


class WeightsSpec(Model):
    """Whose weights are random; `dummy` instead of a mapping: those of target and draft."""

    target: Result[Literal["dummy", "real"]] = Field(
        default="real", description="dummy: vLLM fills it at random; a folder needs no weights"
    )
    draft: Result[Literal["dummy", "real"]] = Field(
        default="real", description="the same of the draft"
    )


class RehearsalSpec(Model):
    """A study without the real weights or the real acceptance; see docs/rehearsal.md."""

    acceptance: Annotated[AcceptanceSpec | None, BeforeValidator(_rates)] = Field(
        default=None,
        description="how often drafts are accepted; without it they are verified, and accepted as "
        "the weights have it",
    )
    weights: Annotated[WeightsSpec | None, BeforeValidator(_both)] = Field(
        default=None, description="whose weights are random; without it none are"
    )
    seed: Result[int] = Field(
        default=0,
        ge=0,
        lt=2**32,
        description="of random packed integers (W4 and the like), which vLLM leaves as they lie in "
        "memory",
    )
    routing: Result[Literal["weights", "uniform", "collapsed"]] = Field(
        default="weights",
        description="of a mixture of experts, which of them a token has: as the router's weights "
        "have it, drawn evenly, or the same for every token; a figure of the first is one point "
        "of a band, and of the others its ends",
    )

    mixture: Nothing[bool | None] = Field(
        default=None,
        description="whether a model with random weights is a mixture of experts, so that every "
        "table calls a figure one point of a band; without it, as its `config.json` says, where "
        "that is on this disk",
    )

    @model_validator(mode="after")
    def _something(self) -> RehearsalSpec:
        weights = self.weights
        if self.acceptance is None and (weights is None or weights == WeightsSpec()):
            raise ValueError("rehearses nothing: give `weights: dummy`, an `acceptance`, or both")
        return self

    def dummy(self, role: Literal["target", "draft"]) -> bool:
        """Return whether the weights of a role are random."""
        return self.weights is not None and bool(getattr(self.weights, role) == DUMMY)


@dataclass(frozen=True)
class Played:
    """What a server of a rehearsal is launched with.

    Attributes:
        target: Whether the target's weights are random.
        draft: Whether the draft's weights are; as the target's where it has none of its own.
        curves: Acceptance by position, for each n that has a list of its own, the shortest first;
            empty: not read yet; None: drafts are really verified.
        seed: Of random packed integers.
        label: What of it is real and what is not, in one line.
        routing: What routes tokens to experts: ``weights``, ``uniform``, or ``collapsed``.
        mixture: Whether a model with random weights is known to be a mixture of experts.
    """

    target: bool
    draft: bool
    curves: tuple[tuple[float, ...], ...] | None
    seed: int
    label: str
    routing: str = BY_WEIGHTS
    mixture: bool = False

    def rates_at(self, n: int) -> list[float] | None:
        """Return the acceptance by position of a draft of n; fewer than n: no more are known."""
        if self.curves is None:
            return None
        longest = max(self.curves, key=len, default=())
        found = next((x for x in self.curves if len(x) >= n), longest)
        return [round(rate, _DIGITS) for rate in found[:n]]

    def applied(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of a launch, with what makes it a rehearsal.

        Args:
            settings: As :meth:`autotune.study.schema.ServerSpec.settings` has them without.
        """
        out = dict(settings)
        if self.target:
            out[LOAD_FORMAT] = DUMMY
        n = as_int(out.get(N)) or 0
        if n < 1:
            return out
        if (rates := self.rates_at(n)) is not None:
            out |= {f"{DRAFT}{REJECTION}": SYNTHETIC, f"{DRAFT}{RATES}": rates}
        if self.draft != self.target:
            out[f"{DRAFT}{DRAFT_LOAD}"] = {LOAD_FORMAT: DUMMY if self.draft else "auto"}
        return out


def played(spec: StudySpec) -> Played | None:
    """Return what the servers of a study are launched with; None: it is no rehearsal.

    Raises:
        ValueError: the study does not go together with its rehearsal; begins with the key.
    """
    how = spec.rehearsal
    if how is None:
        return None
    if why := next(_clashes(spec, how), None):
        raise ValueError(why)
    most = _most_n(spec)
    curves = None
    if how.acceptance is not None:
        curves = tuple(x.rates for x in how.acceptance.curves(most))
    target, draft = how.dummy("target"), how.dummy("draft")
    if not _has_weights(spec):
        draft = target
    mixture = how.mixture
    if mixture is None:
        mixture = any(_is_mixture(_config_of_shape(ref)) for ref in random_models(spec))
    said = weights_text(how.routing, mixture=mixture, target=target, draft=draft)
    label = _label(spec, how, most, said)
    return Played(target, draft, curves, how.seed, label, how.routing, mixture)


def random_models(spec: StudySpec) -> Iterator[str]:
    """Yield references of the models whose weights a rehearsal draws at random."""
    how, draft = spec.rehearsal, spec.server.speculative
    if how is not None and how.dummy("target"):
        yield spec.server.model
    if how is not None and how.dummy("draft") and draft is not None and draft.model is not None:
        yield draft.model


def with_mixture(
    spec: StudySpec, config_of: Callable[[str], Mapping[str, Any] | None]
) -> StudySpec:
    """Return a rehearsal that says whether a model with random weights has experts.

    Any other study stays as it is, and so does one that says it, or whose models have none.

    Args:
        spec: The study.
        config_of: Function that returns a model's ``config.json``; None: it is not on this disk.
    """
    how, own = spec.rehearsal, spec.server.played
    if how is None or how.mixture is not None or own is None or own.mixture:
        return spec
    if not any(_is_mixture(config_of(ref)) for ref in random_models(spec)):
        return spec
    found = spec.model_copy(update={"rehearsal": how.model_copy(update={"mixture": True})})
    return found.model_copy(update={"server": spec.server.playing(played(found))})


def weights_text(routing: str, *, mixture: bool, target: bool, draft: bool) -> str:
    """Return whose weights are random, and what routes tokens to experts that are not trained to.

    Args:
        routing: ``weights``, ``uniform``, or ``collapsed``.
        mixture: Whether a model with random weights is a mixture of experts.
        target: Whether the target's weights are random.
        draft: Whether the draft's are.
    """
    whose = {(True, False): "the target's weights", (False, True): "the draft's weights"}
    random = "random" if target or draft else "real"
    said = f"{whose.get((target, draft), 'weights')} are {random}"
    if routing != BY_WEIGHTS:
        return f"{said}, {_ROUTED[routing]}"
    return said + (_BY_ACCIDENT if mixture else "")


def _label(spec: StudySpec, how: RehearsalSpec, most: int, weights: str) -> str:
    words = [weights]
    accepted = how.acceptance
    if spec.server.speculative is None or most == 0:
        pass
    elif accepted is None:
        words.append("acceptance is what random weights give")
    else:
        file = (accepted.from_ or "").partition("?")[0].rpartition("/")[2]
        source = f" (as counted in {file})" if file else ""
        known = accepted.known_to
        beyond = known is not None and known < most
        words.append(f"acceptance was given{source}")
        words += [f"and is assumed beyond n = {known}"] if beyond else []
    return f"rehearsal: {', '.join(words)}, step times are real"


def _config_of_shape(ref: str) -> Mapping[str, Any] | None:
    """Return the ``config.json`` of a shape of the catalog; None: the model is none."""
    return config_of_shape(ref) if is_shape(ref) and why_no_shape(ref) is None else None


def _is_mixture(config: Mapping[str, Any] | None) -> bool:
    """Return whether a ``config.json`` says of several experts; None: it is not known."""
    return config is not None and (experts_in(config) or (1, 1))[0] > 1


def experts_in(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return how many experts a layer has, and a token of them; None: it says of none.

    Args:
        config: A model's ``config.json``.
    """
    experts = next((n for k in _EXPERTS if (n := as_int(config.get(k)))), None)
    used = next((n for k in _USED if (n := as_int(config.get(k)))), None)
    if experts is not None:
        return experts, used or 1
    inner = (config.get(name) for name in _TEXT)
    return next(
        (x for body in inner if isinstance(body, Mapping) and (x := experts_in(body))), None
    )


def _most_n(spec: StudySpec) -> int:
    """Return the largest n of a study; 0: it drafts nothing, or does not say how much."""
    if N in spec.space:
        return max((as_int(v) or 0 for v in spec.space[N].values() or ()), default=0)
    draft = {} if spec.server.speculative is None else spec.server.speculative.given()
    n = as_int(draft.get(N))
    if n is None and SCHEDULE in draft:
        return largest_n(draft[SCHEDULE])
    return n or 0


def _has_weights(spec: StudySpec) -> bool:
    """Return whether the draft has weights that are not the target's."""
    draft = spec.server.speculative
    return draft is not None and draft.method not in FROM_TEXT


def _clashes(spec: StudySpec, how: RehearsalSpec) -> Iterator[str]:
    """Yield what a study says that its rehearsal sets or cannot have, key first."""
    server = spec.server
    if server.arms:
        yield (
            "rehearsal: has one way to draft, as each has an acceptance of its own; write it as "
            "server.speculative instead of server.arms"
        )
    if not spec.workload.ignore_eos:
        yield (
            "workload.ignore_eos: must be true in a rehearsal, whose texts are random and would "
            "end anywhere"
        )
    if how.routing != BY_WEIGHTS and ROUTING_VARIABLE in server.env:
        yield f"server.env.{ROUTING_VARIABLE}: rehearsal.routing sets it; leave it out"
    places = {f"server.flags.{name}": name for name in server.flags}
    if (draft := server.speculative) is not None:
        places |= {f"server.speculative.{name}": f"{DRAFT}{name}" for name in draft.given()}
    places |= {f"space.{name}": name for name in spec.space}
    for place, name in places.items():
        if why := _why_not(spec, how, name):
            yield f"{place}: {why}"
    if how.acceptance is not None and draft is None:
        yield "rehearsal.acceptance: needs a draft; write one as server.speculative"
    elif how.acceptance is not None and draft is not None and not _has_weights(spec):
        yield (
            f"rehearsal.acceptance: method {draft.method} drafts only where the text repeats, so "
            "an acceptance by position does not say how much it gives"
        )
    elif how.acceptance is not None and _most_n(spec) == 0:
        yield (
            f"rehearsal.acceptance: no launch is known to draft, so it would not be played; give "
            f"space.{N}, or {N} in server.speculative"
        )
    elif how.acceptance is None and not how.dummy("target") and not _has_weights(spec):
        yield "rehearsal.weights.draft: this study has no draft with weights of its own"


def _why_not(spec: StudySpec, how: RehearsalSpec, name: str) -> str | None:
    """Return why a rehearsal must not have a setting; None: it may.

    Args:
        spec: The study.
        how: Its rehearsal.
        name: Flag, or key of the draft behind ``speculative.``.
    """
    root, given = name.removeprefix(DRAFT).partition(".")[0], how.acceptance is not None
    if not name.startswith(DRAFT):
        loads = root == LOAD_FORMAT and how.weights is not None
        return "rehearsal.weights sets it; leave it out" if loads else None
    if root == DRAFT_LOAD:
        return "rehearsal.weights sets it; leave it out" if how.weights is not None else None
    draft = spec.server.speculative
    fixed = None if draft is None else draft.given().get(name.removeprefix(DRAFT))
    if root in (RATES, LENGTH) or (root == REJECTION and (given or fixed == SYNTHETIC)):
        return f"{'rehearsal.acceptance sets it' if given else _SAY_ACCEPTANCE}; leave it out"
    if root == ADAPTIVE and given and (name in spec.space or fixed is True):
        return (
            "adaptive verification goes by what the draft itself expects, which a given acceptance "
            "says nothing of; leave it out"
        )
    return None
