"""Measurements on marked spans: planted residuals, chosen patterns, hand-made heads."""

import pytest
import torch
from torch import Tensor

from mechsink.interventions.span_edits import vhr_amplify
from mechsink.models.positions import reposition
from mechsink.models.toy import ToyModel
from mechsink.sinks.spans.attention import span_attention
from mechsink.sinks.spans.divergence import head_divergence, vhr_heads
from mechsink.sinks.spans.sinks import sink_dimensions, sink_phi, span_sinks
from mechsink.sinks.spans.tokens import span_tokens
from mechsink.sites import Site
from tests.models.backends import SMALL, load
from tests.sinks.canned import CannedModel
from toy_tasks import ToyConfig, ToyTransformer

TOKENS = torch.arange(8)[None]
PROMPT = torch.arange(16).reshape(2, 8) * 11 % 80


def planted(n_pos: int) -> Tensor:
    """Two layers, d_model 16; tokens 0 and 3 massive in dimension 5, 6 from layer 1."""
    stream = torch.ones(3, n_pos, 16)
    stream[:, 0, 5] = stream[:, 3, 5] = -2000.0
    stream[1:, 6, 5] = 2000.0
    return stream


STREAM = CannedModel(
    scores=lambda n: torch.zeros(2, 2, n, n),
    values=lambda n: torch.ones(2, 1, n, 1),
    stream=planted,
    w_out=torch.ones(2, 2, 1, 16),
)


def test_phi_closed_forms() -> None:
    one_hot = torch.eye(16)[5]
    streams = torch.stack([one_hot, torch.ones(16), -3 * torch.ones(16)])[None]
    want = torch.tensor([[4.0, 1.0, 1.0]])  # sqrt(16); alike; scale and sign free
    torch.testing.assert_close(sink_phi(streams, [5, 7]), want, atol=1e-4, rtol=0)
    assert sink_phi(streams, [7])[0, 0] == 0


def test_planted_sinks_are_found() -> None:
    assert sink_dimensions(STREAM, TOKENS) == [5]
    found = span_sinks(STREAM, TOKENS, range(2, 5), [5])
    assert found.tau == pytest.approx(1.25)  # .3125 sqrt(16)
    assert found.positions(0) == [0, 3]
    assert found.positions(1) == [0, 3, 6]
    inside = found.table[found.table["in_span"]]["pos"].unique().tolist()
    assert inside == [2, 3, 4]
    assert set(found.table["layer"]) == {0, 1}  # the last output is no input
    big = found.table["is_sink"]
    assert found.table[big]["phi"].min() == pytest.approx(4.0, abs=1e-4)
    assert found.table[~big]["phi"].to_numpy() == pytest.approx(1.0)


def test_tau_is_the_papers_at_its_width() -> None:
    model = CannedModel(w_out=torch.ones(1, 1, 1, 4096))
    assert span_sinks(model, TOKENS, [1], [0]).tau == pytest.approx(20.0)


def test_found_sinks_become_the_papers_edit() -> None:
    found = span_sinks(STREAM, TOKENS, range(2, 5), [5])
    edits = found.edits(first_layer=1)
    assert set(edits) == {Site("pattern", 1)}
    uniform = torch.ones(1, 1, 1, 8) / 8
    new = edits[Site("pattern", 1)](uniform)[0, 0, 0]
    # sinks 0, 3, 6 keep .6; .4 * 3 / 8 goes to tokens 2 and 4 in equal parts
    want = torch.tensor([0.6, 1, 1 + 0.6, 0.6, 1 + 0.6, 1, 0.6, 1]) / 8
    torch.testing.assert_close(new, want)
    assert found.edits() == {}  # the paper begins at layer 2, this model ends before


def log_rows(rows: Tensor):
    """Scores whose softmax is the given lower-triangular pattern, in every layer."""
    return lambda n: rows.log().clamp(min=-200)[None, :, :n, :n]


