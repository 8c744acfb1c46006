"""Sink circuits against planted toys, brute force, weights and published trends."""

import math
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from jaxtyping import TypeCheckError

from mechsink.circuits.graph import Circuit
from mechsink.experiments.sink_circuits.gradients import midpoints
from mechsink.experiments.sink_circuits.metrics import resid_norm, sink_attention_of
from mechsink.experiments.sink_circuits.result import SinkCircuit
from mechsink.experiments.sink_circuits.search import sink_circuit
from mechsink.metrics import sink_attention
from mechsink.models.bridge import BridgeModel
from mechsink.models.load import load_model
from mechsink.models.toy import ToyModel
from mechsink.run import Run
from mechsink.sites import Site
from tests.circuits.small import toy, writes_of
from tests.interventions.float64 import peer_model
from tests.toy_tasks.edge_brute_force import edges_of, forward
from toy_tasks import PRESETS, BigramBackcopy, train
from toy_tasks.planted import backcopy
from toy_tasks.planted.workbench import Workbench

N_POS, PEAK, SCORE = 10, 64.0, 4.0


@dataclass(frozen=True)
class LastLogit:
    """Logit of one token at the last position: affine where the model is."""

    token: int = 3
    reads: frozenset[Site] = frozenset()

    def __call__(self, run: Run, prompts: object = None) -> torch.Tensor:
        return run.logits[:, -1, self.token]


def tokens(n=3, n_pos=6, seed=0, d_vocab=80):
    drawn = torch.Generator().manual_seed(seed)
    return torch.randint(0, d_vocab, (n, n_pos), generator=drawn)


@pytest.fixture(scope="module")
def peak_toy():
    """Token 0 opens; the MLP of layer 0 writes a peak, the head of layer 1 rests on it.

    The second head of each layer, and everything else, does nothing.
    """
    bench = Workbench(
        "test",
        {"tok": 6, "peak": 1},
        d_vocab=6,
        n_ctx=N_POS,
        d_head=4,
        n_layers=2,
        n_heads=2,
        n_neurons=6,
        distractors=False,
    )
    one_hot = torch.eye(6)
    bench.embed({"tok": one_hot}, {})
    bench.neurons(0, {"tok": one_hot}, {"peak": PEAK * one_hot[:1]})
    first = torch.tensor([[1.0, 0, 0, 0]])
    bench.head(1, 0, q={"const": SCORE * first}, k={"peak": first / PEAK}, v={}, o={})
    return ToyModel(bench.model.double())


@pytest.fixture(scope="module")
def peak_tokens():
    drawn = tokens(6, N_POS, d_vocab=5) + 1
    drawn[:, 0] = 0
    return drawn


@pytest.fixture(scope="module")
def found(peak_toy, peak_tokens):
    return sink_circuit(
        peak_toy, peak_tokens, heads=[(1, 0)], steps=30, together=1, draws=3
    )


def by_name(table, column, key="component"):
    return dict(zip(table[key], table[column], strict=True))


def test_the_mlp_that_writes_the_peak_is_found(found):
    resting = [math.exp(SCORE) / (math.exp(SCORE) + n) for n in range(N_POS)]
    uniform = [1 / (1 + n) for n in range(N_POS)]
    clean, without = np.mean(resting), np.mean(uniform)
    assert found.clean == pytest.approx([clean] * 6, abs=1e-12)
    assert found.uniform == pytest.approx(without, abs=1e-12)
    effects, scores = by_name(found.table, "effect"), by_name(found.table, "score")
    # The input has the MLP write the peak, so both are needed; others do nothing.
    for name in ("input", "m0"):
        assert effects.pop(name) == pytest.approx(clean - without, abs=1e-12)
        assert scores.pop(name) == pytest.approx(clean - without, rel=0.02)
    assert list(effects.values()) == pytest.approx([0] * 5, abs=1e-12)
    assert list(scores.values()) == pytest.approx([0] * 5, abs=1e-12)
    edges = found.edges.assign(name=found.edges["source"] + found.edges["target"])
    assert set(edges["name"][edges["score"].abs() > 1e-9]) == {"inputm0", "m0a1.h0<k>"}
    cut = by_name(edges, "effect", "name")
    assert cut["inputm0"] == pytest.approx(clean - without, abs=1e-12)
    assert cut["m0a1.h0<k>"] == pytest.approx(clean - without, abs=1e-12)
    assert found.outputs == ["a1.h0<q>", "a1.h0<k>"]
    assert set(found.circuit(2).edges) == {("input", "m0"), ("m0", "a1.h0<k>")}


