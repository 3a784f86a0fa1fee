"""The flags of vLLM's server, as a table: names, how many values each takes, and which are texts.

A study is written and read where no vLLM is installed, so the table is data of this package.
``python -m benchmarks.vllm_flags`` writes it again from the installed vLLM, and a test compares the
two. A flag that the table lacks is one of another version: :func:`find` returns None.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from autotune.errors import UserError

# Switches that vLLM had before the version of the table: they take no value.
_FORMER_SWITCHES = frozenset(
    (
        "disable-log-requests",
        "enable-reasoning",
        "use-v2-block-manager",
        "worker-use-ray",
        "engine-use-ray",
        "disable-async-output-proc",
        "multi-step-stream-outputs",
        "enable-prompt-adapter",
        "speculative-disable-mqa-scorer",
        "disable-mm-preprocessor-cache",
        "enable-multimodal-encoder-data-parallel",
        "guided-decoding-disable-fallback",
        "guided-decoding-disable-any-whitespace",
        "guided-decoding-disable-additional-properties",
    )
)


# Flags of older vLLMs that later ones begin with: read as what they were, not as an abbreviation.
_FORMER = frozenset({"--device"})


@dataclass(frozen=True)
class Flag:
    """A flag of vLLM.

    Attributes:
        name: Its first long name, without dashes in front and with underscores.
        takes: Number of values: ``none`` (a switch), ``one``, ``maybe`` one, or ``some``.
        negated: Whether this spelling of a switch turns it off: its ``--no-`` form, or
            ``--disable-x`` of ``--enable-x`` and the other way round, which vLLM has from 0.33 on.
        text: Whether vLLM keeps a value as it is written.
        mapping: Whether it takes a JSON object.
        repeats: Whether every occurrence counts; of any other flag the last one does.
    """

    name: str
    takes: Literal["none", "one", "maybe", "some"]
    negated: bool = False
    text: bool = False
    mapping: bool = False
    repeats: bool = False


@cache
def _table() -> dict[str, Any]:
    text = files("autotune.study").joinpath("vllm_flags.json").read_text("utf-8")
    table: dict[str, Any] = json.loads(text)
    return table


@cache
def known() -> Mapping[str, Flag]:
    """Return the flags by each of their spellings, ``--`` or ``-`` in front."""
    found: dict[str, Flag] = {}
    for row in _table()["flags"]:
        body = {k: v for k, v in row.items() if k != "names"}
        name = row["names"][0][2:].replace("-", "_")
        for spelling in row["names"]:
            first = row["names"][0]
            off = (f"--no-{first[2:]}", f"--{inverse(first[2:])}")
            negated = body["takes"] == "none" and spelling in off
            found[spelling] = Flag(name=name, negated=negated, **body)
    return found


def inverse(name: str) -> str | None:
    """Return ``disable-x`` for ``enable-x`` and the other way round; None: it is neither.

    Args:
        name: The flag without dashes in front.
    """
    match name.replace("_", "-").partition("-"):
        case ("enable", _, rest):
            return f"disable-{rest}"
        case ("disable", _, rest):
            return f"enable-{rest}"
    return None


def table_version() -> str:
    """Return the version of vLLM that the table was made from."""
    return str(_table()["vllm"])


def find(spelling: str) -> Flag | None:
    """Return a flag by a spelling that vLLM's parser takes, abbreviations included.

    Args:
        spelling: The flag with its dashes, without a value and without a dotted key.

    Raises:
        UserError: the abbreviation stands for several flags.
    """
    flags = known()
    if spelling in flags:
        return flags[spelling]
    if spelling in _FORMER:
        return None
    switch = flags.get(f"--{inverse(spelling[2:])}")
    if switch is not None and switch.takes == "none" and not was_switch(spelling[2:]):
        off = flags.get(f"--no-{switch.name.replace('_', '-')}")
        if off is not None:  # 0.33 and later have this spelling of it
            return off
    matches = sorted(s for s in flags if s.startswith(spelling)) if len(spelling) > 1 else []
    if spelling.startswith("-") and not spelling.startswith("--"):
        matches = [s for s in matches if not s.startswith("--")]
    if len({flags[s] for s in matches}) > 1:
        raise UserError(
            f"{spelling:.60}: vLLM would not know which flag this is short for: "
            f"{', '.join(matches[:4])}; write it in full"
        )
    return flags[matches[0]] if matches else None


def was_switch(name: str) -> bool:
    """Return whether an older vLLM had a switch of this name, which the table lacks.

    Args:
        name: The flag without dashes in front.
    """
    return name.replace("_", "-") in _FORMER_SWITCHES
