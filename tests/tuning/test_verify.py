"""`autotune verify` over the double: three launches, a verdict, and what every page says of it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from autotune import StopTuning, Study, verify
from autotune.bench.workload import Request
from autotune.cli import verify as commands
from autotune.errors import NothingUsable, UserError
from autotune.output.report import build, markdown
from autotune.results.certificates import Certificate, Verdict
from autotune.results.trials import study_view
from autotune.results.views import StudyView, TrialView
from autotune.storage.certificates import AnswerRole
from autotune.storage.store import opened
from autotune.tuning import verify as verifying
from autotune.tuning.verify import Verification, distinct, prompts_for
from tests.standin import MODULE, write_vllm
from tests.studies import autotune, processes_of, query, trials, write_study

pytestmark = pytest.mark.double

LAUNCHES = "select count(*) from autotune_launches where study = 'double:verify'"


def write_turns(folder: Path, *launches: dict[str, str]) -> None:
    """Say how the next launches differ."""
    (folder / "turns").write_text("".join(json.dumps(x) + "\n" for x in launches))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study of n = 0 and n = 5 that was run."""
    found = tmp_path_factory.mktemp("verify")
    write_turns(found, {"DOUBLE_SPEED": "4"})  # n = 0, so that n = 5 wins however busy it is here
    write_study(
        found,
        space={
            "num_speculative_tokens": {"type": "choice", "choices": [0, 5]},
            "max_num_batched_tokens": {"type": "choice", "choices": [2048]},
        },
        search={"method": "grid"},
        server__env={"DOUBLE_TURNS": str(found / "turns"), "DOUBLE_SPEED": "40"},
        workload__num_prompts=60,
        workload__output_len=48,
    )
    done = autotune("run", "double.yaml", "--trials", "2", "--verify", cwd=found)
    assert done.returncode == 0, done.stderr
    assert "Output certified" in done.stdout
    return found


def trial_of(folder: Path, n: int) -> int:
    """The trial of an n."""
    [found] = [t for t in trials(folder) if t["params"]["num_speculative_tokens"] == n]  # type: ignore[index]
    return int(found["trial"])  # type: ignore[call-overload, no-any-return]


def certificate(folder: Path, *words: str) -> tuple[int, dict[str, Any]]:
    done = autotune("verify", "double.yaml", "--json", *words, cwd=folder)
    return done.returncode, json.loads(done.stdout) if done.stdout else {"said": done.stderr}


def test_a_lossless_winner_is_certified(folder: Path, tmp_path: Path) -> None:
    n = str(trial_of(folder, 5))
    code, found = certificate(folder, "--trial", n)
    assert (code, found["verdict"]) == (0, "certified")
    assert found["vllm"] == "0.32.0"  # its servers told; the double has no vLLM that can be asked
    judged = found["judgement"]
    assert judged["prompts"] == 40
    assert judged["null_launches"] == 2
    assert judged["tokens"] > 300
    assert 0 < judged["null_same_answers"] < 40  # the double rounds otherwise in each launch
    assert query(folder, LAUNCHES) == [(3,)]
    # n = 0 scores with a smaller batch budget
    budgets = query(folder, "select argv from autotune_launches where study = 'double:verify'")
    assert [json.loads(str(x)).count("1024") for (x,) in budgets] == [0, 0, 1]
    assert (folder / "autotune.db").stat().st_mode & 0o077 == 0
    # what the point drafted is kept with its launch, so that a verification that goes on has it
    counted = "select stats from autotune_launches where study = 'double:verify'"
    drafts = [json.loads(str(x))["drafts"] for (x,) in query(folder, counted) if x is not None]
    assert len(drafts) == 1
    assert drafts[0] > 0
    # the same command only shows it
    assert certificate(folder, "--trial", n)[1] == found
    assert query(folder, LAUNCHES) == [(3,)]
    assert certificate(folder, "--trial", n, "--show") == (0, found)
    none = autotune("verify", "double", "--trial", str(trial_of(folder, 0)), "--show", cwd=folder)
    assert none.returncode == 1
    assert "drafts nothing" in none.stderr
    for words in (["status"], ["best"]):
        assert "Output certified" in autotune(*words, cwd=folder).stdout
    assert "# Output certified" in autotune("export", "--trial", n, cwd=folder).stdout
    [row] = [t for t in trials(folder) if t["trial"] == int(n)]
    assert row["output"]["verdict"] == "certified"  # type: ignore[index]
    # a study that was verified can be copied, and goes on to be
    assert autotune("copy", "autotune.db", str(tmp_path / "b.db"), cwd=folder).returncode == 0
    with opened(tmp_path / "b.db") as store:
        view = study_view(store, "double")
        [row] = store.certificates.of_study("double")
        assert view.trials[int(n)].certificate is not None
        assert {k: len(x) for k, x in store.certificates.answers(row.id).items()} == dict.fromkeys(
            AnswerRole, 40
        )
    assert processes_of(folder) == []