def test_shares_of_the_peak_are_those_of_hand_calculation(found):
    assert found.peak_layer == 1
    # At <s>: one along its token and the constant, PEAK from the MLP.
    whole = PEAK**2 + 2
    assert by_name(found.peak(), "share") == pytest.approx(
        {"m0": PEAK**2 / whole, "input": 2 / whole, "a0.h0": 0, "a0.h1": 0, "bias": 0},
        abs=1e-12,
    )
    norms = found.residual["norm"].tolist()
    assert norms == pytest.approx([2**0.5, whole**0.5, whole**0.5], abs=1e-12)
    assert found.residual["others"].tolist() == pytest.approx([2**0.5] * 3, abs=1e-12)


def test_confirmation_sets_top_nodes_against_others(found):
    rows = found.confirmation.set_index("nodes")
    assert rows.loc["top", "components"] in ("input", "m0")
    assert rows.loc["top", "value"] == pytest.approx(found.uniform, abs=1e-12)
    assert rows.loc["all", "value"] == pytest.approx(found.uniform, abs=1e-12)
    assert len(rows.loc["random"]) == 3
    # Another token first: no peak there. Token 0 is last and attends to itself.
    last = 1 / (math.exp(SCORE) + N_POS - 1)
    rotated = found.uniform + (last - 1 / N_POS) / N_POS
    assert rows.loc["rotated", "value"] == pytest.approx(rotated, abs=1e-12)
    assert found.heads.to_dict("list")["ablated"] == pytest.approx([found.uniform])
    clean = rows.loc["clean", "value"]
    change = (rows["value"] - clean).to_numpy()
    np.testing.assert_allclose(rows["change"].to_numpy(), change, atol=1e-12)


@pytest.mark.first_case
@pytest.mark.parametrize("variant", ["plain", "grouped", "rms"])
def test_backcopy_rests_on_its_first_token_by_the_embedding(variant):
    case = backcopy(variant=variant, n_prompts=12).double()
    found = sink_circuit(ToyModel(case.model), case.clean, heads=[(0, 0)], steps=10)
    effects = by_name(found.table, "effect")
    assert effects.pop("input") > 0.3
    # Nothing else writes before the head reads.
    assert list(effects.values()) == pytest.approx([0] * len(effects), abs=1e-12)
    best = found.edges.sort_values("effect", ascending=False).iloc[0]
    key = "a0.kv0<k>" if variant == "grouped" else "a0.h0<k>"
    assert (best["source"], best["target"]) == ("input", key)
    rows = found.confirmation.set_index("nodes")
    assert rows.loc["top", "value"] < 0.5 * rows.loc["clean", "value"]


@pytest.mark.matrix
@pytest.mark.parametrize("reference", ["mean", "zero"])
@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_on_an_affine_model_attribution_is_ablation(n_kv_heads, reference):
    model = toy(norm="none", mlp="linear", n_kv_heads=n_kv_heads)
    with torch.no_grad():
        for block in model.toy.blocks:
            block.attn.W_Q.zero_()  # uniform attention
    found = sink_circuit(
        model, tokens(), metric=LastLogit(), reference=reference, steps=3, top_edges=999
    )
    for table in (found.table, found.edges):
        assert table["effect"].abs().max() > 1e-3
        np.testing.assert_allclose(table["score"], table["effect"], atol=1e-9)
        assert table["effect"].notna().all()


