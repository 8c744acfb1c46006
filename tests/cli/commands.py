"""The command line's verbs as the tests see them: all of them, and one run."""

from pathlib import Path
from typing import Any

import typer.main
from typer.testing import CliRunner, Result

from mechsink.cli import app
from tests.report.tiny_model import save_tiny

PAIR = '{"clean": "abcd", "corrupted": "abxd", "answer": "e", "wrong": "f"}\n'


def run(*args: Any) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def verbs(command: Any = None, name: str = "") -> dict[str, Any]:
    """Every verb by its name, "experiment operators" among them."""
    found: dict[str, Any] = {}
    command = command or typer.main.get_command(app)
    for word, sub in command.commands.items():
        path = f"{name} {word}".strip()
        found |= verbs(sub, path) if hasattr(sub, "commands") else {path: sub}
    return found


def tiny_inputs(folder: Path) -> tuple[Path, Path, Path]:
    """A model, a text and a file of two pairs, in a folder of their own."""
    model = save_tiny(folder / "model")
    (folder / "text.txt").write_text("Some words to measure on. " * 40)
    (folder / "pairs.jsonl").write_text(PAIR + PAIR.replace('"ab', '"gb'))
    return model, folder / "text.txt", folder / "pairs.jsonl"
