"""vLLM's own error messages that a launch can meet, and how many the classifier gets right.

    python -m benchmarks.failure_messages extract --version V --source FOLDER [--carry V …]
    python -m benchmarks.failure_messages score --version V [--without V …] [--wrong] [--write]
    python -m benchmarks.failure_messages show --version V [--unlabeled]

`extract` reads the Python source of an unpacked source distribution and writes
data/failure_messages/VERSION.json: one entry for each `raise X(message)` and `assert cond, message`
of the scope, with its place, its text and the process that raises it. Kinds are added by people who
read the place; a later `extract` keeps them, and `--carry` takes them over from another version
where file, function and text are the same. `score` writes each entry into a server's log, as the
API server, EngineCore or a worker would, and asks the classifier; `--without` leaves out what
another version has, too, so that only messages count that nobody had seen.

The scope is in failure_scope.py, how a log is written in failure_logs.py.

Kinds: what a user is told to do decides. The configuration, the space or the checkpoint can be
changed: bad_config; the draft has to be another one: draft_mismatch; the machine has to be mended
(a package, a driver, a compiler): machine, unless the message itself names a setting that avoids
it; a file is missing: model_missing. An invariant between vLLM's own parts, or a process that is
gone, is a crash. Where two kinds are as right, the second is in `also`; where no kind is, or the
text does not say which, `unclear` has the reason and the entry does not count.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import failure_logs
from benchmarks.failure_scope import Scope, scope_of, takes

DATA = Path(__file__).parent / "data" / "failure_messages"


class _Places(ast.NodeVisitor):
    """All raise and assert statements of a module, with the names around them."""

    def __init__(self) -> None:
        self.around: list[ast.AST] = []
        self.found: list[tuple[ast.Raise | ast.Assert, tuple[ast.AST, ...]]] = []

    def generic_visit(self, node: ast.AST) -> None:
        if isinstance(node, (ast.Raise, ast.Assert)):
            self.found.append((node, tuple(self.around)))
        named = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        if named:
            self.around.append(node)
        super().generic_visit(node)
        if named:
            self.around.pop()


def _text(node: ast.expr, names: dict[str, ast.expr]) -> str:
    """Return a message as a template, with expressions in braces."""
    match node:
        case ast.Constant(value=str() as text):
            return text.replace("{", "{{").replace("}", "}}")
        case ast.JoinedStr(values=values):
            return "".join(_text(v, names) for v in values)
        case ast.FormattedValue(value=value, conversion=conversion):
            return "{" + ast.unparse(value) + ("!r" if conversion == ord("r") else "") + "}"
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _text(left, names) + _text(right, names)
        case ast.BinOp(left=left, op=ast.Mod(), right=right):
            values = right.elts if isinstance(right, ast.Tuple) else [right]
            parts = re.split(r"%[-0-9.]*[sdrfxi]", _text(left, names))
            return _woven(parts, values)
        case ast.Call(func=ast.Attribute(value=ast.expr() as base, attr="format"), args=values):
            return _woven(re.split(r"\{\{[^{}]*\}\}", _text(base, names)), values)
        case ast.Call(func=ast.Attribute(attr="join")):
            return "{" + ast.unparse(node) + "}"
        case ast.Tuple(elts=parts):  # an exception with several arguments shows them as a tuple
            return f"({', '.join(_quoted(p, names) for p in parts)})"
        case ast.Name(id=name) if name in names:
            return _text(names[name], {k: v for k, v in names.items() if k != name})
    return "{" + ast.unparse(node) + "}"


def _quoted(node: ast.expr, names: dict[str, ast.expr]) -> str:
    text = _text(node, names)
    return f"'{text}'" if isinstance(node, (ast.Constant, ast.JoinedStr)) else text


def _woven(parts: Sequence[str], values: Sequence[ast.expr]) -> str:
    text = parts[0]
    for i, part in enumerate(parts[1:]):
        text += "{" + (ast.unparse(values[i]) if i < len(values) else "value") + "}" + part
    return text


def _names(tree: ast.Module, function: ast.AST | None, line: int) -> dict[str, ast.expr]:
    """Return what the names of a module and of a function before a line were assigned to."""
    found: dict[str, ast.expr] = {}
    texts = (ast.Constant, ast.JoinedStr, ast.BinOp, ast.Call)
    nodes = [*tree.body, *(ast.walk(function) if function is not None else ())]
    for node in sorted(nodes, key=lambda n: getattr(n, "lineno", 0)):
        if not isinstance(node, ast.Assign) or node.lineno >= line:
            continue
        if isinstance(node.targets[0], ast.Name) and isinstance(node.value, texts):
            found[node.targets[0].id] = node.value
    return found


def _exception(node: ast.Raise | ast.Assert, imports: dict[str, str], module: str) -> str | None:
    """Return an exception's class as a traceback shows it; None: not a class that is called."""
    if isinstance(node, ast.Assert):
        return "AssertionError"
    if not isinstance(node.exc, ast.Call):
        return None
    name = ast.unparse(node.exc.func)
    head = name.split(".")[0]
    if name in _BUILTINS:
        return name
    if not re.fullmatch(r"[A-Za-z_.]+", name) or not name.split(".")[-1][0].isupper():
        return None
    return name.replace(head, imports.get(head, f"{module}.{head}"), 1)


