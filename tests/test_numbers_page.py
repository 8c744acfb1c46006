"""docs/numbers.md: its code runs, and says what it says."""

import re
from pathlib import Path

import pytest
import torch

import mechsink as ms
from mechsink.models.bridge import BridgeModel
from tests.models.families import tiny

PAGE = Path(__file__).parent.parent / "docs" / "numbers.md"


@pytest.mark.matrix
def test_the_code_of_the_page_runs(capsys) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert 'load_model("smollm2")' in blocks[0] and len(blocks) == 3
    tokens = torch.tensor([[5, 9, 12, 7]])
    other = torch.tensor([[5, 9, 31, 7]])
    names = {
        "ms": ms,
        "model": BridgeModel(tiny("llama"), name="llama"),
        "pairs": ms.PromptPairs(
            tokens, other, answers=torch.tensor([20]), wrong=torch.tensor([40])
        ),
    }
    for block in blocks[1:]:  # the first loads a model of some size
        exec(block, names)
    assert capsys.readouterr().out.startswith("rounding: float64 agrees")
