"""A pasted command or script → the one start of vLLM in it: program, arguments, variables."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from autotune.errors import UserError
from autotune.study import containers
from autotune.study.manifests import contained
from autotune.study.pasted import bare, shell_of
from autotune.study.programs import (
    API_SERVER,
    ASSIGNMENT,
    CONSOLE_MODULE,
    SHELLS,
    is_python,
    program_name,
)
from autotune.study.script import script_of
from autotune.study.secrets import without_passwords
from autotune.study.shell import abridged, marked, unknown, unmarked
from autotune.study.unit import is_unit, unit_of, without_key
from autotune.study.wrappers import WRAPPERS, Fate, unwrap

# Modules that start the server without the word `serve`
_MODULES = {API_SERVER, "vllm.entrypoints.launchers.api_server.entry"}
_OPERATOR = re.compile(r"&&|\|\|?|;|&|\d*(>>?|<)(&\d+|/dev/\S+)?|&>>?")
# A word that is one variable: a shell was to put its value there. Any other `$` is meant as it is.
_SHELL_VALUE = re.compile(r"(--[\w.-]+=)?(\$(?:[A-Za-z_]\w*|\{[^{}]*\}))")
_ELSEWHERE = {"ssh", "tmux", "screen", "pm2", "su", "runuser", "wsl", "watch", "parallel"}
_PYTHON_VALUES = {"-X", "-W", "--check-hash-based-pycs"}
_SHOWN = {"source", ".", "cd", "conda", "module", "ulimit", "pushd"}
_DEEPEST = 5  # of shells in shells


@dataclass
class Start:
    """A start of vLLM's server.

    Attributes:
        command: Words for ``server.command``.
        arguments: Words after it: the model and the flags.
        env: Variables that the command sets.
        console: Whether the program is `vllm serve`, which takes the model without a flag.
        notes: Comments for the study: what was left out or assumed.
    """

    command: list[str]
    arguments: list[str]
    env: dict[str, str]
    console: bool
    notes: list[str] = field(default_factory=list)


def meant(argv: Sequence[str]) -> list[str]:
    """Return the words of a command without those of a pasted `\\` with a space or newline.

    An empty word is a value, as in ``--entrypoint ""``.
    """
    return [w for w in argv if w.strip() or (w == "" and len(argv) > 1)]


def start_of(argv: Sequence[str]) -> Start:
    """Return the one start of vLLM in a command.

    Args:
        argv: The command as words, or a shell text or a systemd unit as one word.

    Raises:
        UserError: there is none, there are several, or the one cannot be understood.
    """
    words = meant(argv)
    if len(words) == 1:
        text = bare(words[0])
        return _of_unit(text) if is_unit(text) else _of_pasted(text)
    words = without_key(words)
    if any(_OPERATOR.fullmatch(w) for w in words):  # a text whose quotes are gone
        text = " ".join(w if _OPERATOR.fullmatch(w) else shlex.quote(w) for w in words)
        return _of_text(text, {}, 0)
    words = [w.rstrip("\r\n") for w in words]
    whole = [_SHELL_VALUE.fullmatch(w) for w in words]
    words = [f"{m[1] or ''}{marked(m[2])}" if m else w for m, w in zip(whole, words, strict=True)]
    found = _of_words(words, {}, 0)
    if found is None:
        raise _no_start(words)
    return found


def start_of_manifest(text: str) -> Start:
    """Return the start of vLLM in a Compose or Kubernetes file.

    A service of Compose becomes the ``docker run`` that it stands for. A pod is no child of
    autotune, so only its command is taken.

    Raises:
        UserError: there is none, there are several, or the one cannot be understood.
    """
    found = contained(text)
    if found.image and found.compose:
        notes: list[str] = []
        start = _of_container(found.engine_words(), notes)
        if start is None:
            raise _no_start(found.words)
        start.notes = [*found.notes, *notes]
        start.notes.append(f"service {found.name} of the Compose file, as `docker run`")
        return start
    words = [*found.entry, *found.words]
    if words[:1] == ["serve"] or "".join(words[:1]).startswith("-"):
        words = ["vllm", *(["serve"] if words[0] != "serve" else []), *words]
    start = _of_words(words, found.env, 0)
    if start is None:
        raise _no_start(words)
    where = f" of {found.image}" if found.image else ""
    start.notes += [
        *found.notes,
        f"container {found.name}{where}: run autotune where this command runs, in such a pod",
    ]
    return start


def _of_pasted(text: str) -> Start:
    """Return the one start of vLLM in a shell text, or in a text that stands for one.

    Raises:
        UserError: as :func:`start_of`.
    """
    pasted = shell_of(text)
    start = _of_text(pasted.text, {}, 0)
    start.notes += pasted.notes
    return start


def _of_unit(text: str) -> Start:
    """Return the one start of vLLM in a systemd unit.

    Raises:
        UserError: there is none, there are several, or the one cannot be understood.
    """
    unit = unit_of(text)
    found = [s for words in unit.commands if (s := _of_words(words, unit.env, 0)) is not None]
    if len(found) > 1:
        raise UserError(f"the unit starts vLLM {len(found)} times; give one ExecStart= of it")
    if not found:
        raise _no_start(next(iter(unit.commands), ["ExecStart="]))
    found[0].notes += unit.notes
    return found[0]


def _of_text(text: str, env: Mapping[str, str], depth: int) -> Start:
    """Return the one start of vLLM in a shell text.

    Raises:
        UserError: there is none, there are several, or the one cannot be understood.
    """
    if depth > _DEEPEST:
        raise UserError("the command starts shells in shells in shells; give the inner command")
    script = script_of(text, env)
    found: list[Start] = []
    others: list[str] = []
    lost: UserError | None = None
    for command in script.commands:
        words = list(command.words)
        if found and words[0].startswith("-"):
            raise UserError(
                f"`{abridged(shlex.join(words))}` is a command of its own: the line "
                "above it is a comment or has no \\ at its end"
            )
        start = _of_words(words, command.env, depth)
        if start is None:
            others.append(_shown(words))
            continue
        if command.inside is not None:
            lost = UserError(
                f"vLLM is started in {command.inside}; give the one command that starts it"
            )
        start.notes += [f"left out: {abridged(d)}" for d in command.dropped]
        found.append(start)
    if lost is not None:
        raise lost
    if len(found) > 1:
        models = ", ".join(abridged(shlex.join(s.arguments[:1])) for s in found[:3])
        raise UserError(f"the text starts vLLM {len(found)} times ({models}); give one of them")
    if not found:
        first = next((list(c.words) for c in script.commands if _mentions(c.words)), None)
        first = first or next((list(c.words) for c in script.commands), [])
        raise _no_start(first)
    start = found[0]
    start.notes += script.said
    if shown := [o for o in dict.fromkeys(others) if o]:
        start.notes.append(f"left out of the text: {'; '.join(shown)}")
        if any(o.startswith(("source ", ". ", "conda activate")) for o in shown):
            start.notes.append(
                "no environment is activated: unless autotune runs in the same one, write the path "
                "of its vllm in server.command"
            )
    return start


def _shown(words: Sequence[str]) -> str:
    """Return how a command that is left out is shown: with nothing that may be a secret."""
    name = re.split(r"[=:]", words[0])[0]  # `X = secret`, or an assignment of another shell
    if name in {"export", "declare", "set", "unset", "echo", "readonly", "local", "exit", "wait"}:
        return ""
    many = name in _SHOWN and not any("=" in w or "://" in w for w in words)
    return abridged(shlex.join(words) if many else name + (" …" if [name] != [*words] else ""))


def _no_start(words: Sequence[str]) -> UserError:
    """Return why a command is no start of vLLM's server."""
    if not words:
        return UserError("there is no command that starts vLLM in the text")
    shown = without_passwords(unmarked(shlex.join([unmarked(w) for w in words])))[:80]
    elsewhere = program_name(words[0]) in _ELSEWHERE
    if elsewhere and any(" " in w and _mentions(w.split()) for w in words[1:]):
        return UserError(
            f"`{abridged(words[0])}` starts vLLM where autotune does not own it; give "
            "the command in the quotes alone"
        )
    if words[0] == "serve" or words[0].startswith("--"):
        before = "vllm" if words[0] == "serve" else "vllm serve"
        return UserError(f"`{abridged(shown)}` names no program; write `{before}` before it")
    if len(words) > 1 and program_name(words[0]) == "vllm" and not words[1].startswith("-"):
        return UserError(
            f"`vllm {abridged(words[1])}` is no command that starts vLLM's server; `vllm serve` is"
        )
    if {"compose", "docker-compose", "podman-compose"} & {*words[:2]} or (
        words[:1] == ["kubectl"] and "-f" in words
    ):
        return UserError(
            f"`{' '.join(shown.split())}`: the file says what is started; give it: "
            "`autotune init -- FILE.yaml`"
        )
    return UserError(
        f"`{' '.join(shown.split())}` is no command that starts vLLM; give `vllm serve MODEL "
        f"--flags…` or `python -m {API_SERVER} --model MODEL --flags…`; for anything else write "
        "server.command in a study file (`autotune init` alone writes one)"
    )


