"""The graph of a circuit: its parts, pruning against all paths, files, merging."""

import json
import math
import re

import networkx as nx
import numpy as np
import pytest

from mechsink.attribution.wires import Wires
from mechsink.circuits.files import NUMBERS
from mechsink.circuits.graph import Circuit
from mechsink.circuits.merging import merge
from tests.circuits.made import SHAPES, on_paths, random_scores

PLAIN, GROUPED = SHAPES["plain"], SHAPES["grouped"]
WAY = {
    ("input", "a0.h1<v>"): 0.5,
    ("a0.h1", "a1.h0<q>"): -2.0,
    ("a1.h0", "logits"): float("nan"),
}


def way(**options) -> Circuit:
    return Circuit.of(PLAIN, WAY, WAY, **options)


def test_gpt2_small_has_its_published_number_of_edges():
    # EAP-IG's graph: 157 sources, 445 destinations, 32,491 edges
    wires = Wires(12, 12, 12)
    full = Circuit.full(wires)
    assert (len(wires.sources), len(wires.targets)) == (157, 445)
    assert full.n_edges == 32_491 == len(set(full.edges))
    assert full.edges == wires.edges
    assert len(full.nodes) == 158  # the sources and the logits


def test_nodes_say_what_and_where_they_are():
    graph = way().graph
    assert {
        name: (d["layer"], d["kind"], d["site"]) for name, d in graph.nodes(data=True)
    } == {
        "input": (-1, "input", ""),
        "a0.h1<v>": (0, "value", "L0KV1.v"),
        "a0.h1": (0, "head", "L0H1.z"),
        "a1.h0<q>": (1, "query", "L1H0.q"),
        "a1.h0": (1, "head", "L1H0.z"),
        "logits": (2, "logits", ""),
    }
    inside = [(s, t) for s, t, kind in graph.edges(data="kind") if kind == "inside"]
    assert inside == [("a0.h1<v>", "a0.h1"), ("a1.h0<q>", "a1.h0")]
    assert nx.shortest_path_length(graph, "input", "logits") == 5
    assert nx.is_frozen(graph)


def test_a_key_value_head_feeds_its_group_and_an_mlp_is_one_node():
    edges = [("input", "a0.kv1<k>"), ("a0.h2", "m0"), ("m0", "logits")]
    graph = Circuit.of(GROUPED, edges).graph
    assert set(graph.successors("a0.kv1<k>")) == {"a0.h2", "a0.h3"}
    assert graph.nodes["a0.kv1<k>"]["site"] == "L0KV1.k"
    assert list(graph.successors("m0")) == ["logits"]
    assert graph.nodes["m0"]["kind"] == "mlp"


def test_whole_layers_as_sources_are_of_kind_attention():
    wires = SHAPES["whole layers"]
    graph = Circuit.of(wires, [("input", "a0.h1<q>"), ("a0", "logits")]).graph
    assert graph.nodes["a0"]["kind"] == "attention"
    assert list(graph.successors("a0.h1<q>")) == ["a0"]


def test_edges_nodes_and_table_are_in_the_models_order():
    edges = list(reversed(WAY))
    circuit = Circuit.of(PLAIN, edges, WAY)
    assert circuit.edges == tuple(WAY)
    assert circuit.nodes == ("input", "a0.h1", "a1.h0", "logits")
    table = circuit.table
    assert list(table) == ["source", "target", "score", "source_layer", "target_layer"]
    assert table["score"].tolist()[:2] == [0.5, -2.0]
    assert math.isnan(table["score"].iloc[2])
    assert table["target_layer"].tolist() == [0, 1, 2]
    assert Circuit.of(PLAIN, []).table.dtypes.equals(table.dtypes)


def test_intervals_come_with_the_scores_where_they_are_known():
    scores = random_scores(PLAIN, 0)
    scores.table.loc[3, ["low", "high"]] = (-1.0, 1.0)
    circuit = Circuit.of(PLAIN, PLAIN.edges, scores)
    assert circuit.graph.edges[PLAIN.edges[3]]["high"] == 1.0
    assert "high" not in circuit.graph.edges[PLAIN.edges[4]]
    assert [n for n in NUMBERS if n in circuit.table] == ["score", "low", "high"]
    again = Circuit.of(PLAIN, circuit.edges, circuit.table)
    assert again.table.equals(circuit.table)


@pytest.mark.parametrize(
    ("edges", "options", "message"),
    [
        ([("a0.h7", "logits")], {}, "'a0.h7' is no source"),
        ([("input", "a0.h0")], {}, "'a0.h0' is no target"),
        ([("m1", "a1.h0<q>")], {}, "no edge m1 -> a1.h0<q>"),
        ([], {"outputs": []}, "at least one"),
        ([], {"outputs": ["a0.h0"]}, "'a0.h0' is no target"),
        ([("m0", "logits")], {"scores": {("m0", "logits"): math.inf}}, "infinite"),
    ],
)
def test_wrong_edges_outputs_and_scores_are_refused(edges, options, message):
    with pytest.raises(ValueError, match=message):
        Circuit.of(PLAIN, edges, **options)


