"""MLP creation and steering, in a toy whose MLPs are written by hand."""

import pytest
import torch

from mechsink.models.load import load_model
from mechsink.models.toy import ToyModel
from mechsink.sinks.secondary.mlp import MLPCreation, mlp_creation
from mechsink.sinks.secondary.push import mlp_alone, principal_components
from mechsink.sinks.secondary.sinks import secondary_sinks
from mechsink.sinks.secondary.steering import steer_mlp
from mechsink.sites import Site
from toy_tasks import ToyConfig, ToyTransformer

BOS, SINK, LATE, PLAIN, OTHER = range(5)
TOWARDS = 7  # the dimension that makes a sink
# LATE becomes a sink at position 3; the same token at 5 is a control.
PROMPT = torch.tensor([[BOS, PLAIN, SINK, LATE, PLAIN, LATE, SINK, OTHER]])
BOUNDS = {"more_than": 1, "fewer_than": 4}


def planted() -> ToyModel:
    """Six layers without norm or heads; layer 1 makes the primary, layer 3 the others.

    Embeddings are one-hot in dims 0 to 4; W_pos marks position 3 in dim 5. Neurons:
    layer 1: BOS -> +100; layer 3: SINK -> +40, position 3 -> +60,
    .01 dim 7 -> +40 (the primary: +40); layer 5: dim 7 -> -1, which erases all.
    """
    config = ToyConfig(
        d_vocab=5,
        n_layers=6,
        d_model=8,
        d_head=4,
        d_mlp=3,
        n_ctx=8,
        norm="none",
        attn_layers=(),
    )
    toy = ToyTransformer(config).eval().double()
    with torch.no_grad():
        for parameter in toy.parameters():
            parameter.zero_()
        toy.W_E[:, :5] = torch.eye(5)
        toy.W_pos[3, 5] = 1.0

        def neuron(layer, number, reads, writes):
            mlp = toy.blocks[layer].mlp
            for dim, weight in reads.items():
                mlp.W_in[dim, number] = weight
            mlp.W_out[number, TOWARDS] = writes

        neuron(1, 0, {BOS: 1.0}, 100.0)
        neuron(3, 0, {SINK: 1.0}, 40.0)
        neuron(3, 1, {5: 1.0}, 60.0)
        neuron(3, 2, {TOWARDS: 0.01}, 40.0)
        neuron(5, 0, {TOWARDS: 1.0}, -1.0)
    return ToyModel(toy)


@pytest.fixture(scope="module")
def model():
    return planted()


@pytest.fixture(scope="module")
def sinks(model):
    return secondary_sinks(model, PROMPT, **BOUNDS)


def test_the_toy_has_the_sinks_it_was_given(sinks):
    assert sinks.primaries[["pos", "start", "end"]].to_numpy().tolist() == [[0, 1, 5]]
    got = sinks.table[["pos", "l_start", "lifetime", "label"]].to_numpy().tolist()
    assert got == [[p, 3, 2, "secondary"] for p in (2, 3, 6)]
    # norms by hand: a flag and 40, two flags and 60
    want = [1601**0.5, 3602**0.5, 1601**0.5]
    assert sinks.table["norm"].tolist() == pytest.approx(want)
    assert sinks.table["value_after"].isna().all()  # no heads, nothing measured


def test_likeness_comes_with_the_output(model, sinks):
    found = mlp_creation(model, PROMPT, sinks)
    wide = found.table.pivot_table(
        index=["group", "pos"], columns="stage", values="cosine", dropna=False
    )
    for pos in (2, 3, 6):
        assert wide.loc[("sink", pos), "x"] == 0.0  # other flags than the primary's
        assert wide.loc[("sink", pos), "post"] == 0.0  # other neurons
        assert wide.loc[("sink", pos), "y"] == pytest.approx(1.0)
    gates = found.table[found.table["stage"].isin(["gate", "up", "act"])]
    assert gates["cosine"].isna().all()
    # LATE at 5 has the id of the sink at 3; the others are of other ids
    controls = found.table[found.table["group"] != "sink"]
    assert controls.groupby("group")["pos"].unique()["same token"].tolist() == [5]
    assert set(controls[controls["group"] == "random"]["pos"]) <= {1, 4, 7}
    assert len(controls) == 3 * 6
    assert controls[controls["stage"] == "y"]["cosine"].isna().all()  # writes nothing


def test_directions_that_make_the_primarys_output(model, sinks):
    found = mlp_creation(model, PROMPT, sinks, scales=(1.0, 3.0))
    told = found.directions
    assert set(told["layer"]) == {3}
    assert set(told["source"]) == {"attn_out", "resid_mid", "mlp_normed"} - {"attn_out"}
    # All that this MLP writes lies along dim 7, so a push counts if a neuron fires.
    fires = told["norm"] > 0
    assert told[fires]["cosine"].to_numpy() == pytest.approx(1.0)
    assert told[~fires]["cosine"].isna().all()
    counts = found.effective().set_index(["source", "scale"])
    assert (counts["effective"] <= counts["components"]).all()
    assert counts["effective"].min() >= 1
    # no biases and no norm: outputs grow with the push
    norms = told.pivot_table(
        index=["source", "component", "sign"], columns="scale", values="norm"
    )
    assert norms[3.0].to_numpy() == pytest.approx(3 * norms[1.0].to_numpy())


