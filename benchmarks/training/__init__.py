"""Trains the DFlash draft that comes with the package: `python -m benchmarks.training FOLDER`.

Imports go one way: `target`, `chat` ← `data`, `model` ← `heldout` ← `train` ← the command line.
`prompts` is a command of its own; it takes a type from `chat`.
Of `autotune` it takes the demo's models and the errors.
"""
