"""Completeness and minimality against runs by hand and gates worked by hand."""

import numpy as np
import pytest

from mechsink.attribution.wires import Wires
from mechsink.circuits.completeness import Completeness, completeness
from mechsink.circuits.graph import Circuit
from mechsink.circuits.minimality import Minimality, minimality
from mechsink.metrics import logit_diff
from mechsink.models.toy import ToyModel
from mechsink.prompts import PromptPairs
from tests.circuits.small import (
    logit_diffs,
    pairs_of,
    random_circuit,
    run_by_hand,
    telling_pairs,
    toy,
    writes_of,
)
from toy_tasks.planted import and_gate, or_gate

MODEL = toy(n_kv_heads=2)
PAIRS = telling_pairs(MODEL, 8)


def mean_by_hand(circuit) -> float:
    instead = writes_of(MODEL, PAIRS.corrupted)
    return logit_diffs(run_by_hand(MODEL, PAIRS.clean, circuit, instead), PAIRS).mean()


def test_completeness_against_runs_by_hand():
    circuit = random_circuit(MODEL, 0.5, seed=1)
    edges = Wires.of(MODEL.shape).edges
    found = completeness(MODEL, circuit, PAIRS, logit_diff, samples=6, seed=2)
    whole, nothing = mean_by_hand(edges), mean_by_hand([])
    sets = found.removed.groupby("sample")
    for row in found.table.itertuples():
        out = set()
        if row.sample in sets.groups:
            some = sets.get_group(row.sample)
            out = set(zip(some["source"], some["target"], strict=True))
        assert len(out) == row.removed
        assert out <= set(circuit)
        of_circuit = mean_by_hand([e for e in circuit if e not in out])
        of_model = mean_by_hand([e for e in edges if e not in out])
        assert row.circuit == pytest.approx(of_circuit, abs=1e-9)
        assert row.full == pytest.approx(of_model, abs=1e-9)
        gap = abs(of_circuit - of_model)
        assert row.gap == pytest.approx(gap, abs=1e-9)
        assert row.share == pytest.approx(gap / abs(whole - nothing), abs=1e-9)
        assert row.low - 1e-9 <= row.difference <= row.high + 1e-9
    sizes = found.table["removed"]
    assert sizes[0] == 0
    assert (sizes[1:] >= 1).all()
    assert (sizes[1:] < len(circuit)).all()
    assert sizes.nunique() > 4
    assert found.worst == found.table["gap"].max()


def test_the_full_circuit_is_complete_and_a_half_gate_is_not():
    """OR with one arm left out: take the other out, and the model still says yes."""
    found = completeness(MODEL, Circuit.full(Wires.of(MODEL.shape)), PAIRS, logit_diff)
    assert found.worst < 1e-9
    gate = or_gate(n_prompts=20).double()
    model = ToyModel(gate.model)
    # One bit on in each prompt: the arms serve half of the prompts each.
    arm = {("input", "a0.h0<v>"), ("a0.h0", "m0"), ("m0", "logits")}
    whole = completeness(model, gate.edges, pairs_of(gate), logit_diff)
    half = completeness(model, arm, pairs_of(gate), logit_diff)
    assert whole.worst < 1e-9
    assert half.table["gap"][0] == pytest.approx(4, abs=0.1)  # 8 logits, half of them
    assert half.table["share"][0] == pytest.approx(0.5, abs=0.02)


