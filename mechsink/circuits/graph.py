"""`Circuit`: some edges of a model's computational graph, with their scores.

May import: rooms up to attribution.
"""

import functools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd

from mechsink.attribution.edge_scores import EdgeScores
from mechsink.attribution.wires import INPUT, LOGITS, Wires
from mechsink.circuits import files
from mechsink.circuits.building import Edge, build_graph
from mechsink.circuits.drawing import draw
from mechsink.circuits.files import NUMBERS, Stored
from mechsink.circuits.from_graph import read_graph
from mechsink.circuits.pruning import pruned_edges
from mechsink.plotting import Axes
from mechsink.shown import Shown

Scores = EdgeScores | pd.DataFrame | Mapping[Edge, float]
QUICK = 400  # edges that a notebook draws unasked
MOST = 1000  # layers or heads in a file; more is damage, and would fill the memory


@dataclass(frozen=True, eq=False)
class Circuit(Shown):
    """A subgraph: which source is read by which target. Made by `Circuit.of`.

    `graph`: nodes are sources and targets by name, with `layer` (-1 for the input,
    n_layers for the logits), `kind` (input, head, attention, mlp, query, key, value,
    logits) and `site` (a printed `Site`, or ""). Edges of kind "edge" are the
    circuit's and carry `score` (NaN where unknown) and, where known, `low`, `high`,
    `p_value`, `q_value`; score > 0: corrupting this edge lowers the metric. Edges of
    kind "inside" have no number: they join a port, such as "a2.h1<q>", to each head
    that it feeds. An MLP is one node. The graph is frozen; change a `graph.copy()`.

    `meta`: how the circuit was chosen, as it is saved.

    Examples:
        >>> case = ms.planted("and")
        >>> scores = ms.exact_edges(case.model, case.pairs, ms.logit_diff)
        >>> circuit = ms.Circuit.of(scores.wires, case.edges, scores)
        >>> circuit.edges
        (('input', 'a0.h0<v>'), ('input', 'a0.h1<v>'), ('a0.h0', 'm0'), ('a0.h1', 'm0'),
        ('m0', 'logits'))
        >>> circuit.ancestors("m0").nodes
        ('input', 'a0.h0', 'a0.h1', 'm0')
        >>> circuit.graph.edges["m0", "logits"]["kind"]
        'edge'
        >>> ms.Circuit.load(circuit.save("circuit.json")).n_edges
        5
    """

    graph: nx.DiGraph
    meta: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        wires: Wires,
        edges: Iterable[Edge],
        scores: Scores | None = None,
        *,
        outputs: Sequence[str] = (LOGITS,),
        meta: Mapping[str, Any] | None = None,
    ) -> "Circuit":
        """The circuit of these edges, each named (source, target).

        Args:
            wires: the whole graph, as in `scores.wires`.
            edges: in any order; an edge that is named twice counts once.
            scores: numbers for the edges, also as a table like that of `EdgeScores`;
                an edge that it lacks has score NaN.
            outputs: targets that the metric reads.
            meta: how the edges were chosen.

        Raises:
            ValueError: the model has no such edge or output, no output is given, or a
                score is infinite.
        """
        numbers = _numbers_of(scores)
        return cls._built(
            wires, {edge: numbers.get(edge, {}) for edge in edges}, outputs, meta or {}
        )

    @classmethod
    def full(cls, wires: Wires, *, outputs: Sequence[str] = (LOGITS,)) -> "Circuit":
        """Every edge of the model, without scores.

        Args:
            wires: the whole graph, as in `scores.wires`.
            outputs: targets that the metric reads.
        """
        return cls.of(wires, wires.edges, outputs=outputs, meta={"selection": "full"})

    @classmethod
    def from_graph(
        cls,
        graph: Any,  # a networkx.DiGraph; what it is not is told
        like: Any = None,
        *,
        outputs: Sequence[str] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> "Circuit":
        """The circuit that a networkx graph describes; the graph stays as it is.

        Args:
            graph: edges from what writes ("input", "a0.h1", "m3") to what reads
                ("a2.h1<q>", "m3", "logits"), with `score`, else `weight`, in the
                metric's unit, and `low`, `high`, `p_value`, `q_value` where known; an
                edge without has score NaN. What else it carries, nodes without edges,
                and edges from a port to its own head are left out or put back.
            like: whose names and sizes these are: a model, `EdgeScores`, a `Circuit`
                or its `wires`. Default: what a Circuit wrote into `graph.graph`, also
                by way of `save` and networkx's readers.
            outputs: targets that the metric reads. Default: as in `graph.graph`, else
                the logits.
            meta: where the graph comes from.

        Raises:
            ValueError: no directed graph, a cycle, a node or edge that the model does
                not have (the nearest name is suggested), a score that is no number,
                or no `like` for a graph that does not say its model.

        Examples:
            >>> case = ms.planted("induction")
            >>> graph = nx.DiGraph()
            >>> graph.add_edge("input", "a0.h0<v>", score=0.5)
            >>> graph.add_edge("a0.h0", "logits", weight=2)
            >>> ms.Circuit.from_graph(graph, like=case.model).edges
            (('input', 'a0.h0<v>'), ('a0.h0', 'logits'))
        """
        read = read_graph(graph, like, outputs)
        origin = {"selection": "networkx graph"} if meta is None else meta
        return cls._built(read.wires, read.edges, read.outputs, origin)

    @classmethod
    def load(cls, path: Path | str) -> "Circuit":
        """Read what `save` wrote; .graphml is GraphML, all else JSON.

        Args:
            path: a file that `save` wrote.

        Raises:
            ValueError: the file is missing, damaged, or no circuit.
        """
        path = Path(path)
        if path.suffix.lower() == ".graphml":
            return cls.load_graphml(path)
        return cls._restored(files.read_json(path), path)

    @classmethod
    def load_graphml(cls, path: Path | str) -> "Circuit":
        """Read what `save_graphml` wrote, whatever the file is called.

        Args:
            path: a file that `save_graphml` wrote.

        Raises:
            ValueError: the file is missing, damaged, or no circuit.
        """
        return cls._restored(files.read_graphml(Path(path)), Path(path))

    def save(self, path: Path | str) -> Path:
        """Write one file, whole or not at all: .json (node-link) or .graphml.

        Both hold everything; NaN is left out and comes back as NaN. networkx reads
        the first with `node_link_graph(json.load(file), edges="edges")`.

        Args:
            path: file to write; its ending says which form.

        Returns:
            The path.

        Raises:
            ValueError: the name ends otherwise.
            OSError: the path cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() == ".graphml":
            return self.save_graphml(path)
        if path.suffix.lower() != ".json":
            raise ValueError(
                f"Circuit.save: {path.name} ends in {path.suffix!r}. Allowed: .json "
                "and .graphml; for GraphML under another name call save_graphml."
            )
        return files.write_json(self.graph, self.meta, path)

    def save_graphml(self, path: Path | str) -> Path:
        """Write GraphML, whatever the file is called.

        Args:
            path: file to write.

        Returns:
            The path.

        Raises:
            OSError: the path cannot be written.
        """
        return files.write_graphml(self.graph, self.meta, Path(path))

    @functools.cached_property
    def wires(self) -> Wires:
        """The whole graph that this is a part of."""
        return Wires(**self.graph.graph["wires"])

    @property
    def outputs(self) -> list[str]:
        """Targets that the metric reads."""
        return list(self.graph.graph["outputs"])

    @functools.cached_property
    def edges(self) -> tuple[Edge, ...]:
        """The circuit's edges, (source, target), in the model's order."""
        wires, data = self.wires, self.graph.edges(data="kind")
        found = [(source, target) for source, target, kind in data if kind == "edge"]
        place = (wires.target_index, wires.source_index)
        return tuple(sorted(found, key=lambda e: (place[0][e[1]], place[1][e[0]])))

    @property
    def n_edges(self) -> int:
        """Edges of the circuit, those inside a head not counted."""
        return len(self.edges)

    @functools.cached_property
    def nodes(self) -> tuple[str, ...]:
        """Components: sources that are read and outputs that read, from the input on.

        A head that is fed and not read, in a circuit that was not pruned, is none.
        """
        read = {source for source, _ in self.edges}
        ends = {target for _, target in self.edges} & {*self.outputs}
        wires = self.wires
        names = dict.fromkeys(name for name in wires.sources if name in read)
        names.update(dict.fromkeys(name for name in wires.targets if name in ends))
        return tuple(names)

    @functools.cached_property
    def table(self) -> pd.DataFrame:
        """One row an edge, in the model's order.

        source, target, score, then low, high, p_value, q_value as far as any edge has
        them, source_layer, target_layer (-1: the input; n_layers: the logits).
        """
        nodes, links = self.graph.nodes, [self.graph.edges[edge] for edge in self.edges]
        known = [key for key in NUMBERS[1:] if any(key in link for link in links)]
        text: Any = {"source": "str", "target": "str"}
        table = pd.DataFrame(list(self.edges), columns=list(text)).astype(text)
        for name in ("score", *known):
            values = [link.get(name, math.nan) for link in links]
            table[name] = np.array(values, dtype=float)
        for end in ("source", "target"):
            layers = [nodes[name]["layer"] for name in table[end]]
            table[f"{end}_layer"] = np.array(layers, dtype=int)
        return table

    def pruned(self) -> "Circuit":
        """Without its loose ends; `pruned_edges` states the rule. Perhaps empty."""
        left = pruned_edges(self.wires, self.edges, self.outputs)
        return self._part(left, self.outputs, self.meta)

    def ancestors(self, node: str) -> "Circuit":
        """Everything that leads to one node, a circuit whose outputs are its ports.

        Args:
            node: a component ("a2.h1", "m3", "logits") or one port ("a2.h1<q>").

        Raises:
            ValueError: the circuit has no such node, or it is the input.
        """
        if node not in self.graph or node == INPUT:
            raise ValueError(
                f"Circuit.ancestors: {node!r} is "
                + ("what all begins with" if node == INPUT else "not in this circuit")
                + ". Allowed: one of "
                f"{', '.join(name for name in self.graph if name != INPUT)}."
            )
        before = nx.ancestors(self.graph, node) | {node}
        edges = [edge for edge in self.edges if edge[1] in before]
        wires = self.wires
        ports = [node] if node in wires.target_index else wires.ports(node)
        return self._part(edges, ports, {**self.meta, "ancestors_of": node})

    def plot(self, ax: Axes | None = None) -> Axes:
        """Layered figure, the input below and the outputs above.

        Width: |score| against the largest; colour: its sign; dashes: which port an
        edge ends at. On `ax`, or on a new figure as large as the circuit needs.
        """
        return draw(self.graph, ax)

    def _draws_quickly(self) -> bool:
        return self.n_edges <= QUICK

    def _part(
        self, edges: Collection[Edge], outputs: Sequence[str], meta: Mapping[str, Any]
    ) -> "Circuit":
        numbers = {edge: dict(self.graph.edges[edge]) for edge in edges}
        return Circuit._built(self.wires, numbers, outputs, meta)

    @classmethod
    def _built(
        cls,
        wires: Wires,
        numbers: Mapping[Edge, Mapping[str, Any]],
        outputs: Sequence[str],
        meta: Mapping[str, Any],
    ) -> "Circuit":
        return cls(build_graph(wires, numbers, outputs), dict(meta))

    @classmethod
    def _restored(cls, stored: Stored, path: Path) -> "Circuit":
        try:
            sizes = [value for key, value in stored.wires.items() if key[:2] == "n_"]
            if not all(isinstance(size, int) and 0 <= size <= MOST for size in sizes):
                raise ValueError(f"it names sizes of no model: {sizes}")
            wires = Wires(**stored.wires)
            return cls._built(wires, stored.edges, stored.outputs, stored.meta)
        except (ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
            raise files.no_circuit(path, error) from error


def same_wires(given: Sequence[Circuit | EdgeScores], caller: str) -> Wires:
    """The graph that all are of.

    Raises:
        ValueError: they are of models of different shapes.
    """
    first, *others = [one.wires for one in given]
    for other in others:
        if other != first:
            raise ValueError(
                f"{caller}: these are of models of different shapes: {first} and "
                f"{other}. Edges are compared by name: give circuits of one model."
            )
    return first


def _numbers_of(scores: Scores | None) -> dict[Edge, dict[str, float]]:
    if scores is None:
        return {}
    if isinstance(scores, Mapping):
        return {edge: {"score": score} for edge, score in scores.items()}
    table: Any = scores.table if isinstance(scores, EdgeScores) else scores
    names = [name for name in NUMBERS if name in table]
    rows = table[names].to_dict("records")
    keys = zip(table["source"], table["target"], strict=True)
    return dict(zip(keys, rows, strict=True))
