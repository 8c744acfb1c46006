"""Carriers that the content decides: routed regions, heavy hitters, a layer router."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from toy_tasks.operators.carriers import Carrier, View, Window
from toy_tasks.operators.normalisers import softmax
from toy_tasks.operators.parts import (
    Heads,
    Init,
    Parameters,
    Sizes,
    at_least_1,
    causal_mask,
    exact,
)


@dataclass(frozen=True)
class Regions(Carrier):
    """The query's own region so far, and the `top` - 1 earlier regions nearest to it.

    Regions are `size` tokens; a region is the mean of its keys, and the query's the
    mean of the queries of its region up to itself, so nothing looks ahead. `top` of
    all regions or more is full attention. The choice has no gradient.

    Source: bi-level routing of BiFormer (arXiv:2303.08810), made causal.
    """

    size: int = 8
    top: int = 3

    def __post_init__(self) -> None:
        at_least_1(self, size=self.size, top=self.top)

    def views(self, heads: Heads, scores: Tensor, parameters: Parameters) -> list[View]:
        """The tokens of the chosen regions."""
        n, device = heads.n_pos, heads.q.device
        n_regions = math.ceil(n / self.size)
        region = torch.arange(n, device=device) // self.size
        with torch.no_grad():
            q = _running_mean(exact(heads.q), self.size, n_regions)
            k = _running_mean(exact(heads.k), self.size, n_regions)
            ends = torch.arange(1, n_regions + 1, device=device) * self.size - 1
            means = k[:, :, ends.clamp(max=n - 1)]  # of whole regions, but the last
            near = q @ means.transpose(2, 3)
            index = torch.arange(n_regions, device=device)
            near = near.masked_fill(index > region[:, None], -torch.inf)
            near = near.masked_fill(index == region[:, None], torch.inf)
            best = near.topk(min(self.top, n_regions), dim=-1).indices
            chosen = torch.zeros_like(near, dtype=torch.bool).scatter(-1, best, True)
        return [(chosen[..., region] & causal_mask(n, device), None)]


def _running_mean(x: Tensor, size: int, n_regions: int) -> Tensor:
    """Mean over the tokens of its region up to each token, [batch head pos d_head]."""
    n = x.shape[2]
    blocks = F.pad(x, (0, 0, 0, n_regions * size - n)).unflatten(2, (n_regions, size))
    rank = torch.arange(1, size + 1, device=x.device, dtype=x.dtype)[:, None]
    return (blocks.cumsum(3) / rank).flatten(2, 3)[:, :, :n]


@dataclass(frozen=True)
class HeavyHitters(Carrier):
    """A cache of the last `recent` tokens and the `heavy` that gathered most attention.

    After each query the attention it paid is added to the account of the keys in the
    cache; whatever is neither recent nor among the heavy ones is dropped for good.
    A query sees the cache and itself. The choice has no gradient.

    Source: H2O (arXiv:2306.14048), a cache policy of SinkLoRA (arXiv:2406.05678).
    """

    heavy: int = 8
    recent: int = 8

    def __post_init__(self) -> None:
        at_least_1(self, heavy=self.heavy + 1, recent=self.recent)

    def views(self, heads: Heads, scores: Tensor, parameters: Parameters) -> list[View]:
        """What is in the cache when each query comes, one query after another."""
        with torch.no_grad():
            full = exact(scores).expand(heads.q.shape[0], -1, -1, -1)
            kept = torch.zeros_like(full[..., 0, :], dtype=torch.bool)
            account = torch.zeros_like(full[..., 0, :])
            seen = []
            for i in range(heads.n_pos):
                kept = kept.clone()
                kept[..., i] = True
                seen.append(kept)
                paid = softmax(full[..., i : i + 1, :], kept[..., None, :])
                account = account + paid[..., 0, :]
                kept = self._evict(kept, account, i)
        return [(torch.stack(seen, dim=-2), None)]

    def _evict(self, kept: Tensor, account: Tensor, i: int) -> Tensor:
        start = i + 1 - self.recent  # of the recent ones
        if start <= self.heavy:
            return kept
        old = kept.clone()
        old[..., start:] = False
        rank = account.masked_fill(~old, -1).topk(self.heavy, dim=-1).indices
        heavy = torch.zeros_like(kept).scatter(-1, rank, True)
        recent = kept.clone()
        recent[..., :start] = False
        return heavy & old | recent


@dataclass(frozen=True)
class FullOrSparse(Carrier):
    """A router of the layer that mixes full attention with sinks and a window.

    The share of full attention at query i is sigmoid(mean_{j<=i} x_j . w + b), of the
    running mean, so that it looks at the prompt so far and not ahead. `router`
    "full" and "sparse" fix it to 1 and 0, which gives either model.

    Source: after Flux Attention (systems.md row 20): there a router chooses per layer
    for a whole prompt; the causal, soft form is ours.
    """

    window: int = 16
    sinks: int = 1
    router: Literal["learned", "full", "sparse"] = "learned"

    def __post_init__(self) -> None:
        at_least_1(self, window=self.window, sinks=self.sinks + 1)
        if self.router not in ("learned", "full", "sparse"):
            raise ValueError(
                f"FullOrSparse: router={self.router!r}. Allowed: 'learned', 'full', "
                "'sparse'."
            )

    @property
    def reads_x(self) -> bool:
        """Where the router is learned."""
        return self.router == "learned"

    def parameters(self, sizes: Sizes) -> dict[str, Init]:
        """w [d_model, 1] and b [1], from zero: half of each."""
        if self.router != "learned":
            return {}
        return {"w": Init((sizes.d_model, 1), 0.0), "b": Init((1,), 0.0)}

    def views(self, heads: Heads, scores: Tensor, parameters: Parameters) -> list[View]:
        """Full, and sparse, with their shares."""
        n, device = heads.n_pos, heads.q.device
        full = causal_mask(n, device)[None, None]
        sparse = Window(self.window, self.sinks).mask(n, 1, device)
        if self.router != "learned":
            return [(full if self.router == "full" else sparse, None)]
        share = self.full_share(heads.x, parameters)[:, None]
        return [(full, share), (sparse, 1 - share)]

    def full_share(self, x: Tensor, parameters: Parameters) -> Tensor:
        """Share of full attention, Float[batch pos 1], 0 to 1."""
        rank = torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        mean = (exact(x).cumsum(1) / rank).to(x.dtype)
        return (mean @ parameters["w"] + parameters["b"]).sigmoid()