def _mentions(words: Sequence[str]) -> bool:
    """Return whether words speak of a start of vLLM."""
    return any(
        (b == "serve" and (program_name(a) == "vllm" or a == CONSOLE_MODULE))
        or (a == "-m" and b in _MODULES)
        for a, b in pairwise(words)
    )


def _of_words(words: Sequence[str], env: Mapping[str, str], depth: int) -> Start | None:
    """Return the start of vLLM that a simple command is; None: it is none.

    Raises:
        UserError: it starts vLLM in a way that cannot be understood or owned.
    """
    rest, own, kept, notes = list(words), dict(env), list[str](), list[str]()
    while rest:
        if match := ASSIGNMENT.fullmatch(rest[0]):
            own[match["name"]] = match["value"]
            rest.pop(0)
            continue
        if containers.is_container(rest) and not _is_left_out(rest[0]):
            start = _of_container(rest, notes)
            break
        if inner := _inner_text(rest):
            start = _of_text(inner, own, depth + 1)
            own = start.env
            break
        if (start := _program(rest)) is not None:
            break
        rest, more = _without_wrapper(rest, kept, notes, mentioned=_mentions(words))
        if not more:
            return None
    else:
        return None
    if start is None:
        return None
    return Start(
        [*kept, *start.command], start.arguments, own, start.console, [*notes, *start.notes]
    )


