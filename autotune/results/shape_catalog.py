"""The catalog of shapes in words and as data: sizes, quantizations, drafts, sources."""

from __future__ import annotations

from typing import Any

from autotune.results.text import WIDTH, wrapped
from autotune.study.model_size import Parameters, kv_cache_of, parameters_of, weight_bytes
from autotune.study.shapes import Shape, shapes

_GIB = 1 << 30


def catalog_lines() -> list[str]:
    """Return the catalog as lines of a terminal."""
    lines = []
    for shape in shapes():
        body = catalog_entry(shape)
        lines += [
            f"{shape.name:17}{_billions(body)}",
            f"  {'weights':9}{', '.join(_sized(q, b) for q, b in body['weights_bytes'].items())}",
            f"  {'cache':9}{body['kv_bytes_per_token'] / 1024:.0f} KiB per token",
            f"  {'draft':9}{_draft_words(body['draft'])}",
            *_assumed(shape),
            f"  {'source':9}{shape.of}",
            f"  {'':9}{shape.draft_of}",
        ]
    return [*lines, "", *wrapped(_HOW, WIDTH)]


_HOW = (
    "`autotune shape NAME` writes a target and its DFlash draft without weights; --json prints the "
    "catalog with the source of every number."
)


def catalog_json() -> dict[str, Any]:
    """Return the catalog as data, with the sources."""
    return {shape.name: catalog_entry(shape) for shape in shapes()}


def catalog_entry(shape: Shape) -> dict[str, Any]:
    """Return what is known of a shape: parameters, bytes by quantization, its draft, sources."""
    draft = shape.draft()
    found = _known(parameters_of(shape.target()))
    cache = kv_cache_of(shape.target())
    return {
        "of": shape.of,
        "parameters": found.total,
        "active_parameters": None if shape.published_active is None else found.active,
        "weights_bytes": {q: weight_bytes(shape.target(q)) for q in shape.quants},
        "kv_bytes_per_token": None if cache is None else cache.per_token(),
        "draft": {
            "of": shape.draft_of,
            "parameters": _known(parameters_of(draft)).total,
            "weights_bytes": weight_bytes(draft),
            "block_size": draft["block_size"],
            "derived": list(shape.derived),
        },
        "sources": dict(shape.sources),
    }


def size_words(shape: Shape, quant: str | None = None) -> str:
    """Return how large a shape is, such as ``25.2 billion parameters, 14.2 GiB as w4a16``."""
    body = catalog_entry(shape)
    quant = quant or shape.quants[0]
    return f"{_billions(body)}, {_sized(quant, body['weights_bytes'][quant])}"


def _known(found: Parameters | None) -> Parameters:
    if found is None:
        raise AssertionError("the size of every shape is known")
    return found


def _billions(body: dict[str, Any]) -> str:
    active = body["active_parameters"]
    some = "" if active is None else f" ({active / 1e9:.1f} active)"
    return f"{body['parameters'] / 1e9:.1f} billion parameters{some}"


def _sized(quant: str, size: int) -> str:
    return f"{quant} {size / _GIB:.1f} GiB"


def _draft_words(draft: dict[str, Any]) -> str:
    size = f"{draft['parameters'] / 1e9:.2f} billion parameters"
    return f"{size}, {draft['weights_bytes'] / _GIB:.2f} GiB, block of {draft['block_size']}"


def _assumed(shape: Shape) -> list[str]:
    """Return a line on what of a draft is derived; empty: nothing."""
    if not shape.derived:
        return []
    first, *rest = wrapped(f"derived: {', '.join(shape.derived)}", WIDTH - 11)
    return [f"{'':11}{line}" for line in (first, *rest)]
