"""The page on a new release of vLLM: its differences on small synthetic sources, and its inputs."""

from __future__ import annotations

import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks import failure_messages
from benchmarks.vllm_release import accepts, messages, reads, tables
from benchmarks.vllm_release.__main__ import main
from benchmarks.vllm_release.page import Page, Section, Todo, code
from benchmarks.vllm_release.source import Read, has, imported, mentioned, named, read_source
from benchmarks.vllm_rules import Source, packed, written
from benchmarks.vllm_rules_base import MNBT, SEQS, D, N
from benchmarks.vllm_rules_compare import judged

_METRICS = """
class SpecDecodingProm:
    def __init__(self):
        for name in ("vllm:spec_decode_num_drafts", "vllm:spec_decode_num_draft_tokens"):
            self.counter(name=name)
"""
_ROUTES = """
@router.get("/health")
async def health(): ...
@router.post("/v1/completions", dependencies=[])
async def complete(): ...
app.mount("/metrics", page)
"""
_PROTOCOL = """
class Base(OpenAIBaseModel):
    usage: UsageInfo | None = None
class CompletionStreamResponse(Base):
    choices: list[int]
class UsageInfo(OpenAIBaseModel):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0
"""
_ENGINE = """
class EngineCoreProc:
    def run_engine_core():
        engine_core = EngineCoreProc()
"""
_CACHE = """
class CacheConfig:
    def __post_init__(self):
        if self.blocks < 1:
            raise ValueError(f"blocks ({self.blocks}) must be positive")
"""
FILES = {
    "__init__.py": "",
    "config/vllm.py": "",
    "config/cache.py": _CACHE,
    "envs.py": "environment_variables: dict = {'VLLM_HOST_IP': None, 'VLLM_OLD': None}\n",
    "v1/spec_decode/metrics.py": _METRICS,
    "v1/engine/core.py": _ENGINE,
    "v1/worker/runner.py": 'logger.info("Model loading took %s GiB and %.6f seconds", a, b)\n',
    "entrypoints/serve/api.py": _ROUTES,
    "entrypoints/openai/protocol.py": _PROTOCOL,
    "model_executor/models/registry.py": "_SPECULATIVE_DECODING_MODELS = {'Medusa': ('m', 'M')}\n",
}
_INFO = """Metadata-Version: 2.1
Name: vllm
Version: {}
Requires-Dist: torch=={}
Requires-Dist: pytest; extra == 'test'
"""


def tree(folder: Path, version: str = "0.90.0", torch: str = "2.0", **changed: str) -> Path:
    """Writes a source distribution; names of files have ``__`` for ``/``."""
    files = FILES | {k.replace("__", "/") + ".py": v for k, v in changed.items()}
    for name, text in files.items():
        path = folder / "vllm" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "PKG-INFO").write_text(_INFO.format(version, torch))
    return folder


def todo(section: Section, level: str) -> list[str]:
    return [t.text for t in section.todo if t.level == level]


# -- the source ------------------------------------------------------------------------------------


def test_a_source_tells_what_autotune_depends_on(tmp_path: Path) -> None:
    read = read_source(tree(tmp_path))
    assert read.metrics == dict.fromkeys(
        ("vllm:spec_decode_num_drafts", "vllm:spec_decode_num_draft_tokens"),
        "v1/spec_decode/metrics.py",
    )
    assert set(read.addresses) == {"/health", "/v1/completions", "/metrics"}
    assert read.fields["CompletionStreamResponse"] == ("usage", "choices")
    assert read.variables == {"VLLM_HOST_IP", "VLLM_OLD"}
    assert "Model loading took 12.5 GiB and 12.5 seconds" in read.logs
    assert read.drafts == {"Medusa": "('m', 'M')"}
    assert read.needs == {"torch": "torch==2.0"}


def test_modules_and_names_are_looked_up(tmp_path: Path) -> None:
    root = tree(tmp_path, v1__core="if x:\n    from y import z as w\nclass Core: ...\n")
    assert has(root, "vllm.v1.core")
    assert has(root, "vllm.v1.core", "Core")
    assert has(root, "vllm.v1.core", "w")
    assert has(root, "vllm.v1", "core")
    assert not has(root, "vllm.v1.core", "z")
    assert not has(root, "vllm.v2")


