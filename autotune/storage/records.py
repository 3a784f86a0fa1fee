"""Typed records of a trial and of a measurement: the only module that knows their stored keys.

Optuna keeps a trial's attributes as JSON by key, and a launch keeps the quality of its measurement
as one JSON object. Here both are classes, so that a renamed key is a type error. Databases that an
earlier autotune wrote have no ``role``; it is inferred from the keys that they do have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from autotune.stats.stopping import Stop

if TYPE_CHECKING:
    from autotune.storage.trials import TrialLike
    from autotune.study.space import Point

# Estimator of a measurement that names none: the one of autotune 0.1.
FIRST_ESTIMATOR = 1


class Role(StrEnum):
    """Purpose of a trial."""

    BASELINE = "baseline"  # others are compared with it
    SEARCH = "search"
    REPLICATE = "replicate"  # launches a point of the search once more
    CONFIRMATION = "confirmation"  # launches a winner again, in turn with the others
    REUSED = "reused"  # was measured for another study


@dataclass(frozen=True)
class Quality:
    """How a measurement came about, as the database keeps it next to the numbers.

    Attributes:
        estimator: Version of the estimator (:data:`autotune.stats.ESTIMATOR`).
        errors: Standard error of each value's logarithm within the launch, by objective name.
        requests: Number of measured requests.
        stop: Reason for the end, a name of :class:`autotune.stats.stopping.Stop` in lower case.
        dominated_by: Number of the trial that is better in everything.
        warmup_requests: Number of requests before the measurement.
        steady: Whether the warm-up ended with a steady server.
        busy: Whether a closed loop ran at its full concurrency during the whole measurement.
        unanswered: Number of warm-up requests that ran until the measurement had ended.
        drift: How much faster the last requests were than the first, as a share.
        prefix_cache_share: Share of the prompt tokens that came from the prefix cache.
        running_peak: Largest number of requests that vLLM was seen to run at once; watching ends
            when it has reached ``running_asked``.
        running_asked: Number of requests that a closed loop asks for: the smaller of concurrency
            and ``max_num_seqs``.
        throttled: Whether the peak stayed below that; None: unknown.
        machine: :class:`autotune.bench.interference.MachineState` as plain data; only of a launch.
        energy: :class:`autotune.serving.nvml.Energy` as plain data.
        disturbed: Reason to think that other programs loaded the machine.
        beside: Number of other servers that were idle during the measurement.
        weights: Hashes of the weights, by role (:mod:`autotune.study.weights`).
        recomputed: Version of the estimator whose numbers were computed again; never stored.
        outdated: Reason why they could not be computed again; never stored.
    """

    estimator: int = FIRST_ESTIMATOR
    errors: Mapping[str, float | None] = field(default_factory=dict)
    requests: int | None = None
    stop: str | None = None
    dominated_by: int | None = None
    warmup_requests: int | None = None
    steady: bool | None = None
    busy: bool = False
    unanswered: int | None = None
    drift: float | None = None
    prefix_cache_share: float | None = None
    running_peak: int | None = None
    running_asked: int | None = None
    throttled: bool | None = None
    machine: Mapping[str, Any] | None = None
    energy: Mapping[str, Any] | None = None
    disturbed: str | None = None
    beside: int | None = None
    weights: Mapping[str, str] = field(default_factory=dict)
    recomputed: int | None = None
    outdated: str | None = None

    @classmethod
    def read(cls, kept: Mapping[str, Any] | None) -> Quality:
        """Return the quality that a row or a trial keeps; without one, that of autotune 0.1."""
        if not kept:
            return _NO_QUALITY
        known = {k: v for k, v in kept.items() if k in _QUALITY_KEYS}
        for name in ("errors", "weights"):
            found = known.get(name)
            known[name] = found if isinstance(found, dict) else {}
        known["estimator"] = int(known.get("estimator") or FIRST_ESTIMATOR)
        known["busy"] = bool(known.get("busy"))
        return cls(**known)

    def to_json(self) -> dict[str, Any]:
        """Return plain data, without fields that this kind of measurement does not have."""
        found = {name: getattr(self, name) for name in _QUALITY}
        return {k: v for k, v in found.items() if k not in _OPTIONAL or v not in (None, {})}

    @property
    def may_win(self) -> bool:
        """Whether the numbers take part in comparisons, so that they can be the best.

        They do not if measuring ended early for a better trial, if they are of an estimator that
        does not compare, or if vLLM throttled the load, so that they are of another one.
        """
        return may_win(
            truncated=self.truncated,
            outdated=self.outdated is not None,
            throttled=bool(self.throttled),
        )

    @property
    def truncated(self) -> bool:
        """Whether measuring ended early because another trial is better in everything."""
        return self.stop == Stop.DOMINATED.name.lower()

    @property
    def of_trial(self) -> Quality:
        """Part that a trial keeps; only the launch keeps the other fields."""
        return replace(self, machine=None)


def may_win(*, truncated: bool, outdated: bool, throttled: bool) -> bool:
    """Return whether a measurement can be the best; see :attr:`Quality.may_win`."""
    return not (truncated or outdated or throttled)


_QUALITY = tuple(f.name for f in fields(Quality))
_QUALITY_KEYS = frozenset(_QUALITY)
_OPTIONAL = {
    *("machine", "beside", "weights", "recomputed", "outdated"),
    *("running_peak", "running_asked", "throttled"),
}
_NO_QUALITY = Quality()


@dataclass(frozen=True)
class TrialAttrs:
    """A trial's attributes.

    Attributes:
        role: Purpose of the trial.
        baseline: Whether others are compared with it; a reused trial can be the baseline, too.
        replicates: Number of the trial whose point it launches once more in the search.
        confirms: Number of the trial whose point it confirms.
        confirmation: Number of wanted trials for which the confirmation was planned.
        confirmation_block: Number of its block in the confirmation, all of which is on one slot;
            None: the first one.
        expected_gain: Expected growth of the hypervolume, as a share; of older trials.
        expected_improvement: Largest expected improvement of an objective or of their geometric
            mean by the best launch, as a share.
        challenge: Whether it was chosen to test the model's opinion that nothing is left to gain.
        point: Parameters of the trial.
        launch: Id of the launch that it was measured with.
        vllm_version: Version that the server reported.
        acceptance_length: Tokens per verification step.
        acceptance_per_position: Share of the draft tokens at each position that were accepted.
        intervals: Low and high of each objective within the launch, by name.
        log_variances: Variance of each objective's logarithm within the launch.
        quality: How it was measured.
        failure_kind: Name of an :class:`autotune.errors.FailureKind`.
        failure_reason: Reason of the failure in words.
        failure_evidence: Lines of the server's log that show it.
        failure_least: Fields of the :class:`autotune.errors.LeastBudget` that the failure stated.
        health_timeout_s: Time limit for the server's first answer, if it did not answer in time.
        reused: Fields of :class:`autotune.results.views.Origin`, which says where it was measured.
        rehearsal: What of its launch was real and what was not; None: all of it was.
        slot: What is kept of the slot of its last launch
            (:meth:`autotune.serving.slots.Slot.stored`); None: the run had one server at a time.
    """

    role: Role = Role.SEARCH
    baseline: bool = False
    replicates: int | None = None
    confirms: int | None = None
    confirmation: int | None = None
    confirmation_block: int | None = None
    expected_gain: float | None = None
    expected_improvement: float | None = None
    challenge: bool = False
    point: Point | None = None
    launch: str | None = None
    vllm_version: str | None = None
    acceptance_length: float | None = None
    acceptance_per_position: Sequence[float] | None = None
    intervals: Mapping[str, Sequence[float | None]] | None = None
    log_variances: Sequence[float | None] | None = None
    quality: Quality = _NO_QUALITY
    failure_kind: str | None = None
    failure_reason: str | None = None
    failure_evidence: Sequence[str] | None = None
    failure_least: Mapping[str, Any] | None = None
    health_timeout_s: float | None = None
    reused: Mapping[str, Any] | None = None
    rehearsal: str | None = None
    slot: Mapping[str, Any] | None = None

    @classmethod
    def read(cls, kept: Mapping[str, Any]) -> TrialAttrs:
        """Return the attributes that Optuna keeps of a trial."""
        known = {k: v for k, v in kept.items() if k in TRIAL_KEYS}
        known["role"] = _role(known)
        known["baseline"] = bool(known.get("baseline"))
        known["challenge"] = bool(known.get("challenge"))
        known["quality"] = Quality.read(known.get("quality"))
        return cls(**known)

    def to_json(self) -> dict[str, Any]:
        """Return plain data by Optuna's keys, without unknown values."""
        found = {name: getattr(self, name) for name in _ATTRS}
        found["role"] = str(self.role)
        found["quality"] = None if self.quality is _NO_QUALITY else self.quality.to_json()
        out = {k: v for k, v in found.items() if v is not None and v is not False}
        for name in ("point", "intervals", "reused"):
            if name in out:
                out[name] = {k: _plain(v) for k, v in out[name].items()}
        return {k: _plain(v) for k, v in out.items()}

    def put_into(self, kept: Mapping[str, Any]) -> dict[str, Any]:
        """Return Optuna's attributes with autotune's ones replaced; a user's own stay."""
        return {k: v for k, v in kept.items() if k not in TRIAL_KEYS} | self.to_json()

    @property
    def searches(self) -> bool:
        """Whether it is a trial of the search, not of a confirmation."""
        return self.role is not Role.CONFIRMATION

    @property
    def first(self) -> int | None:
        """Number of the trial whose point it repeats, in the search or in a confirmation."""
        return self.replicates if self.confirms is None else self.confirms


