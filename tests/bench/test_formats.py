"""Files as other tools write them: taken, or refused in one line that says what they are."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.bench.data_time import span_text
from autotune.bench.datasets import Conversations, Log, read_log, read_prompts
from autotune.bench.workload import Workload, build_workload
from autotune.errors import UserError
from autotune.study.workload import ShareGptPrompts, WorkloadSpec
from tests.fuzzing import fuzz
from tests.studies import autotune, query, write_study

CALLS = [
    {
        "id": "call_7",
        "type": "function",
        "function": {"name": "lookup", "arguments": '{"city": "Graz"}'},
    }
]
RESULT = {"role": "tool", "tool_call_id": "call_7", "content": "12 degrees"}
TOOLS = [{"type": "function", "function": {"name": "lookup", "parameters": {"type": "object"}}}]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def jsonl(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def spec(**changes: Any) -> WorkloadSpec:
    base = {"output_len": 8, "num_prompts": 1, "warmup_prompts": 0, "max_concurrency": 2}
    return WorkloadSpec.model_validate({**base, **changes})


def replay(file: Path, **changes: Any) -> WorkloadSpec:
    given = {"output_len": "recorded", "max_concurrency": None, "replay": str(file), **changes}
    return spec(**given)


def words(text: str) -> int:
    return len(text.split())


def conversations(path: Path, **changes: Any) -> Conversations:
    given = ShareGptPrompts.model_validate({"file": path, "min_len": 1, **changes})
    return Conversations(path, given, None, words)


def refused(run: Any) -> str:
    with pytest.raises(UserError) as e:
        run()
    assert "\n" not in str(e.value)
    return str(e.value)


# -- prompts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("calls", [{"tool_calls": CALLS}, {"function_call": {"name": "lookup"}}])
@pytest.mark.parametrize("content", [{"content": None}, {}])
def test_a_call_of_a_tool_needs_no_text(tmp_path: Path, calls: Any, content: Any) -> None:
    chat = [user("How warm is it?"), {"role": "assistant", **content, **calls}, RESULT]
    (entry,) = read_prompts(jsonl(tmp_path / "p.jsonl", [{"messages": chat}]), recorded=False)
    assert entry.messages == chat


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None},
        {"role": "assistant", "tool_calls": []},
        {"role": "user", "tool_calls": CALLS},
        {"role": "assistant", "content": 7, "tool_calls": CALLS},
    ],
)
def test_another_message_without_text_is_wrong(tmp_path: Path, message: Any) -> None:
    file = jsonl(tmp_path / "p.jsonl", [{"messages": [user("Why?"), message]}])
    why = refused(lambda: read_prompts(file, recorded=False))
    assert why.endswith("line 1: messages[1].content: must be a text, or a list of parts")


def test_tools_are_sent_if_the_study_says_so_and_are_noted_otherwise(tmp_path: Path) -> None:
    rows = [{"messages": [user("How warm is it?")], "tools": TOOLS}, {"messages": [user("Why?")]}]
    file = jsonl(tmp_path / "p.jsonl", rows)
    left = build_workload(spec(prompts=file, num_prompts=2), tmp_path)
    assert [r.tool_keys for r in left.measured] == [{}, {}]
    assert [n for n in left.notes if "1 of 2 chats have `tools`, which are not sent" in n]
    sent = build_workload(spec(prompts=file, num_prompts=2, tools=True), tmp_path)
    keys = {r.messages[0]["content"]: r.tool_keys for r in sent.measured if r.messages}
    assert keys == {"How warm is it?": {"tools": TOOLS, "tool_choice": "none"}, "Why?": {}}
    assert sent.notes == ()


def batch(url: str, body: Any, **more: Any) -> dict[str, Any]:
    return {"custom_id": "request-1", "method": "POST", "url": url, "body": body, **more}


def test_the_requests_of_an_openai_batch_file_are_in_its_bodies(tmp_path: Path) -> None:
    rows = [
        batch("/v1/chat/completions", {"model": "m", "messages": [user("Why?")], "max_tokens": 31}),
        batch("/v1/completions", {"model": "m", "prompt": "Once", "max_completion_tokens": 7}),
    ]
    chat, text = read_prompts(jsonl(tmp_path / "p.jsonl", rows), recorded=True)
    assert (chat.messages, chat.output_len) == ([user("Why?")], 31)
    assert (text.prompt, text.output_len) == ("Once", 7)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (batch("/v1/embeddings", {"model": "m", "input": "x"}), "url: is /v1/embeddings; of an"),
        (batch("/v1/responses", {"model": "m", "input": "x"}), "url: is /v1/responses; of an"),
        (batch("/v1/completions", {"prompt": ["a", "b"]}), "prompt: must be a text"),
        (
            {"custom_id": "a", "response": {"body": {}}, "error": None},
            "result of an OpenAI batch: give the file with its requests",
        ),
        ({"custom_id": "a", "params": {"messages": []}}, "as an Anthropic batch"),
        ({"conversations": []}, "as ShareGPT: give the file as workload.sharegpt"),
        ({"conversation_id": "a", "conversation": []}, "give the file as workload.sharegpt"),
        ({"text": "Once"}, "it has `text`: write `prompt` (sent as it is)"),
        ({"instruction": "Add", "input": "1 2"}, "it has `instruction` and `input`: write"),
        ({"turns": []}, "turns: must begin with a text"),
        ({"id": 1, "score": 2}, "needs exactly one of `messages` and `prompt`; it has `id`, "),
        ({}, "it has no key"),
        ({"input_length": 5, "output_length": 6}, "trace of lengths, without text: give the file"),
        (["a"], "must be an object with `messages` or `prompt`"),
    ],
)
def test_a_row_of_another_kind_is_named(tmp_path: Path, row: Any, why: str) -> None:
    file = jsonl(tmp_path / "p.jsonl", [{"prompt": "first"}, row])
    text = refused(lambda: read_prompts(file, recorded=False))
    assert "p.jsonl, line 2: " in text
    assert why in text


@pytest.mark.parametrize(
    "counts",
    [
        {"prompt_tokens_count": 5, "output_tokens_count": 12},  # GuideLLM
        {"input_tokens_count": 5, "completion_tokens_count": 12},
        {"output_tokens": 12},  # vLLM's custom dataset
        {"output_tokens": 12.0},  # the same, written by pandas
        {"prompt_tokens": 5, "completion_tokens": 12},  # a proxy's log
        {"response": {"usage": {"completion_tokens": 12}}},
    ],
)
def test_lengths_of_answers_have_many_names(tmp_path: Path, counts: Any) -> None:
    file = jsonl(tmp_path / "p.jsonl", [{"prompt": "What is it?", **counts}])
    (entry,) = read_prompts(file, recorded=True)
    assert (entry.prompt, entry.output_len) == ("What is it?", 12)


@pytest.mark.parametrize(
    "row",
    [
        {"question_id": 4, "category": "math", "turns": ["What is 2 + 2?", "And 3 + 3?"]},
        {"prompt_id": 4, "category": "math", "prompt": ["What is 2 + 2?", "And 3 + 3?"]},
        {"question": "What is 2 + 2?", "answer": "4"},
        {"chat_messages": [user("What is 2 + 2?")]},
        {"prompt": [user("What is 2 + 2?")]},
        {"prompt": None, "messages": [user("What is 2 + 2?")]},  # one table for both kinds
        {"instruction": "What is 2 + 2?", "input": "", "output": "4"},
        {"instruction": "What is 2 + 2?", "context": "", "response": "4"},
    ],
)
def test_a_question_is_asked_as_a_chat(tmp_path: Path, row: Any) -> None:
    (entry,) = read_prompts(jsonl(tmp_path / "p.jsonl", [row]), recorded=False)
    assert entry.messages == [user("What is 2 + 2?")]


def test_a_json_list_of_prompts(tmp_path: Path) -> None:
    rows = [{"prompt": "one"}, {"prompt": "two"}]
    (tmp_path / "p.json").write_text(json.dumps(rows, indent=2))
    assert [e.prompt for e in read_prompts(tmp_path / "p.json", recorded=False)] == ["one", "two"]
    (tmp_path / "p.json").write_text(json.dumps([*rows, {"prompt": ""}]))
    why = refused(lambda: read_prompts(tmp_path / "p.json", recorded=False))
    assert "p.json, entry 3: prompt: must be a text" in why


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (gzip.compress(b"{}", mtime=0), "is compressed (gzip); unpack it with gunzip"),
        (b"\x28\xb5\x2f\xfd\0\0", "is compressed (zstd); unpack it with unzstd"),
        (b"PAR1\x15\x04", "is Parquet, as data sets of the hub are; convert it, such as with"),
        (b"ARROW1\0\0", "is Arrow; convert it"),
        (b"version https://git-lfs.github.com/spec/v1\noid x", "is a pointer of Git LFS"),
        (b"<!DOCTYPE html>", "is a web page; download the file itself"),
        (b"Write a poem.\nWrite a song.\n", "line 1: is plain text, not JSON; write one object"),
        (b"id,prompt\n1,Hello\n", "line 1: is not JSON: "),
        (b'{\n "data": [],\n "v": 1\n}\n', "is one JSON object over several lines (with `data`"),
        (b'{\n "prompt": "a"\n}\n{\n "prompt": "b"\n}\n', "begins an object of several lines"),
        (b"Timestamp,Model,Request tokens,Response tokens\n1,m,5,6\n", "give the file as workload"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "p.jsonl").write_bytes(content)
    assert why in refused(lambda: read_prompts(tmp_path / "p.jsonl", recorded=False))


def test_chats_that_end_with_the_answer_are_noted(tmp_path: Path) -> None:
    rows = [{"messages": [user(f"q{i}"), *([assistant("a")] if i else [])]} for i in range(3)]
    file = jsonl(tmp_path / "p.jsonl", rows)
    work = build_workload(spec(prompts=file, num_prompts=3), tmp_path)
    (note,) = work.notes
    assert "2 of 3 chats end with a message of the assistant, which is sent as part of" in note
    assert "workload.sharegpt with `turns: all`" in note
    # and what the note recommends leaves the answer out, and counts it
    found = conversations(file, turns="all")
    assert [found.entry(i) for i in range(len(found))] == [
        read_prompts(jsonl(file, [{"messages": [user(f"q{i}")], "max_tokens": 1}]), recorded=True)[
            0
        ]
        for i in (1, 2)
    ]


# -- conversations ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [user("Why is it so blue?"), assistant("It scatters light.")]},
        {"conversation_id": "a", "conversation": [user("Why is it so blue?"), assistant("b c d")]},
        {"conversations": [{"role": "user", "value": "Why is it so blue?"}, assistant("b c d")]},
        {"messages": [user("Why is it so blue?"), assistant("b c d"), user("And at night?")]},
        {"conversation": [{"human": "Why is it so blue?", "assistant": "b c d"}]},
        {
            "conversations": [
                {"from": "Human", "value": "Why is it so blue?"},
                {"from": "model", "value": "b c d"},
            ]
        },
    ],
)
def test_conversations_have_many_keys(tmp_path: Path, row: Any) -> None:
    found = conversations(jsonl(tmp_path / "s.jsonl", [{"id": "x", **row}]))
    entry = found.entry(0)
    assert entry is not None
    assert (entry.messages, entry.output_len) == ([user("Why is it so blue?")], 3)


def test_turns_that_cannot_be_counted_are_left_out_and_the_reasons_said(tmp_path: Path) -> None:
    called = [user("Warm?"), {"role": "assistant", "content": None, "tool_calls": CALLS}, RESULT]
    picture = [{"role": "user", "content": [{"type": "image_url"}]}]
    rows = [{"messages": chat} for chat in (called, picture, [assistant("b")], [user("c")])]
    found = conversations(jsonl(tmp_path / "s.jsonl", rows))
    assert len(found) == 0
    assert found.left_out == {
        "a speaker or a turn that is no text": 2,
        "no question": 1,
        "no answer": 1,
    }


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "a"}, "a file of prompts or questions is given as workload.prompts"),
        ({"turns": ["a"]}, "a file of prompts or questions is given as workload.prompts"),
        ({"conversation": ["a"]}, "conversation[0]: needs `from` and `value`, or `role` and"),
        ({"messages": [{"speaker": "a"}]}, "messages[0]: needs `from` and `value`, or `role` and"),
    ],
)
def test_another_file_given_as_conversations(tmp_path: Path, row: Any, why: str) -> None:
    assert why in refused(lambda: conversations(jsonl(tmp_path / "s.jsonl", [row])))


# -- traces of lengths -----------------------------------------------------------------------------


def mooncake(rows: int, **more: Any) -> list[dict[str, Any]]:
    """Requests every 1.5 s; all share a block of 512 tokens, and pairs a second one."""
    return [
        {
            "timestamp": 1500 * i,
            "input_length": 1030 + i,
            "output_length": 4 + i % 3,
            "hash_ids": [0, 100 + i // 2, 200 + i],
            **more,
        }
        for i in range(rows)
    ]


def prompts_of(work: Workload) -> list[list[int]]:
    found = [r.prompt for r in (*work.measured, *work.warmup)]
    assert all(isinstance(p, list) for p in found)
    return [p for p in found if isinstance(p, list)]


def test_a_mooncake_trace_is_replayed_in_milliseconds_with_its_shared_blocks(
    tmp_path: Path,
) -> None:
    file = jsonl(tmp_path / "log.jsonl", mooncake(6))
    work = build_workload(replay(file, num_prompts=4, warmup_prompts=1), tmp_path)
    assert work.arrivals == (0.0, 1.5, 3.0, 4.5)
    assert [r.output_len for r in work.measured] == [4, 5, 6, 4]
    prompts = prompts_of(work)
    assert [len(p) for p in prompts] == [1030, 1031, 1032, 1033, 1035]
    assert all(p[:512] == prompts[0][:512] for p in prompts)
    assert prompts[0][:1024] == prompts[1][:1024]
    assert prompts[2][512:1024] != prompts[1][512:1024]
    assert len({tuple(p) for p in prompts}) == 5
    assert all(256 <= token < 32000 for p in prompts for token in p)
    for text in ("taken as milliseconds", "stands for 512 tokens", "1038 tokens", "random token"):
        assert any(text in note for note in work.notes), text


def test_the_prompts_of_a_trace_depend_on_seed_and_row_only(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "log.jsonl", mooncake(9))

    def build(**changes: Any) -> Workload:
        return build_workload(replay(file, **changes), tmp_path)

    few = build(num_prompts=3, warmup_prompts=1)
    assert few == build(num_prompts=3, warmup_prompts=1)
    many = build(num_prompts=5, warmup_prompts=3)
    assert many.measured[:3] == few.measured
    assert many.warmup[:1] == few.warmup
    assert build(num_prompts=3, warmup_prompts=1, seed=1).measured != few.measured
    narrow = build(replay={"file": file, "vocab_low": 3, "vocab_high": 5})
    assert {token for p in prompts_of(narrow) for token in p} == {3, 4}


def test_the_unit_in_the_study_goes_before_that_of_the_format(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "log.jsonl", mooncake(2))
    log = read_log(file, recorded=True, unit="s")
    assert [r.at for r in log] == [0, 1500]
    assert not any("milliseconds" in note for note in log.notes)


def test_blocks_are_as_long_as_the_lengths_say(tmp_path: Path) -> None:
    def log(*rows: dict[str, Any]) -> Log:
        times = [{"timestamp": 0.5 * i, "output_length": 5, **r} for i, r in enumerate(rows)]
        return read_log(jsonl(tmp_path / "log.jsonl", times), recorded=True)

    qwen = {"chat_id": 3, "parent_chat_id": -1, "type": "text", "turn": 1}
    shape = log({**qwen, "input_length": 33, "hash_ids": [7, 8, 9]})[0].entry.shape
    assert shape is not None
    assert (shape.block_size, shape.blocks) == (16, (0, 1, 2))
    # no block size agrees with both rows: what the blocks do not cover is each request's own
    odd = log({"input_length": 5000, "hash_ids": [1]}, {"input_length": 30, "hash_ids": [1, 2]})
    sizes = {r.entry.shape.block_size for r in odd if r.entry.shape}
    assert sizes == {512}
    work = build_workload(replay(tmp_path / "log.jsonl", num_prompts=2), tmp_path)
    assert [len(p) for p in prompts_of(work)] == [5000, 30]


def test_burstgpt_is_read_from_its_csv(tmp_path: Path) -> None:
    file = tmp_path / "burst.csv"
    file.write_text(
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\r\n"
        "5,ChatGPT,40,18,58,Conversation log\r\n"
        "45,GPT-4,60,0,60,Conversation log\r\n"  # a request that failed
        "405.5,GPT-4,7,21,28,API log\r\n"
    )
    log = read_log(file, recorded=True)
    assert [(r.at, r.entry.output_len) for r in log] == [(5, 18), (405.5, 21)]
    assert log.notes == ("requests without prompt or answer tokens are left out: 1 of 3",)
    work = build_workload(replay(file, num_prompts=2), tmp_path)
    assert [len(p) for p in prompts_of(work)] == [40, 7]


def test_azure_is_read_from_its_csv(tmp_path: Path) -> None:
    file = tmp_path / "azure.csv"
    file.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,48,10\n"
        "2023-11-16 18:17:04.2299600,30,9\n"
        '"2023-11-16 18:17:04.4799600+00:00",20,8\n'
    )
    work = build_workload(replay(file, num_prompts=3), tmp_path)
    assert work.arrivals == pytest.approx((0, 0.25, 0.5))
    assert [r.output_len for r in work.measured] == [10, 9, 8]
    fixed = build_workload(replay(file, num_prompts=3, output_len=6), tmp_path)
    assert [r.output_len for r in fixed.measured] == [None] * 3


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_spreadsheets_write_other_delimiters(tmp_path: Path, delimiter: str) -> None:
    rows = ["TIMESTAMP,ContextTokens,GeneratedTokens", "0.25,48,10", "0.75,30,9"]
    (tmp_path / "t.csv").write_text("\n".join(r.replace(",", delimiter) for r in rows) + "\n")
    found = read_log(tmp_path / "t.csv", recorded=True)
    assert [(r.at, r.entry.output_len) for r in found] == [(0.25, 10), (0.75, 9)]


@pytest.mark.parametrize(
    "head",
    [
        "arrived_at,num_prefill_tokens,num_decode_tokens",  # Vidur
        "arrival_timestamp,prompt_size,token_size",  # SplitWise
        "timestamp,input_tokens,output_tokens",
    ],
)
def test_traces_of_simulators_are_read_from_their_csv(tmp_path: Path, head: str) -> None:
    (tmp_path / "t.csv").write_text(f"request_id,{head}\n0,0.25,9,5\n1,1.75,8,4\n")
    work = build_workload(replay(tmp_path / "t.csv", num_prompts=2), tmp_path)
    assert work.arrivals == (0.0, 1.5)
    assert [len(p) for p in prompts_of(work)] == [9, 8]
    assert [r.output_len for r in work.measured] == [5, 4]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a,b\n1,2\n", "is CSV with the columns a, b; of CSV only traces of lengths are read"),
        ("prompt,input_tokens,output_tokens\n", "is CSV with the columns prompt, input_tokens"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16,5\n", "line 2: has 2 of 3 columns"),
        ("timestamp,prompt_tokens,completion_tokens\n1,x,2\n", "line 2: prompt_tokens: must be"),
        ("timestamp,prompt_tokens,completion_tokens\n1,5,-2\n", "completion_tokens: must be"),
        ("timestamp,prompt_tokens,completion_tokens\nnoon,5,2\n", "timestamp: is no ISO 8601"),
        ('timestamp,input_len,output_len\n"1' + "0" * 200_000, "line 2: is no CSV: field larger"),
    ],
)
def test_csv_that_cannot_be_read(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    assert why in refused(lambda: read_log(tmp_path / "t.csv", recorded=True))


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"input_length": 5}, "output_length: is missing"),
        ({"input_length": 5.5, "output_length": 5}, "input_length: must be a whole number"),
        ({"input_length": 5, "output_length": 5, "hash_ids": 3}, "hash_ids: must be a list"),
        ([], "must be an object with `input_length`"),
    ],
)
def test_a_wrong_row_of_a_trace(tmp_path: Path, row: Any, why: str) -> None:
    row = {"timestamp": 9000, **row} if isinstance(row, dict) else row
    file = jsonl(tmp_path / "log.jsonl", [*mooncake(1), row])
    assert f"log.jsonl, line 2: {why}" in refused(lambda: read_log(file, recorded=True))


def test_a_trace_of_too_many_tokens_is_refused_before_any_is_drawn(tmp_path: Path) -> None:
    rows = [{"timestamp": i, "input_len": 2 * 10**7, "output_len": 5} for i in range(3)]
    file = jsonl(tmp_path / "log.jsonl", rows)
    why = refused(lambda: build_workload(replay(file, num_prompts=3), tmp_path))
    assert "its first 3 requests have 60000000 prompt tokens, more than 50000000" in why


def test_large_files_are_read_and_only_what_is_sent_is_drawn(tmp_path: Path) -> None:
    file = tmp_path / "azure.csv"
    lines = [
        f"2024-05-10 {i // 3600:02d}:{i // 60 % 60:02d}:{i % 60:02d}+00:00,4000,90"
        for i in range(60_000)
    ]
    file.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(lines))
    work = build_workload(replay(file, num_prompts=20, warmup_prompts=2), tmp_path)
    assert work.arrivals == tuple(range(20))
    assert [len(p) for p in prompts_of(work)] == [4000] * 22  # all of them would be 240 million
    rows = [
        batch("/v1/chat/completions", {"messages": [user(f"q{i}")], "max_tokens": 9})
        for i in range(10_000)
    ]
    assert len(read_prompts(jsonl(tmp_path / "p.jsonl", rows), recorded=True)) == 10_000
    talks = [{"conversation": [user(f"q{i} b c"), assistant("x y")]} for i in range(10_000)]
    assert len(conversations(jsonl(tmp_path / "s.jsonl", talks))) == 10_000
    assert len(read_log(jsonl(tmp_path / "m.jsonl", mooncake(10_000)), recorded=True)) == 10_000


# -- times -----------------------------------------------------------------------------------------


def texts(tmp_path: Path, times: Sequence[Any]) -> Path:
    rows = [{"timestamp": t, "prompt": f"p{i}"} for i, t in enumerate(times)]
    return jsonl(tmp_path / "log.jsonl", rows)


def test_whole_numbers_that_are_hardly_seconds_need_their_unit(tmp_path: Path) -> None:
    file = texts(tmp_path, [360 * i for i in range(21)])
    why = refused(lambda: read_log(file, recorded=False))
    assert "21 requests in 2.0 h if the numbers are seconds, in 7.2 s if they are mill" in why
    assert "write workload.replay.timestamp_unit: s or ms" in why
    for unit, second in (("s", 360.0), ("ms", 0.36), ("us", 36e-5), ("ns", 36e-8)):
        given = spec(
            replay={"file": file, "timestamp_unit": unit}, num_prompts=2, max_concurrency=None
        )
        assert build_workload(given, tmp_path).arrivals == pytest.approx((0, second))


@pytest.mark.parametrize(
    "times",
    [
        list(range(20)),
        [0.5 + 360 * i for i in range(20)],  # nobody writes parts of milliseconds
        [1_760_000_000 + 360 * i for i in range(20)],  # since 1970: seconds
        [5, 5, 5],
        [7],
    ],
)
def test_other_numbers_are_seconds(tmp_path: Path, times: list[float]) -> None:
    assert [r.at for r in read_log(texts(tmp_path, times), recorded=False)] == times


def test_a_mooncake_trace_that_is_hardly_in_milliseconds(tmp_path: Path) -> None:
    rows = [{**row, "timestamp": i // 9} for i, row in enumerate(mooncake(90))]
    why = refused(lambda: read_log(jsonl(tmp_path / "log.jsonl", rows), recorded=True))
    assert "90 requests in 9 s if the numbers are seconds, in 0.009 s if they are mill" in why


@pytest.mark.parametrize(
    ("stamp", "unit"), [(1.7e12, "ms"), (1_700_000_000_000_000, "us"), (1.7e18, "ns")]
)
def test_a_number_since_1970_names_its_unit(tmp_path: Path, stamp: float, unit: str) -> None:
    file = texts(tmp_path, [stamp])
    why = refused(lambda: read_log(file, recorded=False))
    assert why.endswith(f"if it is since 1970, write workload.replay.timestamp_unit: {unit}")
    (only,) = read_log(file, recorded=False, unit=unit)  # type: ignore[arg-type]
    assert only.at == pytest.approx(1.7e9)


@pytest.mark.parametrize("key", ["startTime", "@timestamp", "created_at", "ts"])
def test_a_missing_time_is_said_and_what_the_line_has_instead(tmp_path: Path, key: str) -> None:
    file = jsonl(tmp_path / "log.jsonl", [{key: "2026-01-31T12:00:00Z", "prompt": "a"}])
    why = refused(lambda: read_log(file, recorded=False))
    assert f"line 1: timestamp: is missing; the line has `{key}`: write its value as" in why
    jsonl(file, [{"prompt": "a"}])
    assert refused(lambda: read_log(file, recorded=False)).endswith("timestamp: is missing")


def test_a_trial_of_hours_is_noted(tmp_path: Path) -> None:
    file = texts(tmp_path, [0.5, 7200.5])
    slow = spec(replay=str(file), num_prompts=2, max_concurrency=None)
    (note,) = build_workload(slow, tmp_path).notes
    assert "its first 2 requests take 2.0 h in every trial; a larger workload.replay.speed" in note
    fast = spec(replay={"file": file, "speed": 9}, num_prompts=2, max_concurrency=None)
    assert build_workload(fast, tmp_path).notes == ()


def test_spans_in_words() -> None:
    spans = [0.009, 19, 300, 18720, 400_000]
    assert [span_text(s) for s in spans] == ["0.009 s", "19 s", "5.0 min", "5.2 h", "4.6 days"]


# -- through the command line ----------------------------------------------------------------------


@pytest.mark.double
def test_a_trial_replays_a_mooncake_trace(tmp_path: Path) -> None:
    rows = [{**r, "timestamp": 200 * i} for i, r in enumerate(mooncake(8))]
    jsonl(tmp_path / "log.jsonl", rows)
    workload = {"replay": {"file": "log.jsonl", "speed": 2}, "output_len": "recorded"}
    study = write_study(tmp_path, workload={**workload, "num_prompts": 6, "warmup_prompts": 2})
    done = autotune("run", str(study), "--trials", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the prompts are random token ids" in done.stdout + done.stderr
    sent = query(
        tmp_path,
        "select intended, start, prompt_tokens, output_tokens from autotune_requests "
        "where phase = 'measure' order by \"index\"",
    )
    assert [row[0] for row in sent] == pytest.approx([0.1 * i for i in range(6)])
    assert all(start >= intended for intended, start, *_ in sent)  # type: ignore[operator]
    assert [row[2:] for row in sent] == [(1030 + i, 4 + i % 3) for i in range(6)]


def test_doctor_reads_the_file_too(tmp_path: Path) -> None:
    from autotune.cli.doctor import _load
    from autotune.study.files import load_study

    jsonl(tmp_path / "p.jsonl", [{"messages": [user(f"q{i}"), assistant("a")]} for i in range(400)])
    workload = {"prompts": "p.jsonl", "output_len": 8, "num_prompts": 200, "max_concurrency": 2}
    loaded = load_study(str(write_study(tmp_path, workload=workload)))
    notes = [check.text for check in _load(loaded) if check.ok is None]
    assert any("200 of 200 chats end with a message of the assistant" in note for note in notes)
    (tmp_path / "p.jsonl").write_text("Write a poem.\n")
    (check,) = _load(loaded)
    assert check.ok is False
    assert "is plain text, not JSON" in check.text


# -- anything --------------------------------------------------------------------------------------

KEYS = st.sampled_from(
    [
        *("messages", "prompt", "body", "url", "turns", "conversations", "conversation", "role"),
        *("content", "tool_calls", "from", "value", "timestamp", "input_length", "output_length"),
        *(
            "hash_ids",
            "max_tokens",
            "usage",
            "response",
            "params",
            "tools",
            "question",
            "startTime",
        ),
    ]
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["user", "assistant", "human", "/v1/completions", "2026-01-31", "a b"])
    | st.text(max_size=5)
)
VALUES = st.recursive(
    LEAVES, lambda x: st.lists(x, max_size=3) | st.dictionaries(KEYS, x, max_size=4), max_leaves=12
)
ROWS = st.lists(st.dictionaries(KEYS, VALUES, max_size=5) | VALUES, max_size=4)


@given(rows=ROWS, recorded=st.booleans(), as_list=st.booleans())
@fuzz(300)
def test_anything_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], recorded: bool, as_list: bool
) -> None:
    file = tmp_path_factory.mktemp("any") / "any.jsonl"
    file.write_text(json.dumps(rows) if as_list else "\n".join(map(json.dumps, rows)))
    _read_all(file, recorded)


@given(content=st.binary(max_size=60) | st.text("{}[],\n\"'0123456789aptimes_", max_size=60))
@fuzz(300)
def test_any_bytes_are_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes | str
) -> None:
    file = tmp_path_factory.mktemp("any") / "any.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    _read_all(file, True)


def _read_all(file: Path, recorded: bool) -> None:
    """Read a file in each way; anything but a result or one line for the user fails."""

    def talks() -> list[Any]:
        found = conversations(file)
        return [found.entry(i) for i in range(len(found))]

    ways: list[Callable[[], list[Any]]] = [
        lambda: read_prompts(file, recorded=recorded),
        lambda: list(read_log(file, recorded=recorded)),
        talks,
    ]
    for read in ways:
        try:
            lines = [repr(read())]
        except UserError as e:
            lines = str(e).split("\n")
        assert len(lines) == 1
