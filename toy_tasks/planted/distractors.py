"""Heads and neurons that work hard and do nothing that matters."""

from typing import Any

import torch
from torch import Tensor

from toy_tasks.transformer import ToyTransformer

N_NEURONS = 6  # a layer


def scatter(
    model: ToyTransformer,
    *,
    n_heads: int,
    n_neurons: int,
    const: int,
    const_size: float,
    junk: tuple[int, ...],
    seed: int,
) -> None:
    """Fill a model with random weights wherever they can do no harm, in place.

    Heads and neurons read every direction and write to `junk` only. Weights are
    multiples of 1/256, so float32 holds them exactly. Whoever plants heads afterwards
    overwrites theirs; a distractor head that shares a planted key-value head keeps
    its own query and output.

    Args:
        n_heads: heads a layer, from 0, that are left at zero.
        n_neurons: neurons a layer, likewise.
        const: dimension that every token fills with `const_size`; read as 1.
        junk: dimensions to write to.
    """
    config, generator = model.config, torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        """Uniform over +-1/64 ... +-32/64: never 0."""
        size = torch.randint(1, 33, shape, generator=generator)
        sign = 2 * torch.randint(2, shape, generator=generator) - 1
        return size * sign / 64

    def reading(n_out: int) -> Tensor:
        weight = draw(config.d_model, n_out)
        weight[const] /= const_size
        return weight

    blocks: list[Any] = list(model.blocks)
    for block in blocks:
        attn, mlp = block.attn, block.mlp
        for head in range(n_heads, config.n_heads):
            attn.W_Q[head] = reading(config.d_head)
            attn.W_O[head][:, junk] = draw(config.d_head, len(junk)) / 4
        for kv in range(config.kv_heads):
            attn.W_K[kv] = reading(config.d_head)
            attn.W_V[kv] = reading(config.d_head)
        mlp.W_in[:, n_neurons:] = reading(N_NEURONS)
        mlp.W_out[n_neurons:, junk] = draw(N_NEURONS, len(junk)) / 2