_ATTRS = tuple(f.name for f in fields(TrialAttrs))
TRIAL_KEYS = frozenset(_ATTRS)


def attrs_of(trial: TrialLike) -> TrialAttrs:
    """Return a trial's attributes.

    A run asks for those of all its trials many times for each trial that it chooses, so they are
    read again only if they changed.
    """
    kept = trial.user_attrs
    found = _READ.get(id(kept))
    if found is None or found[0] != kept:
        if len(_READ) >= _MOST_READ:
            _READ.clear()
        found = _READ[id(kept)] = dict(kept), TrialAttrs.read(kept)
    return found[1]


# By identity of Optuna's attributes: what they were, which tells a dead one's identity from its
# successor's, too, and what was read. Equal objects are the same ones, so that a look is fast.
_READ: dict[int, tuple[dict[str, Any], TrialAttrs]] = {}
_MOST_READ = 8192


def _role(kept: Mapping[str, Any]) -> Role:
    """Return the stored role, or the one inferred from the keys of an earlier version."""
    said = kept.get("role")
    if isinstance(said, str) and said in Role.__members__.values():
        return Role(said)
    if kept.get("confirms") is not None:
        return Role.CONFIRMATION
    if kept.get("reused") is not None:
        return Role.REUSED
    if kept.get("baseline"):
        return Role.BASELINE
    return Role.SEARCH if kept.get("replicates") is None else Role.REPLICATE


def _plain(value: Any) -> Any:
    """Return sequences as lists, as JSON has them."""
    return list(value) if isinstance(value, tuple) else value
