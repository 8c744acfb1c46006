"""ACDC against the plain loop, brute force and planted circuits."""

import dataclasses

import numpy as np
import pytest
import torch

import mechsink.circuits.acdc_search as acdc_search
from mechsink.attribution.wires import Wires
from mechsink.circuits.acdc import acdc, acdc_sweep
from mechsink.circuits.evaluation import CircuitRuns
from mechsink.metrics import logit_diff, sink_attention
from mechsink.models.bridge import BridgeModel
from mechsink.models.toy import ToyModel
from tests.circuits.small import pairs_of, telling_pairs, toy
from tests.interventions.float64 import float64_inside, peer_model
from tests.toy_tasks.edge_brute_force import pruned
from toy_tasks.planted import PLANTED

MODEL = toy(n_heads=2, n_kv_heads=1)
PAIRS = telling_pairs(MODEL, 5)
SINK = sink_attention(layer=1, head=1)
QUICK = ("induction-grouped", "and", "or-rms", "backcopy-grouped", "duplicate-rms")
CASES = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.matrix)
    for name in PLANTED
]


def plain_loop(model, pairs, metric, tau, ends, order="reverse"):
    """One edge at a time."""
    wires = Wires.of(model.shape)
    runs = CircuitRuns.of("test", model, pairs, metric)

    def value(edges):
        return runs.values(runs.mask(edges)[None]).mean()

    kept = set(wires.edges)
    full = mean = value(kept)
    scores, measured = {}, 0
    for target in reversed(wires.targets):
        into = [edge for edge in wires.edges if edge[1] == target]
        for edge in into if order == "normal" else reversed(into):
            inside = wires.inside(target)
            alive = target in ends or any(source in inside for source, _ in kept)
            if not alive:
                kept.discard(edge)
                continue
            measured += 1
            new = value(kept - {edge})
            if abs(full - new) - abs(full - mean) < tau:
                kept.discard(edge)
                mean = new
            else:
                scores[edge] = mean - new
    return kept, scores, measured


@pytest.mark.first_case
@pytest.mark.parametrize("order", ["reverse", "normal"])
@pytest.mark.parametrize("tau", [0.0, 0.003, 0.01, 0.05])
@pytest.mark.some_cases(3)
@pytest.mark.matrix
def test_it_is_the_plain_loop(tau, order):
    got = acdc(MODEL, PAIRS, logit_diff, tau=tau, order=order)
    want, scores, measured = plain_loop(
        MODEL, PAIRS, logit_diff, tau, {"logits"}, order
    )
    assert set(got.edges) == want
    assert got.meta["measured"] == measured
    table = got.table.set_index(["source", "target"])["score"]
    for edge, score in scores.items():
        assert table[edge] == pytest.approx(score, abs=1e-9)


@pytest.mark.matrix
def test_thresholds_and_orders_matter():
    """Else the test above would compare like with like."""
    found = [
        set(acdc(MODEL, PAIRS, logit_diff, tau=tau, order=order).edges)
        for tau, order in ((0.003, "reverse"), (0.01, "reverse"), (0.01, "normal"))
    ]
    assert len(found[0]) > len(found[1]) > 3
    assert found[1] != found[2]


@pytest.mark.matrix
@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_batches_of_any_size_decide_alike(at_once, monkeypatch):
    want = acdc(MODEL, PAIRS, logit_diff, tau=0.02)
    monkeypatch.setattr(acdc_search, "AT_ONCE", at_once)
    got = acdc(MODEL, PAIRS, logit_diff, tau=0.02)
    assert got.edges == want.edges
    assert got.meta["measured"] == want.meta["measured"]
    if at_once == 1:
        assert got.meta["trials"] == got.meta["measured"]


@pytest.mark.matrix
@pytest.mark.parametrize("family", ["gpt_neox", "gemma2"])
@pytest.mark.slow
def test_other_architectures(family):
    """Parallel blocks, grouped keys and post-norms, against the plain loop."""
    with float64_inside():
        model = BridgeModel(peer_model(family), name=family)
        pairs = telling_pairs(model, 2, seed=1)
        got = acdc(model, pairs, logit_diff, tau=0.1)
        want, _, measured = plain_loop(model, pairs, logit_diff, 0.1, {"logits"})
    assert set(got.edges) == want
    assert got.meta["measured"] == measured
    assert 3 < len(want) < len(got.wires.edges) / 2


@pytest.mark.matrix
def test_a_sinks_circuit_ends_at_its_head():
    ends = {"a1.h1<q>", "a1.kv0<k>"}
    got = acdc(MODEL, PAIRS, SINK, tau=0.002)
    want, _, measured = plain_loop(MODEL, PAIRS, SINK, 0.002, ends)
    assert set(got.edges) == want
    assert got.meta["measured"] == measured
    assert set(got.outputs) == ends
    layer_one = {target for _, target in got.edges if target.startswith(("a1", "m1"))}
    assert layer_one == ends
    assert "logits" not in {target for _, target in got.edges}


@pytest.mark.first_case
@pytest.mark.parametrize("name", CASES)
@pytest.mark.some_cases(6)
def test_planted_circuits_come_back_edge_by_edge(name):
    """tau between what false edges can do and what true ones do."""
    case = PLANTED[name](n_prompts=30).double()
    model, pairs = ToyModel(case.model), pairs_of(case)
    tau = case.noise_bound + 0.1 * case.effect_floor
    assert tau < case.effect_floor
    by_metric = acdc(model, pairs, logit_diff, tau=tau)
    assert set(by_metric.edges) == case.edges
    assert (by_metric.table["score"] > tau).all()
    assert by_metric.pruned().edges == by_metric.edges
    assert set(acdc(model, pairs, tau=0.1).edges) == case.edges


