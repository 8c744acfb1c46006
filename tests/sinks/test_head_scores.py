"""Head scores: planted circuits, patterns drawn by hand, closed forms of even heads."""

import numpy as np
import pandas as pd
import pytest
import torch

from mechsink.interventions.attention_edits import on_heads, zero_head
from mechsink.models.load import load_model
from mechsink.models.toy import ToyModel
from mechsink.sinks import shares
from mechsink.sinks.head_scores import HeadScores, head_scores, repeated_tokens
from mechsink.sites import Site
from tests.models.backends import load
from tests.sinks.canned import CannedModel, causal_relu
from toy_tasks.planted import PLANTED

#               0  1  2  3  4  5  6
TEXT = torch.tensor([[9, 1, 2, 3, 1, 2, 2]])
# Looked for, by hand (duplicate; induction = after a copy):
#   4 (a 1): 1; 2.   5 (a 2): 2; 3.   6 (a 2): 2, 5; 3 (the 6 after 5 is itself).


def drawn(*heads):
    """A model of one layer whose heads have these patterns, rows not yet given: <s>."""
    patterns = []
    for rows in heads:
        pattern = torch.zeros(7, 7, dtype=torch.float64)
        pattern[:, 0] = 1
        for query, weights in rows.items():
            pattern[query] = 0
            for key, weight in weights.items():
                pattern[query, key] = weight
        patterns.append(pattern)
    scores = torch.stack(patterns).log().clamp(min=-200)[None]
    return CannedModel(
        scores=lambda n: scores[..., :n, :n], values=lambda n: torch.ones(1, 1, n, 1)
    )


def row(result, kind, head=0, layer=0, batch=0):
    table = result.table
    chosen = (table["kind"] == kind) & (table["head"] == head)
    chosen &= (table["layer"] == layer) & (table["batch"] == batch)
    (found,) = table[chosen].to_dict("records")
    return found


PREVIOUS = {i: {i - 1: 1.0} for i in range(1, 7)}
DUPLICATE = {4: {1: 1.0}, 5: {2: 1.0}, 6: {2: 0.5, 5: 0.5}}
INDUCTION = {4: {2: 1.0}, 5: {3: 1.0}, 6: {3: 1.0}}
CURRENT = {i: {i: 1.0} for i in range(7)}
HALF = {4: {1: 0.5, 2: 0.5}, 5: {2: 0.5, 3: 0.5}, 6: {2: 0.5, 3: 0.5}}


@pytest.mark.parametrize("most", [2**24, 20])
def test_patterns_drawn_by_hand(most, monkeypatch):
    monkeypatch.setattr(shares, "MOST", most)  # 20: a key at a time
    heads = (PREVIOUS, DUPLICATE, INDUCTION, CURRENT, {}, HALF)
    got = head_scores(drawn(*heads), TEXT)
    assert [row(got, "previous", h)["score"] for h in range(6)] == pytest.approx(
        # At query 1 the token before is <s>; 5 is also a copy, seen by half of 6.
        [1, (1 + 0.5) / 6, 1 / 6, 0, 1 / 6, 1 / 6]
    )
    assert [row(got, "duplicate", h)["score"] for h in range(6)] == pytest.approx(
        [1 / 3, 1, 0, 0, 0, 0.5]  # query 6 looks at 5, a copy
    )
    assert [row(got, "induction", h)["score"] for h in range(6)] == pytest.approx(
        [0, 0, 1, 0, 0, 0.5]
    )
    assert [row(got, "current", h)["score"] for h in range(6)] == pytest.approx(
        [0, 0, 0, 1, 0, 0]
    )
    assert [row(got, "sink", h)["score"] for h in range(6)] == pytest.approx(
        [1 / 6, 1 / 2, 1 / 2, 0, 1, 1 / 2]
    )
    names = got.categories()["category"].tolist()
    assert names == ["previous", "duplicate", "induction", "current", "sink", "mixed"]
    assert got.heads("mixed") == [(0, 5)]
    assert got.heads("mixed", ahead=1.0) == []
    assert got.heads("none", least=1.0) == [(0, 5)]