def test_attention_to_a_span_of_a_uniform_head() -> None:
    # Head 0 uniform; head 1 all on key 0. Span 1 to 3, its sink 2, queries 4 to 7.
    uniform = torch.ones(8, 8).tril() / torch.arange(1, 9)[:, None]
    first = torch.zeros(8, 8)
    first[:, 0] = 1
    model = CannedModel(scores=log_rows(torch.stack([uniform, first])))
    got = span_attention(model, TOKENS, range(1, 4), [2, 0])
    mass = 3 * (1 / 5 + 1 / 6 + 1 / 7 + 1 / 8) / 4
    assert got.table["mass"].to_numpy() == pytest.approx([mass, 0.0])
    ratio = got.table["sink_ratio"].to_numpy()
    assert ratio == pytest.approx([1 / 3, 0.0], abs=1e-5)
    assert got.table["centric"].tolist() == [1.0, 0.0]
    assert got.centric_heads() == [(0, 0)]
    torch.testing.assert_close(got.sensitivity(0), torch.tensor([mass, 0.0]).double())
    strict = span_attention(model, TOKENS, range(1, 4), [2], least=0.45)
    # 3/5, 3/6 reach .45; 3/7 and 3/8 do not
    assert strict.table["centric"].tolist() == [0.5, 0.0]
    none = span_attention(model, TOKENS, range(1, 4))
    assert none.table["sink_ratio"].isna().all()
    assert none.centric_heads() == []


def test_gaze_shift_by_hand() -> None:
    rows = torch.eye(8)
    rows[4] = torch.tensor([0.7, 0.1, 0.2, 0, 0, 0, 0, 0])
    rows[5] = torch.tensor([0.6, 0.3, 0.1, 0, 0, 0, 0, 0])
    rows[6] = torch.tensor([0.2, 0.4, 0.4, 0, 0, 0, 0, 0])
    model = CannedModel(scores=log_rows(rows[None]))
    got = span_tokens(model, TOKENS, [1, 2], query=[4, 5, 6], summary=6)
    want = torch.tensor([0.2 + 0.1, 0.3]).double()  # the fall of key 2 counts nothing
    torch.testing.assert_close(got.saliency(), want)
    assert got.outliers(n=1) == [1]
    again = span_tokens(model, TOKENS, [1, 2], summary=4)
    assert again.outliers(n=1) == [2]
    # Default query: 3 to 7, whose token 3 and 7 look at themselves alone.
    torch.testing.assert_close(again.saliency(), want + torch.tensor([0.1, 0.2]))


def test_constant_attention_shifts_no_gaze() -> None:
    rows = torch.eye(8)
    rows[3:] = torch.tensor([0.5, 0.2, 0.3, 0, 0, 0, 0, 0])
    model = CannedModel(scores=log_rows(rows[None]))
    got = span_tokens(model, TOKENS, [1, 2]).saliency()
    torch.testing.assert_close(got, torch.zeros(2).double(), atol=1e-12, rtol=0)


def test_local_and_spatial_attention_of_a_uniform_head() -> None:
    model = CannedModel(scores=lambda n: torch.zeros(1, 1, n, n))
    table = span_tokens(model, TOKENS, [1, 2, 3], window=1).table
    local = table["local"].to_numpy()
    assert local[:2] == pytest.approx([1 / 3, 1 / 4])
    assert local[2] != local[2]  # no later token in the span
    spatial = (1 / 5 + 1 / 6 + 1 / 7 + 1 / 8) / 4
    assert table["spatial"].to_numpy() == pytest.approx([spatial] * 3)


def test_emphasised_tokens_are_those_of_either_kind() -> None:
    rows = torch.eye(8)
    rows[3] = torch.tensor([0.1, 0.8, 0.05, 0.05, 0, 0, 0, 0])  # near: key 1
    rows[5:] = torch.tensor([0.1, 0.1, 0.1, 0.6, 0.1, 0, 0, 0])  # after: key 3
    model = CannedModel(scores=log_rows(rows[None]))
    got = span_tokens(model, TOKENS, [1, 2, 3, 4])
    assert got.emphasised(share=0.25) == [1, 3]


def test_divergence_is_the_distance_to_a_run_without_the_span() -> None:
    # Brute force: the other tokens alone, at the positions that they had.
    model, span, others = load("llama"), [2, 3, 5], [0, 1, 4, 6, 7]
    got = head_divergence(model, PROMPT, span).table
    sites = [Site("z", layer) for layer in range(3)]
    full = model.run(PROMPT, read=sites).cache
    alone = reposition(model, PROMPT[:, others], others, read=sites).cache
    for layer, site in enumerate(sites):
        want = (full[site][:, -1] - alone[site][:, -1]).norm(dim=-1)
        here = got[got["layer"] == layer]["divergence"].to_numpy().reshape(2, 4)
        torch.testing.assert_close(
            torch.tensor(here), want.double(), atol=1e-4, rtol=1e-3
        )
    assert got["divergence"].min() > 0.01


