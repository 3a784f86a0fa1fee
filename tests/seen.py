"""Store what a user sees of the committed databases, and show what changed since a commit.

    python -m tests.seen --since COMMIT                 what changed from COMMIT to the working tree
    python -m tests.seen --store FOLDER [--of COMMIT]   store the views of a tree
    python -m tests.seen --against FOLDER               what changed from stored views

A view is one command line. What it prints, its exit code, the files that it writes and whether it
changed its database all count. The commands are those that read a database (`status`, `best`,
`export`, `report`, `pareto`, `predict`, `explain`, `map --show`, `compare`, `dashboard`), some
mistakes in them, `init`, `completion`, and the help of every command. `ps`, `reap` and `doctor` are
left out because they show the machine. Only the command line is used, so a tree can be laid out in
any way: `[project.scripts]` in its pyproject.toml says where it begins. Each view runs in a process
of its own, forked from one that has imported the libraries but nothing of autotune.

Each tree is copied to a path of the same length, because some lines are wrapped and name a path.
Each view runs in a folder of its own, with copies of the databases; no Chromium is used. With
`--since`, both trees read the databases of COMMIT. Otherwise, they are those of the working tree.

Numbers of 14 and more digits are compared by their first 10, because the last ones depend on how a
sum or a quantile is computed. What must differ is replaced: the paths of the tree and of the view's
folder, `autotune`'s version, today's date with the time after it, the dashboard's port, and the
random names that Plotly gives its figures. Plotly's own program and long compressed texts are
replaced by a digest.

Exit code: 0 without a difference, 3 with one, as `autotune compare` has it.
"""

from __future__ import annotations

import argparse
import difflib
import fnmatch
import hashlib
import io
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import SimpleQueue
from urllib.error import URLError

from tests.paths import ROOT

RESULTS = "studies/results"
DIFFERENT = 3
TIMEOUT_S = 600
MOST_SHOWN = 400  # characters of a line, lines of a view's difference

# Runs command lines, one after another, each in a fork of a process that has the libraries
# imported already: most of a command's time is theirs. Nothing of autotune is imported before.
HOST = """
import importlib, json, os, sys
from contextlib import suppress
for name in (
    "alembic.command", "click", "httptools", "httpx", "jinja2", "kaleido", "numpy", "optuna",
    "optuna.storages", "optuna_dashboard", "orjson", "plotly.graph_objects", "plotly.io",
    "prometheus_client.parser", "psutil", "pydantic", "rich.console", "scipy.optimize",
    "scipy.special", "scipy.stats", "sqlalchemy.orm", "yaml",
):
    with suppress(ImportError):
        importlib.import_module(name)
for line in sys.stdin:
    module, entry, words, folder, out, err = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        for stream, file in enumerate((os.devnull, out, err)):
            os.dup2(os.open(file, os.O_RDWR | os.O_CREAT, 0o600), stream)
        sys.argv = ["autotune", *words]
        sys.exit(getattr(importlib.import_module(module), entry)())
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

FORMATS = ("shell", "vllm-config", "compose", "kubernetes", "systemd")
OF_A_DATABASE: tuple[tuple[str, ...], ...] = (
    ("status",),
    ("status", "--json"),
    ("status", "--time"),
    ("status", "--time", "--json"),
    ("status", "--trial", "0"),
    ("status", "--trial", "7"),
    ("best",),
    ("best", "--json"),
    ("best", "--shell", "--objective", "p95_latency"),
    ("best", "--balanced"),
    *(("export", "--format", form) for form in FORMATS),
    ("export", "--trial", "0", "--vllm", "0.24.0", "--host", "0.0.0.0"),  # noqa: S104
    ("report",),
    ("report", "--format", "md"),
    ("pareto", "--out", "plots"),
    ("predict",),
    ("predict", "--json"),
    ("dashboard", "--port", "PORT"),
)
OF_A_STUDY: tuple[tuple[str, ...], ...] = (
    ("explain", "STUDY", "--vllm", "0.32.0"),
    ("explain", "STUDY", "--vllm", "0.32.0", "--json"),
    ("map", "STUDY", "--show", "--plot", "map.html"),
    ("map", "STUDY", "--show", "--json"),
)
OF_ONE_DATABASE: tuple[tuple[str, ...], ...] = (
    *(("export", "--format", form, "--balanced", "--out", "written") for form in FORMATS),
    ("status", "--trial", "999"),
    ("status", "--study", "none"),
    ("status", "--json", "--trial", "1"),
    ("best", "--objective", "none"),
    ("compare", "autotune.db", "autotune.db"),
)
OF_A_PAIR: tuple[tuple[str, ...], ...] = (
    ("compare", "a.db", "b.db"),
    ("compare", "a.db", "b.db", "--json"),
    ("compare", "b.db", "a.db", "--objective", "throughput", "--threshold", "3%"),
)
PAIRS = (
    ("demo-cpu/autotune.db", "demo-cpu-against-grid/autotune.db"),
    ("smollm2-h200/autotune.db", "smollm2-h200-c32/autotune.db"),
    ("smollm2-h200-c32/autotune.db", "smollm2-h200-c32/resumed.db"),
)
OF_NOTHING: tuple[tuple[str, ...], ...] = (
    ("--version",),
    ("status", "--db", "none.db"),
    ("completion", "bash"),
    ("init", "--name", "mine"),
    ("init", "--", "vllm", "serve", "org/model", "--max-num-seqs", "8"),
)


@dataclass(frozen=True)
class View:
    """One command line, and the databases that its folder holds."""

    name: str
    words: tuple[str, ...]
    databases: Mapping[str, Path] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """Name of the file that stores the view."""
        return re.sub(r"[^A-Za-z0-9.%=-]+", "_", self.name).strip("_") + ".txt"


@dataclass(frozen=True)
class Tree:
    """A copy of the repository, and the folder in which its views run."""

    root: Path
    work: Path

    @property
    def entry(self) -> tuple[str, str]:
        """Module and function of autotune's command line."""
        about = tomllib.loads((self.root / "pyproject.toml").read_text(encoding="utf-8"))
        module, _, name = about["project"]["scripts"]["autotune"].partition(":")
        return module, name

    @property
    def argv(self) -> list[str]:
        """Command that starts autotune's command line."""
        module, name = self.entry
        code = f"import sys; from {module} import {name} as main; sys.argv[0] = 'autotune'; main()"
        return [sys.executable, "-P", "-c", code]

    @property
    def env(self) -> dict[str, str]:
        """Environment of every command: nothing of the user's, no color, no browser."""
        home = self.work / "home"
        home.mkdir(exist_ok=True)
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(self.root),
            "PYTHONHASHSEED": "0",
            "HOME": str(home),
            "TZ": "UTC",
            "LANG": "C.UTF-8",
            "COLUMNS": "120",
            "NO_COLOR": "1",
            "OMP_NUM_THREADS": "1",
            "BROWSER_PATH": str(home / "no-browser"),
        }


