"""The wiring of every family: weights that give what the model computes."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from mechsink.models.bridge import BridgeModel
from mechsink.models.toy import ToyModel
from mechsink.models.wiring import PORTS, Norm, Unembed, Wiring, Write, wiring
from mechsink.run import Model
from mechsink.sites import Site
from tests.interventions.float64 import float64_inside
from tests.models.backends import BACKENDS, TOYS, load
from tests.models.families import tiny
from toy_tasks import ToyTransformer

TOKENS = torch.randint(0, 80, (2, 7), generator=torch.Generator().manual_seed(3))

MORE = ["granite", "cohere", "stablelm", "phi", "mixtral", "olmo"]


def more(family: str) -> BridgeModel:
    model = tiny(family)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # gains that are not 1, biases that are not 0
                parameter.normal_(1.0, 0.25)
    return BridgeModel(model, name=family)


@pytest.fixture(params=[*BACKENDS, *MORE])
def model(request: pytest.FixtureRequest) -> Model:
    name = request.param
    return more(name) if name in MORE else load(name)


@pytest.mark.first_case
def test_weights_give_the_sites(model: Model) -> None:
    """On tokens that the proof itself has not seen."""
    known = wiring(model)
    assert wiring(model) is known  # proved once
    read = [site for name in model.shape.sites for site in model.shape.all_sites(name)]
    run = model.run(TOKENS, read=read)
    for layer in range(3):
        at = {name: run.cache[Site(name, layer)] for name in model.shape.sites}
        close = {"rtol": 1e-3, "atol": 1e-3}
        for port in PORTS:
            read_port = known.attention_read(layer, port)
            torch.testing.assert_close(read_port(at["resid_pre"]), at[port], **close)
            one = read_port.head(1 % at[port].shape[2], at["resid_pre"])
            want = at[port][:, :, 1 % at[port].shape[2]]
            torch.testing.assert_close(one, want, **close)
        normed = known.mlp_read(layer)(at.get("resid_mid", at["resid_pre"]))
        torch.testing.assert_close(normed, at["mlp_normed"], **close)
        write = known.attention_write(layer)
        shares = write.parts(at["z"]).sum(2) + write.frozen_bias(at["z"])
        torch.testing.assert_close(shares, at["attn_out"], **close)
        mlp = known.mlp_write(layer)
        if mlp.weight is not None:
            torch.testing.assert_close(mlp(at["mlp_post"]), at["mlp_out"], **close)
    last = run.cache[Site("resid_post", 2)]
    torch.testing.assert_close(known.unembed(last), run.logits, rtol=1e-3, atol=1e-3)
    few = torch.tensor([5, 2, 70])
    some = known.unembed.of(last, few)
    torch.testing.assert_close(some, run.logits[..., few], rtol=1e-3, atol=1e-3)


def test_experts_have_no_single_output_matrix() -> None:
    assert wiring(more("mixtral")).mlp_write(0).weight is None


def test_a_norm_without_a_gain_has_the_models_own_type() -> None:
    known = wiring(BridgeModel(tiny("olmo").to(torch.bfloat16), selfcheck=False))
    norm = known.mlp_read(0).norm
    assert norm is not None and norm.gain.dtype == torch.bfloat16


def test_a_prefix_has_no_edges() -> None:
    toy = ToyTransformer(replace(TOYS["toy"], prefix=3)).eval()
    with pytest.raises(ValueError, match=r"first 3 tokens of this toy .*Node methods"):
        wiring(ToyModel(toy))


def test_norms_against_torch() -> None:
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0)).double()
    gain, bias = torch.rand(16).double() + 0.5, torch.rand(16).double()
    layer, rms = Norm("layer", gain, bias, 1e-5), Norm("rms", gain, None, 1e-5)
    want = torch.nn.functional.layer_norm(x, (16,), gain, bias, 1e-5)
    torch.testing.assert_close(layer(x), want)
    want = torch.nn.functional.rms_norm(x, (16,), gain, 1e-5)
    torch.testing.assert_close(rms(x), want)


def test_logits_by_hand() -> None:
    unembed = Unembed(None, torch.eye(2), torch.tensor([1.0, 0.0]), scale=2.0, cap=10.0)
    got = unembed(torch.tensor([[3.0, 5.0]]))
    want = torch.tensor(
        [[10 * torch.tanh(torch.tensor(0.8)), 10 * torch.tensor(1.0).tanh()]]
    )
    torch.testing.assert_close(got, want)


def test_heads_share_a_post_norm_by_hand() -> None:
    """Two heads write (3, 0) and (0, 4): the norm divides both by sqrt(12.5)."""
    weight = torch.tensor([[[3.0, 0.0]], [[0.0, 4.0]]])
    write = Write(weight, None, Norm("rms", torch.ones(2), None, 0.0))
    z = torch.ones(1, 1, 2, 1)
    want = torch.tensor([[[[3.0, 0.0], [0.0, 4.0]]]]) / 12.5**0.5
    torch.testing.assert_close(write.parts(z), want)
    torch.testing.assert_close(write(z), want.sum(2))


class _Lying:
    """A wiring whose one read is off by a tenth."""

    def __init__(self, true: Wiring, what: str) -> None:
        self._true, self._what = true, what

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._true, name)
        if name != self._what:
            return value
        if name == "unembed":
            return Unembed(value.norm, value.weight * 1.1, value.bias)
        return lambda *args: lambda x: value(*args)(x) * 1.1


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("attention_read", "q of layer 0"),
        ("mlp_read", "mlp_normed of layer 0"),
        ("unembed", "the logits"),
    ],
)
def test_a_wrong_wiring_is_refused(what: str, message: str) -> None:
    from mechsink.models.wiring import prove

    model = load("llama")
    lying: Any = _Lying(wiring(model), what)
    with pytest.raises(ValueError, match=rf"in llama, {message} is not .*off by"):
        prove(lying, model.shape, model.run, model.name, model.device)


def test_float64_stays_float64() -> None:
    toy = ToyModel(ToyTransformer(TOYS["toy"], 1).double())
    with float64_inside():
        run = toy.run(TOKENS, read=[Site("resid_post", 2)])
        got = wiring(toy).unembed(run.cache[Site("resid_post", 2)])
    torch.testing.assert_close(got, run.logits, rtol=1e-12, atol=1e-12)
