"""A toy transformer run by hand with every target's own copy of the residual.

Pure torch on the weights: each target reads the residual plus a leaf of zeros, so that
autograd gives the gradient at its own input, norm and all. Nothing of mechsink's edge
code is used.
"""

import torch
from torch import Tensor

from toy_tasks.transformer import ToyTransformer

Grads = dict[str, Tensor]


def split_run(
    toy: ToyTransformer, embedding: Tensor, less: Grads | None = None
) -> tuple[Tensor, dict[str, Tensor], Grads]:
    """Logits, what each source writes and each target's leaf (all batch pos d_model).

    `less` is taken off what a target reads.
    """
    config = toy.config
    group = config.n_heads // config.kv_heads
    leaves: Grads = {}
    writes: dict[str, Tensor] = {"input": embedding}

    def read(name: str, x: Tensor) -> Tensor:
        leaf = torch.zeros_like(x, requires_grad=True)
        leaves[name] = leaf
        return x + leaf - (less or {}).get(name, torch.zeros_like(x))

    x = embedding
    n_pos = x.shape[1]
    mask = torch.ones(n_pos, n_pos, dtype=torch.bool).tril()
    for layer, block in enumerate(toy.blocks):
        attn, grouped = block.attn, config.kv_heads != config.n_heads
        kv = "kv" if grouped else "h"
        keys = [
            block.ln1(read(f"a{layer}.{kv}{j}<k>", x)) @ attn.W_K[j]
            for j in range(config.kv_heads)
        ]
        values = [
            block.ln1(read(f"a{layer}.{kv}{j}<v>", x)) @ attn.W_V[j]
            for j in range(config.kv_heads)
        ]
        total = torch.zeros_like(x)
        for h in range(config.n_heads):
            q = block.ln1(read(f"a{layer}.h{h}<q>", x)) @ attn.W_Q[h]
            scores = q @ keys[h // group].transpose(1, 2) / config.d_head**0.5
            weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
            writes[f"a{layer}.h{h}"] = weights @ values[h // group] @ attn.W_O[h]
            total = total + writes[f"a{layer}.h{h}"]
        x = x + total
        pre = block.ln2(read(f"m{layer}", x)) @ block.mlp.W_in
        post = pre if block.mlp.is_linear else pre.relu()
        writes[f"m{layer}"] = post @ block.mlp.W_out
        x = x + writes[f"m{layer}"]
    return toy.unembed(read("logits", x)), writes, leaves
