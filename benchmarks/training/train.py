"""The loop: AdamW on random blocks of random sequences, checkpoints, metrics.

Everything that a step depends on is in the checkpoint, the random generators too, and the learning
rate goes by the step, unless a number of minutes is given: on a CPU an interrupted training ends
with the same weights as one that was not. On a GPU sums of gradients depend on the order in which
they arrive.

A batch holds sequences of about the same length and is cut behind the longest: what is read past
the end of an answer teaches nothing.
"""

from __future__ import annotations

import json
import math
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autotune.errors import NothingUsable, UserError

from . import heldout
from .data import DataRecipe, Say, Sequences, refuse_other
from .model import Draft, config_for, draft_layer, draft_loss, sample_blocks, write_draft
from .target import BUCKET, Target, target_layer

CHECKPOINT, METRICS, DRAFT = "checkpoint.pt", "metrics.json", "draft"
_BETAS = (0.9, 0.95)
_CLIP = 1.0
_LAST_RATE = 0.02  # of the learning rate, at the last step
_SCALED_ON = 16  # sequences that the channels' scale is measured on
_GLANCE = 48  # held-out sequences of a kind at every checkpoint
_WIDTHS = 3  # that batches are cut to: torch compiles a layer anew for each, eight times at most


@dataclass(frozen=True)
class Recipe:
    """What determines the draft, beside the sequences.

    Attributes:
        seed: Of initial weights, order and blocks.
        steps: Of the optimiser; the learning rate falls with them, so they cannot be changed later.
        minutes: Of training, at most; where the clock is ahead of the steps, the learning rate
            falls with it. 0: as long as it takes.
        start: Reference of the draft whose weights it starts from; None: random ones.
        layers: Of the draft.
        target_layers: Whose streams it reads, from 0.
        mask_token: Stands for a token to be guessed; one that never occurs in text.
        block_size: The most tokens it drafts, plus the given one.
        batch: Sequences per step.
        blocks: Blocks per sequence and step.
        learning_rate: At its highest.
        warmup: Steps until then.
        gamma: How slowly the weight of a position falls, in positions.
        full_share: Of the blocks, those of full length.
        weight_decay: Of matrices.
    """

    seed: int = 0
    steps: int = 18_355
    minutes: float = 0.0
    start: str | None = None
    layers: int = 2
    target_layers: tuple[int, ...] = (1, 8, 15, 22, 28)
    mask_token: int = 16
    block_size: int = 16
    batch: int = 32
    blocks: int = 64
    learning_rate: float = 1e-3
    warmup: int = 150
    gamma: float = 7.0
    full_share: float = 0.5
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.blocks, self.warmup) < 1:
            raise UserError("--steps, --batch, --blocks, --warmup: must be 1 or more")
        if not 0 < self.learning_rate < math.inf:
            raise UserError("--learning-rate: must be above 0, and finite")
        if not 0 <= self.minutes < math.inf:
            raise UserError("--minutes: must be 0 or more, and finite")

    def config(self, target: Target) -> dict[str, Any]:
        """The draft's config.json for this target; UserError: it does not fit it."""
        return config_for(
            target.config, self.layers, self.target_layers, self.mask_token, self.block_size
        )

    def done(self, step: int, seconds: float) -> float:
        """Share of the training that lies behind, by steps or by the clock; 1: it ends."""
        by_clock = seconds / (60 * self.minutes) if self.minutes else 0.0
        return min(1.0, max(step / self.steps, by_clock))

    def rate(self, step: int, seconds: float = 0.0) -> float:
        """Learning rate of a step (from 0): linear warm-up times a cosine to 2 %."""
        cosine = 0.5 * (1 + math.cos(math.pi * self.done(step, seconds)))
        warm = min(1.0, (step + 1) / self.warmup)
        return self.learning_rate * warm * (_LAST_RATE + (1 - _LAST_RATE) * cosine)


