"""Sinks inside and outside a marked span, by their residual stream.

A span is any range of positions: an image, a context, a question.

Source: VAR, Visual Attention Sink (its code's definitions); a span of text and the
threshold for other widths are ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechsink import plotting
from mechsink.interventions.attention_algebra import Span
from mechsink.interventions.span_edits import var_redistribution
from mechsink.models.any_model import any_model
from mechsink.plotting import Axes
from mechsink.results import Result
from mechsink.run import Edit, Model
from mechsink.sinks.massive.activations import massive_activations
from mechsink.sinks.measure import (
    Batch,
    Meter,
    Rows,
    at_least_float32,
    check_positions,
    measure,
    rows,
)
from mechsink.sites import Site


@any_model
def sink_dimensions(
    model: Model,
    tokens: Tensor | Sequence[Tensor],
    *,
    position: int = 0,
    threshold: float = 100.0,
    times: float = 1000.0,
) -> list[int]:
    """Dimensions of the residual stream that are massive at the first token.

    Args:
        model: any model.
        tokens: Int[batch pos], or a list of such tensors.
        position: the known sink.
        threshold: least size, exclusive, in units of the residual stream.
        times: least multiple of the median |h|, inclusive.

    Returns:
        Numbers of dimensions, ascending.

    Raises:
        ValueError: nothing is massive there.

    Source: VAR, Visual Attention Sink, finds them by hand; massive activations of Sun
    et al. 2024 (arXiv:2402.17762).

    Examples:
        >>> from toy_tasks.planted.mlp_sinks import mlp_sinks
        >>> case = mlp_sinks()
        >>> model = ms.load_model(case.model)
        >>> ms.sink_dimensions(model, case.tokens, threshold=50.0)
        [7]
    """
    found = massive_activations(model, tokens, threshold=threshold, times=times)
    here: Any = found.table[found.table["pos"] == position]
    if here.empty:
        raise ValueError(
            f"sink_dimensions: no entry at position {position} is above {threshold} "
            f"and {times} times the median. Lower threshold= and times=, or name the "
            "dimensions yourself: massive_activations(...).layers has the largest."
        )
    return sorted(here["dim"].unique().tolist())


def sink_phi(
    stream: Float[Tensor, "*batch pos d_model"], dims: Sequence[int]
) -> Float[Tensor, "*batch pos"]:
    """Largest |entry| among sink dimensions, over the token's root mean square.

    0 to sqrt(d_model), no unit; 1 is typical of an ordinary entry.
    """
    stream = at_least_float32(stream)
    mean_square = stream.square().mean(-1)
    return stream[..., list(dims)].abs().amax(-1) / (mean_square + 1e-6).sqrt()


@dataclass(frozen=True, eq=False)
class SpanSinks(Result):
    """Which tokens are sinks by their residual stream, layer by layer.

    `table`: batch (prompt), layer, pos, phi, is_sink, in_span; phi of the layer's
    input. `span`: the marked positions; `tau`: the threshold of phi.

    Examples:
        >>> from toy_tasks.planted.mlp_sinks import mlp_sinks
        >>> case = mlp_sinks()
        >>> model = ms.load_model(case.model)
        >>> found = ms.span_sinks(model, case.tokens, range(1, 5), dims=[7], tau=2.0)
        >>> found.positions(layer=4)
        [0, 3, 7]
        >>> [str(site) for site in found.edits()]
        ['L2.pattern', 'L3.pattern', 'L4.pattern', 'L5.pattern']
    """

    span: list[int]
    tau: float

    def positions(self, layer: int, prompt: int = 0) -> list[int]:
        """All sinks of one prompt at a layer's input, in the span or not.

        Args:
            layer: block.
            prompt: which.
        """
        table: Any = self.table
        chosen = (table["layer"] == layer) & (table["batch"] == prompt)
        return table[chosen & table["is_sink"]]["pos"].tolist()

    def plot(self, ax: Axes | None = None, *, prompt: int = 0) -> Axes:
        """phi of each token at each layer's input; dots: sinks; lines: the span.

        Raises:
            ValueError: no such prompt.

        Args:
            ax: where to draw; a new figure by default.
        """
        here: Any = self.table[self.table["batch"] == prompt]
        if here.empty:
            raise ValueError(
                f"SpanSinks.plot: prompt={prompt}. Allowed: 0 to "
                f"{self.table['batch'].max()}."
            )
        grid = here.pivot(index="layer", columns="pos", values="phi")
        sink = here.pivot(index="layer", columns="pos", values="is_sink")
        top = max(self.tau, float(grid.to_numpy().max()))
        with plotting.theme():
            ax = ax or plotting.new_axes()
            label = f"phi (sink above {self.tau:.3g})"
            plotting.heat_map(ax, grid, label, limits=(0.0, top))
            row, column = sink.to_numpy(dtype=bool).nonzero()
            ax.plot(column, row, ".", ms=3, color=plotting.colours(2)[1])
            for end in (min(self.span) - 0.5, max(self.span) + 0.5):
                ax.axvline(end, color="0.3", lw=0.8, ls="--")
            ax.set(xlabel="position", ylabel="layer")
        return ax

    def edits(
        self,
        prompt: int = 0,
        *,
        first_layer: int = 2,
        keep: float = 0.6,
        rho: float = 0.5,
        least: float = 0.2,
    ) -> dict[Site, Edit]:
        """VAR for one prompt: `var_redistribution` from layer `first_layer` on.

        Args:
            prompt: which.
            first_layer: first block that is edited.
            keep: as in `var_redistribution`.
            rho: as in `var_redistribution`.
            least: as in `var_redistribution`.
        """
        layers = range(first_layer, int(self.table["layer"].to_numpy().max()) + 1)
        return {
            Site("pattern", layer): var_redistribution(
                self.span,
                self.positions(layer, prompt),
                keep=keep,
                rho=rho,
                least=least,
            )
            for layer in layers
        }


@dataclass(frozen=True)
class SpanSinkMeter(Meter):
    """Sinks by phi, for `measure`; options as in the function."""

    span: tuple[int, ...]
    dims: tuple[int, ...]
    tau: float
    n_layers: int
    reads = frozenset({"residual"})

    def check(self, batches: Sequence[Batch]) -> None:
        """The span inside every prompt."""
        check_positions(batches, self.span)

    def residual(
        self, batch: Batch, layer: int, stream: Float[Tensor, "batch pos d_model"]
    ) -> Mapping[str, Rows]:
        """One row a prompt and token; the last output is no layer's input."""
        if layer == self.n_layers:
            return {}
        phi = sink_phi(stream, self.dims)
        axes = {"batch": batch.prompts, "layer": [layer], "pos": range(batch.n_pos)}
        inside = torch.zeros(batch.n_pos, dtype=torch.bool, device=phi.device)
        inside[list(self.span)] = True
        return {
            "table": rows(
                axes, phi=phi, is_sink=phi > self.tau, in_span=inside.expand_as(phi)
            )
        }

    def result(self, tables: Mapping[str, pd.DataFrame], meta: dict[str, Any]) -> Any:
        """The sinks as a result."""
        return SpanSinks(tables["table"], meta, list(self.span), self.tau)


