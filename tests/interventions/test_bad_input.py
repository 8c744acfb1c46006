"""Wrong input is refused with advice; an interrupted sweep leaves nothing behind."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from mechsink.interventions.ablation import ablate
from mechsink.interventions.patching import patch_sweep
from mechsink.interventions.replacements import zero
from mechsink.metrics import answer_logprob, logit_diff
from mechsink.models.bridge import BridgeModel
from mechsink.prompts import PromptPairs
from mechsink.sites import Site
from tests.models.families import tiny
from tests.models.test_load import word_tokenizer

GENERATOR = torch.Generator().manual_seed(8)
CLEAN, CORRUPTED = torch.randint(3, 80, (2, 2, 6), generator=GENERATOR)
ANSWERS, WRONG = torch.tensor([5, 6]), torch.tensor([9, 7])
PAIRS = PromptPairs(CLEAN, CORRUPTED, ANSWERS, WRONG)
SITES = [Site("z", 1, head=2), Site("mlp_out", 0)]
FEW: dict[str, Any] = {"layers": [0, 2], "positions": [1, 4]}


@pytest.fixture(scope="module")
def model() -> BridgeModel:
    return BridgeModel(tiny("llama"), word_tokenizer(), name="llama")


class Raising:
    """A metric that fails from a certain call on."""

    reads = logit_diff.reads
    logits_read = "last"

    def __init__(self, call: int, error: type[BaseException] = RuntimeError) -> None:
        self.left, self.error = call, error

    def __call__(self, run: Any, prompts: Any) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise self.error("metric")
        return logit_diff(run, prompts)


@pytest.fixture
def unharmed(model: BridgeModel) -> Iterator[None]:
    """After the test: no hook that was not there, and the same bits as before."""
    before, state = numbers(model), traces(model)
    assert not any(vars_of for *_, vars_of in traces_of(model.plain.model).values())
    yield
    assert traces(model) == state
    pd.testing.assert_frame_equal(numbers(model), before, check_exact=True)


def numbers(model: BridgeModel) -> pd.DataFrame:
    tables = [
        patch_sweep(model, PAIRS, logit_diff, "z", engine=engine, **FEW).table
        for engine in ("wave", "cells")
    ]
    logits = model.run(CLEAN).logits.flatten().tolist()
    return pd.concat([*tables, pd.DataFrame({"value": logits})], ignore_index=True)


def traces_of(root: nn.Module) -> dict[str, tuple[list[int], list[int], bool]]:
    """Hooks, pre-hooks and an own `forward` of every module."""
    return {
        name: (
            list(module._forward_hooks),
            list(module._forward_pre_hooks),
            "forward" in vars(module),
        )
        for name, module in root.named_modules()
    }


def traces(model: BridgeModel) -> dict[str, Any]:
    plain: Any = model.plain.model
    return {
        "plain": traces_of(plain),
        "bridge": traces_of(model.bridge),
        "inside": traces_of(model.bridge.original_model),
        "head": (id(plain.get_output_embeddings()), type(plain.lm_head)),
        "attention": plain.config._attn_implementation,
        "grad": torch.is_grad_enabled(),
    }


@pytest.mark.parametrize("engine", ["wave", "cells"])
@pytest.mark.parametrize("call", [0, 1, 2])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.matrix
def test_a_metric_that_raises(
    model: BridgeModel, unharmed: None, engine: Any, call: int, error: Any
) -> None:
    with pytest.raises(error, match="metric"):
        patch_sweep(model, PAIRS, Raising(call, error), "z", engine=engine)


@pytest.mark.parametrize(
    ("view", "engine", "path"),
    [
        ("plain", "wave", "model.layers.1.mlp"),
        ("plain", "wave", "model.layers.2.self_attn.q_proj"),
        ("plain", "wave", "model.norm"),  # runs while stand-ins take the blocks' place
        ("bridge", "wave", "blocks.1.mlp"),
        ("bridge", "cells", "blocks.1.mlp"),
    ],
)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.matrix
def test_an_interrupt_in_the_middle_of_a_sweep(
    model: BridgeModel, unharmed: None, view: str, engine: Any, path: str, share: float
) -> None:
    """Wherever it happens to be: that share of the module's calls is let through."""
    root = model.plain.model if view == "plain" else model.bridge
    module = root.get_submodule(path)
    calls: list[int] = []
    count = module.register_forward_pre_hook(lambda *given: calls.append(1))
    patch_sweep(model, PAIRS, logit_diff, "resid_mid", engine=engine, **FEW)
    count.remove()
    left = [round(share * (len(calls) - 1))]

    def interrupt(*given: Any) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt("control c")
        left[0] -= 1

    handle = module.register_forward_pre_hook(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt, match="control c"):
            patch_sweep(model, PAIRS, logit_diff, "resid_mid", engine=engine, **FEW)
    finally:
        handle.remove()


