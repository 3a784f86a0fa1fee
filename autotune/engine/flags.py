"""Check a study's flags: against what the installed vLLM accepts, and for secrets.

These checks are for the launch. :mod:`autotune.study.schema` checks names, and needs no vLLM.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping

from autotune.engine.draft_schedule import schedule_problem
from autotune.engine.probe import Kind, VllmInfo
from autotune.engine.removed_flags import hint
from autotune.errors import UserError
from autotune.study.checkpoints import config_of, speculators_of
from autotune.study.containers import refusal
from autotune.study.files import LoadedStudy
from autotune.study.owned import why_refused
from autotune.study.schema import FlagValue, ServerSpec
from autotune.study.secrets import argument_secret, command_secret
from autotune.study.serve_flags import human
from autotune.study.space import ALIGNED, DRAFT, ChoiceParam, N
from autotune.study.speculative import SCHEDULE
from autotune.study.vllm_flags import inverse

_SEEN = "every user of this machine can read a command line, and a study's is stored and shown"

# Names of variables that a shell accepts.
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

# Control characters except tab and newline, and those that change the direction of writing. A
# terminal would obey them, and show another command than the one that a shell runs.
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def check_flags(loaded: LoadedStudy, info: VllmInfo) -> None:
    """Check every fixed and searched flag against what this vLLM accepts.

    Args:
        loaded: The study.
        info: The study's vLLM; one that is unknown is not asked.

    Raises:
        UserError: a flag is refused; the message names file and key, and what is allowed.
    """
    spec = loaded.spec
    _check_texts(loaded)
    if why := why_refused(spec):  # a study from a database was read without
        raise UserError(f"{loaded.path}: {why}")
    _check_target(loaded)
    _check_schedules(loaded)
    for name, value in spec.server.flags.items():
        if name != ALIGNED:
            _check(f"{loaded.path}: server.flags.{name}", name, value, info)
    for name, param in spec.space.items():
        if name in (N, ALIGNED) or name.startswith(DRAFT):
            continue  # vLLM's parser does not know what --speculative-config may have
        values = param.choices if isinstance(param, ChoiceParam) else (param.low,)
        for v in values:
            _check(f"{loaded.path}: space.{name}", name, v, info)


def _check_target(loaded: LoadedStudy) -> None:
    """Refuse a target in speculators format: vLLM would serve it with its draft, at n = 0 too."""
    ref = loaded.spec.server.model
    found = speculators_of(config_of(ref, loaded.base))
    if found is None:
        return
    keys = json.dumps({**found.settings, "model": ref})
    raise UserError(
        f"{loaded.path}: server.model: {ref:.80} is a draft in speculators format, with which "
        f"vLLM drafts at n = 0, too; write its target, {found.verifier:.80}, as server.model, and "
        f"{keys} as server.speculative"
    )


def _check_schedules(loaded: LoadedStudy) -> None:
    """Refuse a schedule of n by batch size that every version of vLLM refuses."""
    for arm, draft in loaded.spec.server.drafts.items():
        schedule = draft.given().get(SCHEDULE)
        if schedule is not None and (why := schedule_problem(schedule)):
            place = "server.speculative" if arm is None else f"server.arms.{arm}"
            raise UserError(f"{loaded.path}: {place}.{SCHEDULE}: {why}")


def _check_texts(loaded: LoadedStudy) -> None:
    """Check the texts that go into command line and environment, for every version of vLLM.

    Raises:
        UserError: a text has a secret, a control character, or a word that would be read as a flag.
    """
    spec, server = loaded.spec, loaded.spec.server
    arguments: dict[str, object] = {
        **{f"server.flags.{k}": v for k, v in server.flags.items()},
        **_of_drafts(server),
        **{f"space.{k}": p.choices for k, p in spec.space.items() if isinstance(p, ChoiceParam)},
        "server.model": server.model,
    }
    for where, value in arguments.items():
        if why := argument_secret(_key_of(where), value):
            raise UserError(
                f"{loaded.path}: {where}: {why}, and {_SEEN}; give it in the environment"
            )
    if why := command_secret(server.command or ()):
        raise UserError(
            f"{loaded.path}: server.command: {why}, and {_SEEN}; set it in your environment, from "
            "where the server has it (a container with `-e NAME` alone)"
        )
    if why := refusal(server.command or ()):
        raise UserError(f"{loaded.path}: server.command: {why}")
    words: dict[str, object] = {**arguments, "server.command": server.command}
    for where, value in words.items():
        if UNPRINTABLE.search(" ".join(_texts(value))):
            raise UserError(f"{loaded.path}: {where}: has a control character")
    for name, flag in server.flags.items():
        if isinstance(flag, list) and any(x.startswith("-") for x in flag if isinstance(x, str)):
            raise UserError(
                f"{loaded.path}: server.flags.{name}: a word of its list would be read as a flag"
            )
    _check_environment(loaded)
    check_model(f"{loaded.path}: server.model", server.model)


def _of_drafts(server: ServerSpec) -> dict[str, object]:
    """Return the values of every way to draft, fixed and searched, by their full key."""
    out: dict[str, object] = {}
    for arm, draft in server.drafts.items():
        place = "server.speculative" if arm is None else f"server.arms.{arm}"
        out |= {f"{place}.{k}": v for k, v in draft.given().items()}
    for name, own in server.arms.items():
        for key, param in own.space.items():
            if isinstance(param, ChoiceParam):
                out[f"server.arms.{name}.space.{key}"] = param.choices
    return out


def _key_of(where: str) -> str:
    """Return the name of a setting without its place in the file."""
    if where.startswith("server.arms."):
        return where.split(".", 3)[-1].removeprefix("space.")
    return where.split(".", 2)[-1]


def _check_environment(loaded: LoadedStudy) -> None:
    """Check names and values of the variables that a study sets."""
    for name, text in loaded.spec.server.env.items():
        if VARIABLE.fullmatch(name) is None:
            raise UserError(
                f"{loaded.path}: server.env: {json.dumps(name)} is no name of a variable"
            )
        if UNPRINTABLE.search(text):
            raise UserError(f"{loaded.path}: server.env.{name}: has a control character")


def _texts(value: object) -> Iterator[str]:
    """Return every text in a flag's value."""
    if isinstance(value, Mapping):
        for k, v in value.items():
            yield from (str(k), *_texts(v))
    elif isinstance(value, list | tuple):
        for v in value:
            yield from _texts(v)
    elif isinstance(value, str):
        yield value