def test_an_unread_span_diverges_by_nothing() -> None:
    config = ToyConfig(**SMALL, carriers=("self", "self", "self"))
    model = ToyModel(ToyTransformer(config).eval())
    got = head_divergence(model, PROMPT, range(1, 5))
    assert got.table["divergence"].max() == 0
    assert got.token_level().tolist() == [0, 0]
    assert vhr_heads(model, PROMPT, range(1, 5)) == []
    read = head_divergence(model, PROMPT, [0]).table  # all see token 0
    assert read["divergence"].min() > 0


def scaled_heads(scales: list[float]) -> ToyModel:
    """Four heads alike, but for the size of their values."""
    toy = ToyTransformer(ToyConfig(d_vocab=80, n_heads=4, d_model=32, d_head=8)).eval()
    attn = toy.get_submodule("blocks.0.attn")
    with torch.no_grad():
        for name in ("W_Q", "W_K", "W_V"):
            weight: Tensor = getattr(attn, name)
            weight.copy_(weight[:1].expand_as(weight).clone())
        attn.W_V.mul_(torch.tensor(scales)[:, None, None])  # type: ignore[operator,union-attr]
    return ToyModel(toy)


def test_reinforced_heads_are_the_upper_half_without_outliers() -> None:
    model, span = scaled_heads([0.0, 1.0, 2.0, 100.0]), range(1, 5)
    one = PROMPT[:1]
    found = head_divergence(model, one, span)
    sizes = found.table["divergence"].to_numpy()
    assert sizes / sizes[1] == pytest.approx([0.0, 1.0, 2.0, 100.0], rel=1e-4)
    top = found.token_level(top=2).to_numpy()
    assert top == pytest.approx(51 * sizes[1], rel=1e-4)
    # Head 3 spikes: norm 100 against a median of 1.5.
    assert vhr_heads(model, one, span) == [(0, 1), (0, 2)]
    assert vhr_heads(model, one, span, spike=1000.0) == [(0, 2), (0, 3)]


def test_reinforcement_goes_layer_by_layer() -> None:
    model, span = load("llama"), range(1, 4)
    chosen = vhr_heads(model, PROMPT, span, alpha=8.0, spike=1e9)
    assert {layer for layer, _ in chosen} == {0, 1, 2}
    # As layer 2 sees it once layers 0 and 1 are amplified, not in the plain model.
    before = [(layer, head) for layer, head in chosen if layer < 2]
    at_two = {head for layer, head in chosen if layer == 2}

    def best(edit: dict) -> set[int]:
        table = head_divergence(model, PROMPT, span, edit=edit).table
        means = table[table["layer"] == 2].groupby("head")["divergence"].mean()
        return set(means.nlargest(2).index)

    assert at_two == best(vhr_amplify(before, 8.0))


def test_results_survive_saving(tmp_path) -> None:
    found = span_sinks(STREAM, TOKENS, range(2, 5), [5])
    back = type(found).load(found.save(tmp_path / "sinks"))
    assert back.positions(1) == [0, 3, 6] and back.span == [2, 3, 4]
    tokens = span_tokens(STREAM, TOKENS, [1, 2])
    again = type(tokens).load(tokens.save(tmp_path / "tokens"))
    torch.testing.assert_close(again.saliency(), tokens.saliency())


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="outside prompt 0"):
        span_sinks(STREAM, TOKENS, [9], [5])
    with pytest.raises(ValueError, match="Allowed: at least one of 0 to 15"):
        span_sinks(STREAM, TOKENS, [1], [16])
    with pytest.raises(ValueError, match="Lower threshold"):
        sink_dimensions(STREAM, TOKENS, threshold=1e9)
    with pytest.raises(ValueError, match="each once"):
        span_attention(STREAM, TOKENS, [1, 1])
    with pytest.raises(ValueError, match="outside prompt 0"):
        span_attention(STREAM, TOKENS, range(4, 8))  # nothing comes after it
    with pytest.raises(ValueError, match="must come after the span"):
        span_tokens(STREAM, TOKENS, [1, 2], query=[2, 3])
    with pytest.raises(ValueError, match="summary=2 is not after the span"):
        span_tokens(STREAM, TOKENS, [1, 2], summary=2)
    with pytest.raises(ValueError, match=r"layers=\[7\]"):
        span_tokens(STREAM, TOKENS, [1, 2]).saliency(layers=[7])
    with pytest.raises(ValueError, match="does the reading"):
        head_divergence(load("toy"), PROMPT, [7])
