"""docs/coming-from.md: each right-hand side runs, each left-hand name is the peer's."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, Running, blocks, table_rows

PAGE = ROOT / "docs" / "coming-from.md"
ROWS = [row for row in table_rows(PAGE) if len(row[1]) == 2]


@pytest.mark.slow  # three minutes on a busy core
@pytest.mark.filterwarnings("ignore:faithfulness")  # two pairs
def test_right_hand_sides_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    ran = 0
    with Running(PAGE) as running:
        for block in blocks(PAGE):
            running.run(block.code, block.line)
        for line, (_, right) in ROWS:
            for code in right:
                running.run(code, line)
                ran += 1
    plt.close("all")
    assert ran >= len(ROWS) - 1 >= 35
    assert {"circuit.json", "circuit.html"} <= {p.name for p in tmp_path.iterdir()}


def test_every_row_has_something_to_write() -> None:
    assert len(ROWS) > 35
    empty = [line for line, (_, right) in ROWS if not right]
    assert len(empty) == 1  # resetting hooks, which is not needed


@pytest.mark.matrix
def test_functions_on_the_left_are_transformer_lens_s() -> None:
    import transformer_lens.patching as patching
    from transformer_lens import ActivationCache
    from transformer_lens.model_bridge import TransformerBridge

    left = " ".join(code for _, (codes, _) in ROWS for code in codes)
    for name in re.findall(r"patching\.(\w+)", left):
        assert hasattr(patching, name), name
    for name in set(re.findall(r"cache\.(\w+)", left)):
        assert hasattr(ActivationCache, name), name
    for name in set(re.findall(r"bridge\.(\w+)", left)):
        assert hasattr(TransformerBridge, name), name