def test_what_autotune_names_is_found_in_its_code() -> None:
    assert any("server_metrics" in place for place in named("vllm:generation_tokens_total"))
    assert named("/health", within="autotune/serving/")
    assert not named("/no_such_address")
    assert any("bench/running.py" in place for place in mentioned("vllm:num_requests_running"))
    assert not mentioned("vllm:num_requests")
    assert ("vllm.platforms", "current_platform") in imported()
    assert ("vllm.entrypoints.common.cli_args", None) in imported()


# -- what a server tells ---------------------------------------------------------------------------


def _page(*left_out: str) -> str:
    names = [
        *("spec_decode_num_drafts", "spec_decode_num_draft_tokens", "num_preemptions"),
        *("spec_decode_num_accepted_tokens", "prefix_cache_queries", "prefix_cache_hits"),
        "generation_tokens",
    ]
    lines = [
        f'# TYPE vllm:{name}_total counter\nvllm:{name}_total{{engine="0"}} 0.0\n'
        for name in names
        if name not in left_out
    ]
    gauges = [f"num_requests_{x}" for x in ("running", "waiting")]
    lines += [
        f'# TYPE vllm:{name} gauge\nvllm:{name}{{engine="0"}} 0.0\n'
        for name in gauges
        if name not in left_out
    ]
    each = "spec_decode_num_accepted_tokens_per_pos"
    lines.append(f"# TYPE vllm:{each}_total counter\n")
    lines += [f'vllm:{each}_total{{engine="0",position="{i}"}} 0.0\n' for i in range(3)]
    return "".join(lines)


def test_a_page_is_asked_for_every_figure() -> None:
    assert reads.unknown_of(_page()) == []
    assert reads.unknown_of(_page("num_preemptions")) == ["preemptions"]
    assert reads.unknown_of(_page("num_requests_waiting")) == ["requests waiting"]
    assert "acceptance_length" in reads.unknown_of(_page("spec_decode_num_drafts"))
    gauges = _page().replace("counter", "gauge")
    assert "drafts" in reads.unknown_of(gauges)


def test_a_counter_that_is_gone_is_wrong_now(tmp_path: Path) -> None:
    old = read_source(tree(tmp_path / "a"))
    less = _METRICS.replace("num_drafts", "num_steps")
    new = read_source(tree(tmp_path / "b", v1__spec_decode__metrics=less))
    answers = [{"metrics": _page()}, {"metrics": _page("spec_decode_num_drafts")}]
    section = reads.metrics_section(("0.90.0", old, answers[0]), ("0.91.0", new, answers[1]))
    wrong = todo(section, "now")
    assert any("`vllm:spec_decode_num_drafts` is gone" in t for t in wrong)
    assert any("finds no more" in t and "`acceptance_length`" in t for t in wrong)
    assert any("vllm:spec_decode_num_steps" in t for t in todo(section, "look"))
    same = reads.metrics_section(("0.90.0", old, answers[0]), ("0.91.0", old, answers[0]))
    assert not same.todo


def test_fields_and_addresses_that_are_gone_are_wrong_now(tmp_path: Path) -> None:
    old = read_source(tree(tmp_path / "a"))
    changed = {
        "entrypoints__serve__api": _ROUTES.replace("/health", "/healthz"),
        "entrypoints__openai__protocol": _PROTOCOL.replace("prompt_tokens", "input_tokens"),
    }
    new = read_source(tree(tmp_path / "b", **changed))
    page = {"metrics": _page()}
    section = reads.metrics_section(("0.90.0", old, page), ("0.91.0", new, page))
    wrong = "\n".join(todo(section, "now"))
    assert "`/health` is gone" in wrong
    assert "`UsageInfo` has no `prompt_tokens` any more" in wrong


def test_lines_of_the_log_that_are_gone_or_reworded() -> None:
    looked_for = [("stages._A", re.compile("took 12")), ("stages._B", re.compile("done|ended"))]
    before = {"loading took 12.5 s": "a.py", "it is done": "a.py", "it ended": "b.py"}
    now = {"loading lasted 12.5 s": "a.py", "it ended": "b.py"}
    section = reads.logs_section("0.90.0", "0.91.0", before, now, looked_for)
    assert ["stages._A" in t for t in todo(section, "now")] == [True]
    assert ["it is done" in t for t in todo(section, "look")] == [True]
    assert not reads.logs_section("0.90.0", "0.91.0", before, before, looked_for).todo


