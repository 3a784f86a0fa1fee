"""Whatever a user writes – a study, prompts, a command line – is taken, or refused in one line."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import optuna
import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from autotune.bench.objectives import study_objectives
from autotune.bench.workload import build_workload
from autotune.cli.main import main
from autotune.engine.rules import why_infeasible
from autotune.errors import UserError
from autotune.storage.store import Store
from autotune.study.differences import fingerprint
from autotune.study.files import LoadedStudy, bundled_studies, find_study, load_study, parse_study
from autotune.study.from_command import study_from_command, template
from autotune.tuning.prepare import baseline_point
from tests.fuzzing import fuzz
from tests.studies import write_study

pytestmark = pytest.mark.slow

# What no command may do here, whatever its arguments: each would launch something, ask a vLLM (by
# a program that the study names) or look at this machine.
FORBIDDEN = (
    "autotune.tuning.prepare.prepare",
    "autotune.tuning.study_run.run_study",
    "autotune.tuning.crosscheck.crosscheck",
    "autotune.tuning.verify.verify_study",
    "autotune.output.dashboard.serve",
    "autotune.results.space_map.probe",
)


class Sandbox:
    """The command line in a folder of its own, without any process and without a home."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reached: list[str] = []  # what would have been done

    def call(self, *args: str) -> Result:
        def refuse(what: str) -> mock._patch[Any]:
            def reached(*_: object, **__: object) -> None:
                self.reached.append(what)
                raise UserError("this is a test")

            return mock.patch(what, reached)

        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.chdir(self.folder))
            home = {"HOME": str(self.folder), "XDG_CACHE_HOME": str(self.folder / "cache")}
            stack.enter_context(mock.patch.dict(os.environ, home))
            for what in FORBIDDEN:
                stack.enter_context(refuse(what))
            stack.enter_context(mock.patch("autotune.cli.doctor.checks", return_value=iter(())))
            stack.enter_context(mock.patch.object(subprocess, "Popen", side_effect=AssertionError))
            return CliRunner().invoke(main, list(args))


@contextlib.contextmanager
def sandbox() -> Iterator[Sandbox]:
    with tempfile.TemporaryDirectory() as folder:
        yield Sandbox(Path(folder))


def shown(name: object) -> str:
    """The beginning of a file's name as messages have it."""
    return str(name)[:100]


def is_one_line(line: str, begins: str) -> None:
    assert line.isprintable(), ascii(line)
    assert len(line) <= 500, len(line)
    assert line.startswith(begins), line


def judged(path: Path, text: str | None = None) -> LoadedStudy | UserError:
    """The study, with everything built that is built before vLLM is asked; or one clear line."""
    try:
        loaded = load_study(str(path)) if text is None else parse_study(text, path)
    except UserError as e:
        is_one_line(str(e), shown(path))
        return e
    spec = loaded.spec
    space = spec.to_space()
    space.distributions()
    point = baseline_point(spec)
    with contextlib.suppress(ValueError):  # prepare() names file and key
        space.encode(point)
    for version in (None, "0.26.0", "0.32.0"):
        why = why_infeasible(spec.settings(point), version)
        assert why is None or "\n" not in why
    if spec.workload.num_prompts + spec.workload.most_warmup < 5000:  # the rest is only more
        try:
            work = build_workload(spec.workload, loaded.base)
        except UserError as e:
            is_one_line(str(e), shown(loaded.base / (spec.workload.prompts or "")))
            return e
        assert all(a <= b for a, b in zip(work.arrivals, work.arrivals[1:], strict=False))
        fingerprint(loaded)
    dumped = spec.model_dump(mode="json")
    json.dumps([dumped["server"], dumped["space"]], allow_nan=False)
    return loaded


def refused(found: LoadedStudy | UserError, *words: str) -> None:
    assert isinstance(found, UserError), found
    for word in words:
        assert word in str(found)


# -- studies: good ones, changed ---------------------------------------------------------------