@pytest.mark.matrix
def test_minimality_against_runs_by_hand():
    circuit = random_circuit(MODEL, 0.25, seed=7)
    found = minimality(MODEL, circuit, PAIRS, logit_diff).table
    whole, nothing = mean_by_hand(circuit), mean_by_hand([])
    effects = {}
    for row in found.itertuples():
        edge = (row.source, row.target)
        want = whole - mean_by_hand([e for e in circuit if e != edge])
        effects[edge] = want
        assert row.effect == pytest.approx(want, abs=1e-9)
        assert row.share == pytest.approx(want / (whole - nothing), abs=1e-9)
        assert row.low - 1e-6 <= row.effect <= row.high + 1e-6
    assert set(effects) == set(circuit)
    largest = dict(effects)
    rising = sorted(circuit, key=lambda edge: abs(effects[edge]))
    decided = []
    for chain in (rising, rising[::-1]):
        decided.append(0)
        left, before = list(circuit), whole
        for edge in chain:
            left.remove(edge)
            now = mean_by_hand(left)
            if abs(before - now) > abs(largest[edge]) + 1e-12:
                largest[edge] = before - now
                decided[-1] += 1
            before = now
    for row in found.itertuples():
        assert row.largest == pytest.approx(largest[row.source, row.target], abs=1e-9)
    assert min(decided) > 0  # both chains have a say


def test_idle_edges_show_and_edges_that_back_each_other_up_do_not():
    """Both bits of an OR on: alone no arm matters, the second to go does."""
    gate = or_gate(n_prompts=20).double()
    model = ToyModel(gate.model)
    both = gate.clean.clone()
    both[:, [2, 4]] = 1
    none = gate.corrupted.clone()
    pairs = PromptPairs(both, none, gate.answers, gate.wrong)
    idle = ("input", "a0.h0<q>")
    found = minimality(model, [*gate.edges, idle], pairs, logit_diff).table
    table = found.set_index(["source", "target"])
    assert table.loc[idle, "largest"] == pytest.approx(0, abs=1e-9)
    for arm in (0, 1):
        row = table.loc[("input", f"a0.h{arm}<v>")]
        # A bit is worth a little more than the gate needs: 8 logits, less the clipping.
        assert row["effect"] == pytest.approx(0, abs=0.2)
    arms = [("input", "a0.h0<v>"), ("input", "a0.h1<v>"), ("a0.h0", "m0"),
            ("a0.h1", "m0")]  # fmt: skip
    assert table.loc[arms, "largest"].max() == pytest.approx(8, abs=0.2)
    assert table.loc[[("m0", "logits")], "effect"].item() == pytest.approx(8, abs=0.2)


def test_every_planted_edge_of_a_gate_is_needed():
    gate = and_gate(n_prompts=20).double()
    found = minimality(ToyModel(gate.model), gate.edges, pairs_of(gate), logit_diff)
    assert (found.table["effect"] > gate.effect_floor).all()
    assert (found.table["q_value"] < 0.05).all()
    assert (found.table["low"] > 0).all()


def test_results_save_and_load(tmp_path):
    circuit = random_circuit(MODEL, 0.3, seed=0)
    first = completeness(MODEL, circuit, PAIRS, logit_diff, samples=2)
    second = minimality(MODEL, circuit, PAIRS, logit_diff, ablation="zero")
    again = Completeness.load(first.save(tmp_path / "a"))
    assert again.removed.equals(first.removed)
    assert Minimality.load(second.save(tmp_path / "b")).ablation == "zero"
    assert second.meta["settings"]["ablation"] == "zero"
    same = completeness(MODEL, circuit, PAIRS, logit_diff, samples=2)
    assert np.array_equal(same.table, first.table)


def test_bad_input():
    with pytest.raises(ValueError, match=r"completeness: the circuit has no edges"):
        completeness(MODEL, [], PAIRS, logit_diff)
    with pytest.raises(ValueError, match=r"minimality: the circuit has no edges"):
        minimality(MODEL, [], PAIRS, logit_diff)
    with pytest.raises(ValueError, match=r"samples=0. Allowed: 1 and more"):
        completeness(MODEL, [("m0", "m1")], PAIRS, logit_diff, samples=0)
    with pytest.raises(ValueError, match=r"'m7' is no source"):
        minimality(MODEL, [("m7", "logits")], PAIRS, logit_diff)
    one = completeness(MODEL, [("m0", "m1")], PAIRS, logit_diff, samples=2)
    assert one.table["removed"].tolist() == [0, 1, 1]