def _is_left_out(word: str) -> bool:
    """Return whether a word is a wrapper that an engine's client does not need, either."""
    wrapper = WRAPPERS.get(program_name(word))
    return wrapper is not None and wrapper.fate is Fate.DROP and not wrapper.other_user


def _without_wrapper(
    words: list[str], kept: list[str], notes: list[str], *, mentioned: bool
) -> tuple[list[str], bool]:
    """Take the first wrapper off a command, and say whether there was one.

    Raises:
        UserError: the program in front of vLLM is none that is understood.
    """
    if not mentioned and program_name(words[0]) not in WRAPPERS:
        return words, False
    if not mentioned and WRAPPERS[program_name(words[0])].fate is Fate.REFUSE:
        return words, False
    wrapped = unwrap(words)
    if wrapped is None or not wrapped.rest:
        if mentioned and (what := unknown(words[0])) is not None:
            raise UserError(f"only your shell knows what {what:.60} is; write its value")
        if mentioned and program_name(words[0]) not in {"echo", "printf", "pkill", "pgrep", "grep"}:
            raise UserError(
                f"`{abridged(words[0])}` in front of vLLM is not understood; leave it out"
            )
        return words, False
    split = next((i for i, w in enumerate(wrapped.words) if w in ("-S", "--split-string")), None)
    if wrapped.name == "env" and split is not None:
        return [*wrapped.words[split + 1 :], *wrapped.rest], True
    if wrapped.wrapper.fate is Fate.DROP:
        notes.append(f"left out: {wrapped.name} ({wrapped.wrapper.why})")
    elif wrapped.name != "env" or len(wrapped.words) > 1:
        kept += _kept(wrapped.name, wrapped.words, notes)
    return list(wrapped.rest), True


