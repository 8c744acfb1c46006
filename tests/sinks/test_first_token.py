"""Intermediate sinks by cosine, and the loss against them, by hand."""

import pytest
import torch

from mechsink.sinks.first_token import FirstTokenCosine, first_token_cosine
from tests.sinks.canned import CannedModel, tokens
from toy_tasks.decorrelation import decorrelation_loss

STREAM = torch.tensor(
    [
        [[1.0, 0, 0], [3, 4, 0], [0, 2, 0], [-5, 0, 0]],
        [[0.0, 0, 7], [0, 5, 12], [0, 0, 0], [1, 0, 100]],
    ]
)
MODEL = CannedModel(stream=lambda n: STREAM[:, :n])


def test_cosines_by_hand():
    found = first_token_cosine(MODEL, tokens(4))
    table = found.table.set_index(["layer", "pos"])
    want = [0.6, 0.0, -1.0, 12 / 13, float("nan"), 100 / 10001**0.5]
    assert table["cosine"].tolist() == pytest.approx(want, nan_ok=True)
    assert table["norm"].tolist() == pytest.approx([5, 2, 5, 13, 0, 10001**0.5])
    sinks = found.sinks()[["layer", "pos"]].to_numpy().tolist()
    assert sinks == [[1, 1], [1, 3]]
    assert found.share().tolist() == pytest.approx([0, 2 / 3])
    assert found.share(0.5).tolist() == pytest.approx([1 / 3, 2 / 3])


def test_another_first_position_and_bad_input():
    shifted = first_token_cosine(MODEL, tokens(4), position=1).table
    want = [0.8, -0.6]  # layer 0: (3, 4) with (0, 2) and (-5, 0)
    assert shifted[shifted["layer"] == 0]["cosine"].tolist() == pytest.approx(want)
    assert shifted["pos"].unique().tolist() == [2, 3]
    with pytest.raises(ValueError, match="position=1 is outside prompt 0"):
        first_token_cosine(MODEL, tokens(1))
    with pytest.raises(ValueError, match=r"threshold=1\.5"):
        first_token_cosine(MODEL, tokens(4), threshold=1.5)


def test_saves_loads_and_plots(tmp_path):
    found = first_token_cosine(MODEL, tokens(4))
    back = FirstTokenCosine.load(found.save(tmp_path / "cosine"))
    assert back.table.equals(found.table) and back.threshold == 0.9
    assert found.plot().get_xlabel() == "layer"


def test_decorrelation_loss_closed_forms():
    assert decorrelation_loss(torch.eye(5)) == 0
    assert decorrelation_loss(3 * torch.eye(5)[None, :, :2].mT) == 0
    parallel = torch.tensor([[2.0, 1], [4, 2], [-2, -1]])
    assert decorrelation_loss(parallel).item() == pytest.approx(1)
    states = torch.tensor([[[1.0, 0], [3, 4], [0, 2]], [[0, 2], [1, 0], [5, 12]]])
    want = (0.36 + 0 + 0 + 144 / 169) / 4
    assert decorrelation_loss(states).item() == pytest.approx(want)
    last = (0.64 + 0) / 2  # of (0, 2), with (3, 4) and (1, 0)
    assert decorrelation_loss(states[:1], position=2).item() == pytest.approx(last)
    torch.manual_seed(0)
    random = decorrelation_loss(torch.randn(200, 50, 16)).item()
    assert random == pytest.approx(1 / 16, abs=0.005)
    with pytest.raises(ValueError, match="at least two positions"):
        decorrelation_loss(states[:, :1])


def test_decorrelation_loss_turns_states_apart():
    torch.manual_seed(0)
    states = torch.randn(3, 6, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(decorrelation_loss, (states,))
    moved = states.detach() + 2 * states.detach()[:, :1]
    before = decorrelation_loss(moved).item()
    for _ in range(100):
        moved.requires_grad_()
        (slope,) = torch.autograd.grad(decorrelation_loss(moved), moved)
        moved = moved.detach() - 20 * slope
    assert decorrelation_loss(moved).item() < 0.05 * before
    zeros = torch.zeros(2, 3, requires_grad=True)
    decorrelation_loss(zeros).backward()
    assert zeros.grad is not None and zeros.grad.isfinite().all()
