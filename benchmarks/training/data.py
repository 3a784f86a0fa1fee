"""What a draft is trained on: sequences that its target wrote, and their file.

A draft has to guess the target's own words, so no text of other origin is needed. A sequence is a
prompt and the target's answer to it. There are five kinds:

    chat     the target writes the user's turn too (sampled), after its own system prompt
    random   token ids drawn uniformly; the target falls into loops there, which are easy to guess
    raw      no chat at all: one random token and what the target makes of it (sampled)
    prompt   somebody's own chats, from a JSONL file in the format of studies/prompts
    run-on   the same, but the answer goes on past the end of its turn, as `ignore_eos` has it

Answers are greedy, but for every fourth, seventh and tenth batch of ten, which samples those of
chat and raw at 0.7, and for all answers to a prompt after its first. Sampling is temperature and
min-p 0.05.

Answers fill the sequence unless they are told to stop: what follows the end of the turn is then no
part of it. Answers to somebody's own prompts stop, but for those of kind run-on.

All rows of a batch are at the same position, and prompts are tokens that rows are forced to take:
one loop does it all, however long the prompts are. What all rows are forced to take at their start
is read at once, and when half of the rows are at their end, the loop goes on without them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autotune.errors import UserError

from .chat import Chat, Tokens
from .target import BUCKET, MOST_POSITIONS, Cache, Target

KINDS = ("chat", "random", "raw", "prompt", "run-on")
CHAT, RANDOM, RAW, PROMPT, RUN_ON = range(5)

HELD_SHARE = 0.02  # of the sequences; nothing is trained on them
TEMPERATURE = 0.7
MIN_P = 0.05
_SAMPLED = (3, 6, 9)  # batches, of ten
_ROOM = 24  # the least tokens between a prompt and the end of its sequence
_LEAST_ANSWER = 2  # a block's first token is given, and there is one to guess
_SHOWN = 24  # held-out sequences of a kind that are written out as text
_LOOK = 32  # positions between two looks at which rows are at their end

Say = Callable[[str], None]


@dataclass(frozen=True)
class DataRecipe:
    """What determines the sequences, beside the machine's rounding.

    Attributes:
        target: Reference of the target.
        seed: Of prompts and sampling.
        sequences: Self-generated ones; those whose prompt leaves no room are dropped.
        length: Tokens of each.
        rows: Written side by side; they take 2 · layers · rows · length · kv_heads · head_dim
            numbers of memory.
        random_share: Of kind ``random``.
        raw_share: Of kind ``raw``; the rest is ``chat``.
        stop: Self-generated answers too stop at the end of the turn.
        prompts: SHA-256 of the file of prompts.
        answers: To each prompt of the file.
        answer_length: Tokens of each of them at most; 0: as many as the sequence has left.
        run_on: Share of these prompts whose answers go on past the end of their turn.
        held_out: Share of these prompts on which, and on whose answers, nothing is trained.
    """

    target: str = "demo:target"
    seed: int = 0
    sequences: int = 34_816
    length: int = 768
    rows: int = 2048
    random_share: float = 0.12
    raw_share: float = 0.13
    stop: bool = False
    prompts: str | None = None
    answers: int = 1
    answer_length: int = 0
    run_on: float = 0.0
    held_out: float = 0.1

    def __post_init__(self) -> None:
        if not 64 <= self.length <= MOST_POSITIONS:
            raise UserError(f"--length {self.length}: must be 64 to {MOST_POSITIONS} tokens")
        if min(self.random_share, self.raw_share) < 0 or self.random_share + self.raw_share > 1:
            raise UserError("--random-share, --raw-share: must be 0 to 1, and so must their sum")
        if self.rows < 1 or self.answers < 1 or self.sequences < 0:
            raise UserError("--rows, --answers: must be 1 or more; --sequences: 0 or more")
        if self.answer_length and self.answer_length < _ROOM:
            raise UserError(f"--answer-length {self.answer_length}: must be 0, or {_ROOM} or more")
        if not (0 <= self.run_on <= 1 and 0 < self.held_out <= 1):
            raise UserError("--run-on: must be 0 to 1; --held-out: above 0, to 1")
        if not self.sequences and self.prompts is None:
            raise UserError("--sequences 0: leaves nothing to train on; give --prompts FILE")


@dataclass(frozen=True)
class Sequences:
    """Sequences in the order in which training numbers them.

    Attributes:
        tokens: [sequences, length].
        start: Where each answer begins.
        end: Where it ends, exclusive.
        kind: Index into `KINDS`.
        greedy: The answer is the target's greedy one.
        held: Held out.
    """

    tokens: NDArray[Any]
    start: NDArray[np.int32]
    end: NDArray[np.int32]
    kind: NDArray[np.int32]
    greedy: NDArray[np.bool_]
    held: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, which: NDArray[Any]) -> Sequences:
        return Sequences(*(getattr(self, f.name)[which] for f in fields(self)))

    @property
    def trained(self) -> NDArray[np.intp]:
        """Indices of those that are not held out."""
        return np.flatnonzero(~self.held)

    def held_out(self, kind: int, most: int) -> Sequences:
        """The first held-out ones of a kind with greedy answers."""
        return self[np.flatnonzero(self.held & self.greedy & (self.kind == kind))[:most]]

    def counts(self) -> dict[str, int]:
        """How many of each kind there are."""
        return {k: n for i, k in enumerate(KINDS) if (n := int((self.kind == i).sum()))}


def save(path: Path, sequences: Sequences, recipe: DataRecipe) -> None:
    """Writes a NumPy archive: the fields of `Sequences`, and the recipe as JSON; atomically."""
    columns = {f.name: getattr(sequences, f.name) for f in fields(sequences)}
    draft = path.with_name(f".{path.name}")
    with draft.open("wb") as f:
        np.savez(f, recipe=np.array(json.dumps(asdict(recipe))), **columns)
    draft.replace(path)


def load(path: Path, recipe: DataRecipe) -> Sequences:
    """Reads what `save` wrote.

    Raises:
        UserError: it was made by another recipe.
    """
    with np.load(path) as archive:
        refuse_other(path, json.loads(str(archive["recipe"])), asdict(recipe))
        return Sequences(**{f.name: archive[f.name] for f in fields(Sequences)})


def refuse_other(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises a UserError that names the first key in which two recipes differ."""
    for key, value in wanted.items():
        if (was := found.get(key)) != value:
            raise UserError(
                f"{path}: was made with {key} = {was}, not {value}; give the same options, "
                "or another folder"
            )


