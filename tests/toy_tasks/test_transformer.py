"""The toy transformer against closed forms, torch's own layers and its other paths."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from toy_tasks import ToyConfig, ToyTransformer
from toy_tasks.layers import HookPoint

BASE = ToyConfig(
    d_vocab=11, n_layers=2, n_heads=4, d_model=12, d_head=6, d_mlp=20, n_ctx=96
)
CONFIGS = {
    "plain": BASE,
    "grouped": replace(BASE, n_kv_heads=2),
    "multi-query": replace(BASE, n_kv_heads=1),
    "relu": replace(BASE, attention="relu"),
    "rms": replace(BASE, norm="rms", mlp="linear"),
    "bare": replace(BASE, norm="none", positions="none", tied=True),
    # Peeking in the last layer alone: a cut prompt's last token is no key there.
    "carriers": replace(BASE, carriers=("self", "peek")),
    "rotary": replace(BASE, positions="rotary", n_kv_heads=2),
    "alibi": replace(BASE, positions="alibi", carriers=("full", "self")),
    "relative": replace(BASE, positions="relative"),
    "gaps": replace(BASE, attn_layers=(1,), mlp_layers=(0,), positions="sinusoidal"),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


PREFIX = replace(BASE, prefix=5, positions="relative")


def build(config: ToyConfig) -> tuple[ToyTransformer, torch.Tensor]:
    model = ToyTransformer(config, seed=3).double().eval()
    for name, table in model.named_parameters():
        if name.endswith("bias.table"):  # zeros at the start: nothing to see
            torch.nn.init.normal_(table, generator=torch.Generator().manual_seed(1))
    tokens = torch.randint(11, (3, 96), generator=torch.Generator().manual_seed(0))
    return model, tokens


def watch(model, name, edit=lambda x: None):
    """Hook one site; returns the list that will hold what passed it."""
    seen = []

    def hook(module, inputs, output):
        seen.append(output)
        return edit(output)

    model.get_submodule(name).register_forward_hook(hook)
    return seen


FUSED = ["plain", "grouped", "multi-query", "rotary", "alibi", "relative", "prefix"]


@pytest.mark.parametrize("name", FUSED)
def test_fused_and_explicit_attention_agree(name):
    model, tokens = build({**CONFIGS, "prefix": PREFIX}[name])
    called = []
    for block in model.blocks:
        explicit = block.attn.pattern
        block.attn.pattern = lambda q, k, f=explicit: called.append(1) or f(q, k)
    fused = model(tokens)
    assert not called  # 96 tokens take the fused path
    watch(model, "blocks.0.attn.hook_pattern")
    watch(model, "blocks.1.attn.hook_attn_scores")
    torch.testing.assert_close(model(tokens), fused, rtol=1e-12, atol=1e-12)
    assert len(called) == 2


def test_a_layer_is_what_torch_says_it_is():
    """One head, LayerNorm: against F.multi_head_attention, written by others."""
    config = replace(BASE, n_layers=1, n_heads=2, d_head=6)
    model, tokens = build(config)
    block, x = model.blocks[0], model.embed(tokens)
    normed = F.layer_norm(x, (12,), block.ln1.w, block.ln1.b, 1e-5)
    reference = torch.nn.MultiheadAttention(12, 2, bias=False, batch_first=True)
    reference = reference.double()

    def stacked(w):
        return w.transpose(1, 2).reshape(12, 12)

    attn = block.attn
    with torch.no_grad():
        parts = [stacked(w) for w in (attn.W_Q, attn.W_K, attn.W_V)]
        reference.in_proj_weight.copy_(torch.cat(parts))
        reference.out_proj.weight.copy_(attn.W_O.flatten(0, 1).T)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(96).double()
    want = reference(normed, normed, normed, attn_mask=mask, need_weights=False)[0]
    got = watch(model, "blocks.0.hook_attn_out")
    model(tokens)
    torch.testing.assert_close(got[0], want, rtol=1e-10, atol=1e-10)


def test_grouped_heads_share_keys_and_values():
    """A grouped model equals the plain one whose key-value heads are repeated."""
    grouped, tokens = build(CONFIGS["grouped"])
    plain, _ = build(CONFIGS["plain"])
    weights = dict(grouped.state_dict())
    for name, value in grouped.state_dict().items():
        if name.endswith(("W_K", "W_V")):
            weights[name] = value[[0, 0, 1, 1]]
    plain.load_state_dict(weights)
    torch.testing.assert_close(plain(tokens), grouped(tokens), rtol=1e-12, atol=1e-12)
    assert watch_shape(grouped, tokens, "blocks.0.attn.hook_k") == (3, 96, 2, 6)
    assert watch_shape(grouped, tokens, "blocks.0.attn.hook_z") == (3, 96, 4, 6)


def watch_shape(model, tokens, name):
    seen = watch(model, name)
    model(tokens)
    return tuple(seen[0].shape)


@pytest.mark.parametrize("attention", ["softmax", "relu"])
def test_pattern_without_queries(attention):
    """Equal scores: softmax rows 1/(i+1), ReLU of 0 is 0; score 2 gives 2/(i+1)."""
    model, tokens = build(replace(BASE, attention=attention))
    patterns = watch(model, "blocks.0.attn.hook_pattern")
    torch.nn.init.zeros_(model.blocks[0].attn.W_Q)
    model(tokens)
    uniform = torch.ones(96, 96).double().tril() / torch.arange(1, 97)[:, None]
    want = uniform if attention == "softmax" else torch.zeros_like(uniform)
    torch.testing.assert_close(patterns[0], want.expand(3, 4, 96, 96))
    name = "blocks.0.attn.hook_attn_scores"
    scores = watch(model, name, lambda s: torch.where(s.isinf(), s, 2.0))
    model(tokens)
    want = uniform if attention == "softmax" else 2 * uniform
    torch.testing.assert_close(patterns[1], want.expand(3, 4, 96, 96))
    assert scores[0].isneginf().equal((uniform == 0).expand(3, 4, 96, 96))


@every_config
def test_attention_is_causal(config):
    model, tokens = build(config)
    changed = tokens.clone()
    changed[:, 40:] = (changed[:, 40:] + 1) % 11
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(after[:, :40], before[:, :40], rtol=1e-12, atol=1e-12)
    assert (after[:, 40] != before[:, 40]).any()


@every_config
def test_blocks_continue_from_the_past(config):
    model, tokens = build(config)
    full = model(tokens)
    cut, pasts = 30, []
    resid = model.embed(tokens[:, :cut])
    for layer, block in enumerate(model.blocks):
        past = None
        if block.attn is not None:
            k = watch(model, f"blocks.{layer}.attn.hook_k")
            v = watch(model, f"blocks.{layer}.attn.hook_v")
            resid = block(resid)
            past = (k[0], v[0])
        else:
            resid = block(resid)
        pasts.append(past)
    resid = model.embed(tokens[:, cut:], start=cut)
    for block, past in zip(model.blocks, pasts, strict=True):
        resid = block(resid, past)
    torch.testing.assert_close(
        model.unembed(resid), full[:, cut:], rtol=1e-11, atol=1e-11
    )


@every_config
@pytest.mark.first_case
def test_an_edit_acts_at_every_hook(config):
    model, tokens = build(config)
    base = model(tokens)
    names = [n for n, m in model.named_modules() if isinstance(m, HookPoint)]
    assert "blocks.1.hook_resid_mid" in names and "blocks.0.hook_attn_out" in names
    for name in names:
        hook = model.get_submodule(name)
        reading = hook.register_forward_hook(lambda *_: None)
        torch.testing.assert_close(model(tokens), base, rtol=1e-11, atol=1e-11)
        reading.remove()
        noise = torch.Generator().manual_seed(1)

        def edit(module, inputs, output, noise=noise):
            drawn = torch.rand(output.shape, generator=noise, dtype=output.dtype)
            return output * (1.5 + drawn) + 0.1 * drawn

        editing = hook.register_forward_hook(edit)
        assert (model(tokens) - base).abs().amax() > 1e-6, name
        editing.remove()
    torch.testing.assert_close(model(tokens), base, rtol=0, atol=0)


def test_residual_identity_and_a_true_resid_mid():
    model, tokens = build(BASE)
    new = torch.randn(3, 96, 12, dtype=torch.float64)
    sites = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    seen = {site: watch(model, f"blocks.0.hook_{site}") for site in sites}
    model(tokens)
    pre, attn_out, mlp_out, post = (seen[site][0] for site in sites)
    torch.testing.assert_close(pre + attn_out + mlp_out, post)

    watch(model, "blocks.0.hook_resid_mid", lambda resid: new)
    model(tokens)
    block = model.blocks[0]
    torch.testing.assert_close(seen["mlp_out"][1], block.mlp(block.ln2(new)))
    torch.testing.assert_close(seen["resid_post"][1], new + seen["mlp_out"][1])


def test_dead_layers_write_zeros():
    model, tokens = build(CONFIGS["gaps"])
    dead = watch(model, "blocks.0.hook_attn_out"), watch(model, "blocks.1.hook_mlp_out")
    model(tokens)
    assert model.blocks[0].attn is None and model.blocks[1].mlp is None
    assert not dead[0][0].any() and not dead[1][0].any()


def test_tied_and_frozen_parameters():
    config = replace(BASE, tied=True, frozen=("W_E", "blocks.1.attn.W_V"))
    model, _ = build(config)
    assert torch.equal(model.W_U, model.W_E.T)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"W_E", "blocks.1.attn.W_V"}
    assert not any("bias" in name for name, _ in model.named_parameters())
    with pytest.raises(ValueError, match="starts no parameter's name"):
        ToyTransformer(replace(BASE, frozen=("W_pso",)))


def test_initial_weights_come_from_the_seed_alone():
    torch.manual_seed(1)
    one = ToyTransformer(BASE, seed=5)
    torch.manual_seed(2)
    two = ToyTransformer(BASE, seed=5)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one.W_E, ToyTransformer(BASE, seed=6).W_E)
    big = ToyTransformer(replace(BASE, d_vocab=4000))
    assert big.W_E.std().item() == pytest.approx(1, abs=0.02)
    bound = big.blocks[0].attn.W_O.abs().max().item()  # 24 inputs
    assert 0.95 * 24**-0.5 < bound <= 24**-0.5


def test_bfloat16_runs():
    model, tokens = build(BASE)
    assert model.to(torch.bfloat16)(tokens).dtype == torch.bfloat16


def test_bad_input_is_explained():
    model, tokens = build(BASE)
    with pytest.raises(ValueError, match="Shorten it to 96 tokens"):
        model(torch.cat([tokens, tokens], dim=1))
    with pytest.raises(ValueError, match=r"task\.d_vocab"):
        ToyTransformer(ToyConfig())
    for bad, message in (
        ({"n_layers": 0}, "at least 1"),
        ({"n_heads": 4, "n_kv_heads": 3}, "does not divide"),
        ({"attn_layers": (1,)}, "0 to 0"),
    ):
        with pytest.raises(ValueError, match=message):
            ToyConfig(**bad)


@every_config
def test_config_json_round_trip(config):
    assert ToyConfig.from_json(config.to_json()) == config
    with pytest.raises(ValueError, match="unknown or missing"):
        ToyConfig.from_json({**config.to_json(), "dropout": 0.1})