class Host:
    """A process that runs a tree's command lines; one at a time."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", HOST],
            env=tree.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def run(self, words: Sequence[str], folder: Path) -> dict[str, str]:
        """Return the exit code and what the command printed."""
        files = [folder.with_suffix(end) for end in (".out", ".err")]
        order = [*self.tree.entry, list(words), str(folder), *map(str, files)]
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("both are pipes")
        self._process.stdin.write(json.dumps(order) + "\n")
        code = self._process.stdout.readline().strip()
        out, err = (file.read_bytes().decode(errors="replace") for file in files)
        for file in files:
            file.unlink()
        return {"exit code": code, "stdout": out, "stderr": err}

    def close(self) -> None:
        """End the process, which reads its orders to their end."""
        self._process.communicate()


def databases(root: Path) -> dict[str, Path]:
    """Return the committed databases by their path below the results."""
    results = root / RESULTS
    return {str(path.relative_to(results)): path for path in sorted(results.rglob("*.db"))}


def study_of(database: Path) -> str:
    """Return the name of a database's only study."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro&immutable=1", uri=True)) as db:
        ((name,),) = db.execute("select study_name from studies").fetchall()
    return str(name)


def views(tree: Tree, found: Mapping[str, Path]) -> list[View]:
    """Return every view of a tree, on these databases."""
    all_views = [View(" ".join(words), words) for words in (*OF_NOTHING, *helps(tree))]
    for number, (path, database) in enumerate(found.items()):
        name = study_of(database)
        of_study = [tuple(name if w == "STUDY" else w for w in words) for words in OF_A_STUDY]
        for words in (*OF_A_DATABASE, *of_study, *([] if number else OF_ONE_DATABASE)):
            which = {"autotune.db": database}
            all_views.append(View(f"{path.removesuffix('.db')}: {' '.join(words)}", words, which))
    for a, b in PAIRS:
        if a in found and b in found:
            both = {"a.db": found[a], "b.db": found[b]}
            title = f"{a.removesuffix('.db')} and {b.removesuffix('.db')}"
            all_views += [View(f"{title}: {' '.join(words)}", words, both) for words in OF_A_PAIR]
    return all_views


def helps(tree: Tree) -> list[tuple[str, ...]]:
    """Return the command line for the help of every command that the tree's own help lists."""
    done = subprocess.run(
        [*tree.argv, "--help"], env=tree.env, capture_output=True, text=True, check=True
    )
    listed = done.stdout.partition("Commands:")[2]
    commands = re.findall(r"^  ([a-z]\S*)", listed, flags=re.MULTILINE)
    return [("--help",), *((command, "--help") for command in commands)]


