"""Does a point write what n = 0 writes? Three launches, their answers compared token by token.

1. n = 0, with the other parameters of the point, answers the study's prompts at its load.
2. The point answers them.
3. n = 0 again answers them. Then it scores every token that the three launches wrote, by teacher
   forcing. Its batch budget is at most 1024, because a server keeps the logits of a whole step of
   prompt tokens.

With `server.ahead` they are started together and asked one after the other: nothing is timed.

The two launches of n = 0 say how much answers differ without speculation: their batches differ,
too. Each launch's answers are kept when they are whole, so an interrupted verification goes on with
the next launch. What the answers amount to: :mod:`autotune.tuning.verify_judgement`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import orjson

from autotune.bench.answers import ask_answers, score_answers
from autotune.bench.server_metrics import difference, scrape
from autotune.bench.workload import Request
from autotune.bench.written import Scored, Written
from autotune.errors import NothingUsable, TrialFailure, UserError
from autotune.results.certificates import Certificate, Verdict, certificate_from, told_versions
from autotune.results.text import point_text
from autotune.serving.interrupts import held_back
from autotune.stats.acceptance_check import DraftCounts, check_acceptance
from autotune.storage.certificates import ROLES, AnswerRole, KeptAnswer, launch_number
from autotune.storage.location import Database
from autotune.storage.names import output_folder, verification_name
from autotune.storage.schema import CertificateRow, LaunchRow
from autotune.storage.store import Store
from autotune.study.lossless import why_lossy
from autotune.study.space import MNBT, N, Point, Value, as_int, canonical
from autotune.study.speculative import ADAPTIVE, SCHEDULE
from autotune.tuning.launcher import Launcher, LiveServer
from autotune.tuning.ledger import StoredLedger
from autotune.tuning.lost_hosts import close_lost
from autotune.tuning.prepare import Prepared
from autotune.tuning.progress import OUTSIDE, Progress
from autotune.tuning.recovery import end_orphans
from autotune.tuning.supervise import run_on
from autotune.tuning.tools import Tools, real
from autotune.tuning.trial import Measured, attempts, drafts_note
from autotune.tuning.verify_judgement import judge_answers, odd_lines

# Most prompt tokens of a step of the scoring server: it keeps the logits of all of them.
_MOST_SCORED = 1024
# 1 % of wrong tokens are found in 720 tokens. Some answers end early.
_TOKENS = 960
_PROMPTS = range(40, 65)  # fewest: faults of some prompts only; most: answers may be short
_WAVES = 4  # so that the load is full for most of the time
_SEEDS = 10**6  # between the seeds of two launches
_WORDS = {
    AnswerRole.PLAIN: "n = 0",
    AnswerRole.CHOSEN: "the chosen point",
    AnswerRole.SCORING: "n = 0 again",
}


@dataclass(frozen=True)
class Verification:
    """What a verification found.

    Attributes:
        certificate: The verdict, and the numbers behind it.
        answers: The answers by launch, where they are known; empty: none are.
        launched: Whether anything was launched for it now.
    """

    certificate: Certificate
    answers: Mapping[AnswerRole, Sequence[KeptAnswer]] = field(default_factory=dict)
    launched: bool = False


@dataclass(frozen=True)
class Asked:
    """What is verified, and how.

    Attributes:
        trial: Number of the trial, the first one of its point.
        sampling: Draw tokens at temperature 1 where the study's temperature is 0.
        prompts: Most prompts; None: as many as :func:`prompts_for` says.
        keep: Keep the answers in the database.
        again: Launch although there is a verdict already.
    """

    trial: int
    sampling: bool = False
    prompts: int | None = None
    keep: bool = True
    again: bool = False


def verify_study(
    prepared: Prepared,
    *,
    database: Database,
    asked: Asked,
    progress: Progress,
    tools: Tools | None = None,
) -> Verification:
    """Compare the answers of a trial's point with those of n = 0, from wherever that is.

    Args:
        prepared: The study, checked.
        database: Database of the study.
        asked: What is verified.
        progress: Told of what happens.
        tools: What servers are made with; None: this machine's.

    Raises:
        UserError: the database has no such study or trial, or n = 0 cannot be launched.
        NothingUsable: a launch failed.
        MachineError: the disk is full, the database was damaged or stayed locked.
        KeyboardInterrupt: SIGINT, SIGTERM or SIGHUP; the server is gone, and it resumes.
    """

    def go(store: Store) -> Verification:
        return _Run(prepared, store, asked, progress, real(tools)).go()

    return run_on(database, progress, go)


class _Run:
    """One verification under the database's lock."""

    def __init__(
        self, prepared: Prepared, store: Store, asked: Asked, progress: Progress, tools: Tools
    ) -> None:
        self.p, self.spec, self.store, self.asked = prepared, prepared.spec, store, asked
        self.progress, self.tools = progress, tools
        name = self.spec.name
        if name not in store.study_names():
            raise UserError(
                f"{store.database}: has no study {name} yet. Start it with `autotune run`"
            )
        if as_int(self.spec.server.settings({}).get("max_logprobs")) == 0:
            raise UserError(
                f"{prepared.loaded.path}: server.flags.max-logprobs: 0 forbids prompt_logprobs, "
                "with which verify scores; give 1 or more, or leave it out"
            )
        row = store.load_study(name)[1]
        store.begin_study(prepared.loaded, seed=row.seed, wanted=row.wanted)
        self.chosen = self._of_trial(asked.trial)
        load = self.spec.workload
        self.temperature = 1.0 if asked.sampling and load.temperature == 0 else load.temperature
        kept = distinct(prepared.workload.measured)
        lengths = [
            as_int(prepared.workload.measured[i].output_len or load.output_len) for i in kept
        ]
        kept = kept[: asked.prompts or prompts_for(lengths, load.max_concurrency)]
        if not kept:
            raise UserError(
                f"{prepared.loaded.path}: all prompts have images or other parts that are no "
                "text, and verify scores token ids, which do not have them; give a study with "
                "prompts of text"
            )
        self.requests = [prepared.workload.measured[i] for i in kept]
        self.arrivals = [prepared.workload.arrivals[i] for i in kept]
        self.answers: dict[AnswerRole, list[KeptAnswer]] = {}

    def _of_trial(self, number: int) -> dict[str, Value]:
        """Return the point of a trial.

        Raises:
            UserError: there is none with a point.
        """
        space = self.spec.to_space()
        for t in self.store.stored_study(self.spec.name).trials:
            if t.number == number and space.has_point(t.params):
                return space.decode(t.params)
        raise UserError(
            f"--trial {number}: {self.spec.name} has no such trial; `autotune status` lists them"
        )

    def go(self) -> Verification:
        """Launch what is missing, and judge."""
        if (why := why_lossy(self.spec, self.chosen)) is not None:
            return Verification(Certificate(Verdict.NOT_JUDGED, why))
        plain = self._plain()
        scoring = self._scoring(plain)
        row = self._row(scoring)
        if row.verdict is not None:
            return Verification(self._read(row), self.store.certificates.answers(row.id))
        kept = self.store.certificates.answers(row.id)
        self.answers = {k: x for k, x in kept.items() if len(x) == len(self.requests)}
        launches = {
            AnswerRole.PLAIN: _Launch(self, row, AnswerRole.PLAIN, plain),
            AnswerRole.CHOSEN: _Launch(self, row, AnswerRole.CHOSEN, self.chosen),
            AnswerRole.SCORING: _Launch(self, row, AnswerRole.SCORING, scoring),
        }
        self._launch(launches)
        with self.progress.waiting("judging the answers"):
            verdict, judgement = judge_answers(self.answers, self.temperature, self._notes())
        self.store.certificates.judge(row.id, verdict.value, judgement.model_dump(mode="json"))
        last = next(x for x in self.store.certificates.of_study(self.spec.name) if x.id == row.id)
        return Verification(self._read(last), self.answers, launched=True)

    def _read(self, row: CertificateRow) -> Certificate:
        """Return a verification with the version of vLLM that its servers told."""
        return certificate_from(row, told_versions(self.store, self.spec.name))

    def _plain(self) -> dict[str, Value]:
        """Return n = 0 with the other parameters of the point.

        Raises:
            UserError: it cannot be launched.
        """
        point = canonical(self.spec.to_space(), {**self.chosen, N: 0})
        for what in (point, self.chosen):
            if (why := self.p.infeasible(what)) is not None:
                raise UserError(
                    f"{self.p.loaded.path}: {point_text(what)} cannot be launched: {why}"
                )
        return point

    def _scoring(self, plain: Point) -> dict[str, Value]:
        """Return the point of the launch that scores.

        Where no smaller batch budget can be launched, it has the budget of n = 0.
        """
        settings = self.spec.settings(plain)
        wanted = max(_MOST_SCORED, as_int(settings.get("max_num_seqs")) or 0)
        now = as_int(settings.get(MNBT))
        smaller = {**plain, MNBT: wanted}
        if (now is not None and now <= wanted) or self.p.infeasible(smaller) is not None:
            return dict(plain)
        return smaller

    def _row(self, scoring: Point) -> CertificateRow:
        """Return the verification to go on with or to show, or a new one."""
        version = self.p.info.version
        setting: dict[str, Any] = {
            "point": dict(self.chosen),
            "vllm": None if version is None else version.partition("+")[0],
            "weights": self.p.weights(),
            "prompts": len(self.requests),
            "temperature": self.temperature,
            "scored_with": as_int(self.spec.settings(scoring).get(MNBT)),
        }
        for row in reversed(self.store.certificates.of_study(self.spec.name)):
            if row.trial == self.asked.trial and row.setting == setting:
                if row.verdict is not None and self.asked.again:
                    break
                return row
        return self.store.certificates.begin(self.spec.name, self.asked.trial, setting)

    # -- the launches ----------------------------------------------------------------------------

    def _launch(self, launches: Mapping[AnswerRole, _Launch]) -> None:
        """Launch each server whose answers or scores are missing.

        Raises:
            NothingUsable: one has failed.
        """
        end_orphans(self.store, self.spec.server.stop_timeout_s, self.progress.message)
        close_lost(self.store, self.progress.message)
        if self.asked.keep:
            self._say_who_reads()
        name = verification_name(self.spec.name)
        ledger = StoredLedger(self.store, name)
        logs = output_folder(self.store.database, self.spec.name) / "logs"
        left = [role for role in ROLES if not self._is_done(role)]
        with Launcher(self.p, ledger, logs, tools=self.tools, known=True) as launcher:
            if left and launcher.untested is not None:
                self.progress.message(launcher.untested)
            for i, role in enumerate(left):
                later = [launches[x].point for x in left[i + 1 :]]
                outcome = attempts(launches[role], launcher, ledger, (), _first_of(later))
                if not isinstance(outcome, Measured):
                    reason = f"{self.spec.name}: {_WORDS[role]}: {outcome.failure.reason}"
                    raise NothingUsable(f"{reason}; the logs are in {logs}") from outcome.failure

    def _is_done(self, role: AnswerRole) -> bool:
        """Return whether a launch has nothing left to do."""
        if role is not AnswerRole.SCORING:
            return role in self.answers
        return len(self.answers) == len(ROLES) and not self._unscored()

    def _unscored(self) -> list[AnswerRole]:
        """Return the launches whose answers are there and not scored."""
        return [k for k, x in self.answers.items() if any(a.scored is None for a in x)]

    def _say_who_reads(self) -> None:
        """Say that others can read the database, if that is so."""
        database = self.store.database
        mode = database.stat().st_mode & 0o077 if isinstance(database, Path) else 0
        if mode & 0o044:
            self.progress.message(
                f"the answers are kept in {database}, which others can read; `chmod 600` ends "
                "that, --no-answers keeps none"
            )

    def answer(self, live: LiveServer, row: CertificateRow, role: AnswerRole, point: Point) -> None:
        """Let a server answer all prompts, and score if it is the one for that."""
        if role not in self.answers:
            found = self._asked(live, role, point)
            self.answers[role] = [KeptAnswer(live.launch_id, x, None) for x in found]
            if self.asked.keep:
                with held_back():
                    self.store.certificates.add_answers(row.id, live.launch_id, role, found)
            live.event("answered")
        if role is AnswerRole.SCORING:
            self._score(live, row)
            live.event("scored")
        live.clock.mark("measured")

    def _asked(self, live: LiveServer, role: AnswerRole, point: Point) -> list[Written]:
        load = self.spec.workload
        if self.temperature > 0:  # equal seeds would make equal draws, which say nothing
            load = load.model_copy(update={"seed": load.seed + _SEEDS * ROLES.index(role)})
        plan = live.server.plan
        self._stage(role, "answering")
        before = scrape(plan.base_url, plan.api_key)
        found = ask_answers(
            live.server,
            load,
            self.requests,
            self.arrivals,
            temperature=self.temperature,
            on_done=self._counting(len(self.requests)),
        )
        stats = difference(before, scrape(plan.base_url, plan.api_key))
        note = drafts_note(stats, len(found), self.spec.server, point, live.version)
        if note is not None:
            self.progress.message(f"{_WORDS[role]}: {note}")
        if role is AnswerRole.CHOSEN:
            with held_back():
                self.store.launches.counted(live.launch_id, stats)
        return found

    def _score(self, live: LiveServer, row: CertificateRow) -> None:
        """Score every answer that is not scored yet; equal answers to a prompt once.

        Greedy answers are mostly equal, and the prompt is what takes the time.
        """
        known: dict[tuple[tuple[int, ...], tuple[int, ...]], Scored] = {}
        left: dict[tuple[tuple[int, ...], tuple[int, ...]], Written] = {}
        for x in (x for of in self.answers.values() for x in of):
            key = x.written.prompt_ids, x.written.token_ids
            if x.scored is not None:
                known[key] = x.scored
            left.setdefault(key, x.written)
        left = {key: x for key, x in left.items() if key not in known}
        self._stage(AnswerRole.SCORING, "scoring")
        done = self._counting(len(left))
        scores = score_answers(
            live.server, self.spec.workload, [*left.values()], lambda _i, scored: done(scored)
        )
        known |= zip(left, scores, strict=True)
        for of in self._unscored():
            self.answers[of] = [
                dataclasses.replace(x, scored=known[x.written.prompt_ids, x.written.token_ids])
                for x in self.answers[of]
            ]
            by_index = {x.written.index: x.scored for x in self.answers[of] if x.scored}
            if self.asked.keep:
                with held_back():
                    self.store.certificates.add_scores(row.id, of, by_index)

    def _counting(self, total: int) -> Callable[[Written | Scored], None]:
        """Return what tells the progress after each answer."""
        done = 0

        def count(_one: Written | Scored) -> None:
            nonlocal done
            done += 1
            self.progress.progress(OUTSIDE, done, total)

        return count

    def _stage(self, role: AnswerRole, text: str) -> None:
        self.progress.stage(OUTSIDE, f"{_WORDS[role]}: {text}")

    def _notes(self) -> list[str]:
        """Return what the acceptance says of the drafts; it decides nothing."""
        by = self.answers[AnswerRole.CHOSEN][0].launch
        now = _counts(self.store.launches.get(by).stats or {})
        keys = self.spec.server.draft_settings(self.chosen)
        if now is None or keys.get(SCHEDULE) or keys.get(ADAPTIVE):  # drafts of several lengths
            return []
        launches = self.store.launches.of_trial(self.spec.name, self.asked.trial)
        known = [x.stats for x in launches if x.stats is not None]
        return odd_lines(check_acceptance(now, _counts(known[-1]) if known else None))