@pytest.mark.first_case
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("outputs", [["logits"], ["a1.h0<q>", "a1.h1<q>", "logits"]])
def test_pruning_leaves_the_edges_that_are_on_a_path(name, outputs):
    wires, left = SHAPES[name], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        share = rng.choice([0.1, 0.2, 0.4])
        edges = [edge for edge in wires.edges if rng.random() < share]
        pruned = Circuit.of(wires, edges, outputs=outputs).pruned()
        assert set(pruned.edges) == on_paths(wires, edges, outputs)
        assert pruned.pruned().edges == pruned.edges
        left.append(len(pruned.edges) / len(edges) if edges else 1.0)
    assert min(left) < 0.5 < max(left)  # the cases are not all of one kind


def test_pruning_by_hand():
    edges = [
        *WAY,
        ("input", "m0"),  # m0 writes to nothing
        ("m1", "logits"),  # m1 reads nothing
        ("a0.h0", "a1.h0<k>"),  # a0.h0 reads nothing, so two edges go, one by one
        ("a0.h1", "a1.h1<v>"),  # a1.h1 writes to nothing
    ]
    assert Circuit.of(PLAIN, edges).pruned().edges == tuple(WAY)


def test_pruning_may_leave_nothing():
    edges = [("input", "a0.h0<q>"), ("a0.h1", "a1.h0<q>"), ("a1.h0", "logits")]
    assert Circuit.of(PLAIN, edges).pruned().edges == ()


def test_one_head_of_a_group_keeps_its_key_value_head():
    # kv1 feeds h2 and h3; h2 alone writes on, so the edge into kv1 stays
    edges = [("input", "a1.kv1<k>"), ("a1.h2", "logits"), ("input", "a1.kv0<v>")]
    left = Circuit.of(GROUPED, edges).pruned().edges
    assert set(left) == {("input", "a1.kv1<k>"), ("a1.h2", "logits")}
    # and the one edge into kv1 keeps both heads
    both = [("input", "a0.kv1<v>"), ("a0.h2", "logits"), ("a0.h3", "m1")]
    left = Circuit.of(GROUPED, [*both, ("m1", "logits")]).pruned()
    assert set(left.edges) == {*both, ("m1", "logits")}


def test_pruning_keeps_numbers_and_meta():
    circuit = way(meta={"n": 3}).pruned()
    assert circuit.meta == {"n": 3}
    assert circuit.graph.edges["a0.h1", "a1.h0<q>"]["score"] == -2.0


def test_ancestors_are_all_that_leads_to_a_node():
    more = {("input", "m0"): 1.0, ("m0", "a1.h0<k>"): 2.0, ("m0", "logits"): 3.0}
    circuit = Circuit.of(PLAIN, {**WAY, **more}, {**WAY, **more})
    head = circuit.ancestors("a1.h0")
    assert set(head.edges) == {*WAY, *more} - {
        ("a1.h0", "logits"),
        ("m0", "logits"),
    }
    assert head.outputs == ["a1.h0<q>", "a1.h0<k>", "a1.h0<v>"]
    assert head.pruned().edges == head.edges
    assert set(circuit.ancestors("a1.h0<k>").edges) == {*more} - {("m0", "logits")}
    assert circuit.ancestors("m0").edges == (("input", "m0"),)
    assert circuit.ancestors("logits").edges == circuit.edges
    assert circuit.ancestors("m0").graph.edges["input", "m0"]["score"] == 1.0
    for wrong in ("input", "m1"):
        with pytest.raises(ValueError, match=r"Circuit\.ancestors"):
            circuit.ancestors(wrong)


def test_merging_takes_either_or_both_and_averages_scores():
    other = {("input", "a0.h1<v>"): 1.5, ("a1.h0", "logits"): 4.0, ("m0", "m1"): 1.0}
    two = [way(), Circuit.of(PLAIN, other, other)]
    union, common = merge(two), merge(two, "intersection")
    assert set(union.edges) == {*WAY, *other}
    assert set(common.edges) == {("input", "a0.h1<v>"), ("a1.h0", "logits")}
    for merged in (union, common):
        assert merged.graph.edges["input", "a0.h1<v>"]["score"] == 1.0
        assert merged.graph.edges["a1.h0", "logits"]["score"] == 4.0  # NaN is no score
    assert union.graph.edges["m0", "m1"]["score"] == 1.0
    assert merge([way()]).edges == way().edges


def test_merging_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="no circuits"):
        merge([])
    with pytest.raises(ValueError, match="different shapes"):
        merge([way(), Circuit.of(GROUPED, [])])
    sink = Circuit.of(PLAIN, WAY, outputs=["a1.h0<q>"])
    with pytest.raises(ValueError, match="no output in common"):
        merge([way(), sink], "intersection")
    assert merge([way(), sink]).outputs == ["a1.h0<q>", "logits"]


