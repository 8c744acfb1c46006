"""Attention edits: row-sum laws, closed forms, and one call on a model."""

import pytest
import torch

from mechsink.interventions import attention_edits as edits
from mechsink.sites import Site
from tests.models.backends import load

SCORES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)).double()
HIDDEN = torch.ones(6, 6, dtype=torch.bool).triu(1)
PATTERN = SCORES.masked_fill(HIDDEN, -torch.inf).softmax(-1)
ONES = torch.ones(2, 3, 6, dtype=torch.float64)


@pytest.mark.parametrize(
    "edit",
    [
        edits.zero_tuning(2.5),
        edits.act_calibration(),
        edits.move_to(0),
        edits.move_to(3),
        edits.soft_pag(0.3),
        edits.isolate([0, 1, 1, 2, 2, 2]),
        lambda p: edits.redistribute(p, [0, 2], 0.6),
    ],
)
def test_rows_still_sum_to_one_and_stay_causal(edit) -> None:
    new = edit(PATTERN)
    torch.testing.assert_close(new.sum(-1), ONES)
    assert (new[..., HIDDEN] == 0).all()
    assert (new >= 0).all()


def test_zero_tuning_is_log_gamma_on_the_score() -> None:
    scores = SCORES.clone()
    scores[..., 0] += torch.log(torch.tensor(2.5))
    want = scores.masked_fill(HIDDEN, -torch.inf).softmax(-1)
    torch.testing.assert_close(edits.zero_tuning(2.5)(PATTERN), want)
    torch.testing.assert_close(edits.zero_tuning(1.0)(PATTERN), PATTERN)


def test_act_by_hand() -> None:
    # Mean attention from each key on: key 0: (1+.5+.2)/3, key 1: (.5+.6)/2, key 2: .2.
    row = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0.2, 0.6, 0.2]])[None]
    # theta .3: sinks 0 and 1; 0 keeps, 1 gives .6 of its own to the others.
    want = torch.tensor(
        [[1.0, 0, 0], [0.5 * 1.6, 0.2, 0], [0.2 * 1.9, 0.24, 0.2 * 1.9]]
    )[None]
    torch.testing.assert_close(edits.act_calibration(0.4, 0.3)(row), want)
    torch.testing.assert_close(edits.act_calibration(0.4, 0.9)(row), row)  # one sink
    torch.testing.assert_close(edits.act_calibration()(row[:, 2:]), row[:, 2:])


def test_redistribution_by_hand() -> None:
    row = torch.tensor([[0.5, 0.3, 0.2]])
    got = edits.redistribute(row, [0], 0.6)  # .2 moves, 3 to 2
    torch.testing.assert_close(got, torch.tensor([[0.3, 0.42, 0.28]]))
    only_last = torch.tensor([False, False, True])
    got = edits.redistribute(row, [0], 0.6, to=only_last)
    torch.testing.assert_close(got, torch.tensor([[0.3, 0.3, 0.4]]))
    alone = torch.tensor([[1.0, 0.0, 0.0]])  # nobody to give to
    torch.testing.assert_close(edits.redistribute(alone, [0], 0.6), alone)


def test_gates_and_masks_state_their_law() -> None:
    torch.testing.assert_close(edits.gate(PATTERN, 0.5).sum(-1), ONES / 2)
    assert (edits.zero_head()(PATTERN) == 0).all()
    visible = torch.ones(6, 6, dtype=torch.bool)
    visible[:, 0] = False
    left = edits.mask(PATTERN, visible, renormalise=False)
    torch.testing.assert_close(left.sum(-1), ONES - PATTERN[..., 0])
    whole = edits.mask(PATTERN, visible)
    assert whole[..., 0, :].sum() == 0  # the first query saw only key 0
    torch.testing.assert_close(
        edits.soft_pag(1.0)(PATTERN)[0, 0], torch.eye(6).double()
    )


@pytest.mark.parametrize("name", ["llama", "toy"])
def test_edits_act_on_one_call_alone(name: str) -> None:
    model = load(name)
    tokens = torch.arange(6)[None]
    before = model.run(tokens).logits
    site = Site("pattern", 1, head=2)
    run = model.run(tokens, edit={site: edits.move_to(0)}, read=[site, Site("z", 1, 2)])
    assert (run.cache[site][:, :, 0] == 1).all()
    z = run.cache[Site("z", 1, 2)]  # every query now reads the value of token 0
    torch.testing.assert_close(z, z[:, :1].expand_as(z))
    assert torch.equal(model.run(tokens).logits, before)
