"""Choosing edges: examples by hand, and a slow greedy search."""

from dataclasses import replace

import numpy as np
import pytest

from mechsink.attribution.wires import Wires
from mechsink.circuits.selection import checked_count, greedy_edges, top_edges
from tests.circuits.made import SHAPES, made_scores, on_paths, random_scores

WIRES = Wires(2, 1, 1)
HAND = {
    ("input", "a0.h0<v>"): 9.0,
    ("a0.h0", "m0"): -8.0,
    ("m0", "a1.h0<q>"): 7.0,
    ("m0", "logits"): 2.0,
    ("a1.h0", "logits"): -1.0,
}


def test_top_edges_by_hand():
    scores = made_scores(WIRES, HAND)
    # three large edges in a row, which reach no output: nothing is left
    assert top_edges(scores, 3).edges == ()
    assert top_edges(scores, 3).meta["n_edges"] == 0
    # the fourth joins m0 to the logits; the way into a1.h0 leads nowhere still
    assert set(top_edges(scores, 4).edges) == {*list(HAND)[:2], ("m0", "logits")}
    assert set(top_edges(scores, 5).edges) == set(HAND)


def test_top_edges_before_pruning_are_the_largest():
    scores = made_scores(WIRES, HAND)
    circuit = top_edges(scores, 3, prune=False)
    assert set(circuit.edges) == set(list(HAND)[:3])
    wanted = {"selection": "top", "sign": "absolute", "n": 3, "n_edges": 3}
    wanted |= {"pruned": False, "n_graph": len(WIRES.edges), "method": "eap"}
    assert circuit.meta.items() >= wanted.items()
    assert circuit.graph.edges["a0.h0", "m0"]["score"] == -8.0


def test_signed_selection_ranks_by_the_score_itself():
    scores = made_scores(WIRES, HAND)
    circuit = top_edges(scores, 3, signed=True, prune=False)
    assert set(circuit.edges) == {*list(HAND)[:1], *list(HAND)[2:4]}
    assert circuit.meta["sign"] == "signed"
    last = top_edges(scores, len(WIRES.edges) - 1, signed=True, prune=False)
    assert set(WIRES.edges) - set(last.edges) == {("a0.h0", "m0")}


