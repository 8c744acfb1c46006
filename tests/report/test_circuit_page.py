"""The page of a circuit: complete without scripts, and answering in a browser."""

import base64
import hashlib
import json
import math
import re

import numpy as np
import pytest

from mechsink.attribution.wires import Wires
from mechsink.circuits.graph import Circuit
from mechsink.circuits.selection import greedy_edges, top_edges
from mechsink.report.circuit_diagram import MOST_DRAWN, diagram, strongest
from mechsink.report.circuit_page import CircuitReport, circuit_page, circuit_report
from tests.circuits.made import SHAPES, random_scores
from tests.report.browser import Browser, find_chromium
from tests.report.test_html import HOSTILE, Reader

WIRES = Wires(2, 4, 2)
VALUES = {
    ("input", "a0.kv1<k>"): 0.4,
    ("input", "a0.h2<q>"): -0.3,
    ("a0.h2", "a1.h0<q>"): 2.0,
    ("a0.h3", "m1"): 0.1,
    ("a1.h0", "logits"): 1.0,
    ("m1", "logits"): math.nan,
}


def small(**meta) -> Circuit:
    return Circuit.of(WIRES, VALUES, VALUES, meta={"model": "tiny", **meta})


def test_the_page_loads_nothing_and_allows_only_its_own_script():
    page = circuit_page(small())
    reader = Reader(page)
    assert [link for link in reader.loads if not link.startswith("data:")] == []
    assert reader.tags.count("script") == 1
    (digest,) = re.findall(r"'sha256-([\w+/=]+)'", page)
    (script,) = re.findall(r"<script>(.*)</script>", page, flags=re.DOTALL)
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() == digest
    assert "[data-circuit]" in script and "[data-table]" in script
    assert page.count("script-src") == 1
    assert len(reader.ids) == len(set(reader.ids))


def test_the_still_figure_has_every_edge_and_node():
    svg = str(diagram(small()))
    drawn = re.findall(r'data-source="([^"]*)" data-target="([^"]*)"', svg)
    assert {(s, t.replace("&lt;", "<").replace("&gt;", ">")) for s, t in drawn} == {
        *VALUES
    }
    names = re.findall(r'data-name="([^"]*)"', svg)
    assert names[0] == "input" and names[-1] == "logits"
    assert "a0.kv1" in names
    assert "data-tools hidden" in svg  # controls wait for the script
    ranks = re.findall(r'data-target="([^"]*)" data-part="[^"]*" data-rank="(\d)"', svg)
    assert dict(ranks)["a1.h0&lt;q&gt;"] == "0"
    assert [rank for _, rank in ranks] == list("543210")  # the strongest on top
    widths = [float(width) for width in re.findall(r"stroke-width: ([\d.]+)px", svg)]
    assert widths == sorted(widths)


def test_hostile_text_stays_text():
    circuit = small(metric=HOSTILE, method=HOSTILE, selection=HOSTILE, sign="", n=1)
    page = circuit_page(circuit, title=HOSTILE)
    reader = Reader(page)
    assert reader.tags.count("script") == 1
    assert "img" not in reader.tags
    assert reader.text.count(HOSTILE) > 3


def test_numbers_on_the_page_are_the_circuits():
    report = circuit_report(small(selection="top", sign="absolute", n=9, pruned=True))
    page = report.page()
    assert page.title == "Circuit of tiny"
    assert page.headlines[0].value == "6"
    assert page.headlines[1].note == "3 heads, 1 MLP"
    assert (page.headlines[2].value, page.headlines[3].value) == ("2", "1")
    assert "9 of the largest |score| were chosen" in page.summary[0]
    nodes = report.nodes.set_index("node")
    assert nodes.loc["a0.h2", "n_in"] == 2  # its query, and its group's key
    assert nodes.loc["a0.h2", "in_score"] == pytest.approx(0.1)
    assert nodes.loc["a0.h3", "n_in"] == 1
    assert nodes.loc["logits", "n_in"] == 2
    assert math.isnan(nodes.loc["logits", "in_score"])
    assert nodes.loc["input", "out_score"] == pytest.approx(0.1)
    first = [cell.text for cell in page.sections[1].tables[0].rows[0]]
    assert first[:3] == ["a0.h2", "a1.h0<q>", "2"]


def test_a_report_is_saved_with_its_circuit_and_read_back(tmp_path):
    scores = random_scores(SHAPES["plain"], 0)
    scores.table["low"] = np.linspace(-1, 0, len(scores.table))
    circuit = top_edges(scores, 12)
    folder = circuit_report(circuit).save(tmp_path / "run")
    assert sorted(path.name for path in folder.iterdir()) == [
        "circuit.graphml",
        "circuit.json",
        "figures",
        "meta.json",
        "nodes.csv",
        "report.html",
        "table.csv",
    ]
    again = CircuitReport.load(folder)
    assert again.circuit.table.equals(circuit.table)
    assert Circuit.load(folder / "circuit.json").edges == circuit.edges
    assert json.loads((folder / "meta.json").read_text())["selection"] == "top"
    page = circuit_report(circuit).to_html(tmp_path / "one.html")
    assert page.read_text() == (folder / "report.html").read_text()


