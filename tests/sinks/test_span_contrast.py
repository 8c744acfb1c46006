"""Contrasted maps: flat for equal ones, by hand, and a planted question."""

import pytest
import torch

from mechsink.models.toy import ToyModel
from mechsink.sinks.spans.contrast import SpanContrast, map_contrast, span_contrast
from mechsink.sites import Site
from tests.models.backends import SMALL
from tests.sinks.drawn import DrawnModel
from toy_tasks import ToyConfig, ToyTransformer

MAP = torch.tensor([0.5, 0.01, 0.0, 0.2]).double()


@pytest.mark.parametrize("floor", [0.0, 0.1, 5.0])
def test_equal_maps_give_a_flat_contrast(floor):
    for specific in (MAP, 0.3 * MAP):  # less attention to the span, the same shape
        got = map_contrast(specific, MAP, floor=floor)
        torch.testing.assert_close(got, torch.full((4,), 0.25).double())


def test_contrast_by_hand():
    specific = torch.tensor([[1.0, 1, 2, 4], [2, 2, 2, 2]]).double()
    general = torch.tensor([[4.0, 2, 1, 1], [2, 2, 2, 2]]).double()
    ratio = torch.tensor([1 / 4, 1 / 2, 2, 4]).double()
    plain = map_contrast(specific, general, floor=0.0)
    torch.testing.assert_close(plain[0], ratio / ratio.sum())
    torch.testing.assert_close(plain[1], torch.full((4,), 0.25).double())
    # Shares 1/8, 1/8, 2/8, 4/8; floor 0.5 of an even share 1/4 is 1/8.
    floored = torch.tensor([2 / 5, 2 / 3, 3 / 2, 5 / 2]).double()
    got = map_contrast(specific, general, floor=0.5)
    torch.testing.assert_close(got[0], floored / floored.sum())
    # Only the order of a huge floor is left.
    wide = map_contrast(specific, general, floor=1e6)[0]
    torch.testing.assert_close(wide, torch.full((4,), 0.25).double(), atol=1e-6, rtol=0)
    assert map_contrast(torch.zeros(3), torch.ones(3)).isnan().all()


SPAN = range(1, 5)
CONTEXT = [9, 1, 1, 1, 1]
ASKED, GENERAL = 7, 3


def drawn(tokens):
    """Key 4 gets most in any case; the question ASKED makes four times of key 2."""
    base = torch.tensor([0.3, 0.05, 0.05, 0.1, 0.4]).double()
    pattern = torch.zeros(len(tokens), tokens.shape[1], tokens.shape[1]).double()
    pattern[:, :, :5] = base
    pattern[tokens[:, -1] == ASKED, :, 2] *= 4
    return pattern


def test_a_planted_question_stands_out():
    specific = torch.tensor([[*CONTEXT, 8, ASKED], [*CONTEXT, 8, GENERAL]])
    general = torch.tensor([[*CONTEXT, GENERAL]])  # of another length, for both
    got = span_contrast(DrawnModel(draw=drawn), specific, general, SPAN, floor=0.0)
    ratio = torch.tensor([1.0, 4, 1, 1]).double() / 7
    torch.testing.assert_close(got.contrast(0), ratio)
    torch.testing.assert_close(got.contrast(1), torch.full((4,), 0.25).double())
    here = got.table[got.table["batch"] == 0]
    assert here["specific"].tolist() == pytest.approx([0.05, 0.2, 0.1, 0.4])
    assert here["general"].tolist() == pytest.approx([0.05, 0.05, 0.1, 0.4])
    assert got.kept(0.25) == [2] and got.kept(0.01) == [2]
    assert got.kept(0.5) == [1, 2]  # equals in the order of the span
    (site,) = edits = got.edits([0], 0.25)
    assert site == Site("pattern", 0)
    new = edits[site](torch.ones(1, 1, 1, 7).double() / 7)[0, 0, 0]
    want = torch.tensor([1, 0, 1, 0, 0, 1, 1]).double() / 4
    torch.testing.assert_close(new, want)


def test_the_same_question_is_flat_on_a_toy():
    torch.manual_seed(0)
    model = ToyModel(ToyTransformer(ToyConfig(**SMALL)).double().eval())
    tokens = torch.arange(16).reshape(2, 8) * 11 % 80
    got = span_contrast(model, tokens, tokens, SPAN)
    assert got.table["contrast"].to_numpy() == pytest.approx(0.25)
    assert (got.table["specific"] == got.table["general"]).all()
    other = tokens.clone()
    other[:, 6:] = 5
    changed = span_contrast(model, tokens, other, SPAN)
    assert changed.table["contrast"].std() > 1e-4
    sums = changed.table.groupby(["batch", "layer"])["contrast"].sum()
    assert sums.to_numpy() == pytest.approx(1)


def test_saved_drawn_and_refused(tmp_path):
    model = DrawnModel(draw=drawn)
    specific = torch.tensor([[*CONTEXT, 8, ASKED]])
    got = span_contrast(model, specific, torch.tensor([[*CONTEXT, GENERAL]]), SPAN)
    back = SpanContrast.load(got.save(tmp_path / "contrast"))
    assert back.kept(0.25) == [2]
    assert got.plot().get_ylabel() == "share of the span's attention"
    with pytest.raises(ValueError, match="equal up to the end of the span, position 4"):
        span_contrast(model, specific, torch.tensor([[*CONTEXT[:-1], 2, 3]]), SPAN)
    with pytest.raises(ValueError, match="1 specific and 2 general"):
        span_contrast(model, specific, specific.repeat(2, 1), SPAN)
    with pytest.raises(ValueError, match="share=0"):
        got.kept(0.0)
    with pytest.raises(ValueError, match="layers 0 to 0"):
        got.contrast(1)
    with pytest.raises(ValueError, match="floor=-1"):
        map_contrast(MAP, MAP, floor=-1.0)
