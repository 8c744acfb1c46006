"""Memory: which keys and values exist.

The tokens always do. Slots may stand beside them: learned keys and values, or
summaries of earlier tokens.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from toy_tasks.operators.parts import Heads, Init, Parameters, Part, Sizes, at_least_1


@dataclass(frozen=True, eq=False)
class Slots:
    """Keys and values beside those of the tokens.

    `spread`, where a slot is a mean of tokens, says with which weights: attention to
    it then counts as attention to them.
    """

    k: Float[Tensor, "#batch head slot d_head"]
    v: Float[Tensor, "#batch head slot d_head"]
    seen: Bool[Tensor, "pos slot"]
    spread: Float[Tensor, "slot pos"] | None = None


@dataclass(frozen=True)
class Memory(Part):
    """Base of the memories."""

    def slots(self, heads: Heads, parameters: Parameters) -> Slots | None:
        """Slots beside the tokens, or None."""
        return None


@dataclass(frozen=True)
class Tokens(Memory):
    """The tokens alone."""


@dataclass(frozen=True)
class KeyBias(Memory):
    """One learned key per head that every query sees, with a learned value or zero.

    Source: KV bias and K bias of Gu et al. 2024 (arXiv:2410.10781); with a value it
    is the explicit attention bias of Sun et al. 2024 (arXiv:2402.17762). Both begin
    from N(0, .02).
    """

    value: bool = True  # False: the value stays zero
    shared: bool = False  # one for all heads

    def parameters(self, sizes: Sizes) -> dict[str, Init]:
        """k, and v where it is learned: [head, 1, d_head]."""
        shape = (1 if self.shared else sizes.n_heads, 1, sizes.d_head)
        return {"k": Init(shape, 0.02)} | (
            {"v": Init(shape, 0.02)} if self.value else {}
        )

    def slots(self, heads: Heads, parameters: Parameters) -> Slots:
        """One slot, always seen."""
        k = parameters["k"].expand(heads.q.shape[1], -1, -1)[None]
        v = parameters["v"].expand_as(k[0])[None] if self.value else torch.zeros_like(k)
        return Slots(k, v, _always(heads, 1))


@dataclass(frozen=True)
class SinkToken(Memory):
    """Learned tokens that every query sees, read through the layer's own W_K and W_V.

    After the sink token of Gu et al. 2024 and of StreamingLLM (arXiv:2309.17453):
    theirs stands in the input and changes from layer to layer; this one is a normed
    residual that the layer learns for itself. In one layer the two are the same.
    """

    n: int = 1

    def __post_init__(self) -> None:
        at_least_1(self, n=self.n)

    def parameters(self, sizes: Sizes) -> dict[str, Init]:
        """The normed residual of the slots, [slot, d_model]."""
        return {"x": Init((self.n, sizes.d_model), 0.02)}

    def slots(self, heads: Heads, parameters: Parameters) -> Slots:
        """Keys and values of the learned residuals."""
        x = parameters["x"]
        repeat = heads.q.shape[1] // parameters["W_K"].shape[0]
        k, v = (
            (x @ parameters[name]).repeat_interleave(repeat, dim=0)[None]
            for name in ("W_K", "W_V")
        )
        return Slots(k, v, _always(heads, self.n))


@dataclass(frozen=True)
class Pooled(Memory):
    """Coarse keys: each the mean of `block` tokens, seen once they left the window.

    With the carrier `Window(window)` a query sees near tokens one by one and far
    ones block by block, each token at most once. Blocks that the window's edge cuts
    are not seen until the window has passed.

    Source: after TransNeXt (arXiv:2311.17132), made causal and one-dimensional.
    """

    block: int = 8
    window: int = 16

    def __post_init__(self) -> None:
        at_least_1(self, block=self.block, window=self.window)

    def slots(self, heads: Heads, parameters: Parameters) -> Slots | None:
        """One slot a whole block; None where the prompt has none."""
        n_blocks = heads.n_pos // self.block
        if n_blocks == 0:
            return None
        length = n_blocks * self.block
        k, v = (
            t[:, :, :length].unflatten(2, (n_blocks, self.block)).mean(3)
            for t in (heads.k, heads.v)
        )
        query = torch.arange(heads.n_pos, device=k.device)[:, None]
        end = (torch.arange(n_blocks, device=k.device) + 1) * self.block
        spread = torch.zeros(n_blocks, heads.n_pos, dtype=k.dtype, device=k.device)
        for block in range(n_blocks):
            start = block * self.block
            spread[block, start : start + self.block] = 1 / self.block
        return Slots(k, v, end <= query - self.window + 1, spread)


def _always(heads: Heads, n: int) -> Tensor:
    return torch.ones(heads.n_pos, n, dtype=torch.bool, device=heads.x.device)