@pytest.mark.first_case
@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("reference", ["mean", "zero"])
@pytest.mark.parametrize("position", [0, 2])
@pytest.mark.matrix
@pytest.mark.some_cases(3)
def test_effects_are_those_of_brute_force(norm, reference, position):
    model, prompts = toy(norm=norm), tokens()
    writes = writes_of(model, prompts)
    edges = edges_of(model.toy)
    embedded = model.toy.embed(prompts).detach()

    def without(some):
        """Drop of the metric where these edges carry the reference at the position."""
        instead = {}
        for source, target in some:
            value = writes[source].clone()
            later = value[:, position + 1 :].mean(1)
            value[:, position] = 0 if reference == "zero" else later
            instead[source, target] = value
        with torch.no_grad():
            logits = forward(model.toy, embedded, instead)[0]
        return (clean - logits[:, -1, 3]).mean().item()

    clean = model.run(prompts).logits[:, -1, 3]
    found = sink_circuit(
        model, prompts, metric=LastLogit(), reference=reference, position=position,
        steps=60, top_edges=40,
    )  # fmt: skip
    for name, effect in by_name(found.table, "effect").items():
        want = without([edge for edge in edges if edge[0] == name])
        assert effect == pytest.approx(want, abs=1e-9), name
    for _, row in found.edges.dropna(subset=["effect"]).iterrows():
        want = without([(row["source"], row["target"])])
        assert row["effect"] == pytest.approx(want, abs=1e-9)
    # The input and MLPs are integrated on their own way: it ends at the effect.
    own = found.table[found.table["head"].isna()]
    np.testing.assert_allclose(own["score"], own["effect"], atol=0.02)
    # A node's score is the sum of its edges': both found by different code.
    total = found.edges.groupby("source")["score"].sum()
    scores = by_name(found.table, "score")
    assert total.to_dict() == pytest.approx(scores, abs=1e-9)
    best = found.table[found.table["effect"] > 0].nlargest(4, "effect")["component"]
    rows = found.confirmation.set_index("nodes")
    assert rows.loc["top", "components"].split() == best.tolist()
    gone = [edge for edge in edges if edge[0] == best.iloc[0]]
    assert rows.loc["clean", "value"] == pytest.approx(clean.mean().item(), abs=1e-9)
    assert without(gone) == pytest.approx(found.table["effect"].max(), abs=1e-9)


def test_a_row_of_shares_sums_to_1_and_is_what_was_written():
    model, prompts = toy(norm="layer"), tokens(4)
    found = sink_circuit(model, prompts, metric=resid_norm(1), position=1)
    sums = found.writes.groupby("layer")["share"].sum()
    assert sums.tolist() == pytest.approx([1] * 3, abs=1e-9)
    writes = writes_of(model, prompts)
    stream = sum(writes.values())[:, 1]
    size = stream.norm(dim=-1)
    for name, share in by_name(found.peak(2), "share").items():
        if name != "bias":
            along = (writes[name][:, 1] * stream).sum(-1) / size**2
            assert share == pytest.approx(along.mean().item(), abs=1e-9)
    last = found.residual.iloc[-1]
    assert last["norm"] == pytest.approx(size.mean().item(), abs=1e-9)


def test_biases_of_attention_have_their_share():
    peer = peer_model("gpt2")
    with torch.no_grad():
        for block in peer.transformer.h:
            block.attn.c_proj.bias.normal_()
    model = BridgeModel(peer, name="gpt2")
    found = sink_circuit(model, tokens(2, 8), metric=resid_norm(1))
    sums = found.writes.groupby("layer")["share"].sum()
    assert sums.tolist() == pytest.approx([1] * len(sums), abs=1e-9)
    biases = found.writes[found.writes["component"] == "bias"]["share"]
    assert biases.iloc[0] == 0 and biases.iloc[1:].abs().min() > 1e-3