WHOLE: dict[str, Any] = {
    "name": "mine",
    "description": "words",
    "server": {
        "command": ["python3", "double.py"],
        "model": "org/model",
        "flags": {"max-num-seqs": 2, "enforce-eager": True, "x": ["a", 1], "y": {"z": 1}},
        "env": {"A": "1"},
        "speculative": {"method": "dflash", "model": "org/draft", "attention_backend": "x"},
        "health_timeout_s": 20,
        "stop_timeout_s": 2,
    },
    "space": {
        "num_speculative_tokens": {"type": "int", "low": 0, "high": 15, "step": 1},
        "max_num_batched_tokens": {"type": "pow2", "low": 32, "high": 2048},
        "gpu-memory-utilization": {"type": "float", "low": 0.5, "high": 0.9, "log": False},
        "block-size": {"type": "choice", "choices": [16, 32]},
    },
    "baseline": {"block-size": 16},
    "workload": {
        "random": {"input_len": 16, "vocab_low": 256, "vocab_high": 32000},
        "output_len": 12,
        "num_prompts": 6,
        "confirm_prompts": 6,
        "warmup_prompts": 2,
        "request_rate": 2.0,
        "arrivals": "poisson",
        "max_concurrency": 2,
        "latency_from": "send",
        "ignore_eos": True,
        "temperature": 0.0,
        "seed": 0,
        "request_timeout_s": 600,
        "hang_timeout_s": 120,
    },
    "measure": {
        "precision": 0.05,
        "min_prompts": 32,
        "dominated_error": 0.05,
        "repeat_disturbed": True,
        "per_request_acceptance": True,
    },
    "objectives": ["throughput", {"name": "p95_latency", "direction": "minimize"}],
    "search": {"method": "gp"},
    "budget": {"trials": 4, "confirm": 0, "replicates": 0, "timeout_minutes": 5},
}
BASES = [
    WHOLE,
    *(yaml.safe_load(find_study(name).read_text()) for name in bundled_studies()),
]


class Huge(int):
    """A number that Python does not write in decimal, which Hypothesis would."""

    def __repr__(self) -> str:
        return "huge"


HUGE = Huge(16**5000)
NUMBERS = [
    *(0, 1, -1, 2**31, 2**53, 2**63, 10**18, -(10**18), 10**30, HUGE),
    *(0.5, -0.5, 1e-300, 5e-324, 1e300, -1e308, float("nan"), float("inf"), float("-inf")),
]
TEXTS = [
    *("", " ", "x", "nan", "inf", "-1", "9" * 5000, "1e999", "0x10", "é", "\U0001f600"),
    *("\x1b[31mred", "a\nb", "\x00", "\x7f", "\x85", "\u2028", "\u202e", "\ufeff"),
    *("a'b", '"', "{", "x" * 5000, "../" * 50, "/dev/zero", "/", ".", "-tp", "--", "a=b"),
    *("num_speculative_tokens", "max-num-batched-tokens", "port", "int", "choice", "<<"),
]
LEAVES = (
    st.none()
    | st.booleans()
    | st.sampled_from(NUMBERS)
    | st.sampled_from(TEXTS)
    | st.integers(-10, 100)
    | st.floats()
    | st.text(max_size=8)
    | st.dates()
    | st.binary(max_size=3)
)
VALUES = st.recursive(
    LEAVES,
    lambda x: (
        st.lists(x, max_size=4)
        | st.dictionaries(st.text(max_size=8) | st.sampled_from(TEXTS), x, max_size=3)
        | st.dictionaries(st.booleans() | st.integers() | st.none() | st.dates(), x, max_size=2)
    ),
    max_leaves=8,
)


def places(tree: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree)  # type: ignore[arg-type]
    out = [path] if path else []
    for key, value in inside:
        deep = isinstance(value, dict | list)
        out += places(value, (*path, key)) if deep else [(*path, key)]
    return out


