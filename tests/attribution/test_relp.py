"""RelP against backward passes written by hand, and against its own promises."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from mechsink.attribution.attribution_patching import attribution_patching
from mechsink.attribution.gradients import gradients
from mechsink.attribution.relp import relp
from mechsink.metrics import logit_diff, sink_attention
from mechsink.models.bridge import BridgeModel
from mechsink.models.relevance import relevance_rules
from mechsink.prompts import PromptPairs
from mechsink.run import Model
from mechsink.sites import Site
from tests.attribution.test_nodes import affine, off, pairs, toy
from tests.interventions.float64 import float64_inside, peer_model
from tests.models.backends import load
from tests.models.families import GQA

MATRIX = ["gpt_neox", "qwen3", "gemma2", "olmo2", "phi3", "bloom", "mistral"]
RANDOM = pytest.mark.matrix
FAMILIES = ["llama", "gpt2", *(pytest.param(name, marks=RANDOM) for name in MATRIX)]
NAMES = ["resid_pre", "attn_out", "z", "v", "mlp_normed", "mlp_post", "mlp_out"]


def coefficients(model: Model, own: PromptPairs, names: list[str]) -> dict[Site, Any]:
    """What the rules give at whole sites of the clean run."""
    (batch,) = own.tokens(model)
    sites = [site for name in names for site in model.shape.all_sites(name)]
    with relevance_rules(model):
        return gradients(model, batch.clean, logit_diff, sites, batch)


class ByHand:
    """Coefficients by matrix products alone: nothing here is differentiated.

    Args:
        model: whose activations are the constants.
        own: prompts; `logit_diff` is the metric.
        gain: the gain of a norm by its name and layer.
        is_layer: LayerNorm, else RMSNorm.
        eps: of the norms.
        weights: W_V, W_O [head d_model d_head ...], of a layer.
        mlp: from the coefficient of mlp_out, and what the MLP read, to those of
            mlp_post and mlp_normed.
        unembed: W_U.
    """

    def __init__(
        self, model: Any, own: PromptPairs, gain: Any, is_layer: bool, eps: float,
        weights: Any, mlp: Any, unembed: torch.Tensor,
    ) -> None:  # fmt: skip
        (batch,) = own.tokens(model)
        names = ["resid_pre", "resid_mid", "resid_post", "pattern", "mlp_normed"]
        sites = [s for name in names for s in model.shape.all_sites(name)]
        cache = model.run(batch.clean, read=sites).cache
        n_layers = model.shape.n_layers

        def unnormed(g: torch.Tensor, x: torch.Tensor, name: str, layer: int) -> Any:
            x = x - x.mean(-1, keepdim=True) if is_layer else x
            g = g * gain(name, layer) / (x.square().mean(-1, keepdim=True) + eps).sqrt()
            return g - g.mean(-1, keepdim=True) if is_layer else g

        self.found: dict[Site, torch.Tensor] = {}
        last = cache[Site("resid_post", n_layers - 1)]
        g = torch.zeros_like(last)
        g[:, -1] = (unembed[:, batch.answers] - unembed[:, batch.wrong]).T
        g = unnormed(g, last, "ln_final", 0)
        for layer in reversed(range(n_layers)):
            at = {name: cache[Site(name, layer)] for name in names}
            self.found[Site("mlp_out", layer)] = g
            post, normed = mlp(layer, g, at["mlp_normed"])
            self.found[Site("mlp_post", layer)] = post
            self.found[Site("mlp_normed", layer)] = normed
            g = g + unnormed(normed, at["resid_mid"], "ln2", layer)
            self.found[Site("attn_out", layer)] = g
            w_v, w_o = weights(layer)
            z = torch.einsum("bpm,hdm->bphd", g, w_o)
            self.found[Site("z", layer)] = z
            by_head = torch.einsum("bhqk,bqhd->bkhd", at["pattern"], z)
            v = by_head.unflatten(2, (len(w_v), -1)).sum(3)
            self.found[Site("v", layer)] = v
            read = torch.einsum("bkhd,hmd->bkm", v, w_v)
            g = g + unnormed(read, at["resid_pre"], "ln1", layer)
            self.found[Site("resid_pre", layer)] = g


def toy_by_hand(model: Any, own: PromptPairs, is_layer: bool) -> ByHand:
    blocks = model.toy.blocks

    def gain(name: str, layer: int) -> torch.Tensor:
        norm = model.toy.ln_final if name == "ln_final" else None
        return (norm or getattr(blocks[layer], name)).w

    def mlp(layer: int, g: torch.Tensor, x: torch.Tensor) -> Any:
        own = blocks[layer].mlp
        pre = x @ own.W_in
        post = g @ own.W_out.T
        return post, (post * (pre > 0)) @ own.W_in.T

    def weights(layer: int) -> Any:
        return blocks[layer].attn.W_V, blocks[layer].attn.W_O

    return ByHand(model, own, gain, is_layer, 1e-5, weights, mlp, model.toy.W_U)


def llama_by_hand(model: Any, own: PromptPairs) -> ByHand:
    """A Llama from its Hugging Face weights: RMSNorm, grouped queries, a SiLU gate."""
    hf_model = model.plain.model
    layers, config = hf_model.model.layers, hf_model.config
    d_head = config.hidden_size // config.num_attention_heads

    def gain(name: str, layer: int) -> torch.Tensor:
        return {
            "ln1": layers[layer].input_layernorm,
            "ln2": layers[layer].post_attention_layernorm,
            "ln_final": hf_model.model.norm,
        }[name].weight

    def mlp(layer: int, g: torch.Tensor, x: torch.Tensor) -> Any:
        own = layers[layer].mlp
        gate, up = x @ own.gate_proj.weight.T, x @ own.up_proj.weight.T
        # silu(gate) / gate is the logistic function of gate.
        slope = gate.sigmoid()
        post = g @ own.down_proj.weight
        to_gate = 0.5 * post * slope * up
        to_up = 0.5 * post * slope * gate
        return post, to_gate @ own.gate_proj.weight + to_up @ own.up_proj.weight

    def weights(layer: int) -> Any:
        own = layers[layer].self_attn
        w_v = own.v_proj.weight.unflatten(0, (-1, d_head)).transpose(1, 2)
        w_o = own.o_proj.weight.T.unflatten(0, (-1, d_head))
        return w_v, w_o

    w_u = hf_model.lm_head.weight.T
    return ByHand(model, own, gain, False, config.rms_norm_eps, weights, mlp, w_u)


def gpt2_by_hand(model: Any, own: PromptPairs) -> ByHand:
    """A GPT-2 from its Hugging Face weights: LayerNorm and a GELU; biases pass none."""
    hf_model = model.plain.model
    layers, config = hf_model.transformer.h, hf_model.config
    d_model, n_heads = config.n_embd, config.n_head

    def gain(name: str, layer: int) -> torch.Tensor:
        return {
            "ln1": layers[layer].ln_1,
            "ln2": layers[layer].ln_2,
            "ln_final": hf_model.transformer.ln_f,
        }[name].weight

    def mlp(layer: int, g: torch.Tensor, x: torch.Tensor) -> Any:
        own = layers[layer].mlp
        pre = x @ own.c_fc.weight + own.c_fc.bias
        inner = (2 / np.pi) ** 0.5 * (pre + 0.044715 * pre**3)
        post = g @ own.c_proj.weight.T
        return post, (post * 0.5 * (1 + inner.tanh())) @ own.c_fc.weight.T

    def weights(layer: int) -> Any:
        own = layers[layer].attn
        w_v = own.c_attn.weight[:, 2 * d_model :].unflatten(1, (n_heads, -1))
        return w_v.transpose(0, 1), own.c_proj.weight.unflatten(0, (n_heads, -1))

    w_u = hf_model.lm_head.weight.T
    return ByHand(model, own, gain, True, config.layer_norm_epsilon, weights, mlp, w_u)


def biased(family: str) -> BridgeModel:
    """A tiny float64 model whose gains and biases are not all 1 and 0."""
    model = peer_model(family)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return BridgeModel(model, name=family)


@pytest.mark.first_case
@pytest.mark.parametrize("kind", ["layer", "rms", "llama", "gpt2"])
@torch.no_grad()
@pytest.mark.matrix
def test_coefficients_by_hand(kind: str) -> None:
    own = pairs(n=2)
    with float64_inside():
        if kind in ("layer", "rms"):
            model: Any = toy(norm=kind)
            for name, parameter in model.toy.named_parameters():
                if name.endswith((".w", ".b")):
                    parameter.add_(0.3 * torch.randn_like(parameter))
            want = toy_by_hand(model, own, kind == "layer").found
        else:
            model = biased(kind)
            by_hand = llama_by_hand if kind == "llama" else gpt2_by_hand
            want = by_hand(model, own).found
        with torch.enable_grad():
            got = coefficients(model, own, NAMES)
        (batch,) = own.tokens(model)
        scores = {name: relp(model, own, logit_diff, name).table for name in NAMES}
        sites = list(want)
        ends = [
            model.run(tokens, read=sites).cache
            for tokens in (batch.clean, batch.corrupted)
        ]
    assert set(got) == set(want)
    for site, by_hand_ in want.items():
        reach = float(by_hand_.abs().max())
        assert reach > 1e-3
        assert float((got[site] - by_hand_).abs().max()) < 1e-10 * reach, site
        # Positions of a whole site, prompt by prompt.
        product = (ends[0][site] - ends[1][site]) * by_hand_
        table = scores[site.name]
        mine = table[table["layer"] == site.layer].groupby(["prompt", "pos"])["score"]
        each = product.flatten(2).sum(2).flatten().numpy()
        assert mine.sum().to_numpy() == pytest.approx(each, abs=1e-9 * np.ptp(each))


def unbiased(family: str) -> Model:
    """In float64 and without biases, so that nothing but the input is a source."""
    if family in ("layer", "rms", "none"):
        return toy(norm=family)
    model = peer_model(family)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    return BridgeModel(model, name=family)


@pytest.mark.parametrize(
    "family",
    ["layer", "rms", "none", "llama", "gpt2",
     *(pytest.param(name, marks=RANDOM)
       for name in ("gpt_neox", "qwen3", "olmo2", "phi3", "mistral"))],
)  # fmt: skip
@pytest.mark.first_case
def test_relevance_is_conserved(family: str) -> None:
    """x . coefficient over each layer's residual stream is the metric, all of it."""
    own = pairs(n=3)
    with float64_inside():
        model = unbiased(family)
        (batch,) = own.tokens(model)
        found = coefficients(model, own, ["resid_pre"])
        run = model.run(batch.clean, read=list(found))
    metric = logit_diff(run, batch)
    assert metric.abs().min() > 1e-3
    for site, slope in found.items():
        total = (run.cache[site] * slope).sum((1, 2))
        assert total.detach().numpy() == pytest.approx(metric.numpy(), rel=1e-9), site


