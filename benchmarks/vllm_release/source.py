"""What the Python source of one vLLM says, read without running it, and what autotune names of it.

Only what autotune depends on is read: names of metrics, addresses, the fields of requests and
answers, environment variables, what is logged, architectures of drafts, modules, requirements.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from benchmarks.failure_messages import _text

ROOT = Path(__file__).parents[2]
# Folders and files of the package that are read.
_READ = ("envs.py", "entrypoints", "v1", "compilation", "config", "engine", "platforms", "utils")
_READ_TOO = ("model_executor/model_loader", "model_executor/models/registry.py")
_METRIC = re.compile(r"vllm:[a-z0-9_]+$")
_ADDRESS = re.compile(r"/[a-z_][\w/{}.-]*$")
_LOGS = re.compile(r"(debug|info|warning|error|exception|critical|log)(_once)?$")
# Classes of the API whose fields autotune sends or reads, those of the server's metrics included.
CLASSES = (
    "ChatCompletionRequest",
    "CompletionRequest",
    "StreamOptions",
    "ChatCompletionStreamResponse",
    "ChatCompletionResponseStreamChoice",
    "DeltaMessage",
    "CompletionStreamResponse",
    "CompletionResponseStreamChoice",
    "UsageInfo",
    "ErrorInfo",
    "ModelCard",
    "PerRequestMetrics",
    "SpeculativeDecodingMetrics",
)


@dataclass
class Read:
    """What the source of one vLLM says.

    Attributes:
        root: Folder that has the package ``vllm``.
        metrics: File by name of a metric, such as ``vllm:num_preemptions``.
        addresses: File by address of the server, such as ``/health``.
        fields: Fields of each class of :data:`CLASSES`, those of its bases included.
        variables: Environment variables of ``vllm/envs.py``.
        logs: File by text that is logged, with ``12.5`` where a value comes.
        drafts: Module by architecture of a draft (``_SPECULATIVE_DECODING_MODELS``).
        needs: What ``Requires-Dist`` says, by package; extras are left out.
    """

    root: Path
    metrics: dict[str, str] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)
    fields: dict[str, tuple[str, ...]] = field(default_factory=dict)
    variables: set[str] = field(default_factory=set)
    logs: dict[str, str] = field(default_factory=dict)
    drafts: dict[str, str] = field(default_factory=dict)
    needs: dict[str, str] = field(default_factory=dict)


def read_source(root: Path) -> Read:
    """Read the source of one vLLM.

    Args:
        root: Folder that has the package ``vllm``.
    """
    found = Read(root)
    classes: dict[str, tuple[str, ast.ClassDef]] = {}
    package = root / "vllm"
    for path in _files(package):
        file = path.relative_to(package).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            _take(found, node, file)
            if (
                isinstance(node, ast.ClassDef)
                and file.startswith("entrypoints/")
                # of two classes of one name that of the OpenAI API counts
                and (node.name not in classes or "/openai/" in f"/{file}")
            ):
                classes[node.name] = (file, node)
    found.fields = {name: tuple(_fields(name, classes)) for name in CLASSES if name in classes}
    for info in (root / "PKG-INFO", *sorted(root.glob("vllm*.dist-info/METADATA"))):
        if info.is_file():
            found.needs = _needs(info.read_text(encoding="utf-8"))
            break
    return found


def _files(package: Path) -> Iterator[Path]:
    for name in (*_READ, *_READ_TOO):
        path = package / name
        if path.is_file():
            yield path
        yield from sorted(path.rglob("*.py"))


def _take(found: Read, node: ast.AST, file: str) -> None:
    """Add what one node says."""
    match node:
        case ast.Constant(value=str() as text) if file.startswith("v1/") and _METRIC.match(text):
            found.metrics.setdefault(text, file)
        case ast.Call(func=ast.Attribute(attr=name), args=[first, *_]):
            if _LOGS.match(name):
                found.logs.setdefault(_logged(first), file)
        case (
            ast.Assign(targets=[ast.Name(id=name)], value=ast.Dict(keys=keys, values=values))
            | ast.AnnAssign(target=ast.Name(id=name), value=ast.Dict(keys=keys, values=values))
        ):
            texts = [k.value for k in keys if isinstance(k, ast.Constant)]
            if name == "environment_variables" and file == "envs.py":
                found.variables |= set(texts)
            elif name == "_SPECULATIVE_DECODING_MODELS":
                found.drafts |= {
                    k.value: ast.unparse(v)
                    for k, v in zip(keys, values, strict=True)
                    if isinstance(k, ast.Constant)
                }
    if isinstance(node, ast.Call) and node.args and file.startswith("entrypoints/"):
        address = getattr(node.args[0], "value", None)
        if isinstance(address, str) and _ADDRESS.match(address):
            found.addresses.setdefault(address, file)


def _logged(node: ast.expr) -> str:
    """Return the text of a logged message, with ``12.5`` where a value comes."""
    text = re.sub(r"%[-0-9.]*[sdrfxig]", "12.5", _text(node, {}))
    text = re.sub(r"(?<!\{)\{(?!\{)(?:[^{}]|\{[^{}]*\})*\}", "12.5", text)
    return " ".join(text.replace("{{", "{").replace("}}", "}").split())


def _fields(name: str, classes: Mapping[str, tuple[str, ast.ClassDef]]) -> dict[str, None]:
    """Return the annotated fields of a class, first those of its bases."""
    found: dict[str, None] = {}
    _, node = classes[name]
    for base in node.bases:
        above = ast.unparse(base).rpartition(".")[2]
        if above in classes and above != name:
            found |= _fields(above, classes)
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            found[line.target.id] = None
    return found


def _needs(info: str) -> dict[str, str]:
    """Return what a distribution needs, by package."""
    found: dict[str, list[str]] = {}
    for line in re.findall(r"^Requires-Dist: (.+)$", info, re.MULTILINE):
        if "extra ==" not in line:
            name = re.match(r"[\w.-]+", line)
            if name:
                found.setdefault(name[0].lower().replace("_", "-"), []).append(line.strip())
    return {name: " and ".join(sorted(lines)) for name, lines in found.items()}


def has(root: Path, module: str, name: str | None = None) -> bool:
    """Return whether a vLLM has a module, and in it a name.

    Args:
        root: Folder that has the package ``vllm``.
        module: Module such as ``vllm.v1.engine.core``.
        name: Name that is imported from it: a module below it, or what its text defines.
    """
    path = root.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.is_file() and not path.is_dir():
        return False
    if name is None or not file.is_file() or has(root, f"{module}.{name}"):
        return True
    return name in _defined(file)


@cache
def _defined(file: Path) -> frozenset[str]:
    """Return the names that a module's text defines or imports, in conditions, too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names.add(name)
            case ast.ClassDef(name=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names |= {(a.asname or a.name).partition(".")[0] for a in aliases}
            case ast.Constant(value=str() as text):
                names.add(text)  # of a table of what is imported late
    return frozenset(names)


# -- what autotune names ---------------------------------------------------------------------------

_TEXTS: dict[str, list[str]] = {}
_IMPORTS: dict[tuple[str, str | None], list[str]] = {}


def _read_ours() -> None:
    if _TEXTS:
        return
    for path in sorted((ROOT / "autotune").rglob("*.py")):
        file = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Constant(value=str() as text) if len(text) < 200:
                    _TEXTS.setdefault(text, []).append(f"{file}:{node.lineno}")
                case ast.ImportFrom(module=str() as module, names=aliases, level=0):
                    if module.partition(".")[0] == "vllm":
                        for alias in aliases:
                            key = (module, alias.name)
                            _IMPORTS.setdefault(key, []).append(f"{file}:{node.lineno}")
                case ast.Import(names=aliases):
                    for alias in aliases:
                        if alias.name.startswith("vllm."):
                            _IMPORTS.setdefault((alias.name, None), []).append(
                                f"{file}:{node.lineno}"
                            )


def named(*texts: str, within: str = "autotune/") -> list[str]:
    """Return where autotune's code has one of some texts, as FILE:LINE.

    Args:
        texts: Whole texts.
        within: Beginning of the paths that count.
    """
    _read_ours()
    places = dict.fromkeys(p for text in texts for p in _TEXTS.get(text, ()))
    return [p for p in places if p.startswith(within)]


def mentioned(name: str) -> list[str]:
    """Return where a text of autotune's code holds a name, as FILE:LINE; docstrings are too long.

    Args:
        name: Whole name, such as that of a metric.
    """
    _read_ours()
    whole = re.compile(rf"{re.escape(name)}(?![a-z0-9_])")
    return [p for text, places in _TEXTS.items() if whole.search(text) for p in places]


def imported() -> dict[tuple[str, str | None], list[str]]:
    """Return what autotune imports of vLLM, or names as a module: (module, name), and where."""
    _read_ours()
    found = dict(_IMPORTS)
    for text, places in _TEXTS.items():
        if re.fullmatch(r"vllm(\.\w+)+", text):
            found.setdefault((text, None), []).extend(places)
    return found