def test_a_norm_is_explained_by_nodes_alone(peak_toy, peak_tokens):
    found = sink_circuit(peak_toy, peak_tokens, metric=resid_norm(1))
    effects = by_name(found.table, "effect")
    assert effects["m0"] == pytest.approx((PEAK**2 + 2) ** 0.5 - 2**0.5, abs=1e-12)
    assert effects["m1"] == 0
    assert found.edges.empty and found.heads.empty and found.uniform is None
    with pytest.raises(ValueError, match="no edges were scored"):
        found.circuit()


def test_metrics_are_means_and_norms():
    model, prompts = toy(), tokens()
    heads = [(0, 1), (1, 2), (1, 3)]
    metric = sink_attention_of(heads, position=1)
    run = model.run(prompts, read=metric.reads)
    single = [sink_attention(layer=a, head=b, position=1)(run) for a, b in heads]
    torch.testing.assert_close(metric(run), torch.stack(single).mean(0))
    norm = resid_norm(1, position=2, after=True)
    run = model.run(prompts, read=norm.reads)
    stream = run.cache[Site("resid_post", 1)]
    torch.testing.assert_close(norm(run), stream[:, 2].norm(dim=-1))
    assert "L0H1" in repr(metric) and "after" in repr(norm)
    for wrong in ([], [(0, 1), (0, 1)]):
        with pytest.raises(ValueError, match="each once"):
            sink_attention_of(wrong)


def test_midpoints_integrate():
    for steps in (1, 3, 50):
        assert sum(weight for _, weight in midpoints(steps)) == pytest.approx(1)
    # A norm that saturates: x / (x + .01) from 0 to 1, its slope integrated.
    slope = [weight * 0.01 / (x + 0.01) ** 2 for x, weight in midpoints(50)]
    assert sum(slope) == pytest.approx(1 / 1.01, rel=0.01)


def test_chosen_layers_alone_are_asked_about(peak_toy, peak_tokens):
    found = sink_circuit(
        peak_toy, peak_tokens, heads=[(1, 0)], layers=[1], top_edges=3, draws=1
    )
    assert set(found.table["component"]) == {"input", "a1.h0", "a1.h1", "m1"}
    assert "m0" in set(found.writes["component"])


def test_result_is_saved_drawn_and_put_in_words(found, tmp_path):
    again = SinkCircuit.load(found.save(tmp_path / "sink"))
    for name in ("table", "edges", "writes", "residual", "confirmation", "heads"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(found, name))
    assert isinstance(again.circuit(), Circuit)
    words = again.summary()
    assert "before layer 1: residual norm 64.02 against 1.414" in words
    assert "m0 1.00" in words and "rotated by one" in words
    ax = found.plot()
    assert {label.get_text() for label in ax.get_yticklabels()} >= {"input", "m0"}
    widths = [bar.get_width() for bars in ax.containers[1::2] for bar in bars]
    assert max(widths) == pytest.approx(found.table[["score", "effect"]].max().max())
    plt.close("all")
    with pytest.raises(ValueError, match="Allowed: 0 to 2"):
        found.peak(3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": [(2, 0)]}, "head 0 of layer 2 is not in this model"),
        ({"heads": []}, "at least one"),
        ({"heads": [(0, 0)], "metric": resid_norm(1)}, "exclude each other"),
        ({"position": 8}, "Allowed: 0 to 7"),
        ({"reference": "median"}, "'mean' or 'zero'"),
        ({"layers": [2]}, "some of 0 to 1"),
        ({"steps": 0}, "steps=0"),
        ({"top_edges": -1}, "0 and more"),
        ({"metric": resid_norm(5)}, "layer=5"),
        ({"metric": resid_norm(0), "layers": [1]}, None),
        ({"heads": [(0, 0)], "layers": [1]}, None),
    ],
)
def test_bad_input_is_told(peak_toy, peak_tokens, options, message):
    if "reference" in options:  # tests check types, and callers do not
        with pytest.raises((ValueError, TypeCheckError)) as caught:
            sink_circuit(peak_toy, peak_tokens, **options)
        assert "mean" in str(caught.value)
        return
    if message is None:  # asked, and answered: only the input can matter
        found = sink_circuit(peak_toy, peak_tokens, **options)
        heads = found.table[found.table["layer"] >= 0]
        assert heads["score"].abs().max() == 0
        return
    with pytest.raises(ValueError, match=message):
        sink_circuit(peak_toy, peak_tokens, **options)


