"""A copy of a model whose weights are a little wrong: what `verify` must find.

    python benchmarks/wrong_weights.py COPY --noise 0.1
    python benchmarks/wrong_weights.py COPY --bits 4
    WRONG_MODEL=COPY autotune verify STUDY    # whose server.command is that of wrong_tokens.py

``--noise E`` multiplies each element of one weight (``--weight``) by 1 + E z, with z from a
standard normal distribution. ``--bits B`` quantizes all weights of the layers and dequantizes them
again: in groups of 32 elements of a row, to the nearest of the multiples -m to m of s, where
m = 2^(B-1) - 1 and s is the group's largest absolute value over m. The demo's target comes from a
file of 4 bits with a scale and an offset for each group, which a rounding without an offset does
not give again.

A weight that is changed is kept in float32, so that little noise is not rounded away; a server
loads it in the type that it serves. What is printed is by how much the weights differ.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from autotune.study.models import resolve_model

WEIGHT = "model.layers.15.mlp.down_proj.weight"
FILE = "model.safetensors"


def noisy(weight: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    """Return a weight whose elements have relative noise.

    Args:
        weight: Of any shape.
        share: Standard deviation of the noise, of each element.
        seed: Of the draws.
    """
    draws = torch.Generator().manual_seed(seed)
    return weight * (1 + share * torch.randn(weight.shape, generator=draws))


def rounded(weight: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """Return a weight, quantized and dequantized.

    Args:
        weight: A matrix, whose rows are whole groups.
        bits: Of each element.
        group: Elements of a row that have one scale.
    """
    parts = weight.reshape(-1, group)
    most = 2 ** (bits - 1) - 1
    scale = parts.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / most
    return ((parts / scale).round().clamp(-most, most) * scale).reshape(weight.shape)


def main() -> None:
    """Write the copy."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("copy", type=Path, help="folder to write")
    parser.add_argument("--model", default="demo:target", help="as in a study: %(default)s")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--noise", type=float, help="of one weight, relative to each element")
    how.add_argument("--bits", type=int, help="of every weight of the layers")
    parser.add_argument("--weight", default=WEIGHT, help="that has the noise: %(default)s")
    parser.add_argument("--group", type=int, default=32, help="elements with one scale")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model = Path(resolve_model(args.model, Path.cwd()))
    weights = load_file(model / FILE)
    wrong, before = 0.0, 0.0
    for name, weight in weights.items():
        whole = weight.float()
        if args.noise is not None and name == args.weight:
            found = noisy(whole, args.noise, args.seed)
        elif args.bits is not None and name.startswith("model.layers.") and weight.dim() == 2:
            found = rounded(whole, args.bits, args.group)
        else:
            continue
        wrong += float((found - whole).square().sum())
        before += float(whole.square().sum())
        weights[name] = found.contiguous()
    if not before:
        parser.error(f"{model} has no weight {args.weight}")
    shutil.copytree(model, args.copy, ignore=lambda *_: [FILE])
    save_file(weights, args.copy / FILE, metadata={"format": "pt"})
    print(
        f"{args.copy}: the changed weights differ by {(wrong / before) ** 0.5:.4f} (relative RMS)"
    )


if __name__ == "__main__":
    main()
