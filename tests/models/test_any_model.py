"""Other people's model objects: taken everywhere, wrapped once, left as they were."""

import gc
import importlib
import inspect
import time
import weakref
from typing import Any, get_args

import pytest
import torch

import mechsink as ms
from mechsink.models.any_model import any_model, as_model
from mechsink.models.trace import TraceModel
from mechsink.run import Model
from tests.models.families import tiny
from toy_tasks import ToyConfig, ToyTransformer

TOKENS = torch.arange(6)[None]
PAIRS = ms.PromptPairs(
    TOKENS, TOKENS.roll(1, 1), answers=torch.tensor([7]), wrong=torch.tensor([9])
)


def bridge_of(own: Any) -> Any:
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    return build_bridge_from_module(own, type(own).__name__, hf_config=own.config)


def functions() -> list[Any]:
    found = [getattr(ms, name) for name in ms.__all__]
    found += [getattr(ms.prompt_sets, name) for name in ms.prompt_sets.__all__]
    return [one for one in found if inspect.isroutine(one)]


def asks_for_a_model(function: Any) -> bool:
    for one in inspect.signature(function).parameters.values():
        if one.annotation in (Model, "Model") or Model in get_args(one.annotation):
            return True
    return False


def test_every_public_function_takes_them() -> None:
    asking = [one for one in functions() if asks_for_a_model(one)]
    assert len(asking) > 80
    code = any_model(ms.sink_scores).__code__  # of the wrapper that it makes
    closed = [one.__name__ for one in asking if one.__code__ is not code]
    assert closed == []


@pytest.mark.parametrize("kind", ["transformers", "bridge", "nnsight"])
@pytest.mark.matrix
def test_results_are_those_of_the_loaded_model(kind) -> None:
    own = tiny("llama")
    given: Any = own
    if kind == "bridge":
        given = bridge_of(tiny("llama"))
    if kind == "nnsight":
        from nnsight import NNsight

        given = NNsight(own)
    wanted = ms.sink_scores(ms.load_model(own), TOKENS).table
    found = ms.sink_scores(given, TOKENS)
    assert found.table["score"].to_numpy() == pytest.approx(
        wanted["score"].to_numpy(), abs=1e-6
    )
    assert as_model(given) is as_model(given)
    assert isinstance(as_model(given), TraceModel) == (kind == "nnsight")
    effect = ms.patch_sweep(given, PAIRS, ms.logit_diff, site="resid_pre").table
    assert effect["effect"].iloc[0] == pytest.approx(1, abs=1e-4) or len(effect) == 18


def test_a_second_call_wraps_nothing(monkeypatch) -> None:
    own = tiny("llama")
    ms.sink_scores(own, TOKENS)
    load = importlib.import_module("mechsink.models.load")
    monkeypatch.setattr(load, "load_model", lambda *_: pytest.fail("wrapped again"))
    started = time.perf_counter()
    for _ in range(20):
        as_model(own)
    assert (time.perf_counter() - started) / 20 < 0.05  # 0.2 ms on a free machine
    ms.patch_sweep(own, PAIRS, ms.logit_diff, site="resid_pre")


def test_the_object_stays_as_it_was() -> None:
    own = tiny("gpt2").train()
    weights = {name: p.clone() for name, p in own.named_parameters()}
    modules = [type(module) for module in own.modules()]
    config = own.config.to_json_string()
    ms.eap(own, PAIRS, ms.logit_diff)
    assert own.training and own.config.to_json_string() == config
    assert [type(module) for module in own.modules()] == modules
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in own.modules())
    for name, parameter in own.named_parameters():
        assert torch.equal(parameter, weights[name])
        assert parameter.requires_grad and parameter.grad is None


@pytest.mark.matrix
def test_a_changed_model_is_measured_as_it_is_now() -> None:
    own = tiny("llama")

    def logits() -> torch.Tensor:
        return as_model(own).run(TOKENS).logits

    first = logits()
    with torch.no_grad():
        own.lm_head.weight.mul_(2)  # as an optimiser writes
    torch.testing.assert_close(logits(), 2 * first)
    own.lm_head.weight = torch.nn.Parameter(own.lm_head.weight / 2)
    torch.testing.assert_close(logits(), first)
    own.double()
    assert logits().dtype == torch.float64
    hook = own.lm_head.register_forward_hook(lambda module, given, out: 3 * out)
    torch.testing.assert_close(logits(), 3 * first.double(), rtol=1e-5, atol=1e-5)
    hook.remove()
    torch.testing.assert_close(logits(), first.double(), rtol=1e-5, atol=1e-5)


def test_a_wrapper_goes_with_its_model() -> None:
    own = tiny("llama")
    wrapper = weakref.ref(as_model(own))
    gone = weakref.ref(own)
    del own
    gc.collect()
    assert gone() is None and wrapper() is None


def test_a_toy_and_a_model_of_ones_own_are_taken() -> None:
    toy = ToyTransformer(ToyConfig(d_vocab=80, n_layers=1, d_model=8, d_head=4), 0)
    assert ms.sink_scores(toy, TOKENS).table["layer"].tolist() == [0] * len(
        ms.sink_scores(toy, TOKENS).table
    )
    loaded = ms.load_model(toy)
    assert as_model(loaded) is loaded


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("smollm2", r"this is 'smollm2'\. Allowed.*ms\.load_model\(\"smollm2\"\)"),
        (None, "this is NoneType"),
        (torch.nn.Linear(2, 2), "a Linear cannot be wrapped"),
    ],
)
def test_what_is_no_model_is_refused(given, message) -> None:
    with pytest.raises(ValueError, match=message):
        ms.sink_scores(given, TOKENS)
