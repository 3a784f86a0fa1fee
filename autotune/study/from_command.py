"""Write a study file to start from: an example, or one from the command that serves today."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from autotune.errors import UserError
from autotune.study.schema import OWNED_FLAGS, FlagValue, flag_name
from autotune.study.secrets import secret_values
from autotune.study.space import MNBT, N

_API_SERVER = "vllm.entrypoints.openai.api_server"
# vLLM's short options, read from the parser of 0.32
_SHORT = {
    "-ac": "attention-config",
    "-asc": "api-server-count",
    "-cc": "compilation-config",
    "-dcp": "decode-context-parallel-size",
    "-dp": "data-parallel-size",
    "-dpa": "data-parallel-address",
    "-dpb": "data-parallel-backend",
    "-dpe": "data-parallel-external-lb",
    "-dph": "data-parallel-hybrid-lb",
    "-dpl": "data-parallel-size-local",
    "-dpm": "data-parallel-multi-port-external-lb",
    "-dpn": "data-parallel-rank",
    "-dpp": "data-parallel-rpc-port",
    "-dpr": "data-parallel-start-rank",
    "-ep": "enable-expert-parallel",
    "-n": "nnodes",
    "-O": "optimization-level",
    "-pcp": "prefill-context-parallel-size",
    "-pp": "pipeline-parallel-size",
    "-q": "quantization",
    "-r": "node-rank",
    "-sc": "speculative-config",
    "-tp": "tensor-parallel-size",
}
_LEFT_OUT = {
    "host": OWNED_FLAGS["host"],
    "port": OWNED_FLAGS["port"],
    "uds": OWNED_FLAGS["uds"],
    "api_key": OWNED_FLAGS["api_key"],
    "hf_token": "a study holds no secrets; set HF_TOKEN in your environment",
}
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?")
_HUMAN = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)([kmgKMG]?)")
_SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}


def template(name: str) -> str:
    """Return the text of a study file to edit, with every choice explained.

    Args:
        name: Name of the study.
    """
    return _study(
        name,
        [
            "server:",
            "  # What is launched for every trial. Without `command`: the vLLM of the environment",
            "  # that autotune is installed in.",
            "  # command: /path/to/venv/bin/vllm serve",
            "  model: demo:target # a folder (from this file's on), a hub name, or the demo target",
            "  # The draft; everything in here goes to vLLM's --speculative-config.",
            "  speculative:",
            "    method: dflash",
            "    model: demo:draft",
            "  # vLLM flags that stay as they are; true for a switch, false for its --no- form.",
            "  flags:",
            "    max-num-seqs: 4",
            "    max-model-len: 2048",
            "  # env:",
            '  #   VLLM_CPU_KVCACHE_SPACE: "1"',
        ],
        _space(n_today=None, mnbt_today=None, settings={"max_num_seqs": 4}, speculative=True),
        settings={"max_num_seqs": 4, "max_model_len": 2048},
    )


def study_from_command(argv: Sequence[str], name: str) -> str:
    """Return the text of a study that tunes what a command serves today.

    Args:
        argv: ``vllm serve MODEL --flags…`` or ``python -m vllm.entrypoints.openai.api_server
            --model MODEL --flags…``, as words or as one word. ``NAME=value`` may come first. A flag
            counts as a switch if another flag or nothing follows, because only vLLM knows.
        name: Name of the study.

    Raises:
        UserError: it is no such command, or names no model.
    """
    env, words = _environment(_words(argv))
    command, rest = _program(words)
    positional, given = _flags(rest)
    model = given.pop("model", positional)
    if not isinstance(model, str):
        raise UserError("the command names no model; write `vllm serve MODEL --flags…`")

    speculative = _speculative(given)
    n_today = speculative.pop(N, None) if speculative else None
    settings = {flag_name(k): _human(v) for k, v in given.items()}
    mnbt_today = settings.get(MNBT)
    if mnbt_today is not None and not (type(mnbt_today) is int and mnbt_today >= 1):
        raise UserError(
            f"--{MNBT.replace('_', '-')}: must be a whole number from 1 up, not {mnbt_today!s:.60}"
        )
    lines = [
        "server:",
        f"  command: {_yaml(shlex.join(command))}",
        f"  model: {_yaml(model)}",
        *_draft_lines(speculative),
        *_flag_lines(given),
        *_env_lines(env),
    ]
    return _study(
        name,
        lines,
        _space(n_today, mnbt_today, settings, speculative=bool(speculative)),
        settings=settings,
    )


def _words(argv: Sequence[str]) -> list[str]:
    """Return the words of a command, which may be one text."""
    words = list(argv)
    if len(words) == 1:
        try:
            words = shlex.split(words[0].replace("\\\n", " "))
        except ValueError as e:
            raise UserError(f"the command cannot be split into words: {e}") from e
    return [w for w in words if w.strip()]  # the newline of a pasted `\`


def _draft_lines(speculative: Mapping[str, Any]) -> list[str]:
    """Return the lines of the draft in the section ``server``."""
    if not speculative:
        return [
            "  # Without a draft there is no speculation to tune. To add one, take out the # here",
            "  # and in `space`:",
            "  # speculative:",
            "  #   method: dflash",
            "  #   model: org/draft",
        ]
    lines = []
    if "method" not in speculative:
        lines.append("  # the command leaves the method to vLLM: check that it is dflash")
        speculative = {"method": "dflash", **speculative}
    return [
        *lines,
        "  speculative:",
        *(f"    {_yaml(k)}: {_yaml(v)}" for k, v in speculative.items()),
    ]


def _flag_lines(given: Mapping[str, FlagValue]) -> list[str]:
    """Return the lines of the fixed flags, and of those that are left out."""
    left_out = {k: _LEFT_OUT[k] for k in map(flag_name, given) if k in _LEFT_OUT}
    flags = {
        k: v for k, v in given.items() if flag_name(k) not in _LEFT_OUT and flag_name(k) != MNBT
    }
    lines = []
    if flags:
        lines += ["  flags:", *(f"    {_yaml(k)}: {_yaml(v)}" for k, v in flags.items())]
    for k, why in left_out.items():
        lines.append(f"  # left out: --{k.replace('_', '-')} ({why})")
    return lines


def _env_lines(env: Mapping[str, str]) -> list[str]:
    """Return the lines of the environment, and of the secrets that are left out."""
    secrets = [k for k in env if secret_values({k: env[k]})]
    shown = {k: v for k, v in env.items() if k not in secrets}
    lines = []
    if shown:
        lines += ["  env:", *(f"    {_yaml(k)}: {_yaml(v)}" for k, v in shown.items())]
    for k in secrets:
        lines.append(f"  # left out: {k} (a study holds no secrets; set it in your environment)")
    return lines


def _environment(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Split leading ``NAME=value`` words (with or without ``env``, ``export``) from the rest."""
    env: dict[str, str] = {}
    while words and (
        words[0] in {"env", "export"} or re.match(r"[A-Za-z_][A-Za-z0-9_]*=", words[0])
    ):
        key, equals, value = words.pop(0).partition("=")
        if equals:
            env[key] = value
    return env, words