def test_ties_go_to_the_earlier_edge_however_the_table_is_sorted():
    scores = made_scores(WIRES, {("m1", "logits"): 1.0})
    chosen = top_edges(scores, 4, prune=False).edges
    assert chosen == (*WIRES.edges[:3], ("m1", "logits"))
    backwards = scores.table.sort_index(ascending=False, ignore_index=True)
    scores = replace(scores, table=backwards)
    assert top_edges(scores, 4, prune=False).edges == chosen
    forwards = made_scores(WIRES, {("m1", "logits"): 1.0})
    assert greedy_edges(scores, 6).edges == greedy_edges(forwards, 6).edges != ()


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.first_case
def test_top_edges_leave_what_is_on_a_path(name):
    wires = SHAPES[name]
    for seed in range(10):
        scores = random_scores(wires, seed)
        for n in (0, 5, len(wires.edges) // 3, len(wires.edges)):
            order = np.argsort(-scores.table["score"].abs().to_numpy())[:n]
            chosen = [wires.edges[place] for place in order]
            wanted = on_paths(wires, chosen, ["logits"])
            assert set(top_edges(scores, n).edges) == wanted


def test_greedy_edges_by_hand():
    scores = made_scores(WIRES, HAND)
    # upward from the logits: m0 -> logits (2), then a0.h0 -> m0 (8), then
    # input -> a0.h0<v> (9), then a1.h0 -> logits (1), then m0 -> a1.h0<q> (7)
    order = [("m0", "logits"), ("a0.h0", "m0"), ("input", "a0.h0<v>")]
    order += [("a1.h0", "logits"), ("m0", "a1.h0<q>")]
    for n in range(6):
        found = greedy_edges(scores, n, prune=False)
        assert set(found.edges) == set(order[:n])
    # no way begins at the input before the third; a1.h0 has no edge into it at four
    sizes = [greedy_edges(scores, n).n_edges for n in range(6)]
    assert sizes == [0, 0, 0, 3, 3, 5]
    assert greedy_edges(scores, 4).meta["selection"] == "greedy"


def slow_greedy(scores, n, signed):
    """The best edge whose target is an output or feeds a chosen source, n times."""
    wires, table = scores.wires, scores.table
    values = dict(
        zip(
            zip(table["source"], table["target"], strict=True),
            table["score"],
            strict=True,
        )
    )
    chosen: list[tuple[str, str]] = []
    for _ in range(n):
        sources = {source for source, _ in chosen}
        open_edges = [
            (source, target)
            for source, target in wires.edges
            if (source, target) not in chosen
            and (target in scores.outputs or sources & set(wires.inside(target)))
        ]
        if not open_edges:
            break
        size = (lambda e: values[e]) if signed else (lambda e: abs(values[e]))
        chosen.append(max(open_edges, key=size))
    return chosen


@pytest.mark.first_case
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("outputs", [["logits"], ["a1.h0<q>", "a1.h1<q>"]])
def test_greedy_edges_agree_with_a_slow_search(name, signed, outputs):
    wires = SHAPES[name]
    for seed in range(4):
        scores = random_scores(wires, seed, outputs)
        for n in (1, 7, 20):
            wanted = slow_greedy(scores, n, signed)
            found = greedy_edges(scores, n, signed=signed, prune=False)
            assert set(found.edges) == set(wanted)
            left = greedy_edges(scores, n, signed=signed)
            assert set(left.edges) == on_paths(wires, wanted, outputs)


def test_greedy_edges_stop_where_nothing_more_leads_to_the_outputs():
    scores = random_scores(WIRES, 0, ["m0"])
    found = greedy_edges(scores, len(WIRES.edges))
    leading = [edge for edge in WIRES.edges if edge[1] == "m0" or "a0" in edge[1]]
    assert set(found.edges) == set(leading)
    assert found.meta["n"] == len(WIRES.edges)


def test_with_grouped_queries_one_edge_into_keys_serves_several_heads():
    wires = Wires(1, 4, 2)
    values = {("a0.h2", "logits"): 4.0, ("a0.h3", "logits"): 3.0}
    values |= {("input", "a0.kv1<k>"): 2.0, ("input", "a0.kv0<v>"): 1.5}
    scores = made_scores(wires, values)
    for select in (top_edges, greedy_edges):
        assert set(select(scores, 3).edges) == set(list(values)[:3])
    # the fourth largest feeds h0 and h1, which write nothing: dropped, or never met
    assert set(top_edges(scores, 4).edges) == set(list(values)[:3])
    fourth = set(greedy_edges(scores, 4, prune=False).edges) - set(list(values)[:3])
    assert fourth == {("input", "a0.h2<q>")}  # all else scores 0: the first in order


@pytest.mark.parametrize("select", [top_edges, greedy_edges])
def test_wrong_numbers_of_edges_are_refused(select):
    scores = made_scores(WIRES, HAND)
    n = len(WIRES.edges)
    assert select(scores, np.int64(n)).n_edges == n
    for wrong in (-1, n + 1):
        with pytest.raises(ValueError, match=rf"n={wrong} .*Allowed: 0 to {n}"):
            select(scores, wrong)
    with pytest.raises(ValueError, match="no whole number"):
        select(scores, True)
    for wrong in (2.0, "3", None):
        with pytest.raises(ValueError, match="no whole number"):
            checked_count(wrong, n, "top_edges")


@pytest.mark.parametrize("select", [top_edges, greedy_edges])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_without_a_rank_are_refused(select, value):
    scores = made_scores(WIRES, {("m0", "a1.h0<q>"): value})
    with pytest.raises(ValueError, match=r"score of m0 -> a1\.h0<q> is .*no rank"):
        select(scores, 3)


@pytest.mark.matrix
def test_gpt2_small_is_selected_whole():
    scores = random_scores(Wires(12, 12, 12), 0)
    assert top_edges(scores, 32_491).n_edges == 32_491
    assert greedy_edges(scores, 32_491).n_edges == 32_491
    with pytest.raises(ValueError, match="Allowed: 0 to 32491"):
        top_edges(scores, 32_492)
