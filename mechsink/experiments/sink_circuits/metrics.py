"""What a sink circuit may explain: the attention of several heads, or a norm.

May import: rooms up to metrics.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechsink.metrics import at_least_float32
from mechsink.run import Run
from mechsink.sites import Site


@dataclass(frozen=True, repr=False)
class SinkAttentionOf:
    """Attention of some heads to one position, averaged over heads and later queries.

    Between 0 and 1: the mean over `heads`, (layer, head), of what
    `sink_attention(layer=, head=, position=)` gives. `uniform` is what heads that
    look at all tokens alike would score.

    Raises:
        ValueError: no heads, or one given twice.
    """

    heads: tuple[tuple[int, int], ...]
    position: int = 0
    logits_read = "none"

    def __post_init__(self) -> None:
        if not self.heads or len(set(self.heads)) < len(self.heads):
            raise ValueError(
                f"sink_attention_of: heads={list(self.heads)}. Give at least one "
                "(layer, head), each once."
            )

    def __repr__(self) -> str:
        shown = ", ".join(f"L{layer}H{head}" for layer, head in self.heads[:4])
        rest = f" and {len(self.heads) - 4} more" if len(self.heads) > 4 else ""
        return f"sink_attention_of({shown}{rest}, position={self.position})"

    @property
    def reads(self) -> frozenset[Site]:
        """The heads' patterns."""
        return frozenset(
            Site("pattern", layer, head=head) for layer, head in self.heads
        )

    def uniform(self, n_pos: int) -> float:
        """Score of heads with uniform causal attention on `n_pos` tokens."""
        later = range(self.position, n_pos)
        return sum(1 / (query + 1) for query in later) / len(later)

    def by_head(self, run: Run) -> Float[Tensor, "prompt head"]:
        """One score a prompt and head, in the order of `heads`."""
        at = self.position
        columns = [
            at_least_float32(run.cache[site][:, at:, at]).mean(-1)
            for site in (Site("pattern", layer, head=h) for layer, h in self.heads)
        ]
        return torch.stack(columns, dim=-1)

    def __call__(self, run: Run, prompts: Any = None) -> Float[Tensor, " prompt"]:
        """One score a prompt."""
        return self.by_head(run).mean(-1)


@dataclass(frozen=True, repr=False)
class ResidNorm:
    """Norm of the residual stream at one position, in units of the stream.

    Layer l < n_layers is the input of block l (resid_pre), as in `residual_norms`;
    with `after` it is the output of block `layer` (resid_post).
    """

    layer: int
    position: int = 0
    after: bool = False
    logits_read = "none"

    def __repr__(self) -> str:
        after = ", after=True" if self.after else ""
        return f"resid_norm(layer={self.layer}, position={self.position}{after})"

    @property
    def site(self) -> Site:
        """Where the norm is taken."""
        return Site("resid_post" if self.after else "resid_pre", self.layer)

    @property
    def reads(self) -> frozenset[Site]:
        """The stream."""
        return frozenset({self.site})

    def __call__(self, run: Run, prompts: Any = None) -> Float[Tensor, " prompt"]:
        """One norm a prompt."""
        here = run.cache[self.site][:, self.position]
        return at_least_float32(here).norm(dim=-1)  # squares overflow in float16


def sink_attention_of(
    heads: list[tuple[int, int]] | tuple[tuple[int, int], ...], *, position: int = 0
) -> SinkAttentionOf:
    """The metric "how much of a sink is this position for these heads?".

    Args:
        heads: (layer, head), each once.
        position: of the sink, 0 for the first token.

    Raises:
        ValueError: no heads, or one given twice.
    """
    return SinkAttentionOf(tuple((int(a), int(b)) for a, b in heads), position)


def resid_norm(layer: int, *, position: int = 0, after: bool = False) -> ResidNorm:
    """The metric "how large is the residual stream at this position?".

    Args:
        layer: block; its input, or its output with `after`.
        position: which token, 0 for the first.
        after: take the block's output.
    """
    return ResidNorm(layer, position, after)
