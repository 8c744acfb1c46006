"""docs/many-prompts.md: its code runs."""

import json
import re
from pathlib import Path

import pytest

from mechsink.interventions.patching import PatchingResult
from tests.report.tiny_model import save_tiny

PAGE = Path(__file__).parents[2] / "docs" / "many-prompts.md"


@pytest.mark.matrix
def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    save_tiny(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    pair = {"clean": "abcd", "corrupted": "abxd", "answer": "e", "wrong": "f"}
    rows = [pair, {**pair, "clean": "ghij"}]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names = {}
    exec(block.replace('"smollm2"', '"./model"'), names)
    assert names["r"].table["prompt"].nunique() == 2
    assert names["r"].table.equals(PatchingResult.load("sweep").table)