class Trainer:
    """A training at some step.

    Args:
        target: The teacher.
        sequences: Those that are not held out are trained on.
        recipe: How.
        start: The draft whose weights it starts from, with the recipe's config; None: random ones.
        compiled: The layers are compiled by torch; not for CPUs.

    Raises:
        UserError: there is nothing to train on.
    """

    def __init__(
        self,
        target: Target,
        sequences: Sequences,
        recipe: Recipe,
        start: Draft | None = None,
        compiled: bool = False,
    ) -> None:
        device = target.device
        self.target, self.recipe = target, recipe
        self.target_layer, self.draft_layer = target_layer, draft_layer
        if compiled:
            self.target_layer = torch.compile(target_layer, dynamic=False)
            self.draft_layer = torch.compile(draft_layer, dynamic=False)
        self.tokens, self.start, self.end = (
            torch.from_numpy(a.astype(np.int32)).to(device)
            for a in (sequences.tokens, sequences.start, sequences.end)
        )
        self.trained = torch.from_numpy(sequences.trained).to(device)
        self.width = -(-self.tokens.shape[1] // (_WIDTHS * BUCKET)) * BUCKET
        self.widths = -(-sequences.end[sequences.trained] // self.width)
        if not len(self.trained):
            raise UserError("nothing is left to train on; raise --sequences, or give more prompts")
        self.draft = Draft(recipe.config(target), device, target.dtype)
        self.draft.initialise(recipe.seed, target.norm)
        first = self.trained[:_SCALED_ON]
        self.draft.measure_scale(target, self.tokens[first].long(), self.end[first].long())
        if start is not None:
            self.draft.start_from(start)
        weights = list(self.draft.parameters())
        self.optimiser = torch.optim.AdamW(
            [
                {
                    "params": [p for p in weights if p.dim() > 1],
                    "weight_decay": recipe.weight_decay,
                },
                {"params": [p for p in weights if p.dim() == 1], "weight_decay": 0.0},
            ],
            lr=recipe.learning_rate,
            betas=_BETAS,
            fused=device.type == "cuda",
        )
        self.noise = torch.Generator(device).manual_seed(recipe.seed + 1)
        self.order, self.at, self.epoch, self.step = self.trained[:0], 0, 0, 0
        self.seconds = 0.0

    def run(self, until: int) -> tuple[float, float]:
        """Trains to a step, or until the minutes are over.

        Returns:
            Means over these steps: the loss, and the share of right guesses.
        """
        began, before, first = time.monotonic(), self.seconds, self.step
        loss, hit = 0.0, 0.0
        while self.step < until and not self.over:
            a, b = self._step()
            loss, hit = loss + a, hit + b
            self.seconds = before + time.monotonic() - began
        steps = self.step - first
        means = float(loss) / steps, float(hit) / steps  # waits for the device
        self.seconds = before + time.monotonic() - began
        return means

    @property
    def over(self) -> bool:
        """No step is left, or no time."""
        return self.recipe.done(self.step, self.seconds) >= 1

    def _step(self) -> tuple[torch.Tensor, torch.Tensor]:
        r = self.recipe
        for group in self.optimiser.param_groups:
            group["lr"] = r.rate(self.step, self.seconds)
        which = self._next()
        width = -(-int(self.end[which].max()) // self.width) * self.width
        tokens = self.tokens[which, :width].long()
        start, end = self.start[which].long(), self.end[which].long()
        streams = self.target.streams(tokens, self.draft.target_layers, self.target_layer)
        p, n = sample_blocks(start, end, r.blocks, r.block_size, r.full_share, self.noise)
        loss, hit = draft_loss(
            self.draft, self.target, streams, tokens, end, p, n, r.gamma, self.draft_layer
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.draft.parameters(), _CLIP)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        return loss.detach(), hit

    def _next(self) -> torch.Tensor:
        """The sequences of the next step; what does not fill a batch waits for another epoch."""
        if not self.epoch or self.at + self.recipe.batch > len(self.order):
            shuffled = torch.randperm(
                len(self.trained), generator=self.noise, device=self.trained.device
            )
            self.order, self.at = self.trained[self._grouped(shuffled)], 0
            self.epoch += 1
        which = self.order[self.at : self.at + self.recipe.batch]
        self.at += self.recipe.batch
        return which

    def _grouped(self, shuffled: torch.Tensor) -> torch.Tensor:
        """Batches of equal width, in the order in which they fill up with shuffled sequences."""
        order, batch = shuffled.cpu().numpy(), self.recipe.batch
        widths = self.widths[order]
        full: list[NDArray[np.intp]] = []
        for width in np.unique(widths):
            at = np.flatnonzero(widths == width)
            full.extend(at[: len(at) // batch * batch].reshape(-1, batch))
        full.sort(key=lambda at: int(at[-1]))
        places = np.concatenate(full) if full else np.arange(len(order))
        return torch.from_numpy(order[places]).to(shuffled.device)

    def save(self, path: Path, curve: list[dict[str, Any]]) -> None:
        """Writes all that the next step depends on, and the curve so far; atomically."""
        state = {
            "recipe": _plain(self.recipe),
            "draft": self.draft.state_dict(),
            "scale": self.draft.scale,
            "optimiser": self.optimiser.state_dict(),
            "noise": self.noise.get_state(),
            "order": self.order,
            "at": self.at,
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "curve": curve,
        }
        new = path.with_name(f".{path.name}")
        torch.save(state, new)
        new.replace(path)

    def load(self, path: Path) -> list[dict[str, Any]]:
        """Goes on from a checkpoint; returns the curve up to it.

        Raises:
            UserError: it is of another recipe.
        """
        state = torch.load(path, map_location=self.target.device, weights_only=True)
        refuse_other(path, state["recipe"], _plain(self.recipe))
        self.draft.load_state_dict(state["draft"])
        self.draft.scale = state["scale"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.noise.set_state(state["noise"].cpu())
        self.order, self.at, self.epoch = state["order"], state["at"], state["epoch"]
        self.step, self.seconds = state["step"], state["seconds"]
        curve: list[dict[str, Any]] = state["curve"]
        return curve


def train(
    target: Target,
    sequences: Sequences,
    data: DataRecipe,
    recipe: Recipe,
    folder: Path,
    save_every: int,
    start: Draft | None,
    compiled: bool,
    say: Say,
) -> None:
    """Trains to the end, from the folder's checkpoint where there is one.

    Every ``save_every`` steps the folder gets a checkpoint, the draft as vLLM reads it, and
    metrics with the acceptance on some held-out sequences.

    Raises:
        NothingUsable: the loss is no longer finite.
        UserError: the checkpoint is of another recipe.
    """
    trainer = Trainer(target, sequences, recipe, start, compiled)
    curve: list[dict[str, Any]] = []
    if (checkpoint := folder / CHECKPOINT).exists():
        curve = trainer.load(checkpoint)
        say(f"goes on after step {trainer.step} of {recipe.steps}")
    while not trainer.over:
        until = (trainer.step // save_every + 1) * save_every
        loss, hit = trainer.run(min(until, recipe.steps))
        if not math.isfinite(loss):
            raise NothingUsable(
                f"the loss is not finite before step {trainer.step}; the last checkpoint stays; "
                "try a lower --learning-rate in another folder"
            )
        found = heldout.measure(
            trainer.draft, target, sequences, [recipe.block_size - 1], most=_GLANCE
        )
        lengths = {k: a.length for k, by_n in found.items() for a in by_n.values()}
        curve.append(
            {
                "step": trainer.step,
                "epoch": trainer.epoch,
                "seconds": round(trainer.seconds, 1),
                "loss": round(loss, 4),
                "hit": round(hit, 4),
                "rate": recipe.rate(trainer.step - 1, trainer.seconds),
                "acceptance_length": {k: round(x, 3) for k, x in lengths.items()},
            }
        )
        write_draft(trainer.draft, folder / DRAFT)
        write_metrics(
            folder,
            {
                "machine": machine(target.device),
                "data": _plain(data),
                "training": _plain(recipe),
                "sequences": sequences.counts(),
                "parameters": sum(p.numel() for p in trainer.draft.parameters()),
                "curve": curve,
            },
        )
        trainer.save(checkpoint, curve)
        say(
            f"step {trainer.step} of {recipe.steps}, {trainer.seconds / 60:.1f} min: "
            f"loss {loss:.3f}, acceptance length "
            + ", ".join(f"{k} {x:.2f}" for k, x in lengths.items())
        )


def machine(device: torch.device) -> dict[str, str]:
    """Where figures were made."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"device": f"{device.type}: {name}", "torch": torch.__version__}


def write_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    """Replaces metrics.json atomically."""
    new = folder / f".{METRICS}"
    new.write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    new.replace(folder / METRICS)


def read_metrics(folder: Path) -> dict[str, Any]:
    """What `write_metrics` wrote."""
    found: dict[str, Any] = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    return found


def _plain(recipe: DataRecipe | Recipe) -> dict[str, Any]:
    """As JSON gives it back."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    return plain
