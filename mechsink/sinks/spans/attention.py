"""How much heads attend to a marked span, and how much of that to its sinks.

Source: VAR, Visual Attention Sink: image-centric heads; a span of text is ours.
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
from mechsink.sinks.spans.sinks import as_span


@dataclass(frozen=True, eq=False)
class SpanAttention(Result):
    """How much each head attends to a span, and how much of that to its sinks.

    `table`: batch (prompt), layer, head, mass, sink_ratio, centric. Means over the
    queries after the span: `mass` of attention to the span, `sink_ratio` the sinks'
    share of it (NaN where the span has no sink), `centric` the share of queries
    for which the head is image-centric, 0 to 1.

    Examples:
        >>> case = ms.planted("letter")
        >>> found = ms.span_attention(case.model, case.pairs.clean, range(1, 9), [1])
        >>> found.sensitivity(layer=1).shape
        torch.Size([3])
        >>> (1, 0) in found.centric_heads()
        True
    """

    def sensitivity(self, layer: int) -> Float[Tensor, " head"]:
        """A layer's heads by their mass on the span, mean over prompts, 0 to 1.

        Args:
            layer: block.
        """
        here: Any = self.table[self.table["layer"] == layer]
        masses = here.groupby("head")["mass"].mean().sort_index()
        return torch.tensor(masses.to_numpy())

    def centric_heads(self, share: float = 0.5) -> list[tuple[int, int]]:
        """(layer, head) image-centric for more than `share` of prompts' queries."""
        means: Any = self.table.groupby(["layer", "head"])["centric"].mean()
        return [(int(layer), int(head)) for layer, head in means.index[means > share]]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Attention to the span, layer by head, mean over prompts.

        Args:
            ax: where to draw; a new figure by default.
        """
        grid = self.table.pivot_table(index="head", columns="layer", values="mass")
        with plotting.theme():
            ax = ax or plotting.new_axes(height=0.62 * plotting.WIDTH)
            return plotting.heat_map(
                ax, grid, "attention to the span", limits=(0.0, 1.0)
            )


@dataclass(frozen=True)
class SpanAttentionMeter(Meter):
    """Attention to a span, for `measure`; options as in the function."""

    span: tuple[int, ...]
    sinks: Mapping[int, Sequence[int]]
    rho: float
    least: float
    reads = frozenset({"attention"})

    def check(self, batches: Sequence[Batch]) -> None:
        """The span inside every prompt, with queries after it."""
        check_positions(batches, [*self.span, max(self.span) + 1])

    def attention(self, batch: Batch, layer: LayerAttention) -> Mapping[str, Rows]:
        """One row a prompt and head."""
        columns = at_least_float32(layer.columns(self.span))
        columns = columns[:, :, max(self.span) + 1 :]
        sinks = set(self.sinks.get(layer.layer, ()))
        at_sink = torch.tensor([key in sinks for key in self.span])
        mass = columns.sum(-1)
        if at_sink.any():
            on_sinks = columns[..., at_sink.to(columns.device)].sum(-1)
            ratio = on_sinks / (mass + 1e-6 * len(self.span))
        else:
            ratio = torch.full_like(mass, torch.nan)
        is_centric = (mass >= self.least) & (ratio <= self.rho)  # NaN: never
        axes = {
            "batch": batch.prompts,
            "layer": [layer.layer],
            "head": range(mass.shape[1]),
        }
        means = {"mass": mass, "sink_ratio": ratio, "centric": is_centric.to(mass)}
        return {"table": rows(axes, **{n: x.mean(-1) for n, x in means.items()})}

    def result(self, tables: Mapping[str, pd.DataFrame], meta: dict[str, Any]) -> Any:
        """The attention as a result."""
        return SpanAttention(tables["table"], meta)


@any_model
def span_attention(
    model: Model,
    tokens: Tensor | Sequence[Tensor],
    span: Span,
    sinks: Span | Mapping[int, Sequence[int]] = (),
    *,
    rho: float = 0.5,
    least: float = 0.2,
) -> SpanAttention:
    """Attention of later queries to a span, head by head.

    A head is image-centric for a query that gives the span at least `least` of its
    attention, and the span's sinks at most `rho` of that.

    Args:
        model: any model.
        tokens: Int[batch pos], or a list of such tensors (see `measure`).
        span: marked positions, the same in every prompt, with tokens after them.
        sinks: sink positions, for all layers or by layer.
        rho: largest share of the span's attention that its sinks may have.
        least: least attention to the span.

    Returns:
        `SpanAttention`, one row a prompt, layer and head.

    Raises:
        ValueError: a span outside a prompt, or at its very end.

    Source: VAR, Visual Attention Sink: image-centric heads; a span of text is ours.

    Examples:
        >>> case = ms.planted("letter")
        >>> found = ms.span_attention(case.model, case.pairs.clean, range(1, 9), [1])
        >>> here = found.table.query("layer == 1 and head == 0")
        >>> here[["mass", "centric"]].mean().round(2).to_dict()
        {'mass': 0.99, 'centric': 1.0}
    """
    by_layer = (
        sinks
        if isinstance(sinks, Mapping)
        else dict.fromkeys(range(model.shape.n_layers), tuple(sinks))
    )
    meter = SpanAttentionMeter(as_span(span), by_layer, rho, least)
    return measure(model, tokens, [meter])[0]
