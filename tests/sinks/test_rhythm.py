"""Attention rhythm: closed forms, loops over the definition, calibrated chance."""

import numpy as np
import pandas as pd
import pytest
import torch

from mechsink.sinks import shares
from mechsink.sinks.rhythm.attention import (
    AttentionRhythm,
    attention_rhythm,
    credit_weights,
)
from mechsink.sinks.rhythm.coupling import RhythmCoupling, coupling_test
from mechsink.sinks.rhythm.series import fai, head_span, top_share, waad, waad_peaks
from tests.models.backends import load
from tests.sinks.canned import CannedModel, causal_softmax

N = 40
EVEN = torch.ones(N, N).double().tril() / torch.arange(1, N + 1)[:, None]
IDENTITY = torch.eye(N).double()
FIRST = torch.zeros(N, N).double()
FIRST[:, 0] = 1
T = torch.arange(N).double()


def test_closed_forms():
    torch.testing.assert_close(waad(EVEN, window=N), T / 2)
    assert (waad(IDENTITY) == 0).all()
    torch.testing.assert_close(waad(FIRST, window=7), T.clamp(max=7))
    got = fai(IDENTITY)
    assert (got[: N - 10] == 0).all() and got[N - 10 :].isnan().all()
    assert fai(FIRST)[0] == 1 and (fai(FIRST)[1 : N - 10] == 0).all()
    assert fai(FIRST, 1, None)[0] == 1
    spans = head_span(torch.stack([EVEN, IDENTITY, FIRST]))
    torch.testing.assert_close(spans, torch.tensor([39 / 4, 0, 39 / 2]).double())
    # An even head over W = 2: (0 + 1 + 2 * (t - 1)) / (t + 1) for t >= 1.
    want = torch.cat([torch.zeros(1), (2 * T[1:] - 1) / (T[1:] + 1)])
    torch.testing.assert_close(waad(EVEN, window=2), want)


def test_against_loops_over_the_definition():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 9, 9, generator=generator).double()
    pattern = causal_softmax(scores)
    low, high, window = 2, 4, 3
    for head in range(2):
        a = pattern[head]
        for t in range(9):
            want = sum(a[t, s] * min(t - s, window) for s in range(t + 1))
            assert waad(pattern, window)[head, t] == pytest.approx(float(want))
        for s in range(9):
            queries = range(s + low, min(8, s + high) + 1)
            got = fai(pattern, low, high)[head, s]
            if not queries:
                assert got.isnan()
            else:
                want = np.mean([float(a[t, s]) for t in queries])
                assert float(got) == pytest.approx(want)


def test_peaks_and_top_shares():
    series = torch.tensor([5.0, 1, 3, 2, 4, 4, 4, 0, 6]).double()
    assert waad_peaks(series).nonzero()[:, 0].tolist() == [2, 5]  # no ends
    # Rises: -4 2 -1 2 0 0 -4 6; the .8 quantile of eight lies at the second: 2.
    assert waad_peaks(series, "jump", 0.2).nonzero()[:, 0].tolist() == [8]
    assert waad_peaks(series, "jump", 0.5).nonzero()[:, 0].tolist() == [2, 4, 8]
    assert not waad_peaks(torch.zeros(9).double(), "jump").any()
    known = torch.tensor([torch.nan, 1, 2, 3, 4, 5]).double()
    assert top_share(known, 0.2).nonzero()[:, 0].tolist() == [5]
    assert top_share(known, 0.4).nonzero()[:, 0].tolist() == [4, 5]
    assert not top_share(torch.ones(4)).any()
    assert not top_share(torch.full((3,), torch.nan)).any()


