"""Causal attention with grouped key-value heads, by two paths of equal result.

The fused path builds no pattern. As soon as a hook sits on the scores or the
pattern, or the call continues a past, the explicit path runs.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from toy_tasks.config import Carrier, ToyConfig
from toy_tasks.layers import HookPoint, weight
from toy_tasks.positions import ScoreBias, rotated

FUSED_FROM = 64
"""On a CPU, prompts up to so many tokens take the explicit path: there the fused
kernel measured slower (10.7 against 8.7 ms, forward and backward, 64 x 64 tokens)."""


class Attention(nn.Module):
    """Heads that read the normed residual and write to the residual.

    Masked scores are -inf, so a hook on `hook_attn_scores` sees -inf above the
    diagonal, and wherever the layer's carrier hides a key. Softmax rows sum to 1;
    the ReLU pattern is relu(score) / (i + 1) for query position i, and its rows
    need not. Rotary angles are applied after `hook_q` and `hook_k`: what stands there
    is linear in the normed residual, whatever the positions.
    """

    def __init__(self, config: ToyConfig, layer: int = 0) -> None:
        super().__init__()
        self.carrier: Carrier = config.carrier(layer)
        self.prefix = config.prefix
        self.is_softmax = config.attention == "softmax"
        self.is_rotary = config.positions == "rotary"
        has_bias = config.positions in ("alibi", "relative")
        self.bias = ScoreBias(config) if has_bias else None
        self.group = config.n_heads // config.kv_heads  # heads per key-value head
        self.W_Q = weight(config.n_heads, config.d_model, config.d_head)
        self.W_K = weight(config.kv_heads, config.d_model, config.d_head)
        self.W_V = weight(config.kv_heads, config.d_model, config.d_head)
        self.W_O = weight(config.n_heads, config.d_head, config.d_model)
        self.hook_q = HookPoint()
        self.hook_k = HookPoint()
        self.hook_v = HookPoint()
        self.hook_attn_scores = HookPoint()
        self.hook_pattern = HookPoint()
        self.hook_z = HookPoint()

    def forward(
        self,
        x: Float[Tensor, "batch pos d_model"],
        past: tuple[Tensor, Tensor] | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """What the heads write; `past` as in `Block.forward`.

        Raises:
            ValueError: a past is given, but a prefix sees later tokens.
        """
        q, k, v = self.project(x)
        q, k, v = self.hook_q(q), self.hook_k(k), self.hook_v(v)
        if past is not None:
            if self.prefix:
                raise ValueError(
                    f"Attention: the first {self.prefix} tokens see each other "
                    "(prefix), so they can't be gone on from. Run all tokens at once."
                )
            k, v = torch.cat([past[0], k], dim=1), torch.cat([past[1], v], dim=1)
        if self.is_rotary:
            q, k = rotated(q, k.shape[1] - q.shape[1]), rotated(k)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # batch head pos d_head
        if self.group > 1:
            k, v = (t.repeat_interleave(self.group, dim=1) for t in (k, v))
        must_show = self.hook_attn_scores.in_use or self.hook_pattern.in_use
        is_short = x.device.type == "cpu" and x.shape[1] <= FUSED_FROM
        if self.is_softmax and past is None and not (must_show or is_short):
            z = self._fused(q, k, v)
        else:
            z = self.pattern(q, k) @ v
        z = self.hook_z(z.transpose(1, 2))
        return z.flatten(2) @ self.W_O.flatten(0, 1)

    def _fused(
        self,
        q: Float[Tensor, "batch head pos d_head"],
        k: Float[Tensor, "batch head pos d_head"],
        v: Float[Tensor, "batch head pos d_head"],
    ) -> Float[Tensor, "batch head pos d_head"]:
        if self.carrier == "full" and not self.prefix and self.bias is None:
            # No mask to read: faster.
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mask = visible(self.carrier, q.shape[2], k.shape[2], q.device, self.prefix)
        if self.bias is not None:
            bias = self.bias(q.shape[2], k.shape[2]).to(q.dtype)
            mask = bias.masked_fill(~mask, -torch.inf)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def project(
        self, x: Float[Tensor, "batch pos d_model"]
    ) -> tuple[
        Float[Tensor, "batch pos head d_head"],
        Float[Tensor, "batch pos kv_head d_head"],
        Float[Tensor, "batch pos kv_head d_head"],
    ]:
        """Queries, keys and values, in one matrix product."""
        weights = torch.cat([self.W_Q, self.W_K, self.W_V])
        out = x @ weights.transpose(0, 1).flatten(1)
        heads = out.unflatten(-1, (-1, weights.shape[2]))
        sizes = [self.W_Q.shape[0], self.W_K.shape[0], self.W_V.shape[0]]
        q, k, v = heads.split(sizes, dim=2)
        return q, k, v

    def pattern(
        self,
        q: Float[Tensor, "batch head query d_head"],
        k: Float[Tensor, "batch head key d_head"],
    ) -> Float[Tensor, "batch head query key"]:
        """Attention of the last `query` positions to all `key` positions.

        Queries and keys are rotated already, where positions are rotary.
        """
        n_query, n_key = q.shape[2], k.shape[2]
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
        if self.bias is not None:
            scores = scores + self.bias(n_query, n_key).to(scores.dtype)
        seen = visible(self.carrier, n_query, n_key, q.device, self.prefix)
        scores = self.hook_attn_scores(scores.masked_fill(~seen, -torch.inf))
        if self.is_softmax:
            return self.hook_pattern(scores.softmax(-1))
        rank = torch.arange(n_key - n_query + 1, n_key + 1, device=q.device)
        return self.hook_pattern(scores.relu() / rank[:, None].to(scores.dtype))


def visible(
    carrier: Carrier,
    n_query: int,
    n_key: int,
    device: torch.device,
    prefix: int = 0,
) -> Bool[Tensor, "query key"]:
    """Keys that the last `n_query` of a prompt's `n_key` tokens may see.

    The first `prefix` tokens are seen by all.
    """
    causal = torch.ones(n_query, n_key, dtype=torch.bool, device=device)
    causal = causal.tril(n_key - n_query)
    causal[:, :prefix] = True
    if carrier == "full":
        return causal
    seen = causal.triu(n_key - n_query)  # itself
    seen[:, 0] = True  # `<s>`, which keeps its role as a place to rest
    if carrier == "peek":
        seen[-1] = True
    return seen