def at(tree: Any, path: tuple[object, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


@st.composite
def changed(draw: st.DrawFn) -> dict[Any, Any]:
    """A good study with one to three things wrong (or, now and then, just different)."""
    tree = copy.deepcopy(draw(st.sampled_from(BASES)))
    for _ in range(draw(st.integers(1, 3))):
        every = places(tree)
        if not every:
            break
        path = draw(st.sampled_from(every))
        parent, key = at(tree, path[:-1]), path[-1]
        match draw(st.sampled_from(["drop", "set", "set", "add", "rename", "swap", "wrap"])):
            case "drop":
                del parent[key]
            case "set":
                parent[key] = draw(VALUES)
            case "add" if isinstance(parent, dict):
                parent[draw(st.text(max_size=8) | st.sampled_from(TEXTS))] = draw(VALUES)
            case "rename" if isinstance(parent, dict):
                parent[f"{key}s"] = parent.pop(key)
            case "swap":
                other = at(tree, draw(st.sampled_from(every)))
                parent[key] = copy.deepcopy(other)
            case "wrap":
                parent[key] = draw(st.sampled_from([[parent[key]], {"x": parent[key]}]))
    return tree


@fuzz(200)
@given(changed())
def test_a_study_with_something_wrong_is_taken_or_refused_in_one_line(tree: dict[Any, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        judged(Path(folder, "study.yaml"), written(tree))


def written(tree: object) -> str:
    """As YAML; a number that Python does not write in decimal goes in as hexadecimal."""

    class Dumper(yaml.SafeDumper):
        pass

    def number(dumper: yaml.SafeDumper, value: int) -> yaml.Node:
        text = str(value) if abs(value) < 10**100 else hex(value)
        return dumper.represent_scalar("tag:yaml.org,2002:int", text)

    Dumper.add_representer(int, number)
    Dumper.add_representer(Huge, number)
    return str(yaml.dump(tree, Dumper=Dumper, sort_keys=False, allow_unicode=True))


def test_the_studies_that_are_changed_are_good_ones(tmp_path: Path) -> None:
    (tmp_path / "prompts").symlink_to(find_study("demo-cpu").parent / "prompts")
    for tree in BASES:
        found = judged(tmp_path / "study.yaml", written(tree))
        assert isinstance(found, LoadedStudy), found


@fuzz(100)
@given(st.sampled_from(places(WHOLE)), st.sampled_from([*NUMBERS, *TEXTS]), st.booleans())
def test_any_number_or_text_for_any_key_is_taken_or_refused(
    path: tuple[object, ...], value: object, as_key: bool
) -> None:
    tree = copy.deepcopy(WHOLE)
    parent = at(tree, path[:-1])
    if as_key and isinstance(parent, dict):
        parent[value] = parent.pop(path[-1])
    else:
        parent[path[-1]] = value
    with tempfile.TemporaryDirectory() as folder:
        judged(Path(folder, "study.yaml"), written(tree))


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("server.flags.max-num-seqs", float("inf"), "finite"),
        pytest.param("server.flags.max-num-seqs", HUGE, "at most 9007199254740992", id="huge"),
        ("server.flags.y.z", float("nan"), "finite"),
        ("server.flags.y", {1: 2}, "the key 1 is no text"),
        ("server.speculative.attention_backend", float("nan"), "finite"),
        ("server.speculative.num_speculative_tokens", "three", "whole number"),
        ("server.model", "a\0b", "U+0000"),
        ("server.model", "\x1b[2J", "U+001B"),
        ("server.flags", {"": 1}, "no name of a flag"),
        ("server.flags", {"-tp": 1}, "no name of a flag"),
        ("server.env", {"A=B": "1"}, "no name of an environment variable"),
        ("server.health_timeout_s", 1e300, "less than or equal"),
        ("workload.num_prompts", 10**15, "less than or equal"),
        ("workload.max_concurrency", 10**15, "less than or equal"),
        ("workload.random.input_len", 10**15, "less than or equal"),
        ("workload.request_rate", 1e-300, "greater than or equal"),
        ("workload.temperature", "nan", "finite"),
        ("workload.seed", 2**40, "less than"),
        ("space.num_speculative_tokens.high", 10**15, "larger step"),
        ("space.num_speculative_tokens", {"type": "choice", "choices": [True]}, "whole numbers"),
        ("space.block-size.choices", [1, True], "twice"),
        ("space.block-size.choices", list(range(2000)), "at most 1000"),
        ("space.gpu-memory-utilization.low", -1.7e308, ""),
        ("space", {"--": {"type": "int", "low": 0, "high": 1}}, "no name of a flag"),
        ("baseline", {"block-size": 16, "block_size": 32}, "twice"),
    ],
)
def test_what_would_have_failed_far_from_its_cause(
    tmp_path: Path, path: str, value: object, words: str
) -> None:
    tree = copy.deepcopy(WHOLE)
    tree["space"]["gpu-memory-utilization"]["high"] = 1.7e308  # for the low end above
    *parents, last = path.split(".")
    at(tree, tuple(parents))[last] = value
    where = ".".join((*parents, last)) if words else "space"
    found = judged(tmp_path / "study.yaml", written(tree))
    refused(found, words, where.partition(".")[0])


def test_a_space_of_too_many_points_and_too_many_tokens(tmp_path: Path) -> None:
    tree = copy.deepcopy(WHOLE)
    tree["space"] = {
        "num_speculative_tokens": {"type": "int", "low": 0, "high": 15},
        "max_num_batched_tokens": {"type": "int", "low": 1, "high": 90_000},
    }
    tree["baseline"] = {}
    refused(judged(tmp_path / "study.yaml", written(tree)), "space: has 1440000 points")
    tree["space"].pop("max_num_batched_tokens")
    tree["workload"] |= {"num_prompts": 10**6}
    tree["workload"]["random"]["input_len"] = 10**6
    refused(judged(tmp_path / "study.yaml", written(tree)), "workload.random", "tokens")
    tree["workload"]["random"] = {"input_len": 10**7, "vocab_low": 5, "vocab_high": 6}
    refused(judged(tmp_path / "study.yaml", written(tree)), "workload.random: only 1 different")


def test_a_baseline_may_be_written_as_a_flag(tmp_path: Path) -> None:
    tree = copy.deepcopy(WHOLE)
    tree["baseline"] = {"--max-num-batched-tokens": 64}
    found = judged(tmp_path / "study.yaml", written(tree))
    assert isinstance(found, LoadedStudy)
    assert baseline_point(found.spec)["max_num_batched_tokens"] == 64


# -- studies: text -----------------------------------------------------------------------------

GOOD = written(WHOLE)
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 40)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 40)
)
PIECES = [
    *("!!python/object/apply:os.system [touch run]", "!!python/name:os.system", "!!binary x"),
    *("!!int x", "!!int ''", "!!bool maybe", "!!float x", "!!timestamp x", "!!set {a}", "!!null x"),
    *("!!omap [a: 1]", "!!pairs [a: 1]", "!!merge x", "!x y", "&a [*a]", "&a {<<: *a}", "*b"),
    *("{<<: 1}", "{<<: [1]}", "<<: *a", "? [a]\n: b", "? {a: b}", "---\n", "...\n", "%YAML 9.9\n"),
    *("%TAG ! x\n", "- - - -", "[" * 3000, "{a: " * 3000, "0x" + "f" * 6000, "1:" * 50 + "1"),
    *("2001-99-99", "=", "\t", "\0", "\x1b", "\ufeff", "\u2028", "'", '"\\ud800"', '"\\x1b"', "|"),
    *(": ", "# ", "\r", "\n", ".nan", ".inf", "~", "yes", "no: 1\n", "name: x\nname: y\n"),
]