def test_autotune_looks_for_lines_of_every_stage() -> None:
    names = [name for name, _ in reads.patterns()]
    assert {"launch_stages._INIT", "compile_cache._FOLDER"} <= set(names)
    assert any("KV cache" in name for name in names)


def test_modules_variables_and_requirements(tmp_path: Path) -> None:
    old = read_source(tree(tmp_path / "a", platforms__cpu="class CpuPlatform: ...\n"))
    names = FILES["envs.py"].replace("VLLM_HOST_IP", "VLLM_FASTER")
    new = read_source(tree(tmp_path / "b", torch="2.1", platforms__cpu="", envs=names))
    gone = todo(reads.modules_section(("0.90.0", old), ("0.91.0", new)), "now")
    assert ["`vllm.platforms.cpu: CpuPlatform`" in t for t in gone] == [True]
    section = reads.environment_section(old, new, "0.91.0")
    assert any("`VLLM_HOST_IP`" in t for t in todo(section, "now"))
    assert "| `VLLM_FASTER` | compared |" in section.lines
    assert "| torch | `torch==2.0` | `torch==2.1` |" in section.lines


# -- what a server accepts -------------------------------------------------------------------------


def _flag(name: str, takes: str = "one") -> dict[str, Any]:
    return {"names": [name], "takes": takes}


def test_flags_that_came_went_and_changed() -> None:
    before = {
        "flags": {"flags": [*map(_flag, ("--port", "--dtype", "--old", "--x", "--enable-y"))]},
        "options": {"dtype": ["auto", "half"], "old": None, "port": None, "x": None},
    }
    more = {"names": ["--enable-y", "--disable-y"], "takes": "one"}
    now = {
        "flags": {"flags": [_flag("--dtype"), _flag("--spec-more"), _flag("--x", "none"), more]},
        "options": {"dtype": ["auto", "bfloat16"], "spec_more": ["a"], "x": []},
    }
    section = accepts.flags_section("0.90.0", "0.91.0", before, now)
    text = "\n".join(section.lines)
    assert "1 spellings more of flags that both have: `--disable-y`." in text
    assert "| `--spec-more` | a value | `a` |" in text
    assert "| `--dtype` | choices | also `half` | also `bfloat16` |" in text
    assert '| `--x` | takes | `"one"` | `"none"` |' in text
    assert any("`--spec-more`" in t for t in todo(section, "look"))
    assert any("starts servers with `--port`" in t for t in todo(section, "now"))
    assert any("`--old` is gone" in t for t in todo(section, "then"))


def test_flags_that_the_probe_cannot_read_are_wrong_now() -> None:
    fine = {"flags": {"flags": []}, "options": {}}
    lost = {"flags": ["ImportError: no parser"], "options": ["ImportError: no parser"]}
    section = accepts.flags_section("0.90.0", "0.91.0", fine, lost)
    assert section.unasked == "vLLM 0.91.0: ImportError: no parser"
    assert any("_probe.py" in t for t in todo(section, "now"))


def test_keys_methods_and_words_that_the_rules_do_not_know() -> None:
    old = {
        "keys": {"method": None, "model": None, "gone": None},
        "words": {"draft_sample_method": ["greedy", "probabilistic"]},
        "methods": ["ngram", "suffix"],
    }
    new = {
        "keys": {"method": None, "model": None, "brand_new": "0"},
        "words": {"draft_sample_method": ["greedy", "gumbel"], "kv_cache_dtype": ["auto", "fp3"]},
        "methods": ["ngram", "oracle"],
    }
    found = "\n".join(accepts.wrong_of_draft("0.33.0", old, new))
    for words in (
        "The key `brand_new` is new",
        "The method `oracle` is new",
        "The method `suffix` is gone",
        "`draft_sample_method` may now be `gumbel`",
        "`draft_sample_method` has no word `probabilistic`",
        "`fp3`",
    ):
        assert words in found
    assert "`gone`" not in found  # the rules refuse it already
    known = {"keys": {"method": None}, "words": {}, "methods": ["ngram"]}
    assert not list(accepts.wrong_of_draft("0.33.0", known, known))


def test_drafts_of_an_unknown_architecture_are_to_look_at() -> None:
    spec = {"spec": {"keys": {}, "words": {}, "methods": []}}
    old, new = (
        Read(Path()),
        Read(Path(), drafts=dict.fromkeys(("OracleModel", "OracleMTP", "DFlashNext"), "o")),
    )
    section = accepts.speculative_section("0.32.0", "0.33.0", spec, spec, (old, new))
    assert ["`OracleModel`" in t for t in todo(section, "look")] == [True]


