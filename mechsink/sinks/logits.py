"""Sink logits: how far the sink's score stands above the other keys', in nats.

Source: Guo et al. 2024 (arXiv:2410.13835), Delta of the Bigram-Backcopy task.
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
    as_positions,
    at_least_float32,
    check_positions,
    measure,
    rows,
)


@dataclass(frozen=True, eq=False)
class SinkLogits(Result):
    """Pre-softmax excess score of a position, per head and prompt.

    `table`: batch (prompt), position, layer, head, logit, queries. `logit` is the
    score of the position minus the mean score of the query's other visible keys,
    averaged over `queries` queries, in nats: 0 is no preference; NaN if no chosen
    query sees both the position and another key, or attention is no softmax.

    Examples:
        >>> model = ms.planted("backcopy").model
        >>> found = ms.sink_logits(model, model.to_tokens("b c d f g"))
        >>> list(found.table)
        ['batch', 'position', 'layer', 'head', 'logit', 'queries']
        >>> ax = found.plot()
    """

    def plot(self, ax: Axes | None = None, *, position: int | None = None) -> Axes:
        """Heat map, layer by head, mean over prompts, on `ax` or a new figure.

        Args:
            ax: where to draw.
            position: which, where several were measured.
        """
        measured = self.table["position"].unique().tolist()
        position = measured[0] if position is None else position
        here = self.table[self.table["position"] == position]
        grid = here.pivot_table(index="head", columns="layer", values="logit")
        label = f"excess score of\nposition {position} (nats)"
        with plotting.theme():
            ax = ax or plotting.new_axes(height=0.62 * plotting.WIDTH)
            return plotting.heat_map(ax, grid, label, diverging=True)


@dataclass(frozen=True, eq=False)
class SinkLogitMeter(Meter):
    """Sink logits of `positions` over some queries, for `measure`.

    `queries`: for each tensor of prompts the chosen queries, Bool[batch pos];
    None for all.
    """

    positions: tuple[int, ...] = (0,)
    queries: tuple[Bool[Tensor, "_ _"], ...] | None = None
    reads = frozenset({"attention"})

    def check(self, batches: Sequence[Batch]) -> None:
        """Positions inside every prompt; masks of the tokens' shapes."""
        check_positions(batches, self.positions)
        if self.queries is None:
            return
        given = [list(mask.shape) for mask in self.queries]
        wanted = [list(batch.tokens.shape) for batch in batches]
        if given != wanted:
            raise ValueError(
                f"sink_logits: queries have shapes {given}, tokens {wanted}. "
                "Give one Bool[batch pos] of the tokens' shape for each tensor of "
                "tokens, such as `~task.is_trigger(tokens)`."
            )

    def attention(self, batch: Batch, layer: LayerAttention) -> Mapping[str, Rows]:
        """One row a prompt, position and head."""
        excess = torch.stack(
            [at_least_float32(layer.excess_score(key)) for key in self.positions], dim=1
        )  # batch position head query
        chosen = ~excess.isnan()
        if not layer.is_softmax:
            chosen = torch.zeros_like(chosen)  # no softmax, no nats
        if self.queries is not None:
            mask = self.queries[batch.index].to(excess.device)
            chosen = chosen & mask[:, None, None, :]
        n = chosen.sum(dim=-1)
        # 0/0 is NaN: nothing was measured
        mean = torch.where(chosen, excess, 0).sum(dim=-1) / n
        axes = {
            "batch": batch.prompts,
            "position": self.positions,
            "layer": [layer.layer],
            "head": range(excess.shape[2]),
        }
        return {"table": rows(axes, logit=mean, queries=n)}

    def result(self, tables: Mapping[str, pd.DataFrame], meta: dict[str, Any]) -> Any:
        """The sink logits as a result."""
        return SinkLogits(tables["table"], meta)


@any_model
def sink_logits(
    model: Model,
    tokens: Tensor | Sequence[Tensor],
    positions: int | Sequence[int] = 0,
    queries: Tensor | Sequence[Tensor] | None = None,
) -> SinkLogits:
    """Excess pre-softmax score of some positions over a query's other keys.

    For query i and key p: s(i, p) minus the mean of s(i, j) over the other
    visible keys j, averaged over the chosen queries that see p and another key.

    Args:
        model: any model.
        tokens: Int[batch pos], or a list of such tensors (see `measure`).
        positions: candidate sinks, 0 for the first token.
        queries: which queries count, Bool[batch pos] like `tokens`, such as the
            non-trigger queries of a Bigram-Backcopy task; None for all.

    Returns:
        `SinkLogits`, one row a prompt, position, layer and head.

    Raises:
        ValueError: no tokens, a position outside a prompt, a mask of another shape.

    Source: Delta of Guo et al. 2024 (arXiv:2410.13835).

    Examples:
        >>> model = ms.planted("backcopy").model
        >>> found = ms.sink_logits(model, model.to_tokens("b c d f g"))
        >>> found.table.query("head == 0").logit.round(1).tolist()
        [9.7]
    """
    masks = (queries,) if isinstance(queries, Tensor) else queries
    meter = SinkLogitMeter(
        as_positions(positions), None if masks is None else tuple(masks)
    )
    return measure(model, tokens, [meter])[0]
