"""One real vLLM server behind a wrapper: what it is sent, what it tells, and how it ends."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil
import pytest

from autotune.bench.client import run_phase
from autotune.bench.sample import Sample
from autotune.bench.sending import send
from autotune.bench.server_metrics import difference, scrape
from autotune.bench.workload import Request, Workload, build_workload
from autotune.engine.command import LaunchPlan
from autotune.engine.probe import probe
from autotune.errors import MeasureError
from autotune.serving.process_tree import port_is_free, processes_of
from autotune.serving.server import Server
from autotune.study.programs import API_SERVER
from autotune.study.workload import WorkloadSpec
from tests.studies import PATIENCE_S
from tests.test_real_server import SERVER, demo_server, shared_memory

pytestmark = pytest.mark.real

# Each has a length of its own, by which the server's counts of tokens tell them apart.
CONVERSATIONS = [
    [
        ("human", "What is the sea made of?"),
        ("gpt", "Water, most of it."),
        ("human", "And what else is there in it?"),
        ("gpt", "Salt, sand and fish."),
    ],
    [
        ("system", "Answer in one sentence."),
        ("user", "Why is a violin's bow rubbed with rosin before one plays on it?"),
        ("assistant", "Because horsehair alone would slip."),
        ("user", "And the strings?"),
        ("assistant", "They need none."),
    ],
    [
        ("human", "Name the largest moon of Saturn, and say who found it, when, where and how."),
        ("gpt", "Titan; Huygens, with a telescope."),
        ("human", "Is there an atmosphere? Which gases is it made of, and could I breathe it?"),
        ("gpt", "Of nitrogen; you could not."),
        ("human", "Thank you!"),
        ("gpt", "You are welcome."),
    ],
    [("tool", "A speaker that no chat knows."), ("gpt", "So nobody is asked anything here.")],
]
ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant"}


# It renices what it runs, and does not pass SIGTERM on.
WRAPPER = ("nice", "-n", "5", "/bin/sh", "-c", '"$@"; true', "sh")


class Wrapped(NamedTuple):
    """A real server behind a wrapper, and the shared memory that was there before."""

    server: Server
    plan: LaunchPlan
    before: set[str]

    def command_lines(self) -> list[str]:
        return [" ".join(p.cmdline()) for p in processes_of(self.server.launch_id)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wrapped]:
    """The server of all tests here; the last one stops it."""
    info = probe(SERVER)
    if info.device != "cpu":
        pytest.skip("the demo pair is for vLLM on a CPU")
    before, log = shared_memory(), tmp_path_factory.mktemp("server") / "log"
    command = (*WRAPPER, sys.executable, "-m", API_SERVER)
    spec = SERVER.model_copy(update={"command": command, "launch": "cold"})
    started = demo_server(log, uuid.uuid4().hex, info, spec=spec)
    try:
        started.start()
        assert started.wait_ready(lambda _: None) == info.version
        yield Wrapped(started, started.plan, before)
    finally:
        started.stop()


def tokens(server: Wrapped, what: str | list[dict[str, str]], *, special: bool = True) -> int:
    """Of a text or a chat, by the server's own tokenizer and template."""
    asked = {"prompt": what} if isinstance(what, str) else {"messages": what}
    answer = httpx.post(
        f"{server.plan.base_url}/tokenize",
        json={"model": server.plan.served_name, "add_special_tokens": special, **asked},
        headers={"Authorization": f"Bearer {server.plan.api_key}"},
        timeout=PATIENCE_S,
        trust_env=False,
    )
    return int(answer.raise_for_status().json()["count"])


def sent(server: Wrapped, spec: WorkloadSpec, folder: Path) -> tuple[Workload, tuple[Sample, ...]]:
    """The requests, and what became of them."""
    work = build_workload(spec, folder)
    return work, send(server.server, spec, work.measured, work.arrivals, "measure", lambda _: None)


def test_it_answers_to_its_key_which_nobody_sees(server: Wrapped) -> None:
    lines = " ".join(server.command_lines())
    assert "EngineCore" in lines  # the launch id is in every process
    assert server.plan.api_key not in lines
    ask = partial(
        httpx.post,
        f"{server.plan.base_url}/v1/chat/completions",
        json={
            "model": server.plan.served_name,
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "max_tokens": 8,
            "ignore_eos": True,
        },
        timeout=PATIENCE_S,
        trust_env=False,
    )
    assert ask().status_code == 401  # the key of this launch is asked for
    answer = ask(headers={"Authorization": f"Bearer {server.plan.api_key}"})
    assert answer.raise_for_status().json()["usage"]["completion_tokens"] == 8