@pytest.mark.matrix
@pytest.mark.parametrize("objective", ["kl", "metric"])
def test_against_brute_force_from_the_weights(objective):
    """Another implementation, which shares no code with this one."""
    planted = PLANTED["and"](n_prompts=10).double()
    case = dataclasses.replace(
        planted, model=MODEL.toy, clean=PAIRS.clean, corrupted=PAIRS.corrupted,
        answers=PAIRS.answers, wrong=PAIRS.wrong,
    )  # fmt: skip

    def kl(full, now):
        p, q = (x[:, -1].log_softmax(-1) for x in (full, now))
        return (p.exp() * (p - q)).sum(-1).mean().item()

    def drop(full, now):
        return (case.logit_diff(full) - case.logit_diff(now)).mean().abs().item()

    harm, metric = (kl, None) if objective == "kl" else (drop, logit_diff)
    sizes = set()
    for tau in (1e-4, 3e-3, 3e-2):
        got = acdc(MODEL, PAIRS, metric, tau=tau)
        assert set(got.edges) == pruned(case, tau, harm)
        sizes.add(got.n_edges)
    assert len(sizes) > 2


def test_the_kl_is_of_the_last_position_in_nats():
    """The score of a kept edge is the growth of the KL when it goes."""
    case = PLANTED["and"](n_prompts=10).double()
    model, pairs = ToyModel(case.model), pairs_of(case)
    found = acdc(model, pairs, logit_diff, tau=0.1, objective="kl")
    assert found.meta["metric"] == "kl_to_full"
    first = ("m0", "logits")  # the last into the logits, so the first to be tried
    logits = model.run(case.clean).logits[:, -1]
    other = model.run(case.corrupted).logits[:, -1]
    p, q = logits.log_softmax(-1), other.log_softmax(-1)
    want = (p.exp() * (p - q)).sum(-1).mean()
    table = found.table.set_index(["source", "target"])["score"]
    # Without norms the MLP is all that the corruption changes in the logits.
    assert table[first] == pytest.approx(float(want), rel=1e-6)


@pytest.mark.matrix
def test_a_sweep_of_thresholds():
    taus = (0.1, 0.003, 0.02)
    free = acdc_sweep(MODEL, PAIRS, logit_diff, taus=taus)
    assert list(free) == sorted(taus)
    for tau, circuit in free.items():
        assert circuit.edges == acdc(MODEL, PAIRS, logit_diff, tau=tau).edges
    nested = acdc_sweep(MODEL, PAIRS, logit_diff, taus=taus, nested=True)
    sets = [set(circuit.edges) for circuit in nested.values()]
    assert sets[0] > sets[1] > sets[2]
    assert nested[0.003].edges == free[0.003].edges
    measured = [circuit.meta["measured"] for circuit in nested.values()]
    assert measured == sorted(measured, reverse=True)
    assert nested[0.1].meta["nested"]
    again = acdc(MODEL, PAIRS, logit_diff, tau=0.02, within=nested[0.003])
    assert again.edges == nested[0.02].edges
    assert again.meta["n_begin"] == nested[0.003].n_edges


@pytest.mark.matrix
def test_the_model_comes_back_unchanged_and_the_circuit_saves(tmp_path):
    before = {name: x.clone() for name, x in MODEL.toy.state_dict().items()}
    found = acdc(MODEL, PAIRS, logit_diff, tau=0.02)
    for name, x in MODEL.toy.state_dict().items():
        assert torch.equal(x, before[name])
    again = type(found).load(found.save(tmp_path / "circuit.json"))
    assert again.edges == found.edges
    assert again.meta["tau"] == 0.02
    assert again.meta["objective"] == "metric"
    assert again.meta["n_graph"] == len(found.wires.edges)


def test_bad_input():
    for tau in (-0.1, np.nan, np.inf):
        with pytest.raises(ValueError, match=r"Allowed: finite thresholds from 0 on"):
            acdc(MODEL, PAIRS, logit_diff, tau=tau)
    with pytest.raises(ValueError, match="each once"):
        acdc_sweep(MODEL, PAIRS, logit_diff, taus=[0.1, 0.1])
    with pytest.raises(ValueError, match="Allowed: finite thresholds"):
        acdc_sweep(MODEL, PAIRS, logit_diff, taus=[])
    with pytest.raises(ValueError, match=r"acdc: 'm9' is no source"):
        acdc(MODEL, PAIRS, logit_diff, tau=0.1, within=[("m9", "logits")])
    with pytest.raises(ValueError, match=r"needs a metric, such as ms.logit_diff"):
        acdc(MODEL, PAIRS, tau=0.1, objective="metric")
    # A query that sees one key alone gives it all its attention in any run.
    constant = sink_attention(layer=0, head=0)
    one = telling_pairs(MODEL, 2)
    short = type(one)(one.clean[:, :1], one.corrupted[:, :1] + 1)
    with pytest.raises(ValueError, match=r"acdc: .*it is constant"):
        acdc(MODEL, short, constant, tau=0.1)
