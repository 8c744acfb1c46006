"""What a node does for the right label: its part, patched effects, attention."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechsink.attribution.contributions import Wanted, contributions, run_at
from mechsink.attribution.inference import inference
from mechsink.attribution.logits import (
    batches,
    by_node,
    checked,
    relative_error,
    tidy,
)
from mechsink.experiments.choices.categories import (
    NOTHING,
    attention_statistics,
    category,
)
from mechsink.experiments.choices.prompts import Choices, LabelMargin
from mechsink.models.wiring import Wiring, wiring
from mechsink.run import Model, Run
from mechsink.sites import Site

Node = tuple[int, str]
"""Layer and component: h0, h1, ..., mlp."""


def direct_parts(model: Model, choices: Choices) -> tuple[pd.DataFrame, float]:
    """Each node's part of the margin, prompt by node; and the largest error."""
    known = checked(model, "multiple_choice")
    tables, error = [], 0.0
    for batch in batches(model, choices.alone().tokens(model)):
        labels = choices.labels[batch.index].to(model.device)
        weights = choices.weights[batch.index].to(model.device)
        wanted = Wanted(labels, weights, batch.n_pos - 1)
        parts = contributions(model, known, batch.clean, wanted)
        tables.append(tidy(parts, batch.index))
        error = max(error, float(relative_error(parts).abs().max()))
    return by_node(pd.concat(tables, ignore_index=True)), error


@torch.no_grad()
def patched_effects(
    model: Model, choices: Choices, nodes: Sequence[Node], seed: int = 0
) -> dict[Node, Float[Tensor, "prompt 2"]]:
    """How much the margin falls when a node has its value of another question.

    Directly, all later nodes held (the final norm's scale is not), and in all.
    """
    known = wiring(model)
    margin = LabelMargin(choices)
    end = Site("resid_post", model.shape.n_layers - 1)
    whole = {node: sender(node).whole for node in nodes}
    falls = {node: torch.zeros(len(choices), 2, dtype=torch.float64) for node in nodes}
    for batch in batches(model, choices.paired(seed).tokens(model)):
        sites = set(whole.values())
        clean = model.run(batch.clean, read=sites | {end})
        other = model.run(batch.corrupted, read=sites).cache
        base = margin(clean, batch)
        for node in nodes:
            site = sender(node)
            value = other[whole[node]][site.index]
            held = _direct(known, clean, node, value, end)
            patched = model.run(batch.clean, edit={site: lambda x, new=value: new})
            for column, run in enumerate((held, patched)):
                fall = base - margin(run, batch)
                falls[node][batch.index, column] = fall.double().cpu()
    return falls


def _direct(known: Wiring, clean: Run, node: Node, value: Tensor, end: Site) -> Run:
    """The clean run's last logits, had the node alone written something else."""
    layer, component = node
    resid, new = clean.cache[end][:, -1:], value[:, -1:]
    if component == "mlp":
        change = new - clean.cache[Site("mlp_out", layer)][:, -1:]
    else:
        write = known.attention_write(layer)
        z = clean.cache[Site("z", layer)][:, -1:]
        changed = z.clone()
        changed[:, :, int(component[1:])] = new
        change = write(changed) - write(z)
    return Run(clean.tokens[:, -1:], known.unembed(resid + change), {})


def sender(node: Node) -> Site:
    """Where a node is patched."""
    layer, component = node
    if component == "mlp":
        return Site("mlp_out", layer)
    return Site("z", layer, head=int(component[1:]))


def described(
    model: Model,
    choices: Choices,
    node: Node,
    direct_low: float,
    falls: Float[Tensor, "prompt 2"],
    seed: int,
) -> dict[str, Any]:
    """Columns of an output node: patched effects, category, attention."""
    row: dict[str, Any] = {}
    for name, (mean, low, high) in zip(
        ("patched_direct", "total"),
        inference(falls.numpy(), seed)[["score", "low", "high"]].to_numpy(),
        strict=True,
    ):
        row |= {name: mean, f"{name}_low": low, f"{name}_high": high}
    layer, component = node
    if component == "mlp":
        return {**row, "category": "MLP", **NOTHING}
    seen = attention_statistics(*_attention(model, choices, layer, int(component[1:])))
    kind = category(seen, choices.labels.shape[1], direct_low)
    return {**row, "category": kind, **seen}


def _attention(
    model: Model, choices: Choices, layer: int, head: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of the last token to the labels and to itself; which is right."""
    site = Site("pattern", layer)
    n, n_labels = choices.labels.shape
    to_labels, to_last = torch.zeros(n, n_labels), torch.zeros(n)
    for batch in batches(model, choices.alone().tokens(model)):
        run = run_at(model, batch.clean, {site: batch.n_pos - 1})
        row = run.cache[site][:, head].float().cpu()
        to_labels[batch.index] = row.gather(1, choices.places[batch.index].cpu())
        to_last[batch.index] = row[:, -1]
    return to_labels, to_last, choices.correct.cpu()
