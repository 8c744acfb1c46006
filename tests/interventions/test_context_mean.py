"""Context-aware means against brute force over whole prompts, and laws of their own."""

import itertools
from dataclasses import replace

import pytest
import torch

from mechsink.interventions.ablation import ablate
from mechsink.interventions.context_mean import context_mean, context_means, means_at
from mechsink.metrics import answer_logprob
from mechsink.models.toy import ToyModel
from mechsink.prompts import PromptPairs
from mechsink.sites import Site
from mechsink.slots.prompts import SlotPrompts
from tests.models.backends import SMALL, load
from toy_tasks import ToyConfig, ToyTransformer

VALUES = {1: [5, 6, 7], 3: [8, 9], 4: [10, 11, 12]}  # two slots touch
TEMPLATE = torch.tensor([3, 0, 20, 0, 0, 21])


def prompts_over(values: dict[int, list[int]]) -> SlotPrompts:
    rows = []
    for combination in itertools.product(*values.values()):
        row = TEMPLATE.clone()
        row[list(values)] = torch.tensor(combination)
        rows.append(row)
    return SlotPrompts.from_tokens(torch.stack(rows), list(values))


ALL = prompts_over(VALUES)
EVERY = ALL.tokens(load("toy")).tokens


def brute_force(resid: torch.Tensor) -> torch.Tensor:
    """Mean over all prompts that hold the same token at a position, one by one."""
    want = torch.empty_like(resid)
    for i, row in enumerate(EVERY):
        for pos in range(len(row)):
            same = [j for j in range(len(EVERY)) if EVERY[j, pos] == row[pos]]
            want[i, pos] = torch.stack([resid[j, pos] for j in same]).mean(0)
    return want


def double_toy(**options) -> ToyModel:
    return ToyModel(ToyTransformer(ToyConfig(**{**SMALL, **options})).double().eval())


@pytest.mark.parametrize("carriers", [None, ("self", "peek", "full")])
def test_exact_means_are_those_over_whole_prompts(carriers) -> None:
    # a peeking layer looks different where a prompt is cut short
    model = double_toy(carriers=carriers)
    for layer in range(3):
        means = context_means(model, ALL, layer)
        resid = model.run(EVERY, read=[means.site]).cache[means.site]
        torch.testing.assert_close(
            means.values, brute_force(resid), rtol=1e-12, atol=1e-12
        )
        assert means.standard_error is None
    # an earlier slot tells apart its own contexts alone, a later one all before it
    assert means.n_contexts == [1, 1, 3, 3, 6, 18]


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt2", "bloom"])
def test_families_with_grouped_queries_and_windows(name: str) -> None:
    model = load(name)
    means = context_means(model, ALL, 2)
    resid = model.run(EVERY, read=[means.site]).cache[means.site]
    close = 2e-5 * float(resid.abs().max())
    torch.testing.assert_close(means.values, brute_force(resid), rtol=0, atol=close)


@pytest.mark.parametrize(
    "site", [Site("z", 1), Site("k", 2, kv_head=1), Site("attn_out", 0)]
)
def test_any_site_with_positions(site: Site) -> None:
    model = load("llama")
    means = means_at(model, ALL, [site, Site("resid_pre", 1)])
    value = model.run(EVERY, read=[site]).cache[site]
    torch.testing.assert_close(
        means[site].values, brute_force(value), rtol=1e-4, atol=1e-5
    )
    both = means[Site("resid_pre", 1)].values
    torch.testing.assert_close(
        both, context_means(model, ALL, 1).values, rtol=1e-4, atol=1e-5
    )


def test_with_one_slot_it_keeps_its_own_residual() -> None:
    model = double_toy()
    tokens = TEMPLATE.repeat(4, 1)
    tokens[:, 3] = torch.tensor([30, 31, 32, 33])
    means = context_means(model, SlotPrompts.from_tokens(tokens, [3]), 2)
    resid = model.run(tokens, read=[means.site]).cache[means.site]
    torch.testing.assert_close(means.values[:, 3], resid[:, 3])
    for pos in (0, 1, 2, 4, 5):  # the plain mean over the slot's values
        plain = resid[:, pos].mean(0).expand(4, -1)
        torch.testing.assert_close(means.values[:, pos], plain)
    assert float((resid[:, 5] - means.values[:, 5]).abs().max()) > 0.1