def _kept(name: str, words: Sequence[str], notes: list[str]) -> Iterator[str]:
    """Return the words of a wrapper that stays, and say what to know about it."""
    yield from words
    if WRAPPERS[name].fate is not Fate.BLIND or not words:
        return
    if name in ("conda", "mamba") and not {"--no-capture-output", "--live-stream"} & {*words}:
        yield "--no-capture-output"
        notes.append(f"added: --no-capture-output (else {name} holds the log back)")
    notes.append(
        f"flags are not checked before a launch, because `{name}` chooses the Python; they are if "
        "server.command is the full path of that environment's vllm"
    )


def _inner_text(words: Sequence[str]) -> str | None:
    """Return the text of ``bash -c TEXT``; None: it is no such command."""
    if words[0] == "eval":
        return " ".join(words[1:])
    if program_name(words[0]) not in SHELLS:
        return None
    for i, word in enumerate(words[1:-1], start=1):
        if re.fullmatch(r"-[a-z]*c[a-z]*", word):
            return next((w for w in words[i + 1 :] if not w.startswith("-")), None)
        if not word.startswith("-"):
            return None
    return None


def _program(words: Sequence[str]) -> Start | None:
    """Split a command behind the words that start vLLM; None: it begins with no such words."""
    if program_name(words[0]) == "vllm":
        return Start([*words[:2]], [*words[2:]], {}, True) if words[1:2] == ["serve"] else None
    if words[0] in ("-m", "--module"):  # behind `uv run`
        return _module(words, 0)
    if not is_python(words[0]):
        return None
    at = 1
    while at < len(words) and words[at].startswith("-") and words[at] != "-m":
        at += 2 if words[at] in _PYTHON_VALUES else 1
    if words[at : at + 1] == ["-m"]:
        return _module(words, at)
    if program_name("".join(words[at : at + 1])) == "vllm" and words[at + 1 : at + 2] == ["serve"]:
        return Start([*words[: at + 2]], [*words[at + 2 :]], {}, True)
    return None


def _module(words: Sequence[str], at: int) -> Start | None:
    """Split a command behind ``-m MODULE``."""
    module = "".join(words[at + 1 : at + 2])
    if module in _MODULES:
        return Start([*words[: at + 2]], [*words[at + 2 :]], {}, False)
    if module == CONSOLE_MODULE and words[at + 2 : at + 3] == ["serve"]:
        return Start([*words[: at + 3]], [*words[at + 3 :]], {}, True)
    if module in {"vllm", "vllm.entrypoints.cli.serve", "vllm.entrypoints.cli"}:
        raise UserError(f"`python -m {module}` starts no server in vLLM; write `vllm serve`")
    if module == "vllm.entrypoints.api_server":
        raise UserError(
            f"`-m {module}` was vLLM's demo server, which has no OpenAI API; write `vllm serve`"
        )
    return None


def _of_container(words: Sequence[str], notes: list[str]) -> Start | None:
    """Return the start of vLLM in a container; None: the container is another one."""
    plain = [_for_container(w) for w in words]
    if not any("vllm" in w for w in words):
        return None
    try:
        container = containers.parse(plain)
    except UserError:
        verbs = {"run", "exec", "up", "start"} & {*words} or program_name(words[0]) == "srun"
        if not verbs and not _mentions(words):
            return None  # docker pull, build, …
        raise
    if container is None:
        return None
    if container.arguments[:2] and program_name(container.arguments[0]) == "vllm":
        return None  # vllm bench …
    owned = containers.normalized(container)
    for word in owned.command:
        if (what := unknown(word)) is not None:
            raise UserError(f"{what}: only your shell knows it; write its value")
    notes += owned.notes
    console = container.console or not container.start  # images start `vllm serve`
    return Start([*owned.command], [*owned.arguments], {}, console)


def _for_container(word: str) -> str:
    """Return a word without the marks of what a container gets from the caller's environment."""
    plain = unmarked(word)
    name, equals, value = plain.partition("=")
    if equals and value in {f"${name}", f"${{{name}}}"}:
        return plain
    return word
