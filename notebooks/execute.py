"""Runs the notebooks from the top and keeps what they print: ``python -m notebooks.execute``.

Plots are stored as SVG, which GitHub shows; that needs a Chromium.
"""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def executed(path: Path, *, renderer: str, timeout_s: float = 300) -> nbformat.NotebookNode:
    """A notebook with the outputs of a fresh run, in its own folder.

    Args:
        path: The notebook.
        renderer: Plotly's, for its figures.
        timeout_s: Longest run of one cell.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=timeout_s,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
    )
    # tqdm asks for widgets that nobody needs
    env = {"PLOTLY_RENDERER": renderer, "PYTHONWARNINGS": "ignore:IProgress not found"}
    with mock.patch.dict(os.environ, env):
        client.execute()
    return notebook


def store() -> None:
    """Writes every notebook with its outputs, and without what differs from run to run."""
    for path in NOTEBOOKS:
        notebook = executed(path, renderer="svg")
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)
        nbformat.write(notebook, path)


if __name__ == "__main__":
    store()