def test_without_attention_below_nothing_is_lost() -> None:
    model = double_toy(n_layers=4, attn_layers=(2, 3))
    for layer, is_identity in ((2, True), (3, False)):
        means = context_means(model, ALL, layer)
        resid = model.run(EVERY, read=[means.site]).cache[means.site]
        off = float((means.values - resid).abs().max())
        assert (off < 1e-12) == is_identity, (layer, off)


@pytest.mark.matrix
def test_batches_do_not_matter() -> None:
    for model, close in ((double_toy(), 1e-13), (load("llama"), 2e-5)):
        means = [
            context_means(model, ALL, 2, batch_size=size, n_samples=n)
            for n in (None, 2)
            for size in (1, 4, None)
        ]
        for exact, sampled in itertools.pairwise((means[:3], means[3:])):
            for group in (exact, sampled):
                for other in group[1:]:
                    torch.testing.assert_close(
                        other.values, group[0].values, rtol=close, atol=close
                    )
        errors = [m.standard_error for m in means[3:]]
        assert errors[0] is not None and errors[1] is not None
        torch.testing.assert_close(errors[1], errors[0], rtol=1e-4, atol=1e-6)


def test_a_subset_of_prompts_is_averaged_over_all_values() -> None:
    model = double_toy()
    few = context_means(model, ALL.subset([3, 11]), 2).values
    torch.testing.assert_close(few, context_means(model, ALL, 2).values[[3, 11]])


@pytest.mark.matrix
def test_sampled_means_lie_within_their_standard_errors() -> None:
    model = double_toy()
    wide = prompts_over({1: list(range(5, 15)), 3: list(range(30, 42)), 4: [50, 51]})
    own = wide.tokens(model)
    exact = context_means(model, own, 2)
    assert exact.standard_error is None
    off, error = [], []
    for seed in range(20):
        drawn = context_means(model, own, 2, n_samples=40, seed=seed, exact_up_to=1)
        assert drawn.standard_error is not None
        off.append((drawn.values - exact.values).square().mean(-1).sqrt())
        error.append(drawn.standard_error)
    misses, errors = torch.stack(off), torch.stack(error)
    # positions 0 to 3 are enumerated: 120 contexts are fewer than 40 draws a value
    assert bool((errors[:, :, :4] == 0).all()) and float(misses[:, :, :4].max()) < 1e-12
    assert float((misses[:, :, 4:] / errors[:, :, 4:]).max()) < 4
    # calibrated for the slot; an upper bound for the last token, drawn evenly
    slot, last = misses[:, :, 4], misses[:, :, 5]
    calibration = slot.square().mean().sqrt() / errors[:, :, 4].square().mean().sqrt()
    assert 0.7 < float(calibration) < 1.4
    assert float(last.square().mean().sqrt()) <= 1.2 * float(errors[:, :, 5].mean())


def test_ablation_by_context_means_is_the_edit_by_hand() -> None:
    model = load("llama")
    answers = torch.tensor([5]).expand(len(EVERY))
    pairs = PromptPairs(EVERY, EVERY, answers)
    site = Site("resid_pre", 2)
    result = ablate(model, pairs, [site], context_mean(ALL), answer_logprob)
    new = brute_force(model.run(EVERY, read=[site]).cache[site])
    run = model.run(EVERY, edit={site: lambda x: new})
    want = run.logits[:, -1].log_softmax(-1)[:, 5]
    assert result.table["ablated"].tolist() == pytest.approx(want.tolist(), abs=1e-4)
    assert result.mean_change != pytest.approx(0, abs=1e-3)


def test_bad_input_says_what_is_allowed() -> None:
    model = load("llama")
    with pytest.raises(ValueError, match="Allowed: 0 to 2"):
        context_means(model, ALL, 3)
    with pytest.raises(ValueError, match="needs one value a position"):
        context_means(model, ALL, 1, site="pattern")
    with pytest.raises(ValueError, match="at least 2"):
        context_means(model, ALL, 1, n_samples=1)
    means = context_means(model, ALL, 1)
    with pytest.raises(ValueError, match="is none of its 3 values"):
        means.at(torch.tensor([[3, 40, 20, 8, 10, 21]]))
    short = replace(ALL.tokens(model), tokens=EVERY[:, :5])
    with pytest.raises(ValueError, match="do not follow this 6-token template"):
        means.at(short.tokens)
