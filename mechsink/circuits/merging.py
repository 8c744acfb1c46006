"""`merge`: several circuits of one model as one.

May import: rooms up to attribution.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from mechsink.circuits.graph import Circuit, Edge, same_wires


def merge(
    circuits: Sequence[Circuit], how: Literal["union", "intersection"] = "union"
) -> Circuit:
    """Edges that are in any of the circuits, or in all.

    Scores are averaged over the circuits that have the edge and a score for it;
    intervals and p-values belong to one measurement and are dropped. Outputs are
    joined likewise. Nothing is pruned: call `.pruned()` on the result.

    Args:
        circuits: of one model.
        how: "union" or "intersection" of the edges.

    Returns:
        One circuit.

    Raises:
        ValueError: no circuits, circuits of models of different shapes, circuits
            without an output in common, or another `how`.

    Examples:
        >>> case = ms.planted("and")
        >>> scores = ms.eap(case.model, case.pairs, ms.logit_diff)
        >>> few, more = (ms.top_edges(scores, n, prune=False) for n in (3, 5))
        >>> ms.merge([few, more]).n_edges
        5
    """
    if not circuits:
        raise ValueError("merge: no circuits given. Give at least one.")
    if how not in ("union", "intersection"):
        raise ValueError(f"merge: how={how!r}. Allowed: 'union', 'intersection'.")
    same_wires(circuits, "merge")
    join = set.union if how == "union" else set.intersection
    edges = join(*({*circuit.edges} for circuit in circuits))
    outputs = join(*({*circuit.outputs} for circuit in circuits))
    if not outputs:
        raise ValueError(
            "merge: the circuits have no output in common: "
            f"{'; '.join(', '.join(circuit.outputs) for circuit in circuits)}. Use "
            "how='union', or compare circuits of one metric."
        )
    found: dict[Edge, list[float]] = {edge: [] for edge in edges}
    for circuit in circuits:
        for source, target, score in circuit.graph.edges(data="score"):
            if (source, target) in found and not math.isnan(score):
                found[source, target].append(score)
    scores = {edge: float(np.mean(values)) for edge, values in found.items() if values}
    wires = circuits[0].wires
    return Circuit.of(
        wires,
        edges,
        scores,
        outputs=sorted(outputs, key=wires.target_index.__getitem__),
        meta={"merged": how, "of": [circuit.meta for circuit in circuits]},
    )
