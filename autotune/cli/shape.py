"""The command that writes a model without weights: shape."""

from __future__ import annotations

import json
from pathlib import Path

import click

from autotune.cli.options import PathType


@click.command()
@click.argument("name", required=False)
@click.option(
    "--quant",
    metavar="w4a16|fp8|bf16|mxfp4",
    help="Format of the target's weights. Default: the first one that --list shows for it.",
)
@click.option(
    "--tokenizer",
    type=PathType(file_okay=False, exists=True, path_type=Path),
    help="Folder of a model whose tokenizer is copied. Default: one token for each byte, which is "
    "enough for random prompts.",
)
@click.option("--draft/--no-draft", default=True, help="Write the DFlash draft, too (the default).")
@click.option(
    "--out",
    type=PathType(file_okay=False, path_type=Path),
    help="New folder to write. Default: the name of the shape, with its format.",
)
@click.option("--list", "listed", is_flag=True, help="Print the catalog, as without NAME.")
@click.option("--json", "as_json", is_flag=True, help="Print the catalog as JSON, with sources.")
@click.option("--tiny", is_flag=True, hidden=True)
def shape(
    name: str | None,
    quant: str | None,
    tokenizer: Path | None,
    draft: bool,
    out: Path | None,
    listed: bool,
    as_json: bool,
    tiny: bool,
) -> None:
    """Write a model of a known size without weights.

    vLLM serves it with random weights: its step times are real, its texts are not. Without NAME,
    the models are listed. In a study, `shape:NAME:QUANT` and `shape:NAME:draft` do the same.

    \b
    Examples:
      autotune shape
      autotune shape gemma-4-26b-a4b --quant w4a16 --out gemma
    """
    from autotune.results.shape_catalog import catalog_json, catalog_lines, size_words
    from autotune.study.shape_tokenizer import why_unchecked
    from autotune.study.shapes import shape_named, write_shape

    if listed or as_json or name is None:
        for option, given in (("--quant", quant), ("--tokenizer", tokenizer), ("--out", out)):
            if given is not None:
                raise click.UsageError(f"{option} goes with the NAME of a shape to write")
        click.echo(json.dumps(catalog_json(), indent=2) if as_json else "\n".join(catalog_lines()))
        return
    found = shape_named(name)
    kind = found.quants[0] if quant is None else quant
    place = out if out is not None else Path(f"{found.name}-{kind}")
    written = write_shape(found, place, quant=kind, tokenizer=tokenizer, draft=draft, tiny=tiny)
    size = "scaled down" if tiny else size_words(found, kind)
    click.echo(f"wrote {written.target}: the shape of {found.of}, {size}; no weights")
    if written.draft is not None:
        click.echo(f"wrote {written.draft}: the shape of {found.draft_of}")
    if tokenizer is not None and (note := why_unchecked(tokenizer)):
        click.echo(f"--tokenizer: {note}")
    click.echo("serve it with --load-format dummy, or write it into a study:")
    lines = ["rehearsal: {weights: dummy}", "server:", f"  model: {written.target}"]
    if written.draft is not None:
        lines.append(f"  speculative: {{method: dflash, model: {written.draft}}}")
    click.echo("\n".join(f"  {line}" for line in lines))
