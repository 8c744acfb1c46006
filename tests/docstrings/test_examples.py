"""The examples of every public name run and give what they show."""

import doctest
import io
import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

import mechsink as ms
from mechsink.results import Result
from tests.docstrings.costly import MATRIX, PRETRAINED, SLOW
from tests.docstrings.names import NAMES, doc_of

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
GIVEN = {"rest", "work"}
"""Columns that are named after what the example hands in."""


def cases() -> list[Any]:
    found = []
    for name in NAMES:
        marks = [
            mark
            for mark, names in (
                (pytest.mark.slow, SLOW),
                (pytest.mark.pretrained, PRETRAINED),
                (pytest.mark.matrix, MATRIX),
            )
            if name in names
        ]
        found.append(pytest.param(name, marks=marks))
    return found


@pytest.mark.parametrize("name", cases())
def test_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some write files
    doc = doc_of(name)
    assert doc
    test = doctest.DocTestParser().get_doctest(
        doc, {"ms": ms, "torch": torch}, name, None, 0
    )
    said = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=OPTIONS, verbose=False)
    # Results are looked at after the run, which clears its names otherwise.
    outcome = runner.run(test, out=said.write, clear_globs=False)
    plt.close("all")
    assert outcome.attempted and not outcome.failed, said.getvalue()
    for value in test.globs.values():
        if isinstance(value, Result):
            check_columns(value)


def check_columns(result: Result) -> None:
    """The class says what each column of each of its tables is."""
    docs = " ".join(kind.__doc__ or "" for kind in type(result).__mro__)
    for name in re.findall(r"`(\w+)[^`]*`", docs):  # "as in `EdgeScores`"
        docs += getattr(ms, name).__doc__ if name in ms.__all__ else ""
    words = set(re.findall(r"\w+", docs))
    for field, table in vars(result).items():
        if isinstance(table, pd.DataFrame):
            for column in map(str, table):
                stem = re.sub(r"_(low|high|se)$|^(zeroed|noise)_", "", column)
                is_told = {column, stem} & (words | GIVEN) or re.match(r"[\d.]+$", stem)
                assert is_told, f"{type(result).__name__}: {field} has {column!r}"


def test_costly_names_are_public() -> None:
    assert not (SLOW | PRETRAINED | MATRIX) - {*NAMES}
