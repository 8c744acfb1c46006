"""A networkx graph as a circuit, by way of files and other tools; what is refused."""

import json
import math

import networkx as nx
import pytest

from mechsink.circuits.graph import Circuit
from tests.circuits.made import SHAPES, random_scores
from tests.circuits.small import toy

PLAIN = SHAPES["plain"]


def by_hand() -> nx.DiGraph:
    graph = nx.DiGraph()
    graph.add_edge("input", "a0.h1<v>", score=0.5, colour="red")
    graph.add_edge("a0.h1", "a1.h0<q>", weight=-2)
    graph.add_edge("a1.h0", "logits")
    return graph


def test_a_graph_made_by_hand_is_a_circuit() -> None:
    graph = by_hand()
    circuit = Circuit.from_graph(graph, PLAIN)
    scores = dict(zip(circuit.edges, circuit.table["score"], strict=True))
    assert scores["input", "a0.h1<v>"] == 0.5
    assert scores["a0.h1", "a1.h0<q>"] == -2.0
    assert math.isnan(scores["a1.h0", "logits"])
    assert circuit.graph.edges["a1.h0<q>", "a1.h0"]["kind"] == "inside"
    assert circuit.outputs == ["logits"]
    assert nx.utils.graphs_equal(graph, by_hand())  # as it was, and not frozen
    graph.add_edge("m0", "logits")


@pytest.mark.parametrize("name", SHAPES)
def test_every_way_there_and_back_gives_the_same_circuit(name, tmp_path) -> None:
    wires = SHAPES[name]
    scores = random_scores(wires, 3)
    circuit = Circuit.of(wires, wires.edges[::3], scores, outputs=["a1.h0<q>"])
    path = circuit.save(tmp_path / "c.json")
    link = nx.node_link_graph(json.loads(path.read_text()), edges="edges")
    ml = nx.read_graphml(circuit.save(tmp_path / "c.graphml"))
    # A tool that keeps no attribute of the graph, and other names' order.
    bare = nx.DiGraph()
    bare.add_edges_from(reversed([*circuit.graph.edges(data=True)]))
    ways = {
        "its own graph": Circuit.from_graph(circuit.graph),
        "a copy": Circuit.from_graph(circuit.graph.copy()),
        "JSON": Circuit.from_graph(link),
        "GraphML": Circuit.from_graph(ml),
        "like scores": Circuit.from_graph(bare, scores, outputs=circuit.outputs),
        "like a circuit": Circuit.from_graph(bare, circuit, outputs=["a1.h0<q>"]),
    }
    for way, found in ways.items():
        assert found.wires == wires, way
        assert found.outputs == circuit.outputs, way
        assert found.table.equals(circuit.table), way
        assert set(found.graph.edges) == set(circuit.graph.edges), way


def test_other_tools_attributes_are_left_out(tmp_path) -> None:
    """Positions, colours and labels that a graph editor adds, and its own types."""
    graph = nx.read_graphml(
        Circuit.from_graph(by_hand(), PLAIN).save(tmp_path / "c.graphml")
    )
    for node in graph:
        graph.nodes[node].update(x=1.5, y=2.5, label=node, r=255)
    nx.write_graphml(graph, tmp_path / "edited.graphml")
    found = Circuit.from_graph(nx.read_graphml(tmp_path / "edited.graphml"))
    assert found.n_edges == 3
    assert "x" not in found.graph.nodes["input"]


def test_a_model_says_the_names_too() -> None:
    model = toy()
    graph = nx.DiGraph([("input", "a0.h3<k>"), ("a0.h3", "m1"), ("m1", "logits")])
    for like in (model, model.toy):  # a mechsink model, and the object itself
        assert Circuit.from_graph(graph, like).nodes == (
            "input", "a0.h3", "m1", "logits",
        )  # fmt: skip


def with_edge(*edge, **data) -> nx.DiGraph:
    graph = by_hand()
    graph.add_edge(*edge, **data)
    return graph


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (with_edge("a0.h1", "a1.h0<w>"), r"'a1.h0<w>' is no node .*mean 'a1.h0<"),
        (with_edge("a0.h7", "logits"), "'a0.h7' is no node of this model"),
        (with_edge(3, "logits"), "3 is no node"),
        (with_edge("m1", "a0.h0<q>"), "no edge m1 -> a0.h0<q>"),
        (with_edge("a1.h0", "a0.h1<v>"), r"a cycle: .*a0\.h1 -> a1\.h0<q>"),
        (with_edge("m0", "m0"), "a cycle: m0 -> m0"),
        (with_edge("m0", "logits", score="high"), "score='high' of the edge m0"),
        (with_edge("m0", "logits", score=True), "score=True of the edge m0"),
        (with_edge("m0", "logits", weight=[1]), "is no number"),
        (with_edge("m0", "logits", score=math.inf), "infinite"),
        (with_edge("m0", "logits", kind="inside"), "is of kind 'inside'"),
        (by_hand().to_undirected(), "has no directions"),
        (nx.MultiDiGraph(by_hand()), "two edges between the same"),
        ({"input": ["logits"]}, r"got a dict\. Allowed: a networkx\.DiGraph"),
    ],
)
def test_what_is_no_circuit_is_refused(graph, message) -> None:
    with pytest.raises(ValueError, match=rf"Circuit.*{message}"):
        Circuit.from_graph(graph, PLAIN)


def test_a_graph_must_say_which_model_it_is_of() -> None:
    graph = by_hand()
    with pytest.raises(ValueError, match=r"does not say which model .*like=model"):
        Circuit.from_graph(graph)
    graph.graph["wires"] = {"layers": 2}
    with pytest.raises(ValueError, match="not what a Circuit writes there"):
        Circuit.from_graph(graph)
    with pytest.raises(ValueError, match="a list of targets"):
        Circuit.from_graph(by_hand(), PLAIN, outputs="logits")
    with pytest.raises(ValueError, match="this is 'smollm2'"):
        Circuit.from_graph(by_hand(), "smollm2")
