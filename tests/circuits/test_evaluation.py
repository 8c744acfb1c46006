"""Circuits run with true edge patching, against runs by hand and other engines."""

import numpy as np
import pytest
import torch

import mechsink.circuits.evaluation as evaluation
from mechsink.attribution.exact import exact_edges
from mechsink.attribution.wires import Wires
from mechsink.circuits.evaluation import CircuitRuns, circuit_metric
from mechsink.circuits.graph import Circuit
from mechsink.interventions.paths import path_patch
from mechsink.metrics import logit_diff, sink_attention
from mechsink.models.bridge import BridgeModel
from mechsink.prompts import PromptPairs
from tests.circuits.small import (
    logit_diffs,
    prompt_pairs,
    random_circuit,
    run_by_hand,
    toy,
    writes_of,
)
from tests.interventions.float64 import float64_inside, peer_model

PAIRS = prompt_pairs()
TOYS = [("layer", 4), ("layer", 2), ("rms", 2), ("none", 1)]
FAMILIES = (
    "gpt2",
    "gpt_neox",
    "llama",
    "gemma2",
)  # plain, parallel, grouped, post-norm
EXACT = {"rtol": 1e-9, "atol": 1e-11}


@pytest.mark.parametrize(("norm", "n_kv_heads"), TOYS)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.first_case
def test_a_circuit_equals_a_run_split_by_hand(norm, n_kv_heads, share):
    """Corrupted writes, zeros and means on every edge outside the circuit."""
    model = toy(norm=norm, n_kv_heads=n_kv_heads)
    circuit = random_circuit(model, share, seed=3)
    others = prompt_pairs(7, seed=9).clean
    writes = writes_of(model, PAIRS.corrupted)
    means = writes_of(model, others)
    instead = {
        "patch": writes,
        "zero": {name: torch.zeros_like(x) for name, x in writes.items()},
        "mean": {name: x.mean(0, keepdim=True) for name, x in means.items()},
    }
    found = []
    for ablation, values in instead.items():
        got = circuit_metric(
            model, circuit, PAIRS, logit_diff, ablation=ablation,
            reference=others if ablation == "mean" else None,
        )  # fmt: skip
        logits = run_by_hand(model, PAIRS.clean, circuit, values)
        np.testing.assert_allclose(got, logit_diffs(logits, PAIRS), **EXACT)
        found.append(got)
    assert len({tuple(values) for values in found}) == 3


def test_a_mean_over_references_of_several_lengths():
    """Tokens weigh the same, wherever they stand and in whatever prompt."""
    model = toy(n_kv_heads=2)
    references = [*prompt_pairs(2, 5, seed=1).clean, *prompt_pairs(3, 8, seed=2).clean]
    circuit = random_circuit(model, 0.5, seed=3)
    each = [writes_of(model, row[None]) for row in references]
    means = {
        name: torch.cat([writes[name][0] for writes in each]).mean(0)
        for name in each[0]
    }
    got = circuit_metric(
        model, circuit, PAIRS, logit_diff, ablation="mean", reference=references
    )
    means = {name: x.expand(1, 6, -1) for name, x in means.items()}
    want = logit_diffs(run_by_hand(model, PAIRS.clean, circuit, means), PAIRS)
    np.testing.assert_allclose(got, want, **EXACT)


@pytest.mark.first_case
@pytest.mark.parametrize("family", FAMILIES)
def test_from_the_clean_run_to_the_corrupted_one(family):
    """All edges: the clean run to the last bit; no edge: the corrupted run."""
    pairs = prompt_pairs(3)
    with float64_inside():
        model = BridgeModel(peer_model(family), name=family)
        runs = CircuitRuns.of("test", model, pairs, logit_diff)
        full, ablated = runs.ends()
        scores = exact_edges(
            model, pairs, logit_diff, edges=[("input", "logits"), ("m0", "a1.h0<q>")]
        )
        assert full.tolist() == scores.clean
        for tokens, value in ((pairs.clean, full), (pairs.corrupted, ablated)):
            want = logit_diffs(model.run(tokens).logits, pairs)
            np.testing.assert_allclose(value, want, rtol=1e-8)
        wires = runs.ask.wires
        kept = [edge for edge in wires.edges if edge != ("m0", "a1.h0<q>")]
        one_less = circuit_metric(model, kept, pairs, logit_diff)
        drop = scores.table.set_index(["source", "target"])["score"]
        assert (full - one_less).mean() == pytest.approx(
            drop["m0", "a1.h0<q>"], rel=1e-9
        )


