"""The sink report against closed forms, on a model whose attention is uniform."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mechsink.models.load import load_model
from mechsink.report.sink_tables import bootstrap
from mechsink.report.sink_words import headlines, summary, uniform_score
from mechsink.report.sinks import SinkReport, sink_report
from mechsink.report.texts import default_texts, read_texts
from tests.hostile.pages import check_page
from tests.report.test_html import Reader
from tests.report.tiny_model import save_tiny

H32 = sum(1 / i for i in range(1, 33)) / 32  # uniform causal attention, 32 tokens


@pytest.fixture(scope="module")
def uniform(tmp_path_factory):
    return load_model(save_tiny(tmp_path_factory.mktemp("uniform"), uniform=True))


@pytest.fixture(scope="module")
def report(uniform):
    return sink_report(uniform, n_texts=60, length=32)


def test_uniform_attention_scores_harmonic_over_length(report):
    assert uniform_score(32) == pytest.approx(H32)
    assert report.table["score"].to_numpy() == pytest.approx(np.full(12, H32))
    assert report.rate == 0  # H32 = .127 is below .3
    # position 1: mean of 1/2 ... 1/32, the diagonal included
    assert uniform_score(32, 1) == pytest.approx((H32 * 32 - 1) / 31)


def test_the_threshold_decides_the_rate(uniform):
    below = sink_report(uniform, n_texts=2, length=32, eps=H32 - 1e-3)
    assert below.rate == 1
    assert below.rate_interval is None  # two texts are shown, not averaged away
    assert "by text: 100, 100 %" in headlines(below)[0].note


def test_many_texts_carry_an_interval(report):
    assert len(report.rates) == 60
    assert report.rate_interval == (0.0, 0.0)
    assert "bootstrap over texts" in headlines(report)[0].note
    assert report.table["low"].notna().all()


def test_the_bootstrap_agrees_with_scipy():
    values = np.random.default_rng(1).exponential(size=(80, 1))
    low, high = bootstrap(values, n=9999)
    peer = stats.bootstrap(
        (values[:, 0],), np.mean, method="percentile", rng=2
    ).confidence_interval
    assert (low[0], high[0]) == pytest.approx((peer.low, peer.high), abs=0.02)


@pytest.mark.matrix
def test_a_saved_report_is_complete_and_reads_back(report, tmp_path):
    folder = report.save(tmp_path / "r")
    files = {path.name for path in folder.iterdir()}
    assert {"table.csv", "tokens.csv", "meta.json", "report.html", "figures"} <= files
    figures = {path.suffix for path in (folder / "figures").iterdir()}
    assert figures == {".svg", ".png"}
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["settings"]["eps"] == 0.3
    assert meta["versions"]["torch"]
    assert len(meta["tokens"][0]["ids"]) == 32
    again = SinkReport.load(folder)
    pd.testing.assert_frame_equal(again.table, report.table)
    assert summary(again) == summary(report)


def test_the_page_says_what_was_measured(report, tmp_path):
    page = report.to_html(tmp_path / "report.html").read_text()
    text = Reader(page).text
    assert "60 texts of 32 tokens" in text
    assert f"uniform attention would give {H32:.3f}" in text
    assert len(page) < 4 * 2**20


@pytest.mark.matrix
def test_hostile_texts_stay_texts(uniform, tmp_path):
    texts = ["<script>alert(1)</script>$\\frac{&", "plain text, long enough to compare"]
    report = sink_report(uniform, texts, length=30)
    page = check_page(report.to_html(tmp_path / "report.html").read_text())
    assert "<script>alert(1)</script>" in page.text
    assert "<script>" not in report._repr_html_()


@pytest.mark.matrix
def test_a_weights_note_is_shown_first(report, tmp_path):
    info = {**report.meta["model_info"], "weights_note": "four bits only"}
    noted = SinkReport(**{**vars(report), "meta": {**report.meta, "model_info": info}})
    text = Reader(noted.to_html(tmp_path / "report.html").read_text()).text
    assert "four bits only" in text.split("Contents")[0]


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "there is no text"),
        ([""], {}, "a text is empty"),
        (["abc"], {"length": 9}, "text 0 has 3 tokens, 9 are needed"),
        (["abc"], {"position": 3}, "position=3 is outside .* Allowed: 0 to 2"),
        (["abc"], {"eps": 1.5}, "eps=1.5 is no share"),
        (None, {"n_texts": 10**6}, "n_texts=1000000. Allowed: 1 to"),
    ],
)
def test_wrong_input_is_refused_with_advice(uniform, texts, options, message):
    with pytest.raises(ValueError, match=message):
        sink_report(uniform, texts, **options)


def test_texts_of_different_lengths_are_measured_whole(uniform):
    report = sink_report(uniform, ["abcd", "abcdefgh"])
    by_text = report.scores.groupby("batch")["score"].mean()
    lengths = report.tokens.groupby("batch").size()
    for text, n in lengths.items():
        assert by_text[text] == pytest.approx(
            math.fsum(1 / i for i in range(1, n + 1)) / n
        )


def test_default_texts_are_fixed_and_spread():
    texts = default_texts(20, 64)
    assert texts == default_texts(20, 64)
    assert len(set(texts)) == 20
    assert all(text[0].isupper() or text[0] in '"“*(' for text in texts)


def test_files_are_cut_into_whole_words(tmp_path):
    (tmp_path / "a.txt").write_text("word " * 200)
    pieces = read_texts([tmp_path / "a.txt"], length=10, n_texts=100)
    assert len(pieces) == 14  # 75 characters each, 200 * 5 in all, the rest left out
    assert all(len(piece.split()) * 5 == len(piece.strip()) + 1 for piece in pieces)
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        read_texts([tmp_path / "b.txt"], 10, 1)
