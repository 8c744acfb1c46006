"""Rotary, ALiBi, bucketed positions and the prefix against others' code and by hand."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)
from transformers.models.t5.modeling_t5 import T5Attention

from toy_tasks import PRESETS, BigramBackcopy, ToyConfig, ToyTransformer, train
from toy_tasks.operators import OPERATORS
from toy_tasks.positions import alibi_slopes, distances, relative_buckets, rotated
from toy_tasks.training import learnt_targets

BASE = ToyConfig(d_vocab=9, n_heads=2, d_model=12, d_head=6, d_mlp=8, n_ctx=160)
TOKENS = torch.randint(9, (2, 160), generator=torch.Generator().manual_seed(0))
CPU = torch.device("cpu")


def seen_at(model: ToyTransformer, name: str, tokens: torch.Tensor) -> torch.Tensor:
    seen = []
    point = model.get_submodule(f"blocks.0.attn.{name}")
    handle = point.register_forward_hook(lambda m, i, out: seen.append(out))
    model(tokens)
    handle.remove()
    return seen[0]


def test_rotary_is_that_of_llama():
    x = torch.randn(2, 40, 3, 8, generator=torch.Generator().manual_seed(0))
    config = LlamaConfig(hidden_size=24, num_attention_heads=3, head_dim=8)
    table = LlamaRotaryEmbedding(config)
    cos, sin = table(x, torch.arange(5, 45)[None])
    want, _ = apply_rotary_pos_emb(x, x, cos, sin, unsqueeze_dim=2)
    torch.testing.assert_close(rotated(x, 5), want, rtol=1e-5, atol=1e-5)


def test_rotary_scores_depend_on_the_distance_alone():
    """Equal tokens: equal scores along each diagonal, and no position in the values."""
    model = ToyTransformer(replace(BASE, positions="rotary"), seed=1).double()
    scores = seen_at(model, "hook_attn_scores", torch.full((1, 160), 4))[0, 0]
    for lag in (0, 1, 7, 90):
        line = scores.diagonal(-lag)
        torch.testing.assert_close(line, line[:1].expand_as(line), rtol=1e-9, atol=1e-9)
    assert (scores[-1].diff().abs() > 1e-6).any()
    q = seen_at(model, "hook_q", torch.full((1, 160), 4))
    torch.testing.assert_close(q, q[:, :1].expand_as(q))  # not yet turned


def test_rotary_turns_what_an_operator_sees():
    """The softmax operator is plain attention; a learned key is not turned."""
    config = replace(BASE, positions="rotary")
    plain = ToyTransformer(config, seed=1).double()
    operator = ToyTransformer(replace(config, operators=OPERATORS["softmax"]), seed=1)
    operator.load_state_dict(plain.state_dict())
    torch.testing.assert_close(operator.double()(TOKENS), plain(TOKENS))

    config = replace(config, operators=OPERATORS["key-bias"])
    biased = ToyTransformer(config, seed=1).double()
    q = rotated(seen_at(biased, "hook_q", TOKENS)).transpose(1, 2)
    k = rotated(seen_at(biased, "hook_k", TOKENS)).transpose(1, 2)
    bias = biased.get_parameter("blocks.0.attn.memory.k")
    keys = torch.cat([bias.expand(2, 2, 1, 6), k], dim=2)
    scores = q @ keys.transpose(2, 3) / 6**0.5
    seen = torch.ones(160, 161).tril(1).bool()
    want = scores.masked_fill(~seen, -torch.inf).softmax(-1)[..., 1:]
    pattern = seen_at(biased, "hook_pattern", TOKENS)
    torch.testing.assert_close(pattern, want)


def test_alibi_by_hand():
    assert alibi_slopes(4).tolist() == [2**-2, 2**-4, 2**-6, 2**-8]
    assert alibi_slopes(8).tolist() == [2.0**-n for n in range(1, 9)]
    plain = ToyTransformer(replace(BASE, positions="none"), seed=1).double()
    alibi = ToyTransformer(replace(BASE, positions="alibi"), seed=1).double()
    before, after = (seen_at(m, "hook_attn_scores", TOKENS) for m in (plain, alibi))
    taken = (before - after)[:, :, 50, :51]
    lag = 50 - torch.arange(51).double()
    torch.testing.assert_close(taken[0, 0], lag / 16)  # two heads: 2^-4 and 2^-8
    torch.testing.assert_close(taken[1, 1], lag / 256)


def test_buckets_are_those_of_t5():
    distance = distances(300, 300, CPU)
    theirs = T5Attention._relative_position_bucket(
        torch.arange(300)[None] - torch.arange(300)[:, None],
        bidirectional=False,
        num_buckets=32,
        max_distance=128,
    )
    assert torch.equal(relative_buckets(distance), theirs)
    assert relative_buckets(distance)[-1, 0] == 31


def test_bucketed_scores_and_where_they_begin():
    model = ToyTransformer(replace(BASE, positions="relative"), seed=1).double()
    plain = ToyTransformer(replace(BASE, positions="none"), seed=1).double()
    torch.testing.assert_close(model(TOKENS), plain(TOKENS))  # from zero
    table = model.blocks[0].attn.bias.table
    table.data = torch.arange(64.0).double().reshape(32, 2)
    before, after = (seen_at(m, "hook_attn_scores", TOKENS) for m in (plain, model))
    added = (after - before)[0, 1, 159]
    assert added[159].item() == pytest.approx(1)  # itself: bucket 0, head 1
    assert added[149].item() == pytest.approx(2 * 10 + 1)
    assert added[0].item() == pytest.approx(2 * 31 + 1)
    model(TOKENS).square().mean().backward()
    assert table.grad.abs().sum() > 0


def test_a_prefix_sees_itself_whole():
    model = ToyTransformer(replace(BASE, prefix=4), seed=1).double()
    pattern = seen_at(model, "hook_pattern", TOKENS[:, :9])[0, 0]
    seen = torch.ones(9, 9).tril().bool()
    seen[:4, :4] = True
    assert torch.equal(pattern > 0, seen)
    # Causal after the prefix: a later token changes nothing earlier.
    changed = TOKENS.clone()
    changed[:, 70:] = (changed[:, 70:] + 1) % 9
    torch.testing.assert_close(model(changed)[:, :70], model(TOKENS)[:, :70])
    block = model.blocks[0]
    past = torch.zeros(2, 5, 2, 6).double()
    with pytest.raises(ValueError, match="first 4 tokens see each other"):
        block(model.embed(TOKENS[:, 5:9], start=5), (past, past))


def test_targets_inside_the_prefix_are_not_learnt(tmp_path):
    task = BigramBackcopy.from_text()
    assert learnt_targets(task, 0, 13) is None
    assert learnt_targets(task, 5, 13) == 8  # tokens 5 to 12 of 0 to 12
    with pytest.raises(ValueError, match="prefix of 12 at most"):
        learnt_targets(task, 13, 13)
    model = ToyConfig(d_model=16, d_head=8, d_mlp=16, n_ctx=6, prefix=6)
    preset = replace(PRESETS["bb-cpu"], model=model, steps=2, batch=4, checkpoints=(2,))
    run = train(task, preset, tmp_path, progress=False)
    toy = ToyTransformer(run.config, seed=0)
    tokens = task.sequences(4, 6, (0, 0))
    log = toy(tokens[:, :-1]).log_softmax(-1)[:, -1]
    want = -log.gather(1, tokens[:, -1:]).mean().item()  # token 6 alone
    assert run.history[0]["loss"] == pytest.approx(want, rel=1e-5)
    assert run.config.prefix == 6


def test_defaults_are_written_as_before():
    assert not {"prefix"} & set(BASE.to_json())
    assert "n_sequences" not in PRESETS["bb-cpu"].to_json()
    odd = replace(BASE, positions="rotary", prefix=2)
    assert ToyConfig.from_json(odd.to_json()) == odd


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"positions": "rotary", "d_head": 5}, "even d_head"),
        ({"positions": "relative", "operators": OPERATORS["gate"]}, "plain attention"),
        ({"positions": "alibi", "operators": OPERATORS["gate"]}, "operators=None"),
        ({"prefix": 161}, "Allowed: 0"),
        ({"prefix": 3, "attention": "relu"}, "softmax"),
        ({"prefix": 3, "operators": OPERATORS["gate"]}, "operators"),
    ],
    ids=str,
)
def test_bad_choices_are_explained(bad, message):
    with pytest.raises(ValueError, match=message):
        replace(BASE, **bad)