def test_own_defaults_that_changed() -> None:
    before = [{"defaults": {"CPU, no draft": [2048, 128, None]}}, {"defaults": ["why"]}]
    now = [{"defaults": {"CPU, no draft": [4096, 128, 64]}}, {"defaults": ["why"]}]
    section = accepts.defaults_section("0.90.0", "0.91.0", before, now)
    row = "| CPU, no draft | 2048 / 128 | 4096 / 128, at most 64 at once | **changed** |"
    assert row in section.lines
    assert len(todo(section, "look")) == 1
    assert "why" in section.unasked


# -- tables of rules -------------------------------------------------------------------------------


def _table(version: str, answers: list[int], texts: list[str], **more: Any) -> dict[str, Any]:
    group = {
        "method": "none",
        "kind": "batch",
        "platform": "cpu",
        "fixed": {"model": "target", SEQS: 16},
        "cases": [{MNBT: 8}, {MNBT: 64}, {MNBT: 128}, {MNBT: 256}],
        "answers": packed(answers),
    }
    messages_ = [{"at": f"config/{i}.py: check", "text": t} for i, t in enumerate(texts)]
    return {"vllm": version, "messages": messages_, "groups": [group | more]}


def test_settings_newly_refused_and_started() -> None:
    old = _table("0.32.0", [0, 0, 1, 2], ["never 64 again", "256 is odd"])
    new = _table("0.33.0", [1, 2, 0, 3], ["too small", "never 64 again", "256 is even"])
    section = tables.settings_changed(old, new, list(judged(new)))
    text = "\n".join(section.lines)
    refused, _, rest = text.partition("Newly started")
    assert "### Newly refused: 2 settings" in refused
    assert (
        "| 1 | none, cpu (1) | batch | `too small` in `config/0.py: check` | refuses them (1) |"
        in text
    )
    assert re.search(r"`never 64 again` in `config/1.py: check` \| \*\*missed\*\* \(1\)", refused)
    assert re.search(r"`never 64 again` in `config/0.py: check` \| starts them \(1\)", rest)
    assert "### Refused in other words: 1 settings" in rest
    assert "| 1 | `256 is odd` | `256 is even` |" in rest
    assert any("lacks" in t for t in todo(section, "then"))  # one group of all


def test_rules_that_disagree_say_where_to_go() -> None:
    new = _table("0.33.0", [0, 1, 0, 0], ["no more 64"])
    found = todo(tables.rules_that_disagree(new, list(judged(new))), "now")
    assert len(found) == 2
    missed, refusal = sorted(found, key=lambda t: "false refusal" in t)
    assert "1 × missed failure" in missed
    assert "`no more 64 [config/0.py: check]`" in missed
    assert "`first=(0, 33)`" in missed
    assert "`autotune/engine/rules.py`: end it" in refusal
    right = _table("0.33.0", [1, 0, 0, 0], ["too small"])
    assert not tables.rules_that_disagree(right, list(judged(right))).todo


def test_a_version_that_nobody_read_is_said_to_be_one() -> None:
    new = _table("0.90.0", [1, 0, 0, 0], ["too small"])
    section = tables.rules_that_disagree(new, list(judged(new)))
    assert any("add (0, 90) to `READ`" in t for t in todo(section, "then"))


def test_graphs_and_requests_at_once_that_differ() -> None:
    graphs = {
        "fixed": {"model": "target", f"{D}method": "dflash", f"{D}model": "dflash", SEQS: 4},
        "cases": [{N: 3, MNBT: 2048}],
        "platform": "cuda (faked)",
        "runner": "v2",
    }
    full = [4, 8, 16]
    told = {"full": packed([full]), "replays": packed([[4, 8, 16, 16]])}
    old = _table("0.32.0", [0], [], **graphs, **told, active=packed([None]))
    new = _table("0.33.0", [0], [], **graphs, **told, active=packed([2]))
    section = tables.columns(old, new)
    assert any("requests that run at once | 1 of 1 " in line for line in section.lines)
    assert any("rows of FULL graphs | 0 of 1 " in line for line in section.lines)
    wrong = {"full": packed([[4, 8]]), "replays": packed([[4, 8, 0, 0]])}
    other = _table("0.33.0", [0], [], **graphs, **wrong)
    found = [ours for _, _, ours in tables.other_graphs(other)]
    assert len(found) == 1
    assert found[0] != [4, 8]
    assert list(tables.other_graphs(new)) == []
    assert any("cuda_graphs.py" in t for t in todo(tables.columns(old, other), "now"))


