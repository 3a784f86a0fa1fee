"""Every command line that starts a server in vLLM's documentation, examples and recipes.

    python -m benchmarks.vllm_commands --source FOLDER … [--out FILE.json]
    python -m benchmarks.vllm_commands --list [REASON]

FOLDER is an unpacked source distribution of vLLM, or a folder of it. Its README, ``docs``,
``examples``, ``docker``, ``benchmarks`` and ``recipes`` are read: code blocks, inline code,
scripts, comments and docstrings of Python files, Compose and Kubernetes files; and of each recipe
the commands that its arguments stand for: default, each variant, each optional feature, each kind
of hardware.

Each is given to ``autotune init``. The file says for each why it is refused (``refused``; empty: it
gives a study) and what the installed vLLM's parser refuses in it (``parser``), such as a flag of
another version. ``tests/study/test_vllm_commands.py`` expects just that of both.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from autotune.engine.command import _arguments
from autotune.engine.entry import hiding, server_environment
from autotune.engine.probe import VllmInfo, probe
from autotune.errors import UserError
from autotune.study.files import LoadedStudy, parse_study
from autotune.study.from_command import study_from_command
from autotune.study.manifests import is_manifest
from autotune.study.schema import ServerSpec
from autotune.study.shell import unmarked
from autotune.study.space import MNBT, N
from autotune.study.start import start_of, start_of_manifest

DATA = Path(__file__).parents[1] / "tests" / "data" / "vllm_commands.json"
_START = re.compile(
    r"\bvllm serve\b|-m[ ]+vllm\.entrypoints\.(openai\.api_server|cli\.main)\b"
    r"|vllm[\w/.-]*openai[\w-]*:"
)
_FENCE = re.compile(r"^(\s*)(```+|~~~+)\s*([\w+-]*)")
_SETS = re.compile(r"\s*(export\s+)?[A-Za-z_][A-Za-z0-9_]*=")
_INLINE = re.compile(r"`((?:[A-Z_]+=\S+ )*(?:vllm serve|python3? -m vllm\.entrypoints\S+) [^`]+)`")
_FOLDERS = ("README.md", "docs", "examples", "docker", "benchmarks", "recipes", "tools/recipes")
_MANIFEST = re.compile(r"(?m)^\s*(- )?(image|command|args)\s*:")
# Why `init` refuses a text, as the data names it, by its message.
REASONS = {
    r"only your shell knows|is a placeholder": "a variable of the shell, or a placeholder",
    r"several that work together|starts several processes": "one of several servers",
    r"autotune measures the OpenAI API|without an API": "no OpenAI API",
    r"vLLM-Omni": "vLLM-Omni",
    r"profiler": "a profiler",
    r"names no model|takes no model without a flag": "names no model",
    r"in front of vLLM is not understood": "a wrapper that is not known",
    r"is a command of its own": "a line without a backslash above it",
    r"vLLM is started in ": "in a loop, a function or an if",
    r"the text starts vLLM": "several starts",
    r"no command that starts vLLM|no container that starts": "starts no server",
    r"several containers": "several containers",
    r"belongs to no flag": "a word that belongs to no flag",
    r"is a switch, for which": "a switch with a value",
    r"is not JSON": "no JSON",
    r"needs a value": "a flag without its value",
    r"cannot be split": "a quotation mark without its pair",
    r"model is missing": "a method that drafts nothing",
    r"--config: (.* cannot be read|needs a file)": "a --config file that is elsewhere",
    r"looks like a Compose or Kubernetes": "a template of Helm",
    r"is no short flag|takes 0 to 3": "a short flag that vLLM lacks",
    r"not supported: its container|container of another": "a container elsewhere",
    r"that autotune can own|names no image": "a container that does not start one server",
    r"runs a shell": "a container that runs a script",
}


def _open_quote(text: str) -> bool:
    """Return whether a quotation mark of a shell text has no pair."""
    left = re.sub(r"\\.|'[^']*'|\"(?:[^\"\\]|\\.)*\"|(?m:(?<!\S)#.*$)", "", text, flags=re.DOTALL)
    return "'" in left or '"' in left


def logical_lines(text: str, first: int) -> Iterator[tuple[int, str]]:
    """Yield the commands of a shell text with their lines: joined where a line goes on."""
    held: list[str] = []
    began = first
    for number, line in enumerate(text.splitlines(), first):
        if not held:
            began = number
        held.append(line)
        whole = "\n".join(held)
        goes_on = re.search(r"\\\s*(#.*)?$", line) is not None or (
            _open_quote(whole) and not line.lstrip().startswith("#")
        )
        if goes_on and len(held) < 80:
            continue
        held = []
        yield began, whole
    if held:
        yield began, "\n".join(held)


def in_shell(text: str, first: int) -> Iterator[tuple[int, str]]:
    """Yield the starts of a shell text, each after the variables that were set before it."""
    sets: list[str] = []
    for number, line in logical_lines(text, first):
        stripped = line.strip()
        if stripped.startswith("#"):
            continue
        if _START.search(line):
            yield number, "\n".join([*sets, stripped])
        elif _SETS.match(line) and line[:1].strip():
            sets.append(stripped)


def in_markdown(text: str, first: int = 1) -> Iterator[tuple[int, str]]:
    """Yield the starts of a Markdown text: in code blocks and in inline code."""
    fence, block, began, language = "", list[str](), 0, ""
    indent = 0
    for number, line in enumerate(text.splitlines(), first):
        match = _FENCE.match(line)
        if not fence and match:
            fence, language, indent = match[2], match[3].lower(), len(match[1])
            block, began = [], number + 1
        elif fence and line.strip().startswith(fence):
            body = "\n".join(b[indent:] if b[:indent].strip() == "" else b for b in block)
            fence = ""
            if not _START.search(body) or language in (
                "python",
                "py",
                "dockerfile",
                "json",
                "toml",
            ):
                continue
            if language in ("yaml", "yml"):
                if _MANIFEST.search(body):
                    yield began, body
            else:
                yield from in_shell(body, began)
        elif fence:
            block.append(line)
        else:
            yield from ((number, m[1]) for m in _INLINE.finditer(line))


def in_python(text: str) -> Iterator[tuple[int, str]]:
    """Yield the starts that comments and docstrings of a Python file hold."""
    plain = re.sub(r'(?m)^[ \t]*#(?!!)[ \t]?|"""|\'\'\'', "", text)
    for number, line in logical_lines(plain, 1):
        if re.match(
            r"\s*(\$ )?([A-Z_]+=\S+ )*(vllm serve|python3? -m vllm\.entrypoints)\S* ?", line
        ):
            yield number, line.strip()


