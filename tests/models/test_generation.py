"""Generation against transformers' own, and against whole runs with the same edits."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mechsink.interventions.attention_edits import (
    act_calibration,
    isolate,
    move_to,
    soft_pag,
    zero_head,
    zero_tuning,
)
from mechsink.models import edited
from mechsink.models.attention import FlashAttention
from mechsink.models.generation import by_steps, generate
from mechsink.models.positions import reposition
from mechsink.models.sampling import greedy, temperature
from mechsink.models.toy import ToyModel
from mechsink.run import Edit, Run
from mechsink.sites import Site
from tests.models.backends import SMALL, load
from toy_tasks import ToyConfig, ToyTransformer

CACHED = ["gpt2", "llama", "qwen3", "gemma2", "mistral", "gpt_neox"]
TOYS = ["toy", "toy_gqa_relu"]
PROMPT = torch.arange(14).reshape(2, 7) * 11 % 80
N_NEW = 6  # beyond mistral's and gemma2's windows of 5 tokens

ROW_EDITS: dict[str, dict[Site, Edit]] = {
    "zero_tuning": {Site("pattern", 0): zero_tuning(4.0)},
    "soft_pag": {Site("pattern", 1): soft_pag(0.7)},
    "move_to": {Site("pattern", 1, head=2): move_to(3)},
    "zero_head": {
        Site("pattern", 0, head=1): zero_head(),
        Site("pattern", 2, head=0): zero_head(),
    },
    "isolate": {
        Site("pattern", n): isolate([0, 1, 1, 1, 2, 2, 2, 1]) for n in (0, 1, 2)
    },
    "z": {Site("z", 1): lambda z: 0.5 * z, Site("z", 2, head=3): torch.zeros_like},
}


def close(got: Tensor, want: Tensor, tolerance: float = 1e-4) -> None:
    assert (got - want).abs().max() <= tolerance * want.abs().max()


@pytest.mark.parametrize("name", [*CACHED, "bloom", "gptj", "opt", "phi3"])
def test_without_edits_it_is_transformers_own_greedy_generation(name: str) -> None:
    from transformers import GenerationConfig

    model = load(name)
    options = GenerationConfig(
        max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    own = model.plain.model.generate(  # type: ignore[attr-defined]
        PROMPT, attention_mask=torch.ones_like(PROMPT), generation_config=options
    )
    got = generate(model, PROMPT, 8)
    assert torch.equal(got.tokens, own)
    assert got.path == "cached" and got.logits is None
    assert torch.equal(got.new, own[:, 7:])


@pytest.mark.parametrize("name", TOYS)
def test_a_toy_generates_what_its_forward_pass_says(name: str) -> None:
    model = load(name)
    got = generate(model, PROMPT, N_NEW, keep_logits=True)
    tokens = PROMPT
    for _ in range(N_NEW):
        best = model.run(tokens).logits[:, -1].argmax(-1)
        tokens = torch.cat([tokens, best[:, None]], dim=1)
    assert torch.equal(got.tokens, tokens)
    assert got.path == "cached"


@pytest.mark.parametrize("edit", ROW_EDITS)
@pytest.mark.parametrize("name", [*CACHED, "bloom", *TOYS])
@pytest.mark.first_case
def test_row_edits_equal_one_run_over_all_tokens(name: str, edit: str) -> None:
    model, edits = load(name), ROW_EDITS[edit]
    got = generate(model, PROMPT, N_NEW, edit=edits, keep_logits=True)
    assert got.path == ("whole runs" if name == "bloom" else "cached")
    whole = model.run(got.tokens, edit=edits).logits[:, 6:-1]
    assert got.logits is not None
    close(got.logits, whole)
    plain = model.run(got.tokens).logits[:, 6:-1]
    assert (got.logits - plain).abs().max() > 0.01 * plain.abs().max()  # it acts


@pytest.mark.parametrize("name", ["llama", "bloom", "toy"])
def test_column_edits_act_on_the_prompt_and_leave_single_queries(name: str) -> None:
    model = load(name)
    site = Site("pattern", 1)
    act = act_calibration(0.2, theta=0.15)
    got = generate(model, PROMPT, 4, edit={site: act}, keep_logits=True)

    def on_prompt(pattern: Tensor) -> Tensor:  # by hand: the prompt's block alone
        new = pattern.clone()
        new[..., :7, :7] = act(pattern[..., :7, :7])
        return new

    assert got.logits is not None
    close(got.logits, model.run(got.tokens, edit={site: on_prompt}).logits[:, 6:-1])
    own = model.run(got.tokens).logits[:, 6:-1]
    assert (got.logits - own).abs().max() > 0.01 * own.abs().max()


def test_edits_are_handed_the_same_pieces_on_every_path() -> None:
    shapes: dict[str, list[tuple[int, ...]]] = {"llama": [], "bloom": []}
    for name, seen in shapes.items():

        def look(pattern: Tensor, seen: list[tuple[int, ...]] = seen) -> Tensor:
            seen.append(tuple(pattern.shape))
            return pattern

        generate(load(name), PROMPT, 3, edit={Site("pattern", 0): look})
    want = [(2, 4, 7, 7), (2, 4, 1, 8), (2, 4, 1, 9)]
    assert shapes["llama"] == want
    assert shapes["bloom"][-3:] == want


def test_a_peeking_toy_is_run_whole() -> None:
    config = replace(ToyConfig(**SMALL), carriers=("self", "peek", "self"))
    model = ToyModel(ToyTransformer(config).eval())
    got = generate(model, PROMPT, 3, keep_logits=True)
    assert got.path == "whole runs" and got.logits is not None
    for step in range(3):
        want = model.run(got.tokens[:, : 7 + step]).logits[:, -1]
        torch.testing.assert_close(got.logits[:, step], want)


class Bare:
    """A model of the protocol alone: no plain view, no toy."""

    def __init__(self, name: str) -> None:
        inner = load(name)
        self._inner = inner
        for member in ("name", "info", "shape", "device", "dtype", "to_tokens"):
            setattr(self, member, getattr(inner, member))
        self.to_strings, self.visit = inner.to_strings, inner.visit
        self.w_o = inner.w_o

    def run(
        self,
        tokens: Tensor,
        *,
        read: object = (),
        edit: object = None,
        grad: bool = False,
    ) -> Run:
        return self._inner.run(tokens, read=read, edit=edit, grad=grad)  # type: ignore[arg-type]


def test_any_model_of_the_protocol_generates() -> None:
    edits = ROW_EDITS["zero_tuning"]
    got = generate(Bare("llama"), PROMPT, 4, edit=edits, keep_logits=True)
    want = generate(load("llama"), PROMPT, 4, edit=edits, keep_logits=True)
    assert (got.path, want.path) == ("whole runs", "cached")
    assert torch.equal(got.tokens, want.tokens)
    with pytest.raises(ValueError, match="takes no position ids"):
        reposition(Bare("llama"), PROMPT, range(7))


@pytest.mark.parametrize("name", ["llama", "bloom", "toy"])
@pytest.mark.parametrize(
    "bad", [lambda p: p[..., :-1], lambda p: 1 / 0], ids=["shape", "raises"]
)
def test_nothing_stays_behind_after_an_exception(
    name: str, bad: Callable[[Tensor], Tensor]
) -> None:
    model = load(name)
    before = model.run(PROMPT).logits
    n_calls: list[int] = []

    def fails_later(pattern: Tensor) -> Tensor:
        n_calls.append(1)
        return pattern if len(n_calls) < 2 else bad(pattern)

    error = (ValueError, ZeroDivisionError)
    with pytest.raises(error, match=r"L1\.pattern: returned|division"):
        generate(model, PROMPT, 5, edit={Site("pattern", 1): fails_later})
    assert len(n_calls) == 2
    assert edited._points.get(None) is None
    assert torch.equal(model.run(PROMPT).logits, before)
    assert generate(model, PROMPT, 2).path == "cached"
    assert len(n_calls) == 2
    if isinstance(model, ToyModel):
        assert not any(m._forward_hooks for m in model.toy.modules())


def test_temperature_draws_from_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0]).expand(20_000, 3)
    drawn = temperature(2.0, seed=3)(logits)
    share = torch.bincount(drawn, minlength=3) / 20_000
    weights = torch.tensor([1.0, 2.718281828**0.5, 2.718281828])
    # five standard deviations of a share of 20,000 draws: 5 * .5 / sqrt(20,000)
    torch.testing.assert_close(share, weights / weights.sum(), atol=0.018, rtol=0)
    assert torch.equal(temperature(2.0, seed=3)(logits), drawn)
    assert not torch.equal(temperature(2.0, seed=4)(logits), drawn)
    cold = temperature(1e-4)(torch.randn(50, 9))
    assert cold.shape == (50,)


def test_cold_sampling_is_greedy_and_seeds_reproduce() -> None:
    model = load("llama")
    best = generate(model, PROMPT, N_NEW, sampler=greedy).tokens
    cold = generate(model, PROMPT, N_NEW, sampler=temperature(1e-4)).tokens
    assert torch.equal(best, cold)
    warm = [
        generate(model, PROMPT, N_NEW, sampler=temperature(3.0, seed)).tokens
        for seed in (1, 1, 2)
    ]
    assert torch.equal(warm[0], warm[1])
    assert not torch.equal(warm[0], warm[2])


def test_wrong_input_is_refused_with_advice() -> None:
    model = load("llama")
    with pytest.raises(ValueError, match=r"Allowed: 1 to 57"):
        generate(model, PROMPT, 58)
    assert generate(model, PROMPT[:, :2], 2).tokens.shape == (2, 4)
    with pytest.raises(ValueError, match="generate first"):
        generate(model, PROMPT, 2, edit={Site("resid_pre", 0): lambda x: x})
    with pytest.raises(ValueError, match="head=9"):
        generate(model, PROMPT, 2, edit={Site("pattern", 0, head=9): zero_head()})
    with pytest.raises(ValueError, match="discards edits"):
        generate(load("gptj"), PROMPT, 2, edit={Site("pattern", 0): zero_head()})
    with pytest.raises(ValueError, match="temperature"):
        temperature(0.0)


@pytest.mark.parametrize("n_query", [6, 1])
@pytest.mark.parametrize(
    "options",
    [{}, {"softcap": 1.5}, {"sink_logit": torch.tensor([0.3, -1.0, 2.0, 0.0])}],
    ids=["plain", "softcap", "sink"],
)
@pytest.mark.parametrize("is_windowed", [False, True])
def test_the_open_path_is_the_flash_path(
    n_query: int, options: dict[str, Any], is_windowed: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, n_query, 8, generator=generator)
    k, v = (torch.randn(2, 2, 6, 8, generator=generator) for _ in range(2))
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    window = (causal & ~causal.tril(-3))[None, None, -n_query:]
    mask = window if is_windowed else None
    seen: list[Tensor] = []

    def look(pattern: Tensor) -> Tensor:
        seen.append(pattern)
        return pattern

    points = {Site("pattern", 0): look}
    out = edited.edited_attention(points, 0, q, k, v, scale=0.4, mask=mask, **options)
    flash = FlashAttention(0, q, k, v, 0.4, mask, **options)
    torch.testing.assert_close(out, flash.out.transpose(1, 2))
    torch.testing.assert_close(seen[0], flash.columns(range(6)))
    if not options:  # a third opinion, of torch's own
        want = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=causal[-n_query:] if mask is None else mask,
            scale=0.4,
            enable_gqa=True,
        )
        torch.testing.assert_close(out, want.transpose(1, 2))


def test_pieces_of_a_whole_run() -> None:
    x = torch.arange(16.0).reshape(1, 4, 4)  # one head's pattern
    add = by_steps(Site("pattern", 0, head=0), lambda p: p + p.shape[-1], 2)(x)
    want = x.clone()
    want[0, :2, :2] += 2
    want[0, 2, :3] += 3
    want[0, 3, :4] += 4
    assert torch.equal(add, want)


@pytest.mark.parametrize("name", [*CACHED, "opt", "phi3", "gptj", *TOYS])
def test_identity_positions_are_the_plain_run(name: str) -> None:
    model = load(name)
    close(reposition(model, PROMPT, range(7)).logits, model.run(PROMPT).logits, 1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt_neox", "mistral", "gptj"])
def test_rotary_positions_are_relative(name: str) -> None:
    model = load(name)
    plain = model.run(PROMPT).logits
    close(reposition(model, PROMPT, range(20, 27)).logits, plain, 1e-4)
    stretched = reposition(model, PROMPT, range(0, 21, 3)).logits
    assert (stretched - plain).abs().max() > 0.01 * plain.abs().max()


@pytest.mark.parametrize("name", ["gpt2", "toy"])
def test_learned_positions_are_looked_up_at_the_ids(name: str) -> None:
    model, ids = load(name), [4, 4, 0, 9, 3, 2, 50]  # repeats, gaps, backwards
    got = reposition(model, PROMPT, ids, read=[Site("pattern", 1)])
    is_toy = isinstance(model, ToyModel)
    table = (
        model.toy.W_pos if is_toy else model.plain.model.transformer.wpe.weight  # type: ignore[attr-defined]
    )
    kept = table.data.clone()
    try:  # brute force: the table's rows moved to 0, 1, 2, ...
        table.data[:7] = kept[ids]
        want = model.toy(PROMPT) if is_toy else model.plain.model(PROMPT).logits  # type: ignore[attr-defined]
    finally:
        table.data.copy_(kept)
    close(got.logits, want, 1e-5)
    seen = got.cache[Site("pattern", 1)] > 0
    assert torch.equal(seen, torch.ones(7, 7, dtype=torch.bool).tril().expand_as(seen))


def test_jumping_ids_hide_no_token() -> None:
    # transformers takes ids that jump back for packed texts unless told otherwise.
    site = Site("pattern", 0)
    run = reposition(load("llama"), PROMPT, [0, 1, 2, 0, 1, 2, 3], read=[site])
    assert (run.cache[site][:, :, 6] > 0).all()
    off = reposition(load("llama"), PROMPT, range(7), edit={site: zero_head()})
    want = load("llama").run(PROMPT, edit={site: zero_head()})
    close(off.logits, want.logits)


def test_reposition_refuses_by_name() -> None:
    with pytest.raises(ValueError, match="BloomForCausalLM has no position ids"):
        reposition(load("bloom"), PROMPT, range(7))
    bare = ToyModel(ToyTransformer(replace(ToyConfig(**SMALL), positions="none")))
    with pytest.raises(ValueError, match="no position embedding"):
        reposition(bare, PROMPT, range(7))
    with pytest.raises(ValueError, match="one id for each"):
        reposition(load("llama"), PROMPT, range(6))
    with pytest.raises(ValueError, match="Allowed: 0 to 63"):
        reposition(load("llama"), PROMPT, range(60, 67))
    with pytest.raises(ValueError, match="pattern, z"):
        reposition(load("llama"), PROMPT, range(7), read=[Site("k", 0)])
    with pytest.raises(ValueError, match="the logits alone"):
        reposition(load("gptj"), PROMPT, range(7), read=[Site("pattern", 0)])
