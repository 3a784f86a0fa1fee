"""What a rehearsal needs before anything is launched, and what it must not be mixed with."""

from __future__ import annotations

from autotune.engine.probe import VllmInfo
from autotune.engine.rehearsal import why_no_experts, why_not_here
from autotune.errors import UserError
from autotune.results.rehearsed import with_counted_acceptance
from autotune.storage.store import Store
from autotune.study.files import LoadedStudy


def rehearsed(loaded: LoadedStudy, info: VllmInfo) -> LoadedStudy:
    """Return a study whose rehearsal can be launched; any other study as it is.

    Args:
        loaded: The study with its method.
        info: Its vLLM.

    Raises:
        UserError: its acceptance cannot be read, or this vLLM cannot rehearse it.
    """
    loaded = with_counted_acceptance(loaded)
    if why := why_not_here(loaded.spec.server, info) or why_no_experts(loaded, info):
        raise UserError(f"{loaded.path}: {why}")
    return loaded


def refuse_other_kind(store: Store, loaded: LoadedStudy) -> None:
    """Refuse to mix a rehearsal and a real study of one name in one database.

    Raises:
        UserError: the database has a study of this name that is of the other kind.
    """
    name = loaded.spec.name
    there = store.load_study(name)[0].spec.rehearsal
    if (there is None) != (loaded.spec.rehearsal is None):
        which = ("a rehearsal", "real")[there is None]
        here = ("a rehearsal", "real")[loaded.spec.rehearsal is None]
        raise UserError(
            f"{loaded.path}: the study {name} in {store.database} is {which}, and this one is "
            f"{here}: they are not mixed. Change the name in the file, or give another --db"
        )
