"""Toys: any size, recipe or task is built and trains, or is refused in words."""

from dataclasses import fields

import torch
from hypothesis import strategies as st

from tests.hostile.cases import hostile
from tests.hostile.clear import is_refused, tried
from tests.hostile.test_options import odd, some
from toy_tasks import PRESETS, BigramBackcopy, Sums, ToyConfig, ToyTransformer
from toy_tasks.presets import Preset

sizes = st.integers(-1, 4)
layers = st.none() | st.lists(st.integers(-1, 3), max_size=2).map(tuple)
config_fields = {
    "d_vocab": some(st.integers(-1, 6)),
    **{n: some(sizes) for n in ("n_layers", "n_heads", "d_model", "d_head", "d_mlp")},
    "n_ctx": some(st.integers(0, 6)),
    "n_kv_heads": some(st.none() | sizes),
    "norm": some(st.sampled_from(["layer", "rms", "none"])),
    "positions": some(
        st.sampled_from(
            ["learned", "sinusoidal", "none", "rotary", "alibi", "relative"]
        )
    ),
    "attention": some(st.sampled_from(["softmax", "relu"])),
    "mlp": some(st.sampled_from(["relu", "linear"])),
    "attn_layers": some(layers),
    "mlp_layers": some(layers),
    "tied": some(st.booleans()),
    "carriers": some(
        st.none() | st.lists(st.sampled_from(["full", "self", "peek"])).map(tuple)
    ),
    "decorrelation": some(st.floats(0, 1)),
    "prefix": some(st.integers(-1, 3)),
}


@hostile(20, 900, given=st.fixed_dictionaries({}, optional=config_fields))
def test_any_sizes_make_a_toy_or_are_refused(given):
    config = tried(ToyConfig, **given)
    if is_refused(config):
        return
    assert ToyConfig.from_json(config.to_json()) == config
    toy = tried(ToyTransformer, config, seed=0)
    if is_refused(toy):
        assert config.d_vocab == 0  # stands for the task's
        return
    tokens = torch.zeros(1, min(2, config.n_ctx), dtype=torch.long)
    assert toy(tokens).shape == (*tokens.shape, config.d_vocab)


@hostile(
    20,
    900,
    [{"given": {"checkpoints": 1}}, {"given": {"weight_decay": -1.0}}],
    given=st.fixed_dictionaries(
        {},
        optional={
            "steps": some(st.integers(-1, 50)),
            "batch": some(sizes),
            "lr": some(st.floats()),
            "optimizer": some(st.sampled_from(["adamw", "sgd"])),
            "betas": some(st.tuples(st.floats(0, 1), st.floats(0, 1))),
            "momentum": some(st.floats(-1, 2)),
            "weight_decay": some(st.floats(-1, 2)),
            "dtype": some(st.sampled_from(["float32", "bfloat16"])),
            "checkpoints": some(sizes | st.lists(sizes, max_size=3).map(tuple)),
            "log_every": some(sizes),
            "save_every": some(sizes),
            "warmup": some(sizes),
            "decay": some(st.sampled_from(["none", "cosine"])),
            "n_sequences": some(st.none() | sizes),
        },
    ),
)
def test_any_recipe_is_whole_or_refused(given):
    base = PRESETS["bb-cpu"]
    values = {f.name: getattr(base, f.name) for f in fields(base)}
    preset = tried(Preset, **{**values, **given})
    if is_refused(preset):
        return
    assert Preset.from_json(preset.to_json()) == preset
    steps = preset.checkpoint_steps()
    assert steps[-1] == preset.steps and steps == sorted({*steps})
    rates = [preset.rate(step) for step in range(preset.steps)]
    assert all(0 <= rate <= preset.lr for rate in rates)
    toy = ToyTransformer(ToyConfig(d_vocab=3, d_model=2, d_head=2, d_mlp=2, n_ctx=2))
    from toy_tasks.state import _optimizer

    assert not is_refused(tried(_optimizer, toy, preset))


@hostile(
    10,
    500,
    n_triggers=some(st.integers(-1, 9)),
    max_chars=some(st.integers(-1, 9)),
    min_count=some(st.integers(-1, 9)),
    mode=some(st.sampled_from(["backcopy", "icl", "markov", "dormant_markov"])),
    copy_probability=some(st.floats(0, 1)),
    n_bos=some(st.integers(-1, 3)),
    random_at=some(st.none() | st.tuples(sizes, sizes)),
    bos_at=some(st.none() | sizes),
    delimiter_probability=some(st.floats(0, 1)),
    text=some(st.text(alphabet="abcd $<\x00é", min_size=5, max_size=60)),
    batch=some(sizes),
    length=some(sizes),
    seed=some(sizes),
)
def test_any_bigram_task_samples_or_is_refused(text, batch, length, seed, **options):
    task = tried(BigramBackcopy.from_text, text, **options)
    if is_refused(task):
        return
    tokens = tried(task.sample, batch, length, seed)
    if is_refused(tokens):
        return
    assert tokens.shape == (batch, length)
    assert ((tokens >= 0) & (tokens < task.d_vocab)).all()
    law = task.oracle_logprobs(tokens).exp().sum(-1)
    assert torch.allclose(law, torch.ones_like(law))
    again = BigramBackcopy.from_json(task.to_json())
    assert torch.equal(again.sample(batch, length, seed), tokens)


@hostile(
    10,
    400,
    n_values=some(st.integers(-1, 6)),
    n_terms=some(st.integers(-1, 4)),
    held_out=some(st.floats(-0.5, 1.5)),
    seed=some(sizes),
    batch=some(sizes),
)
def test_any_sums_are_right_or_refused(n_values, n_terms, held_out, seed, batch):
    task = tried(Sums, n_values, n_terms, held_out, seed)
    if is_refused(task):
        return
    found = tried(task.sample, batch, seed)
    if is_refused(found):
        return
    tokens, answers = found
    assert (tokens[:, task.slots].sum(1) == answers).all()


@hostile(10, 300, text=odd)
def test_any_text_is_encoded_or_refused(text):
    task = BigramBackcopy.from_text("abcab$ <" * 20, n_triggers=1, min_count=1)
    found = tried(task.encode, text) if isinstance(text, str) else None
    if isinstance(found, list):
        assert task.decode(found) == text
