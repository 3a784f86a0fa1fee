"""`benchmarks/training`: the draft's trainer, on a target of two layers made here."""

from __future__ import annotations

import json
import random
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from autotune.errors import NothingUsable, UserError
from autotune.study.models import draft_folder
from benchmarks.training import __main__ as command
from benchmarks.training import data, heldout, prompts, train
from benchmarks.training.chat import Chat, Tokens, read_prompts
from benchmarks.training.data import CHAT, PROMPT, RANDOM, RUN_ON, DataRecipe, Sequences
from benchmarks.training.model import (
    Draft,
    _WeightedCrossEntropy,
    config_for,
    draft_loss,
    drafted,
    load_draft,
    sample_blocks,
    write_draft,
)
from benchmarks.training.target import Cache, Target
from benchmarks.training.train import Recipe, Trainer
from tests.paths import ROOT

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
START, END, MASK = range(3)  # <|im_start|> and so on
WORDS = ["<|im_start|>", "<|im_end|>", "<mask>", "user", "assistant", "system"]
WORDS += [f"w{i}" for i in range(90)]
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<|im_start|> {{ m['role'] }} {{ m['content'] }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "vocab_size": len(WORDS),
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "bos_token_id": START,
    "eos_token_id": END,
}
DATA = DataRecipe("tiny", sequences=48, length=96, rows=24, random_share=0.25, raw_share=0.25)
TRAINING = Recipe(
    steps=6,
    target_layers=(0, 1),
    mask_token=MASK,
    block_size=8,
    batch=8,
    blocks=6,
    learning_rate=3e-3,
    warmup=2,
)
OPTIONS = shlex.split(
    "--sequences 48 --length 96 --rows 24 --target-layers 0,1 --mask-token 2 --block-size 8 "
    "--steps 6 --batch 8 --blocks 6 --learning-rate 3e-3 --warmup 2 --save-every 3 --device cpu"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a tokenizer of words and a chat template."""
    path = tmp_path_factory.mktemp("target")
    noise = torch.Generator().manual_seed(7)

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=noise) * 0.3

    hidden, inner, kv = 32, 48, 16
    state = {"model.embed_tokens.weight": matrix(len(WORDS), hidden)}
    state["model.norm.weight"] = 1 + matrix(hidden)
    for i in range(2):
        of = f"model.layers.{i}."
        state |= {
            of + "input_layernorm.weight": 1 + matrix(hidden),
            of + "post_attention_layernorm.weight": 1 + matrix(hidden),
            of + "self_attn.q_proj.weight": matrix(hidden, hidden),
            of + "self_attn.k_proj.weight": matrix(kv, hidden),
            of + "self_attn.v_proj.weight": matrix(kv, hidden),
            of + "self_attn.o_proj.weight": matrix(hidden, hidden),
            of + "mlp.gate_proj.weight": matrix(inner, hidden),
            of + "mlp.up_proj.weight": matrix(inner, hidden),
            of + "mlp.down_proj.weight": matrix(hidden, inner),
        }
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(CONFIG))
    words = Tokenizer(WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="w0"))
    words.pre_tokenizer = WhitespaceSplit()
    words.add_special_tokens(WORDS[:3])
    words.save(str(path / "tokenizer.json"))
    (path / "chat_template.jinja").write_text(TEMPLATE)
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    (path / "tokenizer_config.json").write_text(json.dumps(names))
    return path


@pytest.fixture(scope="module")
def words(folder: Path) -> Tokens:
    return Tokens(folder)


@pytest.fixture(scope="module")
def target(folder: Path) -> Target:
    return Target.load(folder, CPU, torch.float32)


@pytest.fixture(scope="module")
def chat(words: Tokens) -> Chat:
    return Chat.of(words, len(WORDS))


@pytest.fixture(scope="module")
def sequences(target: Target, chat: Chat) -> Sequences:
    return data.generate(target, chat, DATA, [], lambda _text: None)


def _prompts(path: Path, texts: list[str]) -> Path:
    rows = [{"id": i, "messages": [{"role": "user", "content": t}]} for i, t in enumerate(texts)]
    path.write_text("\n".join(json.dumps(r) for r in rows) + "\n\n", encoding="utf-8")
    return path


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# -- sequences ---------------------------------------------------------------------------------


_THEIRS = """
import json, sys
for name in ("torchvision", "torchaudio", "torchcodec"):  # see autotune/study/models.py
    sys.modules[name] = None
import numpy as np, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, tokens, out, chat = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
with torch.no_grad():
    found = model(torch.from_numpy(np.load(tokens)), output_hidden_states=True)
ids = AutoTokenizer.from_pretrained(folder).apply_chat_template(
    json.loads(chat), add_generation_prompt=True, return_dict=False
)
np.savez(out, stream=found.hidden_states[1], chosen=found.logits.argmax(-1), ids=ids)
"""


def test_target_and_chats_are_those_of_transformers(
    folder: Path, target: Target, words: Tokens, sequences: Sequences, tmp_path: Path
) -> None:
    greedy = sequences[np.flatnonzero(sequences.greedy)]
    np.save(tmp_path / "tokens.npy", greedy.tokens.astype(np.int64))
    chat = [
        {"role": "system", "content": "w1"},
        {"role": "user", "content": "w2 w3"},
        {"role": "assistant", "content": "w4"},
        {"role": "user", "content": "w5"},
    ]
    argv = [sys.executable, "-c", _THEIRS, str(folder), str(tmp_path / "tokens.npy")]
    subprocess.run([*argv, str(tmp_path / "out.npz"), json.dumps(chat)], check=True)
    theirs = np.load(tmp_path / "out.npz")
    tokens, _, _ = _tensors(greedy)
    ours = target.streams(tokens, [0])  # theirs: [0] is the embedding, the last is normed
    torch.testing.assert_close(ours, torch.from_numpy(theirs["stream"]), rtol=1e-4, atol=1e-4)
    for row, start in enumerate(greedy.start):
        assert np.array_equal(theirs["chosen"][row, start - 1 : -1], greedy.tokens[row, start:])
    assert words.encode(words.chat(chat)) == theirs["ids"].tolist()


def test_each_kind_has_its_parts(chat: Chat, sequences: Sequences) -> None:
    assert chat.prefix == (START, WORDS.index("user"))
    assert (chat.end, chat.header) == (END, (START, WORDS.index("assistant")))
    assert list(chat.plain) == list(range(3, len(WORDS)))
    assert set(sequences.counts()) == {"chat", "random", "raw"}
    for tokens, start, kind in zip(
        sequences.tokens.tolist(), sequences.start, sequences.kind, strict=True
    ):
        if kind == CHAT:
            assert tuple(tokens[:2]) == chat.prefix
            assert tokens[start - 3 : start] == [chat.end, *chat.header]
            assert END not in tokens[2 : start - 3]
        elif kind == RANDOM:
            assert 16 <= start <= 32
        else:  # raw
            assert 4 <= start < 24
            assert tokens[0] in chat.plain
    assert (sequences.end == DATA.length).all()  # none stops
    assert sequences.held.sum() == 1  # 2 %, at least one


def test_sequences_depend_on_the_seed_alone(
    target: Target, chat: Chat, sequences: Sequences, tmp_path: Path
) -> None:
    again = data.generate(target, chat, DATA, [], lambda _text: None)
    data.save(tmp_path / "data.npz", again, DATA)
    kept = data.load(tmp_path / "data.npz", DATA)
    for name in ("tokens", "start", "end", "kind", "greedy", "held"):
        assert np.array_equal(getattr(kept, name), getattr(sequences, name)), name
    assert kept.tokens.dtype == np.uint8
    other = data.generate(target, chat, replace(DATA, seed=1), [], lambda _text: None)
    assert not np.array_equal(other.tokens[:10], sequences.tokens[:10])
    with pytest.raises(UserError, match=r"made with length = 96, not 128; give the same options"):
        data.load(tmp_path / "data.npz", replace(DATA, length=128))


def test_an_answer_that_stops_ends_behind_its_last_token(target: Target, chat: Chat) -> None:
    prompts = [[3 + i, 4 + i, 5 + i] for i in range(8)]
    plan = data.given(prompts, 96, temperature=0.0)
    noise = torch.Generator().manual_seed(0)
    whole, start, end = data.write(target, plan, chat, noise, stop=False)
    assert (start == 3).all()
    assert (end == 96).all()
    token = int(whole[0, 9])  # as if this one ended a turn
    tokens, _, ends = data.write(target, plan, replace(chat, end=token), noise, stop=True)
    assert 4 <= ends[0] <= 10
    for row, n in enumerate(ends):
        assert np.array_equal(tokens[row, :n], whole[row, :n])
        found = np.flatnonzero(whole[row, 3:] == token)
        assert n == (4 + found[0] if len(found) else 96)


def test_tokens_read_at_once_are_as_read_one_by_one(target: Target) -> None:
    noise = torch.Generator().manual_seed(2)
    tokens = torch.randint(3, len(WORDS), (5, 14), generator=noise)
    one_by_one, at_once = Cache(target, 5, 32), Cache(target, 5, 32)
    for at in range(12):
        one_by_one.logits(tokens[:, at], at)
    at_once.fill(tokens[:, :12])
    expected = one_by_one.logits(tokens[:, 12], 12)
    torch.testing.assert_close(at_once.logits(tokens[:, 12], 12), expected, rtol=1e-4, atol=1e-4)
    some = torch.tensor([1, 4])
    at_once.keep(some)
    expected = one_by_one.logits(tokens[:, 13], 13)[some]
    found = at_once.logits(tokens[some, 13], 13)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_rows_that_are_at_their_end_do_not_change_the_others(
    target: Target, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "_LOOK", 4)
    kept: list[int] = []
    keep = Cache.keep

    def counted(self: Cache, rows: torch.Tensor) -> None:
        kept.append(len(rows))
        keep(self, rows)

    monkeypatch.setattr(Cache, "keep", counted)
    prompts = [[3 + i, *range(5, 5 + 4 * i)] for i in range(10)]
    noise = torch.Generator().manual_seed(0)
    token = 40  # as if this one ended a turn
    chat = replace(chat, end=token)
    together = data.write(target, data.given(prompts, 64, 0.0, 24), chat, noise, stop=True)
    assert len(kept) >= 2  # the cache shrank with the rows
    for row, prompt in enumerate(prompts):
        (alone,), _, (end,) = data.write(
            target, data.given([prompt], 64, 0.0, 24), chat, noise, stop=True
        )
        assert together[1][row] == len(prompt)
        assert together[2][row] == end <= min(64, len(prompt) + 24)
        assert np.array_equal(together[0][row, :end], alone[:end])


def test_some_answers_run_on_past_their_turn(target: Target, chat: Chat) -> None:
    prompts = [[START, 3, 10 + i, END, START, 4] for i in range(40)]
    recipe = replace(
        DATA, sequences=0, prompts="sha", run_on=0.25, answer_length=30, held_out=1.0, rows=8
    )
    found = data.generate(target, chat, recipe, prompts, lambda _text: None)
    assert found.held.all()
    assert found.counts()["run-on"] == 10
    assert found.tokens.shape[1] == DATA.length
    for tokens, end, kind in zip(found.tokens.tolist(), found.end, found.kind, strict=True):
        if kind == RUN_ON:
            assert end == 6 + 30
        else:
            assert END not in tokens[6 : end - 1]
            assert end == 6 + 30 or tokens[end - 1] == END


def test_self_generated_answers_stop_where_told(target: Target, chat: Chat) -> None:
    found = data.generate(target, chat, replace(DATA, stop=True), [], lambda _text: None)
    assert (found.end < DATA.length).any()
    for tokens, start, end in zip(found.tokens.tolist(), found.start, found.end, strict=True):
        assert END not in tokens[start : end - 1]
        assert end == DATA.length or tokens[end - 1] == END


def test_answers_to_a_prompt_are_held_out_together(target: Target, chat: Chat) -> None:
    prompts = [[START, 3, 10 + i, END, START, 4] for i in range(20)] + [[5] * 90]
    told: list[str] = []
    recipe = replace(DATA, sequences=0, prompts="sha", answers=3, rows=7)
    found = data.generate(target, chat, recipe, prompts, told.append)
    assert "prompts: 1 of 21 are too long for --length 96" in told
    assert (found.kind == PROMPT).all()
    assert (found.start == 6).all()
    assert (found.end - found.start >= 2).all()  # one that ends at once is left out
    of = found.tokens[:, 2].tolist()
    assert set(of) <= set(range(10, 30))
    assert 50 <= len(of) <= 60
    assert max(Counter(of).values()) == 3
    held = {x for x, is_held in zip(of, found.held, strict=True) if is_held}
    assert len(held) == 2  # 10 %
    assert held.isdisjoint(x for x, is_held in zip(of, found.held, strict=True) if not is_held)
    greedy = [x for x, is_greedy in zip(of, found.greedy, strict=True) if is_greedy]
    assert len(set(greedy)) == len(greedy) > 15  # the first answer to each prompt
    with pytest.raises(UserError, match="none leaves room for an answer in 96 tokens"):
        data.generate(target, chat, recipe, [[5] * 90], told.append)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "Expecting property name"),
        ("[1]", "must be an object with `messages`"),
        ('{"messages": []}', "a list that is not empty"),
        ('{"messages": [{"role": "user"}]}', r"messages\[0\]: must be an object with texts"),
        ('{"messages": [{"role": "assistant", "content": "w1"}]}', "the target is to answer"),
        ('{"messages": [{"role": "tool", "content": "w1"}]}', "no tools"),
    ],
)
def test_a_bad_line_of_prompts_is_named(
    line: str, message: str, words: Tokens, tmp_path: Path
) -> None:
    path = _prompts(tmp_path / "p.jsonl", ["w1"])
    path.write_text(path.read_text() + line)
    with pytest.raises(UserError, match=rf"p\.jsonl, line 3: .*{message}"):
        read_prompts(path, words)


def test_prompts_are_rendered_by_the_chat_template(words: Tokens, tmp_path: Path) -> None:
    path = _prompts(tmp_path / "p.jsonl", ["w1 w2", "w3"])
    w = WORDS.index
    header = [START, w("assistant")]
    assert read_prompts(path, words) == [
        [START, w("user"), w("w1"), w("w2"), END, *header],
        [START, w("user"), w("w3"), END, *header],
    ]
    with pytest.raises(UserError, match="has no prompts"):
        read_prompts(_prompts(tmp_path / "none.jsonl", []), words)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_prompts(tmp_path / "nothing", words)


# -- prompts put together by chance -------------------------------------------------------------


def _eights(chats: Iterable[list[dict[str, str]]]) -> set[tuple[str, ...]]:
    """All runs of eight words."""
    texts = [re.findall(r"\w+", m["content"].lower()) for chat in chats for m in chat]
    return {tuple(t[i : i + 8]) for t in texts for i in range(len(t) - 7)}


def test_prompts_are_many_and_not_those_of_the_studies(words: Tokens, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    assert prompts.main([str(path), "--count", "12000"]) == 0
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len({json.dumps(row["messages"]) for row in rows}) == 12_000
    assert len(read_prompts(path, words)) == 12_000
    kinds = Counter(row["id"].partition("-")[0] for row in rows)
    assert len(kinds) > 25
    assert max(kinds.values()) < 1200
    assert not any("<<" in json.dumps(row) for row in rows)
    study = ROOT / "studies" / "prompts" / "demo-chat.jsonl"
    judged = _eights(json.loads(x)["messages"] for x in study.read_text("utf-8").splitlines())
    assert len(judged) > 10_000
    assert judged.isdisjoint(_eights(row["messages"] for row in rows))


def test_prompts_depend_on_the_seed_alone(tmp_path: Path) -> None:
    material = prompts.Material.read()
    first = list(prompts.prompts(material, 300, 0))
    assert list(prompts.prompts(material, 300, 0)) == first
    assert list(prompts.prompts(material, 200, 0)) == first[:200]
    other = {json.dumps(chat) for _, chat in prompts.prompts(material, 300, 1)}
    assert len(other & {json.dumps(chat) for _, chat in first}) < 30


def test_every_entry_of_the_material_can_be_filled() -> None:
    material = prompts.Material.read()
    assert material.weights.keys() == material.kinds.keys()
    for group in (material.kinds, material.lists):
        for name, entries in group.items():
            assert entries, name
            for entry in entries:
                text = prompts.expanded(entry, material.lists, random.Random(0))
                assert "<<" not in text, (name, entry)
    for entries in material.kinds.values():
        for entry in entries:
            chat = prompts.messages(prompts.expanded(entry, material.lists, random.Random(1)))
            assert chat[-1]["role"] == "user", entry
            assert all(m["content"] for m in chat), entry


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("<<5..5>> <<a,>>", None),
        ("<<2..2 a>>|<<2..2 a,>>", "x x|x, x"),
        ("<<2..2 a/>>", "x\nx"),
        ("<<2..2 a->>", "- x\n- x"),
        ("<<2..2 a#>>", "1. x\n2. x"),
        ("<<3..3 b^>>", "p\nq\nr"),
        ("<<A>> <<5..5>> <<|>>", "X 5 "),
        ("<<c=one>> <<=one>>", "7x 7x"),
        ("<<<<a>>|<<a>>>>", "x"),
    ],
)
def test_slots_are_filled_as_the_material_says(template: str, text: str | None) -> None:
    lists = {"a": ["x"], "b": ["q", "r", "p"], "c": ["<<7..7>><<a>>"]}
    if text is None:
        with pytest.raises(KeyError):
            prompts.expanded(template, lists, random.Random(0))
    else:
        assert prompts.expanded(template, lists, random.Random(0)) == text


def test_a_bad_call_for_prompts_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prompts.main([str(tmp_path / "p"), "--count", "0"]) == 2
    assert "--count 0: must be 1 or more" in capsys.readouterr().err
    assert prompts.main([str(tmp_path / "no" / "p"), "--count", "1"]) == 2
    assert "cannot be written: No such file" in capsys.readouterr().err
    few = prompts.Material({"a": 1}, {"a": ["<<1..3>>"]}, {})
    with pytest.raises(UserError, match="gives no more than 3 prompts"):
        list(prompts.prompts(few, 4, 0))


# -- draft and loss ----------------------------------------------------------------------------


def _draft(target: Target, seed: int = 0) -> Draft:
    draft = Draft(config_for(target.config, 2, (0, 1), MASK, 8), CPU, torch.float32)
    draft.initialise(seed, target.norm)
    return draft


def _tensors(sequences: Sequences) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens, start, end = (
        torch.from_numpy(a.astype(np.int64))
        for a in (sequences.tokens, sequences.start, sequences.end)
    )
    return tokens, start, end


def test_a_block_sees_what_is_before_it_and_its_own_mask_tokens(
    target: Target, sequences: Sequences
) -> None:
    draft = _draft(target)
    tokens, _, _ = _tensors(sequences[np.arange(4)])
    context = draft.context(target.streams(tokens, [0, 1]))
    p = torch.tensor([[40, 60]] * 4)
    n = torch.tensor([[5, 7]] * 4)
    with torch.no_grad():
        both = draft(context, target.embedding, tokens, p, n)
        alone = draft(context, target.embedding, tokens, p[:, :1], n[:, :1])
        torch.testing.assert_close(both[:, 0, :6], alone[:, 0, :6])  # blocks do not see each other
        later, earlier = context.clone(), context.clone()
        later[:, 40:] += 1.0
        earlier[:, 39] += 1.0
        seen = draft(later, target.embedding, tokens, p[:, :1], n[:, :1])
        assert torch.equal(seen, alone)
        assert not torch.allclose(
            draft(earlier, target.embedding, tokens, p[:, :1], n[:, :1]), alone
        )
        short = draft(context, target.embedding, tokens, p[:, :1], n[:, :1] - 3)
        assert not torch.allclose(short[:, 0, 1], alone[:, 0, 1])  # drafting 2 is not 2 of 5


def test_the_loss_is_weighted_cross_entropy(target: Target) -> None:
    noise = torch.Generator().manual_seed(1)
    x = torch.randn(40, 32, generator=noise, requires_grad=True)
    y = torch.randint(0, len(WORDS), (40,), generator=noise)
    w = torch.rand(40, generator=noise)
    total, hit = _WeightedCrossEntropy.apply(x, target.embedding, y, w)
    (got,) = torch.autograd.grad(total, x)
    logits = x @ target.embedding.t()
    plain = (torch.nn.functional.cross_entropy(logits, y, reduction="none") * w).sum()
    torch.testing.assert_close(total, plain)
    torch.testing.assert_close(got, torch.autograd.grad(plain, x)[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(hit, logits.argmax(-1) == y)


def test_what_follows_the_end_of_an_answer_counts_for_nothing(
    target: Target, sequences: Sequences
) -> None:
    draft = _draft(target)
    tokens, start, _ = _tensors(sequences[np.arange(6)])
    end = start + 12
    noise = torch.Generator().manual_seed(3)
    many, n = sample_blocks(start, end, 400, 8, 0.5, noise)
    assert (many.amin(1) == start).all()
    assert (many.amax(1) == end - 2).all()
    assert set(n.unique().tolist()) == set(range(1, 8))
    p, n = sample_blocks(start, end, 20, 8, 0.5, noise)
    other = tokens.clone()
    for row, at in enumerate(end):
        other[row, at:] = 5
    losses = [
        draft_loss(draft, target, target.streams(t, [0, 1]), t, end, p, n, gamma=7.0)[0]
        for t in (tokens, other)
    ]
    assert torch.equal(*losses)


def test_the_loss_on_a_fixed_batch_falls(target: Target, sequences: Sequences) -> None:
    recipe = replace(TRAINING, steps=20)
    trainer = Trainer(target, sequences, recipe)
    tokens, start, end = _tensors(sequences[sequences.trained[:16]])
    streams = target.streams(tokens, [0, 1])
    p, n = sample_blocks(start, end, 8, 8, 0.5, torch.Generator().manual_seed(9))

    def loss() -> float:
        with torch.no_grad():
            found = draft_loss(trainer.draft, target, streams, tokens, end, p, n, recipe.gamma)
        return float(found[0])

    before = loss()
    mean, hit = trainer.run(20)
    assert loss() < 0.9 * before
    assert 0 < mean < 1.1 * before
    assert 0 <= hit <= 1


def test_the_learning_rate_rises_and_falls_with_the_steps() -> None:
    recipe = Recipe(steps=1000, warmup=10, learning_rate=1.0)
    assert recipe.rate(0) == pytest.approx(0.1)
    assert max(range(1000), key=recipe.rate) == 9
    assert recipe.rate(1000) == pytest.approx(0.02)


def test_the_learning_rate_falls_with_the_clock_where_that_is_ahead() -> None:
    recipe = Recipe(steps=1000, warmup=1, learning_rate=1.0, minutes=2.0)
    assert recipe.done(100, 30.0) == pytest.approx(0.25)
    assert recipe.done(500, 30.0) == pytest.approx(0.5)
    assert recipe.rate(100, 60.0) == pytest.approx(
        Recipe(1, 2, learning_rate=1.0, warmup=1).rate(1)
    )
    assert recipe.done(100, 121.0) == 1


def test_batches_are_of_one_width_and_cut_to_it(
    target: Target, sequences: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "BUCKET", 32)  # widths of a length of 96: 32, 64, 96
    end = sequences.start + np.arange(len(sequences)) % 60 + 4
    mixed = replace(sequences, end=end.astype(np.int32))
    trainer = Trainer(target, mixed, replace(TRAINING, batch=4))
    first = trainer._next()
    batches = [first, *(trainer._next() for _ in range(len(trainer.order) // 4 - 1))]
    assert trainer.epoch == 1
    widths = [set((-(-mixed.end[b.numpy()] // 32)).tolist()) for b in batches]
    assert all(len(w) == 1 for w in widths)
    assert len(set.union(*widths)) > 1
    seen = torch.cat(batches).tolist()
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(mixed.trained.tolist())
    tokens, start, ends = _tensors(mixed[first.numpy()])
    width = 32 * widths[0].pop()
    p, n = sample_blocks(start, ends, 8, 8, 0.5, torch.Generator().manual_seed(4))
    losses = [
        draft_loss(trainer.draft, target, target.streams(t, [0, 1]), t, ends, p, n, gamma=7.0)[0]
        for t in (tokens, tokens[:, :width])
    ]
    torch.testing.assert_close(*losses)


# -- the loop ----------------------------------------------------------------------------------


def test_a_training_can_start_from_a_draft(target: Target, sequences: Sequences) -> None:
    draft = _draft(target, seed=5)
    trainer = Trainer(target, sequences, TRAINING, draft)
    tokens, start, _ = _tensors(sequences[np.arange(4)])
    streams = target.streams(tokens, [0, 1])
    torch.testing.assert_close(
        trainer.draft.context(streams), draft.context(streams), rtol=1e-4, atol=1e-4
    )
    p, n = start[:, None], torch.full((4, 1), 7)
    with torch.no_grad():
        theirs, ours, fresh = (
            d(d.context(streams), target.embedding, tokens, p, n)
            for d in (draft, trainer.draft, Trainer(target, sequences, TRAINING).draft)
        )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours, fresh, rtol=1e-3, atol=1e-3)


def test_a_resumed_training_ends_with_the_same_weights(
    target: Target, sequences: Sequences, tmp_path: Path
) -> None:
    whole = Trainer(target, sequences, TRAINING)
    whole.run(6)  # 5 batches are an epoch: the order is drawn anew in between
    assert whole.epoch == 2
    first = Trainer(target, sequences, TRAINING)
    first.run(2)
    first.save(tmp_path / "checkpoint.pt", [{"step": 2}])
    second = Trainer(target, sequences, TRAINING)
    assert second.load(tmp_path / "checkpoint.pt") == [{"step": 2}]
    second.run(6)
    assert _same(whole.draft.state_dict(), second.draft.state_dict())
    assert not _same(whole.draft.state_dict(), first.draft.state_dict())
    other = Trainer(target, sequences, replace(TRAINING, steps=7))
    with pytest.raises(UserError, match=r"was made with steps = 6, not 7"):
        other.load(tmp_path / "checkpoint.pt")


def test_the_command_goes_on_after_an_interruption(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def call(name: str, *more: str) -> int:
        return command.main([str(tmp_path / name), "--target", str(folder), *OPTIONS, *more])

    assert call("whole") == 0
    step = Trainer._step

    def interrupted(self: Trainer) -> Any:
        if self.step == 4:
            raise KeyboardInterrupt
        return step(self)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_step", interrupted)
        assert call("cut") == 130
    assert "the same command goes on from the last checkpoint" in capsys.readouterr().err
    assert call("cut") == 0
    assert "goes on after step 3 of 6" in capsys.readouterr().out
    whole, cut = (tmp_path / name for name in ("whole", "cut"))
    assert (cut / "draft" / "model.safetensors").read_bytes() == (
        whole / "draft" / "model.safetensors"
    ).read_bytes()
    metrics = json.loads((cut / "metrics.json").read_text())
    assert [row["step"] for row in metrics["curve"]] == [3, 6]
    assert metrics["training"]["target_layers"] == [0, 1]
    (by_n,) = metrics["heldout"].values()  # one sequence is held out
    assert list(by_n) == ["3", "7"]
    for n, found in by_n.items():
        assert len(found["per_position"]) == int(n)
        assert found["acceptance_length"] == pytest.approx(1 + sum(found["per_position"]), abs=1e-3)
    assert call("cut", "--layers", "3") == 2  # the checkpoint has two
    assert "was made with layers = 2, not 3; give the same options" in capsys.readouterr().err
    assert call("cut", "--evaluate", "demo:draft") == 2
    assert "its hidden_size is 576, not 32" in capsys.readouterr().err
    assert call("cut", "--evaluate", str(whole / "draft")) == 0
    assert "accepted at position 1, 2" in capsys.readouterr().out


def test_the_command_trains_on_prompts_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _prompts(tmp_path / "p.jsonl", [f"w{i} w{i + 1} w7" for i in range(30)])
    argv = [str(tmp_path / "out"), "--target", str(folder), *OPTIONS, "--sequences", "0"]
    assert command.main(argv) == 2
    assert "leaves nothing to train on; give --prompts FILE" in capsys.readouterr().err
    argv += ["--prompts", str(path), "--answers", "2"]
    assert command.main(argv) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(metrics["sequences"]) == ["prompt"]
    assert 50 <= metrics["sequences"]["prompt"] <= 60  # answers that end at once are left out
    assert list(metrics["heldout"]) == ["prompt"]
    texts = [json.loads(x) for x in (tmp_path / "out" / "heldout.jsonl").read_text().splitlines()]
    assert 1 <= len(texts) <= 3  # of 30 prompts
    assert texts[0]["prompt"].startswith("<|im_start|> user w")
    _prompts(path, ["w1"])
    assert command.main(argv) == 2  # another file than the sequences were made with
    assert "data.npz: was made with prompts = " in capsys.readouterr().err


def test_the_command_starts_from_a_draft_and_ends_by_the_clock(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    options = ["--target", str(folder), *OPTIONS]
    assert command.main([first, *options]) == 0
    assert command.main([second, *options, "--from", "demo:draft"]) == 2
    assert "--from: that draft's hidden_size is 576, not 32" in capsys.readouterr().err
    assert not Path(second).exists()  # said before minutes of work
    options += ["--from", f"{first}/draft", "--minutes", "1e-9"]
    assert command.main([second, *options]) == 0
    metrics = json.loads(Path(second, "metrics.json").read_text())
    assert metrics["training"]["start"] == f"{first}/draft"
    assert [row["step"] for row in metrics["curve"]] == [1]
    assert command.main([second, *options]) == 0  # nothing is left to do
    assert "goes on after step 1 of 6" in capsys.readouterr().out


def test_all_prompts_of_a_study_can_judge_a_draft(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--target", str(folder), *OPTIONS]
    assert command.main([str(tmp_path / "made"), *options]) == 0
    path = _prompts(tmp_path / "p.jsonl", [f"w{i} w{i + 1} w7" for i in range(12)])
    options += ["--prompts", str(path), "--sequences", "0"]
    options += ["--held-out", "1", "--run-on", "1", "--answer-length", "40"]
    capsys.readouterr()
    argv = [str(tmp_path / "judged"), *options, "--evaluate", str(tmp_path / "made" / "draft")]
    assert command.main(argv) == 0
    head, *rows = capsys.readouterr().out.splitlines()[-3:]
    assert head.split()[:3] == ["n", "length", "steps"]
    assert [row.split()[:2] for row in rows] == [["run-on", "3"], ["run-on", "7"]]
    texts = (tmp_path / "judged" / "heldout.jsonl").read_text().splitlines()
    assert len(texts) == 12
    assert command.main(argv[:-2]) == 2
    assert "nothing is left to train on" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_ends_the_training(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(self: Trainer) -> tuple[torch.Tensor, torch.Tensor]:
        self.step += 1
        return torch.tensor(float("nan")), torch.tensor(0.0)

    monkeypatch.setattr(Trainer, "_step", broken)
    argv = [str(tmp_path), "--target", str(folder), *OPTIONS]
    assert command.main(argv) == NothingUsable.exit_code
    assert "the loss is not finite before step 3" in capsys.readouterr().err
    assert not (tmp_path / "draft").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--target-layers 0,2", "must ascend and be below 2"),
        ("--mask-token 96", "the target has no such token"),
        ("--length 8", "must be 64 to 4096"),
        ("--raw-share 0.9 --random-share 0.2", "and so must their sum"),
        ("--answer-length 9", "must be 0, or 24 or more"),
        ("--run-on 1.5", "--run-on: must be 0 to 1"),
        ("--held-out 0", "--held-out: above 0, to 1"),
        ("--minutes -1", "--minutes: must be 0 or more"),
        ("--batch 0", "must be 1 or more"),
        ("--learning-rate nan", "must be above 0"),
        ("--target /nothing", "does not exist"),
        ("--prompts /nothing", "cannot be read: No such file"),
    ],
)
def test_a_bad_option_is_one_line(
    options: str, message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(tmp_path), "--target", str(folder), *OPTIONS, *options.split()]
    assert command.main(argv) == 2
    assert not (tmp_path / "data.npz").exists()  # said before minutes of work
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


# -- held-out acceptance -----------------------------------------------------------------------


def test_acceptance_is_that_of_a_step_by_step_walk(target: Target, sequences: Sequences) -> None:
    draft = Trainer(target, sequences, replace(TRAINING, steps=60))
    draft.run(60)
    some = sequences[np.flatnonzero(sequences.greedy)[:12]]
    some = replace(some, end=np.minimum(some.end, some.start + 40).astype(np.int32))
    n = 5
    accepted, steps = np.zeros(n), 0
    for row in range(len(some)):
        tokens = torch.from_numpy(some.tokens[row : row + 1].astype(np.int64))
        context = draft.draft.context(target.streams(tokens, [0, 1]))
        p = int(some.start[row])
        while p + n < some.end[row]:
            guess = drafted(draft.draft, context, target.embedding, tokens, torch.tensor([p]), n)[0]
            right = (guess == tokens[0, p + 1 : p + 1 + n]).tolist()
            run = right.index(False) if False in right else n
            accepted[:run] += 1
            steps += 1
            p += run + 1
    found = heldout.walk(draft.draft, target, some, n)
    assert found.steps == steps > 30
    assert found.per_position == pytest.approx(accepted / steps)
    assert found.length == pytest.approx(1 + accepted.sum() / steps)
    assert found.length > 1.05


# -- the folder --------------------------------------------------------------------------------


def test_the_shipped_draft_is_written_as_it_was(tmp_path: Path) -> None:
    """Names, shapes, types, shards and bits: load (strictly), write, compare."""
    shipped = draft_folder()
    write_draft(load_draft(shipped, CPU, torch.float32), tmp_path)
    names = {f.name for f in shipped.iterdir()} - {"README.md"}
    assert {f.name for f in tmp_path.iterdir()} == names
    for name in names:
        ours, theirs = tmp_path / name, shipped / name
        if name.endswith(".json"):
            assert ours.read_text() == theirs.read_text()
        else:
            assert _same(load_file(ours), load_file(theirs))
            with safe_open(ours, "pt") as a, safe_open(theirs, "pt") as b:
                assert a.metadata() == b.metadata()


def test_a_trained_draft_has_the_layout_of_the_shipped_one(
    target: Target, sequences: Sequences, tmp_path: Path
) -> None:
    trainer = Trainer(target, sequences, TRAINING)
    trainer.run(2)
    write_draft(trainer.draft, tmp_path)
    shipped = draft_folder()
    config, theirs = (json.loads((f / "config.json").read_text()) for f in (tmp_path, shipped))
    assert list(config) == list(theirs)
    assert list(config["dflash_config"]) == list(theirs["dflash_config"])
    index = json.loads((shipped / "model.safetensors.index.json").read_text())
    state = load_file(tmp_path / "model.safetensors")  # small: one shard
    assert state.keys() == index["weight_map"].keys()
    assert {t.dtype for t in state.values()} == {torch.bfloat16}
    k_norms = [t for name, t in state.items() if name.endswith("k_norm.weight")]
    assert torch.equal(*k_norms)
    # what is read back drafts as what was trained, but for bf16
    again = load_draft(tmp_path, CPU, torch.float32)
    streams = target.streams(_tensors(sequences)[0][:4], [0, 1])
    torch.testing.assert_close(
        again.context(streams), trainer.draft.context(streams), rtol=0.05, atol=0.05
    )


def test_a_config_for_the_demo_target_is_the_shipped_one() -> None:
    shipped = json.loads((draft_folder() / "config.json").read_text())
    demo = {**CONFIG, "rope_theta": None, "rope_parameters": {"rope_theta": 100_000.0}}
    demo |= {k: shipped[k] for k in ("hidden_size", "intermediate_size", "vocab_size")}
    demo |= {k: shipped[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim")}
    demo |= {"num_hidden_layers": 30, "max_position_embeddings": 8192}
    demo |= {"bos_token_id": 1, "eos_token_id": 2}
    defaults = Recipe()
    made = config_for(
        demo, defaults.layers, defaults.target_layers, defaults.mask_token, defaults.block_size
    )
    assert made == shipped
    assert list(made) == list(shipped)


def test_a_folder_without_a_draft_is_refused(folder: Path, tmp_path: Path) -> None:
    for path in (folder, tmp_path):
        with pytest.raises(UserError, match="is no DFlash draft that this program can read"):
            load_draft(path, CPU, torch.float32)


def test_a_folder_without_a_target_is_refused(folder: Path, tmp_path: Path) -> None:
    def load() -> None:
        Target.load(tmp_path, CPU, torch.float32)

    with pytest.raises(UserError, match="is no checkpoint folder"):
        load()
    with pytest.raises(UserError, match=r"tokenizer\.json: cannot be read: No such file"):
        Tokens(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "model_type": "qwen3"}))
    with pytest.raises(UserError, match="such as demo:target; this is qwen3"):
        load()
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(UserError, match=r"has no \*\.safetensors"):
        load()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path)
    with pytest.raises(UserError, match="has no chat template; use an instruct model"):
        Tokens(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    with pytest.raises(UserError, match="has nothing around the user's text"):
        Chat.of(Tokens(tmp_path), len(WORDS))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="its tokenizer cannot be read"):
        Tokens(tmp_path)