@fuzz(200)
@given(
    st.lists(st.sampled_from(PIECES) | st.text(max_size=20), max_size=4),
    st.sampled_from([GOOD, template("mine"), ""]),
    st.data(),
)
def test_any_text_is_taken_or_refused_in_one_line(
    pieces: list[str], text: str, data: st.DataObject
) -> None:
    for piece in pieces:
        where = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.sampled_from([0, 0, 1, 10, 100]))
        text = text[:where] + piece + text[where + cut :]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        judged(Path("study.yaml"), text)
        assert not Path("run").exists()


@fuzz(150)
@given(st.binary(max_size=60), st.integers(0, len(GOOD)))
def test_any_bytes_are_taken_or_refused_in_one_line(raw: bytes, where: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "study.yaml")
        path.write_bytes(GOOD.encode()[:where] + raw + GOOD.encode()[where:])
        judged(path)


@pytest.mark.parametrize("tag", ["!!bool maybe", "!!int ''", "!!timestamp x", "!!float ''"])
@pytest.mark.parametrize("where", ["name", "description"])
def test_a_tag_that_does_not_fit(tmp_path: Path, tag: str, where: str) -> None:
    text = GOOD.replace("name: mine", f"name: {tag}" if where == "name" else f"{where}: {tag}")
    refused(judged(tmp_path / "study.yaml", text))


