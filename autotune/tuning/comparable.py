"""Whether the launches of today compare with those that a study has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from autotune.errors import UserError
from autotune.results.text import plain
from autotune.serving.machine import machine_line
from autotune.storage.store import Store
from autotune.tuning.prepare import Prepared


def check_comparable(
    prepared: Prepared,
    store: Store,
    machine: Mapping[str, Any],
    say: Callable[[str], None],
    weights: WeightsCheck,
) -> None:
    """Refuse a study of another vLLM or of other weights; warn of another machine.

    Args:
        prepared: The study as it would be launched.
        store: Has its trials.
        machine: This machine.
        say: Told of another machine.
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
            f"{store.path}: the trials of {name} were measured with vLLM {version}, and this is "
            f"{now}: they are not comparable. Change the study's name or use another --db"
        )
    if machine_line(earlier) != machine_line(dict(machine)):
        say(
            f"earlier trials were measured on another machine ({machine_line(earlier)}; "
            f"this is {machine_line(dict(machine))}). Compare them with care"
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
                    f"{self._store.path}: the trials of {self._prepared.spec.name} were measured "
                    f"with other weights of the {role} ({plain(then)}, now {now[role]}): they are "
                    "not comparable. Restore those weights, change the study's name or use another "
                    "--db"
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
