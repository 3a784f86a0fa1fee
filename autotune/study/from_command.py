"""Write a study file to start from: an example, or one from the command that serves today."""

from __future__ import annotations

import math
import re
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from autotune.errors import UserError
from autotune.study.arms import largest_n
from autotune.study.draft_flags import draft_of, verifier_of
from autotune.study.manifests import is_manifest
from autotune.study.owned import UNUSABLE
from autotune.study.schema import FlagValue, flag_name
from autotune.study.secrets import argument_secret, command_secret, is_secret, without_passwords
from autotune.study.serve_flags import LEFT_OUT, arguments_of, human
from autotune.study.shell import unknown, unmarked
from autotune.study.space import MNBT, N
from autotune.study.speculative import SCHEDULE
from autotune.study.start import Start, meant, start_of, start_of_manifest

# Why a command is refused that starts only a part of a server, or no server of the OpenAI API.
_PART = "the server is one of several that work together, which autotune does not start; give one "
_PART += "that serves alone"
_REFUSED = {
    "help": "vLLM prints its help and serves nothing",
    **{flag: UNUSABLE[flag] for flag in ("headless", "grpc")},
    "omni": "vLLM-Omni's server is another one",
    "node-rank": _PART,
    "data-parallel-rank": _PART,
    "data-parallel-start-rank": _PART,
    "data-parallel-external-lb": _PART,
    "data-parallel-hybrid-lb": _PART,
    "data-parallel-multi-port-external-lb": _PART,
}
_MOST_TEXT = 100_000  # characters of a file that holds the command
_FILES = {".yaml", ".yml", ".sh", ".bash", ".service"}
_WIDTH = 80  # of a comment


def template(name: str) -> str:
    """Return the text of a study file to edit, with every choice explained.

    Args:
        name: Name of the study.
    """
    return _study(
        name,
        [
            "server:",
            "  # What is launched for every trial. Without `command`: the vLLM of the",
            "  # environment that autotune is installed in.",
            "  # command: /path/to/venv/bin/vllm serve",
            "  model: demo:target # a folder (from this file's), a hub name, or the demo's",
            "  # The draft; everything in here goes to vLLM's --speculative-config.",
            "  # `arms` in place of it compares several ways to draft: docs/study-file.md.",
            "  speculative:",
            "    method: dflash",
            "    model: demo:draft",
            "  # vLLM flags that stay as they are; true: a switch, false: its --no- form.",
            "  flags:",
            "    max-num-seqs: 4",
            "    max-model-len: 2048",
            "  # env:",
            '  #   VLLM_CPU_KVCACHE_SPACE: "1"',
        ],
        _space(None, None, {"max_num_seqs": 4}, {"method": "dflash"}),
        settings={"max_num_seqs": 4, "max_model_len": 2048},
    )


def study_from_command(argv: Sequence[str], name: str) -> str:
    """Return the text of a study that tunes what a command serves today.

    Args:
        argv: What starts vLLM, as words, or as one text: a command, a script, a Compose or
            Kubernetes file, a systemd unit, or the path of a file with one of these.
        name: Name of the study.

    Raises:
        UserError: it is no such command, names no model, or cannot be taken apart for certain.
    """
    try:
        return _study_from(argv, name)
    except UserError as e:
        raise UserError(" ".join(unmarked(str(e)).split())) from e  # it may quote what was given


def _study_from(argv: Sequence[str], name: str) -> str:
    """Return :func:`study_from_command`."""
    base = Path()
    start = _start(argv)
    found = arguments_of(start.arguments, console=start.console, base=base)
    given = found.flags
    if found.model is None:
        raise UserError("the command names no model; write `vllm serve MODEL --flags…`")
    for flag, why in _REFUSED.items():
        if given.get(flag) not in (None, False) or (flag == "node-rank" and _several(given)):
            raise UserError(f"--{flag if flag in given else 'nnodes'}: {why}")
    _check_known(start.command)
    _check_secrets(start.command, found.model, given)
    notes = [*start.notes, *found.notes]
    speculative = draft_of(given, notes)
    model, speculative = verifier_of(found.model, speculative, base, notes)
    n_today = speculative.pop(N, None)
    settings = {flag_name(k): human(v) for k, v in given.items()}
    mnbt_today = settings.get(MNBT)
    if mnbt_today is not None and not (type(mnbt_today) is int and mnbt_today >= 1):
        raise UserError(
            f"--{MNBT.replace('_', '-')}: must be a whole number from 1 up, not {mnbt_today!s:.60}"
        )
    lines = [
        "server:",
        f"  command: {_yaml(shlex.join(start.command))}",
        f"  model: {_yaml(model)}",
        *_draft_lines(speculative),
        *_flag_lines(given),
        *_env_lines(start.env),
        *(line for note in dict.fromkeys(notes) for line in _note(note)),
    ]
    return _study(
        name,
        lines,
        _space(n_today, mnbt_today, settings, speculative),
        settings=settings,
    )