def _program(words: list[str]) -> tuple[list[str], list[str]]:
    """Split the words that start the server from the model and the flags."""
    if len(words) > 1 and words[0].rpartition("/")[2] == "vllm" and words[1] == "serve":
        return words[:2], words[2:]
    if _API_SERVER in words and words[words.index(_API_SERVER) - 1] == "-m":
        end = words.index(_API_SERVER) + 1
        return words[:end], words[end:]
    raise UserError(
        f"`{shlex.join(words)[:80]}` is no command that starts vLLM; give `vllm serve MODEL "
        f"--flags…` or `python -m {_API_SERVER} --model MODEL --flags…`; for a container write "
        "server.command in a study file (`autotune init` alone writes one)"
    )


def _flags(words: list[str]) -> tuple[str | None, dict[str, FlagValue]]:
    """Return the model, if it comes before the flags, and the flags without their dashes."""
    positional = words.pop(0) if words and not _is_flag(words[0]) else None
    flags: dict[str, FlagValue] = {}
    while words:
        word, equals, joined = words.pop(0).partition("=")
        if match := re.fullmatch(r"-O(\d\w*|\w{2,})", word):  # vLLM takes -O3 for -O 3
            word, equals, joined = "-O", "=", match[1]
        values = [joined] if equals else []
        while words and not equals and not _is_flag(words[0]):
            values.append(words.pop(0))
        head, dot, rest = word.partition(".")  # --compilation-config.mode 3
        if not head.startswith("--"):
            if head not in _SHORT:
                raise UserError(f"{word:.60}: is no short flag of vLLM; write it in full, with --")
            head = f"--{_SHORT[head]}"
        name = head[2:].replace("_", "-") + dot + rest
        value: FlagValue
        if not values:
            value, name = (False, name[3:]) if name.startswith("no-") else (True, name)
        elif len(values) == 1:
            value = _value(name, values[0])
        else:
            value = [v if isinstance(v, int | float) else str(v) for v in map(_scalar, values)]
        if name in flags:
            raise UserError(f"--{name:.60}: is given twice; leave one out")
        if name == "model":
            value = values[0] if values else value  # a folder named 135 is no number
        flags[name] = value
    return positional, flags


