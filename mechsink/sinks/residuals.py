"""Residual norms by layer: does one position stand out, and where?

Source: residual-state peaks, Guo et al. 2024 (arXiv:2410.13835).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from mechsink import plotting
from mechsink.models.any_model import any_model
from mechsink.plotting import Axes
from mechsink.results import Result
from mechsink.run import Model
from mechsink.sinks.measure import Batch, Meter, Rows, at_least_float32, measure, rows


@dataclass(frozen=True, eq=False)
class ResidualNorms(Result):
    """Norm of the residual stream at every layer and position.

    `table`: batch (prompt), layer, pos, norm. Layer l < n_layers is the input of
    block l (resid_pre), layer n_layers the output of the last block, before the
    final norm. Norms are in units of the residual stream.

    Examples:
        >>> model = ms.planted("backcopy").model
        >>> found = ms.residual_norms(model, model.to_tokens("b c d"))
        >>> list(found.summary())
        ['layer', 'norm', 'others', 'ratio', 'low', 'median', 'high']
        >>> ax = found.plot()
    """

    def summary(self, position: int = 0) -> pd.DataFrame:
        """One position against the others, by layer, over all prompts.

        Columns layer, norm (mean over prompts), others (mean over prompts of the
        mean over a prompt's other tokens), low, median, high (10, 50 and 90 % of
        all other tokens), ratio (norm / others of each prompt, then the mean).

        Args:
            position: the one that is compared, 0 for the first token.

        Raises:
            ValueError: no prompt has such a position.
        """
        if position not in set(self.table["pos"]):
            raise ValueError(
                f"ResidualNorms.summary: position={position} is in no prompt. Allowed: "
                f"0 to {self.table['pos'].max()}, counted from the start."
            )
        own = self.table[self.table["pos"] == position]
        rest = self.table[self.table["pos"] != position]
        others = rest.groupby(["layer", "batch"]).agg(others=("norm", "mean"))
        pairs = own.merge(others.reset_index(), on=["layer", "batch"], how="left")
        pairs = pairs.assign(ratio=pairs["norm"] / pairs["others"])
        means = pairs.groupby("layer").agg(
            norm=("norm", "mean"), others=("others", "mean"), ratio=("ratio", "mean")
        )
        spread = rest.groupby("layer").agg(
            low=("norm", lambda norm: norm.quantile(0.1)),
            median=("norm", "median"),
            high=("norm", lambda norm: norm.quantile(0.9)),
        )
        return pd.concat([means, spread], axis=1).reset_index()

    def plot(self, ax: Axes | None = None, *, position: int = 0) -> Axes:
        """Norm of `position` and of the other tokens by layer, log scale.

        Args:
            ax: where to draw; default: a new figure.
        """
        shown = self.summary(position)
        with plotting.theme():
            ax = ax or plotting.new_axes()
            sink, other = plotting.colours(2)
            ax.fill_between(
                shown["layer"],
                shown["low"],
                shown["high"],
                color=other,
                alpha=0.25,
                linewidth=0,
                label="others, 10 to 90 %",
            )
            ax.plot(shown["layer"], shown["others"], color=other, label="others, mean")
            label = f"position {position}"
            ax.plot(
                shown["layer"], shown["norm"], color=sink, marker="o", ms=2, label=label
            )
            ax.set(xlabel="layer", ylabel="residual norm", yscale="log")
            plotting.whole_numbers(ax.xaxis)
            ax.legend()
        return ax


@dataclass(frozen=True)
class ResidualNormMeter(Meter):
    """Residual norms, for `measure`."""

    reads = frozenset({"residual"})

    def residual(
        self, batch: Batch, layer: int, stream: Float[Tensor, "batch pos d_model"]
    ) -> Mapping[str, Rows]:
        """One row a prompt and position."""
        axes = {"batch": batch.prompts, "layer": [layer], "pos": range(batch.n_pos)}
        norm = at_least_float32(stream).norm(dim=-1)
        return {"table": rows(axes, norm=norm)}

    def result(self, tables: Mapping[str, pd.DataFrame], meta: dict[str, Any]) -> Any:
        """The residual norms as a result."""
        return ResidualNorms(tables["table"], meta)


@any_model
def residual_norms(model: Model, tokens: Tensor | Sequence[Tensor]) -> ResidualNorms:
    """Norm of the residual stream at every layer, 0 to n_layers, and position.

    Args:
        model: any model.
        tokens: Int[batch pos], or a list of such tensors (see `measure`).

    Returns:
        `ResidualNorms`, one row a prompt, layer and position.

    Raises:
        ValueError: no tokens.

    Source: residual-state peaks, Guo et al. 2024 (arXiv:2410.13835).

    Examples:
        >>> model = ms.planted("backcopy").model
        >>> found = ms.residual_norms(model, model.to_tokens("b c d"))
        >>> found.summary().ratio.round(2).tolist()
        [1.0, 1.21]
    """
    return measure(model, tokens, [ResidualNormMeter()])[0]
