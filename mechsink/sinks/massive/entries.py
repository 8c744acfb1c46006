"""Which massive entries are overwritten, and with what.

Source: Sun et al. 2024 (arXiv:2402.17762).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mechsink.run import Edit, Model
from mechsink.sinks.massive.activations import MassiveActivations
from mechsink.sites import Site

Entry = tuple[int, int, int]
"""Layer as in `massive_activations`, position, dimension."""
PLACE = ["batch", "pos", "dim"]


def first_appearances(found: MassiveActivations, every_layer: bool) -> pd.DataFrame:
    """Massive entries at the layer where each place first has one, or at all.

    Columns batch, layer, pos, dim. The embedding counts as a layer: 0.
    """
    table: Any = found.table
    if not every_layer:
        table = table.loc[table.groupby(PLACE)["layer"].idxmin()]
    chosen: Any = table[["batch", "layer", "pos", "dim"]]
    return chosen.sort_values(["batch", "layer", "pos", "dim"], ignore_index=True)


def given_entries(
    model: Model, prompts: Sequence[Tensor], entries: Sequence[Entry]
) -> pd.DataFrame:
    """The same entries in every prompt that has the position.

    Raises:
        ValueError: a layer or dimension that the model lacks, or a position that no
            prompt has.
    """
    n_layers, d_model = model.shape.n_layers, model.shape.d_model
    longest = max(prompt.shape[1] for prompt in prompts)
    for entry in entries:
        layer, pos, dim = entry
        fits = 0 <= layer <= n_layers and 0 <= pos < longest and 0 <= dim < d_model
        if not fits:
            raise ValueError(
                f"massive_effect: entry {entry} is (layer, pos, dim). Allowed: layer 0 "
                f"to {n_layers}, pos 0 to {longest - 1}, dim 0 to {d_model - 1}."
            )
    rows = [
        (number, *entry)
        for number, prompt in enumerate(prompts)
        for entry in entries
        if entry[1] < prompt.shape[1]
    ]
    kinds = dict.fromkeys(("batch", "layer", "pos", "dim"), int)
    return pd.DataFrame(rows, columns=list(kinds)).astype(kinds)


def read_values(
    model: Model, prompts: Sequence[Tensor], entries: pd.DataFrame
) -> np.ndarray:
    """The value of each entry in the untouched run, in the order of `entries`."""
    n_layers = model.shape.n_layers
    values = np.full(len(entries), np.nan)
    places = {name: entries[name].tolist() for name in ("layer", "pos", "dim")}
    for number, prompt in enumerate(prompts):
        (here,) = np.nonzero((entries["batch"] == number).to_numpy())
        if not len(here):
            continue
        sites = {row: stream_site(places["layer"][row], n_layers) for row in here}
        cache = model.run(prompt, read=set(sites.values())).cache
        for row, site in sites.items():
            entry = cache[site][0, places["pos"][row], places["dim"][row]]
            values[row] = float(entry)
    return values


def means(entries: pd.DataFrame) -> pd.DataFrame:
    """Mean value of the entries of a layer and dimension, first token and others apart.

    Columns layer, dim, is_first, mean, spread (standard deviation over the entries,
    0 of one), n.
    """
    table: Any = entries.assign(is_first=entries["pos"] == 0)
    groups = table.groupby(["layer", "dim", "is_first"])["value"]
    return groups.agg(
        mean="mean", spread=lambda values: values.std(ddof=0), n="size"
    ).reset_index()


def stream_site(layer: int, n_layers: int) -> Site:
    """The residual stream at a layer as `massive_activations` counts: 0 to n_layers."""
    if layer < n_layers:
        return Site("resid_pre", layer)
    return Site("resid_post", n_layers - 1)


def overwriting(entries: pd.DataFrame, n_layers: int) -> Mapping[Site, Edit]:
    """Edits of one prompt's run that put column `new` at its entries."""

    def put(rows: Any) -> Edit:
        pos, dim = (torch.tensor(rows[name].to_numpy()) for name in ("pos", "dim"))
        new = torch.tensor(rows["new"].to_numpy())

        def edit(x: Tensor) -> Tensor:
            x = x.clone()
            x[:, pos.to(x.device), dim.to(x.device)] = new.to(x)
            return x

        return edit

    groups: Any = entries.groupby("layer")
    return {stream_site(int(layer), n_layers): put(rows) for layer, rows in groups}
