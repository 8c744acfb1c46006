"""The report from prompts to a circuit, on planted circuits known edge by edge."""

import inspect
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from mechsink.attribution.edges import eap, eap_ig
from mechsink.attribution.exact import exact_edges
from mechsink.circuits.evaluation import circuit_metric
from mechsink.circuits.graph import Circuit
from mechsink.circuits.ratios import areas
from mechsink.metrics import logit_diff, sink_attention
from mechsink.models.load import load_model
from mechsink.models.toy import ToyModel
from mechsink.prompt_sets import induction
from mechsink.prompts import PromptPairs
from mechsink.report.circuits import edge_report
from mechsink.report.edge_result import EdgeReport
from mechsink.report.html import render
from mechsink.report.pair_parts import n_repeated, one_by_one, some, split
from tests.circuits.small import pairs_of, prompt_pairs, telling_pairs, toy
from tests.report.browser import Browser, find_chromium
from tests.report.test_html import HOSTILE, Reader
from tests.report.tiny_model import save_tiny
from toy_tasks.planted import PLANTED

WEAK = pytest.mark.filterwarnings("ignore:.*told apart too weakly:UserWarning")


@pytest.fixture(scope="module")
def planted():
    case = PLANTED["induction-grouped"](n_prompts=24).double()
    return case, ToyModel(case.model, name="planted"), pairs_of(case)


@pytest.fixture(scope="module")
def report(planted):
    case, model, pairs = planted
    return edge_report(
        model, pairs, logit_diff, method=exact_edges, n=len(case.edges), seed=3
    )


def test_the_planted_circuit_is_found_and_whole(planted, report):
    case, _, _ = planted
    assert {*report.circuit.edges} == case.edges
    value, low, high = report.faithfulness
    # What it lacks carries at most the bound of the distractors, each edge.
    lacking = len(report.table) * case.noise_bound / case.effect_floor
    assert value == pytest.approx(1, abs=lacking)
    assert low <= value <= high
    assert report.accuracy[0] == 1
    assert report.table["in_circuit"].sum() == len(case.edges)


@pytest.mark.matrix
def test_what_chooses_never_measures():
    """The method sees one half alone; faithfulness is over the other, by hand."""
    model = toy()  # each pair has a metric of its own here
    pairs = telling_pairs(model, 24)
    seen = []

    def spy(model, pairs, metric):
        seen.append(pairs)
        return eap(model, pairs, metric)

    found = edge_report(model, pairs, logit_diff, method=spy, n=40, seed=1)
    (chose,) = seen
    part = found.pairs["part"].to_numpy()
    assert sorted({*part}) == ["choose", "measure"]
    assert (part == "choose").sum() == 12
    assert torch.equal(chose.clean, pairs.clean[part == "choose"])
    assert torch.equal(chose.answers, pairs.answers[part == "choose"])
    others = some(pairs, np.flatnonzero(part == "measure").tolist())
    of_circuit, none, whole = (
        circuit_metric(model, edges, others, logit_diff).mean()
        for edges in (found.circuit, [], Circuit.full(found.scores.wires))
    )
    want = (of_circuit - none) / (whole - none)
    assert found.faithfulness[0] == pytest.approx(want, abs=1e-9)
    curve = found.points
    cpr, cmd = areas(curve["faithfulness"].to_numpy(), curve["fraction"].tolist())
    assert (found.cpr[0], found.cmd[0]) == pytest.approx((float(cpr), float(cmd)))
    np.testing.assert_allclose(
        found.curve.prompts["1"], found.measured["full"], atol=1e-9
    )
    want = eap(model, chose, logit_diff)
    np.testing.assert_array_equal(found.scores.table["score"], want.table["score"])
    assert found.scores.corrupted == want.corrupted


def test_halves_are_disjoint_whole_and_drawn_by_the_seed():
    for n in (20, 21, 33):
        first, second = split(n, 0)
        assert sorted(first + second) == list(range(n))
        assert len(first) == n // 2
    assert split(40, 0) == split(40, 0) != split(40, 1)
    # Sets take turns (ABBA, BABA): a draw leaves both kinds in each half.
    assert {i % 2 for i in split(40, 0)[0]} == {0, 1}
    assert split(19, 0) == (list(range(19)), list(range(19)))


