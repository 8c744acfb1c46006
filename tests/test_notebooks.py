"""The notebooks: what each must have, and that it runs.

All are executed by `make test-all`, the quickest by `make test`.
"""

import ast
import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

import mechsink as ms
import toy_tasks
from toy_tasks import planted

FOLDER = Path(__file__).parents[1] / "notebooks"
SOURCES = sorted(FOLDER.glob("[0-9]-*.py"))
QUICKEST = "8-"
TOPICS = (
    "sinks-in-a-real-model", "how-a-sink-forms", "finding-a-circuit-and-checking-it",
    "context-aware-mean-ablation-and-all-for-one", "active-and-dormant-heads",
    "which-operators-form-sinks", "multiple-choice-at-scale",
    "your-own-model-and-metric",
)  # fmt: skip
MOST = 300_000
"""Bytes of a notebook with its outputs."""
MACHINE = re.compile(r"/(home|tmp|root|work|usr|opt|var|Users)/|[A-Z]:\\\\|localhost")


def cells(source: Path, kind: str = "code") -> list[dict[str, Any]]:
    notebook = json.loads(source.with_suffix(".ipynb").read_text())
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def text_of(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def outputs(source: Path) -> list[dict[str, Any]]:
    return [output for cell in cells(source) for output in cell["outputs"]]


def test_there_is_one_of_every_topic() -> None:
    names = [f"{n}-{topic}" for n, topic in enumerate(TOPICS, 1)]
    assert [source.stem for source in SOURCES] == names
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == names


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_it_goes_from_a_question_to_a_checked_claim(source: Path) -> None:
    first = text_of(cells(source, "markdown")[0])
    title = first.split("\n")[0]
    assert re.fullmatch(rf"# {source.stem[0]}\. .*\?", title)
    parts = [
        first.index(f"{word}") for word in ("**Question.**", "**Answer.**", "*Model")
    ]
    assert parts == sorted(parts)
    assert "two CPU cores" in " ".join(first.split())
    last = ast.parse(text_of(cells(source)[-1]))
    assert sum(isinstance(node, ast.Assert) for node in ast.walk(last)) >= 3
    assert "## The claim, checked" in text_of(cells(source, "markdown")[-1])


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_its_outputs_are_kept_small_and_clean(source: Path) -> None:
    shown = outputs(source)
    figures = [o for o in shown if "image/png" in o.get("data", {})]
    assert 1 <= len(figures) <= 4
    assert {o["output_type"] for o in shown} <= {
        "stream",
        "display_data",
        "execute_result",
    }
    assert all(o.get("name", "stdout") == "stdout" for o in shown)  # no warning
    assert source.with_suffix(".ipynb").stat().st_size < MOST
    words = [
        text_of(cell) for kind in ("code", "markdown") for cell in cells(source, kind)
    ]
    for output in shown:
        data = {k: v for k, v in output.get("data", {}).items() if k != "image/png"}
        words.append("".join(output.get("text", [])) + json.dumps(data))
    for word in words:
        word = re.sub(r"data:image/png;base64,[\w+/=]+", "", word)
        assert not MACHINE.search(word), MACHINE.search(word)
    assert [c["execution_count"] for c in cells(source)] == [
        *range(1, 1 + len(cells(source)))
    ]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_it_is_built_from_its_source(source: Path) -> None:
    written = source.read_text()
    for cell in cells(source):
        assert text_of(cell) in written
    for cell in cells(source, "markdown"):
        for line in text_of(cell).split("\n"):
            assert f"# {line}".rstrip() in written


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_it_uses_public_names_alone(source: Path) -> None:
    public = {*ms.__all__}
    toys = {*toy_tasks.__all__, *planted.__all__}
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert not node.module.startswith("mechsink")
            if node.module.startswith("toy_tasks"):
                assert node.module in ("toy_tasks", "toy_tasks.planted")
                assert {name.name for name in node.names} <= toys
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert node.value.id != "ms" or node.attr in public, node.attr
            assert not node.attr.startswith("_") or node.attr.startswith("__")


def marked(source: Path) -> Any:
    marks = [
        pytest.mark.matrix if source.stem.startswith(QUICKEST) else pytest.mark.slow
    ]
    if '"smollm2"' in source.read_text():
        marks.append(pytest.mark.pretrained)
    return pytest.param(source, marks=marks, id=source.stem)


@pytest.mark.parametrize("source", [marked(source) for source in SOURCES])
def test_it_runs(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # beside other tests two would wait
    build = runpy.run_path(str(FOLDER / "build.py"))
    notebook = build["executed"](source)  # raises where a cell does
    kept = cells(source)
    now = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(now) == len(kept)
    for cell, before in zip(now, kept, strict=True):  # the same kinds of output
        assert [o.output_type for o in cell.outputs] == [
            o["output_type"] for o in before["outputs"]
        ]
