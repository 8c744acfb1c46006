"""A networkx graph of anybody's making as a circuit: read, checked, told what is wrong.

May import: rooms up to attribution.
"""

import difflib
import json
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx

from mechsink.attribution.wires import LOGITS, Wires
from mechsink.circuits.building import Edge
from mechsink.circuits.files import NUMBERS
from mechsink.models.any_model import as_model

CALLER = "Circuit.from_graph"


@dataclass(frozen=True, eq=False)
class Read:
    """What a graph says of a circuit."""

    wires: Wires
    edges: dict[Edge, dict[str, float]]
    outputs: list[str]


def read_graph(graph: Any, like: Any, outputs: Sequence[str] | None) -> Read:
    """Wires, edges with their numbers, and outputs; see `Circuit.from_graph`.

    Raises:
        ValueError: as `Circuit.from_graph`.
    """
    _check_kind(graph)
    wires = _wires(graph, like)
    _check_names(graph, wires)
    _check_cycles(graph, wires)
    edges = {
        (source, target): _numbers(source, target, data)
        for source, target, data in graph.edges(data=True)
        if not _is_inside(wires, source, target, data)
    }
    wires.check(list(edges), CALLER)
    ends = _from_text(graph.graph.get("outputs")) if outputs is None else outputs
    if ends is not None and (isinstance(ends, str) or not isinstance(ends, Sequence)):
        raise ValueError(
            f"{CALLER}: outputs={ends!r}. Allowed: a list of targets that the metric "
            f"reads, such as {[LOGITS]}."
        )
    return Read(wires, edges, [LOGITS] if ends is None else list(ends))


def _check_kind(graph: Any) -> None:
    if not isinstance(graph, nx.Graph):
        raise ValueError(
            f"{CALLER}: got a {type(graph).__name__}. Allowed: a networkx.DiGraph, "
            "such as circuit.graph or what networkx.read_graphml gives."
        )
    if not graph.is_directed():
        raise ValueError(
            f"{CALLER}: this {type(graph).__name__} has no directions. Edges of a "
            "circuit go from what writes to what reads: build a networkx.DiGraph and "
            'add them as add_edge("a0.h1", "logits", score=0.5).'
        )
    if graph.is_multigraph():
        raise ValueError(
            f"{CALLER}: a {type(graph).__name__} may hold two edges between the same "
            "nodes, a circuit holds one. Pass networkx.DiGraph(graph) if there are no "
            "two, or join them first."
        )


def _wires(graph: nx.Graph, like: Any) -> Wires:
    """The whole graph that this one is a part of."""
    if like is None:
        stored = _from_text(graph.graph.get("wires"))
        if not isinstance(stored, Mapping):
            raise ValueError(
                f"{CALLER}: the graph does not say which model it is of. Pass "
                "like=model, like=scores or like=circuit, whose names and sizes it "
                "shares; graphs that a Circuit wrote say it themselves."
            )
        try:
            return Wires(**stored)
        except TypeError as error:
            raise ValueError(
                f"{CALLER}: graph.graph['wires'] = {reprlib.repr(dict(stored))} is not "
                "what a Circuit writes there. Pass like=model, or take it away."
            ) from error
    if isinstance(like, Wires):
        return like
    wires = getattr(like, "wires", None)  # of a Circuit or of EdgeScores
    return wires if isinstance(wires, Wires) else Wires.of(as_model(like).shape)


def _check_names(graph: nx.Graph, wires: Wires) -> None:
    known = {*wires.sources, *wires.targets}
    for name in graph:
        if name in known:
            continue
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"{CALLER}: {reprlib.repr(name)} is no node of this model. {hint}What "
            f"writes is named {_some(wires.sources)}; what reads "
            f"{_some(wires.targets)}."
        )


def _check_cycles(graph: nx.Graph, wires: Wires) -> None:
    whole = nx.DiGraph(graph.edges)
    for port in [name for name in graph if name in wires.target_index]:
        whole.add_edges_from(
            (port, head) for head in wires.inside(port) if head != port
        )
    try:
        cycle = nx.find_cycle(whole)
    except nx.NetworkXNoCycle:
        return
    way = " -> ".join([str(cycle[0][0]), *(str(edge[1]) for edge in cycle)])
    raise ValueError(
        f"{CALLER}: the graph has a cycle: {way}. What a forward pass computes has "
        "none: turn round or take out one of these edges."
    )


def _is_inside(wires: Wires, source: str, target: str, data: Mapping[str, Any]) -> bool:
    """Whether an edge joins a port to its head, as those of kind "inside" do."""
    if source in wires.target_index and target in wires.inside(source):
        return True
    if data.get("kind") == "inside":
        raise ValueError(
            f"{CALLER}: the edge {source} -> {target} is of kind 'inside', but "
            f"{source} is no port of it. Edges inside a head join its own port to it, "
            "as a2.h1<q> -> a2.h1; leave them out, they are put back."
        )
    return False


def _numbers(source: str, target: str, data: Mapping[str, Any]) -> dict[str, float]:
    """The edge's numbers; networkx's own name for a score is weight."""
    named = {**data, "score": data.get("score", data.get("weight"))}
    found = {key: named[key] for key in NUMBERS if named.get(key) is not None}
    for key, value in found.items():
        try:
            if isinstance(value, bool | str):
                raise TypeError
            found[key] = float(value)
        except (TypeError, ValueError):
            raise ValueError(
                f"{CALLER}: {key}={reprlib.repr(value)} of the edge {source} -> "
                f"{target} is no number. Allowed: a number, or none for an edge whose "
                "score is not known."
            ) from None
    return found


def _from_text(value: Any) -> Any:
    """GraphML has no lists and no mappings: there they are JSON."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _some(names: Iterable[str]) -> str:
    few = list(names)
    return ", ".join(few if len(few) < 7 else [*few[:4], "...", few[-1]])
