"""Sink scores against closed forms, hand-worked values and whole patterns."""

import pytest
import torch

from mechsink.run import Model
from mechsink.sinks.measure import measure
from mechsink.sinks.residuals import ResidualNormMeter
from mechsink.sinks.scores import SinkScoreMeter, SinkScores, sink_score, sink_scores
from tests.sinks.canned import CannedModel, causal_relu, tokens

FAR = 1e4  # softmax of it puts everything on one key


def on_column(n, key):
    scores = torch.zeros(n, n)
    scores[key:, key] = FAR
    return scores


def identity(n):
    return torch.eye(n) * FAR


def heads(*makers):
    """One layer whose heads have these scores."""
    return CannedModel(scores=lambda n: torch.stack([f(n) for f in makers])[None])


def test_uniform_head_by_hand():  # (1/3 + 1/4 + 1/5 + 1/6) / 4
    pattern = torch.ones(6, 6).tril() / torch.arange(1, 7)[:, None]
    assert sink_score(pattern[None, None], 2).item() == pytest.approx(19 / 80)


def test_closed_forms_at_64_tokens():
    n = 64
    model = heads(lambda n: torch.zeros(n, n), identity, lambda n: on_column(n, 0))
    assert isinstance(model, Model)
    scores = sink_scores(model, tokens(n), positions=(0, n - 1))
    grid = scores.table.pivot(index="position", columns="head", values="score")
    harmonic = sum(1 / t for t in range(1, n + 1))
    assert grid.loc[0].tolist() == pytest.approx([harmonic / n, 1 / n, 1.0])
    assert grid.loc[n - 1].tolist() == pytest.approx([1 / n, 1.0, 0.0])
    assert scores.rates().to_dict() == pytest.approx({0: 1 / 3, n - 1: 1 / 3})
    assert scores.rate(position=0) == pytest.approx(1 / 3)


def test_the_rate_is_strict_and_taken_before_averaging():
    # Prompts of 2 and 4 tokens: a uniform head scores H_2/2 = .75, H_4/4 = .5208.
    scores = sink_scores(CannedModel(), [tokens(2), tokens(4, batch=2)])
    assert scores.table["score"].tolist() == pytest.approx([0.75, 25 / 48, 25 / 48])
    assert scores.table["batch"].tolist() == [0, 1, 2]
    assert scores.rate(eps=0.6) == pytest.approx(1 / 3)
    assert scores.rate(eps=0.75) == 0  # equal is not above
    assert scores.rate() == 1


def test_relu_attention_is_scored_on_the_proxy():
    # 2 tokens, scores s(0,0)=3, s(1,0)=4, s(1,1)=6 -> rows (3), (2, 3).
    scores = torch.tensor([[3.0, 0.0], [4.0, 6.0]])
    model = CannedModel(scores=lambda n: scores[None, None], normalise=causal_relu)
    row = sink_scores(model, tokens(2)).table.iloc[0]
    assert row["score"] == pytest.approx((1 + 2 / 5) / 2, abs=1e-7)
    assert row["raw"] == pytest.approx((3 + 2) / 2)


def test_an_all_zero_row_scores_zero_not_nan():
    model = CannedModel(scores=lambda n: -torch.ones(1, 1, n, n), normalise=causal_relu)
    assert sink_scores(model, tokens(3)).table["score"].tolist() == [0.0]


def test_the_proxy_is_the_same_in_small_blocks(monkeypatch):
    from mechsink.sinks import scores as module

    torch.manual_seed(0)
    random = torch.randn(1, 2, 9, 9, dtype=torch.float64)
    model = CannedModel(scores=lambda n: random[:, :, :n, :n], normalise=causal_relu)
    whole = sink_scores(model, tokens(9), (0, 4)).table["score"].tolist()
    sums, blocks = module.row_sums, []
    monkeypatch.setattr(
        module,
        "row_sums",
        lambda layer, n: blocks.append(n) or sums(layer, n, most=40),
    )
    assert sink_scores(model, tokens(9), (0, 4)).table["score"].tolist() == whole
    assert blocks == [9]
    share = causal_relu(random)[0]
    share = share / share.sum(-1, keepdim=True).clamp(min=1e-8)
    want = [*sink_score(share[None], 0)[0], *sink_score(share[None], 4)[0]]
    assert whole == pytest.approx([float(w) for w in want], abs=1e-6)


def test_several_measurements_share_one_pass():
    model = CannedModel()
    scores, norms = measure(model, tokens(5), [SinkScoreMeter(), ResidualNormMeter()])
    assert len(model.passes) == 1
    assert len(scores.table) == 1 and len(norms.table) == 2 * 5


def test_meta_has_the_exact_tokens_and_the_setting(tmp_path):
    scores = sink_scores(CannedModel(), torch.tensor([[72, 105]]), positions=1)
    meta = scores.meta
    assert meta["tokens"] == [{"ids": [72, 105], "strings": ["H", "i"]}]
    assert meta["settings"] == {"measurement": "SinkScore", "positions": [1]}
    assert meta["model"] == "canned" and meta["versions"]["torch"]
    back = SinkScores.load(scores.save(tmp_path / "scores"))
    assert back.meta == meta and back.rate() == scores.rate()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(1, 0, dtype=torch.int64), "no token to measure"),
        (torch.zeros(0, 4, dtype=torch.int64), "no token to measure"),
        (torch.zeros(4, dtype=torch.int64), r"are \[4\], not token numbers"),
        ([], "list of prompts is empty"),
    ],
)
def test_bad_tokens_give_one_clear_error(bad, message):
    with pytest.raises(ValueError, match=message):
        sink_scores(CannedModel(), bad)


def test_a_position_outside_names_the_prompt_and_the_range():
    prompts = [tokens(8, batch=2), tokens(3)]
    with pytest.raises(ValueError, match=r"position=3 is outside prompt 2.*0 to 2"):
        sink_scores(CannedModel(), prompts, positions=(0, 3))
    sink_scores(CannedModel(), prompts, positions=(0, 2))  # the advice
    with pytest.raises(ValueError, match="position=-1 is outside"):
        sink_scores(CannedModel(), prompts, positions=-1)
    with pytest.raises(ValueError, match="each one once"):
        sink_scores(CannedModel(), prompts, positions=(0, 0))
    with pytest.raises(ValueError, match="position=6 is outside this 6-token"):
        sink_score(torch.zeros(1, 1, 6, 6), 6)


def test_a_rate_over_several_positions_asks_which():
    scores = sink_scores(CannedModel(), tokens(4), positions=(0, 2))
    with pytest.raises(ValueError, match=r"positions \[0, 2\].*position=0"):
        scores.rate()
    with pytest.raises(ValueError, match="position=1, but"):
        scores.plot(position=1)


def test_the_plot_leaves_the_users_style_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    ax = sink_scores(heads(identity, identity), tokens(4)).plot()
    assert dict(matplotlib.rcParams) == before
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("layer", "head")
    assert ax.images[0].get_clim() == (0, 1)
