"""One attention layer with an operator, and what it gives for drawn inputs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from toy_tasks.config import ToyConfig
from toy_tasks.operators import Operator
from toy_tasks.operators.attention import OperatorAttention

D_MODEL, D_HEAD = 12, 6


@dataclass(frozen=True, eq=False)
class Shown:
    """Tensors that one call of the layer made."""

    x: Tensor
    q: Tensor  # batch head pos d_head, as are k, v and z
    k: Tensor
    v: Tensor
    scores: Tensor
    pattern: Tensor
    z: Tensor
    out: Tensor


def make(
    operator: Operator,
    *,
    n_heads: int = 2,
    n_ctx: int = 64,
    seed: int = 0,
    n_kv_heads: int | None = None,
) -> OperatorAttention:
    """The layer in float64, every parameter drawn from N(0, .5)."""
    config = ToyConfig(
        d_vocab=8,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_model=D_MODEL,
        d_head=D_HEAD,
        n_ctx=n_ctx,
        operators=operator,
    )
    layer = OperatorAttention(config, operator).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    return layer


def draw(n_pos: int = 10, seed: int = 1, batch: int = 2) -> Tensor:
    """Inputs from N(0, 1), Float[batch pos d_model] in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, n_pos, D_MODEL, generator=generator, dtype=torch.float64)


def show(layer: OperatorAttention, x: Tensor) -> Shown:
    """Run and keep what the hooks saw."""
    kept: dict[str, Tensor] = {}
    names = ("q", "k", "v", "attn_scores", "pattern", "z")
    handles = [
        getattr(layer, f"hook_{name}").register_forward_hook(
            lambda module, args, out, name=name: kept.__setitem__(name, out.detach())
        )
        for name in names
    ]
    out = layer(x).detach()
    for handle in handles:
        handle.remove()
    q, k, v, z = (kept[name].transpose(1, 2) for name in ("q", "k", "v", "z"))
    return Shown(x, q, k, v, kept["attn_scores"], kept["pattern"], z, out)