@pytest.mark.first_case
@pytest.mark.parametrize("site", ["resid_pre", "z", "v", "mlp_post", "mlp_out"])
def test_equals_exact_patching_on_an_affine_model(site: str) -> None:
    # There every rule is the plain gradient, which is exact.
    model, own = affine(), pairs()
    got = relp(model, own, logit_diff, site)
    want = attribution_patching(model, own, logit_diff, site)
    assert off(got.table["score"], want.table["score"]) < 1e-9
    curved = toy()
    got = relp(curved, own, logit_diff, site)
    want = attribution_patching(curved, own, logit_diff, site)
    assert off(got.table["score"], want.table["score"]) > 0.01


def test_where_an_activation_is_0_it_passes_nothing() -> None:
    model = toy()
    with torch.no_grad():  # the MLP then reads zeros, through weights that are not
        model.toy.get_submodule("blocks.1.ln2").w.zero_()  # type: ignore[operator]
    found = coefficients(model, pairs(), ["mlp_normed", "mlp_post"])
    assert found[Site("mlp_post", 1)].abs().max() > 0
    assert found[Site("mlp_normed", 1)].abs().max() == 0
    assert all(x.isfinite().all() for x in found.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_values_stay_and_nothing_is_left_behind(family: str) -> None:
    model: Any = load(family)
    (batch,) = pairs(n=2, d_vocab=80).tokens(model)
    plain = model.run(batch.clean).logits
    before = hooks(model.bridge)
    with relevance_rules(model):
        ruled = model.run(batch.clean).logits
        assert len(hooks(model.bridge)) > len(before)
    assert (ruled - plain).abs().max() <= 1e-5 * plain.abs().max()
    assert hooks(model.bridge) == before
    sites = model.shape.all_sites("mlp_out")
    slope = gradients(model, batch.clean, logit_diff, sites, batch)
    with pytest.raises(ZeroDivisionError), relevance_rules(model):
        raise ZeroDivisionError
    assert hooks(model.bridge) == before
    again = gradients(model, batch.clean, logit_diff, sites, batch)
    assert all(torch.equal(slope[site], again[site]) for site in sites)
    assert torch.equal(model.run(batch.clean).logits, plain)


def hooks(module: torch.nn.Module) -> list[tuple[str, int]]:
    """Where forward hooks sit, and how many."""

    def each() -> Iterator[tuple[str, int]]:
        for name, part in module.named_modules():
            yield name, len(part._forward_hooks) + len(part._forward_pre_hooks)

    return [(name, count) for name, count in each() if count]


@pytest.mark.first_case
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.some_cases(4)
@pytest.mark.matrix
def test_every_site_has_coefficients(family: str) -> None:
    model, own = load(family), pairs(n=2, d_vocab=80)
    for site in sorted(model.shape.sites - {"q", "k", "attn_scores"}):
        found = relp(model, own, logit_diff, site)
        reach = found.table.groupby("layer")["score"].apply(lambda x: x.abs().max())
        assert np.isfinite(found.table["score"]).all()
        # The last layer's pattern may be alike in both runs; no layer may be dead.
        assert (reach > 0).all(), site


def test_refusals() -> None:
    own = pairs(n=2, d_vocab=80)
    for family in ("gptj", "opt"):
        with pytest.raises(ValueError, match=rf"{family} .* held constant"):
            relp(load(family), own, logit_diff)
        attribution_patching(load(family), own, logit_diff, "mlp_out")  # the advice
    model = load("llama")
    for site in ("q", "k", "attn_scores"):
        with pytest.raises(ValueError, match="acts through attention patterns alone"):
            relp(model, own, logit_diff, site)
    with pytest.raises(ValueError, match=r"reads L1H0\.pattern, but its rules"):
        relp(model, own, sink_attention(layer=1, head=0))
    same = PromptPairs(own.clean, own.clean, own.answers, own.wrong)
    with pytest.raises(ValueError, match="relp: identical clean and corrupted prompts"):
        relp(model, same, logit_diff)


def test_experts_are_refused_by_name() -> None:
    config = hf.MixtralConfig(**GQA, num_local_experts=2, num_experts_per_tok=1)
    torch.manual_seed(0)
    model = BridgeModel(hf.MixtralForCausalLM(config).eval(), name="experts")
    with pytest.raises(ValueError, match=r"experts \(MixtralForCausalLM\).*one MLP"):
        relp(model, pairs(n=2, d_vocab=80), logit_diff)


def test_a_model_that_hides_its_parts_is_refused() -> None:
    class Hidden:
        """No toy, no bridge."""

    hidden = relevance_rules(Hidden())
    with pytest.raises(ValueError, match="keeps its norms and MLPs to itself"), hidden:
        pass