def test_an_even_head_scores_the_reference():
    got = head_scores(CannedModel(), TEXT)
    later = [1 / n for n in range(2, 8)]
    want = {
        "previous": np.mean(later),
        "duplicate": (1 / 5 + 1 / 6 + 2 / 7) / 3,
        "induction": (1 / 5 + 1 / 6 + 1 / 7) / 3,
        "current": np.mean(later),
        "sink": np.mean(later),
    }
    for kind, value in want.items():
        found = row(got, kind)
        assert found["score"] == pytest.approx(value)
        assert found["reference"] == pytest.approx(value)
        assert found["queries"] == (3 if kind in ("duplicate", "induction") else 6)
    assert got.means()["excess"].to_numpy() == pytest.approx(0)
    assert got.categories()["category"].tolist() == ["none"]


def test_nothing_to_find_is_not_measured():
    got = head_scores(CannedModel(), [torch.arange(4)[None], TEXT])
    for kind in ("duplicate", "induction"):
        empty = row(got, kind)
        assert np.isnan(empty["score"]) and np.isnan(empty["reference"])
        assert empty["queries"] == 0
    alone = head_scores(CannedModel(), TEXT)
    both = got.means().set_index("kind")
    of = alone.means().set_index("kind")
    assert both.loc["duplicate", "score"] == of.loc["duplicate", "score"]
    never = head_scores(CannedModel(), torch.arange(4)[None])
    assert never.categories()["induction"].isna().all()


def test_a_token_after_itself_is_no_induction():
    # Query 1 of "a a": the copy is before, what followed it is the query itself.
    same = torch.tensor([[5, 5, 5]])
    got = head_scores(CannedModel(), same)
    assert row(got, "duplicate")["queries"] == 2
    assert row(got, "induction")["queries"] == 1  # query 2, key 1
    assert row(got, "induction")["reference"] == pytest.approx(1 / 3)


def test_weights_that_do_not_sum_to_one_count_as_shares():
    scores = torch.tensor([[1.0, 0, 0], [3, 1, 0], [0, 2, 6]])
    model = CannedModel(scores=lambda n: scores[None, None], normalise=causal_relu)
    got = head_scores(model, torch.tensor([[1, 2, 3]]))
    assert row(got, "previous")["score"] == pytest.approx((3 / 4 + 2 / 8) / 2)
    assert row(got, "current")["score"] == pytest.approx((1 / 4 + 6 / 8) / 2)


def planted(name):
    case = PLANTED[name](n_prompts=24, seed=1)
    return head_scores(ToyModel(case.model.eval()), case.clean), case


@pytest.mark.parametrize("variant", ["induction", "induction-grouped", "induction-rms"])
def test_planted_induction_heads_are_named(variant):
    got, _ = planted(variant)
    names = got.categories().set_index(["layer", "head"])["category"]
    assert names[0, 0] == "previous"
    assert names[1, 0] == "induction"
    assert (names == "induction").sum() == 1 and (names == "previous").sum() == 1
    # One of 10 keys scores 5, the rest 0, if layer 0 had looked back with all it has.
    limit = np.exp(5) / (np.exp(5) + 9)
    score = got.means().set_index(["layer", "head", "kind"])["score"]
    assert 0.8 < score[1, 0, "induction"] <= limit


def test_a_planted_duplicate_head_is_named_though_it_mostly_rests():
    got, _ = planted("duplicate")
    excess = got.categories().set_index(["layer", "head"])
    assert excess.loc[(0, 0), "category"] == "duplicate"
    assert excess.loc[(0, 0), "sink"] > 0.5
    assert (excess["category"] == "duplicate").sum() == 1


def test_a_planted_backcopy_head_is_at_rest_on_most_tokens():
    got, case = planted("backcopy")
    # Triggers a, e look back with e^5 / (e^5 + i), others at <s> with e^10 / (...).
    is_trigger = (case.clean[:, 1:] == 0) | (case.clean[:, 1:] == 4)
    share = is_trigger.float().mean().item()
    score = got.means().set_index(["head", "kind"])["score"]
    assert score[0, "previous"] == pytest.approx(share, abs=0.1)
    assert score[0, "sink"] == pytest.approx(1 - share, abs=0.1)
    assert got.heads("sink") == [(0, 0)]