@pytest.mark.parametrize(("norm", "n_kv_heads"), [("layer", 2), ("rms", 4)])
@pytest.mark.matrix
def test_one_edge_out_of_the_full_circuit_is_its_exact_score(norm, n_kv_heads):
    model = toy(norm=norm, n_kv_heads=n_kv_heads)
    runs = CircuitRuns.of("test", model, PAIRS, logit_diff)
    wires = runs.ask.wires
    keep = np.repeat(wires.real[None], len(wires.edges), axis=0)
    for n, (source, target) in enumerate(wires.edges):
        keep[n, wires.source_index[source], wires.target_index[target]] = False
    drops = runs.ends()[0].mean() - runs.values(keep).mean(1)
    want = exact_edges(model, PAIRS, logit_diff).table
    assert list(zip(want["source"], want["target"], strict=True)) == [*wires.edges]
    np.testing.assert_allclose(drops, want["score"], rtol=1e-9, atol=1e-12)
    assert np.abs(drops).max() > 0.01


@pytest.mark.first_case
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
def test_one_cut_edge_is_a_patched_path(family):
    """A head's z to a query, key or MLP, noised, by the engine of path patching."""
    pairs = prompt_pairs(3)
    with float64_inside():
        model = BridgeModel(peer_model(family), name=family)
        wires = Wires.of(model.shape)
        key = next(name for name in wires.targets if name.startswith("a2.k")) if (
            family == "llama") else "a2.h0<k>"  # fmt: skip
        for source, target in [("a0.h1", "a1.h2<q>"), ("a1.h3", key), ("a0.h2", "m1")]:
            kept = [edge for edge in wires.edges if edge != (source, target)]
            got = circuit_metric(model, kept, pairs, logit_diff)
            path = path_patch(
                model, pairs, logit_diff, sender=wires.site(source),
                receivers=[wires.site(target)], direction="noising",
            )  # fmt: skip
            np.testing.assert_allclose(got, path.table["value"], rtol=1e-7)
            assert np.abs(got - path.clean).max() > 1e-6


def test_a_sinks_circuit():
    """Only what leads to the head's queries and keys matters to its pattern."""
    model, metric = toy(n_kv_heads=2), sink_attention(layer=1, head=3)
    wires = Wires.of(model.shape)
    ends = ("a1.h3<q>", "a1.kv1<k>")
    below = [e for e in wires.edges if e[1] in ends or wires.layer(e[1]) == 0]
    full, part, none = (
        circuit_metric(model, edges, PAIRS, metric)
        for edges in (wires.edges, below, [])
    )
    np.testing.assert_allclose(part, full, rtol=1e-9)
    site = next(iter(metric.reads))
    pattern = model.run(PAIRS.corrupted, read=[site]).cache[site]
    np.testing.assert_allclose(none, pattern[:, :, 0].mean(-1).numpy(), rtol=1e-9)
    assert np.abs(none - full).max() > 1e-3