def test_an_interrupt_in_the_middle_of_an_edit(
    model: BridgeModel, unharmed: None
) -> None:
    def interrupt(x: Tensor) -> Tensor:
        raise KeyboardInterrupt("control c")

    edits = {Site("resid_mid", 1): interrupt, Site("q", 2, head=1): torch.zeros_like}
    with pytest.raises(KeyboardInterrupt, match="control c"):
        model.run(CLEAN, read=[Site("z", 0)], edit=edits)


@pytest.mark.parametrize("site", [Site("z", 1, head=2), Site("resid_mid", 0)])
def test_an_edit_of_another_shape(
    model: BridgeModel, unharmed: None, site: Site
) -> None:
    given = r"returned \(2, 5, .*but the site has axes batch pos .*= \(2, 6, "
    with pytest.raises(ValueError, match=given):
        model.run(CLEAN, edit={site: lambda x: x[:, :-1]})
    model.run(CLEAN, edit={site: lambda x: x * 0})  # as advised: of that shape


@pytest.mark.parametrize("call", [0, 1])
def test_an_ablation_whose_metric_raises(
    model: BridgeModel, unharmed: None, call: int
) -> None:
    with pytest.raises(KeyboardInterrupt, match="metric"):
        ablate(model, PAIRS, SITES, zero(), Raising(call, KeyboardInterrupt))


def test_prompts_of_unequal_length_are_shown_where_they_part(
    model: BridgeModel,
) -> None:
    texts = PromptPairs(
        ["w1 w2 w3", "w4 w5 w6"], ["w1 w9 w3", "w4 w7 w8 w6"], ["w10"], ["w11"]
    )
    where = r"pair 1 has 3 clean and 4 .*part at token 1: .*\['w4', 'w5', 'w6'\]"
    with pytest.raises(ValueError, match=rf"{where}.*\['w4', 'w7', 'w8', 'w6'\]"):
        patch_sweep(model, texts, logit_diff)
    # As advised, words for words; and ablate runs the clean prompts alone.
    PromptPairs(texts.clean, ["w1 w9 w3", "w4 w7 w8"], ["w10"], ["w11"]).tokens(model)
    assert len(ablate(model, texts, SITES, zero(), logit_diff).table) == 2


