"""Make the notebooks from their sources: execute, tidy, keep the outputs.

    python notebooks/build.py          # all
    python notebooks/build.py 2 6      # those whose names begin with 2- and 6-

A source is a script in the percent format, which editors and Jupyter (with jupytext)
open as a notebook. Each is executed in an empty temporary folder.
"""

import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
TIMEOUT = 900
"""Seconds that a cell may take, on a busy machine."""
PROGRESS = {"mechsink": "progress"}
"""What marks a progress bar among the outputs (toy_tasks/watched.py)."""


def sources() -> list[Path]:
    """The sources of all notebooks, by number."""
    return sorted(HERE.glob("[0-9]-*.py"))


def executed(source: Path) -> Any:
    """The notebook of a source, with the outputs of a fresh run.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed, its claim perhaps.
    """
    notebook = jupytext.read(source, fmt="py:percent")
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=TIMEOUT,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            record_timing=False,
        )
        # The kernel chooses its own: figures are to be shown, whatever this shell says.
        env = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
        client.execute(env=env)
    return tidied(notebook)


def tidied(notebook: Any) -> Any:
    """The notebook without what differs from run to run or tells of the machine."""
    notebook.metadata = {
        "kernelspec": {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {}
        if cell.cell_type == "code":
            kept = [output for output in cell.outputs if not is_progress(output)]
            cell.outputs = [tidied_output(output) for output in kept]
    nbformat.validate(notebook)
    return notebook


def is_progress(output: Any) -> bool:
    """Whether an output was a progress bar."""
    return PROGRESS.items() <= output.get("metadata", {}).items()


def tidied_output(output: Any) -> Any:
    """An output without addresses of objects and without a style for light paper."""
    output.get("metadata", {}).clear()
    data = output.get("data", {})
    if "image/png" in data:  # its text names the size alone
        data.pop("text/plain", None)
    if "text/html" in data:
        data["text/html"] = re.sub(
            r"<style.*?</style>", "", data["text/html"], flags=re.S
        )
    return output


def main(numbers: list[str]) -> None:
    """Build the notebooks of these numbers, or all."""
    chosen = [s for s in sources() if not numbers or s.name.split("-")[0] in numbers]
    for source in chosen:
        started = time.perf_counter()
        target = source.with_suffix(".ipynb")
        nbformat.write(executed(source), target)
        seconds, size = time.perf_counter() - started, target.stat().st_size / 1000
        print(f"{target.name}: {seconds:.0f} s, {size:.0f} kB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
