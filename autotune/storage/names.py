"""Names that other rooms derive from a study's name: its sweeps, a launch of it, its folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from autotune.storage.location import Database, Server
from autotune.storage.schema import NO_TRIAL

if TYPE_CHECKING:
    from autotune.storage.schema import LaunchRow

_MAP = ":map"
_BREAK_EVEN = ":break-even"
_VERIFY = ":verify"
_WHAT = {_MAP: "load sweep", _BREAK_EVEN: "break-even map", _VERIFY: "verification"}


def load_sweep_name(study: str) -> str:
    """Return the name under which a load sweep's launches are kept; no study has this name."""
    return study + _MAP


def break_even_name(study: str) -> str:
    """Return the name under which a break-even map's points and launches are kept."""
    return study + _BREAK_EVEN


def verification_name(study: str) -> str:
    """Return the name under which the launches of a study's verifications are kept."""
    return study + _VERIFY


def launch_text(launch: LaunchRow) -> str:
    """Return what a launch was made for, such as ``trial 3 of demo``."""
    of, mark, kind = launch.study.rpartition(":")
    what = _WHAT.get(mark + kind)
    study = launch.study if what is None else of
    if launch.trial == NO_TRIAL:
        return f"prelaunched for {study}"
    if what is not None:
        return f"the {what} of {study}"
    return f"trial {launch.trial} of {study}"


def output_folder(database: Database, study: str) -> Path:
    """Return the folder of a study's plots and server logs.

    It is next to the file of the database; for one on a server it is in the current folder.
    """
    if isinstance(database, Server):
        return Path(f"autotune-{study}")
    return database.parent / f"{database.stem}-{study}"


def artifact_folder(database: Database) -> Path:
    """Return the folder of optuna-dashboard's artifacts: where :func:`output_folder` is, too."""
    return output_folder(database, "").absolute().parent / "artifacts"