def check_model(where: str, model: str) -> None:
    """Check that vLLM would not read a model's name as a flag.

    Args:
        where: Key of the model, for the message.
        model: The name.

    Raises:
        UserError: it would.
    """
    if model.startswith("-"):
        raise UserError(f"{where}: {model} would be read as a flag; write ./{model} for a folder")


def _check(where: str, name: str, value: FlagValue, info: VllmInfo) -> None:
    """Check one value of one flag; see :func:`check_flags`."""
    if info.options is None:
        return
    root, dot, _ = name.partition(".")
    vllm = f"vLLM {info.version}"
    if root not in info.options:
        if root.startswith("no_") and root[3:] in info.options:
            raise UserError(f"{where}: write {root[3:]}: false")
        said = hint(root, info.options)
        raise UserError(f"{where}: {vllm} has no flag --{root.replace('_', '-')}{said}")
    choices, kind = info.options[root], info.kind(root)
    if dot:
        if choices is not None or kind in {Kind.TEXT, Kind.NUMBER, Kind.REPEATED}:
            raise UserError(
                f"{where}: --{root.replace('_', '-')} of {vllm} has no keys: its value is no JSON"
            )
    elif choices == ():
        _check_switch(where, root, value, info)
    elif isinstance(value, bool):
        allowed = f": {', '.join(choices)}" if choices else ""
        raise UserError(f"{where}: needs a value{allowed}; it is no switch")
    elif choices is not None:
        _check_choice(where, value, choices, vllm)
    elif kind is Kind.TEXT:
        _check_text(where, value)
    elif kind is Kind.NUMBER:
        _check_number(where, value, vllm)


def _check_switch(where: str, root: str, value: FlagValue, info: VllmInfo) -> None:
    """Check the value of a flag that has none on vLLM's command line."""
    if root.startswith("no_") and root[3:] in (info.options or ()):
        raise UserError(f"{where}: write {root[3:]}: {'false' if value is True else 'true'}")
    other, options = (inverse(root) or "").replace("-", "_"), info.options or ()
    if f"no_{other}" in options and f"no_{root}" not in options:
        # from 0.33 on: the rules, and the parts of a study, ask for one of the two names
        raise UserError(f"{where}: write {other}: {'false' if value is True else 'true'}")
    if not isinstance(value, bool):
        raise UserError(f"{where}: is a switch; write true or false, not {json.dumps(value)}")


def _check_choice(where: str, value: FlagValue, choices: tuple[str, ...], vllm: str) -> None:
    """Check the value of a flag that takes some words only."""
    for v in value if isinstance(value, list) else [value]:
        if str(v) not in choices:
            close = difflib.get_close_matches(str(v), choices, n=1)
            near = f"did you mean {close[0]}? " if close else ""
            raise UserError(
                f"{where}: {json.dumps(v)} is not known to {vllm}; {near}"
                f"allowed are {', '.join(choices)}"
            )


def _check_number(where: str, value: FlagValue, vllm: str) -> None:
    """Refuse a text that no number of vLLM is written as; ``4k``, ``auto`` and ``None`` are."""
    for v in value if isinstance(value, list) else [value]:
        if not isinstance(v, str) or v in ("auto", "None", "") or not isinstance(human(v), str):
            continue
        try:
            float(v)
        except ValueError as e:
            raise UserError(f"{where}: {vllm} needs a number, not {json.dumps(v)}") from e


def _check_text(where: str, value: FlagValue) -> None:
    """Refuse a number with a point for a text: YAML has read 1.10 as 1.1 before we see it."""
    for v in value if isinstance(value, list) else [value]:
        if isinstance(v, float):
            raise UserError(
                f"{where}: is a text to vLLM, and YAML reads it as the number {v:g}; put it in "
                "quotes, as you want it sent"
            )
