"""The launch that a trial's numbers are from, in the words of the machine that it was measured on.

A database is read on other machines, too: a laptop has neither the models nor vLLM nor the study's
folder. Only this module decides whether this machine is the measured one.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from autotune.engine.launched import Launched, launched
from autotune.engine.probe import VllmInfo
from autotune.engine.variables import deciding
from autotune.results.text import plain
from autotune.serving.machine import machine_line
from autotune.serving.process_tree import boot_id
from autotune.storage.schema import LaunchRow
from autotune.storage.store import Store
from autotune.study.files import LoadedStudy


@dataclass(frozen=True)
class Measured:
    """A launch of a study, and what this machine has of it.

    Attributes:
        loaded: The study, as it was run.
        launch: Row of the launch.
        words: Parts of its argv.
        info: vLLM that it was launched with.
    """

    loaded: LoadedStudy
    launch: LaunchRow
    words: Launched
    info: VllmInfo

    @cached_property
    def elsewhere(self) -> str | None:
        """Why this machine is not the measured one, in words; None: it is.

        It is if interpreter and models are there, and it has the launch's boot or name. Launches of
        autotune 0.1 have no name: for them it is enough that all paths exist.
        """
        paths = [self.words.program]
        if self.info.python is not None or self.loaded.spec.server.command is None:
            paths += [self.words.model, self.words.draft or ""]  # else they may be in a container
        if missing := [plain(p) for p in paths if not _exists(p)]:
            return f"this machine has no {one_of(missing)}"
        here = socket.gethostname()
        if self.launch.host in {None, here} or self.launch.boot_id == boot_id():
            return None
        return f"this machine is {plain(here)}"

    @property
    def host(self) -> str:
        """The measured machine in words."""
        machine = plain(machine_line(self.launch.machine))
        return machine if self.launch.host is None else f"{plain(self.launch.host)} ({machine})"

    @property
    def note(self) -> str | None:
        """What to know of the command on this machine; None: it is the measured one."""
        if self.elsewhere is None:
            return None
        return (
            f"The command is for the machine that was measured, {self.host}, with its paths: "
            f"{self.elsewhere}."
        )

    @property
    def own(self) -> dict[str, str]:
        """Variables of the measuring user's environment that may change the figures."""
        return deciding(self.launch.env, self.loaded.spec.server.env)

    def resolve(self, ref: str) -> str:
        """Return what vLLM was given for a model reference of the study."""
        server = self.loaded.spec.server
        if ref == server.model:
            return self.words.model
        drafts = {draft.model for draft in server.drafts.values()}
        return self.words.draft if ref in drafts and self.words.draft is not None else ref


def one_of(names: Sequence[str]) -> str:
    """Return names as the end of a sentence: ``a, b or c``."""
    *first, last = dict.fromkeys(names)
    return f"{', '.join(first)} or {last}" if first else last


def _exists(path: str) -> bool:
    """Return whether a path is there, or is the name of a hub, which may be."""
    try:
        return not Path(path).is_absolute() or Path(path).exists()
    except (OSError, ValueError):  # a name too long, a NUL
        return False


def measured(store: Store, name: str, trial: int) -> Measured | None:
    """Return the launch that a trial's numbers are from; None: there is none that can be read.

    Args:
        store: Database of the study.
        name: Name of the study.
        trial: Number of the trial.
    """
    launch = store.launches.measuring(name, trial)
    return None if launch is None else _of(store, name, launch)


def _of(store: Store, name: str, launch: LaunchRow) -> Measured | None:
    loaded, _row = store.load_study(name)
    words = launched(launch.argv, loaded.spec.server.command)
    if words is None:
        return None
    return Measured(loaded, launch, words, store.vllm(name) or _info(launch, words))


def _info(launch: LaunchRow, words: Launched) -> VllmInfo:
    """Return what a launch tells of its vLLM; autotune 0.1 kept nothing else."""
    hidden = tuple(filter(None, launch.env.get("AUTOTUNE_HIDE", "").split(",")))
    device = "cuda" if launch.machine.get("gpus") else "cpu"
    return VllmInfo(launch.vllm_version, None, words.python, device, None, hidden, ())


def resolver_of(
    loaded: LoadedStudy, launches: Sequence[tuple[LaunchRow, str | None]]
) -> Callable[[str], str]:
    """Return a function that turns a model reference into what launches of a study were given.

    Args:
        loaded: The study.
        launches: Its launches, oldest first, each with the name of its arm, or None; the latest one
            that has the model counts.
    """
    found: dict[str, str] = {}
    server = loaded.spec.server
    for launch, arm in launches:
        words = launched(launch.argv, server.command)
        if words is None:
            continue
        found[server.model] = words.model
        draft = server.drafts.get(arm)
        if draft is not None and draft.model is not None and words.draft is not None:
            found[draft.model] = words.draft
    return lambda ref: found.get(ref, ref)
