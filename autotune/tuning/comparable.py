"""Whether the launches of today compare with those that a study has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from autotune.engine.command import plan_launch
from autotune.engine.variables import changed, deciding
from autotune.errors import UserError
from autotune.results.text import plain
from autotune.serving.machine import machine_line
from autotune.serving.slots import Slot
from autotune.storage.store import Store
from autotune.study.differences import Difference
from autotune.study.space import N
from autotune.tuning.prepare import Prepared


@dataclass(frozen=True)
class MachineClass:
    """What the numbers of a launch are numbers of: launches of another class do not compare.

    Attributes:
        gpus: Models of the GPUs; on a machine without, the processor and its number of cores.
        driver: Versions of the GPUs' driver; empty: there is no GPU.
        vllm: Version of vLLM, without its build; empty: unknown.
        weights: Hashes of the weights, by role; of roles that one of two does not know, nothing is
            said.
    """

    gpus: tuple[str, ...]
    driver: tuple[str, ...]
    vllm: str
    weights: frozenset[tuple[str, str]]

    @classmethod
    def of(
        cls, machine: Mapping[str, Any], vllm: str | None, weights: Mapping[str, str]
    ) -> MachineClass:
        """Return the class of a launch.

        Args:
            machine: As it is kept with the launch: of a slot, its own GPUs only.
            vllm: Version of vLLM.
            weights: Hashes of the weights, by role.
        """
        gpus = machine.get("gpus") or ()
        names = sorted({str(gpu.get("name")) for gpu in gpus})
        drivers = sorted({str(gpu.get("driver")) for gpu in gpus})
        own = [f"{machine.get('cpu')}, {machine.get('cores')} cores"]
        version = (vllm or "").partition("+")[0]
        return cls(tuple(names or own), tuple(drivers), version, frozenset(weights.items()))

    def other(self, than: MachineClass) -> str | None:
        """Return in what this class is another one, in words; None: launches of both compare."""
        for field in fields(self):
            own, its = getattr(self, field.name), getattr(than, field.name)
            if field.name == "weights":
                mine, theirs = dict(own), dict(its)
                roles = [k for k in sorted(mine) if k in theirs and mine[k] != theirs[k]]
                if roles:
                    return f"weights of the {', '.join(roles)}"
            elif own and its and own != its:
                a, b = (x if isinstance(x, str) else ", ".join(x) for x in (own, its))
                return f"{_CLASS_WORDS[field.name]} {a}, not {b}"
        return None


_CLASS_WORDS = {"gpus": "hardware", "driver": "GPU driver", "vllm": "vLLM"}


def class_of_slot(
    prepared: Prepared, machine: Mapping[str, Any], slots: Sequence[Slot], number: int
) -> MachineClass:
    """Return the class of what a slot launches now; the weights are checked elsewhere.

    Args:
        prepared: The study.
        machine: This machine, with GPUs of one model.
        slots: Slots of the run; empty: one server at a time.
        number: Number of the slot.
    """
    for slot in slots:
        if slot.number == number:
            machine = {**machine, "cores": len(slot.cores)}
    return MachineClass.of(machine, prepared.info.version, {})


def check_comparable(
    prepared: Prepared,
    store: Store,
    machine: Mapping[str, Any],
    say: Callable[[str], None],
    weights: WeightsCheck,
) -> None:
    """Refuse another vLLM or other weights; warn of another machine or other variables.

    Args:
        prepared: The study as it would be launched.
        store: Has its trials.
        machine: This machine.
        say: Told of another machine, and of variables that have other values.
        weights: The check of the study's weights.

    Raises:
        UserError: the earlier trials were measured with another vLLM, or other weights.
    """
    weights.check()
    name = prepared.spec.name
    earlier, version = store.launches.measured_on(name)
    if earlier is None or version is None:
        return
    now = prepared.info.version
    if now is not None and version.partition("+")[0] != now.partition("+")[0]:
        raise UserError(
            f"{store.database}: the trials of {name} were measured with vLLM {version}, and this "
            f"is {now}: they are not comparable. Change the study's name or use another --db"
        )
    if machine_line(earlier) != machine_line(dict(machine)):
        say(
            f"earlier trials were measured on another machine ({machine_line(earlier)}; "
            f"this is {machine_line(dict(machine))}). Compare them with care"
        )
    warn_of_variables(prepared, store, name, say)


def environment_of(prepared: Prepared) -> dict[str, str]:
    """Return the user's own variables that may change figures, as a launch would have them now."""
    points = prepared.spec.to_space().points()
    point = {} if points is None else next(points)
    plan = plan_launch(
        prepared.spec.server,
        {**point, N: 0},
        prepared.info,
        port=0,
        launch_id="",
        resolve=prepared.resolve,
    )
    return deciding(plan.public_env, prepared.spec.server.env)


def warn_of_variables(
    prepared: Prepared, store: Store, ledger: str, say: Callable[[str], None]
) -> None:
    """Say which variables of the user's environment the latest launch had with other values.

    Args:
        prepared: The study as it would be launched.
        store: Has its launches.
        ledger: Name that the launches are kept under: the study's, or its load sweep's.
        say: Told of them.
    """
    latest = store.launches.latest(ledger)
    if latest is None:
        return
    then = deciding(latest.env, prepared.spec.server.env)
    found = changed(then, environment_of(prepared), complete=latest.host is not None)
    if differ := [plain(f"{k} {Difference(k, a, b).values('then', 'now')}") for k, a, b in found]:
        say(
            f"earlier launches had another environment: {', '.join(differ)}. It may change the "
            "figures: set it as it was, put it into server.env of a study with another name, or "
            "compare with care"
        )


class WeightsCheck:
    """Compares the weights that are there with those of the study's launches.

    Args:
        prepared: The study; it says which weights are there.
        store: Has the launches.
    """

    def __init__(self, prepared: Prepared, store: Store) -> None:
        self._prepared = prepared
        self._store = store
        self._known = store.launches.weights(prepared.spec.name)

    def check(self) -> dict[str, str]:
        """Return the hashes of the weights that are there now, by role.

        Raises:
            UserError: those of the earlier trials were others.
        """
        now = self._prepared.weights()
        for role, then in self._known.items():
            if now.get(role, then) != then:
                raise UserError(
                    f"{self._store.database}: the trials of {self._prepared.spec.name} were "
                    f"measured with other weights of the {role} ({plain(then)}, now {now[role]}): "
                    "they are not comparable. Restore those weights, change the study's name or "
                    "use another --db"
                )
        return now

    def of_launch(self) -> dict[str, str]:
        """Return the same for a launch that is measured now; later launches must have them, too.

        Raises:
            UserError: those of the earlier trials were others.
        """
        now = self.check()
        self._known.update(now)
        return now
