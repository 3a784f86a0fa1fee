"""Requests of each launch, with the time of every chunk."""

from __future__ import annotations

from array import array
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from autotune.bench.request_drafts import RequestDrafts
from autotune.bench.sample import Sample
from autotune.storage.backend import Sessions, patient
from autotune.storage.reading import Reader
from autotune.storage.schema import RequestAcceptanceRow, RequestRow

if TYPE_CHECKING:  # a database is read without it
    pass


class Requests:
    """Requests of all launches of one database.

    Args:
        reader: Reads it.
        sessions: Opens a session on it, to write.
    """

    def __init__(self, reader: Reader, sessions: Sessions) -> None:
        self._reader, self._sessions = reader, sessions

    @patient
    def add(self, launch_id: str, samples: Sequence[Sample]) -> None:
        """Store every request of one phase."""
        with self._sessions() as s:
            s.add_all(
                RequestRow(
                    launch_id=launch_id,
                    phase=x.phase,
                    index=x.index,
                    intended=x.intended,
                    start=x.start,
                    ttft=x.ttft,
                    end=x.end,
                    prompt_tokens=x.prompt_tokens,
                    output_tokens=x.output_tokens,
                    status=x.status,
                    error=x.error,
                    chunks=array("f", x.chunks).tobytes(),
                )
                for x in samples
            )
            s.add_all(
                RequestAcceptanceRow(
                    launch_id=launch_id,
                    phase=x.phase,
                    index=x.index,
                    category=x.category,
                    histogram=list(x.drafts.histogram),
                    drafted=x.drafts.drafted,
                    by_step=array("H", (k for pair in x.drafts.by_step for k in pair)).tobytes(),
                )
                for x in samples
                if x.drafts is not None
            )
            s.commit()

    def of_launch(self, launch_id: str, phase: str | None = None) -> list[RequestRow]:
        """Return every request of a launch, or of one phase of it, in the order of their ends."""
        which = "WHERE launch_id = :launch" + (" AND phase = :phase" if phase is not None else "")
        return self._reader.records(
            RequestRow, f"{which} ORDER BY id", launch=launch_id, phase=phase
        )

    def samples(self, launch_id: str, phase: str = "measure") -> list[Sample]:
        """Return the requests of one phase of a launch as samples, as the client made them."""
        told = self._acceptance(launch_id, phase)
        out = []
        for r in self.of_launch(launch_id, phase):
            of = told[r.index].popleft() if r.status == "ok" and told.get(r.index) else None
            out.append(_sample(r, of))
        return out

    def _acceptance(self, launch_id: str, phase: str) -> dict[int, deque[RequestAcceptanceRow]]:
        """Return the accepted drafts of one phase by the request's index, in order of the ends."""
        found: dict[int, deque[RequestAcceptanceRow]] = defaultdict(deque)
        which = "WHERE launch_id = :launch AND phase = :phase ORDER BY id"
        for row in self._reader.records(RequestAcceptanceRow, which, launch=launch_id, phase=phase):
            found[row.index].append(row)
        return found

    def has_acceptance(self, launch_id: str) -> bool:
        """Return whether the server of a launch told the accepted drafts of a request."""
        sql = "SELECT 1 FROM autotune_request_acceptance WHERE launch_id = :launch LIMIT 1"
        return self._reader.one(sql, launch=launch_id) is not None

    def first_end(self, launch_id: str) -> float | None:
        """Return the seconds from the start of the warm-up to the end of its first request."""
        found: float | None = self._reader.one(
            'SELECT min("end") FROM autotune_requests WHERE launch_id = :launch '
            "AND phase = 'warmup'",
            launch=launch_id,
        )
        return found


def _sample(r: RequestRow, told: RequestAcceptanceRow | None) -> Sample:
    """Return a request as the client made it."""
    drafts = None
    if told is not None:
        flat = array("H", told.by_step)
        pairs = tuple(zip(flat[::2], flat[1::2], strict=True))
        drafts = RequestDrafts(tuple(told.histogram), told.drafted, pairs)
    return Sample(
        index=r.index,
        phase=r.phase,
        intended=r.intended,
        start=r.start,
        ttft=r.ttft,
        end=r.end,
        prompt_tokens=r.prompt_tokens,
        output_tokens=r.output_tokens,
        status=r.status,
        error=r.error,
        chunks=tuple(array("f", r.chunks)),
        drafts=drafts,
        category=None if told is None else told.category,
    )