@any_model
def span_sinks(
    model: Model,
    tokens: Tensor | Sequence[Tensor],
    span: Span,
    dims: Sequence[int],
    *,
    tau: float | None = None,
) -> SpanSinks:
    """Sink tokens: those whose phi at a layer's input exceeds `tau`.

    Args:
        model: any model.
        tokens: Int[batch pos], or a list of such tensors (see `measure`).
        span: marked positions, the same in every prompt.
        dims: sink dimensions, such as `sink_dimensions(model, tokens)`.
        tau: threshold of phi; default 0.3125 * sqrt(d_model), the paper's 20 at
            d_model=4096.

    Returns:
        `SpanSinks`, one row a prompt, layer and token.

    Raises:
        ValueError: a span outside a prompt, no dimensions, or some the model lacks.

    Source: VAR, Visual Attention Sink; the threshold for other widths is ours.

    Examples:
        >>> from toy_tasks.planted.mlp_sinks import mlp_sinks
        >>> case = mlp_sinks()
        >>> model = ms.load_model(case.model)
        >>> found = ms.span_sinks(model, case.tokens, range(1, 5), dims=[7], tau=2.0)
        >>> [found.positions(layer) for layer in (1, 2, 4)]
        [[], [0], [0, 3, 7]]
    """
    d_model = model.shape.d_model
    if not dims or not all(0 <= dim < d_model for dim in dims):
        raise ValueError(
            f"span_sinks: dims={list(dims)}. Allowed: at least one of 0 to "
            f"{d_model - 1}, such as sink_dimensions(model, tokens)."
        )
    least = 0.3125 * d_model**0.5 if tau is None else tau
    meter = SpanSinkMeter(as_span(span), tuple(dims), least, model.shape.n_layers)
    return measure(model, tokens, [meter])[0]


def as_span(span: Span) -> tuple[int, ...]:
    """A span as a tuple.

    Raises:
        ValueError: no position, or one twice.
    """
    if not len(span) or len(set(span)) < len(span):
        raise ValueError(
            f"span={list(span)}: mark at least one position, each once, such as "
            "range(3, 9)."
        )
    return tuple(span)