# -- writing sequences -------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What the rows of a batch are told; arrays by row.

    Attributes:
        forced: Tokens that are given [rows, length]; -1: the target chooses.
        answers: The answer follows the forced tokens at once; else a chat turn is written first
            or, where ``raw``, the prompt goes on.
        raw: No chat.
        start: Where the answer begins, where that is known.
        prompt_end: Where a written prompt ends at the latest; 0: none is written.
        answer_end: Where the answer ends at the latest.
        prompt_temperature: Of a prompt that the target writes.
        answer_temperature: 0 is greedy.
    """

    forced: NDArray[np.int64]
    answers: NDArray[np.bool_]
    raw: NDArray[np.bool_]
    start: NDArray[np.int64]
    prompt_end: NDArray[np.int64]
    answer_end: NDArray[np.int64]
    prompt_temperature: NDArray[np.float32]
    answer_temperature: NDArray[np.float32]

    @classmethod
    def blank(cls, rows: int, length: int, temperature: float) -> Plan:
        """Nothing is forced yet; to be filled in."""
        return cls(
            np.full((rows, length), -1, np.int64),
            np.zeros(rows, np.bool_),
            np.zeros(rows, np.bool_),
            np.zeros(rows, np.int64),
            np.zeros(rows, np.int64),
            np.full(rows, length, np.int64),
            np.ones(rows, np.float32),
            np.full(rows, temperature, np.float32),
        )


def self_generated(
    kinds: NDArray[np.int64], chat: Chat, length: int, temperature: float, rng: np.random.Generator
) -> Plan:
    """A batch of the kinds ``chat``, ``random`` and ``raw``."""
    plan = Plan.blank(len(kinds), length, temperature)
    for row, kind in enumerate(kinds):
        if kind == CHAT:
            n = len(chat.prefix)
            plan.forced[row, :n] = chat.prefix
            plan.prompt_end[row] = n + rng.integers(8, max(9, min(160, length // 4)))
            plan.prompt_temperature[row] = rng.uniform(0.8, 1.1)
        elif kind == RANDOM:
            most = max(8, min(256, length // 3))
            n = int(rng.integers(min(64, most // 2), most + 1))
            plan.forced[row, :n] = rng.integers(0, chat.vocabulary, n)
            plan.answers[row], plan.start[row], plan.answer_temperature[row] = True, n, 0.0
        else:
            n = int(rng.integers(4, max(5, min(100, length // 4))))
            plan.forced[row, 0] = chat.plain[rng.integers(0, len(chat.plain))]
            plan.raw[row], plan.start[row], plan.prompt_end[row] = True, n, n
    return plan


def given(
    prompts: Sequence[Sequence[int]], length: int, temperature: float, answer_length: int = 0
) -> Plan:
    """A batch of the kinds ``prompt`` and ``run-on``, in as few buckets of keys as hold it."""
    if answer_length:
        longest = max(map(len, prompts)) + answer_length
        length = min(length, -(-longest // BUCKET) * BUCKET)
    plan = Plan.blank(len(prompts), length, temperature)
    for row, prompt in enumerate(prompts):
        plan.forced[row, : len(prompt)] = prompt
        plan.answers[row], plan.start[row] = True, len(prompt)
    if answer_length:
        np.minimum(plan.start + answer_length, length, out=plan.answer_end)
    return plan


def write(
    target: Target, plan: Plan, chat: Chat, noise: torch.Generator, stop: bool
) -> tuple[NDArray[Any], NDArray[np.int32], NDArray[np.int32]]:
    """Lets the target write the rows of a batch, position by position.

    Args:
        target: Who writes.
        plan: What each row is told.
        chat: The target's chat template.
        noise: Of sampling, on the target's device.
        stop: Answers end with their turn.

    Returns:
        Tokens [rows, length], without meaning past the end of the answer; where each answer
        begins, 0: nowhere; where it ends, exclusive.
    """

    def put(a: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(a).to(target.device)

    rows, length = plan.forced.shape
    header = torch.tensor(chat.header, device=target.device)
    answering = len(header) + 1  # phases: 0 prompt, 1 … len(header) the header, then the answer
    phase = put(plan.answers).long() * answering
    forced, raw, start, prompt_end = map(put, (plan.forced, plan.raw, plan.start, plan.prompt_end))
    hot, hot_answer = put(plan.prompt_temperature), put(plan.answer_temperature)
    answer_end = put(plan.answer_end)
    last_prompt, sampled = int(plan.prompt_end.max()), bool(plan.answer_temperature.any())
    cache = Cache(target, rows, length)
    out = torch.zeros(rows, length, dtype=torch.long, device=target.device)
    begins, row = start.clone(), torch.arange(rows, device=target.device)
    ended = torch.zeros(rows, dtype=torch.bool, device=target.device)
    told_all = (plan.forced >= 0).all(0)
    first = int(told_all.argmin()) or length  # all rows are told what stands before it
    out[:, :first] = forced[:, :first]
    if first > 1:
        with torch.no_grad():
            cache.fill(out[:, : first - 1])
    for at in range(first, length):
        with torch.no_grad():
            logits = cache.logits(out[row, at - 1], at - 1)
        chosen = logits.argmax(-1)
        if sampled or at <= last_prompt:
            chosen = _sample(logits, chosen, torch.where(phase == 0, hot, hot_answer), noise)
        told = forced[:, at] >= 0
        writes_prompt = (phase == 0) & ~told
        in_header = (phase > 0) & (phase < answering)
        in_turn = writes_prompt & ~raw
        chosen = torch.where(in_turn & (at >= prompt_end), chat.end, chosen)
        chosen = torch.where(in_header, header[(phase - 1).clamp(0, len(header) - 1)], chosen)
        chosen = torch.where(told, forced[:, at], chosen)
        out[row, at] = chosen
        if stop:
            ended |= (phase == answering) & ~told & (chosen == chat.end)
        start = torch.where(phase == answering - 1, at + 1, start)
        turn_over = in_turn & (chosen == chat.end)
        raw_over = raw & (phase == 0) & (at + 1 >= prompt_end)
        phase = torch.where(in_header, phase + 1, torch.where(turn_over, 1, phase))
        phase = torch.where(raw_over, answering, phase)
        if at % _LOOK == 0:
            begins[row] = start
            going = (~ended & (at + 1 < answer_end)).nonzero().squeeze(1)
            if not len(going):
                break
            if 2 * len(going) <= len(row):
                cache.keep(going)
                forced, raw, start, prompt_end, hot, hot_answer, answer_end, phase, ended, row = (
                    x[going]
                    for x in (
                        *(forced, raw, start, prompt_end, hot),
                        *(hot_answer, answer_end, phase, ended, row),
                    )
                )
    begins[row] = start
    tokens = out.cpu().numpy().astype(np.min_scalar_type(chat.vocabulary - 1))
    answers = begins.cpu().numpy().astype(np.int32)
    ends = _ends(tokens, answers, chat.end if stop else None)
    return tokens, answers, np.minimum(ends, plan.answer_end).astype(np.int32)


def _sample(
    logits: torch.Tensor, greedy: torch.Tensor, temperature: torch.Tensor, noise: torch.Generator
) -> torch.Tensor:
    """Temperature and min-p; a draw from p is the argmax of p / Exp(1). 0: the greedy choice."""
    p = torch.softmax(logits.float() / temperature.clamp(min=1e-3)[:, None], -1)
    p.masked_fill_(p < MIN_P * p.amax(-1, keepdim=True), 0.0)
    waits = torch.empty_like(p).exponential_(generator=noise).clamp_(min=1e-10)
    return torch.where(temperature > 0, p.div_(waits).argmax(-1), greedy)


def _ends(tokens: NDArray[Any], start: NDArray[np.int32], end: int | None) -> NDArray[np.int32]:
    """Past the first ``end`` of each answer; the whole length where there is none."""
    length = tokens.shape[1]
    found = (tokens == end) & (np.arange(length) >= start[:, None])
    return np.where(found.any(1), found.argmax(1) + 1, length).astype(np.int32)


def generate(
    target: Target, chat: Chat, recipe: DataRecipe, prompts: Sequence[Sequence[int]], say: Say
) -> Sequences:
    """All sequences of a recipe, shuffled, some held out.

    Args:
        target: Who writes.
        chat: Its chat template.
        recipe: How many of what.
        prompts: Somebody's own, as tokens; may be empty.
        say: Told of every batch.

    Raises:
        UserError: no prompt leaves room for an answer.
    """
    rng = np.random.default_rng(recipe.seed)
    noise = torch.Generator(target.device).manual_seed(recipe.seed)
    own = list(_own(target, chat, recipe, rng, noise, say)) if recipe.sequences else []
    parts = []
    if own:
        found = _joined(own)
        found = found[rng.permutation(len(found))]
        found.held[: max(1, int(len(found) * HELD_SHARE))] = True
        parts.append(found)
    if prompts:
        parts.append(_answered(target, chat, recipe, prompts, rng, noise, say))
    return _joined(parts)


def _own(
    target: Target,
    chat: Chat,
    recipe: DataRecipe,
    rng: np.random.Generator,
    noise: torch.Generator,
    say: Say,
) -> Iterable[Sequences]:
    shares = [1 - recipe.random_share - recipe.raw_share, recipe.random_share, recipe.raw_share]
    batches = math.ceil(recipe.sequences / recipe.rows)
    for i in range(batches):
        rows = min(recipe.rows, recipe.sequences - i * recipe.rows)
        kinds = rng.choice(3, rows, p=shares)
        temperature = TEMPERATURE if i % 10 in _SAMPLED else 0.0
        plan = self_generated(kinds, chat, recipe.length, temperature, rng)
        yield _kept(*write(target, plan, chat, noise, recipe.stop), kinds, plan)
        say(f"sequences: batch {i + 1} of {batches}")


def _answered(
    target: Target,
    chat: Chat,
    recipe: DataRecipe,
    prompts: Sequence[Sequence[int]],
    rng: np.random.Generator,
    noise: torch.Generator,
    say: Say,
) -> Sequences:
    """Answers to somebody's own prompts; all answers to one prompt are held out, or none."""
    short = [i for i, p in enumerate(prompts) if len(p) < recipe.length - _ROOM]
    if not short:
        raise UserError(
            f"--prompts: none leaves room for an answer in {recipe.length} tokens; raise --length"
        )
    if len(short) < len(prompts):
        left = len(prompts) - len(short)
        say(f"prompts: {left} of {len(prompts)} are too long for --length {recipe.length}")
    held = rng.permutation(short)[: max(1, int(len(short) * recipe.held_out))]
    run_on = np.zeros(len(prompts), np.bool_)
    run_on[rng.permutation(short)[: round(len(short) * recipe.run_on)]] = True
    order = sorted(short, key=lambda i: len(prompts[i]))  # few rows wait for a prompt's end
    batches = [
        (kind, group[at : at + recipe.rows])
        for kind in (PROMPT, RUN_ON)
        for group in [[i for i in order if run_on[i] == (kind == RUN_ON)]]
        for at in range(0, len(group), recipe.rows)
    ]
    parts, sources = [], []
    for answer in range(recipe.answers):
        for kind, which in batches:
            plan = given(
                [prompts[i] for i in which],
                recipe.length,
                TEMPERATURE if answer else 0.0,
                recipe.answer_length,
            )
            tokens, start, end = write(target, plan, chat, noise, stop=kind == PROMPT)
            tokens = np.pad(tokens, ((0, 0), (0, recipe.length - tokens.shape[1])))
            parts.append(_kept(tokens, start, end, np.full(len(which), kind), plan))
            sources.append(np.array(which)[_usable(start, end, recipe.length)])
            done = sum(map(len, sources))
            say(f"prompts: {done} answers of at most {len(order) * recipe.answers}")
    found = _joined(parts)
    found.held[np.isin(np.concatenate(sources), held)] = True
    return found[rng.permutation(len(found))]


