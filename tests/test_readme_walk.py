"""The walk of a newcomer: README's first page, word by word, from an empty folder.

Three things stand there: the demo report, a patching figure of one's own two prompts,
a circuit. Each is one command or at most five lines of Python.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

README = Path(__file__).parent.parent / "README.md"
LINES = 5


def blocks(language: str = "") -> list[str]:
    """Code blocks of the first page, which ends where the library's tour begins."""
    first, end, _ = README.read_text().partition("\n## From Python")
    assert end
    found = re.findall(r"^```(\w*)\n(.*?)^```$", first, re.S | re.M)
    return [text for kind, text in found if kind == language]


def follow(command: str, folder: Path) -> None:
    """A command of the page, run by this interpreter's mechsink."""
    words = shlex.split(command, comments=True)
    assert words[0] == "mechsink"
    run(["-c", "from mechsink.cli import main; main()", *words[1:]], folder)


def run(arguments: list[str], folder: Path) -> None:
    command = [sys.executable, *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}  # beside other tests two would wait
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_nothing_asks_for_more_than_five_lines():
    python = blocks("python")
    assert len(python) == 1
    assert sum(bool(line.strip()) for line in python[0].splitlines()) <= LINES
    (circuit,) = [text for text in blocks() if text.startswith("mechsink")]
    assert len(circuit.splitlines()) == 1


@pytest.mark.pretrained
def test_a_patching_figure_of_two_prompts(tmp_path):
    run(["-c", blocks("python")[0]], tmp_path)
    (figure,) = tmp_path.iterdir()
    with Image.open(figure) as picture:
        assert min(picture.size) > 300
        low, high = picture.convert("L").getextrema()
    assert high - low > 150  # something is drawn


@pytest.mark.slow
def test_the_circuit_of_one_command(tmp_path):
    (command,) = [text for text in blocks() if text.startswith("mechsink")]
    follow(command, tmp_path)
    assert (tmp_path / "circuit" / "circuit.json").exists()
    assert 'class="circuit"' in (tmp_path / "circuit" / "report.html").read_text()


@pytest.mark.slow
def test_the_demo_report(tmp_path):
    makefile = (README.parent / "Makefile").read_text()
    recipe = re.search(r"^demo:.*\n\t\$\(BIN\)/(mechsink .*)$", makefile, re.M)
    assert recipe and any("make demo" in text for text in blocks())
    follow(recipe[1], tmp_path)
    assert "demo/report.html" in README.read_text()
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "SmolLM2" in page or "smollm2" in page