@pytest.mark.parametrize("text", [LAUGHS, MERGES, "a: &a [*a]", "a: &a {b: *a}", "a: &a {<<: *a}"])
def test_aliases_cannot_eat_the_memory(tmp_path: Path, text: str) -> None:
    tracemalloc.start()
    try:
        refused(judged(tmp_path / "study.yaml", text + "\n" + GOOD), "alias")
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_aliases_and_merges_are_fine_otherwise(tmp_path: Path) -> None:
    text = GOOD.replace("    low: 0\n    high: 15\n", "    <<: &r {low: 0, high: 15}\n")
    assert "&r" in text
    assert isinstance(judged(tmp_path / "study.yaml", text), LoadedStudy)


def test_a_long_text_and_a_deep_one(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(GOOD + "# " + "x" * 2**20)
    refused(judged(file), "100000 characters")
    deep = "{a: " * 60 + "1" + "}" * 60
    refused(judged(file, GOOD.replace("z: 1", f"z: {deep}")), "server.flags.y.z", "too deeply")
    refused(judged(file, "a: " + "[" * 50_000), "nested too deeply")


def test_a_byte_order_mark_is_fine(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("\ufeff" + GOOD, encoding="utf-8")
    assert isinstance(judged(file), LoadedStudy)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/dev/null", "no regular file"),
        ("/proc/self/mem", "cannot be read"),
        ("x" * 5000, "File name too long"),
        ("/" + "x/" * 3000, "File name too long"),
        ("a\0b", "no such file"),
        ("", "is a folder"),
        (".", "is a folder"),
        ("\x1b[2J", "no such file"),
        ("a\nb.yaml", "no such file"),
        ("demo-cpu.yaml/x", "no such file"),
    ],
)
def test_names_that_are_no_study(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as e:
        load_study(name)
    assert str(e.value).isprintable()
    assert len(str(e.value)) <= 500


# -- prompts -----------------------------------------------------------------------------------

LINES = (
    st.sampled_from(
        [
            *(b"", b"{", b"[]", b"null", b"\xff\xfe", b"\0", b"\xef\xbb\xbf{}", b'{"prompt": 1}'),
            *(b'{"prompt": ""}', b'{"prompt": "\\ud800"}', b'{"prompt": "a", "messages": []}'),
            *(b'{"messages": [{}]}', b'{"messages": [{"role": "user", "content": 1e999}]}'),
            b'{"messages": [{"role": "user", "content": ' + b"[" * 400 + b"]" * 400 + b"}]}",
            b'{"messages": [{"role": "user", "content": [' + b"9" * 400 + b"]}]}",
            b'{"messages": [{"role": "\\u001b[2J", "content": "\\u0000"}]}',
            b"[" * 5000,
        ]
    )
    | st.binary(max_size=20)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda x: (
            st.lists(x, max_size=3)
            | st.dictionaries(st.sampled_from(["messages", "prompt", "role", "content", "x"]), x)
        ),
        max_leaves=8,
    ).map(lambda x: json.dumps(x).encode())
)


@fuzz(120)
@given(st.lists(LINES, max_size=4))
def test_any_prompts_file_is_taken_or_refused_in_one_line(lines: list[bytes]) -> None:
    tree = copy.deepcopy(WHOLE)
    del tree["workload"]["random"]
    tree["workload"]["prompts"] = "p.jsonl"
    good = [b'{"prompt": "question %d"}' % i for i in range(8)]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "p.jsonl").write_bytes(b"\n".join([*good[:4], *lines, *good[4:]]))
        judged(Path(folder, "study.yaml"), written(tree))


def test_prompts_nested_too_deeply_and_a_byte_order_mark(tmp_path: Path) -> None:
    tree = copy.deepcopy(WHOLE)
    tree["workload"] |= {"prompts": "p.jsonl", "num_prompts": 1, "warmup_prompts": 0}
    del tree["workload"]["random"]
    file = tmp_path / "p.jsonl"
    deep = [{"role": "user", "content": json.loads("[" * 300 + "]" * 300)}]
    file.write_text(json.dumps({"messages": deep}))
    refused(judged(tmp_path / "study.yaml", written(tree)), "line 1", "messages", "too deeply")
    file.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\n')
    assert isinstance(judged(tmp_path / "study.yaml", written(tree)), LoadedStudy)
    tree["workload"]["prompts"] = "x" * 5000
    refused(judged(tmp_path / "study.yaml", written(tree)), "workload.prompts", "does not exist")