def _usable(start: NDArray[np.int32], end: NDArray[np.int32], length: int) -> NDArray[np.bool_]:
    usable: NDArray[np.bool_] = (
        (start > 0) & (start < length - _ROOM) & (end - start >= _LEAST_ANSWER)
    )
    return usable


def _kept(
    tokens: NDArray[Any],
    start: NDArray[np.int32],
    end: NDArray[np.int32],
    kinds: NDArray[Any],
    plan: Plan,
) -> Sequences:
    """A batch without the sequences whose prompt left no room, or whose answer is too short."""
    found = Sequences(
        tokens,
        start,
        end,
        kinds.astype(np.int32),
        plan.answer_temperature == 0,
        np.zeros(len(tokens), np.bool_),
    )
    return found[_usable(start, end, tokens.shape[1])]


def _joined(parts: Sequence[Sequences]) -> Sequences:
    return Sequences(
        *(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Sequences))
    )


def write_texts(path: Path, sequences: Sequences, tokens: Tokens) -> None:
    """Some held-out sequences of each kind as JSONL, to be read by people."""
    with path.open("w", encoding="utf-8") as f:
        for i, kind in enumerate(KINDS):
            for ids, start, end in _rows(sequences.held_out(i, _SHOWN)):
                row = {
                    "kind": kind,
                    "prompt": tokens.decode(ids[:start]),
                    "answer": tokens.decode(ids[start:end]),
                }
                f.write(json.dumps(row, ensure_ascii=False) + "\n")


def _rows(sequences: Sequences) -> Iterable[tuple[list[int], int, int]]:
    for ids, start, end in zip(sequences.tokens, sequences.start, sequences.end, strict=True):
        yield ids.tolist(), int(start), int(end)
