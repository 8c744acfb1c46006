"""AtP*'s QK fix: what a query or a key does through the softmax, without a slope.

A gradient at q or k sees the softmax's slope, which is near 0 where attention is
saturated. The fix computes the pattern that the patched query or key would give and
differentiates from there on: score = (clean - patched pattern) . gradient at it.

Source: Kramar et al. 2024 (arXiv:2403.00745), section 3.1, equations 7, 9 and 10.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

Pattern = Float[Tensor, "batch head query key"]


def query_scores(
    clean: Pattern, patched: Pattern, gradient: Pattern
) -> Float[Tensor, "batch head query"]:
    """Score of each query: its own row of the pattern is all that it changes (eq 7)."""
    return ((clean.double() - patched) * gradient).sum(-1)


@dataclass(frozen=True, eq=False)
class OneKey:
    """Pattern changes when the key of one position alone is patched, for every key.

    Query i's row changes through the one score of key t. With d the change of that
    score, p the clean attention to t becomes p' = p exp(d) / (1 - p + p exp(d)), and
    the others keep their shares r of the rest. So the change of the row, times a
    gradient g, is (p' - p) (g_t - r . g): all keys and queries in one pass over the
    pattern, with no row computed anew. A learned sink logit is one of the others.

    `pattern`: p, clean attention; `moved`: p' - p; `top`, `rest`: each row's largest
    key, and the shares that the others have without it.
    """

    pattern: Pattern
    moved: Pattern
    top: Int[Tensor, "batch head query 1"]
    rest: Pattern

    @classmethod
    def of(cls, scores: Pattern, patched: Pattern, rows: Tensor | None) -> "OneKey":
        """From scores with the clean keys and with all keys patched.

        Args:
            scores: before softmax, masked ones -inf or very negative.
            patched: the same with every key patched; only the column of the key in
                question is taken of it.
            rows: sums of the clean pattern's rows, [batch head query], where a learned
                sink logit takes a share; None where they are 1.
        """
        scores, patched = scores.double(), patched.double()
        log_p = scores.log_softmax(-1)
        sink = torch.full_like(log_p[..., :1], -torch.inf)
        if rows is not None:
            rows = rows.double().clamp(1e-300, 1)[..., None]
            log_p, sink = log_p + rows.log(), (1 - rows).log()
        p = log_p.exp()
        # Where one key has nearly all attention, 1 - p would lose all its digits.
        top = p.argmax(-1, keepdim=True)
        without = torch.cat([log_p.scatter(-1, top, -torch.inf), sink], dim=-1)
        beside_top = without.logsumexp(-1, keepdim=True)
        rest = torch.where(beside_top > -torch.inf, without - beside_top, -torch.inf)
        log_others = torch.log1p(-p.scatter(-1, top, 0)).scatter(-1, top, beside_top)
        d = torch.where(scores == patched, 0, patched - scores)
        slope = d.clamp(-1, 1).expm1() * p  # for small d, where p' - p would cancel
        small = slope * log_others.exp() / (1 + slope)
        large = (log_p + d - log_others).sigmoid() - p
        moved = torch.where(d.abs() < 1, small, large)
        # A query that sees one key alone attends to it whatever its score.
        moved = torch.where(log_others > -torch.inf, moved, 0)
        return cls(p, moved, top, rest[..., :-1].exp())

    def __call__(self, gradient: Pattern) -> Float[Tensor, "batch head key"]:
        """Score of each key: minus the change times the gradient, over all queries."""
        p, g, top = self.pattern, gradient.double(), self.top
        below = p.scatter(-1, top, 0)  # each at most 1/2
        others = ((p * g).sum(-1, keepdim=True) - below * g) / (1 - below)
        others = others.scatter(-1, top, (self.rest * g).sum(-1, keepdim=True))
        return -(self.moved * (g - others)).sum(-2)


def by_kv_head(
    by_head: Float[Tensor, "batch head key"], n_kv_heads: int
) -> Float[Tensor, "batch kv_head key"]:
    """Summed over the query heads that share a key: a key changes all their rows."""
    return by_head.unflatten(1, (n_kv_heads, -1)).sum(2)


def is_softmax(scores: Pattern, pattern: Pattern) -> bool:
    """Whether rows of the pattern are a softmax of the scores, up to their sum."""
    rows = pattern.double().sum(-1, keepdim=True)
    off = (scores.double().softmax(-1) * rows - pattern).abs().max()
    return bool(off < 1e-2)