# Ten heads in two layers. Spans grow with the number that the head looks back.
def ladder(n):
    patterns = torch.zeros(2, 5, n, n, dtype=torch.float64)
    for number in range(10):
        for t in range(n):
            patterns[number // 5, number % 5, t, max(t - 2 * number, 0)] = 1
    return patterns.log().clamp(min=-200)


LADDER = CannedModel(scores=ladder, values=lambda n: torch.ones(2, 1, n, 1))


@pytest.mark.parametrize("most", [2**24, 600])
def test_heads_are_split_by_span_over_all_layers(most, monkeypatch):
    monkeypatch.setattr(shares, "MOST", most)  # 600: three keys at a time
    got = attention_rhythm(LADDER, torch.zeros(1, N, dtype=torch.long))
    heads = got.heads.set_index(["layer", "head"])
    assert [*heads.index[heads["group"] == "local"]] == [(0, 0), (0, 1), (0, 2)]
    assert [*heads.index[heads["group"] == "global"]] == [(1, 2), (1, 3), (1, 4)]
    # Head 1 looks back 2: 0 + 1 + 2 * 38; all attention but that to <s>: 37 * 2.
    assert heads.loc[(0, 1), "span"] == pytest.approx(77 / 40)
    assert heads.loc[(0, 1), "span_rest"] == pytest.approx(2)
    assert heads.loc[(0, 1), "sink"] == pytest.approx(3 / 40)
    # Local heads look back 0, 2, 4: mean 2 from position 4 on.
    waads = got.series("waad")
    assert waads[4:].numpy() == pytest.approx(2)
    assert waads[:4].numpy() == pytest.approx([0, 2 / 3, 4 / 3, 5 / 3])
    # Global heads look back 14, 16, 18: each later token is looked at once by each.
    fais = got.series("fai")
    assert fais[12] == pytest.approx(1 / 18)  # queries 22 to 39, of which 26, 28, 30
    assert fais[N - 10 :].isnan().all() and not fais[: N - 10].isnan().any()
    assert got.series("fai_plain")[12] == pytest.approx(1 / 27)
    assert got.series("fai_plain").isnan().tolist() == [False] * (N - 1) + [True]
    # Token 0 gets 14 - 9, 16 - 9, 18 - 9 of the 30 queries 10 to 39, ends included.
    assert fais[0] == pytest.approx((5 + 7 + 9) / 3 / 30)
    assert not got.table["anchor"][0] and fais.nan_to_num().argmax() == 0


def test_without_the_sink_other_heads_are_global():
    # Head 0 rests on <s>, head 1 looks two back, head 2 one back, head 3 five back.
    def scores(n):
        patterns = torch.zeros(1, 4, n, n).double()
        patterns[0, 0, :, 0] = 0.9
        patterns[0, 0] += 0.1 * torch.eye(n)
        patterns[0, 0, 0, 0] = 1
        for head, back in ((1, 2), (2, 1), (3, 5)):
            for t in range(n):
                patterns[0, head, t, max(t - back, 0)] = 1
        return patterns.log().clamp(min=-200)

    model = CannedModel(scores=scores)
    tokens = torch.zeros(1, N, dtype=torch.long)
    plain = attention_rhythm(model, tokens, share=0.25).heads["group"].tolist()
    assert plain == ["global", "", "local", ""]
    rest = attention_rhythm(model, tokens, share=0.25, split_by="span_rest").heads
    assert rest["group"].tolist() == ["local", "", "", "global"]


def test_prompts_of_two_lengths_and_saving(tmp_path):
    model = load("toy")
    tokens = [torch.arange(30)[None] % 80, (torch.arange(48) * 7 % 80).reshape(2, 24)]
    got = attention_rhythm(model, tokens, window=4, low=3)
    sizes = got.table.groupby("batch").size().tolist()
    assert sizes == [30, 24, 24]
    assert got.series("fai", 0).isnan().sum() == got.series("fai", 2).isnan().sum() == 3
    alone = attention_rhythm(model, tokens[0], window=4, low=3)
    same = got.heads["group"].tolist() == alone.heads["group"].tolist()
    if same:  # then the same heads make the same series
        torch.testing.assert_close(got.series("waad"), alone.series("waad"))
    back = AttentionRhythm.load(got.save(tmp_path / "rhythm"))
    torch.testing.assert_close(
        back.series("fai", 2), got.series("fai", 2), equal_nan=True
    )
    pd.testing.assert_frame_equal(back.heads, got.heads)
    assert got.plot(prompt=1).get_xlabel() == "position"
    coupled = got.coupling(within=2)
    assert coupled.table["positions"].tolist() == [30 - 3 - 4, 24 - 3 - 4, 24 - 3 - 4]
    again = RhythmCoupling.load(coupled.save(tmp_path / "coupling"))
    assert again.p_value == coupled.p_value and again.meta["settings"]["window"] == 4
    assert "0.7" in str(coupled.plot().patches[0].get_facecolor())


def some(*places, n=12):
    series = torch.zeros(n, dtype=torch.bool)
    series[list(places)] = True
    return series


def test_coupling_by_hand():
    # Peaks 2, 6; anchors 3, 9. Within 1: 2 is followed, 6 is not.
    got = coupling_test([some(2, 6)], [some(3, 9)], within=1)
    assert got.share == 0.5 and got.table["hits"].tolist() == [1]
    # Each anchor makes 2 of 12 shifts a hit for each peak: 2 * 2 * 2 / 12 / 2 peaks.
    assert got.expected == pytest.approx(1 / 3)
    # near = 2, 3, 8, 9, shifted by d: hits for d = 0: 1; count shifts with at least 1.
    near, hits = {2, 3, 8, 9}, []
    for d in range(12):
        moved = {(t + d) % 12 for t in near}
        hits.append(len({2, 6} & moved))
    assert got.p_value == sum(h >= 1 for h in hits) / 12
    assert got.null["share"].tolist() == [h / 2 for h in hits]
    # The end is followed by the beginning.
    assert coupling_test([some(11)], [some(0)], within=1).share == 1
    idle = coupling_test([some()], [some(3)])
    assert np.isnan(idle.p_value) and np.isnan(idle.share)
    with pytest.raises(ValueError, match=r"lengths \[12\]"):
        coupling_test([some()], [some(n=5)])
    with pytest.raises(ValueError, match="within=11"):
        coupling_test([some()], [some()], within=11)


def noise(generator, n=120):
    """Smoothed noise: neighbours alike, as in WAAD and FAI."""
    white = generator.normal(size=n + 4)
    return torch.tensor(np.convolve(white, np.ones(5) / 5, mode="valid"))


@pytest.mark.matrix
def test_independent_series_are_called_coupled_at_the_nominal_rate():
    generator = np.random.default_rng(0)
    for n_prompts in (1, 3):
        p_values = []
        for _ in range(100):
            peaks = [waad_peaks(noise(generator)) for _ in range(n_prompts)]
            anchors = [top_share(noise(generator)) for _ in range(n_prompts)]
            p_values.append(coupling_test(peaks, anchors, within=3).p_value)
        false = np.mean(np.array(p_values) < 0.05)
        assert false <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 100)
        assert 0.35 < np.mean(p_values) < 0.75  # nor does it never reject


