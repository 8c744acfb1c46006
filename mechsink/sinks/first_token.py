"""Intermediate sinks: later tokens whose state points along the first token's.

Source: sinks in audio-visual speech recognition, AVSR (cosine to the first token);
thresholds and layer counts are ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechsink import plotting
from mechsink.models.any_model import any_model
from mechsink.plotting import Axes
from mechsink.results import Result
from mechsink.run import Model
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
class FirstTokenCosine(Result):
    """Cosine of every token's state with the first token's, layer by layer.

    `table`: batch (prompt), layer, pos, cosine, norm; the first token itself has no
    row. Layer l < n_layers is the input of block l, layer n_layers the last output.
    `cosine` is -1 to 1, NaN where a state is zero; `norm` in units of the stream.

    Attributes:
        threshold: cosine above which a token counts as an intermediate sink.

    Examples:
        >>> model = ms.planted("backcopy").model
        >>> found = ms.first_token_cosine(model, model.to_tokens("b c d e f"))
        >>> len(found.sinks()), found.share().tolist()
        (0, [0.0, 0.0])
        >>> ax = found.plot()
    """

    threshold: float

    def sinks(self, threshold: float | None = None) -> pd.DataFrame:
        """Intermediate sinks: rows whose cosine exceeds the threshold.

        Args:
            threshold: cosine above which a token counts; default: the result's own.
        """
        least = self.threshold if threshold is None else threshold
        found: Any = self.table[self.table["cosine"] > least]
        return found.reset_index(drop=True)

    def share(self, threshold: float | None = None) -> pd.Series:
        """Share of later tokens that are intermediate sinks, by layer, 0 to 1.

        Args:
            threshold: cosine above which a token counts; default: the result's own.
        """
        least = self.threshold if threshold is None else threshold
        is_sink: Any = self.table["cosine"] > least
        return is_sink.groupby(self.table["layer"]).mean().rename("share")

    def plot(self, ax: Axes | None = None) -> Axes:
        """Median cosine of later tokens by layer, 10 to 90 %, and the largest.

        Args:
            ax: where to draw; default: a new figure.
        """
        table: Any = self.table
        by_layer = table.groupby("layer")["cosine"]
        middle, top = by_layer.median(), by_layer.max()
        with plotting.theme():
            ax = ax or plotting.new_axes()
            low, high = by_layer.quantile(0.1), by_layer.quantile(0.9)
            one, two = plotting.colours(2)
            ax.fill_between(
                middle.index,
                low,
                high,
                color=one,
                alpha=0.25,
                linewidth=0,
                label="10 to 90 %",
            )
            ax.plot(middle.index, middle, color=one, label="median")
            ax.plot(top.index, top, color=two, label="largest")
            ax.axhline(self.threshold, color="0.6", ls=":", lw=0.8)
            ax.set(xlabel="layer", ylabel="cosine with the first token")
            plotting.whole_numbers(ax.xaxis)
            ax.legend()
        return ax


@dataclass(frozen=True)
class FirstTokenCosineMeter(Meter):
    """Cosines with the token at `position`, for `measure`."""

    threshold: float = 0.9
    position: int = 0
    reads = frozenset({"residual"})

    def check(self, batches: Sequence[Batch]) -> None:
        """The first token and a later one in every prompt."""
        check_positions(batches, as_positions((self.position, self.position + 1)))

    def residual(
        self, batch: Batch, layer: int, stream: Float[Tensor, "batch pos d_model"]
    ) -> Mapping[str, Rows]:
        """One row a prompt and later token."""
        states = at_least_float32(stream)[:, self.position :]
        norm = states.norm(dim=-1)
        unit = states / norm[..., None]  # 0 / 0 is NaN: a zero state has no direction
        cosine = torch.einsum("bpd,bd->bp", unit[:, 1:], unit[:, 0])
        axes = {
            "batch": batch.prompts,
            "layer": [layer],
            "pos": range(self.position + 1, batch.n_pos),
        }
        return {"table": rows(axes, cosine=cosine, norm=norm[:, 1:])}

    def result(self, tables: Mapping[str, pd.DataFrame], meta: dict[str, Any]) -> Any:
        """The cosines as a result."""
        return FirstTokenCosine(tables["table"], meta, self.threshold)


@any_model
def first_token_cosine(
    model: Model,
    tokens: Tensor | Sequence[Tensor],
    *,
    threshold: float = 0.9,
    position: int = 0,
) -> FirstTokenCosine:
    """Cosine of later tokens' states with the first token's, at every layer.

    Args:
        model: any model.
        tokens: Int[batch pos], or a list of such tensors (see `measure`).
        threshold: cosine above which a token is an intermediate sink.
        position: where the first token stands; tokens before it are left out.

    Returns:
        A `FirstTokenCosine`, one row a prompt, layer and later token.

    Raises:
        ValueError: no tokens, no token after `position`, or a threshold that no
            cosine can pass or fail.

    Source: after AVSR sinks (cosine with the first token); `toy_tasks` has the loss
    that keeps it low, `decorrelation_loss`.

    Examples:
        >>> model = ms.planted("backcopy").model
        >>> found = ms.first_token_cosine(model, model.to_tokens("b c d e f"))
        >>> list(found.table)
        ['batch', 'layer', 'pos', 'cosine', 'norm']
    """
    if not -1 < threshold < 1:
        raise ValueError(
            f"first_token_cosine: threshold={threshold}. Allowed: above -1 and below "
            "1; default 0.9."
        )
    return measure(model, tokens, [FirstTokenCosineMeter(threshold, position)])[0]