# -- the command line --------------------------------------------------------------------------


def one_usage(result: Result, *, plain: bool) -> None:
    """An exit code of ours, never a traceback, at most click's usage and one line."""
    problem = result.exception
    assert problem is None or isinstance(problem, SystemExit), repr(problem)
    assert result.exit_code in {0, 1, 2}
    assert "Traceback" not in result.output
    lines = [x for x in result.stderr.splitlines() if x.strip()]
    if lines and lines[0].startswith("Usage: "):
        assert result.exit_code == 2
        at = next(i for i, x in enumerate(lines) if x.startswith("Error: "))
        # click repeats what was typed as it is
        assert at <= 3, result.stderr
        assert at + 1 == len(lines) or not plain, result.stderr
    elif result.exit_code:
        assert len(lines) == 1, result.stderr
        assert lines[0].isprintable()


@fuzz(60)
@given(changed(), st.sampled_from(["run", "confirm", "crosscheck", "doctor"]))
def test_a_bad_study_is_one_line_for_every_command(tree: dict[Any, Any], command: str) -> None:
    with sandbox() as box:
        study = box.folder / "study.yaml"
        study.write_text(written(tree))
        try:
            load_study(str(study))
        except UserError as e:
            told = str(e)
        else:
            return
        if command in {"run", "confirm"}:
            extra = ["--db", "new.db", *(["--trials", "1"] if command == "run" else [])]
        else:
            extra = []
        before = threading.active_count()
        result = box.call(command, str(study), *extra)
        assert result.exit_code == 2
        assert result.stderr == f"autotune: {told}\n"
        assert result.stdout == ""
        assert box.reached == []
        assert [p.name for p in box.folder.iterdir()] == ["study.yaml"]
        assert threading.active_count() == before


COMMANDS = [
    *("run", "confirm", "status", "best", "pareto", "crosscheck", "doctor"),
    *("export", "compare", "explain", "predict", "verify"),
]
OPTIONS = [
    *("--trials", "--db", "--seed", "--timeout", "--launches", "--study", "--json", "--trial"),
    *("--shell", "--objective", "--balanced", "--out", "--n", "--rounds", "--help", "-h", "--no"),
    *("--format", "--host", "--port", "--vllm", "--threshold", "--study-a", "--study-b", "--time"),
    *("--verify", "--prompts", "--sampling", "--no-answers", "--again", "--uncertified"),
]
WORDS = st.sampled_from(
    [
        *("0", "1", "-1", "3", "nan", "inf", "-inf", "1e308", "9" * 30, "9" * 5000, "1.5", "x", ""),
        *(
            "good.db",
            "text.db",
            "empty.db",
            "folder",
            "no/such.db",
            "/dev/null",
            "a\0b",
            "x" * 5000,
        ),
        *("x/" * 2500, "é.db", "\udcff.db", "\x1b[2J", "a\nb", "--", "-", "good.yaml", "bad.yaml"),
        *("demo-cpu", "demo-cp", "folder/x", "text.db/x", "/proc/self/mem", "throughput", "*"),
        *("shell", "compose", "systemd", "vllm-config", "kubernetes", "html", "md", "pdf"),
        *("good.db:good", "good.db:", ":", "5%", "100%", "%", "0.32.0", "0.32.0\n", "::1", "65535"),
    ]
) | st.text(max_size=10).filter(lambda x: "/" not in x)


