"""Likeness of circuits and scores, against counting pair by pair."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from mechsink.attribution.wires import Wires
from mechsink.circuits.compare import compare, edge_auroc, jaccard, rank_correlation
from mechsink.circuits.graph import Circuit
from mechsink.circuits.selection import top_edges
from tests.circuits.made import SHAPES, made_scores, random_scores

WIRES = SHAPES["plain"]
EDGES = WIRES.edges


def circuit(places, scores=None) -> Circuit:
    return Circuit.of(WIRES, [EDGES[place] for place in places], scores)


def test_jaccard_by_hand():
    assert jaccard(circuit([0, 1, 2]), circuit([1, 2, 3, 4])) == 2 / 5
    assert jaccard(circuit([0]), circuit([1])) == 0
    assert jaccard(circuit([3, 4]), circuit([4, 3])) == 1
    assert jaccard(circuit([]), circuit([4])) == 0
    assert math.isnan(jaccard(circuit([]), circuit([])))
    with pytest.raises(ValueError, match="different shapes"):
        jaccard(circuit([0]), Circuit.of(SHAPES["grouped"], []))


@pytest.mark.parametrize("by", ["abs", "signed"])
@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_the_share_of_pairs_won(by, seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(-3, 4, size=len(EDGES))  # small whole numbers: many ties
    is_true = rng.random(len(EDGES)) < 0.2
    scores = made_scores(WIRES, dict(zip(EDGES, values, strict=True)))
    ranked = abs(values) if by == "abs" else values
    wins = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a, b in itertools.product(ranked[is_true], ranked[~is_true])
    ]
    true_edges = [edge for edge, known in zip(EDGES, is_true, strict=True) if known]
    wanted = sum(wins) / len(wins)
    assert edge_auroc(scores, true_edges, by=by) == pytest.approx(wanted, abs=1e-12)
    found = edge_auroc(scores, Circuit.of(WIRES, true_edges), by=by)
    assert found == pytest.approx(wanted, abs=1e-12)


def test_auroc_at_its_ends():
    scores = made_scores(WIRES, {EDGES[0]: -2.0, EDGES[1]: 1.0})
    assert edge_auroc(scores, EDGES[:2]) == 1
    assert edge_auroc(scores, EDGES[:1], by="signed") == 0
    assert edge_auroc(made_scores(WIRES, {}), EDGES[:3]) == 0.5


@pytest.mark.parametrize(
    ("true_edges", "message"),
    [
        ([], f"0 of {len(EDGES)} edges are true"),
        (EDGES, f"{len(EDGES)} of {len(EDGES)} edges are true"),
        ([("input", "a9.h0<q>")], "'a9.h0<q>' is no target"),
        ([("m1", "m0")], "no edge m1 -> m0"),
    ],
)
def test_auroc_refuses_true_edges_that_tell_nothing(true_edges, message):
    with pytest.raises(ValueError, match=message):
        edge_auroc(made_scores(WIRES, {}), true_edges)


def test_auroc_refuses_edges_without_a_score():
    scores = made_scores(WIRES, {})
    scores = replace(scores, table=scores.table.drop(index=0))
    with pytest.raises(ValueError, match="has no score in the table"):
        edge_auroc(scores, EDGES[:2])
    with pytest.raises(ValueError, match="no rank"):
        edge_auroc(made_scores(WIRES, {EDGES[4]: math.nan}), EDGES[:2])


def test_spearman_by_hand():
    a = dict(zip(EDGES[:5], [1.0, 2.0, 3.0, 4.0, 9.0], strict=True))
    b = dict(zip(EDGES[:5], [20.0, 10.0, 30.0, 50.0, 40.0], strict=True))
    one, two = Circuit.of(WIRES, a, a), Circuit.of(WIRES, b, b)
    # 1 - 6 sum(d^2) / (n (n^2 - 1)) with d = 1, 1, 0, 1, 1
    assert rank_correlation(one, two) == pytest.approx(1 - 6 * 4 / 120)
    minus = {edge: -value for edge, value in b.items()}
    three = Circuit.of(WIRES, minus, minus)
    assert rank_correlation(one, three) == pytest.approx(-0.8)
    assert rank_correlation(one, three, by="abs") == pytest.approx(0.8)


def test_spearman_is_over_edges_with_a_score_in_both():
    a = dict(zip(EDGES[:4], [1.0, 2.0, 3.0, math.nan], strict=True))
    b = dict(zip(EDGES[1:6], [5.0, 6.0, 1.0, 0.0, 7.0], strict=True))
    one, two = Circuit.of(WIRES, a, a), Circuit.of(WIRES, b, b)
    # two edges, both rising
    assert rank_correlation(one, two) == pytest.approx(1, abs=1e-12)
    assert math.isnan(rank_correlation(one, circuit([0, 1])))  # no scores
    assert math.isnan(rank_correlation(one, made_scores(WIRES, {})))  # all equal


def test_compare_puts_every_pair_side_by_side():
    scores = {name: random_scores(WIRES, seed) for seed, name in enumerate("xyz")}
    table = compare(scores, 12)
    assert list(table) == ["first", "second", "n", "jaccard", "n_common", "spearman"]
    pairs = list(zip(table["first"], table["second"], strict=True))
    assert pairs == [("x", "y"), ("x", "z"), ("y", "z")]
    tops = {name: {*top_edges(s, 12, prune=False).edges} for name, s in scores.items()}
    assert table["jaccard"].tolist() == [
        len(tops[a] & tops[b]) / len(tops[a] | tops[b]) for a, b in pairs
    ]
    assert (table["n_common"] == len(EDGES)).all()
    got = rank_correlation(scores["x"], scores["z"], by="abs")
    assert table["spearman"].iloc[1] == got
    assert compare({"a": scores["x"], "b": scores["x"]})["jaccard"].tolist() == [1.0]
    assert compare({"a": scores["x"], "b": scores["x"]})["n"].item() == len(EDGES) // 10


def test_compare_cuts_circuits_to_equal_size():
    values = dict(zip(EDGES[:4], [0.1, -9.0, 0.2, 5.0], strict=True))
    large, small = Circuit.of(WIRES, values, values), circuit([1, 3])
    assert compare({"large": large, "small": small})["jaccard"].tolist() == [1.0]
    signed = compare({"large": large, "small": small}, by="signed")
    assert signed["jaccard"].tolist() == [1 / 3]
    with pytest.raises(ValueError, match=r"'bare' has 3 edges, some without a score"):
        compare({"bare": circuit([0, 1, 2]), "small": small})


def test_compare_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="Give two or more"):
        compare({"x": circuit([0])})
    with pytest.raises(ValueError, match="different shapes"):
        compare({"x": circuit([0]), "y": Circuit.full(Wires(1, 1, 1))})
    with pytest.raises(ValueError, match="Allowed: 0 to 1"):
        compare({"x": circuit([0]), "y": circuit([0, 1])}, 2)
