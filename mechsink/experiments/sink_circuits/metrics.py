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

    Args:
        heads: (layer, head), each once.
        position: of the sink, 0 for the first token.

    Raises:
        ValueError: no heads, or one given twice.

    Examples:
        >>> metric = ms.SinkAttentionOf(((0, 0), (0, 1)))
        >>> round(metric.uniform(n_pos=4), 3)  # (1 + 1/2 + 1/3 + 1/4) / 4
        0.521
        >>> sorted(map(str, metric.reads))
        ['L0H0.pattern', 'L0H1.pattern']
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
        """Score of heads with uniform causal attention on `n_pos` tokens.

        Args:
            n_pos: tokens a prompt.
        """
        later = range(self.position, n_pos)
        return sum(1 / (query + 1) for query in later) / len(later)

    def by_head(self, run: Run) -> Float[Tensor, "prompt head"]:
        """One score a prompt and head, in the order of `heads`.

        Args:
            run: a run that read the heads' patterns.
        """
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

    Args:
        layer: block.
        position: which token, 0 for the first.
        after: take the block's output.

    Examples:
        >>> case = ms.planted("backcopy")
        >>> metric = ms.ResidNorm(layer=0)
        >>> run = case.model.run(case.pairs.clean[:2], read=metric.reads)
        >>> metric(run).round(decimals=2)
        tensor([1.7300, 1.7300])
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

    Returns:
        A metric, 0 to 1; `uniform` is what heads that look at all alike score.

    Raises:
        ValueError: no heads, or one given twice.

    Source: importance score of Gu et al. 2024 (arXiv:2410.10781), mean over heads.

    Examples:
        >>> case = ms.planted("backcopy")
        >>> metric = ms.sink_attention_of([(0, 0)])
        >>> run = case.model.run(case.pairs.clean[:2], read=metric.reads)
        >>> metric(run).round(decimals=2)
        tensor([0.7500, 0.6700])
    """
    return SinkAttentionOf(tuple((int(a), int(b)) for a, b in heads), position)


def resid_norm(layer: int, *, position: int = 0, after: bool = False) -> ResidNorm:
    """The metric "how large is the residual stream at this position?".

    Args:
        layer: block; its input, or its output with `after`.
        position: which token, 0 for the first.
        after: take the block's output.

    Returns:
        A metric, 0 and more, in units of the residual stream.

    Examples:
        >>> case = ms.planted("backcopy")
        >>> metric = ms.resid_norm(0, after=True)
        >>> run = case.model.run(case.pairs.clean[:2], read=metric.reads)
        >>> metric(run).shape
        torch.Size([2])
    """
    return ResidNorm(layer, position, after)
