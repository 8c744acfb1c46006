"""Massive activations: a few entries of the residual stream, a thousandfold.

Source: Sun et al. 2024 (arXiv:2402.17762).
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
from mechsink.run import Model
from mechsink.sinks.measure import Batch, Meter, Rows, at_least_float32, measure, rows

TOP = 3


@dataclass(frozen=True, eq=False)
class MassiveActivations(Result):
    """Entries of the residual stream that pass both thresholds.

    `table`: batch (prompt), layer, pos, dim, value, ratio; no row where nothing is
    massive. `ratio` is |value| over the median of |h| of that prompt and layer.
    `layers`: batch, layer, median, rank, pos, dim, value: the three largest
    entries by |value| of every prompt and layer, massive or not.
    Layer l < n_layers is the input of block l, layer n_layers the last output.

    Examples:
        >>> model = ms.planted("backcopy").model
        >>> found = ms.massive_activations(model, model.to_tokens("b c d"))
        >>> list(found.table), list(found.layers)
        (['batch', 'layer', 'pos', 'dim', 'value', 'ratio'], ['batch', 'layer', 'rank',
        'median', 'pos', 'dim', 'value'])
    """

    layers: pd.DataFrame

    def plot(self, ax: Axes | None = None) -> Axes:
        """Three largest |value| and the median by layer, means over prompts.

        Args:
            ax: where to draw; default: a new figure.
        """
        large = self.layers.assign(value=self.layers["value"].abs())
        tops = large.pivot_table(index="layer", columns="rank", values="value")
        medians = large.pivot_table(index="layer", values="median")
        with plotting.theme():
            ax = ax or plotting.new_axes()
            *shades, low = plotting.colours(TOP + 1)
            for rank, shade in zip(tops.columns, shades, strict=False):
                ax.plot(tops.index, tops[rank], color=shade, label=f"top {rank}")
            ax.plot(medians.index, medians, color=low, ls="--", label="median")
            ax.set(xlabel="layer", ylabel="|activation|", yscale="log")
            plotting.whole_numbers(ax.xaxis)
            ax.legend(ncols=2)
        return ax


@dataclass(frozen=True)
class MassiveActivationMeter(Meter):
    """Massive activations, for `measure`; thresholds as in the function."""

    threshold: float = 100.0
    times: float = 1000.0
    reads = frozenset({"residual"})

    def residual(
        self, batch: Batch, layer: int, stream: Float[Tensor, "batch pos d_model"]
    ) -> Mapping[str, Rows]:
        """Massive entries, and the three largest of each prompt."""
        d_model = stream.shape[-1]
        flat = at_least_float32(stream).flatten(1)  # prompt, pos times d_model
        size = flat.abs()
        median = size.median(dim=1).values
        is_massive = (size > self.threshold) & (size >= self.times * median[:, None])
        prompt, place = (index.cpu() for index in is_massive.nonzero(as_tuple=True))
        value = flat[is_massive].cpu()
        found = {
            "batch": prompt.numpy() + batch.first,
            "layer": np.full(len(prompt), layer),
            "pos": (place // d_model).numpy(),
            "dim": (place % d_model).numpy(),
            "value": value.numpy().astype(float),
            "ratio": (value.abs() / median.cpu()[prompt]).numpy().astype(float),
        }
        top = size.topk(min(TOP, size.shape[1]), dim=1).indices
        n_top = top.shape[1]
        axes = {"batch": batch.prompts, "layer": [layer], "rank": range(1, n_top + 1)}
        largest = rows(
            axes,
            median=median[:, None].expand(-1, n_top),
            pos=top // d_model,
            dim=top % d_model,
            value=torch.gather(flat, 1, top),
        )
        return {"table": found, "layers": largest}

    def result(self, tables: Mapping[str, pd.DataFrame], meta: dict[str, Any]) -> Any:
        """The massive activations as a result."""
        return MassiveActivations(tables["table"], meta, tables["layers"])


@any_model
def massive_activations(
    model: Model,
    tokens: Tensor | Sequence[Tensor],
    *,
    threshold: float = 100.0,
    times: float = 1000.0,
) -> MassiveActivations:
    """Entries with |value| > threshold and >= times the median |h|.

    The median is that of one prompt's whole feature map (pos by d_model) at that
    layer, the lower one of the two middle values.

    Args:
        model: any model.
        tokens: Int[batch pos], or a list of such tensors (see `measure`).
        threshold: least size, exclusive, in units of the residual stream.
        times: least multiple of the median, inclusive.

    Returns:
        `MassiveActivations`, one row an entry; none where nothing is massive.

    Raises:
        ValueError: no tokens, or a negative threshold.

    Source: definition of Sun et al. 2024 (arXiv:2402.17762).

    Examples:
        >>> model = ms.planted("backcopy").model
        >>> found = ms.massive_activations(model, model.to_tokens("b c d"))
        >>> largest = found.layers.groupby("layer").value.max()
        >>> len(found.table), largest.round(1).to_dict()
        (0, {0: 1.0, 1: 1.0})
    """
    if threshold < 0 or times < 0:
        raise ValueError(
            f"massive_activations: threshold={threshold}, times={times}. Allowed: zero "
            "or more; the published values are threshold=100, times=1000."
        )
    return measure(model, tokens, [MassiveActivationMeter(threshold, times)])[0]