@pytest.mark.parametrize(
    ("answers", "wrong", "message"),
    [
        (["w3 w4"], ["w5"], r"'w3 w4', which is 2 tokens .*\['w3', 'w4'\]"),
        (["w3"], ["w4 w5 w6"], "wrong has 'w4 w5 w6', which is 3 tokens"),
        (["w3", "w4"], ["w5", "w4"], "pair 1 has 'w4' as answer and as wrong"),
        (["w3", "w4", "w5"], ["w6"], "3 answers for 2 pairs"),
    ],
)
def test_answers_that_cannot_be_told_apart(
    model: BridgeModel, answers: list[str], wrong: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pairs = PromptPairs(CLEAN, CORRUPTED, answers, wrong)
        patch_sweep(model, pairs, logit_diff)
    with pytest.raises(ValueError, match=message):
        pairs = PromptPairs(CLEAN, CORRUPTED, answers, wrong)
        ablate(model, pairs, SITES, zero(), logit_diff)


@pytest.mark.parametrize(
    ("site", "options", "message"),
    [
        ("z", {"layers": [0, 3]}, "Allowed: some of 0 to 2"),
        ("z", {"layers": [-1]}, "Allowed: some of 0 to 2"),
        ("z", {"layers": []}, "Allowed: some of 0 to 2"),
        ("q", {"positions": [6]}, '0 to 5, or "all"'),
        ("q", {"positions": [-1]}, '0 to 5, or "all"'),
        ("q", {"positions": []}, '0 to 5, or "all"'),
        ("mlp_post", {"neurons": [48]}, "0 to 47"),
        ("mlp_post", {"neurons": [-1]}, "0 to 47"),
        ("mlp_post", {"neurons": []}, "0 to 47"),
        ("z", {"neurons": [1]}, "neurons= goes with site"),
        ("residpre", {}, "Did you mean 'resid_pre'"),
        ("attn_scores", {}, "sweep pattern"),
    ],
)
@pytest.mark.parametrize("engine", ["auto", "cells"])
def test_places_that_are_not_there(
    model: BridgeModel, site: str, options: Any, message: str, engine: Any
) -> None:
    with pytest.raises(ValueError, match=message):
        patch_sweep(model, PAIRS, logit_diff, site, engine=engine, **options)


def test_a_metric_of_answers_without_any(model: BridgeModel) -> None:
    tokens = torch.arange(6)[None]
    bare = PromptPairs(tokens, tokens + 9)
    for metric, lacks in ((logit_diff, "answers"), (answer_logprob, "answers")):
        for call in (
            lambda m=metric: patch_sweep(model, bare, m),
            lambda m=metric: ablate(model, tokens, [Site("z", 0)], zero(), m),
        ):
            with pytest.raises(ValueError, match=f"prompts have no {lacks}"):
                call()


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (Site("z", 3), "layer=3, but this model has 3 .*0 to 2"),
        (Site("z", 1, head=4), "head=4, but this model has 4 .*0 to 3"),
        (Site("k", 1, kv_head=2), "kv_head=2, but this model has 2 .*0 to 1"),
    ],
)
@pytest.mark.matrix
def test_heads_and_layers_that_are_not_there(
    model: BridgeModel, unharmed: None, site: Site, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ablate(model, PAIRS, [site], zero(), logit_diff)
    with pytest.raises(ValueError, match=message):
        model.run(CLEAN, read=[site])


def test_nan_weights_are_named() -> None:
    model = BridgeModel(tiny("llama"), name="llama")
    patch_sweep(model, PAIRS, logit_diff, **FEW)
    with torch.no_grad():
        model.plain.model.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    for engine in ("wave", "cells"):
        with pytest.raises(ValueError, match="NaN"):
            patch_sweep(model, PAIRS, logit_diff, engine=engine, **FEW)


@pytest.mark.parametrize("engine", ["wave", "cells"])
def test_padding_on_the_left_changes_no_number(model: BridgeModel, engine: Any) -> None:
    """Rows of 4 and 6 tokens: padded into one tensor, and each by itself."""
    clean, corrupted = CLEAN.clone(), CORRUPTED.clone()
    clean[0, :2] = corrupted[0, :2] = 0
    padded = PromptPairs(clean, corrupted, ANSWERS, WRONG, pad=0)
    bare = PromptPairs(
        [clean[0, 2:], clean[1]], [corrupted[0, 2:], corrupted[1]], ANSWERS, WRONG
    )
    got, want = (
        patch_sweep(model, pairs, logit_diff, engine=engine) for pairs in (padded, bare)
    )
    pd.testing.assert_frame_equal(got.table, want.table, check_exact=True)
    assert got.clean == want.clean and got.corrupted == want.corrupted
    assert [len(got.table[got.table["prompt"] == i]) for i in (0, 1)] == [3 * 4, 3 * 6]
    # And they are not the numbers of prompts that keep the padding as tokens.
    kept = patch_sweep(model, replace(padded, pad=-1), logit_diff, engine=engine)
    assert abs(kept.clean[0] - want.clean[0]) > 0.01