@pytest.mark.matrix
def test_few_pairs_do_both_and_the_page_says_so(planted):
    _, model, pairs = planted
    few = some(pairs, range(6))
    found = edge_report(model, few, logit_diff, method=eap)
    assert not found.is_split and {*found.pairs["part"]} == {"both"}
    notes = " ".join(found.page().notes)
    assert "chosen and measured on the same 6 pairs, which flatters it" in notes
    assert found.n == min(100, len(found.table))  # nothing asked for
    assert found.scores.clean == pytest.approx(found.measured["full"].tolist())


@pytest.mark.matrix
def test_pairs_that_stand_in_both_halves_are_told():
    model = toy()
    pairs = telling_pairs(model, 10)
    twice = PromptPairs(
        *(
            torch.cat([x, x])
            for x in (pairs.clean, pairs.corrupted, pairs.answers, pairs.wrong)
        )
    )
    rows = one_by_one(model, twice)
    choosing, measuring = split(20, 0)
    wanted = sum((i + 10) % 20 in choosing for i in measuring)
    assert n_repeated(rows, choosing, measuring) == wanted > 0
    found = edge_report(model, twice, logit_diff, method=eap, n=20)
    assert f"{wanted} measured pairs of 10 also stand" in " ".join(found.page().notes)


@pytest.mark.matrix
def test_a_weak_circuit_is_called_weak():
    model = toy()
    found = edge_report(model, telling_pairs(model, 30), logit_diff, method=eap, n=3)
    assert found.faithfulness[0] < 0.5
    assert "it does not explain the behaviour" in " ".join(found.page().notes)


@WEAK
@pytest.mark.matrix
def test_a_sinks_circuit_needs_no_answers():
    model = toy()
    pairs = replace(prompt_pairs(8), answers=None, wrong=None)
    metric = sink_attention(layer=1, head=2)
    found = edge_report(model, pairs, metric, n=40, selection="greedy", signed=True)
    assert found.outputs == ["a1.h2<q>", "a1.h2<k>"]
    assert found.accuracy == [None] * 3
    assert "beats_wrong" not in found.pairs
    # Random prompts: the corruption has no direction, so the ratio has no bounds.
    assert found.faithfulness[1:] == [None, None]
    assert "No interval" in " ".join(found.page().notes)
    page = found.page()
    assert "answers beat the wrong one" not in [item.label for item in page.headlines]
    assert "selection greedy, signed scores" in page.sections[1].text[-1]


def test_numbers_on_the_page_are_the_reports(planted, report):
    page = report.page()
    edges = page.sections[2]
    shown = {item.label: item for item in (*page.headlines, *edges.headlines)}
    assert shown["edges"].value == str(report.circuit.n_edges)
    assert shown["faithfulness of this circuit"].value.startswith("1")
    assert shown["answers beat the wrong one"].value == "100 %"
    q_values = report.table["q_value"]
    assert shown["edges with q < 0.05"].value == f"{(q_values < 0.05).sum()}"
    assert f"of {len(report.table):,}" in shown["edges with q < 0.05"].note
    assert report.curve.describe() in page.sections[1].text[-1]
    assert "12 of 24 pairs of prompts, drawn at random, chose" in page.summary[1]
    # Exact tokens of every pair, clean then corrupted, in the order given.
    _, _, pairs = planted
    ids = [entry["ids"] for entry in report.meta["tokens"]]
    assert ids[::2] == pairs.clean.tolist() and ids[1::2] == pairs.corrupted.tolist()
    assert page.texts[1].title == "Pair 0, corrupted"
    names = [column.name for column in page.sections[2].tables[0].columns]
    assert names[:7] == ["source", "target", "score", "95 % from", "95 % to", "p", "q"]


