"""A model in float64 all the way through, and one that shares nothing with it."""

import copy

import pytest
import torch

import mechsink as ms
from mechsink.models.bridge import BridgeModel
from mechsink.models.float64 import in_float64, working_dtype
from mechsink.models.toy import ToyModel
from mechsink.models.trace import TraceModel
from tests.interventions.float64 import float64_inside
from tests.models.backends import TOYS
from tests.models.families import FAMILIES, MORE, NO_BRIDGE, tiny
from toy_tasks import ToyTransformer

TOKENS = torch.arange(8)[None] * 7 % 80
BAD_TRUTH = ("gptj", "qwen3_moe")
"""Where the other way to stay in float64 leaves a cast behind (facts, trap 6)."""
KINDS = [
    (kind, family)
    for kind in (BridgeModel, TraceModel)
    for family in (*FAMILIES, *MORE)
    if not (kind is BridgeModel and family in NO_BRIDGE)
]


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("kind", "family"), KINDS, ids=[f"{k.__name__}-{f}" for k, f in KINDS]
)
@pytest.mark.some_cases(12)
def test_logits_are_those_of_a_run_without_casts(kind, family) -> None:
    model = in_float64(kind(tiny(family), name=family))
    got = model.run(TOKENS).logits
    with float64_inside(), torch.no_grad():
        peer = copy.deepcopy(tiny(family)).double()
        if hasattr(peer, "set_experts_implementation"):
            peer.set_experts_implementation("eager")
        peer.config._attn_implementation = "eager"
        want = peer(TOKENS).logits
    assert got.dtype == torch.float64
    close = 1e-6 if family in BAD_TRUTH else 1e-13
    torch.testing.assert_close(got, want, rtol=0, atol=close)
    pairs = ms.PromptPairs(
        TOKENS, (TOKENS + 3) % 80, answers=torch.tensor([5]), wrong=torch.tensor([9])
    )
    wave, cells = (
        ms.patch_sweep(model, pairs, ms.logit_diff, engine=engine).table["value"]
        for engine in ("auto", "cells")
    )
    assert (wave - cells).abs().max() < 1e-13
    pattern = model.run(TOKENS, read=[ms.Site("pattern", 1)]).cache
    scores = ms.sink_scores(model, TOKENS).table
    scores = scores[scores["layer"] == 1]["score"].to_numpy()
    whole = ms.sink_score(pattern[ms.Site("pattern", 1)]).detach()[0].numpy()
    assert abs(scores - whole).max() < 1e-13


def test_the_copy_shares_nothing_and_the_model_stays_as_it_was() -> None:
    own = copy.deepcopy(tiny("llama")).to(torch.bfloat16)
    model = BridgeModel(
        own, name="mine", info={"weights_note": "4 bit"}, selfcheck=False
    )
    before = model.run(TOKENS).logits
    double = in_float64(model)
    assert (double.name, double.dtype) == ("mine", torch.float64)
    assert (
        double.info["weights_note"] == "4 bit" and "float64" in double.info["precision"]
    )
    assert (working_dtype(model), working_dtype(double)) == (
        torch.bfloat16,
        torch.float64,
    )
    assert torch.equal(model.run(TOKENS).logits, before)
    assert "precision" not in model.info and type(own).forward is not None
    shared = {p.data_ptr() for p in own.parameters()}
    assert not shared & {p.data_ptr() for p in double.plain.model.parameters()}
    # The weights are those of the bfloat16 model, to the bit.
    theirs = dict(double.plain.model.named_parameters())
    for name, weight in own.named_parameters():
        assert torch.equal(theirs[name], weight.double()), name


@pytest.mark.matrix
def test_a_copy_proves_itself_and_can_be_copied() -> None:
    double = in_float64(BridgeModel(tiny("llama")))
    assert ms.selfcheck(double).ok
    again = in_float64(double)
    assert torch.equal(again.run(TOKENS).logits, double.run(TOKENS).logits)


def test_toys_and_other_objects() -> None:
    toy = ToyModel(ToyTransformer(TOYS["toy"]).eval(), name="small")
    double = in_float64(toy)
    assert (double.name, double.dtype, toy.dtype) == (
        "small",
        torch.float64,
        torch.float32,
    )
    off = (double.run(TOKENS).logits - toy.run(TOKENS).logits).abs().max()
    assert 0 < off < 1e-4
    with pytest.raises(ValueError, match="in_float64: the weights of a Stranger"):
        in_float64(Stranger(toy))


class Stranger:
    """A model that hands everything on to another."""

    def __init__(self, model: ToyModel) -> None:
        self._model = model

    def __getattr__(self, name: str):
        return getattr(self._model, name)