def of_recipe(body: Mapping[str, Any]) -> Iterator[str]:
    """Yield the commands that a recipe's arguments stand for."""
    model = body["model"]
    features = body.get("features") or {}
    optional = set(body.get("opt_in_features") or [])
    base = [*map(str, model.get("base_args") or [])]
    usual = [str(a) for k, f in features.items() if k not in optional for a in f.get("args") or []]

    def text(name: str, args: Sequence[str], *envs: Mapping[str, Any] | None) -> str:
        env = {**(model.get("base_env") or {})}
        for more in envs:
            env |= more or {}
        sets = [f"{k}={shlex.quote(str(v))}" for k, v in env.items()]
        return " ".join([*sets, shlex.join(["vllm", "serve", name, *args])])

    own = str(model["model_id"])
    yield text(own, [*base, *usual])
    for variant in (body.get("variants") or {}).values():
        more = [*map(str, variant.get("extra_args") or [])]
        yield text(
            str(variant.get("model_id") or own), [*base, *usual, *more], variant.get("extra_env")
        )
    for name, feature in features.items():
        if name in optional or feature.get("env"):
            more = [*map(str, feature.get("args") or [])]
            yield text(own, [*base, *more], feature.get("env"))
    for hardware in (body.get("hardware_overrides") or {}).values():
        more = [*map(str, hardware.get("extra_args") or [])]
        yield text(own, [*base, *usual, *more], hardware.get("extra_env"))


