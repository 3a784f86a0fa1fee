"""The list of vLLM's own error messages: each has a label that can be counted, and one identity."""

from __future__ import annotations

import json

import pytest

from autotune.errors import FailureKind
from benchmarks import failure_logs, failure_messages
from benchmarks.failure_scope import SCOPES, scope_of

VERSIONS = sorted(p.stem for p in failure_messages.DATA.glob("*.json") if p.stem != "scores")
LABELS = {str(k) for k in FailureKind} | {"machine"}


@pytest.mark.parametrize("version", VERSIONS)
def test_entries_are_labeled_once(version: str) -> None:
    entries = failure_messages.read(version)["entries"]
    ids = [e["id"] for e in entries]
    assert len(ids) == len(set(ids))
    for entry in entries:
        assert {entry["kind"], *entry["also"]} <= LABELS | {None}, entry
        assert (entry["kind"] is None) == bool(entry["unclear"]), entry
        assert entry["kind"] not in entry["also"], entry


@pytest.mark.parametrize("version", VERSIONS)
def test_identities_and_places_agree(version: str) -> None:
    for entry in failure_messages.read(version)["entries"]:
        place = (entry["file"], entry["function"], entry["template"])
        assert entry["id"] == failure_messages.identity(*place)
        assert scope_of(entry["file"]) is not None
        assert entry["process"] == failure_logs.process_of(entry["step"])


@pytest.mark.parametrize("version", VERSIONS)
def test_doubts_are_few(version: str) -> None:
    entries = failure_messages.read(version)["entries"]
    assert sum(e["kind"] is None for e in entries) < len(entries) / 10


@pytest.mark.parametrize("version", VERSIONS)
def test_each_entry_becomes_a_log_that_shows_its_text(version: str) -> None:
    data = failure_messages.read(version)
    for entry in data["entries"]:
        log, exit_code = failure_logs.rendered(entry, data["frames"])
        last_words = failure_logs.message(entry["template"]).split("\n")[-1]
        assert any(last_words in line for line in log), entry
        assert exit_code in (1, 2)


def test_steps_have_frames() -> None:
    assert {s.step for s in SCOPES} <= set(failure_logs.STEPS)


def test_source_becomes_entries(tmp_path, monkeypatch) -> None:
    source = tmp_path / "vllm-9.9"
    config = source / "vllm" / "config"
    config.mkdir(parents=True)
    (config / "cache.py").write_text(
        "class CacheConfig:\n"
        "    def __post_init__(self):\n"
        "        self._check()\n"
        "    def _check(self):\n"
        "        if self.blocks < 1:\n"
        "            raise ValueError(f'blocks ({self.blocks}) ' 'must be positive')\n"
        "        assert self.size\n"
        "        assert self.size, 'size must be set'\n"
        "        raise self.error\n"
        "        raise ValueError(str(self.error))\n"
    )
    (source / "vllm" / "config" / "kv_transfer.py").write_text("raise ValueError('out of scope')")
    monkeypatch.setattr(failure_messages, "DATA", tmp_path / "data")

    data = failure_messages.extract(source, "9.9")
    first, second = data["entries"]
    assert first["template"] == "blocks ({self.blocks}) must be positive"
    assert (first["line"], first["function"]) == (6, "CacheConfig._check")
    assert first["validated"] == "CacheConfig"
    assert second["exception"] == "AssertionError"
    assert data["left_out"] == {
        "bare asserts": 1,
        "raised without a text": 1,
        "without fixed words": 1,
    }

    first["kind"] = "bad_config"
    target = failure_messages.write(data)
    assert json.loads(target.read_text()) == data
    carried = failure_messages.extract(source, "10.0", carry=["9.9"])
    assert [e["kind"] for e in carried["entries"]] == ["bad_config", None]


def test_answers_are_counted() -> None:
    entry = {"kind": "kv_cache", "also": ["bad_config"], "process": "worker"}
    unclear = {"kind": None, "also": [], "process": "api"}
    found = [
        failure_messages.Answer(entry, "bad_config", ""),
        failure_messages.Answer(entry, "crash", ""),
        failure_messages.Answer(unclear, "crash", ""),
    ]
    table = failure_messages.counts(found)
    assert table["all"] == {"right": 1, "unclear": 1, "wrong": 1}
    assert table["share_right"] == 0.5
    assert table["processes"]["worker"] == {"right": 1, "wrong": 1}


@pytest.mark.parametrize(("version", "least"), [("0.27.0", 0.9), ("0.32.0", 0.95), ("0.33.0", 0.9)])
def test_the_classifier_gets_most_of_them_right(version: str, least: float) -> None:
    found = failure_messages.answers(failure_messages.read(version))
    assert failure_messages.counts(found)["share_right"] >= least
