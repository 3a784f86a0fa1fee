"""Verifications of a study's points, and the answers that they compare.

The answers are texts of the user's own prompts' answers. A database file is readable by its user
only; a verification can also keep none of them.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from autotune.bench.written import Scored, Written
from autotune.storage.backend import Sessions, patient
from autotune.storage.reading import Reader, unreadable
from autotune.storage.schema import AnswerRow, CertificateRow


class AnswerRole(StrEnum):
    """Launch of a verification that wrote an answer, in the order of the launches."""

    PLAIN = "plain"  # n = 0, with the other parameters of the point
    CHOSEN = "chosen"  # the point itself
    SCORING = "scoring"  # n = 0 again, which then scores what all launches wrote


ROLES = tuple(AnswerRole)


def launch_number(certificate: int, role: AnswerRole) -> int:
    """Return the ``trial`` of a verification's launch: a number for each launch of each one."""
    return certificate * len(ROLES) + ROLES.index(role)


def moved_launch(number: int, certificates: Mapping[int, int]) -> int:
    """Return the same for a verification that has another id now.

    Args:
        number: What :func:`launch_number` returned.
        certificates: New ids by the old ones.
    """
    certificate, role = divmod(number, len(ROLES))
    return launch_number(certificates[certificate], ROLES[role])


@dataclass(frozen=True)
class KeptAnswer:
    """One answer with what is known of it.

    Attributes:
        launch: Id of the launch that wrote it.
        written: The answer.
        scored: Its score; None: it was not scored yet.
    """

    launch: str
    written: Written
    scored: Scored | None


class Certificates:
    """Verifications of all studies of one database.

    Args:
        reader: Reads it.
        sessions: Opens a session on it, to write.
    """

    def __init__(self, reader: Reader, sessions: Sessions) -> None:
        self._reader, self._sessions = reader, sessions

    @patient
    def begin(self, study: str, trial: int, setting: Mapping[str, Any]) -> CertificateRow:
        """Store a verification before its first launch; arguments as the columns of the row."""
        with self._sessions() as s:
            row = CertificateRow(
                study=study, trial=trial, setting=dict(setting), created_at=time.time()
            )
            s.add(row)
            s.commit()
            s.refresh(row)
            s.expunge(row)
        return row

    def of_study(self, study: str) -> list[CertificateRow]:
        """Return the verifications of a study, oldest first."""
        return self._reader.records(CertificateRow, "WHERE study = :study ORDER BY id", study=study)

    @patient
    def judge(self, certificate: int, verdict: str, judgement: Mapping[str, Any]) -> None:
        """End a verification.

        Args:
            certificate: Its id.
            verdict: Its verdict.
            judgement: The numbers behind it.
        """
        with self._sessions() as s:
            row = s.get(CertificateRow, certificate)
            if row is not None:
                row.verdict, row.judgement = verdict, dict(judgement)
                row.ended_at = time.time()
            s.commit()

    @patient
    def add_answers(
        self, certificate: int, launch_id: str, role: AnswerRole, answers: Sequence[Written]
    ) -> None:
        """Keep all answers of one launch."""
        with self._sessions() as s:
            s.add_all(
                AnswerRow(
                    certificate=certificate,
                    launch_id=launch_id,
                    role=role.value,
                    index=x.index,
                    prompt_ids=array("i", x.prompt_ids).tobytes(),
                    token_ids=array("i", x.token_ids).tobytes(),
                    text=x.text.encode("utf-8", "surrogatepass"),
                    stop=x.stop,
                )
                for x in answers
            )
            s.commit()

    @patient
    def add_scores(self, certificate: int, role: AnswerRole, scores: Mapping[int, Scored]) -> None:
        """Keep the scores of one launch's answers, by the index of the request."""
        from sqlalchemy import select

        with self._sessions() as s:
            which = select(AnswerRow).filter_by(certificate=certificate, role=role.value)
            for row in s.scalars(which):
                scored = scores[row.index]
                row.logprobs = array("f", scored.logprobs).tobytes()
                row.best = array("f", scored.best).tobytes()
            s.commit()

    def answers(
        self, certificate: int, roles: Collection[AnswerRole] = ROLES
    ) -> dict[AnswerRole, list[KeptAnswer]]:
        """Return the kept answers of a verification by launch, in the order of the requests.

        Raises:
            UserError: another program changed them.
        """
        out: dict[AnswerRole, list[KeptAnswer]] = {role: [] for role in roles}
        found = self._reader.records(
            AnswerRow, 'WHERE certificate = :id ORDER BY "index"', id=certificate
        )
        for row in found:
            try:
                if (role := AnswerRole(row.role)) in out:
                    out[role].append(_kept(row))
            except (AttributeError, TypeError, ValueError) as e:
                raise unreadable(AnswerRow, f"role, tokens, text or scores ({e})") from e
        return out


def _kept(row: AnswerRow) -> KeptAnswer:
    written = Written(
        row.index,
        tuple(array("i", row.prompt_ids)),
        tuple(array("i", row.token_ids)),
        row.text.decode("utf-8", "surrogatepass"),
        row.stop,
    )
    scored = None
    if row.logprobs is not None and row.best is not None:
        scored = Scored(tuple(array("f", row.logprobs)), tuple(array("f", row.best)))
    return KeptAnswer(row.launch_id, written, scored)
