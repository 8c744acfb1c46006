"""Pruning: what is left of a choice of edges once its loose ends are gone.

May import: rooms up to attribution.
"""

import functools
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from jaxtyping import Bool

from mechsink.attribution.wires import INPUT, Wires


def pruned_edges(
    wires: Wires, edges: Collection[tuple[str, str]], outputs: Collection[str]
) -> list[tuple[str, str]]:
    """Edges that remain, in the model's order.

    A source stays if an edge leaves it and an edge ends at one of its ports (at the
    MLP itself, or at the head's q, k or v, its group's k and v with grouped-query
    attention); the input needs no edge that ends at it. An edge stays if its source
    stays and its target is an output or goes into a source that stays. Repeated until
    nothing changes: left are the edges on a way from the input to an output, perhaps
    none.

    Source: `Graph.prune` of EAP-IG (Hanna et al. 2024, arXiv:2403.17806), there with
    the logits as the one output.
    """
    chosen = mask_of(wires, edges)
    feeds = feeds_of(wires)
    is_output = np.isin(wires.targets, list(outputs))
    while True:
        stays: Any = chosen.any(axis=1) & (feeds & chosen.any(axis=0)).any(axis=1)
        stays[wires.source_index[INPUT]] = True
        leads_on: Any = is_output | (feeds & stays[:, None]).any(axis=0)
        left: Any = chosen & stays[:, None] & leads_on
        if (left == chosen).all():
            return edges_of(wires, left)
        chosen = left


@functools.lru_cache(maxsize=32)
def feeds_of(wires: Wires) -> Bool[np.ndarray, "source target"]:
    """Whether a target's reading goes into a source (`Wires.inside`)."""
    feeds = np.zeros(wires.real.shape, dtype=bool)
    for column, target in enumerate(wires.targets):
        for source in wires.inside(target):
            feeds[wires.source_index[source], column] = True
    return feeds


def mask_of(
    wires: Wires, edges: Iterable[tuple[str, str]]
) -> Bool[np.ndarray, "source target"]:
    """Edges as a mask."""
    mask = np.zeros(wires.real.shape, dtype=bool)
    for source, target in edges:
        mask[wires.source_index[source], wires.target_index[target]] = True
    return mask


def edges_of(
    wires: Wires, mask: Bool[np.ndarray, "source target"]
) -> list[tuple[str, str]]:
    """Edges of a mask, in the model's order: target by target."""
    return [
        (wires.sources[s], wires.targets[t])
        for t, s in zip(*np.nonzero(mask.T), strict=True)
    ]