def _start(argv: Sequence[str]) -> Start:
    """Return the start of vLLM in what was given."""
    words = meant(argv)
    text = words[0] if len(words) == 1 else ""
    if Path(text.strip()).suffix in _FILES and len(text.split()) == 1:
        text = _content(text.strip())
        words = [text]
    return start_of_manifest(text) if text and is_manifest(text) else start_of(words)


def _content(name: str) -> str:
    """Return the text of a file with a command.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with Path(name).open(encoding="utf-8") as f:
            return f.read(_MOST_TEXT)
    except (OSError, ValueError) as e:
        raise UserError(f"{name:.200}: cannot be read: {getattr(e, 'strerror', e)}") from e


def _several(given: Mapping[str, FlagValue]) -> bool:
    """Return whether a server runs on several machines."""
    nodes = given.get("nnodes")
    return isinstance(nodes, int) and nodes > 1


def _check_known(command: Sequence[str]) -> None:
    """Refuse a program whose name only the user's shell knows.

    Raises:
        UserError: it has such a part.
    """
    for word in command:
        if (what := unknown(word)) is not None:
            raise UserError(f"only your shell knows what {what:.60} is; write its value")


def _check_secrets(command: Sequence[str], model: str, given: Mapping[str, FlagValue]) -> None:
    """Refuse a secret that the study would hold.

    Raises:
        UserError: the program's words, a flag or the model has one.
    """
    if why := command_secret(command):
        raise UserError(f"the words before the model: {why}, and a study holds no secrets")
    for name, value in {"model": model, **given}.items():
        why = None if name in LEFT_OUT else argument_secret(flag_name(name), value)
        if why is not None:
            raise UserError(
                f"--{name}: {why}, and a study holds no secrets; leave it out, and set it in your "
                "environment"
            )


def _comment(text: str) -> str:
    """Return a text as a comment on one line."""
    text = without_passwords(unmarked(text))
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


def _note(text: str) -> list[str]:
    """Return a text as comment lines of the section ``server``."""
    return textwrap.wrap(
        _comment(text),
        _WIDTH,
        initial_indent="  # ",
        subsequent_indent="  #   ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _draft_lines(speculative: Mapping[str, Any]) -> list[str]:
    """Return the lines of the draft in the section ``server``."""
    if not speculative:
        return [
            "  # Without a draft there is no speculation to tune. To add one, take out the #",
            "  # here and in `space`:",
            "  # speculative:",
            "  #   method: dflash",
            "  #   model: org/draft",
        ]
    lines = []
    if "method" not in speculative:
        lines.append("  # no method is named: the draft's config.json tells it, or vLLM chooses")
    return [
        *lines,
        "  speculative:",
        *(f"    {_yaml(k)}: {_yaml(v)}" for k, v in speculative.items()),
    ]


def _flag_lines(given: Mapping[str, FlagValue]) -> list[str]:
    """Return the lines of the fixed flags, and of those that are left out."""
    flags = {k: v for k, v in given.items() if k not in LEFT_OUT and flag_name(k) != MNBT}
    lines = []
    if flags:
        lines += ["  flags:", *(f"    {_yaml(k)}: {_yaml(v)}" for k, v in flags.items())]
    for k in given:
        if k in LEFT_OUT:
            lines += _note(f"left out: --{k} ({LEFT_OUT[k]})")
    return lines


def _env_lines(env: Mapping[str, str]) -> list[str]:
    """Return the lines of the environment, and of what is left out of it."""
    secrets = [k for k in env if _hides(k, unmarked(env[k]))]
    hidden = [k for k in env if k not in secrets and unknown(env[k]) is not None]
    shown = {k: v for k, v in env.items() if k not in secrets and k not in hidden}
    lines = []
    if shown:
        lines += ["  env:", *(f"    {_yaml(k)}: {_yaml(v)}" for k, v in shown.items())]
    for k in secrets:
        lines += _note(f"left out: {k} (a study holds no secrets; set it in your environment)")
    for k in hidden:
        what = _comment(unmarked(env[k]))
        lines += _note(f"left out: {k} (only your shell knows {what:.60}; write it into env)")
    return lines


def _hides(name: str, value: str) -> bool:
    """Return whether a variable may hold a secret: a word such as ``false`` or a count is none."""
    return (
        is_secret(name, value)
        and re.fullmatch(r"\d{0,6}|true|false|yes|no|on|off", value, re.I) is None
    )


def _space(
    n_today: int | None,
    mnbt_today: object,
    settings: Mapping[str, object],
    speculative: Mapping[str, object],
) -> list[str]:
    """Return the section ``space``: n if there is a draft, and MNBT around today's."""
    n_high = _n_high(n_today, speculative)
    low, high = _mnbt_range(mnbt_today, settings, n_high if speculative else 0)
    mark = "" if speculative else "# "
    dflash = speculative.get("method", "dflash") == "dflash"  # or not known yet
    most = " # a DFlash draft is trained for its block_size - 1" if dflash else ""
    most = " # the largest n of the schedule" if SCHEDULE in speculative else most
    today = f"; today {n_today}" if n_today else ""
    was = f" # today {mnbt_today}" if mnbt_today else ""
    return [
        "# What is searched: any vLLM flag, as type int, float, pow2 or choice.",
        "space:",
        f"  {mark}{N}: # n, tokens drafted per step; 0: no drafts{today}",
        f"  {mark}  type: int",
        f"  {mark}  low: 0",
        f"  {mark}  high: {n_high}{most}",
        "  # Tokens per step, prompts and drafts together, as powers of two.",
        f"  {MNBT}:{was}",
        "    type: pow2",
        f"    low: {low}",
        f"    high: {high}",
    ]


