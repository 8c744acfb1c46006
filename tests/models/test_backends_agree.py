"""TransformerLens and nnsight read, edit and differentiate the same model alike."""

import pytest
import torch
from torch import Tensor

import mechsink as ms
from mechsink.attribution.gradients import gradients
from mechsink.metrics import sink_attention
from mechsink.models import places
from mechsink.models.bridge import BridgeModel
from mechsink.models.selfcheck import SelfCheckError
from mechsink.models.trace import TraceModel
from mechsink.run import Model
from mechsink.sites import AXES, Site
from tests.models.backends import load
from tests.models.families import FAMILIES, MORE, NO_BRIDGE, tiny

TOKENS = torch.randint(0, 80, (2, 9), generator=torch.Generator().manual_seed(0))
Pair = tuple[Model, Model]


FEW = ("gpt2", "llama")
PAIRED = [
    family if family in FEW else pytest.param(family, marks=pytest.mark.matrix)
    for family in (*FAMILIES, *MORE)
    if family not in NO_BRIDGE
]


@pytest.fixture(params=PAIRED)
def pair(request: pytest.FixtureRequest) -> Pair:
    return load(request.param), load(f"nnsight_{request.param}")


def shared(pair: Pair, edited: bool = False) -> list[Site]:
    """Sites that both have; only those that both edit."""
    bridge, traced = (model.shape for model in pair)
    names = bridge.sites & traced.sites
    if edited:
        names -= bridge.read_only | traced.read_only
    return [s for name in AXES if name in names for s in bridge.all_sites(name)]


def close(got: Tensor, want: Tensor, what: object) -> None:
    """To 1e-5 of the largest value; masked scores are not compared."""
    shown = want > -1e4
    assert torch.equal(shown, got > -1e4), what
    got, want = got[shown], want[shown]
    off = (got - want).abs().max() / want.abs().max().clamp(min=1e-30)
    assert off <= 1e-5, (what, float(off))


def test_nnsight_has_every_site_that_the_bridge_has(pair: Pair) -> None:
    bridge, traced = (model.shape for model in pair)
    assert traced.sites >= bridge.sites
    assert traced.read_only <= bridge.read_only
    for size in ("n_layers", "n_heads", "n_kv_heads", "d_model", "d_head"):
        assert getattr(traced, size) == getattr(bridge, size), size
    if "mlp_post" in traced.sites:  # experts have no one width
        assert traced.d_mlp == bridge.d_mlp
    assert traced.rows_sum_to_1 == bridge.rows_sum_to_1


def test_logits_and_sites(pair: Pair) -> None:
    want, got = (model.run(TOKENS, read=shared(pair)) for model in pair)
    close(got.logits, want.logits, "logits")
    for site in want.cache:
        close(got.cache[site], want.cache[site], site)
    for layer in range(3):
        close(pair[1].w_o(layer), pair[0].w_o(layer), "w_o")


def test_edits(pair: Pair) -> None:
    for site in shared(pair, edited=True):
        if site.layer != 1:
            continue
        want, got = (model.run(TOKENS, edit={site: tilt}).logits for model in pair)
        close(got, want, site)
        part = Site(site.name, 1, head=2) if "head" in site.axes else None
        if part is not None:
            want, got = (model.run(TOKENS, edit={part: tilt}).logits for model in pair)
            close(got, want, part)


def tilt(x: Tensor) -> Tensor:
    return torch.where(x > -1e4, x * torch.linspace(0.2, 1.0, x.shape[-1]), x)


def test_gradients(pair: Pair) -> None:
    metric = sink_attention(layer=2, head=1)
    sites = [s for s in shared(pair, edited=True) if s.layer < 2]
    want, got = (gradients(model, TOKENS, metric, sites) for model in pair)
    for site in sites:
        if site.name != "attn_scores":  # the bridge's masked scores are finite
            close(got[site], want[site], site)


@pytest.mark.parametrize("site", ["resid_pre", "z", "pattern"])
@pytest.mark.some_cases(30)
def test_sweeps(pair: Pair, site: str) -> None:
    if site not in {s.name for s in shared(pair, edited=True)}:
        pytest.skip("one of them does not edit it")
    prompts = ms.PromptPairs(
        clean=TOKENS[:1],
        corrupted=TOKENS[1:],
        answers=torch.tensor([3]),
        wrong=torch.tensor([4]),
    )
    want, got = (
        ms.patch_sweep(model, prompts, ms.logit_diff, site=site, progress=False).table
        for model in pair
    )
    keys = [c for c in want.columns if c not in ("value", "effect")]
    assert want[keys].equals(got[keys])
    scale = want["value"].abs().max()
    assert (want["value"] - got["value"]).abs().max() <= 1e-5 * scale


def test_what_the_bridge_cannot_take_apart_names_the_other() -> None:
    with pytest.raises(ValueError, match=r'falcon_new.*backend="nnsight"'):
        _ = BridgeModel(tiny("falcon_new"), name="falcon_new").shape
    prompts = ms.PromptPairs(
        TOKENS[:1], TOKENS[1:], answers=torch.tensor([3]), wrong=torch.tensor([4])
    )
    with pytest.raises(ValueError, match="edges and logits"):
        ms.logit_attribution(load("nnsight_falcon_new"), prompts)


def test_a_fused_projection_taken_apart_wrongly_is_noticed(monkeypatch) -> None:
    monkeypatch.setattr(places, "_grouped", places._side_by_side)
    with pytest.raises(SelfCheckError, match="z is pattern times v"):
        _ = TraceModel(tiny("gpt_neox"), name="gpt_neox").shape


def test_what_nnsight_edits_and_the_bridge_discards() -> None:
    bridge, traced = load("gptj"), load("nnsight_gptj")
    site = Site("pattern", 1)
    with pytest.raises(ValueError, match="can only be read"):
        bridge.run(TOKENS, edit={site: torch.zeros_like})
    run = traced.run(TOKENS, edit={site: torch.zeros_like}, read=[Site("z", 1)])
    assert (run.cache[Site("z", 1)] == 0).all()


def test_an_nnsight_model_is_taken_as_it_is() -> None:
    import nnsight

    own = tiny("llama")
    before = own(TOKENS).logits
    wrapped = nnsight.NNsight(own)
    model = ms.load_model(wrapped)
    assert model.info["backend"] == "nnsight" and model.name == "LlamaForCausalLM"
    close(model.run(TOKENS).logits, before, "logits")
    assert ms.load_model(wrapped, backend="transformer_lens").info["backend"] == (
        "transformer_lens"
    )
    with wrapped.trace(TOKENS):
        again = wrapped.output.logits.save()
    torch.testing.assert_close(again, before)
    with pytest.raises(ValueError, match="wraps a Linear"):
        ms.load_model(nnsight.NNsight(torch.nn.Linear(2, 2)))
