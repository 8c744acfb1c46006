"""One layer's keys and values under a cache policy, and attention over them.

Keys are kept before rotation and turned anew at each call, by their slot: slot c has
position c, a query the position of the slot that it will take.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsink.models.cache_policies import HeavyHitters, Policy


class Rotation:
    """Rotary angles of slots 0, 1, 2, ..., made as far as `reach` was asked to.

    Args:
        rotary: the model's own module: (x, position ids) to cosines and sines.
    """

    def __init__(self, rotary: torch.nn.Module, dtype: torch.dtype) -> None:
        self.rotary = rotary
        self.dtype = dtype
        self.cos = self.sin = torch.empty(0, 0)

    def __call__(
        self, x: Float[Tensor, "*axes pos d_head"], positions: Int[Tensor, " pos"]
    ) -> Float[Tensor, "*axes pos d_head"]:
        """Turn each vector by its position; dimensions without angles stay."""
        # Layers may lie on several devices; the angles were made for one of them.
        cos, sin = (table.to(x.device)[positions] for table in (self.cos, self.sin))
        n = cos.shape[-1]
        one, two = x[..., : n // 2], x[..., n // 2 : n]
        half = torch.cat([-two, one], dim=-1)
        turned = torch.addcmul(x[..., :n] * cos, half, sin)
        return turned if n == x.shape[-1] else torch.cat([turned, x[..., n:]], dim=-1)

    def reach(self, n: int, device: torch.device) -> None:
        """Have angles for slots 0 to n - 1."""
        if n <= len(self.cos):
            return
        n = max(n, 2 * len(self.cos), 64)
        x = torch.zeros(1, dtype=self.dtype, device=device)
        cos, sin = self.rotary(x, torch.arange(n, device=device)[None])
        # Some families scale queries and keys here (YaRN); at position 0, where the
        # model itself left them, that is done already.
        self.cos, self.sin = cos[0] / cos[0, 0, 0], sin[0] / cos[0, 0, 0]


class SlotCache:
    """Keys (before rotation), values and, if the policy asks, attention accounts."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.k: Tensor | None = None
        self.v: Tensor | None = None
        self.account: Tensor | None = None

    @property
    def n(self) -> int:
        """Slots held."""
        return 0 if self.k is None else self.k.shape[2]

    @property
    def n_bytes(self) -> int:
        """Memory of what is held."""
        held = (self.k, self.v, self.account)
        return sum(t.numel() * t.element_size() for t in held if t is not None)

    def attend(
        self,
        q: Float[Tensor, "batch head new d_head"],
        k: Float[Tensor, "batch kv_head new d_head"],
        v: Float[Tensor, "batch kv_head new d_value"],
        rotation: Rotation,
        scale: float,
        softcap: float | None = None,
    ) -> Float[Tensor, "batch head new d_value"]:
        """Attention of new queries as if they came one by one, then eviction.

        Several at once are exact where the policy does not read attention: what each
        of them sees is known beforehand, and rotary scores depend on the distance in
        slots alone.
        """
        n_old, n_new = self.n, q.shape[2]
        if self.k is not None and self.v is not None:
            k, v = torch.cat([self.k, k], dim=2), torch.cat([self.v, v], dim=2)
        rotation.reach(n_old + n_new, q.device)
        slots = torch.arange(n_old + n_new, device=q.device)
        grouped = q.unflatten(1, (k.shape[1], -1))  # batch kv_head group new d_head
        scores = scale * self._scores(grouped, k, slots, rotation)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if n_new > 1:
            scores = scores.masked_fill(~self._seen(slots, n_new), -torch.inf)
        wide = torch.promote_types(scores.dtype, torch.float32)
        weights = scores.softmax(-1, dtype=wide)
        out = weights.to(v.dtype) @ v[:, :, None]
        self._add(k, v, weights)
        return out.flatten(1, 2)

    def select(self, slots: list[int]) -> None:
        """Keep these slots alone, in this order."""
        if self.k is None or self.v is None or len(slots) == self.n:
            return
        index = torch.tensor(slots, device=self.k.device, dtype=torch.long)
        self.k, self.v = self.k[:, :, index], self.v[:, :, index]
        if self.account is not None:
            self.account = self.account[:, :, index]

    def _scores(
        self, q: Tensor, k: Tensor, slots: Tensor, rotation: Rotation
    ) -> Tensor:
        """Products of turned queries and keys, [batch kv_head group new slot]."""
        own = slots[-q.shape[-2] :]
        size, sinks = self.policy.size, self.policy.n_sinks
        keys = rotation(k, slots)[:, :, None].transpose(-1, -2)
        scores = rotation(q, own) @ keys
        if size is not None and sinks and len(slots) - 1 > size:
            # Queries that come to a full cache take its last slot, nearer to the
            # sinks than their place in this piece. Other distances are the same.
            scores[..., :sinks] = rotation(q, own.clamp(max=size)) @ keys[..., :sinks]
        return scores

    def _seen(self, slots: Tensor, n_new: int) -> Tensor:
        """What each of several new queries would find in the cache, [new slot]."""
        size, sinks = self.policy.size, self.policy.n_sinks
        own = slots[-n_new:, None]
        seen = slots <= own
        if size is not None:
            seen &= (slots < sinks) | (slots >= own - (size - sinks))
        return seen

    def _add(self, k: Tensor, v: Tensor, weights: Tensor) -> None:
        self.k, self.v = k, v
        if not isinstance(self.policy, HeavyHitters):
            self.select(self.policy.keep(k.shape[2]))
            return
        paid = weights.sum(dim=(2, 3))  # over the query heads that share a key
        if self.account is not None:
            paid[..., : self.account.shape[-1]] += self.account
        self.account = paid
        if self.n > self.policy.size:
            kept = self.policy.keep_heaviest(paid)
            self.k, self.v = (x.take_along_dim(kept[..., None], 2) for x in (k, v))
            self.account = paid.take_along_dim(kept, -1)
