"""What every backend must do alike."""

import pytest
import torch
from torch import Tensor

from mechsink.attribution.gradients import gradients
from mechsink.metrics import logit_diff, sink_attention
from mechsink.models.bridge import BridgeModel
from mechsink.models.hooks import check_tokens
from mechsink.models.selfcheck import selfcheck
from mechsink.run import Model
from mechsink.sites import AXES, Site
from tests.models.backends import EVERY, load
from tests.models.families import tiny

POST_NORM = {
    "gemma2",
    "gemma3",
    "olmo2",
}  # attn_out is the norm of what the heads write
TOKENS = torch.randint(0, 80, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=EVERY)
def model(request: pytest.FixtureRequest) -> Model:
    return load(request.param)


def all_sites(model: Model) -> list[Site]:
    names = [name for name in AXES if name in model.shape.sites]
    return [site for name in names for site in model.shape.all_sites(name)]


def test_is_a_model_and_passes_its_self_check(model: Model) -> None:
    assert isinstance(model, Model)
    assert selfcheck(model).ok


def test_every_site_has_the_shape_it_claims(model: Model) -> None:
    run = model.run(TOKENS, read=all_sites(model))
    for site, value in run.cache.items():
        assert tuple(value.shape) == model.shape.size(site, 2, 9), site
        assert not value.requires_grad
    assert run.logits.shape == (2, 9, 80)


def test_a_head_is_a_slice_of_the_whole_site(model: Model) -> None:
    whole, part = Site("k", 1), Site("k", 1, kv_head=model.shape.n_kv_heads - 1)
    run = model.run(TOKENS, read=[whole, part, Site("z", 2), Site("z", 2, head=3)])
    assert torch.equal(run.cache[whole][:, :, -1], run.cache[part])
    assert torch.equal(run.cache[Site("z", 2)][:, :, 3], run.cache[Site("z", 2, 3)])


@pytest.mark.first_case
@pytest.mark.some_cases(24)
def test_an_edit_acts_at_every_site_and_later_reads_see_it(model: Model) -> None:
    base = model.run(TOKENS, read=all_sites(model))
    for site in all_sites(model):
        if site.name in model.shape.read_only:
            with pytest.raises(ValueError, match="can only be read"):
                model.run(TOKENS, edit={site: torch.zeros_like})
            continue
        edit = _scores_edit if site.name == "attn_scores" else _tilt
        run = model.run(TOKENS, edit={site: edit}, read=[site])
        assert (run.logits - base.logits).abs().max() > 1e-4, site
        torch.testing.assert_close(run.cache[site], edit(base.cache[site]))


def _tilt(x: Tensor) -> Tensor:  # not by one factor, which a norm would undo
    return x * torch.linspace(0.2, 1.0, x.shape[-1])


def _scores_edit(x: Tensor) -> Tensor:  # stays masked where it was
    return torch.where(x > -1e4, x * 0.5, x)


