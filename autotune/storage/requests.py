"""Requests of each launch, with the time of every chunk."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from autotune.bench.sample import Sample
from autotune.storage.reading import Reader
from autotune.storage.schema import RequestRow

if TYPE_CHECKING:  # a database is read without it
    from sqlalchemy.orm import Session


class Requests:
    """Requests of all launches of one database.

    Args:
        reader: Reads it.
        sessions: Opens a session on it, to write.
    """

    def __init__(self, reader: Reader, sessions: Callable[[], Session]) -> None:
        self._reader, self._sessions = reader, sessions

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
            s.commit()

    def of_launch(self, launch_id: str, phase: str | None = None) -> list[RequestRow]:
        """Return every request of a launch, or of one phase of it, in the order of their ends."""
        which = "WHERE launch_id = :launch" + (" AND phase = :phase" if phase is not None else "")
        return self._reader.records(
            RequestRow, f"{which} ORDER BY id", launch=launch_id, phase=phase
        )

    def samples(self, launch_id: str, phase: str = "measure") -> list[Sample]:
        """Return the requests of one phase of a launch as samples, as the client made them."""
        return [
            Sample(
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
            )
            for r in self.of_launch(launch_id, phase)
        ]

    def first_end(self, launch_id: str) -> float | None:
        """Return the seconds from the start of the warm-up to the end of its first request."""
        found: float | None = self._reader.one(
            'SELECT min("end") FROM autotune_requests WHERE launch_id = :launch '
            "AND phase = 'warmup'",
            launch=launch_id,
        )
        return found
