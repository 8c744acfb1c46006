"""Half-precision models, measured in float32: sums and differences lose nothing more.

First the measurements alone, on numbers that half precision holds exactly: float32
gives the answer, half precision would not. Then whole models beside their float32
twins of the same weights, within bounds that come from the unit in the last place.
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import mechsink as ms
from mechsink.models.attention import PatternAttention
from mechsink.models.bridge import BridgeModel
from mechsink.models.wiring import Norm, Read, Write
from mechsink.prompt_sets.later_years import YearsAbove
from mechsink.prompts import TokenPairs
from mechsink.run import Model, Run
from tests.models.families import tiny

OTHERS = ("gpt2", "gemma2", "gpt_neox")
HALF = (torch.bfloat16, torch.float16)


def a_run(dtype: torch.dtype) -> tuple[Run, TokenPairs]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 1000, generator=generator).to(dtype) * 8
    tokens = torch.randint(1000, (3, 5), generator=generator)
    site = ms.Site("pattern", 0, head=0)
    pattern = torch.randn(3, 5, 5, generator=generator).softmax(-1).to(dtype)
    stream = 300 * torch.randn(3, 5, 64, generator=generator).to(dtype)
    cache = {site: pattern, ms.Site("resid_pre", 0): stream}
    given = torch.arange(3)
    pairs = TokenPairs(tokens, tokens, given, given + 100, [0, 1, 2])
    return Run(tokens, logits, cache), pairs


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_metrics_of_half_precision_numbers_are_those_of_float32(dtype) -> None:
    run, pairs = a_run(dtype)
    wide = Run(
        run.tokens, run.logits.float(), {s: x.float() for s, x in run.cache.items()}
    )
    signs = {tuple(row): {1: 1, 2: -1} for row in run.tokens.tolist()}
    for metric in (
        ms.logit_diff,
        ms.answer_logprob,
        ms.sink_attention(layer=0, head=0),
        ms.sink_attention_of([(0, 0)]),
        ms.resid_norm(0),  # 2,400 squared is beyond float16
        ms.next_token_entropy,
        YearsAbove(signs),
    ):
        got, want = metric(run, pairs), metric(wide, pairs)
        assert got.dtype == torch.float32 and torch.equal(got, want), metric
    assert not torch.equal(  # what it was before: the difference rounded once more
        (run.logits[:, -1, 0] - run.logits[:, -1, 1]).float(),
        wide.logits[:, -1, 0] - wide.logits[:, -1, 1],
    )


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norms_take_their_squares_in_float32(kind, dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (400 * torch.randn(2, 3, 512, generator=generator)).to(dtype)
    gain = torch.randn(512, generator=generator).to(dtype)
    norm, wide = Norm(kind, gain, None, 1e-6), Norm(kind, gain.float(), None, 1e-6)
    want = wide(x.float())
    assert norm(x).dtype == dtype and torch.isfinite(norm(x)).all()
    # One rounding at the end: half a unit in the last place.
    half_a_unit = torch.finfo(dtype).eps / 2
    assert ((norm(x).float() - want).abs() <= half_a_unit * want.abs() + 1e-7).all()
    weight = torch.randn(2, 512, 8, generator=generator).to(dtype)
    got = Read(norm, weight)(x.float())  # a residual with edges cut is float32
    want = torch.einsum("bpd,hde->bphe", want, weight.float())
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_heads_writes_sum_to_what_they_write_together(dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 8, 32, generator=generator).to(dtype)
    z = torch.randn(1, 4, 16, 8, generator=generator).to(dtype)
    parts = Write(weight).parts(z)
    want = torch.einsum("bphd,hdm->bpm", z.double(), weight.double())
    assert (parts.sum(2) - want).abs().max() < 1e-5  # float32, not 1e-2


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_excess_scores_are_means_in_float32(dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = (20 + torch.randn(1, 2, 256, 256, generator=generator)).to(dtype)
    pattern = scores.float().softmax(-1).to(dtype)
    seen = PatternAttention(0, torch.zeros(1, 2, 256, 4), pattern, scores)
    last = scores.double()[:, :, -1]
    want = last[..., 0] - last[..., 1:].mean(-1)
    got = seen.excess_score(0)[:, :, -1]
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-5)


Measured = Callable[[Model, ms.PromptPairs], Any]


def column(name: str) -> Callable[[Any], np.ndarray]:
    return lambda result: result.table[name].to_numpy(dtype=float)


LOGITS: dict[str, tuple[Measured, str]] = {
    "ablate": (
        lambda m, p: ms.ablate(m, p, [ms.Site("z", 1)], ms.zero(), ms.logit_diff),
        "change",
    ),
    "patch_sweep": (lambda m, p: ms.patch_sweep(m, p, ms.logit_diff), "value"),
    "exact_edges": (lambda m, p: ms.exact_edges(m, p, ms.logit_diff), "score"),
    "eap_ig": (lambda m, p: ms.eap_ig(m, p, ms.logit_diff), "score"),
    "eap": (lambda m, p: ms.eap(m, p, ms.logit_diff), "score"),
    "node_effects": (lambda m, p: ms.node_effects(m, p), "total"),
    "logit_attribution": (lambda m, p: ms.logit_attribution(m, p), "value"),
    "attribution_patching": (
        lambda m, p: ms.attribution_patching(m, p, ms.logit_diff),
        "score",
    ),
    "relp": (lambda m, p: ms.relp(m, p, ms.logit_diff), "score"),
    "atp_star": (lambda m, p: ms.atp_star(m, p, ms.logit_diff, qk_fix=True), "score"),
    "logit_lens": (lambda m, p: ms.logit_lens(m, p), "logit_diff"),
    "faithfulness": (
        lambda m, p: ms.faithfulness(
            m, ms.top_edges(ms.eap(m, p, ms.logit_diff), 30), p, ms.logit_diff
        ),
        "ablated",
    ),
}
"""Measurements in logits, and the column that is compared."""


@pytest.mark.matrix
@pytest.mark.filterwarnings("ignore:faithfulness. full and ablated")
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(
    "family",
    ["llama", *(pytest.param(f, marks=pytest.mark.slow) for f in OTHERS)],
)
def test_a_half_precision_model_beside_its_float32_twin(family, dtype) -> None:
    """Within 16 units in the last place of the largest logit.

    Three blocks round each stream some ten times a block, each by half a unit at
    most: independent errors add up to sqrt(30) / 2 = 2.7 units, and twice as much is
    left to chance for the two runs of a difference, one of two logits each.
    """
    own = copy.deepcopy(tiny(family)).to(dtype)
    half = BridgeModel(own, name=family)
    twin = BridgeModel(copy.deepcopy(own).float(), name=family)
    torch.manual_seed(0)
    clean = torch.randint(3, 80, (4, 8))
    corrupted = clean.clone()
    corrupted[:, 3] = (corrupted[:, 3] + 11) % 77 + 3
    given = torch.arange(5, 9)
    pairs = ms.PromptPairs(clean, corrupted, answers=given, wrong=given + 30)
    bound = 16 * torch.finfo(dtype).eps * twin.run(clean).logits.abs().max().item()
    for name, (measure, which) in LOGITS.items():
        got, want = (column(which)(measure(m, pairs)) for m in (half, twin))
        assert np.isfinite(got).all(), name
        assert np.abs(got - want).max() < bound, (name, np.abs(got - want).max(), bound)
    # Attention: p exp(error of the score) - p, scores being at most some 10 here.
    for name, read in (
        ("sink_scores", lambda m: ms.sink_scores(m, clean).table["score"]),
    ):
        got, want = (read(m).to_numpy(dtype=float) for m in (half, twin))
        assert np.nanmax(np.abs(got - want)) < 10 * torch.finfo(dtype).eps, name
    norms = (ms.residual_norms(m, clean).table["norm"].to_numpy() for m in (half, twin))
    got, want = norms
    assert (np.abs(got - want) < 4 * torch.finfo(dtype).eps * want).all()
