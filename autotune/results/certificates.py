"""Whether answers are the same with speculation: what `autotune verify` found, in words.

A certificate belongs to one trial's point. A point that drafts and has none is *not verified*.
Texts of answers are not part of a certificate: pages that are handed out have its numbers only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic import ValidationError

from autotune.results.judged import Judged
from autotune.results.text import count, number, plain
from autotune.storage.certificates import ROLES, AnswerRole, launch_number
from autotune.storage.names import verification_name
from autotune.storage.schema import CertificateRow
from autotune.storage.store import Store
from autotune.study.lossless import drafts, why_lossy
from autotune.study.schema import StudySpec
from autotune.study.space import Point


class Verdict(StrEnum):
    """What is known of the answers of a point."""

    CERTIFIED = "certified"
    FAULT = "not certified"
    NOT_JUDGED = "not judged"
    MISSING = "not verified"


@dataclass(frozen=True)
class Certificate:
    """What is known of the answers of a point.

    Attributes:
        verdict: The verdict.
        why: Why it is not judged; empty for any other verdict.
        number: Id of the verification; None: there is none.
        judged_at: When it was judged; None: it was not.
        vllm: Version that its servers told; None: unknown.
        judgement: Numbers behind the verdict; None: there are none.
    """

    verdict: Verdict
    why: str = ""
    number: int | None = None
    judged_at: datetime | None = None
    vllm: str | None = None
    judgement: Judged | None = None

    @property
    def is_good(self) -> bool:
        """Whether the point may be served without a word."""
        return self.verdict is Verdict.CERTIFIED

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data; ``judgement`` is null where nothing was judged."""
        return {
            "verdict": self.verdict.value,
            "why": self.why or None,
            "judged_at": None if self.judged_at is None else self.judged_at.isoformat(),
            "vllm": self.vllm,
            "judgement": self.judgement and self.judgement.model_dump(),
        }


def told_versions(store: Store, study: str) -> dict[int, str]:
    """Return the version of vLLM that each launch of a study's verifications told, by its number.

    A study whose vLLM cannot be asked before a launch, as in a container, has no other.
    """
    return store.launches.versions(verification_name(study))


def certificate_of(
    rows: Sequence[CertificateRow],
    spec: StudySpec,
    trial: int,
    point: Point,
    told: Mapping[int, str] | None = None,
) -> Certificate | None:
    """Return what is known of the answers of a trial; None: it drafts nothing, so all is said.

    The latest verification at each temperature counts; a fault at one of them is the verdict.

    Args:
        rows: Verifications of the study, oldest first.
        spec: The study.
        trial: Number of the trial, the first one of its point.
        point: Its point.
        told: Answer of :func:`told_versions`; None: it is not known.
    """
    drafting = drafts(spec, point)
    if drafting and (why := why_lossy(spec, point)) is not None:
        return Certificate(Verdict.NOT_JUDGED, why)
    judged: dict[float | str, Certificate] = {}
    for x in rows:
        if x.trial == trial and x.verdict is not None:
            at = _setting(x).get("temperature")
            judged[at if isinstance(at, int | float) else repr(at)] = certificate_from(x, told)
    for verdict in (Verdict.FAULT, Verdict.CERTIFIED, Verdict.NOT_JUDGED):
        found = [x for x in judged.values() if x.verdict is verdict]
        if found:
            return max(found, key=lambda x: x.number or 0)
    return Certificate(Verdict.MISSING) if drafting else None


def certificate_from(row: CertificateRow, told: Mapping[int, str] | None = None) -> Certificate:
    """Return a verification that was judged.

    What another version of autotune wrote, and cannot be read, counts as not judged.

    Args:
        row: The verification.
        told: Answer of :func:`told_versions`; None: it is not known.
    """
    known = [v for v in Verdict if v.value == row.verdict]
    ended = None
    if row.ended_at is not None:
        with suppress(TypeError, ValueError, OverflowError, OSError):  # somebody else's number
            ended = datetime.fromtimestamp(row.ended_at, UTC)
    vllm = _version(row, told or {})
    try:
        judged = Judged.model_validate(row.judgement)
    except ValidationError:
        known = []
    if not known:
        why = "another version of autotune judged it; verify it again"
        return Certificate(Verdict.NOT_JUDGED, why, row.id, ended, vllm)
    return Certificate(known[0], judged.why or "", row.id, ended, vllm, judged)