def test_the_same_from_python(folder: Path) -> None:
    study, database = Study.from_file(folder / "double.yaml"), folder / "autotune.db"
    before = query(folder, LAUNCHES)
    found = verify(study, trial_of(folder, 5), database=database)
    assert found is not None
    assert found.verdict == "certified"
    assert query(folder, LAUNCHES) == before  # it is only shown
    with pytest.raises(UserError, match="99"):
        verify(study, 99, database=database)
    with pytest.raises(UserError, match="at least 2, not 1"):
        verify(study, database=database, prompts=1)
    with pytest.raises(StopTuning):  # of the callback, while n = 0 answers
        verify(
            study,
            trial_of(folder, 5),
            database=database,
            prompts=3,
            on_event=lambda e: e.what != "progress",
        )
    assert processes_of(folder) == []


def test_wrong_tokens_are_found(folder: Path) -> None:
    n = str(trial_of(folder, 5))
    write_turns(folder, {}, {"DOUBLE_WRONG": "0.02"}, {})
    words = ["--trial", n, "--no-answers", "--again", "--prompts", "59"]
    done = autotune("verify", "double.yaml", *words, cwd=folder)
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith(f"OUTPUT NOT CERTIFIED: trial {n} ")
    assert done.stdout.count("less likely than the best one by") == 3  # the worst, side by side
    last = "(select max(id) from autotune_certificates)"
    kept = f"select count(*) from autotune_answers where certificate = {last}"  # noqa: S608
    assert query(folder, kept) == [(0,)]
    refused = autotune("export", "--trial", n, cwd=folder)
    assert refused.returncode == 2
    assert "--uncertified" in refused.stderr
    served = autotune("export", "--trial", n, "--uncertified", cwd=folder)
    assert "# Careful: OUTPUT NOT CERTIFIED" in served.stdout
    assert "NOT CERTIFIED" in " ".join(autotune("status", cwd=folder).stdout.split())
    with opened(folder / "autotune.db") as store:
        view = study_view(store, "double")
        page = markdown(build(store, view))
    assert "Is the output still the same?" in page
    assert not re.search(r"w\d{3}", page)  # no words of an answer


def test_a_sampled_answer_is_judged_and_loops_are_found(folder: Path) -> None:
    n = str(trial_of(folder, 5))
    write_turns(folder, {}, {"DOUBLE_LOOPS": "1"}, {})
    code, found = certificate(folder, "--trial", n, "--sampling")
    assert code == 3
    assert "loops" in found["judgement"]["found"]
    assert found["judgement"]["temperature"] == 1.0