_BUILTINS = {n for n in dir(builtins) if n[0].isupper()}


def _imports(tree: ast.Module) -> dict[str, str]:
    return {
        (a.asname or a.name): f"{node.module}.{a.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module is not None and not node.level
        for a in node.names
    } | {
        (a.asname or a.name): a.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for a in node.names
    }


def identity(file: str, function: str, template: str) -> str:
    """Return an entry's stable identity."""
    return hashlib.sha256(f"{file}\n{function}\n{template}".encode()).hexdigest()[:12]


def _entries(
    file: str,
    path: Path,
    scope: Scope,
    validated: failure_logs.Validated,
    left: Counter[str],
) -> Iterator[dict[str, Any]]:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    lines = source.splitlines()
    imports = _imports(tree)
    places = _Places()
    places.visit(tree)
    for node, around in places.found:
        functions = [f for f in around if not isinstance(f, ast.ClassDef)]
        names = [getattr(f, "name", "") for f in functions]
        if not takes(scope, names):
            continue
        exception = _exception(node, imports, "vllm." + file[:-3].replace("/", "."))
        message = node.msg if isinstance(node, ast.Assert) else None
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            one = len(node.exc.args) == 1 or exception not in _BUILTINS
            message = node.exc.args[0] if one else ast.Tuple(elts=node.exc.args)
        if exception is None or message is None:
            left["bare asserts" if isinstance(node, ast.Assert) else "raised without a text"] += 1
            continue
        outermost = functions[0] if functions else None
        template = _text(message, _names(tree, outermost, node.lineno))
        if not re.search(r"[A-Za-z]{3}", re.sub(r"\{[^{}]*\}", "", template.replace("{{", ""))):
            left["without fixed words"] += 1
            continue
        owner = next((a.name for a in around if isinstance(a, ast.ClassDef)), None)
        step = failure_logs.step_of(file, names, owner, scope.step)
        qualified = ".".join(getattr(a, "name", "") for a in around) or "<module>"
        yield {
            "id": identity(file, qualified, template),
            "file": file,
            "line": node.lineno,
            "class": owner,
            "function": qualified,
            "exception": exception,
            "template": template,
            "code": lines[node.lineno - 1].strip(),
            "process": failure_logs.process_of(step),
            "step": step,
            "validated": failure_logs.validated_as(file, names, owner, exception, step, validated),
            "kind": None,
            "also": [],
            "unclear": None,
        }


def extract(source: Path, version: str, carry: Sequence[str] = ()) -> dict[str, Any]:
    """Return the entries of a version, with the labels that are known for them.

    Args:
        source: Folder of the unpacked source distribution.
        version: Version of vLLM.
        carry: Other versions whose labels are taken where the identity is the same.
    """
    root = source / "vllm"
    if not root.is_dir():
        raise SystemExit(f"error: {source} has no folder vllm: give a source distribution")
    labels: dict[str, dict[str, Any]] = {}
    for other in (*carry, version):
        if (DATA / f"{other}.json").exists():
            labels |= {e["id"]: e for e in read(other)["entries"] if e["kind"] or e["unclear"]}
    left: Counter[str] = Counter()
    validated = failure_logs.validated(root)
    entries: dict[str, dict[str, Any]] = {}
    for path in sorted(root.rglob("*.py")):
        file = path.relative_to(root).as_posix()
        if (scope := scope_of(file)) is not None:
            for entry in _entries(file, path, scope, validated, left):
                if (known := labels.get(entry["id"])) is not None:
                    entry |= {k: known[k] for k in ("kind", "also", "unclear")}
                entries.setdefault(entry["id"], entry)
    return {
        "version": version,
        "left_out": dict(sorted(left.items())),
        "frames": failure_logs.frames(root),
        "entries": list(entries.values()),
    }


def read(version: str) -> dict[str, Any]:
    """Return the entries of a version, as they were written."""
    data: dict[str, Any] = json.loads((DATA / f"{version}.json").read_text(encoding="utf-8"))
    for entry in data["entries"]:
        entry.setdefault("also", [])  # the blind ones were labeled with one kind each
    return data


def write(data: dict[str, Any]) -> Path:
    """Write the entries of a version, one a line."""
    head = {k: v for k, v in data.items() if k != "entries"}
    lines = ",\n  ".join(json.dumps(e, ensure_ascii=False) for e in data["entries"])
    start = json.dumps(head, indent=1, ensure_ascii=False)[:-2]
    text = f'{start},\n "entries": [\n  {lines}\n ]\n}}\n'
    DATA.mkdir(parents=True, exist_ok=True)
    target = DATA / f"{data['version']}.json"
    target.write_text(text, encoding="utf-8")
    return target


