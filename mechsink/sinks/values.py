"""Value norms: what a position's value writes if a head attends to it alone.

A value drain is a sink whose value norm is far below the other tokens'.
Source: Guo et al. 2024 (arXiv:2410.13835).
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


def value_norm(
    v: Float[Tensor, "batch kv_head pos d_head"],
    w_o: Float[Tensor, "head d_head d_model"],
) -> Float[Tensor, "batch head pos"]:
    """Norm of W_O^h v_j, the write of head h if it attends to position j alone.

    With grouped-query attention each query head h has its own W_O^h and reads the
    values of its group: v of key-value head h // (n_heads / n_kv_heads). In units
    of the residual stream.
    """
    group = w_o.shape[0] // v.shape[1]
    v, w_o = at_least_float32(v), at_least_float32(w_o).to(v.device)
    # head by head: [batch pos d_model] at a time, not that times heads
    norms = [(v[:, h // group] @ w).norm(dim=-1) for h, w in enumerate(w_o)]
    return torch.stack(norms, dim=1)


@dataclass(frozen=True, eq=False)
class ValueNorms(Result):
    """Norm of a position's value through W_O, beside the other tokens' mean.

    `table`: batch (prompt), position, layer, head, norm, others, ratio. `norm` is
    ||W_O^h v|| at the position, `others` its mean over the prompt's other tokens
    (NaN in a one-token prompt), both in units of the residual stream; `ratio` is
    norm / others, 1 for an ordinary token, far below 1 for a value drain.

    Examples:
        >>> model = ms.planted("backcopy").model
        >>> found = ms.value_norms(model, model.to_tokens("b c d f g"))
        >>> list(found.table)
        ['batch', 'position', 'layer', 'head', 'norm', 'others', 'ratio']
    """

    def plot(self, ax: Axes | None = None, *, position: int | None = None) -> Axes:
        """Heat map of the mean ratio, layer by head, in powers of two.

        Args:
            ax: where to draw; default: a new figure.
            position: which, where several were measured.
        """
        measured = self.table["position"].unique().tolist()
        position = measured[0] if position is None else position
        here = self.table[self.table["position"] == position]
        grid = here.pivot_table(index="head", columns="layer", values="ratio")
        with np.errstate(divide="ignore"):  # a value of exactly zero shows as grey
            log = pd.DataFrame(np.log2(grid), index=grid.index, columns=grid.columns)
        label = f"value norm of position {position}\n/ others (log2)"
        with plotting.theme():
            ax = ax or plotting.new_axes(height=0.62 * plotting.WIDTH)
            return plotting.heat_map(ax, log, label, diverging=True)


@dataclass(frozen=True)
class ValueNormMeter(Meter):
    """Value norms of `positions`, for `measure`."""

    positions: tuple[int, ...] = (0,)
    reads = frozenset({"attention"})

    def check(self, batches: Sequence[Batch]) -> None:
        """Positions must lie inside every prompt."""
        check_positions(batches, self.positions)

    def attention(self, batch: Batch, layer: LayerAttention) -> Mapping[str, Rows]:
        """One row a prompt, position and head."""
        norms = value_norm(layer.v, batch.model.w_o(layer.layer))
        own = norms[:, :, list(self.positions)].transpose(1, 2)
        everyone = norms.sum(dim=-1)[:, None]
        n_others = batch.n_pos - 1
        others = (everyone - own) / n_others if n_others else own * torch.nan
        axes = {
            "batch": batch.prompts,
            "position": self.positions,
            "layer": [layer.layer],
            "head": range(norms.shape[1]),
        }
        return {"table": rows(axes, norm=own, others=others, ratio=own / others)}

    def result(self, tables: Mapping[str, pd.DataFrame], meta: dict[str, Any]) -> Any:
        """The value norms as a result."""
        return ValueNorms(tables["table"], meta)


@any_model
def value_norms(
    model: Model,
    tokens: Tensor | Sequence[Tensor],
    positions: int | Sequence[int] = 0,
) -> ValueNorms:
    """||W_O^h v|| of some positions against the other tokens, per layer and head.

    Args:
        model: any model.
        tokens: Int[batch pos], or a list of such tensors (see `measure`).
        positions: candidate sinks, 0 for the first token.

    Returns:
        `ValueNorms`, one row a prompt, position, layer and head.

    Raises:
        ValueError: no tokens, or a position outside a prompt.

    Source: value-state drains, Guo et al. 2024 (arXiv:2410.13835).

    Examples:
        >>> model = ms.planted("backcopy").model
        >>> found = ms.value_norms(model, model.to_tokens("b c d f g"))
        >>> found.table.query("head == 0").ratio.tolist()  # a drain, by construction
        [0.0]
    """
    return measure(model, tokens, [ValueNormMeter(as_positions(positions))])[0]