@pytest.mark.matrix
def test_it_is_saved_with_its_circuit_and_read_back(report, tmp_path):
    folder = report.save(tmp_path / "run")
    assert {path.name for path in folder.iterdir()} == {
        "circuit.graphml", "circuit.json", "figures", "meta.json", "pairs.csv",
        "points.csv", "report.html", "shares.csv", "table.csv",
    }  # fmt: skip
    assert {path.stem for path in (folder / "figures").iterdir()} == {
        "circuit",
        "faithfulness",
    }
    again = EdgeReport.load(folder)
    assert again.faithfulness == report.faithfulness
    assert again.circuit.table.equals(report.circuit.table)
    assert again.curve.describe() == report.curve.describe()
    assert render(again.page()) == (folder / "report.html").read_text()
    assert Circuit.load(folder / "circuit.graphml").edges == report.circuit.edges
    settings = json.loads((folder / "meta.json").read_text())["settings"]
    assert settings["selection"] == "top" and settings["ablation"] == "patch"
    assert settings["fractions"][0] == 0.001
    assert len(settings["pairs_that_choose"]) == 12


@pytest.mark.matrix
@WEAK
def test_a_ready_set_says_what_was_made(tmp_path):
    model = load_model(save_tiny(tmp_path / "tiny"))
    made = induction(model, 22, seed=5, length=6, repeated=2)
    found = edge_report(
        model, made, logit_diff, method=partial(eap_ig, steps=2), n=50, seed=1
    )
    settings = found.meta["settings"]
    assert settings["prompt_set"]["prompt_set"] == "induction"
    assert (settings["prompt_set"]["seed"], settings["seed"]) == (5, 1)
    assert settings["scores"]["steps"] == 2
    assert (
        "Ready prompt set induction: 22 pairs made" in Reader(render(found.page())).text
    )
    want = made.accuracy(model)
    assert found.accuracy == [want.beats_wrong, want.low, want.high]


def test_hostile_text_stays_text(report):
    page = replace(report, metric=HOSTILE, method=HOSTILE).page()
    reader = Reader(render(page))
    assert reader.tags.count("script") == 1
    assert "img" not in reader.tags
    assert [link for link in reader.loads if not link.startswith("data:")] == []
    assert len(reader.ids) == len(set(reader.ids))


def test_bad_input_is_refused_before_any_run(monkeypatch):
    model, pairs = toy(), prompt_pairs(4)
    n_edges = len(eap(model, pairs, logit_diff).table)

    def never(*args, **kwargs):
        raise AssertionError("it was run")

    monkeypatch.setattr(ToyModel, "run", never)
    for options, message in (
        ({"method": "eap-ig"}, r"method='eap-ig' is no function.*ms\.eap_ig"),
        ({"n": 0}, f"n=0 edges make no circuit. Allowed: 1 to {n_edges}"),
        ({"n": n_edges + 1}, f"Allowed: 0 to {n_edges}"),
        ({"selection": "best"}, "selection='best'. Allowed: top, greedy"),
    ):
        # the shape checker, on in tests only, refuses wrong types by itself
        call = inspect.unwrap(edge_report)
        with pytest.raises(ValueError, match=message):
            call(model, pairs, logit_diff, **options)


@pytest.mark.browser
@pytest.mark.skipif(find_chromium() is None, reason="no Chromium on the PATH")
def test_in_a_browser(report, tmp_path):
    """Nothing is loaded, nothing complains, and diagram and table answer."""
    url = report.to_html(tmp_path / "report.html").as_uri()
    browser = Browser()
    try:
        for width, dark in ((1200, False), (390, True)):
            browser.open(url, width=width, dark=dark)
            assert browser.complaints() == []
            assert browser.requests() == [url]
            assert browser.js("document.documentElement.scrollWidth") <= width
        edges = "document.querySelectorAll('.edge:not(.gone)').length"
        rows = (
            "[...document.querySelectorAll('[data-table]')].find(t => t.querySelector("
            "'h4').textContent === 'Edges of the circuit').querySelectorAll("
            "'tbody tr:not(.gone)').length"
        )
        n = report.circuit.n_edges
        assert (browser.js(edges), browser.js(rows)) == (n, n)
        browser.js(
            "const s = document.querySelector('[data-slider]'); s.value = 2;"
            "s.dispatchEvent(new Event('input'))"
        )
        assert (browser.js(edges), browser.js(rows)) == (2, 2)
        browser.js("document.querySelector('th button').click()")
        assert browser.complaints() == []
    finally:
        browser.close()
