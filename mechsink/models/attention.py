"""Attention of one layer in memory linear in length.

The attention of query i to key j is exp(s_ij - logsumexp_i), and a flash kernel
returns that logsumexp: a few columns of the pattern need no T x T tensor. Where
no kernel fits (soft caps, windows, padding, learned sink logits, other devices)
the same is computed exactly in chunks of queries.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechsink.models.kernels import kernel_for

CHUNK_BYTES = 64 * 2**20  # one chunk of scores, float32


@dataclass(eq=False)
class FlashAttention:
    """One layer's queries, keys and values, and exact columns of its pattern.

    Implements `mechsink.run.LayerAttention`. `mask` is True where a query may
    see a key; None means plainly causal, the queries being the last positions.
    """

    layer: int
    q: Float[Tensor, "batch head query d_head"]
    k: Float[Tensor, "batch kv_head key d_head"]
    v: Float[Tensor, "batch kv_head key d_value"]
    scale: float
    mask: Bool[Tensor, "#batch #head query key"] | None = None
    softcap: float | None = None
    sink_logit: Float[Tensor, " head"] | None = None
    is_softmax: bool = field(default=True, init=False)
    lse: Tensor = field(init=False, repr=False)
    out: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        plain = self.mask is None and self.softcap is None and self.sink_logit is None
        whole = self.q.shape[2] == self.k.shape[2]
        kernel = kernel_for(self.q) if plain and whole else None
        if kernel is not None and self.v.shape[-1] == self.q.shape[-1]:
            k, v = self._per_head(self.k), self._per_head(self.v)
            self.out, self.lse = kernel(self.q, k, v, self.scale)
        else:
            self.out, self.lse = self._chunked()

    def columns(self, keys: Sequence[int]) -> Float[Tensor, "batch head query column"]:
        """Attention that every query pays to a few keys; 0 where masked."""
        wanted = torch.as_tensor(list(keys), device=self.q.device)
        scores = self._scores(self.q, self._per_head(self.k[:, :, wanted]))
        seen = self._visible(0, self.q.shape[2], wanted)
        return torch.where(seen, (scores - self.lse[..., None]).exp(), 0.0)

    def excess_score(self, key: int) -> Float[Tensor, "batch head query"]:
        """Score of `key` minus the mean score of the other visible keys, nats."""
        whole = self.q.shape[2] == self.k.shape[2]
        if self.mask is None and self.softcap is None and whole:
            return self._excess_by_sums(key)
        parts = []
        for start, stop in self._chunks():
            seen = self._visible(start, stop)
            scores = self._scores(self.q[:, :, start:stop], self._per_head(self.k))
            others = seen.clone()
            others[..., key] = False
            mean = torch.where(others, scores, 0.0).sum(-1) / others.sum(-1)
            excess = scores[..., key] - mean  # 0 / 0 = NaN where there is no other
            parts.append(torch.where(seen[..., key], excess, torch.nan))
        return torch.cat(parts, dim=2)

    def _excess_by_sums(self, key: int) -> Float[Tensor, "batch head query"]:
        # Scores are linear in keys: their sum is q times the running sum of keys.
        k = self.k.to(torch.promote_types(self.k.dtype, torch.float32))
        others = self._per_head(k.cumsum(2) - k[:, :, key : key + 1])
        n_others = torch.arange(self.q.shape[2], device=self.q.device)  # query i: i
        mean = (self.q * others).sum(-1) * self.scale / n_others
        own = self._scores(self.q, self._per_head(self.k[:, :, key : key + 1]))[..., 0]
        excess = own - mean
        excess[..., : max(key, 1)] = torch.nan  # unseen, or no other key to compare
        return excess

    def _chunked(self) -> tuple[Tensor, Tensor]:
        k, v = self._per_head(self.k), self._per_head(self.v)
        out, lse = [], []
        for start, stop in self._chunks():
            scores = self._scores(self.q[:, :, start:stop], k)
            scores = scores.masked_fill(~self._visible(start, stop), -torch.inf)
            total = scores.logsumexp(-1)
            if self.sink_logit is not None:  # takes attention, gives no value
                sink = self.sink_logit[None, :, None].to(total.dtype)
                total = torch.logaddexp(total, sink)
            lse.append(total)
            weights = (scores - total[..., None]).exp()
            out.append(weights.to(v.dtype) @ v)
        return torch.cat(out, dim=2), torch.cat(lse, dim=2)

    def _scores(self, q: Tensor, k: Tensor) -> Tensor:
        wide = torch.promote_types(q.dtype, torch.float32)
        scores = (q.to(wide) @ k.to(wide).transpose(-1, -2)) * self.scale
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        return scores

    def _visible(
        self, start: int, stop: int, keys: Int[Tensor, " some"] | None = None
    ) -> Bool[Tensor, "#batch #head chunk some"]:
        """Which of some keys (default: all) a chunk of queries may see."""
        n_keys, device = self.k.shape[2], self.q.device
        keys = torch.arange(n_keys, device=device) if keys is None else keys
        if self.mask is not None:
            return self.mask[:, :, start:stop, keys]
        queries = torch.arange(start, stop, device=device) + n_keys - self.q.shape[2]
        return (keys <= queries[:, None])[None, None]

    def _chunks(self) -> Iterator[tuple[int, int]]:
        batch, heads, n_queries, _ = self.q.shape
        size = max(1, CHUNK_BYTES // (4 * batch * heads * self.k.shape[2]))
        for start in range(0, n_queries, size):
            yield start, min(start + size, n_queries)

    def _per_head(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.q.shape[1] // x.shape[1], dim=1)


@dataclass(eq=False)
class PatternAttention:
    """The same, from a whole pattern: for models whose attention can't be replaced.

    Implements `mechsink.run.LayerAttention`. Without `scores` (masked entries far
    below zero) they are taken as the logarithm of the pattern, equal up to a
    constant per query, which `excess_score` cancels; queries with a key whose
    attention vanished then give NaN, for its score is lost.
    """

    layer: int
    v: Float[Tensor, "batch kv_head pos d_head"]
    pattern: Float[Tensor, "batch head pos pos"]
    scores: Float[Tensor, "batch head pos pos"] | None = None
    is_softmax: bool = True

    def columns(self, keys: Sequence[int]) -> Float[Tensor, "batch head query column"]:
        """Attention that every query pays to a few keys; 0 where masked."""
        return self.pattern[..., list(keys)]

    def excess_score(self, key: int) -> Float[Tensor, "batch head query"]:
        """Score of `key` minus the mean score of the other visible keys, nats."""
        n_pos = self.pattern.shape[-1]
        wide = torch.promote_types(self.pattern.dtype, torch.float32)
        seen = torch.ones(n_pos, n_pos, dtype=torch.bool).to(self.pattern.device).tril()
        if self.scores is None:
            scores = self.pattern.to(wide).log()
            lost = (scores.isinf() & seen).any(-1, keepdim=True)
            scores = scores.masked_fill(lost, torch.nan)
        else:
            scores = self.scores
            seen = seen & (scores > torch.finfo(scores.dtype).min / 2)
            scores = scores.to(wide)
        others = seen.clone()
        others[..., key] = False
        mean = torch.where(others, scores, 0.0).sum(-1) / others.sum(-1)
        return torch.where(seen[..., key], scores[..., key] - mean, torch.nan)