def test_an_empty_circuit_and_loose_ends_are_said():
    empty = circuit_report(Circuit.of(WIRES, [])).page()
    assert "circuit is empty" in empty.notes[0]
    loose = Circuit.of(WIRES, [*VALUES, ("m0", "logits")])
    assert circuit_report(loose).page().notes[0].startswith("1 edge of 7 lie")
    assert circuit_report(small()).page().notes == ()
    assert "0 edges" in circuit_page(Circuit.of(WIRES, []))


@pytest.mark.matrix
def test_a_large_circuit_is_drawn_in_part():
    circuit = Circuit.full(Wires(4, 8, 8))
    scores = random_scores(circuit.wires, 0)
    circuit = top_edges(scores, 1000)
    assert circuit.n_edges > MOST_DRAWN
    page = circuit_page(circuit)
    assert page.count('<path class="edge') == MOST_DRAWN
    assert f"{MOST_DRAWN} strongest of {circuit.n_edges} edges" in page
    kept = strongest(circuit, 7).table["score"].abs().min()
    assert (circuit.table["score"].abs() > kept).sum() == 6
    assert len(page) < 2**20


@pytest.fixture(scope="module")
def browser():
    if find_chromium() is None:
        pytest.skip("no Chromium on the PATH: apt-get install chromium")
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    wide = greedy_edges(random_scores(Wires(6, 6, 3), 1), 80)
    return {
        "small": circuit_report(small()).to_html(folder / "small.html").as_uri(),
        "wide": circuit_report(wide).to_html(folder / "wide.html").as_uri(),
    }


LEFT = (
    "[...document.querySelectorAll('.edge:not(.gone)')]"
    ".map(e => e.dataset.source + ' ' + e.dataset.target).sort().join()"
)
LIT = LEFT.replace(".edge:not(.gone)", ".edge.on")
ROWS = (
    "[...document.querySelectorAll('tbody')[0].rows]"
    ".filter(r => r.getClientRects().length)"
    ".map(r => r.cells[0].textContent + ' ' + r.cells[1].textContent).sort().join()"
)
STATUS = "document.querySelector('[data-status]').textContent"


def on(name: str, event: str) -> str:
    return f"document.querySelector('[data-name=\"{name}\"]').dispatchEvent({event})"


def listed(edges) -> str:
    return ",".join(sorted(f"{source} {target}" for source, target in edges))


@pytest.mark.browser
@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_no_complaint_and_no_wider_than_the_window(browser, pages, width, dark):
    for page in pages.values():
        browser.open(page, width=width, dark=dark)
        assert browser.complaints() == []
        assert browser.requests() == [page]
        assert browser.js("document.documentElement.scrollWidth") <= width
        assert browser.js("document.querySelector('[data-tools]').hidden") is False


@pytest.mark.browser
def test_hovering_lights_the_edges_of_a_node(browser, pages):
    browser.open(pages["small"])
    browser.js(on("a0.h2", "new PointerEvent('pointerenter')"))
    wanted = [e for e in VALUES if e[0] == "a0.h2" or e[0] == "input"]
    assert browser.js(LIT) == listed(wanted)  # its query, and its group's key
    assert browser.js(STATUS) == "a0.h2: 2 edges in, 1 out."
    browser.js(on("a0.h2", "new PointerEvent('pointerleave')"))
    assert browser.js(LIT) == ""


@pytest.mark.browser
def test_a_click_keeps_ancestors_and_the_table_follows(browser, pages):
    browser.open(pages["small"])
    assert browser.js(ROWS) == listed(VALUES)
    for node in ("a1.h0", "a0.h3", "logits"):
        browser.js(on(node, "new MouseEvent('click')"))
        wanted = listed(small().ancestors(node).edges)
        assert browser.js(LEFT) == wanted
        assert browser.js(ROWS) == wanted
        pressed = f"document.querySelector('[data-name=\"{node}\"]').ariaPressed"
        assert browser.js(pressed) == "true"
        browser.js("document.querySelector('[data-all]').click()")
        assert browser.js(LEFT) == listed(VALUES)


@pytest.mark.browser
def test_the_slider_keeps_the_strongest(browser, pages):
    browser.open(pages["small"])
    slide = "const s = document.querySelector('[data-slider]'); s.value = {};"
    slide += "s.dispatchEvent(new Event('input'))"
    for n in (1, 3, 5):
        browser.js("{" + slide.format(n) + "}")
        assert browser.js(LEFT) == listed(strongest(small(), n).edges)
        shown = browser.js("document.querySelector('[data-shown]').textContent")
        weakest = min(abs(VALUES[edge]) for edge in strongest(small(), n).edges)
        assert shown == f"{n} of 6, |score| from {weakest:g}"


@pytest.mark.browser
def test_the_keyboard_does_all_of_it(browser, pages):
    browser.open(pages["small"])
    browser.js("document.querySelector('[data-name=\"a1.h0\"]').focus()")
    assert browser.js("document.activeElement.dataset.name") == "a1.h0"
    browser.key("Enter", 13, "\r")
    assert browser.js(LEFT) == listed(small().ancestors("a1.h0").edges)
    browser.key("Tab", 9)
    assert browser.js("document.activeElement.dataset.name") == "m1"
    browser.key("Escape", 27)
    assert browser.js(LEFT) == listed(VALUES)


@pytest.mark.browser
def test_without_scripts_the_figure_is_whole(browser, pages):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(pages["small"])
        assert browser.complaints() == []
        assert browser.js(LEFT) == listed(VALUES)
        assert browser.js("document.querySelector('[data-tools]').hidden") is True
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
