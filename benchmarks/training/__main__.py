"""Trains a DFlash draft for the demo's target: sequences, training, acceptance on held-out ones.

    python -m benchmarks.training FOLDER
    python -m benchmarks.training FOLDER --prompts FILE.jsonl [--sequences 0] [--from DRAFT]
    python -m benchmarks.training FOLDER --evaluate DRAFT

Run from the repository, with the `cpu` or `gpu` extra. Without options it makes the draft that
comes with the package, as well as the machine's rounding allows. FOLDER takes:

    data.npz        the sequences that the target wrote
    heldout.jsonl   some of the held-out ones as text
    checkpoint.pt   the training; the same command goes on from here after an interruption
    draft/          the draft as vLLM reads it, as of the last checkpoint
    metrics.json    recipe, curve, acceptance by position

--evaluate trains nothing: it measures another draft, demo:draft or a folder, on the held-out
sequences of FOLDER.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from autotune.errors import AutotuneError, UserError
from autotune.study.models import resolve_model

from . import data, heldout
from .chat import Chat, Tokens, read_prompts, sha256
from .model import Draft, load_draft
from .target import Target
from .train import DRAFT, Recipe, read_metrics, train, write_metrics

NS = (3, 7, 15)
MOST = 192  # held-out sequences of a kind, for the figures


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training",
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    d, t = data.DataRecipe(), Recipe()
    parser.add_argument("folder", type=Path, help="takes data, checkpoint, draft and metrics")
    parser.add_argument("--target", default=d.target, help="demo:target, or a Llama's folder")
    parser.add_argument("--evaluate", metavar="DRAFT", help="measure this draft, train nothing")
    group = parser.add_argument_group("sequences")
    group.add_argument("--prompts", type=Path, help="JSONL of your own chats, `messages` each")
    group.add_argument("--answers", type=int, default=d.answers, help="to each of them")
    group.add_argument(
        "--answer-length", type=int, default=d.answer_length, help="tokens at most; 0: what fits"
    )
    group.add_argument(
        "--run-on", type=float, default=d.run_on, help="share of them answered past their turn"
    )
    group.add_argument(
        "--held-out", type=float, default=d.held_out, help="share of them not trained on"
    )
    group.add_argument("--sequences", type=int, default=d.sequences, help="self-generated ones")
    group.add_argument("--length", type=int, default=d.length, help="tokens of a sequence")
    group.add_argument("--rows", type=int, default=d.rows, help="written side by side")
    group.add_argument(
        "--random-share", type=float, default=d.random_share, help="random-token prompts"
    )
    group.add_argument("--raw-share", type=float, default=d.raw_share, help="without a chat")
    group.add_argument(
        "--stop", action="store_true", help="self-generated answers end with their turn"
    )
    group = parser.add_argument_group("training")
    group.add_argument(
        "--layers", type=int, choices=range(1, 5), default=t.layers, help="of the draft"
    )
    group.add_argument("--target-layers", type=_numbers, default=t.target_layers, help="1,8,…")
    group.add_argument("--mask-token", type=int, default=t.mask_token, help="never in a text")
    group.add_argument("--block-size", type=int, default=t.block_size, help="most tokens, plus 1")
    group.add_argument("--from", metavar="DRAFT", dest="start", help="starts from its weights")
    group.add_argument("--steps", type=int, default=t.steps, help="of the optimiser, at most")
    group.add_argument(
        "--minutes", type=float, default=t.minutes, help="of training, at most; 0: no bound"
    )
    group.add_argument("--batch", type=int, default=t.batch, help="sequences per step")
    group.add_argument("--blocks", type=int, default=t.blocks, help="per sequence and step")
    group.add_argument("--learning-rate", type=float, default=t.learning_rate, help="at most")
    group.add_argument("--warmup", type=int, default=t.warmup, help="steps until then")
    group.add_argument("--seed", type=int, default=t.seed, help="of sequences and training")
    group.add_argument("--save-every", type=int, default=1000, help="steps")
    group = parser.add_argument_group("machine")
    group.add_argument("--device", choices=["cpu", "cuda"], help="a GPU where there is one")
    group.add_argument("--no-compile", action="store_true", help="no torch.compile on a GPU")
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(x) for x in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list such as 1,8,15") from None


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _loading(stage: str, done: float) -> None:
    if not done:
        _say(f"target: {stage}")


def _run(args: argparse.Namespace) -> None:
    data_recipe = data.DataRecipe(
        target=args.target,
        seed=args.seed,
        sequences=args.sequences,
        length=args.length,
        rows=args.rows,
        random_share=args.random_share,
        raw_share=args.raw_share,
        stop=args.stop,
        prompts=sha256(args.prompts) if args.prompts else None,
        answers=args.answers,
        answer_length=args.answer_length,
        run_on=args.run_on,
        held_out=args.held_out,
    )
    recipe = Recipe(
        seed=args.seed,
        steps=args.steps,
        minutes=args.minutes,
        start=args.start,
        layers=args.layers,
        target_layers=args.target_layers,
        mask_token=args.mask_token,
        block_size=args.block_size,
        batch=args.batch,
        blocks=args.blocks,
        learning_rate=args.learning_rate,
        warmup=args.warmup,
    )
    if args.save_every < 1:
        raise UserError("--save-every: must be 1 or more")
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here; leave it out to train on the CPU")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    folder = Path(resolve_model(args.target, Path(), _loading))
    target = Target.load(folder, device, dtype)
    # a mistake is told before minutes of writing sequences
    config = recipe.config(target)
    start, other = (
        load_draft(Path(resolve_model(x, Path())), device, dtype) if x else None
        for x in (args.start, args.evaluate)
    )
    if start is not None:
        start.require(config)
    try:
        args.folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"{args.folder}: cannot be made: {e.strerror}; name another folder") from e
    sequences = _sequences(args, target, folder, data_recipe)
    if other is not None:
        _show(_measured(other, target, sequences))
        return
    compiled = device.type == "cuda" and not args.no_compile
    train(
        target, sequences, data_recipe, recipe, args.folder, args.save_every, start, compiled, _say
    )
    # as written, in bf16: what a server will load
    results = _measured(load_draft(args.folder / DRAFT, device, dtype), target, sequences)
    write_metrics(args.folder, {**read_metrics(args.folder), "heldout": heldout.as_json(results)})
    _show(results)


def _sequences(
    args: argparse.Namespace, target: Target, folder: Path, recipe: data.DataRecipe
) -> data.Sequences:
    """Those of the folder, or now written by the target."""
    path = args.folder / "data.npz"
    if path.exists():
        return data.load(path, recipe)
    tokens = Tokens(folder)
    prompts = read_prompts(args.prompts, tokens) if args.prompts else []
    chat = Chat.of(tokens, target.vocabulary)
    sequences = data.generate(target, chat, recipe, prompts, _say)
    data.write_texts(args.folder / "heldout.jsonl", sequences, tokens)
    data.save(path, sequences, recipe)
    _say("sequences: " + ", ".join(f"{n} {k}" for k, n in sequences.counts().items()))
    return sequences


def _measured(draft: Draft, target: Target, sequences: data.Sequences) -> heldout.Results:
    for key, wanted in (("hidden_size", target.hidden), ("num_target_layers", len(target.layers))):
        if draft.config[key] != wanted:
            raise UserError(
                f"the draft is for another target: its {key} is {draft.config[key]}, not {wanted}"
            )
    ns = [n for n in NS if n < draft.block_size] or [draft.block_size - 1]
    return heldout.measure(draft, target, sequences, ns, MOST)


def _show(results: heldout.Results) -> None:
    print("\n".join(heldout.table(results)))


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if torch.cuda.is_available():
        torch.backends.cuda.enable_cudnn_sdp(False)  # flash where causal, memory-efficient else
    try:
        _run(args)
    except AutotuneError as e:
        print(e, file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
