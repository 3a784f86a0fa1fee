"""Runs a fault of the plan, whichever kind it is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.faults import special
from tests.faults.inject import Outcome, Site, fresh, run_stages
from tests.faults.plan import Fault, Stage
from tests.faults.start import ROOT, Starter


class Bench:
    """What cases share: the forking server, a folder, and a finished study to damage.

    Use it from one thread, as a context manager.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.starter = Starter(cache=folder / "cache")
        self._cases = 0
        self._finished: Site | None = None

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.starter.__exit__()

    def run(self, fault: Fault, stages: Sequence[Stage]) -> list[Outcome]:
        """Injects a fault at some of its stages."""
        self._cases += 1
        folder = fresh(self.folder / f"case-{self._cases}")
        if fault.special in special.TMPFS:
            return self._in_namespace(fault, stages, folder)
        if fault.special in special.FOUND:
            if self._finished is None:
                self._finished = special.finished_site(folder, self.starter)
            return [special.run_found(fault, self._finished)]
        if fault.special in special.BY_HAND:
            site = Site(folder, self.starter, wanted=3)
            try:
                return [special.BY_HAND[fault.special](site, Outcome(fault.name, stages[0]))]
            finally:
                site.clean_up()
        if fault.special == "read_only" and (why := special.cannot_be_immutable(folder)):
            return [Outcome(fault.name, stage, skipped=why) for stage in stages]
        at_a_stage = special.AT_A_STAGE.get(fault.special)
        return run_stages(fault, stages, folder, self.starter, at_a_stage)

    def _in_namespace(self, fault: Fault, stages: Sequence[Stage], folder: Path) -> list[Outcome]:
        """Runs the whole case where it may mount a small file system, which goes with it."""
        if why := special.no_namespace():
            return [Outcome(fault.name, stage, skipped=why) for stage in stages]
        done = subprocess.run(
            ["unshare", "-Urm", "--propagation", "private"]  # noqa: RUF005
            + [sys.executable, "-m", "tests.faults.cases", str(folder), fault.name, *stages],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        try:
            return [Outcome(**o) for o in json.loads(done.stdout)]
        except ValueError:
            text = f"the case itself failed: {done.stdout[-500:]}{done.stderr[-3000:]}"
            return [Outcome(fault.name, stages[0], [text])]


if __name__ == "__main__":
    from tests.faults.inject import outcomes_as_json
    from tests.faults.plan import named

    with Starter() as starter:
        found = special.run_on_tmpfs(
            named(sys.argv[2]), [Stage(s) for s in sys.argv[3:]], Path(sys.argv[1]), starter
        )
    sys.stdout.write(outcomes_as_json(found))