@dataclass(frozen=True)
class Answer:
    """What the classifier says of an entry."""

    entry: dict[str, Any]
    kind: str
    reason: str

    @property
    def right(self) -> bool:
        """Whether it is the kind of the label, or one that is as right."""
        return self.kind in (self.entry["kind"], *self.entry["also"])


def answers(data: dict[str, Any]) -> list[Answer]:
    """Return what the classifier says of each entry's log."""
    from autotune.engine.failures import classify
    from autotune.errors import FailureKind

    found = []
    for entry in data["entries"]:
        log, exit_code = failure_logs.rendered(entry, data["frames"])
        cause = classify(
            log, exit_code=exit_code, default=FailureKind.CRASH, reason="the server ended"
        )
        found.append(Answer(entry, str(cause.kind), cause.reason))
    return found


def counts(found: Sequence[Answer]) -> dict[str, Any]:
    """Return right, wrong and unclear answers: in all, by labeled kind, and by process."""
    table: dict[str, Any] = {"all": Counter(), "kinds": {}, "processes": {}}
    for answer in found:
        entry = answer.entry
        word = "unclear" if entry["kind"] is None else "right" if answer.right else "wrong"
        table["all"][word] += 1
        table["kinds"].setdefault(entry["kind"] or "unclear", Counter())[word] += 1
        table["processes"].setdefault(entry["process"], Counter())[word] += 1
    total = table["all"]
    table["share_right"] = round(total["right"] / max(1, total["right"] + total["wrong"]), 4)
    for name in ("kinds", "processes"):
        table[name] = {k: dict(sorted(v.items())) for k, v in sorted(table[name].items())}
    table["all"] = dict(sorted(total.items()))
    return table


def _score(version: str, without: Sequence[str], wrong: bool, keep: bool) -> None:
    data = read(version)
    seen = {e["id"] for other in without for e in read(other)["entries"]}
    data["entries"] = [e for e in data["entries"] if e["id"] not in seen]
    found = answers(data)
    table = counts(found)
    share = f"{table['share_right']:.1%} of the clear ones right"
    print(f"vLLM {version}: {len(found)} messages, {share}")
    for name, word in (("kinds", "kind"), ("processes", "process")):
        for key, row in table[name].items():
            words = ", ".join(f"{n} {w}" for w, n in row.items())
            print(f"  {word:8} {key:15} {words}")
    for answer in found if wrong else ():
        e = answer.entry
        if e["kind"] is not None and not answer.right:
            print(f"{e['id']} {e['file']}:{e['line']} {e['function']} [{e['process']}]")
            print(f"    {e['exception']}: {e['template'][:300]}")
            print(f"    label {e['kind']}, answer {answer.kind}: {answer.reason[:200]}")
    print(f"unclear: {sum(a.entry['kind'] is None for a in found)}")
    for answer in found:
        e = answer.entry
        if e["kind"] is None and e["unclear"]:
            print(f"    {e['file']}:{e['line']}: {e['template'][:100]!r}: {e['unclear']}")
    if keep:
        target = DATA / "scores.json"
        scores = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
        name = " without ".join([version, *without])
        scores[name] = table | {"left_out": data["left_out"]}
        target.write_text(json.dumps(scores, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _show(version: str, unlabeled: bool) -> None:
    file = function = None
    for e in read(version)["entries"]:
        if unlabeled and (e["kind"] or e["unclear"]):
            continue
        if e["file"] != file:
            print(f"== {e['file']}")
        if (e["file"], e["function"]) != (file, function):
            print(f" {e['function']} [{e['process']}, {e['step']}]")
        file, function = e["file"], e["function"]
        label = e["kind"] or (f"unclear: {e['unclear']}" if e["unclear"] else "")
        print(f"  {e['id']} {e['line']} {e['exception'].split('.')[-1]}: {e['template']!r} {label}")


def main(words: Sequence[str]) -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.failure_messages")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("extract", help="write the entries of a source distribution")
    one.add_argument("--source", type=Path, required=True, help="unpacked source distribution")
    one.add_argument("--carry", action="append", default=[], help="version whose labels are taken")
    two = commands.add_parser("score", help="count what the classifier gets right")
    two.add_argument("--without", action="append", default=[], help="version whose are left out")
    two.add_argument("--wrong", action="store_true", help="show the wrong ones")
    two.add_argument("--write", action="store_true", help="keep the counts in scores.json")
    three = commands.add_parser("show", help="show the entries with their labels")
    three.add_argument("--unlabeled", action="store_true", help="only those without a label")
    for command in (one, two, three):
        command.add_argument("--version", required=True, help="version of vLLM")
    args = parser.parse_args(words)
    if args.command == "extract":
        data = extract(args.source, args.version, args.carry)
        target = write(data)
        print(f"{target}: {len(data['entries'])} entries; left out: {data['left_out']}")
    elif args.command == "score":
        _score(args.version, args.without, args.wrong, args.write)
    else:
        _show(args.version, args.unlabeled)


if __name__ == "__main__":
    main(sys.argv[1:])
