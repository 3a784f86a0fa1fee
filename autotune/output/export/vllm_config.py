"""A file for vLLM's ``--config``.

vLLM (utils/argparse_utils.py, load_config_file) makes flags of its entries again: true is a
switch, a list its values, a mapping JSON.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

from autotune.errors import UserError
from autotune.output.export.endpoint import LOCAL
from autotune.output.export.job import Job
from autotune.output.export.yaml_text import Word, yaml_text
from autotune.study.space import as_int


def vllm_config(job: Job) -> str:
    """Return the text of a config."""
    plan = job.plan()
    program = plan.head[:-2] if plan.head[-2:-1] == ("--model",) else plan.head[:-1]
    env = {**plan.env, **plan.hiding}
    if env:
        words = [f'{k}="${k}"' if v is None else f"{k}={shlex.quote(v)}" for k, v in env.items()]
        job.say("A config has no environment; set:", *(f"export {w}" for w in words))
    entries: dict[str, Any] = {"model": Word(plan.model)}
    for flag in (*_split(plan.rest), *plan.flags):
        name, equals, joined = flag[0].removeprefix("--").partition("=")
        if equals and joined.startswith("-"):
            entries[f"{name}={joined}"] = True  # a value alone would be taken for a flag
            continue
        values = [_scalar(v) for v in ((joined,) if equals else flag[1:])]
        entries.pop(name, None)
        entries[name] = True if not values else values[0] if len(values) == 1 else values
    entries |= {"host": Word(job.where.host or LOCAL), "port": job.where.port}
    job.say("Start it with:", f"{shlex.join(program)} --config {job.named('vllm.yaml')}")
    return yaml_text(entries)


def _split(words: Sequence[str]) -> list[list[str]]:
    """Return the words of a command as flags with their values."""
    flags: list[list[str]] = []
    for word in words:
        if word.startswith("--"):
            flags.append([word])
        elif word.startswith("-") and as_int(word) is None:
            raise UserError(
                f"server.command: {word} has no long name here; write the flag in full, with --"
            )
        elif not flags:
            raise UserError(f"server.command: {word} is no flag, and a config has flags only")
        else:
            flags[-1].append(word)
    return flags


def _scalar(word: str) -> Any:
    """Return a value as YAML shows it best, of which vLLM makes the same word again."""
    try:
        value = json.loads(word)
    except ValueError:
        return Word(word)
    if isinstance(value, dict) and json.dumps(value) == word:
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if number and str(value) == word else Word(word)