def _version(row: CertificateRow, told: Mapping[int, str]) -> str | None:
    """Return what the server of the point told of its vLLM, or another launch, or the probe."""
    launches = (told.get(launch_number(row.id, x)) for x in (AnswerRole.CHOSEN, *ROLES))
    found = (x for x in (*launches, _setting(row).get("vllm")) if isinstance(x, str))
    version = next(found, None)
    return None if version is None else version.partition("+")[0]


def _setting(row: CertificateRow) -> Mapping[str, Any]:
    """Return what was verified; empty where another version of autotune wrote something else."""
    found: object = row.setting
    return found if isinstance(found, dict) else {}


def output_line(certificate: Certificate, trial: int) -> str:
    """Return the verdict in one sentence, which begins with it.

    Args:
        certificate: What is known.
        trial: Number of the trial.
    """
    verdict, of = certificate.verdict, certificate.judgement
    if verdict is Verdict.MISSING:
        return (
            f"Output not verified: trial {trial}'s answers were never compared with those of n = 0 "
            f"(autotune verify STUDY --trial {trial})."
        )
    if of is None or verdict is Verdict.NOT_JUDGED:
        return f"Output not judged: {plain(certificate.why)}."
    if verdict is Verdict.FAULT:
        return (
            f"OUTPUT NOT CERTIFIED: trial {trial} does not write what n = 0 writes: "
            f"{plain(of.found_text)}."
        )
    return (
        f"Output certified ({_how(of)}): {judged_text(of)}; they differ from n = 0 no more than "
        "n = 0 does from itself."
    )


def word_of(certificate: Certificate | None) -> str:
    """Return the verdict for a cell of a table; empty: there is no judgement to show."""
    if certificate is None or certificate.verdict in {Verdict.MISSING, Verdict.NOT_JUDGED}:
        return ""
    word = certificate.verdict.value
    return word.upper() if certificate.verdict is Verdict.FAULT else word


def judged_text(of: Judged) -> str:
    """Return how much was judged: ``1920 tokens of 80 answers judged``."""
    return f"{of.tokens} tokens of {count(of.prompts, 'answer')} judged"


def _how(of: Judged) -> str:
    return "greedy" if of.greedy else f"temperature {of.temperature:g}"


def judgement_lines(certificate: Certificate) -> Iterator[str]:
    """Yield the numbers behind a verdict, a line each; none where nothing was judged."""
    of = certificate.judgement
    if of is None:
        return
    odd = "are not the likeliest one of n = 0" if of.greedy else "are unlikely under n = 0"
    yield f"{_how(of)}: {of.differences} of {of.tokens} tokens {odd}"
    yield (
        f"n = 0 itself, {count(of.null_launches, 'launch')}: "
        f"{of.null_differences} of {of.null_tokens}"
    )
    yield (
        f"the same tokens from end to end: {of.same_answers} of {of.prompts} answers; the two "
        f"launches of n = 0: {of.null_same_answers}"
    )
    for test in of.tests:
        yield f"{plain(test.name)}: p = {test.p:.2g}"
    for text in of.texts:
        if text.chosen or text.plain:
            yield (
                f"{plain(text.fault)}: {text.chosen} of {text.answers}, n = 0 "
                f"{text.plain} of {text.plain_answers}, p = {text.p:.2g}"
            )
    if of.detectable is not None:
        yield (
            f"if {of.detectable:.2%} of the tokens were wrong, that would be found with "
            f"{of.power:.0%} probability"
        )
    if of.detectable_shift is not None:
        yield (
            f"if the mean log-probability of a token were off by {number(of.detectable_shift)} "
            f"nats, that would be found with {of.power:.0%} probability"
        )
    yield from map(plain, of.notes)
