"""A vision-language model with its image's tokens as a span, on both backends."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import mechsink as ms
from mechsink.models.bridge import BridgeModel
from mechsink.models.continuation import CannotContinueError
from mechsink.models.inputs import image_span
from mechsink.run import Model
from tests.models.vision import IMAGE, PROMPTS, SPAN, in_words, llava

PAIRS = ms.PromptPairs(
    PROMPTS[:1], PROMPTS[1:], answers=torch.tensor([3]), wrong=torch.tensor([4])
)


@pytest.fixture(
    scope="module",
    params=[pytest.param("nnsight", marks=pytest.mark.matrix), "transformer_lens"],
)
def models(request: Any) -> tuple[Any, Any, Any]:
    """The Hugging Face model, ours without its image, ours with it."""
    own, image = llava()
    model: Any = ms.load_model(own, backend=request.param, name="llava")
    bound = model.with_inputs(PROMPTS, pixel_values=image)
    assert not model.inputs and torch.equal(bound.inputs["pixel_values"], image)
    own.image = image
    return own, model, bound


def close(got: Tensor, want: Tensor) -> None:
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


def test_logits_patterns_and_span_attention_are_hugging_faces(models: Any) -> None:
    own, _, bound = models
    assert image_span(bound, PROMPTS) == SPAN and ms.selfcheck(bound).ok
    own.set_attn_implementation("eager")
    with torch.no_grad():
        want = own(
            PROMPTS, pixel_values=own.image.repeat(2, 1, 1, 1), output_attentions=True
        )
    run = bound.run(PROMPTS, read=bound.shape.all_sites("pattern"))
    close(run.logits, want.logits)
    for layer, pattern in enumerate(want.attentions):
        close(run.cache[ms.Site("pattern", layer)], pattern)
    table = ms.span_attention(bound, PROMPTS, SPAN).table
    got = table.sort_values(["batch", "layer", "head"])["mass"].to_numpy()
    after = [p[:, :, 6:, list(SPAN)].sum(-1).mean(-1) for p in want.attentions]
    close(torch.tensor(got), torch.stack(after, 1).flatten().double())
    table = ms.sink_scores(bound, PROMPTS).table
    scores = table.sort_values(["batch", "layer", "head"])["score"].to_numpy()
    first = torch.stack([p[..., 0].mean(-1) for p in want.attentions], 1)
    close(torch.tensor(scores), first.flatten().double())


def test_a_span_edit_is_what_attention_by_hand_gives(models: Any) -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    own, _, bound = models

    def by_hand(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **kwargs: Any):
        if not module.is_causal:  # the image's own encoder
            scores = q @ k.transpose(2, 3) * kwargs["scaling"]
            return (scores.softmax(-1) @ v).transpose(1, 2), None
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        pattern = (q @ k.transpose(2, 3) * kwargs["scaling"] + mask).softmax(-1)
        if module.layer_idx == 1:
            pattern = pattern.clone()
            pattern[:, :, 6:, 2:6] = 0
            pattern = pattern / pattern.sum(-1, keepdim=True)
        return (pattern @ v).transpose(1, 2).contiguous(), None

    AttentionInterface.register("by_hand", by_hand)
    AttentionMaskInterface.register("by_hand", eager_mask)
    own.set_attn_implementation("by_hand")
    with torch.no_grad():
        want = own(PROMPTS, pixel_values=own.image.repeat(2, 1, 1, 1)).logits
    edit = {ms.Site("pattern", 1): ms.hide_span(SPAN)}
    close(bound.run(PROMPTS, edit=edit).logits, want)
    assert (bound.run(PROMPTS).logits - want).abs().max() > 0.01


MEASURES: dict[str, Callable[[Model, Tensor], Any]] = {
    "attention": lambda m, t: ms.span_attention(m, t, SPAN, sinks=(2,)).table,
    "sinks": lambda m, t: ms.span_sinks(m, t, SPAN, [0, 5], tau=0.5).table,
    "tokens": lambda m, t: ms.span_tokens(m, t, SPAN).table,
    "divergence": lambda m, t: ms.head_divergence(m, t, SPAN).table,
    "vhr": lambda m, t: ms.vhr_heads(m, t, SPAN),
    "saliency": lambda m, t: ms.attention_saliency(m, t, layers=[1]).table,
    "alarm": lambda m, t: ms.saliency_alarm(m, t, 7, span=SPAN).table,
    "contrast": lambda m, t: ms.span_contrast(m, t, t[:, :-1], SPAN).table,
    "debiasing": lambda m, t: ms.debias_positions(m, t, SPAN).table,
    "generation": lambda m, t: ms.generate(
        m, t, 3, edit={ms.Site("pattern", 0): ms.var_redistribution(SPAN, (2,))}
    ).tokens[:, 9:],
    "sweep": lambda m, t: (
        ms.patch_sweep(m, _pairs(t), ms.logit_diff, engine="wave", progress=False).table
    ),
    "cells": lambda m, t: (
        ms.patch_sweep(
            m, _pairs(t), ms.logit_diff, site="z", engine="cells", progress=False
        ).table
    ),
    "edges": lambda m, t: ms.eap_ig(m, _pairs(t), ms.logit_diff, steps=2).table,
    "logits": lambda m, t: ms.logit_attribution(m, _pairs(t)).table,
}


def _pairs(tokens: Tensor) -> ms.PromptPairs:
    return ms.PromptPairs(
        tokens[:1], tokens[1:], answers=torch.tensor([3]), wrong=torch.tensor([4])
    )


@pytest.mark.first_case
@pytest.mark.parametrize("name", MEASURES)
def test_the_image_is_measured_as_its_vectors_said_in_words(
    models: Any, name: str
) -> None:
    _, model, bound = models
    want = MEASURES[name](model, in_words(PROMPTS))
    got = MEASURES[name](bound, PROMPTS)
    if isinstance(want, list):
        assert got == want
        return
    if isinstance(want, Tensor):
        assert torch.equal(got, want)
        return
    assert list(got.columns) == list(want.columns) and len(got) == len(want)
    numbers = want.select_dtypes("number").columns
    a, b = (torch.tensor(f[numbers].to_numpy(dtype=float)) for f in (got, want))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5, equal_nan=True)


def test_the_image_reaches_every_row_and_text_runs_without_it(models: Any) -> None:
    _, model, bound = models
    both = bound.run(PROMPTS).logits
    for row in range(2):
        close(bound.run(PROMPTS[row : row + 1]).logits, both[row : row + 1])
    text = in_words(PROMPTS)
    assert torch.equal(bound.run(text).logits, model.run(text).logits)
    other = model.with_inputs(PROMPTS, pixel_values=torch.zeros(1, 3, 8, 8))
    again = bound.with_inputs(PROMPTS, pixel_values=torch.zeros(1, 3, 8, 8))
    assert torch.equal(other.run(PROMPTS).logits, again.run(PROMPTS).logits)
    assert (other.run(PROMPTS).logits - both).abs().max() > 1e-3
    assert "sha256" in bound.info["inputs"]["pixel_values"]


def test_images_and_tokens_that_do_not_fit_are_refused(models: Any) -> None:
    own, model, bound = models
    for call in (
        lambda t: model.run(t),
        lambda t: model.visit(t, residual=lambda layer, x: None),
        lambda t: ms.generate(model, t, 1),
        lambda t: ms.base_run(model, t),
    ):
        with pytest.raises(ValueError, match="was given no image"):
            call(PROMPTS)
    with pytest.raises(ValueError, match=r"3 image tokens.*takes 4"):
        bound.run(PROMPTS[:, 3:])
    with pytest.raises(ValueError, match="at unlike positions"):
        image_span(bound, torch.stack([PROMPTS[0], PROMPTS[0].roll(1)]))
    with pytest.raises(ValueError, match="does not take pixel_values"):
        model.with_inputs(PROMPTS, pixel_values=own.image[:, :, :4])
    with pytest.raises(ValueError, match="belongs to the tokens"):
        model.with_inputs(PROMPTS, attention_mask=torch.ones(2, 9))
    with pytest.raises(ValueError, match="nothing to bind"):
        model.with_inputs(PROMPTS)
    with pytest.raises(ValueError, match="has no image tokens"):
        from tests.models.backends import load

        text: Any = load("llama")
        text.with_inputs(PROMPTS, pixel_values=own.image)


@pytest.mark.matrix
def test_a_vision_model_is_loaded_by_folder_with_its_processor(tmp_path: Any) -> None:
    from tests.models.test_load import word_tokenizer

    own, image = llava()
    own.save_pretrained(tmp_path)

    class Processor:
        tokenizer = word_tokenizer()

    model: Any = ms.load_model(tmp_path, tokenizer=Processor(), device="cpu")
    assert model.to_tokens("w1 w2").tolist() == [[2, 3]]
    bound = model.with_inputs(PROMPTS, pixel_values=image)
    with torch.no_grad():
        want = own(PROMPTS[:1], pixel_values=image).logits
    close(bound.run(PROMPTS[:1]).logits, want)


@pytest.mark.matrix
def test_where_an_image_sets_positions_the_wave_is_refused() -> None:
    """Qwen2-VL: no TransformerLens adapter, and positions in three dimensions."""
    from tests.models.vision import qwen2_vl

    own, inputs, tokens = qwen2_vl()
    bridge = BridgeModel(own, name="qwen2_vl")
    with pytest.raises(ValueError, match='backend="nnsight"'):
        _ = bridge.shape
    model: Any = ms.load_model(own, backend="nnsight", name="qwen2_vl")
    bound = model.with_inputs(tokens, **inputs)
    with torch.no_grad():
        types = (tokens == IMAGE).int()
        want = own(tokens, mm_token_type_ids=types, **inputs).logits
    close(bound.run(tokens).logits, want)
    with pytest.raises(CannotContinueError, match="positions"):
        ms.base_run(bound, tokens)
    other = tokens.clone()
    other[0, -2] = 9
    pairs = ms.PromptPairs(
        tokens, other, answers=torch.tensor([3]), wrong=torch.tensor([4])
    )
    found = ms.patch_sweep(bound, pairs, ms.logit_diff, progress=False)
    assert found.meta["settings"]["engine"].startswith("cells")