def look(host: Host, view: View) -> str:
    """Run a view in a new folder and return all that is seen of it, as text."""
    tree = host.tree
    folder = Path(tempfile.mkdtemp(prefix="view-", dir=tree.work))
    for name, path in view.databases.items():
        shutil.copy(path, folder / name)
    before = {name: contents(folder / name) for name in view.databases}
    if view.words[0] == "dashboard" and "--help" not in view.words:
        seen = _dashboard(tree, view, folder)
    else:
        seen = host.run(view.words, folder)
    for name, held in before.items():
        after = contents(folder / name)
        changed = sorted(t for t in {*held, *after} if held.get(t) != after.get(t))
        seen[f"tables changed in {name}"] = "\n".join(changed)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in view.databases:
            seen[f"file {path.relative_to(folder)}"] = _text(path)
    shutil.rmtree(folder)
    parts = [f"$ autotune {' '.join(view.words)}"]
    parts += [f"=== {title}\n{text}".rstrip("\n") for title, text in seen.items()]
    return normalized(
        "\n".join(parts) + "\n", {folder: "FOLDER", tree.root: "TREE", tree.work: "WORK"}
    )


def contents(database: Path) -> dict[str, str]:
    """Return a digest of each table's rows and columns."""
    with closing(sqlite3.connect(database)) as db:
        tables = [t for (t,) in db.execute("select name from sqlite_master where type = 'table'")]
        found = {}
        for table in tables:
            rows = db.execute(f'select * from "{table}"')  # noqa: S608
            digest = hashlib.sha256(repr([c[0] for c in rows.description]).encode())
            for row in rows:
                digest.update(repr(row).encode())
            found[table] = digest.hexdigest()
    return found


def _text(path: Path) -> str:
    """Return a file's text, or the digest of one that is no text."""
    data = path.read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError:
        return f"sha256 {hashlib.sha256(data).hexdigest()}"