def test_principal_components_by_hand():
    states = torch.tensor([[3.0, 0, 1], [-3.0, 0, 1], [0, 1.0, 1], [0, -1.0, 1]])
    components, explained = principal_components(states, 10)
    assert components.abs().round(decimals=6).tolist() == [[1, 0, 0], [0, 1, 0]]
    assert explained.tolist() == pytest.approx([0.9, 0.1])
    assert len(principal_components(states, 1)[0]) == 1
    assert len(principal_components(torch.ones(3, 4), 5)[0]) == 0


@pytest.mark.matrix  # imports transformers
def test_the_mlp_alone_is_the_models_own():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    hf = LlamaForCausalLM(config).eval()
    x = torch.randn(7, 16)
    with torch.no_grad():
        want = hf.model.layers[1].mlp(x)
    got = mlp_alone(load_model(hf), 1, x, torch.tensor([[1, 2, 3]]))  # in three runs
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


def test_steering_by_hand():
    (edit,) = steer_mlp(4, 100, first=1).values()
    y = torch.tensor([[[2.0, 0], [3.0, 0], [-3.0, 0], [3.0, 4.0], [0, 0]]])
    want = torch.tensor([[[2.0, 0], [100.0, 0], [-3.0, 0], [3.0, 4.0], [0, 0]]])
    torch.testing.assert_close(edit(y), want)
    assert steer_mlp(4, 100).keys() == {Site("mlp_out", 4)}
    (late,) = steer_mlp(4, 100).values()  # positions > 2 alone
    torch.testing.assert_close(late(y), y)
    (loose,) = steer_mlp(4, 10, threshold=0.5).values()  # cos of (3, 4) is .6
    torch.testing.assert_close(loose(y)[0, 3], torch.tensor([6.0, 8.0]))
    aimed = steer_mlp(4, 10, direction=torch.tensor([3.0, 4.0]), first=0)
    steered = aimed[Site("mlp_out", 4)](y)
    torch.testing.assert_close(steered[0, 3], torch.tensor([6.0, 8.0]))
    torch.testing.assert_close(steered[0, :3], y[0, :3])
    with pytest.raises(ValueError, match=r"pass direction=, the primary's output"):
        steer_mlp(4, 1, primary=9)[Site("mlp_out", 4)](y)
    with pytest.raises(ValueError, match="size=-1"):
        steer_mlp(4, -1)


def test_steering_sets_the_sinks_norm(model, sinks):
    run = model.run(PROMPT, read=[Site("resid_post", 3)], edit=steer_mlp(3, 500))
    norm = run.cache[Site("resid_post", 3)][0].norm(dim=-1)
    # position 2 is not after 2; 6 gets 500 beside its flag; 3 two flags
    assert norm[[2, 6, 3]].tolist() == pytest.approx(
        [1601**0.5, 250_001**0.5, 250_002**0.5]
    )
    gone = model.run(PROMPT, read=[Site("resid_post", 3)], edit=steer_mlp(3, 0))
    assert gone.cache[Site("resid_post", 3)][0, 6].norm() == pytest.approx(1.0)


def test_bad_input_and_its_advice(model, sinks):
    with pytest.raises(ValueError, match=r"labelled noise; found: {'secondary': 3}"):
        mlp_creation(model, PROMPT, sinks, labels=("noise",))
    with pytest.raises(ValueError, match="prompts that are not these"):
        mlp_creation(model, PROMPT.flip(1), sinks)
    with pytest.raises(ValueError, match="at least one scale above 0"):
        mlp_creation(model, PROMPT, sinks, scales=())


def test_controls_are_drawn_by_seed_and_results_are_saved(model, sinks, tmp_path):
    one, two = (mlp_creation(model, PROMPT, sinks, seed=s) for s in (1, 1))
    assert one.table.equals(two.table)
    back = MLPCreation.load(one.save(tmp_path / "mlp"))
    assert back.directions.equals(one.directions)
    assert one.plot().get_xlabel() == "stage of the MLP"
    summary = one.summary().set_index(["stage", "group"])
    assert summary.loc[("y", "sink"), "mean"] == pytest.approx(1.0)


@pytest.mark.pretrained
@pytest.mark.slow
def test_smollm2s_early_secondaries_are_made_by_the_mlp():
    import pydoc_data.topics as prose

    smollm2 = load_model("smollm2")
    texts = [prose.topics[name] for name in ("assignment", "comparisons")]
    tokens = torch.cat([smollm2.to_tokens(text)[:, :256] for text in texts])
    sinks = secondary_sinks(smollm2, tokens, active=(1, 11))
    found = mlp_creation(smollm2, tokens, sinks)
    table = found.table[found.table["layer"] == 2]
    mean = table.groupby(["group", "stage"])["cosine"].mean()
    assert mean["sink", "y"] > 0.9
    assert mean["sink", "x"] < mean["sink", "y"] - 0.2
    assert mean["same token", "y"] < 0.5
