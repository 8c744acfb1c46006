"""The networkx graph of a circuit: its nodes, the edges, and what is inside a head.

May import: rooms up to attribution.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import networkx as nx

from mechsink.attribution.wires import INPUT, LOGITS, Wires, parsed
from mechsink.circuits.files import NUMBERS

Edge = tuple[str, str]

_PORTS = {"q": "query", "k": "key", "v": "value"}


def build_graph(
    wires: Wires, edges: Mapping[Edge, Mapping[str, Any]], outputs: Sequence[str]
) -> nx.DiGraph:
    """The graph that `Circuit` describes, frozen.

    Args:
        wires: the whole graph.
        edges: every edge with its numbers, as far as they are known.
        outputs: targets that the metric reads.

    Raises:
        ValueError: the model has no such edge or output, or a number is infinite.
    """
    wires.check(list(edges), "Circuit")
    _check_outputs(wires, outputs)
    graph = nx.DiGraph(wires=asdict(wires), outputs=list(dict.fromkeys(outputs)))
    _add_nodes(graph, wires, edges)
    for (source, target), given in edges.items():
        found = {
            key: float(given[key])
            for key in NUMBERS
            if key in given and not math.isnan(given[key])
        }
        if any(math.isinf(value) for value in found.values()):
            raise ValueError(
                f"Circuit: the edge {source} -> {target} has an infinite number: "
                f"{found}. Allowed: finite ones, and NaN where unknown. Did the metric "
                "or the model overflow? Try dtype=torch.float32."
            )
        graph.add_edge(source, target, kind="edge", **{"score": math.nan, **found})
    return nx.freeze(graph)


def _check_outputs(wires: Wires, outputs: Sequence[str]) -> None:
    wrong = [name for name in outputs if name not in wires.target_index]
    if isinstance(outputs, str) or wrong or not outputs:
        what = f"{wrong[0]!r} is no target" if wrong else f"outputs={outputs!r}"
        raise ValueError(
            f"Circuit: {what}. Allowed: a list of targets, at least one, such as "
            f"{[LOGITS]} or {list(wires.targets[:2])}."
        )


def _add_nodes(graph: nx.DiGraph, wires: Wires, edges: Collection[Edge]) -> None:
    """Every end of an edge and the heads that they feed, from the input on."""
    targets = {target for _, target in edges}
    inside = {port: wires.inside(port) for port in targets}
    names = {source for source, _ in edges} | targets
    names |= {head for heads in inside.values() for head in heads}
    order = dict.fromkeys((*wires.sources, *wires.targets))
    for name in sorted(
        (name for name in order if name in names), key=lambda name: _when(wires, name)
    ):
        site = wires.site(name)
        graph.add_node(
            name,
            layer=wires.layer(name),
            kind=_kind(name),
            site="" if site is None else str(site),
        )
    for port in (name for name in wires.targets if name in targets):
        for head in inside[port]:
            if head != port:
                graph.add_edge(port, head, kind="inside")


def _when(wires: Wires, name: str) -> tuple[int, int]:
    """Ports of a layer before its heads, heads before the MLP."""
    kind = _kind(name)
    rank = 0 if kind in _PORTS.values() else 2 if kind == "mlp" else 1
    return wires.layer(name), rank


def _kind(name: str) -> str:
    if name in (INPUT, LOGITS):
        return name
    _, part, _, port = parsed(name)
    if port is not None:
        return _PORTS[port]
    return {"h": "head", "a": "attention", "m": "mlp"}[part]