def test_a_resid_mid_edit_reaches_the_mlp_and_the_skip_path(model: Model) -> None:
    if "resid_mid" not in model.shape.sites:
        pytest.skip("parallel blocks have no resid_mid")
    new = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(2))
    read = [Site("mlp_out", 1), Site("resid_post", 1), Site("resid_mid", 1)]
    run = model.run(TOKENS, edit={Site("resid_mid", 1): lambda x: new}, read=read)
    mlp_out, post, mid = (run.cache[site] for site in read)
    torch.testing.assert_close(mid, new, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(post, new + mlp_out, rtol=1e-4, atol=1e-4)
    base = model.run(TOKENS, read=read[:1]).cache[read[0]]
    assert (mlp_out - base).abs().max() > 1e-3


def test_head_outputs_times_w_o_make_attn_out(model: Model) -> None:
    if model.name in POST_NORM:
        pytest.skip("attn_out comes after a norm")
    run = model.run(TOKENS, read=[Site("z", 1), Site("attn_out", 1)])
    z, attn_out = run.cache[Site("z", 1)], run.cache[Site("attn_out", 1)]
    factor = 0.22 if model.name == "granite" else 1.0  # its residual_multiplier
    rest = attn_out - factor * torch.einsum("bphd,hdm->bpm", z, model.w_o(1))
    bias = rest[:1, :1].expand_as(rest)  # what is left is the same everywhere
    torch.testing.assert_close(rest, bias, rtol=1e-4, atol=1e-5)


def test_visit_equals_whole_patterns(model: Model) -> None:
    columns: dict[int, Tensor] = {}
    excess: dict[int, Tensor] = {}
    stream: dict[int, Tensor] = {}
    values: dict[int, Tensor] = {}

    def attention(seen) -> None:
        columns[seen.layer] = seen.columns([0, 4])
        excess[seen.layer] = seen.excess_score(4)
        values[seen.layer] = seen.v

    model.visit(TOKENS, attention=attention, residual=stream.__setitem__)
    names = ("pattern", "v", "resid_pre", "resid_post")
    run = model.run(TOKENS, read=[s for s in all_sites(model) if s.name in names])
    for layer in range(3):
        pattern = run.cache[Site("pattern", layer)]
        torch.testing.assert_close(columns[layer], pattern[..., [0, 4]])
        torch.testing.assert_close(
            values[layer].transpose(1, 2),
            run.cache[Site("v", layer)],
            rtol=1e-4,
            atol=1e-5,
        )
        torch.testing.assert_close(
            stream[layer], run.cache[Site("resid_pre", layer)], rtol=1e-4, atol=1e-4
        )
        if model.shape.rows_sum_to_1:  # then scores are known from the pattern
            for query in range(9):
                log = pattern[:, :, query, : query + 1].log()
                visible = log > -1e4
                if query < 4 or not visible[..., 4].all() or visible.sum(-1).min() < 2:
                    continue
                if not visible.all() and "attn_scores" not in model.shape.sites:
                    # A weight of 0 may be hidden or tiny: nobody can tell.
                    assert excess[layer][:, :, query].isnan().any()
                    continue
                others = visible.clone()
                others[..., 4] = False
                mean = torch.where(others, log, 0).sum(-1) / others.sum(-1)
                want = log[..., 4] - mean
                torch.testing.assert_close(
                    excess[layer][:, :, query], want, rtol=1e-3, atol=1e-3
                )
        assert excess[layer][:, :, :4].isnan().all()
    torch.testing.assert_close(
        stream[3], run.cache[Site("resid_post", 2)], rtol=1e-4, atol=1e-4
    )


@pytest.mark.first_case
@pytest.mark.some_cases(24)
def test_gradients_equal_finite_differences(model: Model) -> None:
    metric = sink_attention(layer=2, head=1)
    sites = [
        s
        for s in all_sites(model)
        if s.layer == 0
        and s.name != "attn_scores"
        and s.name not in model.shape.read_only
    ]
    got = gradients(model, TOKENS, metric, sites)
    for site in sites:
        direction = got[site] / got[site].norm().clamp(min=1e-12)
        step = 3e-3

        def moved(by: float, site: Site = site, way: Tensor = direction) -> Tensor:
            run = model.run(
                TOKENS, read=metric.reads, edit={site: lambda x: x + by * way}
            )
            return metric(run, None).double().sum()

        slope = (moved(step) - moved(-step)) / (2 * step)
        want = got[site].norm().double()
        assert slope.item() == pytest.approx(want.item(), rel=0.05, abs=2e-4), site


@pytest.mark.first_case
def test_gradients_keep_prompts_apart_and_reach_the_logits(model: Model) -> None:
    class Pair:
        answers = torch.tensor([3, 5])
        wrong = torch.tensor([4, 6])

    class First:
        answers = torch.tensor([3])
        wrong = torch.tensor([4])

    site = Site("resid_pre", 1)
    both = gradients(model, TOKENS, logit_diff, [site], Pair())[site]
    alone = gradients(model, TOKENS[:1], logit_diff, [site], First())[site]
    torch.testing.assert_close(both[:1], alone, rtol=1e-4, atol=1e-5)
    assert both[1].abs().max() > 0


def test_bad_edits_and_sites_are_refused_and_leave_no_hook(model: Model) -> None:
    base = model.run(TOKENS).logits
    with pytest.raises(ValueError, match=r"L1H2\.z: returned \(2, 9\)"):
        model.run(TOKENS, edit={Site("z", 1, head=2): lambda x: x[..., 0]})
    with pytest.raises(ZeroDivisionError):
        model.run(TOKENS, edit={Site("resid_pre", 0): lambda x: x / (1 // 0)})
    with pytest.raises(ValueError, match="Allowed: 0 to 2"):
        model.run(TOKENS, read=[Site("z", 3)])
    with pytest.raises(ValueError, match="Allowed: 0 to 3"):
        model.run(TOKENS, read=[Site("z", 0, head=4)])
    assert torch.equal(model.run(TOKENS).logits, base)


def test_bad_tokens_are_refused(model: Model) -> None:
    with pytest.raises(ValueError, match=r"tokens\[None\]"):
        check_tokens(TOKENS[0], 80, 64)  # model.run's shape check speaks first here
    with pytest.raises(ValueError, match="empty"):
        model.run(TOKENS[:, :0])
    with pytest.raises(ValueError, match="0 to 79"):
        model.run(TOKENS + 80)
    n_ctx = model.shape.n_ctx
    if n_ctx < 1000:
        long = torch.zeros(1, n_ctx + 1, dtype=torch.int64)
        with pytest.raises(ValueError, match=f"at most {n_ctx}"):
            model.run(long)
        with pytest.raises(ValueError, match=f"at most {n_ctx}"):
            model.visit(long)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.first_case
def test_other_dtypes_keep_the_linear_path_and_pass(family: str, dtype) -> None:
    own = tiny(family).to(dtype)
    model = BridgeModel(own, name=family)
    assert model.plain.attends and selfcheck(model).ok
    columns: dict[int, Tensor] = {}
    model.visit(
        TOKENS, attention=lambda seen: columns.update({seen.layer: seen.columns([0])})
    )
    pattern = model.run(TOKENS, read=[Site("pattern", 0)]).cache[Site("pattern", 0)]
    off = (columns[0][..., 0].double() - pattern[..., 0].double()).abs().max()
    assert off <= (0.03 if dtype == torch.bfloat16 else 1e-5)


def test_a_function_that_loses_causality_is_noticed(monkeypatch) -> None:
    from mechsink.models import plain

    def sees_all(*args, attention_mask=None, **kwargs):
        q, k, v = args[1:4]
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return out.transpose(1, 2), None

    plain.register_attention()
    from transformers import AttentionInterface

    monkeypatch.setitem(AttentionInterface._global_mapping, "mechsink", sees_all)
    assert not BridgeModel(tiny("llama")).plain.attends