def _n_high(n_today: int | None, speculative: Mapping[str, object]) -> int:
    """Return the largest n to search: 15, today's, or the largest of a schedule, which n cuts.

    Raises:
        UserError: The schedule is none.
    """
    if SCHEDULE not in speculative:
        return max(15, n_today or 0)
    try:
        return largest_n(speculative[SCHEDULE])
    except ValueError as e:
        raise UserError(f"--speculative-config: {e}") from None


def _mnbt_range(today: object, settings: Mapping[str, object], n_high: int) -> tuple[int, int]:
    """Return the powers of two to search: a factor of four around today's, where vLLM launches.

    The lowest allows ``max_num_seqs`` and the largest n (vLLM 0.32), or a whole prompt without
    chunked prefill. The highest also allows the (n + 1)·max_num_seqs of 0.24 to 0.26.
    """
    low, high = 2048, 16384
    if isinstance(today, int) and today >= 1:
        middle = 1 << round(math.log2(today))
        low, high = max(1, middle // 4), middle * 4
    seqs, length = settings.get("max_num_seqs"), settings.get("max_model_len")
    seqs = seqs if isinstance(seqs, int) else 1
    least = max(seqs, n_high + 1)
    if settings.get("enable_chunked_prefill") is False and isinstance(length, int):
        least = max(least, length)
    low = max(low, _pow2_from(least))
    return low, max(high, low, _pow2_from((n_high + 1) * seqs))


def _pow2_from(value: int) -> int:
    """Return the smallest power of two that is at least ``value`` ≥ 1."""
    return 1 << (value - 1).bit_length()


def _study(
    name: str, server: list[str], space: list[str], *, settings: Mapping[str, object]
) -> str:
    seqs, length = settings.get("max_num_seqs"), settings.get("max_model_len")
    concurrency = min(seqs, 32) if isinstance(seqs, int) and seqs >= 1 else 4
    room = length if isinstance(length, int) and length >= 8 else 1024
    lines = [
        "# A study: what to serve, what to search, what load to put on it, and what to",
        "# optimize. Run it with `autotune run FILE --trials 40`. docs/study-file.md has",
        "# a whole study with comments.",
        f"name: {_yaml(name)}",
        "",
        *server,
        "",
        *space,
        "",
        "workload:",
        "  # Random tokens need no data, but tell little of acceptance: use your prompts.",
        "  # prompts: my-prompts.jsonl # lines with `messages` (a chat) or `prompt`",
        "  random:",
        f"    input_len: {min(256, room // 4)}",
        f"  output_len: {min(256, room // 4)}",
        f"  num_prompts: {max(140, 8 * concurrency)}",
        f"  max_concurrency: {concurrency} # requests in flight, as many as you expect in use",
        "  # request_rate: 2 # arrivals per second on average; else a closed loop",
        "",
        "objectives:",
        "  - throughput # output tokens per second: more is better",
        "  - p95_latency # of whole requests: less is better",
        "",
        "budget:",
        "  trials: 40",
    ]
    return "\n".join(lines) + "\n"


def _yaml(value: object) -> str:
    """Return a value as one line of YAML."""
    text = yaml.safe_dump(
        value, default_flow_style=True, width=math.inf, allow_unicode=True, sort_keys=False
    )
    return text.removesuffix("...\n").strip(" \n")