def test_planted_coupling_is_found():
    generator = np.random.default_rng(1)
    found = []
    for _ in range(40):
        back, ahead = noise(generator), 0.5 * noise(generator)
        peaks = waad_peaks(back)
        ahead[(peaks.nonzero()[:, 0] + 2) % len(ahead)] += 1.0
        found.append(coupling_test([peaks], [top_share(ahead)], within=2).p_value)
    assert np.mean(np.array(found) < 0.05) > 0.8


def test_credit_goes_to_rises_and_anchors():
    table = pd.DataFrame(
        {
            "batch": 0,
            "pos": range(6),
            "waad": [0.0, 1.0, 0.5, 3.5, 3.0, 2.0],
            "fai": [0.9, 0.1, 0.2, 0.3, 0.8, np.nan],
            "fai_plain": 0.0,
            "preplan": False,
            "anchor": False,
        }
    )
    rhythm = AttentionRhythm(table, {}, pd.DataFrame(), window=10, sink=0)
    want = {
        "preplan": [1, 1, 1, 1.5, 1, 1],
        "anchor": [1, 1, 1, 1, 1.5, 1],  # <s> has most, and is none
        "both": [1, 1, 1, 1.5, 1.5, 1],
    }
    for on, factors in want.items():
        assert credit_weights(rhythm, 0.5, on=on, top=0.2).tolist() == factors
    assert credit_weights(rhythm, 0.0).tolist() == [1] * 6
    # From 4 on: no rise there, and one token with an FAI, level with the quantile.
    assert credit_weights(rhythm, first=4).tolist() == [1] * 6


def test_wrong_arguments_are_refused():
    tokens = torch.zeros(1, 20, dtype=torch.long)
    with pytest.raises(ValueError, match=r"share=0\.6 of 10 heads"):
        attention_rhythm(LADDER, tokens, share=0.6)
    with pytest.raises(ValueError, match="of 1 heads"):
        attention_rhythm(CannedModel(), tokens)
    with pytest.raises(ValueError, match="window=0"):
        waad(EVEN, window=0)
    with pytest.raises(ValueError, match="low=5, high=4"):
        fai(EVEN, 5, 4)
    with pytest.raises(ValueError, match="top=1"):
        top_share(torch.ones(3), 1.0)
    got = attention_rhythm(LADDER, tokens)
    with pytest.raises(ValueError, match="prompts 0 to 0"):
        got.series("waad", 1)
    with pytest.raises(ValueError, match="Leave short"):
        got.coupling()  # all 20 tokens are early or late