@pytest.mark.matrix
def test_nothing_depends_on_batches(monkeypatch):
    """Prompts of two lengths, mixed; circuits one by one or together; few rows fit."""
    model = toy(n_kv_heads=2)
    parts = [prompt_pairs(3, 6), prompt_pairs(4, 8, seed=1)]
    order = [0, 3, 1, 4, 5, 2, 6]
    rows = [
        [row for part in parts for row in getattr(part, name)]
        for name in ("clean", "corrupted")
    ]
    answers = torch.cat([part.answers for part in parts])[order]
    mixed = [[some[i] for i in order] for some in rows]
    pairs = PromptPairs(*mixed, answers, answers + 40)
    circuits = [random_circuit(model, share, seed=5) for share in (0.3, 0.6, 0.8)]
    for ablation in ("patch", "mean"):
        reference = pairs.corrupted if ablation == "mean" else None
        want = []
        for part in parts:
            want.append(
                [
                    circuit_metric(
                        model, c, part, logit_diff, ablation=ablation,
                        reference=reference,
                    ) for c in circuits
                ]
            )  # fmt: skip
        joined = np.concatenate(want, axis=1)[:, order]
        for fit in (1, 3, 10_000):
            monkeypatch.setattr(evaluation, "cut_rows", lambda *_, n=fit: n)
            runs = CircuitRuns.of("test", model, pairs, logit_diff, ablation, reference)
            got = runs.values(np.stack([runs.mask(c) for c in circuits]))
            if ablation == "mean":  # references of two lengths: one mean for both
                assert runs.settings["mean_over"] == "prompts and positions"
            np.testing.assert_allclose(got, joined, **EXACT)
        monkeypatch.undo()


def test_references_that_do_not_fit_are_made_anew(monkeypatch):
    model = toy()
    runs = CircuitRuns.of("test", model, PAIRS, logit_diff)
    want = runs.ends()
    assert len(runs.kept) == 1
    monkeypatch.setattr(evaluation, "free_bytes", lambda _: 0)
    again = CircuitRuns.of("test", model, PAIRS, logit_diff)
    np.testing.assert_allclose(again.ends(), want, **EXACT)
    np.testing.assert_allclose(again.ends(), want, **EXACT)
    assert not again.kept


def test_zero_and_mean_do_not_look_at_corrupted_prompts():
    model = toy()
    alone = PromptPairs(PAIRS.clean, PAIRS.clean, PAIRS.answers, PAIRS.wrong)
    one, other = (
        circuit_metric(model, [("m0", "logits")], pairs, logit_diff, ablation="zero")
        for pairs in (alone, PAIRS)
    )
    assert one.tolist() == other.tolist()


def test_bad_input():
    model = toy()

    def run(circuit=(), pairs=PAIRS, **options):
        return circuit_metric(model, list(circuit), pairs, logit_diff, **options)

    with pytest.raises(
        ValueError, match=r"ablation='none'. Allowed: patch, zero, mean"
    ):
        evaluation._check("circuit_metric", "none", None)
    with pytest.raises(ValueError, match=r"needs them.*reference=pairs.corrupted"):
        run(ablation="mean")
    assert run(ablation="mean", reference=PAIRS.corrupted).shape == (5,)
    with pytest.raises(ValueError, match=r'Only "mean" takes reference'):
        run(reference=PAIRS.corrupted)
    with pytest.raises(ValueError, match=r"reference has no prompts"):
        run(ablation="mean", reference=PAIRS.corrupted[:0])
    same = PromptPairs(PAIRS.clean, PAIRS.clean, PAIRS.answers, PAIRS.wrong)
    with pytest.raises(ValueError, match=r"identical in all 5 pairs"):
        run(pairs=same)
    with pytest.raises(ValueError, match=r"'a9.h0' is no source"):
        run([("a9.h0", "logits")])
    with pytest.raises(ValueError, match=r"reads the residual stream before"):
        run([("m1", "a0.h0<q>")])
    other = Circuit.of(Wires(3, 4, 4), [("input", "logits")])
    with pytest.raises(ValueError, match=r"of another graph.*n_layers=3.*n_layers=2"):
        circuit_metric(model, other, PAIRS, logit_diff)
    broken = toy()
    with torch.no_grad():
        broken.toy.W_E[int(PAIRS.corrupted[2, 1])] = torch.nan
    with pytest.raises(ValueError, match=r"NaN or infinite for pairs.*selfcheck"):
        circuit_metric(broken, [], PAIRS, logit_diff)
