"""Logit attribution: it sums, and its parts are what hand and peers find."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from mechsink.attribution.logits import LogitAttribution, logit_attribution
from mechsink.metrics import logit_diff
from mechsink.models.bridge import BridgeModel
from mechsink.models.toy import ToyModel
from mechsink.prompts import PromptPairs
from mechsink.run import Model
from mechsink.sites import Site
from tests.interventions.float64 import float64_inside, peer_model
from tests.models.backends import TOYS
from tests.models.families import FAMILIES, tiny
from toy_tasks import ToyConfig, ToyTransformer

DRAWN = torch.Generator().manual_seed(0)
CLEAN = torch.randint(3, 80, (3, 9), generator=DRAWN)
ANSWERS = torch.randint(0, 40, (3,), generator=DRAWN)
PAIRS = PromptPairs(CLEAN, CLEAN, ANSWERS, ANSWERS + 40)
SOME_MORE = [
    "granite", "cohere", "gemma3", "mixtral", "gpt_oss", "phi", "bigcode", "stablelm",
]  # fmt: skip
NO_NEURONS = ("mixtral", "gpt_oss")
FEW = ("gpt2", "gemma2", "olmo2", "granite", "cohere", "mixtral", "phi", "toy_gqa_relu")
ALL = [*FAMILIES, *SOME_MORE, *TOYS]
SOME = [pytest.param(n, marks=() if n in FEW else pytest.mark.matrix) for n in ALL]
_made: dict[str, Model] = {}


def moved(model: Any) -> Any:
    """Gains that are not 1 and biases that are not 0: else a lost one goes unseen."""
    drawn = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                noise = torch.randn(parameter.shape, generator=drawn)
                parameter.add_(0.3 * noise)
    return model


def load(name: str) -> Model:
    if name not in _made:
        if name in TOYS:
            _made[name] = ToyModel(moved(ToyTransformer(TOYS[name]).eval()))
        else:
            _made[name] = BridgeModel(moved(tiny(name)), name=name)
    return _made[name]


def totals(found: LogitAttribution) -> np.ndarray:
    return found.table.groupby("prompt")["value"].sum().to_numpy()


def sizes(found: LogitAttribution) -> np.ndarray:
    table = found.table.assign(value=found.table["value"].abs())
    return table.groupby("prompt")["value"].sum().to_numpy()


@pytest.mark.first_case
@pytest.mark.parametrize("name", SOME)
@pytest.mark.some_cases(9)
def test_parts_sum_to_the_models_own_logits(name: str) -> None:
    model = load(name)
    logits = model.run(CLEAN).logits.double()
    rows = torch.arange(3)
    for position, per in ((-1, "difference"), (4, "answer")):
        own = logits[rows, position, ANSWERS]
        if per == "difference":
            own = own - logits[rows, position, ANSWERS + 40]
        for options in ({}, {"neurons": True}, {"by_position": True}):
            if options.get("neurons") and name in NO_NEURONS:
                continue
            found = logit_attribution(
                model, PAIRS, position=position, per=per, **options
            )
            want = np.array(found.whole)
            if found.factors["cap"] is None:
                np.testing.assert_allclose(want, own.numpy(), atol=1e-5)
            off = np.abs(totals(found) - want) / sizes(found)
            assert off.max() < 1e-6, (name, options)
            np.testing.assert_allclose(
                found.error, (totals(found) - want) / sizes(found), atol=1e-12
            )


@pytest.mark.first_case
@pytest.mark.parametrize("name", SOME)
def test_neurons_and_positions_are_the_parts_of_mlps_and_heads(name: str) -> None:
    model = load(name)
    whole = logit_attribution(model, PAIRS).nodes
    ways = [{"by_position": True}]
    if name not in NO_NEURONS:
        ways.append({"neurons": True})
    for options in ways:
        parts = logit_attribution(model, PAIRS, **options).nodes
        pd.testing.assert_frame_equal(parts, whole, atol=2e-6, rtol=0)


def test_a_soft_cap_bends_the_sum_into_the_models_logits() -> None:
    """Gemma-2: 30 tanh(sum / 30) of each token's parts is the token's logit."""
    torch.manual_seed(0)
    hf_model = moved(tiny("gemma2"))
    with torch.no_grad():  # logits of dozens, where the cap matters
        hf_model.model.norm.weight.add_(10.0)
    model = BridgeModel(hf_model, name="gemma2, loud")
    logits = model.run(CLEAN).logits
    found = logit_attribution(model, PAIRS, per="answer")
    assert found.factors == {"scale": 1.0, "cap": 30.0}
    bent = 30 * np.tanh(totals(found) / 30)
    want = logits[torch.arange(3), -1, ANSWERS].numpy()
    assert np.abs(totals(found) - want).max() > 1  # the cap matters here
    np.testing.assert_allclose(bent, want, atol=1e-4)
    np.testing.assert_allclose(found.own, want, atol=1e-5)


@pytest.mark.matrix
def test_the_logit_scale_is_in_the_values() -> None:
    found = logit_attribution(load("cohere"), PAIRS)
    assert found.factors == {"scale": 0.5, "cap": None}
    np.testing.assert_allclose(totals(found), found.own, atol=1e-5)
    assert logit_attribution(load("granite"), PAIRS).factors["scale"] == 1 / 4


def test_a_head_by_hand() -> None:
    """Two tokens, one head, no norm: worked on paper.

    d_model 2, W_E the identity, no positions, queries zero, so the last token of
    (0, 1) attends 1/2 to each; values keep the token, W_O swaps and doubles, W_U has
    columns (1, 0), (0, 1), (3, 5). Residual: input (0, 1), head (1, 1).
    Logits of token 2: input 5, head 3 + 5 = 8, of which position 0, whose write is
    (0, 1), gives 5 and position 1, whose write is (1, 0), gives 3. Token 0 has 0 and
    1 (from position 1).
    """
    config = ToyConfig(
        d_vocab=3, d_model=2, d_head=2, n_ctx=2, norm="none", positions="none",
        mlp_layers=(),
    )  # fmt: skip
    toy = ToyTransformer(config)
    with torch.no_grad():
        for parameter in toy.parameters():
            parameter.zero_()
        toy.W_E[:2] = torch.eye(2)
        attn: Any = toy.blocks[0].attn
        attn.W_V[0], attn.W_O[0] = torch.eye(2), torch.tensor([[0.0, 2], [2, 0]])
        toy.W_unembed.copy_(torch.tensor([[1.0, 0, 3], [0, 1, 5]]))
    tokens = torch.tensor([[0, 1]])
    pairs = PromptPairs(tokens, tokens, torch.tensor([2]), torch.tensor([0]))
    model = ToyModel(toy)
    answer = logit_attribution(model, pairs, per="answer", by_position=True).table
    assert answer["component"].tolist() == ["input", "head", "head"]
    assert answer["value"].tolist() == [5, 5, 3]
    assert answer["pos"].tolist()[1:] == [0, 1]
    both = logit_attribution(model, pairs).table
    assert both["value"].tolist() == [5, 7]  # 8 - 1
    assert math.isnan(both["layer"][0]) and both["layer"][1] == both["head"][1] == 0


def brute_force(model: Model, site: Site) -> Tensor:
    """Clean logit difference less that without the site, final norm's scale held."""

    def metric(**options: Any) -> Tensor:
        (group,) = PAIRS.tokens(model)
        return logit_diff(model.run(CLEAN, **options), group)

    return metric() - metric(edit={site: torch.zeros_like})


