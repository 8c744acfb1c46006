"""The decorrelation loss in training: its value, its gradient, its effect."""

from dataclasses import replace

import pytest
import torch

from toy_tasks import PRESETS, BigramBackcopy, ToyConfig, ToyTransformer
from toy_tasks.training import update

TASK = BigramBackcopy.from_text("the cat sat on the mat " * 50, 2)
CONFIG = replace(
    PRESETS["bb-cpu"].model, d_vocab=TASK.d_vocab, n_ctx=12, n_layers=2, d_mlp=32
)


def cosines(toy: ToyTransformer, tokens: torch.Tensor) -> torch.Tensor:
    """Squared cosines of all later states with the first, after block 0."""
    resid = toy.blocks[0](toy.embed(tokens))
    unit = resid / resid.norm(dim=-1, keepdim=True)
    return (unit[:, 1:] * unit[:, :1]).sum(-1) ** 2


def test_the_extra_loss_is_that_of_the_first_block_alone():
    toy = ToyTransformer(replace(CONFIG, decorrelation=0.7))
    tokens = TASK.sample(3, 12, 0)
    toy(tokens)
    want = 0.7 * cosines(toy, tokens).mean()
    torch.testing.assert_close(toy.extra_loss(), want)
    toy.eval()
    toy(tokens)
    assert toy.extra_loss() is None  # a measured model keeps no states


@pytest.mark.matrix
def test_training_with_it_keeps_states_apart():
    tokens = TASK.sample(16, 13, 1)
    found = []
    for weight in (0.0, 5.0):
        toy = ToyTransformer(replace(CONFIG, decorrelation=weight))
        optimizer = torch.optim.AdamW(toy.parameters(), lr=6e-3)
        for step in range(60):
            update(toy, optimizer, TASK.sample(16, 13, (7, step)))
        found.append(cosines(toy, tokens[:, :-1]).mean().item())
    assert found[1] < 0.5 * found[0]


def test_a_negative_weight_is_refused_and_zero_is_not_written():
    with pytest.raises(ValueError, match="decorrelation=-1"):
        ToyConfig(decorrelation=-1.0)
    assert "decorrelation" not in ToyConfig().to_json()
    kept = ToyConfig(decorrelation=0.5)
    assert ToyConfig.from_json(kept.to_json()) == kept