def _dashboard(tree: Tree, view: View, folder: Path) -> dict[str, str]:
    """Serve the dashboard, fetch what its page fetches, and interrupt it."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    words = [str(port) if word == "PORT" else word for word in view.words]
    output = folder.with_suffix(".out")
    with output.open("w+b") as stream:
        process = subprocess.Popen(
            [*tree.argv, *words], cwd=folder, env=tree.env, stdout=stream, stderr=stream
        )
        try:
            seen = _pages(f"http://127.0.0.1:{port}", process)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    seen["exit code"] = str(process.returncode)
    printed = output.read_text(encoding="utf-8", errors="replace").replace(str(port), "PORT")
    output.unlink()
    return {"exit code": seen.pop("exit code"), "stdout and stderr": printed, **seen}


def _pages(url: str, process: subprocess.Popen[bytes]) -> dict[str, str]:
    """Return what a dashboard answers about its studies, or nothing where it never answers."""
    deadline = time.monotonic() + TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            listed = _fetched(f"{url}/api/studies")
        except (URLError, OSError):
            time.sleep(0.2)
            continue
        seen = {"/api/studies": json.dumps(listed, indent=1)}
        for study in listed["study_summaries"]:  # type: ignore[index, call-overload]
            path = f"/api/studies/{study['study_id']}"
            seen[path] = json.dumps(_fetched(url + path), indent=1)
        return seen
    return {}


def _fetched(url: str) -> object:
    with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310
        return json.load(answer)


def normalized(text: str, paths: Mapping[Path, str]) -> str:
    """Replace what must differ from run to run; the module's docstring lists it."""
    for path, name in paths.items():
        text = text.replace(str(path), name)
    now = datetime.now(UTC)
    days = "|".join(f"{now - timedelta(days=d):%Y-%m-%d}" for d in (0, 1))
    text = re.sub(rf"\b(?:{days})\b(?:[ T]\d\d:\d\d(?::\d\d(?:\.\d+)?)?)?", "TODAY", text)
    text = re.sub(r"(\bautotune(?:,? version)?) \d+\.\d+\.\d+[\w.+]*", r"\1 VERSION", text)
    if "plotly" in text:
        text = text.replace(_plotly(), f"PLOTLY {_digest(_plotly())}")
        text = re.sub(r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b", "RANDOM", text)
    return re.sub(r"[A-Za-z0-9+/=]{2000,}", lambda m: f"BASE64 {_digest(m[0])}", text)


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def difference(before: str, after: str, name: str) -> list[str]:
    """Return a unified difference of two texts, with their long lines broken and cut."""
    old, new = (_broken(text) for text in (before, after))
    lines = list(difflib.unified_diff(old, new, name, name, "before", "after", lineterm=""))
    cut = [line if len(line) <= MOST_SHOWN else f"{line[:MOST_SHOWN]} …" for line in lines]
    more = len(cut) - MOST_SHOWN
    return cut if more <= 0 else [*cut[:MOST_SHOWN], f"… {more} more lines"]


def _broken(text: str) -> list[str]:
    """Return the lines of a text, long ones broken where JSON and HTML allow it."""
    found: list[str] = []
    for line in text.splitlines():
        found += re.split(r"(?<=[,;>])", line) if len(line) > MOST_SHOWN else [line]
    return found


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Return the difference of all views, a heading before each view that differs."""
    lines: list[str] = []
    for name in sorted({*before, *after}):
        old, new = before.get(name, ""), after.get(name, "")
        if _rounded(old) != _rounded(new):
            lines += difference(_rounded(old), _rounded(new), name)
    return lines


def _rounded(text: str) -> str:
    """Return a text with its numbers of 14 and more digits at 10, which is what is promised."""
    return re.sub(
        r"(?<![\w.])\d+\.\d+(?:e-?\d+)?(?![\w.])",
        lambda m: f"{float(m[0]):.10g}" if len(m[0]) > 14 else m[0],
        text,
    )


@contextmanager
def tree_of(commit: str | None) -> Iterator[Tree]:
    """Copy a commit's tree, or the working tree, to a path whose length is always the same."""
    with tempfile.TemporaryDirectory(prefix="autotune-seen-") as name:
        work = Path(name)
        tree = Tree(work / "tree", work)
        tree.root.mkdir()
        if commit is None:
            listed = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
            for path in filter(None, listed.decode().split("\0")):
                source, target = ROOT / path, tree.root / path
                if source.is_file():  # one that was removed is listed until it is committed
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(source, target)
        else:
            with tarfile.open(fileobj=io.BytesIO(_git("archive", commit))) as archive:
                archive.extractall(tree.root, filter="data")
        yield tree


def _git(*words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, check=True).stdout  # noqa: S607


def seen_of(
    commit: str | None,
    jobs: int,
    only: str,
    data: Mapping[str, Path] | None = None,
    store: Path | None = None,
) -> dict[str, str]:
    """Return every view of a tree by the name of its file, ``jobs`` at a time.

    Each is also written into the folder ``store`` as soon as it is there.
    """
    with tree_of(commit) as tree, ThreadPoolExecutor(jobs) as pool, ExitStack() as stack:
        hosts: SimpleQueue[Host] = SimpleQueue()
        for _ in range(jobs):
            host = Host(tree)
            stack.callback(host.close)
            hosts.put(host)

        def seen(view: View) -> str:
            host = hosts.get()
            try:
                text = look(host, view)
                if store is not None:
                    (store / view.file).write_text(text, encoding="utf-8")
                return text
            finally:
                hosts.put(host)

        wanted = views(tree, databases(ROOT) if data is None else data)
        wanted = [view for view in wanted if fnmatch.fnmatch(view.name, only)]
        if len({view.file for view in wanted}) < len(wanted):
            raise AssertionError("two views would be stored in one file")
        texts = list(pool.map(seen, wanted))
    return {view.file: text for view, text in zip(wanted, texts, strict=True)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Store or compare views; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.seen", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--since", metavar="COMMIT", help="compare with this commit")
    what.add_argument("--store", metavar="FOLDER", type=Path, help="store the views here")
    what.add_argument("--against", metavar="FOLDER", type=Path, help="compare with stored views")
    parser.add_argument("--of", metavar="COMMIT", help="tree to look at; default: the working tree")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="views at a time")
    parser.add_argument(
        "--only", default="*", metavar="PATTERN", help="views to run, as `*: best*`"
    )
    asked = parser.parse_args(arguments)
    if asked.store:
        asked.store.mkdir(parents=True, exist_ok=True)
        seen_of(asked.of, asked.jobs, asked.only, store=asked.store)
        return 0
    if asked.since:
        with tree_of(asked.since) as old:
            data = databases(old.root)
            before = seen_of(asked.since, asked.jobs, asked.only, data)
            after = seen_of(asked.of, asked.jobs, asked.only, data)
    else:
        after = seen_of(asked.of, asked.jobs, asked.only)
        stored = {path.name: path for path in asked.against.glob("*.txt")}
        wanted = stored if asked.only == "*" else {n: p for n, p in stored.items() if n in after}
        before = {name: path.read_text(encoding="utf-8") for name, path in wanted.items()}
    lines = differences(before, after)
    print("\n".join(lines) or f"no difference in {len(after)} views")  # noqa: T201
    return DIFFERENT if lines else 0


if __name__ == "__main__":
    sys.exit(main())
