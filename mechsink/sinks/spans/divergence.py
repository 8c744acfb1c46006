"""Head divergence: how much each head's output owes to a marked span.

Source: VHD and VHR (vision-aware head divergence and reinforcement). The span is
masked for all later queries and positions are kept; the papers remove its tokens.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsink import plotting
from mechsink.interventions.attention_algebra import Span
from mechsink.interventions.attention_edits import at_layers
from mechsink.interventions.span_edits import hide_span, vhr_amplify
from mechsink.models.any_model import any_model
from mechsink.plotting import Axes
from mechsink.provenance import provenance
from mechsink.results import Result
from mechsink.run import Edit, Model
from mechsink.sinks.measure import at_least_float32, rows
from mechsink.sites import Site


@dataclass(frozen=True, eq=False)
class HeadDivergence(Result):
    """Distance between a head's outputs with and without a span.

    `table`: batch (prompt), layer, head, divergence, norm. `divergence` is the
    Euclidean distance of z at the last position, `norm` that of z itself, with the
    span in view; both in units of z. 0: the head owes nothing to the span.

    Examples:
        >>> case = ms.planted("letter")
        >>> found = ms.head_divergence(case.model, case.pairs.clean, range(1, 9))
        >>> found.token_level(top=1).shape
        (12,)
    """

    span: list[int]

    def token_level(self, top: int = 3) -> pd.Series:
        """T-VHD: sum over layers of the `top` heads' mean divergence, one a prompt.

        Low values go with next tokens that owe little to the span.

        Args:
            top: heads a layer that count.
        """
        table: Any = self.table
        best = table.groupby(["batch", "layer"])["divergence"].nlargest(top)
        return best.groupby(["batch", "layer"]).mean().groupby("batch").sum()

    def plot(self, ax: Axes | None = None) -> Axes:
        """Divergence over the norm of z, layer by head, mean over prompts.

        Args:
            ax: where to draw; a new figure by default.
        """
        share = self.table.assign(share=self.table["divergence"] / self.table["norm"])
        grid = share.pivot_table(index="head", columns="layer", values="share")
        top = max(1.0, float(np.nanmax(grid.to_numpy())))
        with plotting.theme():
            ax = ax or plotting.new_axes(height=0.62 * plotting.WIDTH)
            label = "change of z without\nthe span / its norm"
            return plotting.heat_map(ax, grid, label, limits=(0.0, top))


@any_model
def head_divergence(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    span: Span,
    *,
    edit: Mapping[Site, Edit] | None = None,
) -> HeadDivergence:
    """Divergence of every head at the last position, with and without a span.

    Args:
        model: any model with z and an editable pattern.
        tokens: prompts of one length.
        span: marked positions, not the last one.
        edit: in force in both runs, to measure within an edited model.

    Returns:
        A `HeadDivergence`, one row a prompt, layer and head.

    Raises:
        ValueError: a span outside the prompt, or one that holds its last token.

    Source: VHD, vision-aware head divergence; masking instead of removing is ours.

    Examples:
        >>> case = ms.planted("letter")
        >>> found = ms.head_divergence(case.model, case.pairs.clean, range(1, 9))
        >>> means = found.table.groupby(["layer", "head"]).divergence.mean()
        >>> means.round(2).loc[1, 0].item()
        0.95
    """
    started = time.perf_counter()
    n_pos = tokens.shape[1]
    if not len(span) or not all(0 <= pos < n_pos - 1 for pos in span):
        raise ValueError(
            f"head_divergence: span={list(span)} in a {n_pos}-token prompt. Allowed: "
            f"at least one of 0 to {n_pos - 2}; the last token does the reading."
        )
    layers = range(model.shape.n_layers)
    full = _outputs(model, tokens, edit or {})
    without = _outputs(model, tokens, _hiding(span, layers, edit or {}))
    divergence = torch.linalg.vector_norm(full - without, dim=-1)
    axes = {
        "batch": range(len(tokens)),
        "layer": layers,
        "head": range(full.shape[2]),
    }
    norm = torch.linalg.vector_norm(full, dim=-1)
    table = pd.DataFrame(rows(axes, divergence=divergence, norm=norm))
    meta = provenance(
        model,
        tokens,
        duration=time.perf_counter() - started,
        span=list(span),
        edit=[str(site) for site in edit or {}],
    )
    return HeadDivergence(table, meta, list(span))


@any_model
def vhr_heads(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    span: Span,
    *,
    alpha: float = 2.0,
    spike: float = 5.0,
) -> list[tuple[int, int]]:
    """The heads that VHR amplifies: each layer's upper half by divergence.

    Layer by layer, with the heads found so far already amplified: heads whose
    output norm spikes count as 0; of the others those with at least the median
    divergence, and above 0, are taken. Several prompts are averaged; give one
    to choose for it alone. Then: edit=vhr_amplify(heads, alpha).

    Args:
        model: any model with z and an editable pattern.
        tokens: prompts of one length.
        span: marked positions, not the last one.
        alpha: factor of the amplification.
        spike: a norm above so many times the layer's median spikes; ours, the paper
            gives no number.

    Returns:
        (layer, head) of each.

    Raises:
        ValueError: as `head_divergence`.

    Source: VHR, vision-aware head reinforcement.

    Examples:
        >>> case = ms.planted("letter")
        >>> heads = ms.vhr_heads(case.model, case.pairs.clean, range(1, 9))
        >>> heads
        [(0, 1), (0, 2), (1, 1), (1, 2)]
        >>> edit = ms.vhr_amplify(heads, alpha=2.0)
        >>> case.model.run(case.pairs.clean, edit=edit).logits.shape
        torch.Size([12, 10, 17])
    """
    found: list[tuple[int, int]] = []
    for layer in range(model.shape.n_layers):
        edit = vhr_amplify(found, alpha)
        table: Any = head_divergence(model, tokens, span, edit=edit).table
        means = table[table["layer"] == layer].groupby("head").mean()
        norm, divergence = means["norm"], means["divergence"]
        divergence = divergence.where(norm <= spike * norm.median(), 0.0)
        chosen = (divergence >= divergence.median()) & (divergence > 0)
        found += [(layer, int(head)) for head in means.index[chosen]]
    return found


def _outputs(
    model: Model, tokens: Tensor, edit: Mapping[Site, Edit]
) -> Float[Tensor, "batch layer head d_head"]:
    sites = model.shape.all_sites("z")
    cache = model.run(tokens, read=sites, edit=edit).cache
    return at_least_float32(torch.stack([cache[s][:, -1] for s in sites], dim=1))


def _hiding(span: Span, layers: range, edit: Mapping[Site, Edit]) -> dict[Site, Edit]:
    """The edits, with the span hidden on every layer besides."""

    def both(first: Edit, second: Edit) -> Edit:
        return lambda x: second(first(x))

    hidden = at_layers(hide_span(span), layers)
    return {
        **edit,
        **{s: both(edit[s], h) if s in edit else h for s, h in hidden.items()},
    }
