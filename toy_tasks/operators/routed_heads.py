"""Gates that route tokens to heads, as experts are routed."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from toy_tasks.operators.gates import Gate
from toy_tasks.operators.parts import Init, Parameters, Sizes, exact


@dataclass(frozen=True)
class RoutedHeads(Gate):
    """Mixture of heads: the first `shared` always, of the others the best `top`.

    With routed heads r, weights b_0 n_s softmax(x W_s) for shared heads (n_s; 1 where
    there is one) and b_1 top g for routed ones, g = softmax(x W_r) on the best `top`,
    renormalised; b = 2 softmax(x W_0). `router` "norm" has no parameters: routed
    heads are ranked by softmax(|q| / std over heads) and kept or dropped, with weight
    1. "sinkhorn" balances x W_r over the tokens so far before choosing: `n_it`
    half-steps on each prefix's [token, head] scores, last row kept.

    Training adds `balance` times the load-balance loss
    r^2 mean_e(mean_t g_e mean_t kept_e), which is `top` for a uniform router.

    Source: MoH (arXiv:2410.11842); "sinkhorn" after Selective Sinkhorn Routing
    (systems.md row 17).
    """

    shared: int = 1
    top: int = 1
    router: Literal["softmax", "norm", "sinkhorn"] = "softmax"
    balance: float = 0.01
    n_it: int = 3

    def __post_init__(self) -> None:
        if self.router not in ("softmax", "norm", "sinkhorn"):
            raise ValueError(
                f"RoutedHeads: router={self.router!r}. Allowed: 'softmax', 'norm', "
                "'sinkhorn'."
            )
        if self.shared < 0 or self.top < 1:
            raise ValueError(
                f"RoutedHeads: shared={self.shared}, top={self.top}. Allowed: 0 and "
                "more shared heads, at least 1 routed one kept."
            )

    @property
    def has_loss(self) -> bool:
        """Where a router is learned."""
        return self.router != "norm" and self.balance > 0

    @property
    def reads_x(self) -> bool:
        """Where a router is learned."""
        return self.router != "norm"

    def parameters(self, sizes: Sizes) -> dict[str, Init]:
        """W_r [d_model, routed], W_s [d_model, shared], W_0 [d_model, 2]."""
        routed = sizes.n_heads - self.shared
        if self.top > routed:
            raise ValueError(
                f"RoutedHeads: top={self.top} of {routed} routed heads ("
                f"{sizes.n_heads} heads, {self.shared} shared). Take more heads, or "
                "lower shared or top."
            )
        if self.router == "norm":
            return {}
        found = {"W_r": Init((sizes.d_model, routed))}
        if self.shared:
            found["W_0"] = Init((sizes.d_model, 2))
        if self.shared > 1:
            found["W_s"] = Init((sizes.d_model, self.shared))
        return found

    def after(self, z: Tensor, x: Tensor, parameters: Parameters) -> Tensor:
        """Head outputs times their weights."""
        return z * self.head_weights(x, parameters, parameters.get("q"))[..., None]

    def head_weights(
        self, x: Tensor, parameters: Parameters, q: Tensor | None = None
    ) -> Tensor:
        """Weight of every head at every position, Float[batch pos head].

        Args:
            x: normed residual.
            parameters: W_r and the like.
            q: Float[batch head pos d_head], for router "norm".
        """
        if self.router == "norm":
            assert q is not None
            size = q.norm(dim=-1).transpose(1, 2)[..., self.shared :]
            g = (size / (size.std(-1, correction=0, keepdim=True) + 1e-6)).softmax(-1)
            kept = self._kept(g).to(g.dtype)
            routed = kept + g - g.detach()  # straight through
            return torch.cat([x.new_ones(*x.shape[:2], self.shared), routed], dim=-1)
        g = self.routing(x, parameters)
        kept = g * self._kept(self.ranking(x, parameters))
        routed = self.top * kept / (kept.sum(-1, keepdim=True) + 1e-9)
        if not self.shared:
            return routed
        alike = x.new_ones(*x.shape[:2], 1)
        if self.shared > 1:
            alike = self.shared * (x @ parameters["W_s"]).softmax(-1)
        b = 2 * (x @ parameters["W_0"]).softmax(-1)
        return torch.cat([b[..., :1] * alike, b[..., 1:] * routed], dim=-1)

    def routing(self, x: Tensor, parameters: Parameters) -> Tensor:
        """g: softmax over the routed heads, Float[batch pos routed]."""
        return (x @ parameters["W_r"]).softmax(-1)

    def ranking(self, x: Tensor, parameters: Parameters) -> Tensor:
        """What heads are chosen by: g, or the last rows of balanced prefixes."""
        logits = x @ parameters["W_r"]
        if self.router == "softmax":
            return logits.softmax(-1)
        # Balanced alone, the first token likes all heads alike: its g decides.
        return balanced_so_far(logits, self.n_it) + 1e-6 * logits.softmax(-1)

    def loss(self, x: Tensor, parameters: Parameters) -> Tensor:
        """Load balance, times its weight."""
        return self.balance * self.load_balance(x, parameters)

    def load_balance(self, x: Tensor, parameters: Parameters) -> Tensor:
        """r^2 mean_e(mean_t g_e mean_t kept_e): `top` where all heads are alike."""
        g = self.routing(x, parameters)
        kept = self._kept(self.ranking(x, parameters)).to(g.dtype)
        shares = g.mean((0, 1)) * kept.mean((0, 1))
        return g.shape[-1] ** 2 * shares.mean()

    def _kept(self, ranking: Tensor) -> Tensor:
        best = ranking.topk(self.top, dim=-1).indices
        return torch.zeros_like(ranking, dtype=torch.bool).scatter(-1, best, True)


@torch.no_grad()
def balanced_so_far(logits: Tensor, n_it: int) -> Tensor:
    """Row t: token t's row of the plan of tokens 0 to t, balanced over heads.

    Args:
        logits: Float[batch pos head].
        n_it: half-steps, rows first; each head's column goes to tokens / heads.

    Returns:
        Float[batch pos head], the plan's rows, not renormalised.
    """
    n, n_heads = logits.shape[1:]
    z = exact(logits)[:, None].expand(-1, n, -1, -1)  # batch prefix token head
    inside = torch.ones(n, n, dtype=torch.bool, device=z.device).tril()
    z = z.masked_fill(~inside[None, :, :, None], -torch.inf)
    size = torch.arange(1, n + 1, device=z.device)
    target = (size / n_heads).log()[:, None]
    v = z.new_zeros(z.shape[0], n, n_heads)
    u = z.new_zeros(z.shape[0], n, n)
    for step in range(n_it):
        if step % 2 == 0:
            u = -torch.logsumexp(exact(logits)[:, None] + v[:, :, None], dim=-1)
        else:
            v = target - torch.logsumexp(z + u[..., None], dim=-2)
    at = torch.arange(n, device=z.device)
    return (exact(logits) + u[:, at, at][..., None] + v).exp()