def test_a_kept_table_is_used_for_its_own_source_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(tree(tmp_path / "source"), "0.90.0")
    asked = []

    def ask(of: Source) -> dict[str, Any]:
        asked.append(of.version)
        return _table(of.version, [0] * 4, []) | {"sha256": of.sha256}

    monkeypatch.setattr(tables, "ask", ask)
    monkeypatch.setattr(tables, "DATA", tmp_path / "committed")
    said: list[str] = []
    kept = tmp_path / "kept"
    first = tables.table_of(source, kept, said.append)
    assert tables.table_of(source, kept, said.append) == first
    assert asked == ["0.90.0"]
    (source.root / "vllm/config/cache.py").write_text("changed = 1\n")
    tables.table_of(source, kept, said.append)
    assert asked == ["0.90.0"] * 2
    assert any("was made of another source" in line for line in said)
    committed = tmp_path / "committed" / "0.90.0.json"
    committed.parent.mkdir()
    committed.write_text(written(_table("0.90.0", [0] * 4, []) | {"sha256": source.sha256}))
    tables.table_of(source, tmp_path / "none", said.append)
    assert len(asked) == 2


# -- messages --------------------------------------------------------------------------------------


def test_new_messages_those_without_a_kind_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failure_messages, "DATA", tmp_path / "data")
    old = tree(tmp_path / "a")
    more = _CACHE + (
        "        if self.bad:\n"
        "            raise ValueError('the cache must be one of the supported kinds')\n"
    )
    scheduler = "def plan():\n    assert done, 'the groups of layers overlap somewhere'\n"
    wheel = "def serve():\n    raise ValueError('nobody looks here')\n"
    changed = {"config__cache": more, "entrypoints__nowhere__x": wheel, "v1__core__x": scheduler}
    new = tree(tmp_path / "b", **changed)
    found = [messages.extracted(x, v) for x, v in ((old, "0.90.0"), (new, "0.91.0"))]
    section = messages.failures_section(*found)
    text = "\n".join(section.lines)
    assert text.startswith("2 messages are new, 0 are gone, 1 are as they were.")
    first, _, second = text.partition("### Classified")
    assert "groups of layers overlap" in first
    assert "supported kinds" in second
    assert "bad_config" in second
    assert "| `entrypoints/nowhere/x.py` | 1 |" in text
    assert any("2 new messages have no label" in t for t in todo(section, "then"))


def test_messages_in_other_words_that_become_another_kind(tmp_path: Path) -> None:
    old = tree(tmp_path / "a", config__cache=_CACHE.replace("ValueError", "RuntimeError"))
    other = _CACHE.replace("ValueError", "RuntimeError").replace("must be positive", "are strange")
    new = tree(tmp_path / "b", config__cache=other)
    before, now = (messages.extracted(x, v) for x, v in ((old, "0.90.0"), (new, "0.91.0")))
    lines = messages.failures_section(before, now).lines
    gone = failure_messages.answers(before)[0].kind
    kind = failure_messages.answers(now)[0].kind
    assert any("are strange" in line for line in lines)
    told = any("In other words, and now another kind (1)" in line for line in lines)
    assert told is (gone != kind)


def test_documented_commands_that_are_new(tmp_path: Path) -> None:
    old, new = tree(tmp_path / "a"), tree(tmp_path / "b")
    for root, text in ((old, ""), (new, "vllm serve org/m --no-such-flag 3 --max-num-seqs 4\n")):
        (root / "docs").mkdir()
        body = f"```bash\nvllm serve org/model --max-num-seqs 8\n{text}```\n"
        (root / "docs" / "serving.md").write_text(body)
    section = messages.commands_section(old, new, "0.91.0", {"no_such_flag", "max_num_seqs"})
    text = "\n".join(section.lines)
    assert text.startswith("2 commands start a server, 1 are new")
    assert "`--no-such-flag`" in text
    assert "`--max-num-seqs`" not in text


def test_a_wheel_has_no_documentation(tmp_path: Path) -> None:
    section = messages.commands_section(tree(tmp_path / "a"), tree(tmp_path / "b"), "0.91.0")
    assert "give source distributions" in section.lines[0]


# -- the command -----------------------------------------------------------------------------------


