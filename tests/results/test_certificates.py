"""What is said of a winner's output, from the verifications that a database has."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from autotune.bench.written import Scored, Written
from autotune.errors import UserError
from autotune.results.answer_cases import case_lines, side_by_side
from autotune.results.certificates import (
    Certificate,
    Verdict,
    certificate_of,
    judgement_lines,
    output_line,
    word_of,
)
from autotune.results.judged import Judged, TokenTest
from autotune.stats.acceptance_check import DraftCounts, check_acceptance
from autotune.storage.certificates import (
    ROLES,
    AnswerRole,
    Certificates,
    KeptAnswer,
    launch_number,
    moved_launch,
)
from autotune.storage.reading import Reader
from autotune.storage.schema import AnswerRow, CertificateRow
from autotune.study.files import load_study
from autotune.study.schema import StudySpec
from autotune.study.space import N
from autotune.tuning.verify_judgement import judge_answers, odd_lines
from tests.paths import ROOT
from tests.studies import autotune, front, write_study


def spec(tmp_path: Any, **changes: object) -> StudySpec:
    return load_study(str(write_study(tmp_path, **changes))).spec


JUDGED = Judged(
    **{"why": None, "temperature": 0.0, "found": ("loops",), "level": 0.02, "text_level": 0.01},
    **{"prompts": 60, "tokens": 900, "differences": 3, "null_launches": 2, "null_tokens": 1800},
    **{"null_differences": 5, "largest": 0.5, "null_largest": 0.6, "worst": (), "power": 0.8},
    tests=(TokenTest(name="large\x1b differences", p=0.5, fault=False),),
    texts=(),
    same_answers=58,
    null_same_answers=57,
    detectable=0.004,
    detectable_shift=None,
)

# No number of JSON: `--json` could not print it
NO_NUMBER = JUDGED.model_dump(mode="json") | {"largest": float("inf")}


def row(
    number: int,
    verdict: str | None,
    temperature: float = 0.0,
    trial: int = 3,
    judgement: dict[str, Any] | None = None,
) -> CertificateRow:
    found = CertificateRow(
        study="s",
        trial=trial,
        setting={"temperature": temperature, "vllm": "0.32.0"},
        created_at=0.0,
        ended_at=None if verdict is None else 1.0,
        verdict=verdict,
        judgement=JUDGED.model_dump(mode="json") if judgement is None else judgement,
    )
    found.id = number
    return found


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        ([], Verdict.MISSING),
        ([{"number": 1, "verdict": None}], Verdict.MISSING),  # not judged yet
        ([{"number": 1, "verdict": "certified", "trial": 4}], Verdict.MISSING),  # another point's
        ([{"number": 1, "verdict": "certified"}], Verdict.CERTIFIED),
        (
            [{"number": 1, "verdict": "not certified"}, {"number": 2, "verdict": "certified"}],
            Verdict.CERTIFIED,
        ),
        (
            [
                {"number": 1, "verdict": "not certified"},
                {"number": 2, "verdict": "certified", "temperature": 1.0},
            ],
            Verdict.FAULT,
        ),
        (
            [
                {"number": 1, "verdict": "not judged"},
                {"number": 2, "verdict": "certified", "temperature": 1.0},
            ],
            Verdict.CERTIFIED,
        ),
        ([{"number": 1, "verdict": "of tomorrow"}], Verdict.NOT_JUDGED),
        ([{"number": 1, "verdict": "certified", "judgement": {"tokens": 1}}], Verdict.NOT_JUDGED),
        ([{"number": 1, "verdict": "certified", "judgement": NO_NUMBER}], Verdict.NOT_JUDGED),
        ([{"number": 1, "verdict": "certified", "temperature": [0]}], Verdict.CERTIFIED),
    ],
)
def test_the_latest_at_each_temperature_counts(
    tmp_path: Any, rows: list[dict[str, Any]], verdict: Verdict
) -> None:
    found = certificate_of(
        [row(**x) for x in rows], spec(tmp_path), 3, {N: 3, "max_num_batched_tokens": 2048}
    )
    assert found is not None
    assert found.verdict is verdict


@pytest.mark.parametrize(
    "changes", [{"setting": []}, {"ended_at": 1e30}, {"ended_at": float("nan")}, {"ended_at": "x"}]
)
def test_a_foreign_database_does_not_end_a_command(tmp_path: Any, changes: dict[str, Any]) -> None:
    found = row(1, "certified")
    for name, value in changes.items():
        setattr(found, name, value)
    point = {N: 3, "max_num_batched_tokens": 2048}
    certificate = certificate_of([found], spec(tmp_path), 3, point)
    assert certificate is not None
    assert certificate.verdict is Verdict.CERTIFIED
    assert json.loads(json.dumps(certificate.to_json(), allow_nan=False))["judgement"]


@pytest.mark.parametrize(
    ("probed", "told", "version"),
    [
        (None, {}, None),
        ("0.32.0", {}, "0.32.0"),
        # a container: nothing could be asked before the launch
        (None, {AnswerRole.CHOSEN: "0.33.0+cu130"}, "0.33.0"),
        # the server itself knows best
        ("0.32.0", {AnswerRole.CHOSEN: "0.33.0", AnswerRole.PLAIN: "0.31.0"}, "0.33.0"),
        (None, {AnswerRole.SCORING: "0.31.0"}, "0.31.0"),
        (None, {AnswerRole.CHOSEN: 7}, None),  # somebody else's database
    ],
)
def test_a_certificate_has_the_version_that_its_servers_told(
    tmp_path: Any, probed: str | None, told: dict[AnswerRole, Any], version: str | None
) -> None:
    found = row(2, "certified")
    found.setting = {"temperature": 0.0, "vllm": probed}
    numbers = {launch_number(2, role): x for role, x in told.items()}
    numbers[launch_number(1, AnswerRole.CHOSEN)] = "0.24.0"  # another verification's
    point = {N: 3, "max_num_batched_tokens": 2048}
    certificate = certificate_of([found], spec(tmp_path), 3, point, numbers)
    assert certificate is not None
    assert certificate.vllm == version
    assert certificate.to_json()["vllm"] == version


CHOICE = {"type": "choice", "choices": ["auto", "dummy"]}


def test_what_promises_no_equal_answers_is_not_judged(tmp_path: Any) -> None:
    point = {N: 3, "max_num_batched_tokens": 2048}
    draft = {"method": "dflash", "model": "org/draft"}
    for method in ("fly", "synthetic"):
        of = {**draft, "rejection_sample_method": method}
        found = certificate_of(
            [row(1, "certified")], spec(tmp_path, server__speculative=of), 3, point
        )
        assert found is not None
        assert found.verdict is Verdict.NOT_JUDGED
        assert method in output_line(found, 3)
    of = {**draft, "rejection_sample_method": "block"}
    found = certificate_of([], spec(tmp_path, server__speculative=of), 3, point)
    assert found is not None
    assert found.verdict is Verdict.MISSING
    flags = {"max-num-seqs": 2, "load-format": "dummy"}
    command = "vllm serve --load-format dummy"
    for changes in ({"server__flags": flags}, {"server__command": command}):
        found = certificate_of([], spec(tmp_path, **changes), 3, point)
        assert found is not None
        assert "the weights are random (load-format: dummy)" in found.why
    env = {"VLLM_MOE_ROUTING_SIMULATION_STRATEGY": "uniform_random"}
    found = certificate_of([], spec(tmp_path, server__env=env), 3, point)
    assert found is not None
    assert found.why.startswith("VLLM_MOE_ROUTING_SIMULATION_STRATEGY routes tokens to experts")
    # a draft with random weights is seldom accepted, and what is accepted is the target's
    of = {**draft, "draft_load_config": {"load_format": "dummy"}}
    found = certificate_of([], spec(tmp_path, server__speculative=of), 3, point)
    assert found is not None
    assert found.verdict is Verdict.MISSING
    # of a study that searches it, one point's answers are those of a model
    space = {N: {"type": "int", "low": 0, "high": 3}, "load-format": CHOICE}
    searched = spec(tmp_path, space=space)
    for value, verdict in (("auto", Verdict.MISSING), ("dummy", Verdict.NOT_JUDGED)):
        found = certificate_of([], searched, 3, {N: 3, "load_format": value})
        assert found is not None
        assert found.verdict is verdict


def test_a_winner_that_nobody_verified_is_called_so(tmp_path: Path) -> None:
    database = str(ROOT / "studies/results/smollm2-h200/autotune.db")
    for words in (["best"], ["status"], ["export"], ["best", "--shell"]):
        done = autotune(*words, "--db", database, cwd=tmp_path)
        said = " ".join((done.stdout + done.stderr).replace("# ", "").split())
        assert "Output not verified: trial 5's answers were never compared" in said, words
    [row] = [x for x in front(tmp_path, "--db", database) if x["trial"] == 5]
    assert row["output"]["verdict"] == "not verified"  # type: ignore[index]


def test_n_0_needs_no_certificate(tmp_path: Any) -> None:
    point = {N: 0, "max_num_batched_tokens": 2048}
    assert certificate_of([], spec(tmp_path), 0, point) is None
    assert word_of(None) == ""
    database = str(ROOT / "studies/results/smollm2-h200-c32/autotune.db")
    words = ["verify", "smollm2-h200-c32", "--show", "--db", database]
    done = autotune(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout.split(":")[0]) == (0, "Nothing to verify")
    found = json.loads(autotune(*words, "--json", cwd=tmp_path).stdout)
    assert found["params"][N] == 0
    assert found.keys() - {"trial", "params"} == Certificate(Verdict.MISSING).to_json().keys()
    assert found["verdict"] is None
    of_it = autotune(*words, "--trial", str(found["trial"]), cwd=tmp_path)
    assert of_it.returncode == 1


def test_each_verdict_has_one_sentence_and_a_short_word() -> None:
    for verdict in Verdict:
        found = Certificate(verdict, why="it is noise", judgement=JUDGED)
        assert verdict.value.split()[-1] in output_line(found, 3).lower()
        assert len(word_of(found)) <= len("NOT CERTIFIED")
    assert list(judgement_lines(Certificate(Verdict.MISSING))) == []
    lines = list(judgement_lines(Certificate(Verdict.CERTIFIED, judgement=JUDGED)))
    assert "greedy: 3 of 900 tokens are not the likeliest one of n = 0" in lines
    assert all(line.isprintable() for line in lines)  # the database may be somebody else's


def answers(wrong: int, launches: int = 3, prompts: int = 60) -> dict[AnswerRole, list[KeptAnswer]]:
    """Answers of 24 tokens, of which the chosen point has so many with a wrong one."""
    out = {}
    for role in ROLES:
        bad = wrong if role is AnswerRole.CHOSEN else 0
        out[role] = [
            KeptAnswer(
                role.value,
                Written(i, (1, 2), tuple(range(24)), f"answer {i}" + "!" * (i < bad), "stop"),
                Scored((-0.5,) * 23 + (-6.0 if i < bad else -0.5,), (-0.5,) * 24),
            )
            for i in range(prompts)
        ]
    return out


def test_a_judgement_has_numbers_and_no_text() -> None:
    verdict, good = judge_answers(answers(0), 0.0, ["a note"])
    assert verdict is Verdict.CERTIFIED
    assert (good.tokens, good.differences, good.null_same_answers) == (1440, 0, 60)
    assert "a note" in list(judgement_lines(Certificate(verdict, judgement=good)))
    verdict, bad = judge_answers(answers(9), 0.0)
    assert verdict is Verdict.FAULT
    assert "large differences" in bad.found
    assert len(bad.worst) == 3
    assert "answer" not in str(bad.worst)
    lines = list(case_lines(Certificate(verdict, judgement=bad), answers(9), 7))
    assert len(lines) == 9
    assert lines[0].endswith("5.50 nats")
    assert lines[1].split() == ["trial", "7", "answer", "0!"]
    verdict, few = judge_answers(answers(0, prompts=6), 0.0)
    assert verdict is Verdict.NOT_JUDGED
    assert "no fault was found" in (few.why or "")
    assert "--prompts" in (few.why or "")


def test_texts_stand_side_by_side_from_shortly_before_they_part() -> None:
    same = "x" * 100
    a, b = side_by_side(same + "one", same + "two\nthree\x1b")
    assert (a, b) == ("…" + "x" * 32 + "one", "…" + "x" * 32 + "two three ")
    assert side_by_side("a", "a") == ("a", "(the same text)")
    assert side_by_side("", "b") == ("(nothing)", "b")


def test_a_launch_belongs_to_one_verification() -> None:
    numbers = [launch_number(i, role) for i in (1, 2, 7) for role in ROLES]
    assert len({*numbers}) == 9
    moved = [moved_launch(x, {1: 4, 2: 5, 7: 6}) for x in numbers]
    assert moved == [launch_number(i, role) for i in (4, 5, 6) for role in ROLES]


def test_an_odd_acceptance_is_a_note() -> None:
    now = DraftCounts(2000, (2000, 900, 0))
    odd = check_acceptance(now, DraftCounts(2000, (1100, 600, 300)))
    lines = odd_lines(odd)
    assert lines[0] == "acceptance: every draft that got there was accepted at position 1 (100%)"
    assert lines[1] == "acceptance: no draft that got there was accepted at position 3 (0%)"
    assert lines[2].startswith("acceptance: far from the search's at position 1 (100%, 55% in the")
    assert odd_lines(check_acceptance(now, now))[2:] == []


class Changed(Reader):
    """A database with one row in each table, of which another program changed a column."""

    def __init__(self, **changes: object) -> None:
        super().__init__()
        self.changes = changes

    def tables(self) -> dict[str, set[str]]:
        return {}

    def rows(self, sql: str, **_: object) -> list[dict[str, Any]]:
        kind = AnswerRow if AnswerRow.__tablename__ in sql else CertificateRow
        good = {"setting": "{}", "judgement": "{}", "role": "plain", "logprobs": None, "best": None}
        good |= dict.fromkeys(("prompt_ids", "token_ids", "text"), b"") | {"index": 0}
        changed = good | self.changes
        return [{f.name: changed.get(f.name, "x") for f in fields(kind)}]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"setting": "{"}, "autotune_certificates has a row whose setting cannot be read"),
        ({"judgement": 5}, "autotune_certificates has a row whose judgement cannot be read"),
        ({"judgement": "[" * 100_000}, "judgement"),
        ({"role": "x"}, "autotune_answers has a row whose role"),
        ({"prompt_ids": b"\1"}, "tokens"),
        ({"text": b"\xff"}, "text"),
        ({"text": 5}, "text"),
        ({"logprobs": b"\1", "best": b"\1"}, "scores"),
    ],
)
def test_what_another_program_changed_is_one_line(changes: dict[str, object], told: str) -> None:
    good = Certificates(Changed(), sessions=mock.Mock())
    assert (len(good.of_study("s")), len(good.answers(1)[AnswerRole.PLAIN])) == (1, 1)
    bad = Certificates(Changed(**changes), sessions=mock.Mock())

    def read() -> None:
        bad.of_study("s")
        bad.answers(1)

    with pytest.raises(UserError, match=told):
        read()
