"""Sink scores: how much attention a head pays to one position.

Source: Gu et al. 2024 (arXiv:2410.10781), column importance and sink rate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
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
from mechsink.sinks.shares import as_shares, row_sums
from toy_tasks.checks import checked


def sink_score(
    pattern: Float[Tensor, "batch head query key"], position: int = 0
) -> Float[Tensor, "batch head"]:
    """Attention a head pays to one position, averaged over later queries.

    Mean of pattern[..., i, position] over i >= position; the causal mask
    fixes earlier queries at zero, so they are left out.

    Args:
        pattern: attention after softmax; each query row sums to 1.
        position: candidate sink, 0 for BOS.

    Returns:
        Share of attention, 0 to 1, no unit. A uniform causal head scores
        H(T)/T at position 0 (H harmonic, T tokens): compare with that, not 0.

    Raises:
        ValueError: `position` lies outside the prompt.

    Source: importance score of Gu et al. 2024 (arXiv:2410.10781).

    Examples:
        >>> even = torch.ones(4, 4).tril() / torch.tensor([1, 2, 3, 4])[:, None]
        >>> ms.sink_score(even[None, None])  # (1 + 1/2 + 1/3 + 1/4) / 4
        tensor([[0.5208]])
    """
    n_pos = pattern.shape[-1]
    if not 0 <= position < n_pos:
        raise ValueError(
            f"sink_score: position={position} is outside this {n_pos}-token prompt. "
            f"Allowed: 0 to {n_pos - 1}, counted from the start; for the last "
            f"token pass position={n_pos - 1}."
        )
    return pattern[:, :, position:, position].mean(dim=-1)


@dataclass(frozen=True, eq=False)
class SinkScores(Result):
    """Sink score of every head and prompt.

    `table`: batch (prompt), position, layer, head, score, raw. `score` is a share
    of attention, 0 to 1; a uniform causal head scores H(T)/T at position 0. `raw`
    differs only where attention is no softmax: there it is the mean weight as
    used, and `score` that of |A| / (sum of |A| over the row + 1e-8). What a learned
    sink logit takes from a softmax counts for no position.

    Examples:
        >>> model = ms.planted("backcopy").model
        >>> tokens = model.to_tokens("b c d f g h b c d")
        >>> found = ms.sink_scores(model, tokens, positions=[0, 1])
        >>> found.rates(eps=0.3).to_dict()
        {0: 0.6666666666666666, 1: 0.0}
        >>> ax = found.plot(position=0)
    """

    @checked
    def rate(self, eps: float = 0.3, position: int | None = None) -> float:
        """Share of heads, over all layers and prompts, that score above `eps`.

        Between 0 and 1. The indicator is taken before averaging over prompts.
        `position` may be left out if one alone was measured; `rates` has all.

        Args:
            eps: score above which a head counts.
            position: whose rate; default: the only one.

        Raises:
            ValueError: a position that was not measured, or none given of several.
        """
        if not 0 <= eps <= 1:
            raise ValueError(
                f"SinkScores.rate: eps={eps} is no share of attention. Allowed: 0 to "
                "1; 0.3 is usual."
            )
        here = self.table[self.table["position"] == self._position(position)]
        return float(np.mean(here["score"] > eps))

    def rates(self, eps: float = 0.3) -> pd.Series:
        """Sink rate at each measured position, indexed by position.

        Args:
            eps: score above which a head counts.
        """
        rates = {p: self.rate(eps, p) for p in self.table["position"].unique().tolist()}
        return pd.Series(rates, name="rate").rename_axis("position")

    def plot(self, ax: Axes | None = None, *, position: int | None = None) -> Axes:
        """Heat map, layer by head, mean over prompts, on `ax` or a new figure.

        Args:
            ax: where to draw.
            position: which, where several were measured.
        """
        position = self._position(position)
        here = self.table[self.table["position"] == position]
        grid = here.pivot_table(index="head", columns="layer", values="score")
        label = f"attention to position {position}"
        with plotting.theme():
            ax = ax or plotting.new_axes(height=0.62 * plotting.WIDTH)
            return plotting.heat_map(ax, grid, label, limits=(0.0, 1.0))

    def _position(self, position: int | None) -> int:
        measured = sorted(self.table["position"].unique().tolist())
        if position is None and len(measured) == 1:
            return measured[0]
        if position is None or position not in measured:
            raise ValueError(
                f"SinkScores: position={position}, but the scores are of positions "
                f"{measured}. Pass one of them, such as position={measured[0]}."
            )
        return position


@dataclass(frozen=True)
class SinkScoreMeter(Meter):
    """Sink scores of `positions`, for `measure`."""

    positions: tuple[int, ...] = (0,)
    reads = frozenset({"attention"})

    def check(self, batches: Sequence[Batch]) -> None:
        """Positions must lie inside every prompt."""
        check_positions(batches, self.positions)

    def attention(self, batch: Batch, layer: LayerAttention) -> Mapping[str, Rows]:
        """One row a prompt, position and head."""
        used = share = at_least_float32(layer.columns(self.positions))
        if not layer.is_softmax:
            share = as_shares(used, row_sums(layer, batch.n_pos))
        axes = {
            "batch": batch.prompts,
            "position": self.positions,
            "layer": [layer.layer],
            "head": range(used.shape[1]),
        }
        return {"table": rows(axes, score=self._mean(share), raw=self._mean(used))}

    def result(self, tables: Mapping[str, pd.DataFrame], meta: dict[str, Any]) -> Any:
        """The scores as a result."""
        return SinkScores(tables["table"], meta)

    def _mean(
        self, columns: Float[Tensor, "batch head query column"]
    ) -> Float[Tensor, "batch column head"]:
        """Mean over the queries from each column's position on."""
        means = [
            columns[:, :, position:, number].mean(dim=-1)
            for number, position in enumerate(self.positions)
        ]
        return torch.stack(means, dim=1)


@any_model
@checked
def sink_scores(
    model: Model,
    tokens: Tensor | Sequence[Tensor],
    positions: int | Sequence[int] = 0,
) -> SinkScores:
    """Sink score of every head at some positions, in memory linear in length.

    Args:
        model: any model.
        tokens: Int[batch pos], or a list of such tensors (see `measure`).
        positions: candidate sinks, 0 for the first token.

    Returns:
        `SinkScores`, one row a prompt, position, layer and head.

    Raises:
        ValueError: no tokens, or a position outside a prompt.

    Source: Gu et al. 2024 (arXiv:2410.10781); their sink rate is `.rate(eps=0.3)`
    on 64-token texts.

    Examples:
        >>> model = ms.planted("backcopy").model
        >>> found = ms.sink_scores(model, model.to_tokens("b c d f g h b c d"))
        >>> found.table.score.round(2).tolist(), round(found.rate(), 2)
        ([0.99, 0.29, 0.31], 0.67)
    """
    return measure(model, tokens, [SinkScoreMeter(as_positions(positions))])[0]