@pytest.mark.parametrize("n_kv_heads", [2, 4])
def test_without_a_norm_a_last_layers_part_is_its_direct_effect(
    n_kv_heads: int,
) -> None:
    """Zeroing it by brute force; nothing comes after, so all effect is direct."""
    config = ToyConfig(
        d_vocab=80, n_layers=2, d_model=16, d_head=4, n_heads=4, d_mlp=24, n_ctx=16,
        n_kv_heads=n_kv_heads, norm="none",
    )  # fmt: skip
    model = ToyModel(ToyTransformer(config).double())
    nodes = logit_attribution(model, PAIRS).nodes
    neurons = logit_attribution(model, PAIRS, neurons=True).table
    mlp = brute_force(model, Site("mlp_out", 1))
    np.testing.assert_allclose(nodes[1, "mlp"], mlp, atol=1e-12)
    # The MLP reads its layer's heads: hold its output to see them alone.
    held = model.run(CLEAN, read=[Site("mlp_out", 1)]).cache[Site("mlp_out", 1)]
    (group,) = PAIRS.tokens(model)
    for head in range(4):
        edit = {
            Site("z", 1, head): torch.zeros_like,
            Site("mlp_out", 1): lambda x: held,
        }
        run = model.run(CLEAN, edit=edit)
        want = logit_diff(model.run(CLEAN), group) - logit_diff(run, group)
        np.testing.assert_allclose(nodes[1, f"h{head}"], want, atol=1e-12)
    one = neurons[(neurons["layer"] == 1) & (neurons["neuron"] == 5)]

    def without(x: Tensor) -> Tensor:
        x = x.clone()
        x[..., 5] = 0
        return x

    run = model.run(CLEAN, edit={Site("mlp_post", 1): without})
    want = logit_diff(model.run(CLEAN), group) - logit_diff(run, group)
    np.testing.assert_allclose(one["value"], want, atol=1e-12)