def prompts_for(lengths: Sequence[int | None], concurrency: int | None) -> int:
    """Return how many prompts are enough to find 1 % of wrong tokens.

    Args:
        lengths: Most tokens of the answer to each prompt; None: unknown.
        concurrency: Requests that run at the same time; None: as they arrive.
    """
    enough = sum(tokens < _TOKENS for tokens in accumulate(x or 0 for x in lengths)) + 1
    return max(_PROMPTS[0], min(enough, _PROMPTS[-1]), _WAVES * (concurrency or 1))


def distinct(requests: Sequence[Request]) -> list[int]:
    """Return the positions of requests of text whose prompt no earlier one has.

    A prompt is the unit of every test (:mod:`autotune.stats.losslessness`); a load may repeat it.
    Answers to images, sounds and videos cannot be scored: their token ids do not have them.
    """
    first: dict[bytes, int] = {}
    for i, x in enumerate(requests):
        if is_text(x):
            first.setdefault(orjson.dumps([x.prompt, x.messages, x.tools]), i)
    return list(first.values())


def is_text(request: Request) -> bool:
    """Return whether all parts of a request's messages are texts."""
    contents = [x.get("content") for x in request.messages or ()]
    parts = [part for found in contents if isinstance(found, list) for part in found]
    return all(isinstance(x, str) or (isinstance(x, dict) and "text" in x) for x in parts)


