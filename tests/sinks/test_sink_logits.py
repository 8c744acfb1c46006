"""Sink logits against hand-worked scores."""

import math

import pytest
import torch

from mechsink.sinks.logits import sink_logits
from tests.sinks.canned import CannedModel, tokens

# Rows: 0 sees key 0; 1: (5, 1) -> 4; 2: (6, 2, 4) -> 3; 3: (1, 1, 2, 6) -> -2.
SCORES = torch.tensor([[9.0, 0, 0, 0], [5, 1, 0, 0], [6, 2, 4, 0], [1, 1, 2, 6]])


def model():
    return CannedModel(scores=lambda n: SCORES[None, None, :n, :n])


def test_the_mean_over_all_queries_leaves_the_first_out():
    row = sink_logits(model(), tokens(4)).table.iloc[0]
    assert row["logit"] == pytest.approx((4 + 3 - 2) / 3)
    assert row["queries"] == 3


def test_only_chosen_queries_count():
    chosen = torch.tensor([[True, False, True, False], [False, False, False, True]])
    table = sink_logits(model(), tokens(4, batch=2), queries=chosen).table
    assert table["logit"].tolist() == pytest.approx([3.0, -2.0])


def test_another_position_is_compared_with_all_its_other_keys():
    # Key 2 at query 2: 4 - (6 + 2) / 2 = 0; at query 3: 2 - (1 + 1 + 6) / 3.
    table = sink_logits(model(), tokens(4), positions=(2,)).table
    assert table["logit"].tolist() == pytest.approx([(0 + 2 - 8 / 3) / 2])


def test_nothing_to_compare_is_nan_not_zero():
    row = sink_logits(model(), tokens(1)).table.iloc[0]
    assert math.isnan(row["logit"]) and row["queries"] == 0
    none = torch.zeros(1, 4, dtype=torch.bool)
    assert math.isnan(sink_logits(model(), tokens(4), queries=none).table["logit"][0])


def test_prompts_of_two_lengths_take_a_mask_each():
    prompts = [tokens(4), tokens(2)]
    masks = [torch.ones(1, n, dtype=torch.bool) for n in (4, 2)]
    table = sink_logits(model(), prompts, queries=masks).table
    assert table["logit"].tolist() == pytest.approx([5 / 3, 4.0])
    with pytest.raises(ValueError, match=r"shapes \[\[1, 4\]\], tokens"):
        sink_logits(model(), prompts, queries=masks[0])


def test_the_plot_is_white_at_zero():
    ax = sink_logits(model(), tokens(4)).plot()
    low, high = ax.images[0].get_clim()
    assert low == -high == pytest.approx(-5 / 3)