@pytest.mark.parametrize("suffix", [".json", ".graphml"])
@pytest.mark.parametrize("name", SHAPES)
def test_files_bring_everything_back(tmp_path, suffix, name):
    wires = SHAPES[name]
    scores = random_scores(wires, 1)
    scores.table.loc[::3, "score"] = np.nan
    scores.table.loc[1, ["low", "high", "p_value", "q_value"]] = (
        -1,
        1 / 3,
        0.1,
        1e-300,
    )
    meta = {"metric": '<"é\x01>', "n": 5, "tokens": [{"ids": [1]}], "nan": 1}
    outputs = ["a1.h0<q>", "logits"]
    circuit = Circuit.of(wires, wires.edges[::2], scores, outputs=outputs, meta=meta)
    path = circuit.save(tmp_path / f"deep/c{suffix}")
    again = Circuit.load(path)
    assert again.table.equals(circuit.table)  # to the last bit, NaN where it was
    assert (again.wires, again.outputs, again.meta) == (wires, outputs, meta)
    assert dict(again.graph.nodes(data=True)) == dict(circuit.graph.nodes(data=True))
    assert nx.utils.edges_equal(
        again.graph.edges(data="kind"), circuit.graph.edges(data="kind"), directed=True
    )
    assert not re.search(r">nan<|nan,|null,|null}", path.read_text().lower())
    assert again.save(tmp_path / f"b{suffix}").read_bytes() == path.read_bytes()


def test_an_empty_circuit_is_saved_too(tmp_path):
    for suffix in (".json", ".graphml"):
        path = Circuit.of(PLAIN, []).save(tmp_path / f"c{suffix}")
        assert Circuit.load(path).edges == ()


def test_networkx_reads_both_files_without_mechsink(tmp_path):
    circuit = way()
    found = json.loads(circuit.save(tmp_path / "c.json").read_text())
    graph = nx.node_link_graph(found, edges="edges")
    assert set(graph.edges) == set(circuit.graph.edges)
    assert graph.edges["a0.h1", "a1.h0<q>"]["score"] == -2.0
    graph = nx.read_graphml(circuit.save_graphml(tmp_path / "c.xml"))
    assert set(graph.edges) == set(circuit.graph.edges)
    assert graph.nodes["a1.h0"]["site"] == "L1H0.z"
    assert Circuit.load_graphml(tmp_path / "c.xml").edges == circuit.edges


@pytest.mark.parametrize("suffix", [".json", ".graphml"])
def test_a_file_cut_short_is_no_circuit(tmp_path, suffix):
    path = way().save(tmp_path / f"c{suffix}")
    data = path.read_bytes()
    for size in range(0, len(data) - 2, max(len(data) // 25, 1)):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match="holds no circuit"):
            Circuit.load(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("mechsink.circuit", "other.thing"),
        ('"version": 1', '"version": 2'),
        ('"score": 0.5', '"score": "0.5"'),
        ('"score": 0.5', '"score": true'),
        ('"score": 0.5', '"score": Infinity'),
        ('"source": "input"', '"source": "output"'),
        ('"source": "input"', '"source": ["input"]'),
        ('"source": "input", ', ""),
        ('"n_layers": 2', '"n_layers": 1'),
        ('"n_layers": 2', '"n_layers": 20000000'),
        ('"n_layers": 2', '"n_layers": "2"'),
        ('"n_kv_heads": 2', '"n_kv_heads": 0'),
        ('"n_layers": 2, ', ""),
        ('"outputs": ["logits"]', '"outputs": "logits"'),
        ('"outputs": ["logits"]', '"outputs": []'),
        ('"meta": {}', '"meta": [1]'),
        ('"edges": [', '"edges": [7, '),
    ],
)
def test_a_damaged_json_file_is_no_circuit(tmp_path, old, new):
    path = way().save(tmp_path / "c.json")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=r"c\.json holds no circuit .*circuit\.save"):
        Circuit.load(path)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("c.json", b"[1, 2]"),
        ("c.json", b"\xff\xfe\x00"),
        ("c.json", b'{"nodes": [], "edges": []}'),
        ("c.json", b"[" * 100_000),
        ("c.graphml", b"<html></html>"),
        ("c.graphml", b"<graphml/>"),
        ("c.graphml", b"\x00\x01"),
        ("missing.json", None),
        ("missing.graphml", None),
    ],
)
def test_foreign_files_are_no_circuit(tmp_path, name, data):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match="holds no circuit"):
        Circuit.load(tmp_path / name)


def test_another_graphml_file_is_no_circuit(tmp_path):
    nx.write_graphml_xml(
        nx.path_graph(3, create_using=nx.DiGraph), tmp_path / "c.graphml"
    )
    with pytest.raises(ValueError, match="does not name the schema"):
        Circuit.load(tmp_path / "c.graphml")
    path = way().save(tmp_path / "d.graphml")
    path.write_text(path.read_text().replace(">-2.0<", ">minus two<"))
    with pytest.raises(ValueError, match="holds no circuit"):
        Circuit.load(path)


def test_a_file_is_named_json_or_graphml(tmp_path):
    with pytest.raises(ValueError, match=r"Allowed: \.json and \.graphml"):
        way().save(tmp_path / "c.pkl")
    assert list(tmp_path.iterdir()) == []
