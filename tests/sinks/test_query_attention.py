"""Attention by group of queries against whole patterns."""

import pytest
import torch

from mechsink.sinks import queries
from mechsink.sinks.queries import query_attention
from tests.sinks.canned import CannedModel, causal_relu, causal_softmax, tokens


@pytest.mark.parametrize("block", [2, 256])
def test_groups_by_hand(block, monkeypatch):
    monkeypatch.setattr(queries, "BLOCK", block)
    torch.manual_seed(0)
    scores = torch.randn(2, 3, 7, 7, dtype=torch.float64)
    pattern = causal_softmax(scores)
    chosen = torch.tensor([[0, 1, 0, 1, 1, 0, 0], [0] * 7]).bool()
    groups = {"trigger": chosen, "other": ~chosen}
    values = torch.ones(2, 1, 7, 1)
    model = CannedModel(scores=lambda n: scores, values=lambda n: values)
    table = query_attention(model, tokens(7, batch=2), groups).table
    row = table.query("batch == 0 and group == 'trigger' and layer == 1 and head == 2")
    of = pattern[1, 2]
    assert row["queries"].item() == 3
    assert row["sink"].item() == pytest.approx(of[[1, 3, 4], 0].mean().item())
    want = (of[1, 0] + of[3, 2] + of[4, 3]) / 3
    assert row["previous"].item() == pytest.approx(want.item())
    empty = table.query("batch == 1 and group == 'trigger'")
    assert empty[["sink", "previous"]].isna().all(axis=None)
    assert (empty["queries"] == 0).all()


def test_without_a_softmax_the_share_is_that_of_sizes():
    weights = torch.tensor([[1.0, 0, 0], [3, 1, 0], [0, 2, 4]])
    scores = weights * torch.tensor([1, 2, 3])[:, None]  # relu divides by the rank
    model = CannedModel(scores=lambda n: scores[None, None], normalise=causal_relu)
    groups = {"all": torch.tensor([[False, True, True]])}
    row = query_attention(model, tokens(3), groups).table.iloc[0]
    assert row["sink"] == pytest.approx(3 / 2)
    assert row["share"] == pytest.approx((3 / 4 + 0) / 2)
    assert row["row_sum"] == pytest.approx((4 + 6) / 2)
    assert row["previous"] == pytest.approx((3 + 2) / 2)


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"masks of 'x' have shapes \[\[1, 3\]\]"):
        groups = {"x": torch.ones(1, 3, dtype=torch.bool)}
        query_attention(CannedModel(), tokens(4), groups)