def _first_of(points: Sequence[Point]) -> Callable[[int], Sequence[Point]]:
    """Return what gives at most a number of the points."""
    return lambda most: points[:most]


def _counts(stats: Mapping[str, Any]) -> DraftCounts | None:
    """Return the drafts of a launch's counters; None: it has none."""
    drafts, shares = stats.get("drafts"), stats.get("acceptance_per_position")
    return DraftCounts.of_shares(drafts, shares) if drafts and shares else None


@dataclass(frozen=True)
class _Launch:
    """One launch of a verification, as a task of :func:`autotune.tuning.trial.attempts`."""

    run: _Run
    row: CertificateRow
    role: AnswerRole
    point: Point
    server: None = None

    @property
    def number(self) -> int:
        return launch_number(self.row.id, self.role)

    def log(self, attempt: int) -> str:
        return f"verify-{self.number:04d}-{attempt}.log"

    def stage(self, text: str) -> None:
        self.run.progress.stage(OUTSIDE, f"{_WORDS[self.role]}: {text}")

    def measure(self, live: LiveServer) -> None:
        self.run.answer(live, self.row, self.role, self.point)

    def failed(self, failure: TrialFailure, *, retried: bool) -> None:
        if retried:
            words = f"{_WORDS[self.role]}: {failure.reason}; retrying once"
            self.run.progress.message(words)

    def why_again(self, measured: Sequence[LaunchRow]) -> str | None:
        """Return None: its answers count."""

    def repeated(self, why: str) -> None:
        """Do nothing: see :meth:`why_again`."""
