"""Attention times gradient: how much a token's prediction rests on earlier tokens.

Source: LVLMs-Saliency, "Hallucination Begins Where Saliency Drops": saliency of a layer
is |A * dL/dA|, heads averaged. A span of text and what is averaged over are ours, after
the paper's description.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsink import plotting
from mechsink.attribution.gradients import gradients
from mechsink.interventions.attention_algebra import Span
from mechsink.models.any_model import any_model
from mechsink.plotting import Axes
from mechsink.provenance import provenance
from mechsink.results import Result
from mechsink.run import Metric, Model, Run
from mechsink.sinks.measure import at_least_float32, rows
from mechsink.sites import Site


@dataclass(frozen=True, eq=False)
class AttentionSaliency(Result):
    """Saliency of every earlier token for a prediction, layer by layer.

    `table`: batch (prompt), layer, pos, last, all. |A * dL/dA| at key `pos`, heads
    averaged: `last`, in the row of the last query, which makes the prediction; `all`,
    summed over all queries' rows. In units of L, nats by default; 0: to change this
    weight by a share of itself would change nothing.

    Examples:
        >>> model = ms.planted("letter").model
        >>> tokens = model.to_tokens("sun A owl B key C map D key")
        >>> found = ms.attention_saliency(model, tokens)
        >>> found.of([6]) > found.of([2, 4, 8])  # C against other labels
        True
        >>> ax = found.plot()
    """

    def of(
        self,
        span: Span,
        prompt: int = 0,
        *,
        layers: Collection[int] | None = None,
        column: str = "last",
    ) -> float:
        """Mean over a span's tokens and layers (default: all).

        Args:
            span: positions.
            prompt: which.
            layers: which; default: all.
            column: "last" or "all".

        Raises:
            ValueError: no such tokens.
        """
        here: Any = self.table[self.table["batch"] == prompt]
        here = here[here["pos"].isin(list(span))]
        if layers is not None:
            here = here[here["layer"].isin(list(layers))]
        if here.empty:
            raise ValueError(
                f"AttentionSaliency.of: nothing at span={list(span)}, prompt={prompt}, "
                f"layers={layers}. Allowed: positions 0 to {self.table['pos'].max()}, "
                f"prompts 0 to {self.table['batch'].max()}, layers 0 to "
                f"{self.table['layer'].max()}."
            )
        return float(here[column].mean())

    def plot(self, ax: Axes | None = None, *, prompt: int = 0) -> Axes:
        """Heat map, position by layer, of the last query's row.

        Args:
            ax: where to draw; default: a new figure.
            prompt: which.
        """
        here: Any = self.table[self.table["batch"] == prompt]
        grid = here.pivot(index="layer", columns="pos", values="last")
        grid = grid.rename_axis(columns="position")
        with plotting.theme():
            ax = ax or plotting.new_axes(height=0.62 * plotting.WIDTH)
            return plotting.heat_map(ax, grid, "attention x gradient, nats")


@dataclass(frozen=True, eq=False)
class _TokenLogprob:
    """Log-probability of one token a prompt, at the last position, nats."""

    targets: Int[Tensor, " prompt"]
    reads: frozenset[Site] = frozenset()

    def __call__(self, run: Run, prompts: Any = None) -> Float[Tensor, " prompt"]:
        last = at_least_float32(run.logits[:, -1]).log_softmax(-1)
        return last.gather(-1, self.targets.to(last.device)[:, None])[:, 0]


@dataclass(frozen=True, eq=False)
class _Keeping:
    """A metric that also keeps the patterns of its run."""

    metric: Metric
    sites: tuple[Site, ...]
    kept: dict[Site, Tensor]

    @property
    def reads(self) -> frozenset[Site]:
        return self.metric.reads | set(self.sites)

    def __call__(self, run: Run, prompts: Any = None) -> Float[Tensor, " prompt"]:
        self.kept.update({site: run.cache[site].detach() for site in self.sites})
        return self.metric(run, prompts)


@any_model
def attention_saliency(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    targets: Int[Tensor, " batch"] | None = None,
    *,
    metric: Metric | None = None,
    prompts: Any = None,
    layers: Collection[int] | None = None,
) -> AttentionSaliency:
    """|A * dL/dA| of every layer, in one pass forward and back.

    L is minus the log-probability of the target as the next token; its sign does not
    matter here. The gradient runs through all later layers. Whole patterns of these
    layers are held at once, as in any pass back through eager attention.

    Args:
        model: any model whose patterns can be edited.
        tokens: prompts of one length.
        targets: next token of each prompt; default: the likeliest.
        metric: what to differentiate instead, one number a prompt.
        prompts: handed to `metric`.
        layers: default: all.

    Returns:
        `AttentionSaliency`, one row a prompt, layer and position.

    Raises:
        ValueError: both targets and a metric, or as `gradients`.

    Source: LVLMs-Saliency.

    Examples:
        >>> model = ms.planted("letter").model
        >>> tokens = model.to_tokens("sun A owl B key C map D key")
        >>> found = ms.attention_saliency(model, tokens)
        >>> found.table.query("layer == 1").nlargest(1, "last").pos.tolist()  # C
        [6]
    """
    if targets is not None and metric is not None:
        raise ValueError(
            "attention_saliency: targets= and metric= both given. Allowed: one of "
            "them; targets= stands for the log-probability of these tokens."
        )
    table = rows_of(model, tokens, targets, metric, prompts, layers)
    chosen = range(model.shape.n_layers) if layers is None else list(layers)
    meta = provenance(
        model,
        tokens,
        targets=None if targets is None else targets.tolist(),
        metric="logprob of the target" if metric is None else repr(metric),
        layers=list(chosen),
    )
    return AttentionSaliency(table, meta)


def rows_of(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    targets: Int[Tensor, " batch"] | None,
    metric: Metric | None,
    prompts: Any,
    layers: Collection[int] | None,
) -> pd.DataFrame:
    """The table of `attention_saliency`."""
    tokens = tokens.to(model.device)
    if metric is None:
        if targets is None:
            with torch.no_grad():
                targets = model.run(tokens).logits[:, -1].argmax(-1)
        metric = _TokenLogprob(targets)
    chosen = range(model.shape.n_layers) if layers is None else list(layers)
    sites = tuple(Site("pattern", layer) for layer in chosen)
    patterns: dict[Site, Tensor] = {}
    keeping = _Keeping(metric, sites, patterns)
    found = gradients(model, tokens, keeping, sites, prompts)
    parts = []
    for site in sites:
        gradient, pattern = (at_least_float32(x[site]) for x in (found, patterns))
        saliency = (pattern * gradient).abs().mean(1)  # batch query key
        axes = {
            "batch": range(len(tokens)),
            "layer": [site.layer],
            "pos": range(tokens.shape[1]),
        }
        last, every = saliency[:, -1], saliency.sum(1)
        parts.append(pd.DataFrame(rows(axes, last=last, all=every)))
    return pd.concat(parts, ignore_index=True)
