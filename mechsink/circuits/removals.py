"""A circuit without some of its edges, and many such runs.

May import: rooms up to attribution.
"""

import time
from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Float, Int

from mechsink.circuits.evaluation import CircuitRuns, Edges
from mechsink.circuits.graph import Edge
from mechsink.circuits.pruning import edges_of
from mechsink.progress import bar
from mechsink.provenance import provenance

Mask = Bool[np.ndarray, "source target"]


def edges_in(runs: CircuitRuns, circuit: Edges) -> tuple[Mask, list[Edge]]:
    """The circuit as a mask, and its edges in the graph's order.

    Raises:
        ValueError: an empty circuit.
    """
    mask = runs.mask(circuit)
    if not mask.any():
        raise ValueError(
            f"{runs.ask.caller}: the circuit has no edges, so there are none to take "
            "out. Give one with at least one edge: choose more, or do not prune."
        )
    return mask, edges_of(runs.ask.wires, mask)


def without(
    mask: Mask, runs: CircuitRuns, edges: list[Edge], some: Int[np.ndarray, " edge"]
) -> Mask:
    """The mask with edges number `some` cut."""
    left, wires = mask.copy(), runs.ask.wires
    for k in some:
        source, target = edges[k]
        left[wires.source_index[source], wires.target_index[target]] = False
    return left


def values_of(
    runs: CircuitRuns, masks: Iterable[Mask], n: int, progress: bool | None
) -> Float[np.ndarray, "circuit prompt"]:
    """The metric with each of `n` masks, as many at once as fit."""
    found, waiting = [], []
    with bar(runs.ask.caller, n, progress) as advance:
        for number, mask in enumerate(masks, start=1):
            waiting.append(mask)
            if number == n or len(waiting) == runs.at_once:
                found.append(runs.values(np.stack(waiting)))
                advance(len(waiting))
                waiting = []
    return np.concatenate(found)


def meta_of(
    runs: CircuitRuns, started: float, edges: list[Edge], **settings: object
) -> dict:
    """Provenance of a result over these runs."""
    ask = runs.ask
    return provenance(
        ask.model,
        [x for group in ask.groups for x in (group.clean, group.corrupted)],
        duration=time.perf_counter() - started,
        metric=repr(ask.metric),
        n_edges=len(edges),
        n_graph=len(ask.wires.edges),
        pairs=runs.n_prompts,
        **runs.settings,
        **settings,
    )