def test_no_sink_is_told():
    model = toy(norm="none")
    with torch.no_grad():
        for block in model.toy.blocks:
            block.attn.W_Q.zero_()
    with pytest.raises(ValueError, match="no head pays position 0"):
        sink_circuit(model, tokens(3, 12))


@pytest.mark.slow
def test_trained_toy_layer_0_mlp_writes_the_peak(tmp_path):
    """The answer is known from the task's paper and from the weights."""
    task = BigramBackcopy.from_text()
    run = train(task, PRESETS["bb3-cpu"], tmp_path / "run", seed=0, progress=False)
    model = load_model(f"toy:{run.folder}")
    prompts = task.sample(64, 64, seed=(2**31, 0))
    found = sink_circuit(model, prompts)
    assert found.peak_layer == 1
    before = found.residual.set_index("layer").loc[1]
    assert before["ratio"] > 3
    peak = found.peak().set_index("component")
    assert peak.loc["m0", "share"] > 0.9
    assert peak["share"].sum() == pytest.approx(1, abs=1e-6)
    # Attention at <s> sees itself alone: it writes W_O v_0, no more.
    toy_model, block = run.model(), run.model().blocks[0]
    with torch.no_grad():
        x = block.ln1(toy_model.embed(prompts[:1]))[0, 0]
        exact = (x @ block.attn.W_V[0] @ block.attn.W_O[0]).norm().item()
    assert peak.loc["a0.h0", "norm"] == pytest.approx(exact, rel=1e-4)
    assert abs(peak.loc["a0.h0", "share"]) * before["norm"] <= exact * (1 + 1e-4)
    assert exact < 0.03 * before["norm"]
    effects = by_name(found.table, "effect")
    assert sorted(effects, key=effects.__getitem__)[-2:] == ["m0", "input"]
    rows = found.confirmation.set_index("nodes")
    assert rows.loc["top", "high"] < 0.15 < 0.5 < rows.loc["clean", "low"]
    assert rows.loc["random", "low"].min() > 0.9 * rows.loc["clean", "low"]


@pytest.mark.slow
def test_smollm2_early_mlps_write_the_peak_and_ablation_confirms():
    """Published: MLPs of a few early layers write the first token's massive norm."""
    from mechsink.report.texts import default_texts

    model = load_model("smollm2", device="cpu")
    found = sink_circuit(
        model, default_texts(2, 16), length=16, layers=[0, 1, 2, 8, 9, 10, 11], steps=5,
        top=6, draws=2, top_edges=0,
    )  # fmt: skip
    residual = found.residual.set_index("layer")
    assert found.peak_layer == 12
    assert residual.loc[12, "norm"] > 100 * residual.loc[12, "others"]
    assert by_name(found.peak(), "share")["m11"] > 0.95
    early = by_name(found.peak(3), "share")
    assert early["m1"] + early["m2"] > 0.9 and early["m2"] > early["m1"]
    # Layers 8 and 9 take the first peak down again; layer 11 writes the second.
    assert residual.loc[10, "norm"] < 0.3 * residual.loc[3, "norm"]
    assert by_name(found.peak(10), "share")["m9"] < -0.5
    mlps = found.table[found.table["component"].str.startswith("m")]
    assert mlps.set_index("component")["effect"].nlargest(2).index.tolist() == [
        "m11",
        "m0",
    ]
    assert np.corrcoef(mlps["score"], mlps["effect"])[0, 1] > 0.9
    rows = found.confirmation.set_index("nodes")
    assert found.uniform is not None
    assert rows.loc["top", "high"] < found.uniform
    # Others of these layers, which help to write the peak themselves.
    assert rows.loc["random", "value"].min() > 2 * found.uniform
    # Any first token becomes a sink: exchanging it removes nothing.
    assert abs(rows.loc["rotated", "change"]) < 0.05
