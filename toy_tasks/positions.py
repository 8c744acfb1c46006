"""Positions that live in the attention: rotary angles, ALiBi, bucketed distances."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from toy_tasks.config import ToyConfig

BASE = 10_000.0  # rotary wavelengths: 2 pi to about 2 pi * BASE tokens
BUCKETS, FURTHEST = 32, 128


def rotated(
    x: Float[Tensor, "batch pos head d_head"], start: int = 0
) -> Float[Tensor, "batch pos head d_head"]:
    """Queries or keys turned by their position, the first being `start`.

    Entry i and entry i + d_head/2 make a pair ("rotate half", as in Llama's code; the
    paper pairs neighbours, which is the same up to the order of entries). Pair i turns
    by position * 10000^(-2i/d_head), so scores depend on distances alone.

    Source: Su et al. 2021 (arXiv:2104.09864), base 10000.
    """
    half = x.shape[-1] // 2
    exact = torch.promote_types(x.dtype, torch.float32)
    pair = torch.arange(half, device=x.device, dtype=exact)
    pos = torch.arange(start, start + x.shape[1], device=x.device, dtype=exact)
    angle = pos[:, None] * BASE ** (-pair / half)
    cos, sin = (t[:, None].to(x.dtype) for t in (angle.cos(), angle.sin()))
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def distances(
    n_query: int, n_key: int, device: torch.device
) -> Int[Tensor, "query key"]:
    """How far back each key lies, the queries being the last; 0 for later keys."""
    query = torch.arange(n_key - n_query, n_key, device=device)
    return (query[:, None] - torch.arange(n_key, device=device)).clamp(min=0)


def alibi_slopes(n_heads: int) -> Float[Tensor, " head"]:
    """Nats a head takes off a score per token of distance: 2^(-8/n), 2^(-16/n), ...

    The published series; the released code departs from it where the number of heads
    is no power of two. One head alone has 2^-8.

    Source: Press et al. 2022 (arXiv:2108.12409).
    """
    return 2.0 ** (-8.0 / n_heads * torch.arange(1, n_heads + 1))


def relative_buckets(
    distance: Int[Tensor, "query key"],
) -> Int[Tensor, "query key"]:
    """Buckets 0 to 31: distances 0 to 15 each its own, then by logarithm up to 128.

    Source: Raffel et al. 2020 (arXiv:1910.10683), the causal form.
    """
    exact = BUCKETS // 2
    share = (distance.clamp(min=1).float() / exact).log() / math.log(FURTHEST / exact)
    far = exact + (share * (BUCKETS - exact)).long()
    return torch.where(distance < exact, distance, far.clamp(max=BUCKETS - 1))


class ScoreBias(torch.nn.Module):
    """What ALiBi or bucketed distances add to the scores of one layer.

    Bucketed: one learned number per bucket and head, from 0, a table for each layer
    (T5 shares one); added to scores that are divided by sqrt(d_head), as the others.
    """

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.is_learned = config.positions == "relative"
        if self.is_learned:
            self.table = torch.nn.Parameter(torch.zeros(BUCKETS, config.n_heads))
        else:
            slopes = alibi_slopes(config.n_heads)
            self.register_buffer("slopes", slopes, persistent=False)

    def forward(self, n_query: int, n_key: int) -> Float[Tensor, "head query key"]:
        """Nats; the queries are the last of the keys' positions."""
        table: Tensor = self.table if self.is_learned else self.slopes  # type: ignore[assignment]
        distance = distances(n_query, n_key, table.device)
        if self.is_learned:
            return table[relative_buckets(distance)].permute(2, 0, 1)
        return -table[:, None, None] * distance
