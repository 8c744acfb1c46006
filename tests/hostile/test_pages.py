"""Texts from outside on pages: shown, and never an element, a handler or a link."""

import dataclasses
import functools
import re
import tempfile
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import strategies as st
from matplotlib import use

use("agg")

import mechsink as ms
from mechsink import plotting
from mechsink.circuits.graph import Circuit
from mechsink.experiments.study import Study, as_claims, claim
from mechsink.report.html import (
    Headline,
    Page,
    Section,
    TokenText,
    render,
    settings_rows,
)
from mechsink.report.studies import markdown, write_study
from mechsink.report.svg import inline_svg, save_figure
from mechsink.report.tables import to_table
from mechsink.results import Result
from mechsink.visible import visible
from tests.circuits.made import SHAPES
from tests.hostile.cases import hostile
from tests.hostile.pages import check_page
from tests.hostile.small import characters
from tests.hostile.texts import NASTY, any_texts, texts

ATTACKS = [text for text in NASTY if re.search("[<>]", text)]


def page_of(text: str) -> Page:
    cell = visible(text)  # pandas holds no half characters
    frame = pd.DataFrame({cell or "x": [cell] * 2, "score": [1.0, np.nan]})
    return Page(
        title=text,
        summary=(text,),
        headlines=(Headline(text, text, text),),
        sections=(
            Section(text, (text,), tables=(to_table(frame, text, caption=text),)),
        ),
        texts=(TokenText.from_meta(text, {"ids": [7], "strings": [text]}),),
        settings=settings_rows({"option": text, text: {text: [text, None]}}),
        notes=(text,),
    )


@hostile(15, 700, [{"text": "".join(ATTACKS)}], text=any_texts)
def test_any_text_on_a_page_is_text(text):
    harmless = check_page(render(page_of("harmless")))
    page = check_page(render(page_of(text or "-")))
    shape = [(tag, sorted(attributes)) for tag, attributes in page.elements]
    want = [(tag, sorted(attributes)) for tag, attributes in harmless.elements]
    assert shape == want


@hostile(15, 500, text=texts, name=texts)
def test_any_table_in_a_notebook_is_text(text, name):
    meta = {"model": text, "device": name}
    shown = Result(pd.DataFrame({name: [text, text]}), meta)._repr_html_()
    tags = {tag for tag, _ in check_page(shown, scripts=0).elements}
    assert tags == {"p", "table", "thead", "tbody", "tr", "th", "td"}


@functools.cache
def figure() -> Any:
    with plotting.theme():
        return plotting.new_axes()


def drawn(text: str) -> Any:
    with plotting.theme():
        ax = figure()
        ax.clear()
        shown = plotting.literal(text)
        ax.plot([0, 1], [0, 1], label=shown)
        ax.set(title=shown, xlabel=shown)
        ax.set_xticks([0, 1], [plotting.literal(text, 9)] * 2)
        ax.legend()
    return plotting.figure_of(ax)


@pytest.mark.matrix
@hostile(
    4,
    200,
    [
        {"text": text}
        for text in ("$x^", "$\\frac$", "$a$", "\x00", "\ud800", "_^{", "")
    ],
    text=any_texts,
)
def test_any_text_in_a_figure_is_text(text):
    svg = str(inline_svg(drawn(text), "one"))
    page = check_page(svg, scripts=0)
    if text.isprintable() and text.strip() and len(text) < 60 and "  " not in text:
        assert text.strip() in page.text


def test_a_figure_with_any_text_is_saved(tmp_path):
    for text in ("$x^", "\x00<script>\ud800" + "😀" * 50):
        for path in save_figure(drawn(text), tmp_path, "figure"):
            assert path.stat().st_size > 500


@hostile(15, 500, text=texts)
def test_any_cell_of_a_markdown_table_stays_in_its_cell(text):
    table = pd.DataFrame({"a": [text], "b": ["end"], "n": [0.5]})
    lines = markdown(table).split("\n")
    assert len(lines) == 3
    cells = re.split(r"(?<!\\)(?:\\\\)*\|", lines[2])
    assert len(cells) == 5 and cells[2].strip() == "end"
    assert "<" not in lines[2] and "](" not in lines[2]
    lines[2].encode()


