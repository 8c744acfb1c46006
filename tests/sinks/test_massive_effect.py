"""Massive activations overwritten: a toy whose losses are known by hand."""

import math

import pytest
import torch

from mechsink.models.load import load_model
from mechsink.models.toy import ToyModel
from mechsink.sinks.massive.activations import massive_activations
from mechsink.sinks.massive.effect import MassiveEffect, massive_effect
from toy_tasks import ToyConfig, ToyTransformer

PROMPTS = torch.tensor([[0, 1, 2, 3], [3, 1, 2, 1]])
FIRST = {0: 600.0, 3: 400.0}  # token at position 0 to the entry that it gets
MASSIVE, READ = 4, 6


def planted() -> ToyModel:
    """Two layers without norm; tokens are one-hot in dims 0 to 3, dim 5 is position 0.

    Layer 0 writes FIRST to dim 4, at position 0 alone. Layer 1 turns dim 4 into a
    hundredth of itself, which is token 1's logit; and its head looks where dim 4 is.
    """
    config = ToyConfig(
        d_vocab=4, n_layers=2, d_model=7, d_head=4, d_mlp=2, n_ctx=4, norm="none"
    )
    toy = ToyTransformer(config).eval().double()
    with torch.no_grad():
        for parameter in toy.parameters():
            parameter.zero_()
        toy.W_E[:, :4] = torch.eye(4)
        toy.W_pos[0, 5] = 1.0
        first, second = toy.blocks
        for neuron, (token, value) in enumerate(FIRST.items()):
            first.mlp.W_in[:4, neuron] = -1.0
            first.mlp.W_in[token, neuron] = 0.0
            first.mlp.W_in[5, neuron] = 1.0  # 1 if it stands at 0, else 0 or less
            first.mlp.W_out[neuron, MASSIVE] = value
        second.mlp.W_in[MASSIVE, 0] = 0.01
        second.mlp.W_out[0, READ] = 1.0
        second.attn.W_Q[0, :4, 0] = 1.0
        second.attn.W_K[0, MASSIVE, 0] = 1.0
        toy.W_unembed[READ, 1] = 1.0
    return ToyModel(toy)


@pytest.fixture(scope="module")
def model():
    return planted()


@pytest.fixture(scope="module")
def found(model):
    return massive_activations(model, PROMPTS, threshold=300.0)


def loss(entry):
    """Position 0 predicts token 1 with logit entry / 100, the others all alike."""
    logit = entry / 100
    first = math.log(math.exp(logit) + 3) - logit
    return (first + 2 * math.log(4)) / 3


def test_the_toy_has_the_entries_it_was_given(found):
    table = found.table.sort_values(["batch", "layer"])
    assert table[["batch", "layer", "pos", "dim", "value"]].to_numpy().tolist() == [
        [batch, layer, 0, MASSIVE, value]
        for batch, value in enumerate(FIRST.values())
        for layer in (1, 2)
    ]


@pytest.mark.parametrize(
    ("replacement", "new"), [("zero", 0.0), ("mean", 500.0), (200, 200.0)]
)
def test_losses_by_hand(model, found, replacement, new):
    effect = massive_effect(model, PROMPTS, found, replacement=replacement, eps=0.6)
    table = effect.table
    before = [loss(value) for value in FIRST.values()]
    assert table["loss_before"].tolist() == pytest.approx(before)
    assert table["loss_after"].tolist() == pytest.approx([loss(new)] * 2)
    assert table["change"].tolist() == pytest.approx([loss(new) - x for x in before])
    assert effect.perplexity() == pytest.approx(
        (math.exp(sum(before) / 2), math.exp(loss(new)))
    )
    # Heads: layer 0 uniform, (1 + 1/2 + 1/3 + 1/4) / 4 = .52; layer 1 all on dim 4
    assert table["rate_before"].tolist() == [0.5, 0.5]
    assert table["rate_after"].tolist() == ([0.0, 0.0] if new == 0 else [0.5, 0.5])
    assert table["peak_before"].tolist() == [600, 400]
    assert table["peak_after"].tolist() == [max(new, 1)] * 2
    assert table[["entries", "tokens"]].to_numpy().tolist() == [[1, 3]] * 2
    assert effect.entries["layer"].tolist() == [1, 1]  # where they first appear
    assert effect.entries["value"].tolist() == [600, 400]
    means = effect.means.iloc[0]
    assert means[["mean", "spread", "n"]].tolist() == [500, 100, 2]


def test_every_layer_and_entries_of_ones_own(model, found):
    every = massive_effect(model, PROMPTS, found, every_layer=True)
    assert sorted(every.entries["layer"]) == [1, 1, 2, 2]
    own = massive_effect(model, PROMPTS, [(1, 0, MASSIVE)])
    assert own.table["loss_after"].tolist() == pytest.approx([loss(0)] * 2)
    # the last output alone: dim 6 is written, dim 4 no longer matters
    late = massive_effect(model, PROMPTS, [(2, 0, MASSIVE)])
    assert late.table["change"].tolist() == [0.0, 0.0]
    later = massive_effect(model, PROMPTS, [(2, 0, READ)])
    assert later.table["loss_after"].tolist() == pytest.approx([loss(0)] * 2)


def test_a_mean_over_other_prompts(model):
    tokens, reference = PROMPTS[:1], PROMPTS[1:]
    effect = massive_effect(
        model, tokens, [(1, 0, MASSIVE)], replacement="mean", reference=reference
    )
    assert effect.entries["new"].tolist() == [400]
    assert effect.table["loss_after"].tolist() == pytest.approx([loss(400)])


def test_bad_input_and_its_advice(model, found):
    with pytest.raises(ValueError, match="no massive entry in these prompts"):
        massive_effect(model, PROMPTS[:, 1:], found.__class__(
            found.table[:0], found.meta, found.layers
        ))  # fmt: skip
    with pytest.raises(ValueError, match="layer 0 to 2, pos 0 to 3, dim 0 to 6"):
        massive_effect(model, PROMPTS, [(3, 0, 0)])
    with pytest.raises(ValueError, match="of 2 or more prompts, the tokens of 1"):
        massive_effect(model, PROMPTS[:1], found)
    with pytest.raises(ValueError, match="position=1 is outside prompt 0"):
        massive_effect(model, PROMPTS[:, :1], found)


def test_saves_loads_and_plots(model, found, tmp_path):
    effect = massive_effect(model, PROMPTS, found)
    back = MassiveEffect.load(effect.save(tmp_path / "effect"))
    assert back.table.equals(effect.table) and back.replacement == "zero"
    assert effect.plot().get_xlabel() == "loss before (nats)"


@pytest.mark.pretrained
@pytest.mark.slow
def test_smollm2_needs_its_massive_activation_but_not_its_value():
    """The published finding; here loss 2.9 to 15.9 by zeros, 2.9 by a mean."""
    import pydoc_data.topics as prose

    smollm2 = load_model("smollm2")
    texts = [text for _, text in sorted(prose.topics.items()) if len(text) > 2500]
    tokens = torch.cat([smollm2.to_tokens(text)[:, :128] for text in texts[:4]])
    found = massive_activations(smollm2, tokens)
    zero = massive_effect(smollm2, tokens, found).table
    mean = massive_effect(smollm2, tokens, found, replacement="mean")
    assert mean.means.query("dim == 507")["spread"].item() > 500  # no identity
    assert (zero["change"] > 5).all()
    assert (mean.table["change"].abs() < 0.1).all()
    assert (zero["rate_after"] < zero["rate_before"] - 0.1).all()
    assert (mean.table["rate_after"] - mean.table["rate_before"]).abs().max() < 0.05
