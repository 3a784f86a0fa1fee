"""Writes varied chat prompts for the training of a draft.

    python -m benchmarks.training.prompts FILE.jsonl --count 12000 --seed 0

A draft learns the answers that its target gives, so the prompts have to be like those it will meet:
questions, letters, code, sums, texts to be summarised, tables, logs, chats, other languages. They
are put together by chance from `material.yaml`, which also says how. The same count, seed and
material give the same file. No two prompts are alike.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from autotune.errors import UserError

from .chat import Messages

MATERIAL = Path(__file__).with_name("material.yaml")
_TRIES = 100  # for a prompt that is not yet there
_SLOT = re.compile(r"<<([^<>]+)>>")  # the innermost ones
_NUMBER = re.compile(r"(\d+)\.\.(\d+)")
_SEVERAL = re.compile(r"(\d+)\.\.(\d+) (\w+)([,/^#-]?)")
_NAMED = re.compile(r"(\w+)=(\w+)")
_ROLE = re.compile(r"@(system|user|assistant) ")


@dataclass(frozen=True)
class Material:
    """What prompts are made of.

    Attributes:
        weights: How often each kind comes.
        kinds: Templates by kind.
        lists: Entries by name.
    """

    weights: Mapping[str, int]
    kinds: Mapping[str, Sequence[str]]
    lists: Mapping[str, Sequence[str]]

    @classmethod
    def read(cls, path: Path = MATERIAL) -> Material:
        """Reads material.yaml."""
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        kinds, lists = ({k: _entries(v) for k, v in found[x].items()} for x in ("kinds", "lists"))
        return cls(found["weights"], kinds, lists)


def _entries(text: str) -> list[str]:
    if "\n%\n" in text:
        return text.rstrip("\n").split("\n%\n")
    return [line.removeprefix("~").replace("\\n", "\n") for line in text.splitlines()]


def expanded(template: str, lists: Mapping[str, Sequence[str]], rng: random.Random) -> str:
    """A template with all slots filled, the innermost first.

    An entry of a list comes again only when all others have come.

    Raises:
        KeyError: a slot names no list.
    """
    named: dict[str, str] = {}
    decks: dict[str, list[str]] = {}

    def drawn(name: str) -> str:
        if not decks.get(name):
            decks[name] = rng.sample(lists[name], len(lists[name]))
        return whole(decks[name].pop())

    def fill(match: re.Match[str]) -> str:
        slot: str = match[1]
        if "|" in slot:
            return rng.choice(slot.split("|"))
        if slot.startswith("="):
            return named[slot[1:]]
        if found := _NUMBER.fullmatch(slot):
            return str(rng.randint(int(found[1]), int(found[2])))
        if found := _SEVERAL.fullmatch(slot):
            count = rng.randint(int(found[1]), int(found[2]))
            return _joined([drawn(found[3]) for _ in range(count)], found[4])
        if found := _NAMED.fullmatch(slot):
            named[found[2]] = drawn(found[1])
            return named[found[2]]
        if slot[0].isupper():
            text = drawn(slot.lower())
            return text[0].upper() + text[1:]
        return drawn(slot)

    def whole(text: str) -> str:
        while _SLOT.search(text):
            text = _SLOT.sub(fill, text)
        return text

    return whole(template)


def _joined(entries: Sequence[str], sign: str) -> str:
    if sign == "#":
        return "\n".join(f"{i}. {x}" for i, x in enumerate(entries, start=1))
    if sign == "-":
        return "\n".join(f"- {x}" for x in entries)
    if sign == "^":
        return "\n".join(sorted(entries))
    return {"": " ", ",": ", ", "/": "\n"}[sign].join(entries)


def messages(text: str) -> Messages:
    """A filled template as a chat."""
    first, *rest = _ROLE.split(text)
    if not rest:
        return [{"role": "user", "content": first}]
    return [
        {"role": role, "content": content.strip()}
        for role, content in zip(rest[::2], rest[1::2], strict=True)
    ]


def prompts(material: Material, count: int, seed: int) -> Iterator[tuple[str, Messages]]:
    """Kinds and chats, no two alike.

    Raises:
        UserError: the material does not give so many.
    """
    rng = random.Random(seed)
    kinds, weights = list(material.weights), list(material.weights.values())
    seen: set[str] = set()
    for _ in range(count):
        for _ in range(_TRIES):
            (kind,) = rng.choices(kinds, weights)
            text = expanded(rng.choice(material.kinds[kind]), material.lists, rng)
            if text not in seen:
                break
        else:
            raise UserError(f"--count {count}: the material gives no more than {len(seen)} prompts")
        seen.add(text)
        yield kind, messages(text)


def write(path: Path, count: int, seed: int) -> None:
    """Writes prompts as JSONL, in the format of studies/prompts.

    Raises:
        UserError: the file cannot be written, or the material does not give so many.
    """
    lines = []
    for i, (kind, chat) in enumerate(prompts(Material.read(), count, seed)):
        lines.append(json.dumps({"id": f"{kind}-{i}", "messages": chat}, ensure_ascii=False) + "\n")
    try:
        path.write_text("".join(lines), encoding="utf-8")
    except OSError as e:
        raise UserError(f"{path}: cannot be written: {e.strerror}; name another file") from e


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.prompts",
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="JSONL, for --prompts of the training")
    parser.add_argument("--count", type=int, default=12_000, help="prompts")
    parser.add_argument("--seed", type=int, default=0, help="of the choice")
    args = parser.parse_args(argv)
    try:
        if args.count < 1:
            raise UserError(f"--count {args.count}: must be 1 or more")
        write(args.file, args.count, args.seed)
    except UserError as e:
        print(e, file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
