"""TransformerLens caches as runs: sites and metrics as mechsink's own run has them."""

import pytest
import torch

import mechsink as ms
from mechsink.experiments.sink_circuits.metrics import resid_norm
from mechsink.models.their_cache import as_run
from tests.models.families import tiny
from tests.models.test_any_model import bridge_of

TOKENS = torch.arange(12).view(2, 6)
PAIRS = ms.PromptPairs(
    TOKENS, TOKENS.roll(1, 1), answers=torch.tensor([7, 8]), wrong=torch.tensor([9, 3])
)


@pytest.fixture(scope="module")
def theirs():
    return bridge_of(tiny("llama"))


@torch.no_grad()
def test_sites_and_metrics_are_those_of_our_own_run(theirs) -> None:
    run = ms.as_run(*theirs.run_with_cache(TOKENS), TOKENS)
    model = ms.load_model(tiny("llama"))
    sites = [site for name in model.shape.sites for site in model.shape.all_sites(name)]
    own = model.run(TOKENS, read=sites)
    assert {*sites} <= {*run.cache} and len(run.cache) == len([*run.cache])
    for site in sites:
        torch.testing.assert_close(run.cache[site], own.cache[site], msg=str(site))
    head, kv = ms.Site("z", 1, head=2), ms.Site("k", 0, kv_head=1)
    assert torch.equal(run.cache[head], run.cache[head.whole][:, :, 2])
    assert torch.equal(run.cache[kv], run.cache[kv.whole][:, :, 1])
    for metric in (
        ms.logit_diff,
        ms.answer_logprob,
        ms.sink_attention(layer=1, head=3),
        resid_norm(layer=2),
    ):
        reads = model.run(TOKENS, read=metric.reads)
        torch.testing.assert_close(metric(run, PAIRS), metric(reads, PAIRS))


def test_what_was_not_cached_is_told(theirs) -> None:
    logits, cache = theirs.run_with_cache(
        TOKENS, names_filter=lambda name: name.endswith("hook_pattern")
    )
    run = ms.as_run(logits, cache, TOKENS)
    ms.sink_attention(layer=0, head=0)(run, PAIRS)
    assert {site.name for site in run.cache} == {"pattern"}
    with pytest.raises(KeyError, match=r"L1\.z: this cache has no .*names_filter"):
        run.cache[ms.Site("z", 1)]
    with pytest.raises(KeyError, match="has 4 heads"):
        run.cache[ms.Site("pattern", 1, head=4)]


def test_a_mapping_of_hook_names_will_do(theirs) -> None:
    logits, cache = theirs.run_with_cache(TOKENS)
    plain = {name: cache[name] for name in cache.keys()}  # noqa: SIM118
    run = ms.as_run(logits, plain, TOKENS)
    assert torch.equal(run.cache[ms.Site("q", 0)], cache["q", 0])


def test_other_runs_are_refused(theirs) -> None:
    logits, cache = theirs.run_with_cache(TOKENS)
    unchecked = as_run.__wrapped__  # types are looked at by the tests, too
    with pytest.raises(ValueError, match="all positions"):
        unchecked(logits, cache, TOKENS[:, :-1])
    with pytest.raises(TypeError, match="as TransformerLens returns them"):
        unchecked(cache, logits, TOKENS)
    one, alone = theirs.run_with_cache(TOKENS[:1], remove_batch_dim=True)
    with pytest.raises(ValueError, match="batch axis"):
        ms.as_run(one, alone, TOKENS[:1])