def _wheel(path: Path, version: str, **changed: str) -> Path:
    root = tree(path.parent / f"tree-{version}", version, **changed)
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted((root / "vllm").rglob("*.py")):
            archive.write(file, file.relative_to(root))
        archive.writestr(f"vllm-{version}.dist-info/METADATA", _INFO.format(version, "2.0"))
        archive.writestr("vllm/_C.abi3.so", b"\0")
    return path


def _sdist(path: Path, version: str) -> Path:
    root = tree(path.parent / f"tree-{version}", version)
    with tarfile.open(path, "w:gz") as archive:
        archive.add(root, f"vllm-{version}")
    return path


def test_a_wheel_against_a_source_distribution(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = _CACHE + "        raise ValueError('a new thing must be given')\n"
    new = _wheel(tmp_path / "vllm-0.91.0-py3-none-any.whl", "0.91.0", config__cache=more)
    old = _sdist(tmp_path / "vllm-0.90.0.tar.gz", "0.90.0")
    out = tmp_path / "page.md"
    words = [str(new), "--against", str(old), "--only", "failures", "--out", str(out)]
    assert main(words) == 0
    page = out.read_text()
    assert page.startswith("# vLLM 0.91.0 against 0.90.0\n")
    assert "a new thing must be given" in page
    assert "0.91.0 --against 0.90.0 --only failures" in page
    assert str(tmp_path) not in page
    assert "page.md is written" in capsys.readouterr().err


def test_a_part_that_cannot_be_asked_is_said_and_ends_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The synthetic vLLM cannot be imported; what is read in its source is told all the same."""
    new, old = tree(tmp_path / "b", "0.91.0"), tree(tmp_path / "a", "0.90.0")
    assert main([str(new), "--against", str(old), "--only", "reads"]) == 1
    page = capsys.readouterr().out
    assert "**Not known**: `vLLM 0.90.0: " in page
    assert "| `vllm:spec_decode_num_drafts` | `v1/spec_decode/metrics.py` |" in page


@pytest.mark.parametrize("which", ["new", "old"])
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("nowhere.whl", "no such file or folder"),
        ("empty", "there is no vllm/config/vllm.py"),
        ("torn.whl", "cannot be read as wheel or source distribution"),
        ("unnamed", "which version it is"),
    ],
)
def test_bad_input_is_one_line(
    which: str, bad: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, path = tree(tmp_path / "good"), tmp_path / bad
    if bad == "torn.whl":
        path.write_bytes(b"PK\x03\x04 no archive")
    elif bad == "empty":
        path.mkdir()
    elif bad == "unnamed":
        (tree(path) / "PKG-INFO").unlink()
    given = [str(path), "--against", str(good)]
    if which == "old":
        given = [str(good), "--against", str(path)]
    assert main(given) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert words in said
    assert said.count("\n") == 1
    assert "ReadError" not in said


def test_bad_words_end_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, other = tree(tmp_path / "good"), tree(tmp_path / "other", "0.91.0")
    assert main([str(good), "--against", str(good)]) == 2
    assert "both are vLLM 0.90.0" in capsys.readouterr().err
    words = [str(good), "--against", str(other), "--out", str(tmp_path / "no" / "page.md")]
    assert main(words) == 2
    assert "there is no folder" in capsys.readouterr().err
    # what would fail after minutes is said at once
    words[-1] = str(tmp_path)
    assert main(words) == 2
    assert "is a folder; give a file" in capsys.readouterr().err
    words[-2:] = ["--tables", str(good / "PKG-INFO")]
    assert main(words) == 2
    assert "PKG-INFO is no folder" in capsys.readouterr().err
    assert main(["", "--against", str(good)]) == 2
    assert "is empty" in capsys.readouterr().err
    with pytest.raises(SystemExit) as e:
        main([str(good), "--against", str(other), "--only", "everything"])
    assert e.value.code == 2


def test_a_page_has_what_is_to_be_done_first() -> None:
    page = Page("title", ["head"], [
        Section("one", ["| a |"], [Todo("then", "later."), Todo("now", "at once")]),
        Section("two", [], (), "it was | away"),
    ])  # fmt: skip
    text = page.markdown()
    assert not page.complete
    assert text.index("at once") < text.index("later") < text.index("## one")
    assert "- [ ] later. (one)" in text
    assert "**Not known**: `it was \\| away`" in text
    assert code("a `b` | c") == "`a 'b' \\| c`"
