"""Requests from files: JSONL with lengths of its own, ShareGPT's conversations, recorded logs."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from autotune.bench.workload import Request, Workload, build_workload
from autotune.errors import UserError
from autotune.storage.store import opened
from autotune.study.differences import contents, fingerprint, fingerprint_of_0_1
from autotune.study.files import LoadedStudy, parse_study
from autotune.study.workload import WorkloadSpec
from tests.paths import ROOT
from tests.studies import autotune, query, write_study

RESULTS = ROOT / "studies" / "results"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder whose tokens are words."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    tokenizer = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def lines(path: Path, rows: Sequence[Any], *, end: str = "\n") -> None:
    text = end.join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_bytes(text.encode())


def spec(**changes: Any) -> WorkloadSpec:
    base = {"output_len": 8, "num_prompts": 3, "warmup_prompts": 1, "max_concurrency": 2}
    return WorkloadSpec.model_validate({**base, **changes})


def words(n: int, first: str = "w") -> str:
    return " ".join(f"{first}{i}" for i in range(n))


def conversation(*turns: str, first: str = "human") -> dict[str, Any]:
    speakers = [first, "gpt"] if first == "human" else ["gpt", "human"]
    return {
        "id": "x",
        "conversations": [{"from": speakers[i % 2], "value": text} for i, text in enumerate(turns)],
    }


def test_a_category_is_kept_with_its_request_where_it_is_one(tmp_path: Path, model: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"turns": ["a"], "category": "math", "dataset": "gsm8k"},
        {"prompt": "b", "dataset": "mbpp"},
        {"prompt": "c", "category": 7},
        {"prompt": "d", "category": "x" * 41},
        {"prompt": "e", "category": "two\nlines"},
        {"prompt": "f", "category": " "},
        {"body": {"prompt": "g"}, "category": "batch"},
    ]
    lines(tmp_path / "p.jsonl", rows)
    work = build_workload(spec(prompts="p.jsonl", num_prompts=6), tmp_path)
    found = {r.prompt or "a": r.category for r in (*work.measured, *work.warmup)}
    assert found == {
        **{"a": "math", "b": "mbpp", "c": None, "d": None, "e": None, "f": None},
        "g": "batch",
    }
    chats = [{**conversation(words(5, f"{i}-"), words(5)), "category": f"c{i}"} for i in range(4)]
    lines(tmp_path / "c.json", chats)
    sent = build_workload(spec(sharegpt={"file": "c.json", "tokenizer": str(model)}), tmp_path)
    assert sorted(str(r.category) for r in (*sent.measured, *sent.warmup)) == [
        "c0",
        "c1",
        "c2",
        "c3",
    ]


def sharegpt(model: Path, **changes: Any) -> dict[str, Any]:
    return {"sharegpt": {"file": "s.json", "tokenizer": str(model), **changes}}


def texts(requests: Sequence[Request]) -> list[list[str]]:
    return [[m["content"] for m in r.messages or ()] for r in requests]


def lengths(work: Workload) -> list[int | None]:
    return [r.output_len for r in work.measured]


# -- JSONL -----------------------------------------------------------------------------------------


def test_windows_lines_a_mark_and_blank_lines_are_read(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}"} for i in range(4)]
    lines(tmp_path / "unix.jsonl", rows)
    lines(tmp_path / "dos.jsonl", [*rows[:2], "", "  ", *rows[2:], ""], end="\r\n")
    marked = b"\xef\xbb\xbf" + (tmp_path / "dos.jsonl").read_bytes()
    (tmp_path / "dos.jsonl").write_bytes(marked)
    one, other = (build_workload(spec(prompts=f"{x}.jsonl"), tmp_path) for x in ("unix", "dos"))
    assert one == other


def test_every_line_has_its_own_length_if_the_study_says_so(tmp_path: Path) -> None:
    keys = ("output_len", "max_tokens", "output_tokens", "max_completion_tokens")
    rows = [{"prompt": f"p{i}", key: i + 5, "x": None} for i, key in enumerate(keys)]
    rows.append({"prompt": "p4", "max_tokens": 100, "output_len": 9})  # what came, not the limit
    lines(tmp_path / "p.jsonl", rows)
    changes = {"prompts": "p.jsonl", "num_prompts": 5, "warmup_prompts": 0}
    own = build_workload(spec(**changes, output_len="recorded"), tmp_path)
    assert {r.prompt: r.output_len for r in own.measured} == {f"p{i}": i + 5 for i in range(5)}
    # a number holds for all, and no line can change it
    assert lengths(build_workload(spec(**changes), tmp_path)) == [None] * 5


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "x"}, "output_len: is missing; `output_len: recorded`"),
        ({"prompt": "x", "output_len": 0}, "output_len: must be a whole number"),
        ({"prompt": "x", "max_tokens": "8"}, "max_tokens: must be a whole number"),
        ({"prompt": "x", "output_tokens": True}, "output_tokens: must be a whole number"),
    ],
)
def test_a_wrong_length_is_named_with_its_line(tmp_path: Path, row: Any, why: str) -> None:
    lines(tmp_path / "p.jsonl", [{"prompt": "a", "output_len": 3}, "", row])
    with pytest.raises(UserError) as e:
        build_workload(spec(prompts="p.jsonl", output_len="recorded"), tmp_path)
    assert f"p.jsonl, line 3: {why}" in str(e.value)


def test_utf_16_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "x"}', encoding="utf-16")
    with pytest.raises(UserError, match=r"workload.prompts is UTF-16; save it as UTF-8"):
        build_workload(spec(prompts="p.jsonl"), tmp_path)


# -- ShareGPT --------------------------------------------------------------------------------------


def test_the_first_human_turn_is_asked_and_the_answer_counted(tmp_path: Path, model: Path) -> None:
    rows = [conversation(f"q{i} " + words(5), words(6 + i), "and then?") for i in range(6)]
    (tmp_path / "s.json").write_text(json.dumps(rows))
    work = build_workload(spec(**sharegpt(model), output_len="recorded", num_prompts=5), tmp_path)
    found = {
        t[0].split()[0]: r.output_len
        for t, r in zip(texts(work.measured), work.measured, strict=True)
    }
    assert found == {f"q{i}": 6 + i for i in range(6) if f"q{i}" in found}
    assert all(
        r.messages == [{"role": "user", "content": t[0]}]
        for t, r in zip(texts(work.measured), work.measured, strict=True)
    )
    assert not set(map(str, texts(work.measured))) & set(map(str, texts(work.warmup)))
    # the same file with one conversation a line is the same study
    lines(tmp_path / "s.json", [*rows, ""])
    assert work == build_workload(
        spec(**sharegpt(model), output_len="recorded", num_prompts=5), tmp_path
    )


def test_the_whole_conversation_up_to_the_last_question(tmp_path: Path, model: Path) -> None:
    rows = [
        conversation(f"q{i} a b c", "yes indeed it is", f"more {i}", words(7)) for i in range(4)
    ]
    rows[0]["conversations"].insert(0, {"from": "system", "value": "be brief"})
    (tmp_path / "s.json").write_text(json.dumps(rows))
    work = build_workload(spec(**sharegpt(model, turns="all"), output_len="recorded"), tmp_path)
    everything = [*work.measured, *work.warmup]
    chat = next(r for r in everything if r.messages and r.messages[0]["role"] == "system")
    assert [m["role"] for m in chat.messages or ()] == ["system", "user", "assistant", "user"]
    assert texts([chat]) == [["be brief", "q0 a b c", "yes indeed it is", "more 0"]]
    assert {r.output_len for r in everything} == {7}


def test_what_cannot_be_sent_is_left_out_as_in_vllm_s_benchmark(
    tmp_path: Path, model: Path
) -> None:
    good = [conversation(words(4, f"g{i}"), words(4)) for i in range(4)]
    rows = [
        *good,
        conversation(words(3, "short"), words(9)),
        conversation(words(21, "long"), words(9)),
        conversation(words(4, "curt"), words(3)),
        conversation(words(12, "sum"), words(30)),
        conversation(words(4, "unanswered")),
        conversation("an answer without a question", first="gpt"),
        {"conversations": []},
        {"conversations": [{"from": "tool", "value": words(9)}]},
        good[0],  # twice
    ]
    (tmp_path / "s.json").write_text(json.dumps(rows))
    limits = {"max_input_len": 20, "max_total_len": 40}
    recorded = spec(**sharegpt(model, **limits), output_len="recorded")
    work = build_workload(recorded, tmp_path)
    kept = {t[0].split()[0] for t in texts([*work.measured, *work.warmup])}
    assert kept == {"g00", "g10", "g20", "g30"}
    with pytest.raises(UserError, match=r"s\.json has 4 conversations that fit, the study needs 5"):
        build_workload(recorded.model_copy(update={"num_prompts": 4}), tmp_path)
    # with a fixed length the recorded answers do not matter
    fixed = spec(**sharegpt(model, **limits), num_prompts=6)
    assert len(build_workload(fixed, tmp_path).measured) == 6


def test_more_conversations_leave_the_first_ones_alone(tmp_path: Path, model: Path) -> None:
    rows = [conversation(words(1 + i % 6, f"c{i}x"), words(9)) for i in range(60)]
    (tmp_path / "s.json").write_text(json.dumps(rows))

    def build(measured: int, warmup: int) -> Workload:
        changes = {"num_prompts": measured, "warmup_prompts": warmup}
        return build_workload(spec(**sharegpt(model), **changes), tmp_path)

    small, large = build(4, 2), build(15, 9)
    assert texts(large.measured)[:4] == texts(small.measured)
    assert texts(large.warmup)[:2] == texts(small.warmup)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('[\n{"conversations": []},\n{nope}]', "s.json, line 3: is not JSON"),
        ("[1]", "s.json, entry 1: must be an object with `conversations`"),
        ('{"conversations": []}\n\n{"dialogue": []}', "s.json, line 3: must be an object"),
        ('[{"conversations": [{"from": "human"}]}]', "entry 1: conversations[0]: needs `from`"),
    ],
)
def test_a_wrong_conversation_is_named_with_its_place(
    tmp_path: Path, model: Path, text: str, why: str
) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(UserError) as e:
        build_workload(spec(**sharegpt(model)), tmp_path)
    assert why in str(e.value)


def test_a_tokenizer_that_is_not_there(tmp_path: Path, model: Path) -> None:
    (tmp_path / "s.json").write_text("[]")
    (model / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"sharegpt.tokenizer: .* give a folder with a tokenizer"):
        build_workload(spec(**sharegpt(model)), tmp_path)


# -- a recorded log --------------------------------------------------------------------------------


def log(tmp_path: Path, times: Sequence[Any], **more: Any) -> None:
    rows = [{"timestamp": t, "prompt": f"p{i}", **more} for i, t in enumerate(times)]
    lines(tmp_path / "log.jsonl", rows)


def replay(**changes: Any) -> WorkloadSpec:
    base = {"replay": "log.jsonl", "max_concurrency": None}
    return spec(**{**base, **changes})


def test_a_log_is_sent_in_its_order_at_its_own_gaps(tmp_path: Path) -> None:
    log(tmp_path, [100.0, 103, 100.5, 104, 109])  # written when they ended
    work = build_workload(replay(), tmp_path)
    assert [r.prompt for r in work.measured] == ["p0", "p2", "p1"]
    assert work.arrivals == (0.0, 0.5, 3.0)
    assert [r.prompt for r in work.warmup] == ["p4"]
    fast = build_workload(replay(replay={"file": "log.jsonl", "speed": 2.0}), tmp_path)
    assert fast.arrivals == (0.0, 0.25, 1.5)
    assert fast.measured == work.measured
    assert build_workload(replay(seed=9), tmp_path) == work  # no chance in it


def test_dates_are_times_too(tmp_path: Path) -> None:
    dates = [
        "2026-01-31T23:59:59.500Z",
        "2026-02-01T00:00:00",  # without an offset: UTC
        "2026-02-01T01:00:02.25+01:00",
        "2026-02-01T00:00:09Z",
    ]
    log(tmp_path, dates)
    assert build_workload(replay(), tmp_path).arrivals == (0.0, 0.5, 2.75)


def test_a_log_s_own_lengths_and_repeated_prompts(tmp_path: Path) -> None:
    rows = [
        {"timestamp": i, "messages": [{"role": "user", "content": text}], "max_tokens": 5 + i}
        for i, text in enumerate(["a", "b", "a", "c", "b", "a"])
    ]
    lines(tmp_path / "log.jsonl", rows)
    work = build_workload(replay(output_len="recorded"), tmp_path)
    assert texts(work.measured) == [["a"], ["b"], ["a"]]  # as they were recorded
    assert lengths(work) == [5, 6, 7]
    assert texts(work.warmup) == [["c"]]  # the others would be in the prefix cache
    with pytest.raises(UserError, match=r"has 4 requests, .* the study needs 5"):
        build_workload(replay(warmup_prompts=2), tmp_path)


@pytest.mark.parametrize(
    ("stamp", "why"),
    [
        (None, "timestamp: must be seconds"),
        (True, "timestamp: must be seconds"),
        ("yesterday", "timestamp: is no ISO 8601 date"),
        ("1700000000", "timestamp: is no ISO 8601 date"),
        (1.7e12, "timestamp: must be in seconds, not in milliseconds"),
        ("2026-01-31T12:00:00Z", "timestamp: numbers and dates in one log"),
    ],
)
def test_a_wrong_time_is_named_with_its_line(tmp_path: Path, stamp: Any, why: str) -> None:
    log(tmp_path, [1, 2, stamp])
    with pytest.raises(UserError) as e:
        build_workload(replay(), tmp_path)
    assert f"log.jsonl, line 3: {why}" in str(e.value)


def test_a_log_makes_an_open_loop(tmp_path: Path) -> None:
    assert replay().open_loop
    assert replay().latency_origin == "intended"
    assert replay(latency_from="send").latency_origin == "send"
    assert not spec(prompts="p").open_loop


@pytest.mark.double
def test_a_trial_sends_the_log_at_its_times_with_its_lengths(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 10 + 0.2 * i, "prompt": f"p{i}", "output_len": 4 + i % 3} for i in range(8)
    ]
    lines(tmp_path / "log.jsonl", rows)
    study = write_study(
        tmp_path,
        workload={
            "replay": {"file": "log.jsonl", "speed": 2},
            "output_len": "recorded",
            "num_prompts": 6,
            "warmup_prompts": 2,
        },
    )
    done = autotune("run", str(study), "--trials", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    sql = "select intended, start, output_tokens from autotune_requests where phase = 'measure'"
    sent = query(tmp_path, f'{sql} order by "index"')
    assert [row[0] for row in sent] == pytest.approx([0.1 * i for i in range(6)])
    assert all(start >= intended for intended, start, _ in sent)  # type: ignore[operator]
    assert [row[2] for row in sent] == [4, 5, 6, 4, 5, 6]
    # the same study with another log is another one
    lines(tmp_path / "log.jsonl", rows[1:] + rows[:1] + [{**rows[0], "prompt": "new"}])
    again = autotune("run", str(study), "--trials", "2", cwd=tmp_path)
    assert again.returncode == 2
    assert "content of" in again.stderr


# -- the study file --------------------------------------------------------------------------------

STUDY = """
name: s
server: {{model: org/target, speculative: {{model: org/draft}}}}
space: {{num_speculative_tokens: {{type: int, low: 0, high: 3}}}}
workload: {{{source}, output_len: {length}, num_prompts: 3, max_concurrency: 2}}
"""


def study(tmp_path: Path, source: str, length: str = "8") -> LoadedStudy:
    return parse_study(STUDY.format(source=source, length=length), tmp_path / "s.yaml")


@pytest.mark.parametrize(
    ("source", "length", "why"),
    [
        ("prompts: a, replay: b", "8", "exactly one of `prompts`, `random`, `sharegpt` and"),
        ("random: {input_len: 8}", "recorded", "random prompts have no recorded answers"),
        ("replay: b, request_rate: 2", "8", "request_rate: the log has its own times"),
        ("replay: b, arrivals: constant", "8", "arrivals: the log has its own times"),
        ("replay: b, repeat: true", "8", "repeat: a log is sent once, at its own times"),
        ("random: {input_len: 8}, repeat: true", "8", "repeat: random prompts do not run short"),
        ("prompts: a, repeat: true", "8", "set enable-prefix-caching: false in server.flags"),
        ("replay: {file: b, speed: 0}", "8", "workload.replay.speed: "),
        ("replay: {file: b, sped: 2}", "8", "did you mean speed?"),
        ("replay: b.jsonl", "8", "workload.replay.file: "),
        ("sharegpt: b.json", "8", "does not exist; give a JSON file"),
        ("sharegpt: {turns: last}", "8", "workload.sharegpt.turns: "),
        ("prompts: a", "0", "workload.output_len: must be a whole number from 1 up, or recorded"),
    ],
)
def test_a_mistake_in_the_study_names_its_key(
    tmp_path: Path, source: str, length: str, why: str
) -> None:
    with pytest.raises(UserError) as e:
        study(tmp_path, source, length)
    assert why in str(e.value)
    assert "\n" not in str(e.value)


def test_a_conversation_is_counted_in_the_target_s_tokens(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text("[]")
    given = study(tmp_path, "sharegpt: b.json").spec.workload.sharegpt
    assert given is not None
    assert (given.tokenizer, given.turns) == ("org/target", "first")
    other = study(tmp_path, "sharegpt: {file: b.json, tokenizer: org/x}").spec.workload.sharegpt
    assert other is not None
    assert other.tokenizer == "org/x"


@pytest.mark.parametrize("source", ["prompts: b", "sharegpt: b", "replay: {file: b, speed: 2}"])
def test_the_fingerprint_is_of_the_file_s_content(tmp_path: Path, source: str) -> None:
    file, moved = tmp_path / "b", tmp_path / "c"
    file.write_text("[]")
    moved.write_text("[]")
    first = fingerprint(study(tmp_path, source))
    elsewhere = study(tmp_path, re.sub(r"\bb\b", "c", source))
    assert fingerprint(elsewhere) == first
    file.write_text("[ ]")
    assert fingerprint(study(tmp_path, source)) != first
    if "speed" in source:
        changed = study(tmp_path, source.replace("2", "3"))
        assert fingerprint(changed) != first


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*/*.db")), ids=lambda p: p.parent.name)
def test_studies_from_before_resume(tmp_path: Path, file: Path) -> None:
    database = tmp_path / "autotune.db"
    database.write_bytes(file.read_bytes())
    with opened(database, create=True) as store:
        names = store.study_names()
        for name in names:
            loaded, row = store.load_study(name)
            # its prompts are where they are in a checkout
            here = loaded.model_copy(update={"path": RESULTS.parent / f"{name}.yaml"})
            of_0_1 = fingerprint_of_0_1(loaded.spec, contents(loaded.spec, here.base))
            assert row.fingerprint in (of_0_1, fingerprint(here))
            maps = {p.setting["fingerprint"] for p in store.load_maps.points(name)}
            assert maps <= store.fingerprints(here)
            again = store.begin_study(here, seed=row.seed, wanted=row.wanted)
            assert again.fingerprint == fingerprint(here)
            # and what begins with the present fingerprint is the same study as before
            maps = {p.setting["fingerprint"] for p in store.load_maps.points(name)}
            assert maps <= {again.fingerprint}
            assert store.load_study(name)[0].spec == loaded.spec
    assert names
