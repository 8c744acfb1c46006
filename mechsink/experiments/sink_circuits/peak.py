"""Who writes the residual peak: the stream at one position, taken apart exactly.

The stream before layer l is the sum of everything written so far, so its norm is the
sum of the writes' components along its own direction. Shares of them sum to 1; a
component that takes the peak down has a negative share.
May import: rooms up to attribution.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mechsink.attribution.inference import inference
from mechsink.attribution.writes import source_sites, written
from mechsink.experiments.sink_circuits.runs import AtPosition
from mechsink.prompts import TokenPairs
from mechsink.sites import Site

BIAS = "bias"
"""What attention adds whatever it reads: biases of all layers so far."""


@torch.no_grad()
def peak_tables(
    what: AtPosition, batches: Iterable[TokenPairs], seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every layer's stream at the position, and what each component put there.

    Returns:
        writes: layer (l: before block l; n_layers: after the last), component, share
            (of the norm, along the stream's direction, mean over texts; sums to 1
            over the components of a layer), low, high (95 % bootstrap over texts),
            norm (of the write itself, mean over texts).
        residual: layer, norm at the position, others (mean over the other positions),
            ratio (mean over texts of norm / others).
    """
    last = what.wires.n_layers
    streams: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(last + 1)]
    shares: list[list[Tensor]] = [[] for _ in range(last + 1)]
    sizes: list[Tensor] = []
    for pairs in batches:
        read = {_stream(layer, last) for layer in range(last + 1)}
        cache = what.model.run(
            pairs.clean, read=[*read, *source_sites(what.wires)]
        ).cache
        parts = _parts(what, cache).double()
        sizes.append(parts.norm(dim=-1))
        for layer in range(last + 1):
            x = cache[_stream(layer, last)].double()
            here = x[:, what.position]
            norms = x.norm(dim=-1)
            others = (norms.sum(1) - norms[:, what.position]) / (x.shape[1] - 1)
            streams[layer].append((here.norm(dim=-1), others))
            n = _n_written(what, layer)
            along = torch.einsum("bsm,bm->bs", parts, here)
            along = along / here.square().sum(-1, keepdim=True)
            # Biases of layers above are not there yet: they are shown cumulatively.
            bias = torch.einsum("bm,bm->b", _biases(what, cache, layer), here)
            bias = bias / here.square().sum(-1)
            shares[layer].append(torch.cat([along[:, :n], bias[:, None]], dim=1))
    return (
        _writes(what, shares, torch.cat(sizes).mean(0).tolist(), seed),
        _residual(streams),
    )


def peak_layer(residual: pd.DataFrame) -> int:
    """Where the position stands out most: the largest ratio after the input."""
    return 1 + int(np.argmax(residual["ratio"].to_numpy()[1:]))


def _stream(layer: int, last: int) -> Site:
    if layer < last:
        return Site("resid_pre", layer)
    return Site("resid_post", last - 1)


def _parts(what: AtPosition, cache: Mapping[Site, Tensor]) -> Tensor:
    """What each component writes at the position, [batch component d_model]."""
    at = slice(what.position, what.position + 1)
    here = {site: x[:, at] for site, x in cache.items()}
    return written(what.wires, what.wiring, here)[:, :, 0]


def _biases(what: AtPosition, cache: Mapping[Site, Tensor], layer: int) -> Tensor:
    """What attention wrote before a layer that belongs to no head."""
    first = cache[Site("resid_pre", 0)][:, what.position].double()
    total = torch.zeros_like(first)
    if what.wires.has_attention:
        at = slice(what.position, what.position + 1)
        for below in range(layer):
            z = cache[Site("z", below)][:, at]
            bias = what.wiring.attention_write(below).frozen_bias(z)
            total += bias[:, 0].double()
    return total


def _n_written(what: AtPosition, layer: int) -> int:
    """AtPositions, in order, that have written before a layer."""
    wires = what.wires
    each = (wires.n_heads if wires.has_attention else 0) + wires.has_mlp
    return 1 + layer * each


def _writes(
    what: AtPosition, shares: list[list[Tensor]], sizes: list[float], seed: int
) -> pd.DataFrame:
    tables = []
    for layer, rows in enumerate(shares):
        values = torch.cat(rows).cpu().numpy()
        n = values.shape[1] - 1
        found = inference(values, seed)
        found.insert(0, "component", [*what.wires.sources[:n], BIAS])
        found.insert(0, "layer", layer)
        found["norm"] = [*sizes[:n], np.nan]
        tables.append(found.rename(columns={"score": "share"}))
    table = pd.concat(tables, ignore_index=True)
    return table.drop(columns=["p_value", "q_value"])


def _residual(streams: list[list[tuple[Tensor, Tensor]]]) -> pd.DataFrame:
    rows = []
    for layer, found in enumerate(streams):
        norm, others = (torch.cat(x) for x in zip(*found, strict=True))
        ratio = (norm / others).mean().item()
        rows.append((layer, norm.mean().item(), others.mean().item(), ratio))
    return pd.DataFrame(rows, columns=["layer", "norm", "others", "ratio"])
