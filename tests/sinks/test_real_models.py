"""The linear-memory measurements against whole patterns of real architectures."""

import pytest
import torch

from mechsink.models.load import load_model
from mechsink.report.texts import default_texts
from mechsink.run import Model
from mechsink.sinks.logits import sink_logits
from mechsink.sinks.massive.activations import massive_activations
from mechsink.sinks.residuals import residual_norms
from mechsink.sinks.scores import sink_score, sink_scores
from mechsink.sinks.values import value_norms
from mechsink.sites import Site

POSITIONS = (0, 3)


def tiny_llama(n_kv_heads: int) -> Model:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(n_kv_heads)
    config = LlamaConfig(
        vocab_size=80,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=n_kv_heads,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config)
    return load_model(_sharpened(model))


def tiny_gpt2() -> Model:
    """True float64 inside, unlike families that pass through float32."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=80, n_embd=32, n_layer=3, n_head=4, n_positions=64)
    return load_model(_sharpened(GPT2LMHeadModel(config).double()))


def _sharpened(model):
    """Scores of some nats: at the default weights attention is all but uniform."""
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


MODELS = {
    "multi-head": (lambda: tiny_llama(4), 1e-5),
    "grouped-query": (lambda: tiny_llama(2), 1e-5),
    "multi-query": (lambda: tiny_llama(1), 1e-5),
    "float64": (tiny_gpt2, 1e-12),
}


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    make, tolerance = MODELS[request.param]
    model = make()
    tokens = torch.randint(80, (2, 40), generator=torch.manual_seed(1))
    names = ("pattern", "attn_scores", "v", "resid_pre")
    read = [Site(name, layer) for name in names for layer in range(3)]
    run = model.run(tokens, read=[*read, Site("resid_post", 2)])
    return model, tokens, run.cache, tolerance


def by_site(table, column):
    """[batch position layer head] in the table's own order."""
    axes = ["batch", "position", "layer", "head"]
    return torch.tensor(table.sort_values(axes)[column].to_numpy()).reshape(2, 2, 3, 4)


def test_sink_scores_are_those_of_whole_patterns(case):
    model, tokens, cache, tolerance = case
    got = by_site(sink_scores(model, tokens, POSITIONS).table, "score")
    assert got[:, 0].max() > 3 * got[:, 0].min()  # far from uniform
    for layer in range(3):
        for n, position in enumerate(POSITIONS):
            want = sink_score(cache[Site("pattern", layer)].double(), position)
            assert (got[:, n, layer] - want).abs().max() < tolerance


def test_sink_logits_are_those_of_whole_scores(case):
    model, tokens, cache, tolerance = case
    got = by_site(sink_logits(model, tokens, POSITIONS).table, "logit")
    for layer in range(3):
        scores = cache[Site("attn_scores", layer)].double()
        for n, position in enumerate(POSITIONS):
            want = []
            for query in range(max(1, position), 40):
                others = [key for key in range(query + 1) if key != position]
                row = scores[:, :, query]
                want.append(row[..., position] - row[..., others].mean(-1))
            want = torch.stack(want).mean(0)
            error = (got[:, n, layer] - want).abs().max()
            assert error < tolerance * scores[..., 0].abs().max()


def test_value_norms_are_those_of_the_read_values(case):
    model, tokens, cache, tolerance = case
    table = value_norms(model, tokens, POSITIONS).table
    norms, others = by_site(table, "norm"), by_site(table, "others")
    for layer in range(3):
        v = cache[Site("v", layer)].double()
        v = v.repeat_interleave(4 // v.shape[2], dim=2)
        w_o = model.w_o(layer).double()
        want = torch.einsum("bphd,hdm->bhpm", v, w_o).norm(dim=-1)
        for n, position in enumerate(POSITIONS):
            rest = [p for p in range(40) if p != position]
            scale = want.max()
            for got, exact in (
                (norms, want[..., position]),
                (others, want[..., rest].mean(-1)),
            ):
                assert (got[:, n, layer] - exact).abs().max() < tolerance * scale


def test_residual_norms_and_massive_entries_are_those_of_the_stream(case):
    model, tokens, cache, tolerance = case
    streams = [cache[Site("resid_pre", layer)] for layer in range(3)]
    stream = torch.stack([*streams, cache[Site("resid_post", 2)]], dim=1).double()
    table = residual_norms(model, tokens).table.sort_values(["batch", "layer", "pos"])
    got = torch.tensor(table["norm"].to_numpy()).reshape(2, 4, 40)
    want = stream.norm(dim=-1)
    assert (got - want).abs().max() < tolerance * want.max()
    bound = stream.abs().quantile(0.999).item()
    found = massive_activations(model, tokens, threshold=bound, times=2.0).table
    median = stream.flatten(2).abs().median(dim=-1).values[..., None, None]
    is_massive = (stream.abs() > bound) & (stream.abs() >= 2 * median)
    axes = ["batch", "layer", "pos", "dim"]
    assert (
        found[axes].sort_values(axes).to_numpy().tolist()
        == is_massive.nonzero().tolist()
    )


def test_a_prompt_longer_than_the_context_is_refused(case):
    model = case[0]
    with pytest.raises(ValueError, match="65"):
        sink_scores(model, torch.zeros(1, 65, dtype=torch.int64))


@pytest.mark.pretrained
def test_smollm2_known_facts():
    model = load_model("smollm2")
    text = "The meaning of a program is what it does. " * 7
    tokens = model.to_tokens(text)[:, :64]
    scores = sink_scores(model, tokens)
    for layer in (0, 11, 29):
        read = Site("pattern", layer)
        want = sink_score(model.run(tokens, read=[read]).cache[read])[0]
        got = scores.table[scores.table["layer"] == layer]["score"]
        assert (torch.tensor(got.to_numpy()) - want).abs().max() < 1e-5
    assert 0.5 < scores.rate() < 1
    norms = residual_norms(model, tokens).summary(0).set_index("layer")["norm"]
    assert norms.loc[1:3].tolist() == pytest.approx([47.66, 209.3, 677.4], rel=1e-2)
    assert norms.loc[12:28].tolist() == pytest.approx([22_650] * 17, rel=2e-2)
    assert not massive_activations(model, tokens).table.query("pos == 0").empty


@pytest.mark.pretrained
def test_smollm2s_sink_rate_on_prose_is_that_of_the_eager_definition():
    """alpha_0 = mean over all 64 rows of A[:, 0], the indicator before any mean."""
    model = load_model("smollm2")
    rows = [model.to_tokens(text)[:, :64] for text in default_texts(24, 64)]
    assert {row.shape[1] for row in rows} == {64}
    scores = sink_scores(model, rows)
    layers = range(model.n_layers)
    alpha = []
    for row in rows:
        cache = model.run(row, read=[Site("pattern", n) for n in layers]).cache
        patterns = torch.stack([cache[Site("pattern", n)][0] for n in layers])
        alpha.append(patterns[..., 0].sum(-1) / 64)  # layer head
    want = torch.stack(alpha)
    by = ["batch", "layer", "head"]
    got = torch.tensor(scores.table.sort_values(by)["score"].to_numpy())
    assert (got.view_as(want) - want).abs().max() < 1e-5
    rate = (want > 0.3).double().mean().item()
    assert scores.rate() == pytest.approx(rate, abs=1e-5)
    assert rate == pytest.approx(0.745, abs=0.03)  # measured once with a prototype
