"""Variables of the measuring user's environment: those that trials of one study differ in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autotune.engine.variables import always_kept, deciding
from autotune.storage.records import attrs_of
from autotune.storage.store import Store
from autotune.storage.trials import State, TrialLike

# By variable: trials by value; None: not set.
Values = Mapping[str, Mapping[str | None, Sequence[int]]]


@dataclass(frozen=True)
class Environment:
    """What a trial was measured with.

    Attributes:
        trial: Number of the trial.
        variables: Variables of the user's own environment that may change its figures.
        complete: Whether every family of variables was kept.
    """

    trial: int
    variables: Mapping[str, str]
    complete: bool

    def knows(self, name: str) -> bool:
        """Return whether a variable that is not among them was not set."""
        return self.complete or always_kept(name)


def environments(
    store: Store, name: str, trials: Sequence[TrialLike], study: Mapping[str, str]
) -> list[Environment]:
    """Return what the measured trials of a study were measured with.

    Args:
        store: Database of the study.
        name: Name of the study.
        trials: Its trials.
        study: Variables that the study sets.
    """
    kept = store.launches.environments(name)
    found = []
    for t in trials:
        launch = attrs_of(t).launch
        if t.state == State.COMPLETE and launch in kept:
            env, complete = kept[launch]
            found.append(Environment(t.number, deciding(env, study), complete))
    return found


def values_of(found: Sequence[Environment]) -> Values:
    """Return the trials of each variable's values, by variable."""
    names = sorted({name for e in found for name in e.variables})
    out: dict[str, dict[str | None, list[int]]] = {}
    for name in names:
        for e in found:
            if name in e.variables or e.knows(name):
                of = out.setdefault(name, {})
                of.setdefault(e.variables.get(name), []).append(e.trial)
    return out


def mixed(found: Sequence[Environment]) -> Values:
    """Return the variables that had several values."""
    return {name: values for name, values in values_of(found).items() if len(values) > 1}
