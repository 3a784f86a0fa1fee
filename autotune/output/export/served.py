"""What is served: the one place that decides whose words a command has.

On the machine that was measured, the command is made of the study as a launch of today would be.
On any other machine, and where the measured vLLM is not known, it is made of the launch itself, so
that all of its paths are those of one machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from autotune.engine.command import Production, in_shell, production
from autotune.engine.entry import hiding
from autotune.engine.probe import VllmInfo, unasked
from autotune.output.export.endpoint import LOCAL, Endpoint
from autotune.results.measured import Measured, measured
from autotune.results.rehearsed import production_note
from autotune.results.views import TrialView
from autotune.serving.resolve import model_resolver
from autotune.storage.store import Store
from autotune.study.files import LoadedStudy


@dataclass(frozen=True)
class Served:
    """A trial that is served.

    Attributes:
        loaded: The study as it was run; a rehearsal as it would be run with the real weights.
        trial: The trial, which has a point.
        info: vLLM that it was measured with.
        measured: Launch that measured it; None: the database has none that can be read.
        as_launched: Whether the command has the words of the launch.
        rehearsed: What is missing before the command of a rehearsal may serve; None: it is none.
    """

    loaded: LoadedStudy
    trial: TrialView
    info: VllmInfo
    measured: Measured | None
    as_launched: bool
    rehearsed: str | None = None

    @property
    def elsewhere(self) -> str | None:
        """Why this machine is not the measured one, in words; None: it is."""
        return None if self.measured is None else self.measured.elsewhere

    @property
    def note(self) -> str | None:
        """What to know of the command; None: it serves on the measured machine as it is."""
        elsewhere = None if self.measured is None else self.measured.note
        return " ".join(filter(None, (self.rehearsed, elsewhere))) or None

    def resolve(self, ref: str) -> str:
        """Return what vLLM is given for a model reference of the study."""
        known = self.measured is not None and (self.as_launched or ref.startswith("demo:"))
        if self.measured is not None and known:
            return self.measured.resolve(ref)
        return model_resolver(self.loaded, self.info)(ref)

    def plan(self, place: Callable[[str], str] = lambda path: path) -> Production:
        """Return the launch; ``place`` returns the path of a model's folder for the server.

        Raises:
            UserError: a model is not there, or a text must not reach a shell or terminal.
        """
        server = self.loaded.spec.server
        own = {} if self.measured is None else self.measured.own
        if self.measured is not None and self.as_launched:
            plan = self.measured.words.production(server, self.measured.launch.env, own, place)
            if self.elsewhere is not None:
                return plan
            # the launch's own may be of an autotune that was replaced since
            return replace(plan, hiding=hiding(self.info.hidden, {**os.environ, **server.env}))
        return production(
            server,
            self.trial.point,
            self.info,
            resolve=lambda ref: place(self.resolve(ref)),
            own=own,
        )


def served(store: Store, name: str, trial: TrialView) -> Served:
    """Return what is served of a trial; no program of the study is run, not even its vLLM.

    Of a rehearsal it is what would be served with the real weights.
    """
    found = measured(store, name, trial.number)
    loaded = store.load_study(name)[0] if found is None else found.loaded
    missing = production_note(loaded.spec)
    loaded = loaded.model_copy(update={"spec": loaded.spec.without_rehearsal()})
    kept = store.vllm(name)
    if found is None:
        info = kept or unasked(loaded.spec.server)
        return Served(loaded, trial, info, None, as_launched=False, rehearsed=missing)
    as_launched = kept is None or found.elsewhere is not None
    return Served(loaded, trial, found.info, found, as_launched, missing)


def shell_of(found: Served, where: Endpoint) -> str:
    """Return the shell command that serves a trial, and nothing else."""
    plan = found.plan()
    server = found.loaded.spec.server
    if not found.as_launched and server.command is None and found.info.distribution == "vllm":
        plan = replace(plan, head=("vllm", "serve", plan.model))
    return in_shell(plan, where.host or LOCAL, where.port)