def test_an_interrupted_verification_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of n = 0, which is no different from itself."""
    n = str(trial_of(folder, 0))
    answer: Callable[..., Any] = verifying.ask_answers
    asked = 0

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise KeyboardInterrupt
        return answer(*args, **kwargs)

    [(before,)] = query(folder, LAUNCHES)
    monkeypatch.setattr(verifying, "ask_answers", interrupted)
    done = autotune("verify", "double.yaml", "--trial", n, cwd=folder)
    assert done.returncode == 130
    assert "run the same command again" in done.stderr
    assert processes_of(folder) == []
    code, found = certificate(folder, "--trial", n)
    assert (code, found["verdict"]) == (0, "certified")
    assert query(folder, LAUNCHES) == [(int(str(before)) + 4,)]


def test_a_winner_without_drafts_launches_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def n_0(view: StudyView, *_: object, **__: object) -> TrialView:
        return replace(view.trials[trial_of(folder, 0)], certificate=None)

    before = query(folder, LAUNCHES)
    monkeypatch.setattr("autotune.cli.verify.best_trial", n_0)
    done = autotune("verify", "double.yaml", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Nothing to verify: ")
    code, found = certificate(folder)
    assert (code, found["verdict"]) == (0, None)
    assert "drafts nothing" in found["why"]
    assert query(folder, LAUNCHES) == before


@pytest.mark.parametrize(("wrong", "told"), [("none", "no prompt_logprobs"), ("nan", "not finite")])
def test_a_server_that_cannot_score_is_one_line(folder: Path, wrong: str, told: str) -> None:
    """What was answered is kept: the next command only scores."""
    n = str(trial_of(folder, 5))
    words = ["verify", "double.yaml", "--trial", n, "--prompts", "4"]
    write_turns(folder, *[{"DOUBLE_SCORES": wrong}] * 3)
    done = autotune(*words, "--again", cwd=folder)
    assert done.returncode == 1
    assert told in done.stderr.splitlines()[-1]
    assert processes_of(folder) == []
    [(before,)] = query(folder, LAUNCHES)
    write_turns(folder)
    judged = autotune(*words, cwd=folder)
    assert "Output not judged" in judged.stdout  # four prompts are few
    assert judged.returncode == 4
    assert "the output is not judged: " in judged.stderr.splitlines()[-1]
    assert query(folder, LAUNCHES) == [(int(str(before)) + 1,)]


def test_on_a_gpu_all_start_together_and_accepted_wrong_drafts_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper = Path(__file__).parents[2] / "benchmarks/wrong_tokens.py"
    write_study(
        tmp_path,
        server__command=[sys.executable, str(wrapper), "-m", MODULE],
        server__env={"PYTHONPATH": str(write_vllm(tmp_path / "vllm")), "DOUBLE_SPEED": "40"},
        server__flags={
            "max-num-seqs": 2,
            "max-num-batched-tokens": 2048,
            "kv-cache-memory-bytes": 2**30,
            "gpu-memory-utilization": 0.3,
        },
        server__ahead=2,
        space={"num_speculative_tokens": {"type": "choice", "choices": [0, 5]}},
        search={"method": "grid"},
        workload__num_prompts=40,
    )
    assert autotune("run", "double.yaml", "--trials", "2", cwd=tmp_path).returncode == 0
    n = str(trial_of(tmp_path, 5))
    monkeypatch.setenv("WRONG_RATES", "0.2,0")
    code, found = certificate(tmp_path, "--trial", n)
    assert code == 3, found
    whats = query(
        tmp_path,
        "select what from autotune_events where study = 'double:verify' and what in "
        "('prelaunching', 'healthy', 'answered', 'scored', 'stopped') order by id",
    )
    one_by_one = ["answered", "stopped", "answered", "stopped", "answered", "scored", "stopped"]
    together = ["prelaunching", "prelaunching", "healthy", "healthy", "healthy", *one_by_one]
    assert [what for (what,) in whats] == together
    sql = "select argv from autotune_launches where study = 'double:verify' order by planned_at"
    argv = [json.loads(str(x)) for (x,) in query(tmp_path, sql)]
    assert not any("synthetic" in str(words) for words in argv)  # the study says nothing of it
    assert [words.count("1024") for words in argv] == [0, 0, 1]  # of the one that scores
    assert processes_of(tmp_path) == []


def test_what_cannot_be_verified(folder: Path) -> None:
    study = yaml.safe_load((folder / "double.yaml").read_text())
    study["server"]["flags"]["max-logprobs"] = 0
    (folder / "silent.yaml").write_text(yaml.safe_dump(study))
    for words, told in (
        (["silent.yaml"], "silent.yaml: server.flags.max-logprobs: 0 forbids"),
        (["double.yaml", "--trial", "99"], "has no such trial"),
        (["double.yaml", "--trial", "0", "--best"], "exclude each other"),
        (["demo-cpu"], "has no study demo-cpu"),
    ):
        done = autotune("verify", *words, cwd=folder)
        assert done.returncode == 2
        assert told in done.stderr


@pytest.mark.parametrize(
    ("length", "concurrency", "prompts"),
    [(24, 2, 40), (512, None, 40), (20, 1, 48), (1, 1, 64), (None, 1, 64), (24, 32, 128)],
)
def test_as_many_prompts_as_find_one_percent(
    length: int | None, concurrency: int | None, prompts: int
) -> None:
    assert prompts_for([length] * 200, concurrency) == prompts


def test_random_weights_in_the_command_are_told_before_a_launch(folder: Path) -> None:
    study = yaml.safe_load((folder / "double.yaml").read_text())
    command = [*study["server"]["command"], "--load-format", "dummy"]
    study |= {"name": "noise", "server": {**study["server"], "command": command}}
    (folder / "noise.yaml").write_text(yaml.safe_dump(study))
    assert autotune("run", "noise.yaml", "--trials", "1", cwd=folder).returncode == 0
    done = autotune("verify", "noise.yaml", "--trial", "0", cwd=folder)
    assert done.returncode == 4
    assert done.stdout == (
        "Output not judged: the weights are random (load-format: dummy), so its answers are "
        "noise.\n"
    )
    assert query(folder, "select 1 from autotune_launches where study = 'noise:verify'") == []


def test_a_prompt_that_a_load_repeats_counts_once() -> None:
    chats = [[{"role": "user", "content": text}] for text in ("a", "b", "a")]
    requests = [Request(i, None, chat) for i, chat in enumerate(chats)]
    other = Request(3, None, chats[0], tools=[{"type": "function"}])
    assert distinct([*requests, other, Request(4, [1, 2], None), Request(5, [1, 2], None)]) == [
        0,
        1,
        3,
        4,
    ]


def test_a_prompt_with_an_image_cannot_be_scored() -> None:
    parts = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {}}]
    chats = [[{"role": "user", "content": x}] for x in (parts, parts[:1], "What is it?", None)]
    assert distinct([Request(i, None, chat) for i, chat in enumerate(chats)]) == [1, 2, 3]


@pytest.mark.parametrize(
    ("found", "code", "told"),
    [
        (UserError("n = 0 cannot be launched"), 4, "is not verified: n = 0 cannot be launched"),
        (NothingUsable("double: n = 0: no port"), 4, "is not verified: double: n = 0: no port"),
        (
            Certificate(Verdict.NOT_JUDGED, "too few"),
            4,
            "double: the output is not judged: too few",
        ),
        (Certificate(Verdict.FAULT), 3, ""),
        (Certificate(Verdict.CERTIFIED), 0, ""),
    ],
)
def test_a_run_ends_by_the_verdict_and_has_its_results(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    found: Certificate | Exception,
    code: int,
    told: str,
) -> None:
    def verified(*_args: object, **_words: object) -> Verification:
        if isinstance(found, Exception):
            raise found
        return Verification(found)

    monkeypatch.setattr(commands, "verified", verified)
    before = query(folder, "select count(*) from autotune_launches")
    done = autotune("run", "double.yaml", "--trials", "2", "--verify", cwd=folder)
    assert done.returncode == code
    assert told in "".join(done.stderr.splitlines()[-1:])
    assert "Traceback" not in done.stderr
    assert "autotune best --shell" in done.stdout
    assert query(folder, "select count(*) from autotune_launches") == before