def furnish(folder: Path) -> None:
    """Databases and studies to name."""
    (folder / "folder").mkdir()
    (folder / "text.db").write_text("this is no database, but long enough to be taken for one")
    (folder / "empty.db").write_text("")
    (folder / "bad.yaml").write_text("name: [")
    study = write_study(folder, name="good")
    store = Store(folder / "good.db", create=True)
    loaded = load_study(str(study))
    store.begin_study(loaded, seed=0, wanted=3)
    directions = [o.direction for o in study_objectives(loaded)]
    optuna.create_study(storage=store.storage, study_name="good", directions=directions)
    store.close()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What :func:`furnish` makes, for copies."""
    folder = tmp_path_factory.mktemp("pristine")
    furnish(folder)
    return folder


@pytest.fixture(scope="module")
def furnished(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(pristine, tmp_path_factory.mktemp("furnished"), dirs_exist_ok=True)


@fuzz(150)
@given(st.sampled_from(COMMANDS), st.lists(st.sampled_from(OPTIONS) | WORDS, max_size=5))
def test_any_command_line_is_done_or_refused(
    furnished: Path, command: str, words: list[str]
) -> None:
    box = Sandbox(furnished)
    before = sorted(p.name for p in furnished.iterdir() if not p.name.startswith("good"))
    result = box.call(command, *words)
    one_usage(result, plain=all(w.isprintable() for w in words))
    after = sorted(p.name for p in furnished.iterdir() if not p.name.startswith("good"))
    assert after == before


@fuzz(40)
@given(
    st.lists(st.sampled_from(["--out", "--format", "--db", "--study", "-h"]) | WORDS, max_size=5)
)
def test_any_report_is_written_or_refused(pristine: Path, words: list[str]) -> None:
    with (
        sandbox() as box,
        mock.patch("autotune.output.report.render.find_chromium", return_value=None),
    ):
        shutil.copytree(pristine, box.folder, dirs_exist_ok=True)
        store = (box.folder / "good.db").read_bytes()
        before = set(box.folder.rglob("*"))
        result = box.call("report", "--db", "good.db", *words)
        one_usage(result, plain=all(w.isprintable() for w in words))
        assert (box.folder / "good.db").read_bytes() == store
        files = {p for p in set(box.folder.rglob("*")) - before if p.is_file()}
        files = {p for p in files if not p.name.startswith("good.db")}
        assert len(files) <= (result.exit_code == 0)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["status", "--db", ""], "empty"),
        (["status", "--db", "a\0b"], "a path cannot have"),
        (["status", "--db", "\udcff.db"], "a path cannot have"),
        (["status", "--db", "x" * 5000], "File name too long"),
        (["status", "--db", "/dev/null"], "not a regular file"),
        (["status", "--db", "folder"], "directory"),
        (["status", "--db", "no/such.db"], "no such database"),
        (["status", "--db", "text.db/x"], "text.db/x"),
        (["run", "good.yaml", "--timeout", "nan"], "not a number"),
        (["run", "good.yaml", "--seed", str(2**32)], "not in the range"),
        (["run", "good.yaml", "--trials", "9" * 30], "not in the range"),
        (["run", ""], "folder"),
        (["doctor", ""], "folder"),
        (["init", "--out", "a\0b"], "a path cannot have"),
        (["pareto", "--out", "x" * 5000], "File name too long"),
        (["report", "--out", "x" * 5000], "File name too long"),
        (["report", "--out", "a\0b"], "a path cannot have"),
        (["report", "--db", "good.db", "--out", "good.db"], "is the database itself"),
        (["report", "--db", "good.db", "--out", "no/such/report.md"], "does not exist"),
        (["report", "--format", "docx"], "docx"),
        (["export", "--out", "/dev/null"], "not a regular file"),
        (["export", "--port", "0"], "not in the range"),
        (["export", "--port", "9" * 5000], ""),
        (["export", "--trial", "1", "--balanced"], "exclude each other"),
        (["compare", "good.db", "good.db"], "compared with itself"),
        (["compare", "good.db", "good.db:good"], "compared with itself"),
        (["compare", "good.db:good", "good.db", "--study-a", "x"], "names its study already"),
        (["compare", "a\0b", "\udcff.db"], "no such database"),
        (["compare", "x" * 5000, "good.db"], "no such database"),
        (["compare", "/dev/null", "good.db"], "no such database"),
        (["compare", "text.db", "good.db"], "text.db"),
        (["compare", "good.db", "good.db", "--threshold", "nan"], "not a share below 1"),
        (["compare", "good.db", "good.db", "--threshold", "9" * 5000 + "%"], "not a share below 1"),
    ],
)
def test_command_lines_that_must_be_refused(
    pristine: Path, tmp_path: Path, args: list[str], words: str
) -> None:
    shutil.copytree(pristine, tmp_path, dirs_exist_ok=True)
    box = Sandbox(tmp_path)
    result = box.call(*args)
    assert result.exit_code == 2
    one_usage(result, plain=True)
    assert words in result.stderr
    assert box.reached == []


def test_nothing_is_run_here_that_would_be_elsewhere(tmp_path: Path) -> None:
    furnish(tmp_path)
    box = Sandbox(tmp_path)
    for args in (
        ["run", "good.yaml"],
        ["run"],
        ["confirm", "good.yaml"],
        ["crosscheck", "demo-cpu"],
    ):
        one_usage(box.call(*args), plain=True)
    assert box.reached == ["autotune.tuning.prepare.prepare"] * 4


SHELL = st.sampled_from(
    [
        *("vllm", "serve", "org/m", "python3", "-m", "vllm.entrypoints.openai.api_server", "env"),
        *("export", "A=1", "A=\x1b", "HF_TOKEN=hf_abcdefghijk", "=", "--model", "--model=m", "-tp"),
        *("2", "-1", "9" * 5000, "1e999", "9" * 400 + "k", "--max-num-seqs", "--max-model-len"),
        *("--max-num-batched-tokens", "8k", "x\ny", "0", "-O3", "-sc", "--speculative-config"),
        *(
            "{}",
            '{"model": "d"}',
            '{"model": "d", "num_speculative_tokens": 99999999}',
            '{"a": NaN}',
        ),
        *('{"model": "d", "x": ' + "[" * 300 + "]" * 300 + "}", "{" * 3000, "[1]", '{"model": 1}'),
        *(
            "--a.b",
            "--no-x",
            "--no-",
            "--",
            "-",
            "---",
            "--\n",
            "\0",
            "\udcff",
            "'",
            "$(touch run)",
        ),
        *("`touch run`", ";", "|", ">", "é", "\u2028", "--port", "8000", "--api-key", "sk-1234567"),
    ]
) | st.text(max_size=8)


@fuzz(200)
@given(
    st.sampled_from([[], ["vllm", "serve", "m"], ["vllm", "serve"], ["env"]]),
    st.lists(SHELL, min_size=1, max_size=6),
    st.booleans(),
)
def test_init_writes_a_study_of_any_command_or_one_line(
    head: list[str], words: list[str], joined: bool
) -> None:
    argv = [" ".join([*head, *words])] if joined else [*head, *words]
    with sandbox() as box:
        result = box.call("init", "--out", "s.yaml", "--", *argv)
        assert result.exit_code in {0, 2}, repr(result.exception)
        assert not (box.folder / "run").exists()
        if result.exit_code == 0:
            text = (box.folder / "s.yaml").read_text(encoding="utf-8")
            assert isinstance(parse_study(text, Path("s.yaml"), check_files=False), LoadedStudy)
        else:
            one_usage(result, plain=True)
            assert len(result.stderr) <= 600
            assert list(box.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["--max-num-batched-tokens", "9" * 5000], "max-num-batched-tokens"),
        (["--max-num-batched-tokens", "9" * 30], "max-num-batched-tokens"),
        (["--max-num-seqs", "9" * 30], "max-num-seqs"),
        (["-sc", "{" * 3000], "speculative-config"),
        (["--x", "\udcff"], "x"),
    ],
)
def test_commands_that_make_no_study(command: list[str], words: str) -> None:
    with pytest.raises(UserError) as e:
        parse_study(study_from_command(["vllm", "serve", "m", *command], "mine"), Path("s.yaml"))
    assert words.replace("-", "_") in str(e.value).replace("-", "_")
    assert len(str(e.value)) <= 500


def test_a_line_break_in_a_command_writes_no_yaml_of_its_own() -> None:
    argv = ["vllm", "serve", "m", "--max-num-batched-tokens", "1\nname: other"]
    with pytest.raises(UserError, match="max-num-batched-tokens"):
        study_from_command(argv, "mine")


def test_words_of_the_shell_stay_words() -> None:
    text = study_from_command(["vllm", "serve", "m", "--x", "$(touch run)"], "mine")
    spec = parse_study(text, Path("s.yaml")).spec
    assert spec.server.flags == {"x": "$(touch run)"}
    assert shlex.join(spec.server.command or ()) == "vllm serve"


@pytest.mark.parametrize("value", ["9" * 5000, "9" * 400 + "k", "1e999", "9" * 31])
def test_a_number_beyond_all_numbers_stays_the_word_that_it_is(value: str) -> None:
    text = study_from_command(["vllm", "serve", "m", "--served-model-name", value], "mine")
    assert parse_study(text, Path("s.yaml")).spec.server.flags == {"served_model_name": value}
