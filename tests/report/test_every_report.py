"""Every kind of report in a browser: quiet, alone, legible, with 3 to 5 numbers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import mechsink as ms
from mechsink.experiments.grids.seeds import seed_panels
from mechsink.experiments.study import Study, as_claims, claim
from mechsink.report.html import LARGEST, Page, write_page
from mechsink.report.studies import write_study
from tests.hostile.small import characters
from tests.report.browser import Browser, find_chromium
from toy_tasks import PRESETS, BigramBackcopy, train

pytestmark = [
    pytest.mark.browser,
    pytest.mark.matrix,
    pytest.mark.filterwarnings("ignore:faithfulness"),  # few pairs
    pytest.mark.skipif(
        find_chromium() is None,
        reason="no Chromium on the PATH: apt-get install chromium",
    ),
]


def sinks() -> Page:
    return ms.sink_report(characters(), ["abcdefgh", "hgfedcba"]).page()


def heads() -> Page:
    texts = {"up": ["abcdefgh", "bcdefgha"], "down": ["hgfedcba", "gfedcbah"]}
    return ms.heads_report(characters(), texts, n_pos=8, n_confirm=0).page()


def patching() -> Page:
    pairs = ms.PromptPairs(["abcd", "babab"], ["bbcd", "aabab"], ["e"], ["f"])
    return ms.patch_report(characters(), pairs, ms.logit_diff).page()


def circuit() -> Page:
    pairs = ms.PromptPairs(["abcd", "badc"], ["bbcd", "aadc"], ["e"], ["f"])
    model = characters()
    return ms.edge_report(model, pairs, ms.logit_diff, method=ms.eap, n=5).page()


def all_for_one() -> Page:
    model = characters()
    tokens = model.to_tokens([f"a{x}c{y}" for x in "bdefg" for y in "bdefg"])
    answers = model.run(tokens).logits[:, -1].argmax(-1)
    prompts = ms.SlotPrompts.from_tokens(tokens, [1, 3], answers=answers)
    return ms.all_for_one_report(model, prompts, target=0.5).page()


class Small(Study):
    """A study with a figure and a table."""

    title = "A small study"

    def figures(self):
        return {"dots": seed_panels(self.table, {"bos_markov": "to <s>"})}

    def tables(self):
        return {"All": self.table}


def study() -> Study:
    columns = ["setting", "seed", "layer", "head", "measure", "value"]
    rows = [("a", seed, 0.0, 0.0, "bos_markov", seed / 9) for seed in range(3)]
    claims = [claim(f"claim {i}", [0.5, 0.6, 0.7], above=0.4) for i in range(3)]
    table = pd.DataFrame(rows, columns=columns)
    return Small(table, {"seeds": [0, 1, 2]}, as_claims(claims))


KINDS: dict[str, Callable[[], Page]] = {
    kind.__name__: kind for kind in (sinks, heads, patching, circuit, all_for_one)
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """A page of each kind; the study's and the formation's by their own writers."""
    folder = tmp_path_factory.mktemp("reports")
    found = {name: write_page(make(), folder / name) for name, make in KINDS.items()}
    quick = replace(PRESETS["bb-cpu"], steps=12, batch=4, checkpoints=3)
    run = train(BigramBackcopy.from_text(), quick, folder / "run", seed=0)
    found["formation"] = ms.formation_report(run).to_html(folder / "formation")
    write_study(study(), folder / "study", "mechsink experiment x")
    found["study"] = folder / "study" / "report.html"
    return {
        name: path.rename(path.with_name(f"{name}.html"))
        for name, path in found.items()
    }


@pytest.fixture(scope="module")
def browser():
    browser = Browser()
    yield browser
    browser.close()


@pytest.mark.parametrize("name", [*KINDS, "formation", "study"])
def test_a_report_stands_alone_and_reads_well(browser, pages, name):
    assert pages[name].stat().st_size < LARGEST
    for width, dark in ((1200, False), (1200, True), (390, False)):
        browser.open(pages[name].as_uri(), width=width, dark=dark)
        assert {url[:5] for url in browser.requests()} <= {"file:", "data:"}
        assert browser.complaints() == []
        assert browser.js("document.documentElement.scrollWidth") <= width
    numbers = browser.js("document.querySelectorAll('header .numbers > div').length")
    assert 3 <= numbers <= 5
    ids = browser.js("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", ["sinks", "heads", "patching", "formation"])
def test_its_maps_are_painted_and_speak(browser, pages, name):
    browser.open(pages[name].as_uri())
    canvases = browser.js("document.querySelectorAll('canvas').length")
    assert canvases > 0
    for at in range(canvases):
        canvas = f"document.querySelectorAll('canvas')[{at}]"
        browser.js(f"{canvas}.focus()")
        browser.key("ArrowRight", 39)
        read = browser.js(f"{canvas}.parentElement.querySelector('.read').textContent")
        assert ": " in read and "undefined" not in read and "NaN" not in read


def test_a_slider_goes_through_training(browser, pages):
    browser.open(pages["formation"].as_uri())
    shown = browser.js(
        "[...document.querySelectorAll('[data-choice][type=range]')].map((s) => {"
        "s.value = 0; s.dispatchEvent(new Event('input'));"
        "return s.parentElement.querySelector('output').textContent})"
    )
    assert shown and set(shown) == {"0"}