def in_recipe(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the starts of a recipe: those of its arguments and those of its guide."""
    text = path.read_text(encoding="utf-8")
    body = yaml.safe_load(text)
    at = next((i for i, line in enumerate(text.splitlines(), 1) if line.startswith("model:")), 1)
    yield from ((at, command) for command in of_recipe(body))
    yield from in_markdown(text)


def in_file(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the starts of a file, each with its line."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix in (".md", ".rst", ".txt"):
        yield from in_markdown(text)
    elif path.suffix in (".sh", ".bash"):
        yield from in_shell(text, 1)
    elif path.suffix in (".yaml", ".yml"):
        if "recipes" in path.parts and "models" in path.parts:
            yield from in_recipe(path)
        elif _START.search(text) and _MANIFEST.search(text):
            yield 1, text
    elif path.suffix == ".py":
        yield from in_python(text)


def found_in(source: Path) -> Iterator[dict[str, str]]:
    """Yield the starts of a source distribution, each text once."""
    seen: set[str] = set()
    whole = (source / "docs").is_dir()
    base = source.parent if whole else source.parent.parent
    for root in [source / name for name in _FOLDERS] if whole else [source]:
        files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
        for path in files:
            for line, text in in_file(path):
                plain = " ".join(text.split())
                if plain not in seen and len(plain.split()) > 2:
                    seen.add(plain)
                    yield {"at": f"{path.relative_to(base)}:{line}", "text": text}


def answer(text: str) -> str:
    """Return why `init` refuses a text, as :data:`REASONS` has it; empty: it gives a study."""
    try:
        study_of(text)
    except UserError as e:
        message = str(e)
        return next((r for pattern, r in REASONS.items() if re.search(pattern, message)), message)
    return ""


@cache
def study_of(text: str) -> LoadedStudy:
    """Return the study that `init` writes for a text."""
    return parse_study(study_from_command([text], "mine"), Path("mine.yaml"))


def launched(study: LoadedStudy, n: int, info: VllmInfo) -> list[str]:
    """Return the model and the flags that a study launches at one n."""
    server = study.spec.server
    flags = _arguments(server, {N: n, MNBT: 8192}, info, str)
    return ["--model", server.model, *(word for flag in flags for word in flag)]


def parsed(studies: Mapping[str, LoadedStudy]) -> dict[str, dict[str, Any]]:
    """Return what the installed vLLM's parser makes of commands and their studies, by text."""
    server = ServerSpec(model="m")
    info = probe(server)
    env, _ = server_environment(server, info.python)
    asked = []
    for text, study in studies.items():
        start = start_of_manifest(text) if is_manifest(text) else start_of([text])
        drafts = study.spec.server.speculative is not None
        n3 = launched(study, 3, info) if drafts else None
        asked.append([list(map(unmarked, start.arguments)), launched(study, 0, info), n3])
    done = subprocess.run(
        [info.python or sys.executable, str(Path(__file__).with_name("vllm_parser.py"))],
        env={**env, **hiding(info.hidden, env)},
        input=json.dumps(asked),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return dict(zip(studies, json.loads(done.stdout), strict=True))


def main(argv: Sequence[str] | None = None) -> None:
    """Write the data, or list what is refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, action="append", default=[])
    parser.add_argument("--out", type=Path, default=DATA)
    parser.add_argument("--list", nargs="?", const="", help="show what is refused, and the message")
    args = parser.parse_args(argv)
    if args.source:
        commands = [c for source in args.source for c in found_in(source)]
        for command in commands:
            command["refused"] = answer(command["text"])
        taken = {c["text"]: study_of(c["text"]) for c in commands if not c["refused"]}
        answers = parsed(taken)
        for command in commands:
            if why := answers.get(command["text"], {}).get("found"):
                command["parser"] = why
        args.out.parent.mkdir(parents=True, exist_ok=True)
        rows = ",\n".join(json.dumps(c, ensure_ascii=False) for c in commands)
        args.out.write_text(f"[\n{rows}\n]\n", encoding="utf-8")
    commands = json.loads(args.out.read_text(encoding="utf-8"))
    counts = Counter(c["refused"] for c in commands)
    if args.list is not None:
        for c in commands:
            if c["refused"] and args.list in c["refused"]:
                print(f"{c['at']}: {c['refused']}\n    {' '.join(c['text'].split())[:200]}")
    refused = Counter(c["parser"] for c in commands if c.get("parser"))
    for reason, number in refused.most_common(20):
        print(f"{number:5}  vLLM's parser: {reason[:150]}")
    for reason, number in counts.most_common():
        print(f"{number:5}  {reason or 'a study'}")


if __name__ == "__main__":
    main()