def test_repeated_tokens_have_closed_forms():
    model = load("toy")
    made = repeated_tokens(model, 5, length=6, first=[7], seed=3)
    assert made.shape == (5, 13) and (made[:, 0] == 7).all()
    assert torch.equal(made[:, 1:7], made[:, 7:])
    assert all(len(set(line[1:7])) == 6 for line in made.tolist())
    assert torch.equal(made, repeated_tokens(model, 5, length=6, first=[7], seed=3))
    blocks = made[:, 1:]
    got = head_scores(model, blocks)
    want = np.mean([1 / (i + 1) for i in range(6, 12)])
    for kind in ("duplicate", "induction"):
        assert row(got, kind)["reference"] == pytest.approx(want)
        assert row(got, kind)["queries"] == 6


@pytest.mark.first_case
@pytest.mark.parametrize("name", ["toy", "llama"])
def test_a_models_own_pattern_is_read(name):
    model = load(name)
    tokens = torch.tensor([[3, 4, 5, 3, 4, 5, 6]])
    got = head_scores(model, tokens)
    pattern = model.run(tokens, read=[Site("pattern", 1)]).cache[Site("pattern", 1)]
    after = (pattern[0, 2, 3, 1] + pattern[0, 2, 4, 2] + pattern[0, 2, 5, 3]) / 3
    assert row(got, "induction", head=2, layer=1)["score"] == pytest.approx(
        after.item(), abs=1e-5
    )


def test_saved_drawn_and_refused(tmp_path):
    got = head_scores(drawn(PREVIOUS, {}), TEXT)
    back = HeadScores.load(got.save(tmp_path / "heads"))
    pd.testing.assert_frame_equal(back.categories(), got.categories())
    ax = got.plot(kind="previous")
    assert ax.get_xlabel() == "layer"
    with pytest.raises(ValueError, match="kind='next'"):
        got.plot(kind="next")
    with pytest.raises(ValueError, match=r"least=0\.0"):
        got.categories(least=0.0)
    with pytest.raises(ValueError, match="one token"):
        head_scores(CannedModel(), TEXT[:, :1])
    with pytest.raises(ValueError, match="position=7 is outside"):
        head_scores(CannedModel(), TEXT, sink=7)
    small = ToyModel(PLANTED["induction"](n_prompts=3).model.eval())  # 10 tokens
    assert repeated_tokens(small, 1, length=4, first=[11]).shape == (1, 9)
    with pytest.raises(ValueError, match="Allowed: length 3 to 4"):
        repeated_tokens(small, 1, length=6, first=[11])


@pytest.mark.pretrained
def test_smollm2s_induction_heads_carry_repetition():
    """Zeroed, they raise the loss of the second block alone; heads at rest do not."""
    model = load_model("smollm2")
    tokens = repeated_tokens(model, 10, length=24)
    got = head_scores(model, tokens)
    best = got.categories().nlargest(8, "induction")
    heads = list(zip(best["layer"].tolist(), best["head"].tolist(), strict=True))
    assert set(heads[:4]) == {(18, 6), (17, 4), (17, 3), (17, 5)}
    assert best["induction"].iloc[0] > 0.7 and set(best["category"]) == {"induction"}
    at_rest = [pair for pair in got.heads("sink") if 16 <= pair[0] <= 23][::4][:8]
    assert len(at_rest) == 8

    def losses(zeroed):
        edit = on_heads(zero_head(), zeroed)
        logits = model.run(tokens, edit=edit).logits[:, :-1].log_softmax(-1)
        nll = -logits.gather(-1, tokens[:, 1:, None])[..., 0]
        half = tokens.shape[1] - 24
        return nll[:, : half - 1].mean().item(), nll[:, half:].mean().item()

    first, second = losses([])
    first_without, second_without = losses(heads)
    assert abs(first_without - first) < 0.3
    assert second_without - second > 5  # 3.1 to 12.0 nats when written
    assert losses(at_rest)[1] - second < 0.5
