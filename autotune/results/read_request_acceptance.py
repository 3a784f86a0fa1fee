"""Read the accepted drafts of a trial's requests from the database."""

from __future__ import annotations

from collections.abc import Mapping

from autotune.results.request_acceptance import RequestAcceptance, request_acceptance
from autotune.storage.store import Store
from autotune.study.space import Point
from autotune.study.speculative import ADAPTIVE
from autotune.study.ways import is_biased


def read_request_acceptance(
    store: Store, name: str, number: int, point: Point
) -> RequestAcceptance | None:
    """Return the accepted drafts of the requests that a trial's numbers are from.

    Args:
        store: Database of the study.
        name: Name of the study.
        number: Number of the trial.
        point: Its point.

    Returns:
        None: the trial was not measured, did not draft, or its vLLM told nothing of requests.
    """
    launch = store.launches.measuring(name, number)
    if launch is None or not store.requests.has_acceptance(launch.launch_id):
        return None
    samples = store.requests.samples(launch.launch_id)
    server = store.load_study(name)[0].spec.server
    return request_acceptance(samples, why_biased(server.draft_settings(point)))


def why_biased(draft: Mapping[str, object]) -> str | None:
    """Return why acceptance by position is not that of all drafts; None: it is.

    Args:
        draft: Keys of ``--speculative-config``.
    """
    if not is_biased(draft):
        return None
    if draft.get(ADAPTIVE) is True:
        return (
            "adaptive verification verifies some drafts only, and the others count as not "
            "accepted: the figures are biased low, and are no measure of another n"
        )
    return (
        "a schedule changes n with the batch size: the figures are of the steps that drafted, "
        "each with its own n, and are no measure of another n"
    )
