"""Attention split by what the query is, such as trigger or no trigger.

Source: Guo et al. 2024 (arXiv:2410.13835), active and dormant queries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from mechsink import plotting
from mechsink.models.any_model import any_model
from mechsink.plotting import Axes
from mechsink.results import Result
from mechsink.run import LayerAttention, Model
from mechsink.sinks.measure import (
    Batch,
    Meter,
    Rows,
    at_least_float32,
    check_positions,
    measure,
    rows,
)
from mechsink.sinks.shares import as_shares

BLOCK = 256  # keys read at a time
_READINGS = {
    "sink": "attention to the sink",
    "share": "share of |A| at the sink",
    "previous": "attention to the previous token",
    "row_sum": "attention to all tokens",
}


@dataclass(frozen=True, eq=False)
class QueryAttention(Result):
    """Attention of groups of queries to the sink and to the token before them.

    `table`: batch (prompt), group, layer, head, sink, share, previous, row_sum,
    queries. `sink` is the mean weight on the sink position over the group's queries,
    `previous` that on the token before the query (queries at position 0 count as 0),
    both as the model uses them; NaN where a prompt has no such query. Only where
    attention is no softmax of the tokens do the others say more: `share` is the mean
    of |A| / sum of |A| at the sink, `row_sum` that of the weights on all tokens, which
    sink slots and sink logits lower below 1.

    Examples:
        >>> model = ms.planted("backcopy").model
        >>> tokens = model.to_tokens("b c a d e f")
        >>> triggers = (tokens == 0) | (tokens == 4)  # a and e
        >>> found = ms.query_attention(model, tokens, {"trigger": triggers})
        >>> list(found.table)
        ['batch', 'group', 'layer', 'head', 'sink', 'share', 'previous', 'row_sum',
        'queries']
    """

    def plot(self, ax: Axes | None = None, *, column: str = "sink") -> Axes:
        """A column by layer, a line a group: mean over heads and prompts.

        The band is the range of heads. `column`: sink, share, previous or row_sum.

        Raises:
            ValueError: another column.

        Args:
            ax: where to draw; a new figure by default.
        """
        known = ("sink", "share", "previous", "row_sum")
        if column not in known:
            raise ValueError(
                f"QueryAttention.plot: column={column!r}. Allowed: {', '.join(known)}."
            )
        groups = list(dict.fromkeys(self.table["group"]))
        with plotting.theme():
            ax = ax or plotting.new_axes()
            for name, colour in zip(groups, plotting.colours(len(groups)), strict=True):
                here: Any = self.table[self.table["group"] == name]
                heads = here.groupby(["layer", "head"])[column].mean().unstack()
                layers = heads.index
                ax.fill_between(layers, heads.min(axis=1), heads.max(axis=1),
                                color=colour, alpha=0.2, lw=0)  # fmt: skip
                ax.plot(layers, heads.mean(axis=1), "o-", ms=3, color=colour,
                        label=plotting.literal(name))  # fmt: skip
            ax.set(xlabel="layer", ylabel=_READINGS[column], ylim=(-0.03, None))
            plotting.whole_numbers(ax.xaxis)
            ax.legend()
        return ax


@dataclass(frozen=True, eq=False)
class QueryAttentionMeter(Meter):
    """Attention by group of queries, for `measure`.

    `groups`: name to one Bool[batch pos] for each tensor of prompts.
    """

    groups: Mapping[str, Sequence[Bool[Tensor, "_ _"]]]
    position: int = 0
    reads = frozenset({"attention"})

    def check(self, batches: Sequence[Batch]) -> None:
        """The position inside every prompt; masks of the tokens' shapes."""
        check_positions(batches, [self.position])
        wanted = [list(batch.tokens.shape) for batch in batches]
        for name, masks in self.groups.items():
            given = [list(mask.shape) for mask in masks]
            if given != wanted:
                raise ValueError(
                    f"query_attention: masks of {name!r} have shapes {given}, tokens "
                    f"{wanted}. Give one Bool[batch pos] of the tokens' shape for each "
                    "tensor of tokens."
                )

    def attention(self, batch: Batch, layer: LayerAttention) -> Mapping[str, Rows]:
        """One row a prompt, group and head."""
        sink = at_least_float32(layer.columns([self.position]))[..., 0]
        previous, total, sizes = (torch.zeros_like(sink) for _ in range(3))
        for start in range(0, batch.n_pos, BLOCK):
            stop = min(start + BLOCK, batch.n_pos)
            block = at_least_float32(layer.columns(range(start, stop)))
            total += block.sum(dim=-1)
            sizes += block.abs().sum(dim=-1)
            after = previous[:, :, start + 1 : stop + 1]
            after.copy_(block[:, :, start + 1 : stop + 1].diagonal(dim1=2, dim2=3))
        share = sink if layer.is_softmax else as_shares(sink[..., None], sizes)[..., 0]
        masks = [masks[batch.index].to(sink.device) for masks in self.groups.values()]
        chosen = torch.stack(masks, dim=1)[:, :, None]  # batch group 1 query
        n = chosen.sum(dim=-1)
        axes = {
            "batch": batch.prompts,
            "group": list(self.groups),
            "layer": [layer.layer],
            "head": range(sink.shape[1]),
        }
        means = {
            name: (weights[:, None] * chosen).sum(dim=-1) / n  # 0 / 0 is NaN
            for name, weights in (
                ("sink", sink),
                ("share", share),
                ("previous", previous),
                ("row_sum", total),
            )
        }
        queries = n.expand_as(means["sink"])
        return {"table": rows(axes, **means, queries=queries)}

    def result(self, tables: Mapping[str, pd.DataFrame], meta: dict[str, Any]) -> Any:
        """The attention of each group as a result."""
        return QueryAttention(tables["table"], meta)


@any_model
def query_attention(
    model: Model,
    tokens: Tensor | Sequence[Tensor],
    groups: Mapping[str, Tensor | Sequence[Tensor]],
    position: int = 0,
) -> QueryAttention:
    """Attention to the sink and to the previous token, by group of queries.

    Args:
        model: any model.
        tokens: Int[batch pos], or a list of such tensors (see `measure`).
        groups: name to which queries, Bool[batch pos] like `tokens`, such as
            {"trigger": task.is_trigger(tokens)}.
        position: the sink, 0 for the first token.

    Returns:
        `QueryAttention`, one row a prompt, group, layer and head.

    Raises:
        ValueError: no tokens, a position outside a prompt, a mask of another shape.

    Source: after Guo et al. 2024 (arXiv:2410.13835), active and dormant queries.

    Examples:
        >>> model = ms.planted("backcopy").model
        >>> tokens = model.to_tokens("b c a d e f")
        >>> triggers = (tokens == 0) | (tokens == 4)  # a and e
        >>> groups = {"trigger": triggers, "other": ~triggers}
        >>> found = ms.query_attention(model, tokens, groups).table.query("head == 0")
        >>> found[["group", "sink", "previous"]].round(2).values.tolist()
        [['trigger', 0.01, 0.97], ['other', 1.0, 0.2]]
    """
    masks = {
        name: [mask] if isinstance(mask, Tensor) else list(mask)
        for name, mask in groups.items()
    }
    return measure(model, tokens, [QueryAttentionMeter(masks, position)])[0]