@dataclasses.dataclass(frozen=True, eq=False)
class Hostile(Study):
    pass


@hostile(2, 60, text=texts)
def test_a_study_of_any_texts_is_one_page(text):
    claims = as_claims([claim(text, 1.0, above=0.0)])
    study = Hostile(pd.DataFrame({"x": [1]}), {"model": text}, claims)
    with tempfile.TemporaryDirectory() as folder:
        page = write_study(
            study, Path(folder) / "study", f"mechsink {text}"
        ).read_text()
    lines = page.splitlines()
    command = lines[lines.index("Made by") + 2 : lines.index("## Claims") - 3]
    assert all(line.startswith("    ") for line in command if line)
    rest = [line for line in lines if not line.startswith("    ")]
    assert not re.search("<(?!/?sub)", "\n".join(rest))
    assert sum(line.startswith("#") for line in rest) == 2


@hostile(2, 40, text=any_texts)
def test_a_circuit_page_with_any_names(text):
    wires = SHAPES["plain"]
    entry = {"ids": [1], "strings": [text]}
    meta = {"model": text, "metric": text, "method": text, "tokens": [entry]}
    circuit = Circuit.of(wires, wires.edges[:4], {wires.edges[0]: 1.0}, meta=meta)
    check_page(ms.circuit_page(circuit, title=text or None))


class Named(type(characters())):  # type: ignore[misc]
    """The toy with hostile token strings and a hostile name."""

    text = ""

    def to_strings(self, tokens):
        return [self.text for _ in tokens]


def named(text: str) -> Named:
    model = Named(characters().toy, name=text)
    model.text = text
    return model


def sink_page(model: Named) -> str:
    from mechsink.report.html import render

    return render(ms.sink_report(model, ["abcdefgh", "hgfedcba"]).page())


def heads_page(model: Named) -> str:
    texts = {model.text: ["abcdefgh", "bcdefgha"], "other": ["hgfedcba", "gfedcbah"]}
    report = ms.heads_report(model, texts, n_pos=8, n_confirm=0)
    assert report._repr_html_()
    return render(report.page())


def patch_page(model: Named) -> str:
    pairs = ms.PromptPairs(["abcd"], ["bbcd"], ["e"], ["f"])
    report = ms.patch_report(model, pairs, ms.logit_diff)
    plt.close(plotting.figure_of(report.sweep("resid_pre").plot()))
    return render(report.page())


def edges_page(model: Named) -> str:
    pairs = ms.PromptPairs(["abcd", "badc"], ["bbcd", "aadc"], ["e"], ["f"])
    return render(
        ms.edge_report(model, pairs, ms.logit_diff, method=ms.eap, n=5).page()
    )


def slots_page(model: Named) -> str:
    """All for one, on prompts that the model gets right by construction."""
    tokens = model.to_tokens([f"a{x}c{y}" for x in "bdefg" for y in "bdefg"])
    answers = model.run(tokens).logits[:, -1].argmax(-1)
    prompts = ms.SlotPrompts.from_tokens(tokens, [1, 3], answers=answers)
    return render(ms.all_for_one_report(model, prompts, target=0.5).page())


PAGES = {"sinks": sink_page, "heads": heads_page, "patch": patch_page,
         "circuit": edges_page, "slots": slots_page}  # fmt: skip
WORST = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "$x^{",
    "$\\frac$",
    "\x00\u202e\ufeff",
    "{{7*7}} `id` $(id)",
]


@pytest.mark.filterwarnings("ignore:faithfulness")  # two pairs are few
@pytest.mark.parametrize("text", WORST)
@pytest.mark.parametrize("name", [*PAGES])
@pytest.mark.matrix
@pytest.mark.some_cases(7)
def test_a_report_on_a_model_of_hostile_tokens(name, text):
    page = check_page(PAGES[name](named(text)))
    if text.isascii() and text.isprintable():
        assert text in page.text or text.replace(" ", "·") in page.text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.matrix
@hostile(1, 60, name=st.sampled_from([*PAGES]), text=texts)
def test_reports_on_models_of_any_token_strings(name, text):
    check_page(PAGES[name](named(text)))