@pytest.mark.parametrize("turns", ["first", "all"])
def test_conversations_are_sent_as_documented(tmp_path: Path, server: Wrapped, turns: str) -> None:
    rows = [
        {"conversations": [{"from": who, "value": text} for who, text in spoken]}
        for spoken in CONVERSATIONS
    ]
    (tmp_path / "talks.json").write_text(json.dumps(rows))
    spec = WorkloadSpec.model_validate(
        {
            "sharegpt": {"file": "talks.json", "turns": turns, "tokenizer": server.plan.model},
            "output_len": "recorded",
            "num_prompts": 3,
            "warmup_prompts": 0,
            "max_concurrency": 1,
        }
    )

    work, samples = sent(server, spec, tmp_path)

    expected = {}  # by the question that it begins with
    for spoken in CONVERSATIONS[:3]:
        chat = [{"role": ROLES.get(who, who), "content": text} for who, text in spoken]
        asks = [i for i, m in enumerate(chat) if m["role"] == "user"]
        last = asks[0] if turns == "first" else asks[-1]
        expected[chat[asks[0]]["content"]] = (chat[: last + 1], chat[last + 1]["content"])
    asked = [next(m for m in r.messages or () if m["role"] == "user") for r in work.measured]
    assert [s.index for s in samples] == [0, 1, 2]
    assert len({s.prompt_tokens for s in samples}) == 3
    for sample, first in zip(samples, asked, strict=True):
        chat, answer = expected.pop(first["content"])
        assert sample.prompt_tokens == tokens(server, chat)
        assert sample.output_tokens == tokens(server, answer, special=False)
    # one place: each was sent when the one before had ended
    assert all(a.end <= b.start for a, b in pairwise(samples))


def test_a_log_is_sent_at_its_times_with_its_lengths(tmp_path: Path, server: Wrapped) -> None:
    recorded = [  # seconds, what, tokens of the answer
        (0.0, "Once upon a time", 5),
        (0.5, [{"role": "user", "content": "Name three planets, please."}], 9),
        (1.25, "A haiku about rain, in the style of Bashō:", 14),
        (1.25, [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"},
                {"role": "user", "content": "Say that again, but in Italian."}], 6),
        (1.25, "Once upon a time", 11),  # again, as in real traffic
        (3.0, "One two three four five six seven eight nine", 3),
        (9.0, "What is not measured warms the server up", 4),
    ]  # fmt: skip
    rows = [
        {
            "timestamp": f"2026-01-31T12:00:{at:06.3f}Z",
            ("prompt" if isinstance(what, str) else "messages"): what,
            "output_len": length,
        }
        for at, what, length in recorded
    ]
    # as logs are, which are written when answers end; at one time, the order of the lines holds
    rows = [rows[i] for i in (6, 2, 3, 5, 4, 1, 0)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = WorkloadSpec.model_validate(
        {
            "replay": {"file": "log.jsonl", "speed": 2.0},
            "output_len": "recorded",
            "num_prompts": 6,
            "warmup_prompts": 1,
        }
    )

    work, samples = sent(server, spec, tmp_path)

    measured = recorded[:6]
    assert [s.index for s in samples] == list(range(6))
    assert [s.intended for s in samples] == pytest.approx([at / 2 for at, _, _ in measured])
    assert [s.output_tokens for s in samples] == [length for _, _, length in measured]
    assert [s.prompt_tokens for s in samples] == [tokens(server, what) for _, what, _ in measured]
    # none before its time, in the log's order, and none waits for another one's answer
    assert all(s.start >= s.intended for s in samples)
    assert [s.start for s in samples] == sorted(s.start for s in samples)
    burst = samples[2:5]
    assert max(s.start for s in burst) < min(s.end for s in burst)
    assert [(r.prompt, r.output_len) for r in work.warmup] == [(recorded[6][1], 4)]


def test_what_has_no_room_is_said_with_the_server_s_reason(tmp_path: Path, server: Wrapped) -> None:
    row = {"timestamp": 0, "prompt": "word " * 1100, "output_len": 4}
    (tmp_path / "log.jsonl").write_text(json.dumps(row))
    spec = WorkloadSpec.model_validate(
        {"replay": "log.jsonl", "output_len": "recorded", "num_prompts": 1, "warmup_prompts": 0}
    )
    with pytest.raises(MeasureError, match=r"1 of 1 requests failed: HTTP 400.*1024"):
        sent(server, spec, tmp_path)


def test_drafts_are_told_over_both_apis(server: Wrapped) -> None:
    """What the requests told must be what the server itself counted."""
    load = WorkloadSpec.model_validate(
        {"random": {"input_len": 8}, "output_len": 12, "num_prompts": 2, "max_concurrency": 2}
    )
    plan, chat = server.plan, [{"role": "user", "content": "Name the planets."}]
    before = scrape(plan.base_url, plan.api_key)
    done = asyncio.run(
        run_phase(
            plan.base_url,
            plan.served_name,
            [Request(0, list(range(300, 308)), None), Request(1, None, chat)],
            [0.0, 0.0],
            load,
            api_key=plan.api_key,
            phase="measure",
            hang_timeout_s=PATIENCE_S,
            on_done=lambda _: None,
        )
    )
    counted = difference(before, scrape(plan.base_url, plan.api_key))
    told = [s.drafts for s in done.samples]
    assert [s.status for s in done.samples] == ["ok", "ok"]
    assert None not in told
    assert all(len(d.by_step) == d.steps for d in told if d)
    assert sum(d.steps for d in told if d) == counted.drafts
    assert sum(d.accepted for d in told if d) == counted.accepted_tokens
    assert sum(d.drafted or 0 for d in told if d) == counted.draft_tokens


def test_behind_a_wrapper_it_ends_itself(server: Wrapped) -> None:
    """Nothing needs SIGKILL or stays in memory, although the shell does not pass SIGTERM on."""
    own = [p for p in server.server.processes() if "supervisor.py" not in " ".join(p.cmdline())]
    assert any("EngineCore" in line for line in server.command_lines())
    assert {p.nice() for p in own} == {psutil.Process().nice() + 5}
    report = server.server.stop()
    assert report.killed == 0, server.server.log_tail()
    assert server.command_lines() == []
    assert port_is_free(server.plan.port)
    assert shared_memory() <= server.before
