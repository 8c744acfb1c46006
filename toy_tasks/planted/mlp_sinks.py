"""Massive activations that MLPs make, planted: at `<s>`, and later at one token.

Six layers without norms; heads attend evenly and write nothing. The MLP of layer 1
writes 100 to one dimension, "sink", at `<s>`: a primary sink. That of layer 3 writes 40
there at every "." and 40 more at `<s>`: secondary sinks. That of layer 5 takes it all
away.

Directions: one dimension a token, then two that are left out, then "sink".
Source of the idea: Secondary Attention Sinks (arXiv:2512.22213).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from toy_tasks.config import ToyConfig
from toy_tasks.transformer import ToyTransformer

VOCAB = ("<s>", "the", ".", "cat", "sat")
BOS, STOP = 0, 2
SINK = 7  # the dimension
PRIMARY, SECONDARY = 100.0, 40.0  # what is written to it


@dataclass(frozen=True, eq=False)
class MLPSinks:
    """The model, a prompt with two secondary sinks, and the dimension they share."""

    model: ToyTransformer
    tokens: Int[Tensor, "1 pos"]
    vocab: tuple[str, ...]
    dimension: int


def mlp_sinks() -> MLPSinks:
    """A primary sink from layer 1 on and secondary ones from layer 3 on, until 5.

    Returns:
        The model and the prompt `<s> the cat . the cat sat .`, Int[1 pos].
    """
    config = ToyConfig(
        d_vocab=len(VOCAB),
        n_layers=6,
        d_model=8,
        d_head=4,
        d_mlp=2,
        n_ctx=8,
        norm="none",
    )
    model = ToyTransformer(config).eval()
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for parameter in weights.values():
            parameter.zero_()
        weights["W_E"][:, : len(VOCAB)] = torch.eye(len(VOCAB))
        for layer in range(config.n_layers):
            weights[f"blocks.{layer}.attn.W_V"][0, :4] = torch.eye(4)
        for layer, neuron, reads, gain, writes in (
            (1, 0, BOS, 1.0, PRIMARY),
            (3, 0, STOP, 1.0, SECONDARY),
            (3, 1, SINK, 1 / PRIMARY, SECONDARY),
            (5, 0, SINK, 1.0, -1.0),
        ):
            weights[f"blocks.{layer}.mlp.W_in"][reads, neuron] = gain
            weights[f"blocks.{layer}.mlp.W_out"][neuron, SINK] = writes
    tokens = torch.tensor([[0, 1, 3, 2, 1, 3, 4, 2]])
    return MLPSinks(model, tokens, VOCAB, SINK)