def test_the_frozen_scale_is_that_of_this_run() -> None:
    """A part, by the formula: (part - its mean) / scale * gain . (W_U - W_U)."""
    model = load("gpt2")
    weights = model.plain.model.state_dict()  # type: ignore[attr-defined]
    sites = [Site("resid_post", 2), Site("mlp_out", 0), Site("z", 1)]
    cache = model.run(CLEAN, read=sites).cache
    last = cache[sites[0]][:, -1].double()
    scale = (last.var(-1, unbiased=False) + 1e-5).sqrt()
    unembed = weights["lm_head.weight"].double()
    into = (unembed[ANSWERS] - unembed[ANSWERS + 40]) * weights[
        "transformer.ln_f.weight"
    ].double()

    def part(write: Tensor) -> Tensor:
        write = write.double()
        return ((write - write.mean(-1, keepdim=True)) * into).sum(-1) / scale

    bias = weights["transformer.h.0.mlp.c_proj.bias"]
    table = logit_attribution(model, PAIRS).table
    mlp = table[(table["component"] == "mlp") & (table["layer"] == 0)]
    got = torch.tensor(mlp["value"].to_numpy())
    torch.testing.assert_close(
        got, part(cache[sites[1]][:, -1] - bias), atol=1e-6, rtol=0
    )
    w_o = weights["transformer.h.1.attn.c_proj.weight"][8:16]  # head 1 of 4, 8 wide
    head = table[(table["layer"] == 1) & (table["head"] == 1)]
    got = torch.tensor(head["value"].to_numpy())
    want = part(cache[sites[2]][:, -1, 1] @ w_o)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=0)


def test_agrees_with_transformer_lens() -> None:
    """Its cache's decomposition into heads, in float64, on an own bridge."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    hf_model = moved(peer_model("gpt2"))
    with float64_inside():
        ours = logit_attribution(BridgeModel(hf_model), PAIRS).nodes
        peer = peer_model("gpt2")
        peer.load_state_dict(hf_model.state_dict())
        bridge = build_bridge_from_module(
            peer, type(peer).__name__, hf_config=peer.config
        )
        bridge.eval()
        _, cache = bridge.run_with_cache(CLEAN)
        into = bridge.W_U[:, ANSWERS] - bridge.W_U[:, ANSWERS + 40]
        gain = peer.transformer.ln_f.weight
        for layer in range(3):
            z = cache[f"blocks.{layer}.attn.hook_z"][:, -1]
            heads = torch.einsum("bhd,hdm->hbm", z, bridge.blocks[layer].attn.W_O)
            scaled = cache.apply_ln_to_stack(heads, layer=-1, pos_slice=-1)
            values = torch.einsum("hbm,mb->hb", scaled * gain, into)
            got = ours[layer][[f"h{n}" for n in range(4)]].to_numpy().T
            np.testing.assert_allclose(got, values.detach().numpy(), atol=1e-10)


def test_prompts_of_several_lengths_stay_in_order() -> None:
    model = load("llama_mha")
    rows = [CLEAN[0], CLEAN[1, :6], CLEAN[2]]
    mixed = PromptPairs(rows, rows, ANSWERS, ANSWERS + 40)
    found = logit_attribution(model, mixed, by_position=True)
    assert found.table["prompt"].is_monotonic_increasing
    n_pos = found.table.groupby("prompt")["pos"].max().tolist()
    assert n_pos == [8, 5, 8]
    alone = PromptPairs(rows[1:2], rows[1:2], ANSWERS[1:2], ANSWERS[1:2] + 40)
    want = logit_attribution(model, alone)
    assert found.whole[1] == pytest.approx(want.whole[0], abs=1e-6)
    np.testing.assert_allclose(
        found.nodes.loc[1].to_numpy(), want.nodes.loc[0].to_numpy(), atol=1e-6
    )


def test_half_precision_reports_its_rounding() -> None:
    found = logit_attribution(
        BridgeModel(tiny("llama").bfloat16(), name="half"), PAIRS, neurons=True
    )
    assert max(map(abs, found.error)) < 0.02
    assert np.isfinite(found.table["value"]).all()


def test_bad_input_says_what_to_do() -> None:
    model = load("gpt2")
    with pytest.raises(ValueError, match=r"no answers.*PromptPairs\(\.\.\., answers"):
        logit_attribution(model, PromptPairs(CLEAN, CLEAN))
    only = PromptPairs(CLEAN, CLEAN, ANSWERS)
    with pytest.raises(ValueError, match=r'no wrong.*per="answer"'):
        logit_attribution(model, only, per="difference")
    assert logit_attribution(model, only).per == "answer"
    with pytest.raises(ValueError, match=r"position=9.*9 tokens.*0 to 8"):
        logit_attribution(model, PAIRS, position=9)
    with pytest.raises(ValueError, match=r"experts.*Leave neurons= out"):
        logit_attribution(load("mixtral"), PAIRS, neurons=True)


def test_saves_and_plots(tmp_path: Any) -> None:
    import matplotlib.pyplot as plt

    found = logit_attribution(load("gpt2"), PAIRS)
    again = LogitAttribution.load(found.save(tmp_path / "parts"))
    pd.testing.assert_frame_equal(again.table, found.table)
    assert again.whole == found.whole and again.factors == found.factors
    ax = found.plot()
    names = [label.get_text() for label in ax.get_xticklabels()]
    assert names == ["h0", "h1", "h2", "h3", "mlp"]
    shown = np.asarray(ax.images[0].get_array())
    assert shown[2, 4] == pytest.approx(found.nodes[2, "mlp"].mean())
    plt.close("all")