def _is_flag(word: str) -> bool:
    return word.startswith("-") and len(word) > 1 and not _NUMBER.fullmatch(word)


def _value(name: str, text: str) -> FlagValue:
    if text.startswith("{"):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise UserError(f"--{name:.60}: is not JSON: {e}; put it in single quotes") from e
        return dict(value)
    return _scalar(text)


def _scalar(text: str) -> int | float | str:
    match = _NUMBER.fullmatch(text)
    if match is None or len(text) > 30 or math.isinf(float(text)):
        return text
    return float(text) if match[2] or match[3] else int(text)


def _human(value: FlagValue) -> object:
    """Return a flag's value, with vLLM's 4k (4000) and 4K (4096) as numbers."""
    match = _HUMAN.fullmatch(value) if isinstance(value, str) else None
    return int(float(match[1]) * _SIZES[match[2]]) if match else value


def _speculative(flags: dict[str, FlagValue]) -> dict[str, Any]:
    """Remove ``--speculative-config`` from the flags, in both of its forms, and return it."""
    config: dict[str, Any] = {}
    for name in [k for k in flags if k.partition(".")[0] == "speculative-config"]:
        value = flags.pop(name)
        key = name.partition(".")[2].replace("-", "_")
        if key:
            config[key] = value
        elif isinstance(value, dict):
            config |= value
        else:
            raise UserError(
                f"--speculative-config: must be a JSON object in single quotes, not {value!s:.60}"
            )
    if config and not isinstance(config.get("model"), str):
        raise UserError("--speculative-config: names no draft `model`, which is what a study tunes")
    if config and not (isinstance(config.get(N, 1), int) and config.get(N, 1) >= 1):
        raise UserError(f"--speculative-config: {N} must be a whole number from 1 up")
    return config


def _space(
    n_today: int | None,
    mnbt_today: object,
    settings: Mapping[str, object],
    *,
    speculative: bool,
) -> list[str]:
    """Return the section ``space``: n if there is a draft, and MNBT around today's."""
    n_high = max(15, n_today or 0)
    low, high = _mnbt_range(mnbt_today, settings, n_high if speculative else 0)
    mark = "" if speculative else "# "
    today = f"; the command has {n_today}" if n_today else ""
    was = f" The command has {mnbt_today}." if mnbt_today else ""
    return [
        "# What is searched. Any vLLM flag may stand here, as type int, float, pow2 or choice.",
        "space:",
        f"  {mark}{N}: # n, tokens drafted per step; 0 is no speculation{today}",
        f"  {mark}  type: int",
        f"  {mark}  low: 0",
        f"  {mark}  high: {n_high} # a DFlash draft takes at most its block_size - 1",
        f"  # Tokens per step, prompts and drafts together, as powers of two.{was}",
        f"  {MNBT}:",
        "    type: pow2",
        f"    low: {low}",
        f"    high: {high}",
    ]


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
        "# A study: what to serve, what to search, what load to put on it, what to optimize.",
        "# Run it with `autotune run FILE --trials 40`; the bundled study demo-cpu.yaml has every",
        "# key explained.",
        f"name: {_yaml(name)}",
        "",
        *server,
        "",
        *space,
        "",
        "workload:",
        "  # Random tokens need no data, but say little about acceptance: real prompts are better.",
        "  # prompts: my-prompts.jsonl # lines with `messages` (a chat) or `prompt`",
        "  random:",
        f"    input_len: {min(256, room // 4)}",
        f"  output_len: {min(256, room // 4)}",
        f"  num_prompts: {max(140, 8 * concurrency)}",
        f"  max_concurrency: {concurrency} # requests at a time: as many as you expect in use",
        "  # request_rate: 2 # arrivals per second, on average; without it, as fast as they end",
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
    return text.removesuffix("...\n").strip()
