"""Positional trends: planted ones are taken off to the last digit."""

import numpy as np
import pytest
import torch

from mechsink.sinks.spans.debiasing import (
    DebiasedPositions,
    debias_positions,
    positional_trend,
    without_trend,
)
from tests.sinks.canned import CannedModel
from tests.sinks.drawn import DrawnModel

PLACES = np.arange(6)
# Every content stands once in every place: the places' means are alike.
CONTENT = np.array([1.0, 2, 3, 4, 5, 9])
CONTENTS = np.stack([np.roll(CONTENT, shift) for shift in range(6)])
CURVED = 2 + 0.5 * PLACES + 0.25 * PLACES**2
STEPS = np.array([1.0, 1, 4, 4, 4, 20])
ANY = np.array([3.0, 9, 1, 5, 2, 8])


@pytest.mark.parametrize(
    ("fit", "planted"),
    [("polynomial", CURVED), ("isotonic", STEPS), ("mean", ANY)],
)
def test_planted_trends_are_taken_off(fit, planted):
    times = planted * CONTENTS
    trend = positional_trend(times, fit=fit)
    assert trend == pytest.approx(4 * planted)  # the contents' mean is 4
    got = without_trend(times, trend)
    assert got == pytest.approx(CONTENTS * planted.mean())
    plus = planted + CONTENTS
    trend = positional_trend(plus, fit=fit)
    assert trend == pytest.approx(4 + planted)
    got = without_trend(plus, trend, remove="subtract")
    assert got == pytest.approx(CONTENTS + planted.mean())


def test_a_low_degree_leaves_what_is_no_trend():
    # Degree 0 is the mean: nothing but the level is taken off, and put on again.
    times = CURVED * CONTENTS
    flat = positional_trend(times, degree=0)
    assert flat == pytest.approx(4 * CURVED.mean())
    assert without_trend(times, flat) == pytest.approx(times)
    # A falling trend is none to the isotonic fit: its best is a constant.
    falling = np.array([[5.0, 4, 3, 2, 1]])
    assert positional_trend(falling, fit="isotonic") == pytest.approx(3)


def test_padding_is_left_out_whatever_stands_there():
    padding = np.zeros((4, 6), bool)
    padding[0, 4:] = padding[1, 5] = padding[:, 2] = True
    seen = np.where(padding, 1000.0, CURVED[None].repeat(4, 0))
    for fit in ("polynomial", "isotonic", "mean"):
        trend = positional_trend(seen, padding, fit=fit)
        assert np.isnan(trend[2])
        assert np.delete(trend, 2) == pytest.approx(np.delete(CURVED, 2))
        got = without_trend(seen, trend, padding)
        assert (got[padding] == 0).all()
        assert got[~padding] == pytest.approx(np.delete(CURVED, 2).mean())
    # Places count by their tokens: brute least squares over the tokens themselves.
    noisy = seen + np.random.default_rng(0).normal(size=seen.shape)
    rows, at = np.nonzero(~padding)
    want = np.polyval(np.polyfit(at, noisy[rows, at], 1), PLACES)
    got = positional_trend(noisy, padding, degree=1)
    assert np.delete(got, 2) == pytest.approx(np.delete(want, 2))


def test_the_isotonic_fit_counts_tokens_not_places():
    # 4, 4 fall to 1: one level for three tokens, (4 + 4 + 1) / 3.
    seen = np.array([[4.0, 1.0, 7.0], [4.0, 99.0, 7.0]])
    padding = np.array([[False, False, False], [False, True, False]])
    trend = positional_trend(seen, padding, fit="isotonic")
    assert trend == pytest.approx([3, 3, 7])


SPAN = range(1, 7)


def to_keys(tokens):
    """The last token attends to key j by its number: a share of j's token in 10,000."""
    return (tokens / 10_000)[:, None].expand(-1, tokens.shape[1], -1)


def prompts():
    tokens = torch.zeros(6, 9, dtype=torch.long)
    tokens[:, 1:7] = torch.tensor(4 * CURVED * CONTENTS).long()
    return tokens


def test_span_tokens_are_ranked_by_content():
    got = debias_positions(DrawnModel(draw=to_keys), prompts(), SPAN)
    assert got.span == [1, 2, 3, 4, 5, 6]
    table = got.table.sort_values(["batch", "pos"])
    assert table["attention"].to_numpy() == pytest.approx(
        (4 * CURVED * CONTENTS).ravel() / 10_000
    )
    assert table["debiased"].to_numpy() == pytest.approx(
        (4 * CONTENTS * CURVED.mean()).ravel() / 10_000
    )
    want = [6, 5, 4, 3, 2, 1]  # rank of contents 1 to 9
    for shift in range(6):
        here = table[table["batch"] == shift]
        assert here["rank_after"].tolist() == np.roll(want, shift).tolist()
    first = table[table["batch"] == 1]  # 9 stands first, where attention is least
    assert first["rank_before"].tolist() == [3, 6, 5, 4, 2, 1]
    assert got.kept(1, 1) == [1] and got.kept(1, 1, plain=True) == [6]
    assert got.kept(2, 0, layer=0) == [5, 6]


def test_padding_comes_last_and_gets_nothing():
    padding = torch.zeros(6, 6, dtype=torch.bool)
    padding[1, 0] = True
    got = debias_positions(DrawnModel(draw=to_keys), prompts(), SPAN, padding=padding)
    row = got.table[(got.table["batch"] == 1) & (got.table["pos"] == 1)].iloc[0]
    assert row["attention"] == row["debiased"] == 0 and np.isnan(row["trend"])
    assert row["rank_before"] == row["rank_after"] == 6 and row["is_padding"]
    assert 1 not in got.kept(6, 1) and len(got.kept(6, 1)) == 5
    # Behind values below 0 too: content 1 stands last, where the trend is steepest.
    padding = padding.roll(4, 0)
    model = DrawnModel(draw=to_keys)
    got = debias_positions(model, prompts(), SPAN, padding=padding, remove="subtract")
    here = got.table[got.table["batch"] == 5].set_index("pos")
    assert here.loc[6, "debiased"] < 0 and here.loc[1, "debiased"] == 0
    assert here.loc[6, "rank_after"] == 5 and here.loc[1, "rank_after"] == 6


def test_saved_drawn_and_refused(tmp_path):
    model = DrawnModel(draw=to_keys)
    got = debias_positions(model, prompts(), SPAN, reading="spatial", fit="mean")
    back = DebiasedPositions.load(got.save(tmp_path / "debiased"))
    assert back.kept(2, 3) == got.kept(2, 3)
    assert got.plot().get_xlabel() == "position in the prompt"
    assert got.meta["settings"]["degree"] is None
    with pytest.raises(ValueError, match="prompts 0 to 5"):
        got.kept(1, 6)
    with pytest.raises(ValueError, match="'mean' of two prompts"):
        debias_positions(CannedModel(), torch.zeros(1, 9).long(), SPAN, fit="mean")
    with pytest.raises(ValueError, match="degree=6"):
        debias_positions(model, prompts(), SPAN, degree=6)
    with pytest.raises(ValueError, match="remove='subtract'"):
        without_trend(np.ones((1, 2)), np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"shape \(2, 6\) for 6 prompts"):
        wrong = torch.zeros(2, 6, dtype=torch.bool)
        debias_positions(model, prompts(), SPAN, padding=wrong)
