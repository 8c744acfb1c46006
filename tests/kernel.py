"""Cells run in a real Jupyter kernel of this interpreter."""

import os
from typing import Any


def run_cells(*codes: str) -> list[list[Any]]:
    """The outputs of each cell.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    import nbformat
    from nbclient import NotebookClient

    cells = [nbformat.v4.new_code_cell(code) for code in codes]
    notebook = nbformat.v4.new_notebook(cells=cells)
    env = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute(env=env)
    return [cell.outputs for cell in notebook.cells]
