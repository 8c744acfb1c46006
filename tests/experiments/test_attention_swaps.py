"""Attention swapped: patterns by hand, and a planted toy that needs its head."""

from dataclasses import replace

import pytest
import torch

from mechsink.experiments.formation.swaps import SWAPS, swap_effects
from mechsink.models.toy import ToyModel
from toy_tasks import PRESETS, BigramBackcopy, ToyTransformer

PATTERN = torch.tensor([[1.0, 0, 0], [0.75, 0.25, 0], [0.5, 0.3, 0.2]])[None, None]
TRIGGER = torch.tensor([[False, False, True]])


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("none", [[1, 0, 0], [0.75, 0.25, 0], [0.5, 0.3, 0.2]]),
        ("zero sink", [[1, 0, 0], [0, 0.25, 0], [0, 0.3, 0.2]]),
        ("masked sink", [[1, 0, 0], [0, 1, 0], [0, 0.6, 0.4]]),
        ("zero head", [[0, 0, 0]] * 3),
        ("all to sink", [[1, 0, 0]] * 3),
        ("clean", [[1, 0, 0], [1, 0, 0], [0, 1, 0]]),
    ],
)
def test_swaps_by_hand(name, rows):
    before = PATTERN.clone()
    got = SWAPS[name](PATTERN, TRIGGER)[0, 0]
    torch.testing.assert_close(got, torch.tensor(rows, dtype=torch.float32))
    assert torch.equal(PATTERN, before)


def test_a_model_whose_values_are_zero_feels_no_swap():
    task = BigramBackcopy.from_text("the cat sat on the mat " * 50, 2)
    config = replace(PRESETS["bb-cpu"].model, d_vocab=task.d_vocab, n_ctx=12)
    toy = ToyTransformer(config)
    with torch.no_grad():
        toy.get_parameter("blocks.0.attn.W_V").zero_()
    table = swap_effects(ToyModel(toy, task), task, task.sample(4, 13, 0))
    assert table.groupby("measure")["value"].nunique().tolist() == [1, 1]
    assert set(table["swap"]) == set(SWAPS)
