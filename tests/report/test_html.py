"""The page: self-contained, every text escaped, sizes held."""

import re
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("agg")
import matplotlib.pyplot as plt

from mechsink.report.html import (
    Headline,
    Page,
    Plot,
    Section,
    TokenText,
    render,
    settings_rows,
    show_token,
    write_page,
)
from mechsink.report.svg import inline_svg
from mechsink.report.tables import number, to_table

HOSTILE = "</p><script>alert(1)</script><img src=x onerror=alert(2)>'\"&"


class Reader(HTMLParser):
    """What a page would load, which ids and tags it has, which text it shows."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"{tag} has a handler {name}"
            if name == "id":
                self.ids.append(value)
            if name in ("src", "srcset", "href", "xlink:href", "poster", "action"):
                (self.targets if value.startswith("#") else self.loads).append(value)

    def handle_data(self, data):
        self.text += data


def draw(text: str = HOSTILE):
    figure, ax = plt.subplots(figsize=(3, 2))
    ax.plot([1, 2], [3, 4], marker="o", label=text)
    ax.imshow(np.eye(3), aspect="auto")
    ax.set(title=text, xlabel=text)
    ax.legend()
    plt.close(figure)
    return figure


def hostile_page() -> Page:
    frame = pd.DataFrame(
        {"layer": range(12), "score": np.linspace(0, 1, 12), "token": [HOSTILE] * 12}
    )
    plots = tuple(Plot(inline_svg(draw(), name), HOSTILE, HOSTILE) for name in "ab")
    tables = (to_table(frame, HOSTILE, caption=HOSTILE),)
    return Page(
        title=HOSTILE,
        summary=(HOSTILE,),
        headlines=(Headline(HOSTILE, HOSTILE, HOSTILE),),
        sections=(Section(HOSTILE, (HOSTILE,), figures=plots, tables=tables),),
        texts=(TokenText.from_meta(HOSTILE, {"ids": [7], "strings": [HOSTILE]}),),
        settings=settings_rows({"option": HOSTILE, HOSTILE: {"a": [1, None]}}),
        notes=(HOSTILE,),
    )


def test_the_page_loads_nothing():
    page = render(hostile_page())
    reader = Reader(page)
    assert [link for link in reader.loads if not link.startswith("data:")] == []
    assert "@import" not in page
    assert all(u.startswith("#") for u in re.findall(r"url\(['\"]?(.[^)]*)", page))
    assert "default-src 'none'" in page


def test_hostile_text_stays_text():
    reader = Reader(render(hostile_page()))
    assert reader.tags.count("script") == 1  # our own, at the end
    assert "img" not in reader.tags
    assert reader.text.count(HOSTILE) > 20


def test_ids_are_unique_and_every_reference_has_its_target():
    reader = Reader(render(hostile_page()))
    assert len(reader.ids) == len(set(reader.ids))
    assert {target[1:] for target in reader.targets} <= set(reader.ids)


def test_text_in_figures_stays_text_and_takes_the_page_ink():
    svg = inline_svg(draw("plain words"), "one")
    assert ">plain words</text>" in svg
    assert "#000000" not in svg
    assert "currentColor" in svg


def test_a_token_that_reads_like_an_attribute_stays_as_it_is():
    text = 'id="a" href="#b" fill: #262626 font-family: x; url(#c)'
    assert text in Reader(str(inline_svg(draw(text), "one"))).text


def test_a_figure_name_must_be_an_id():
    with pytest.raises(ValueError, match="cannot start an id"):
        inline_svg(draw(), "1 two")


def test_a_page_too_large_is_refused_and_leaves_nothing(tmp_path):
    page = Page("large", ("x" * (5 * 2**20),))
    with pytest.raises(ValueError, match=r"would weigh 5\.0 MB"):
        write_page(page, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_more_texts_than_shown_are_counted():
    texts = tuple(
        TokenText.from_meta(f"Text {i}", {"ids": [i], "strings": ["a"]})
        for i in range(30)
    )
    assert "6 more texts" in Reader(render(Page("many", (), texts=texts))).text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (12, "12"),
        (-3.0, "−3"),
        (0.12345, "0.123"),
        (12.345, "12.3"),
        (22558.5, "22,558"),
        (0.00012, "1.2e-04"),
        (float("nan"), "–"),
        (float("inf"), "∞"),
    ],
)
def test_numbers_are_rounded_for_reading(value, shown):
    assert number(value) == shown


def test_a_table_sorts_by_the_exact_number_and_shows_missing_ones():
    table = to_table(pd.DataFrame({"x": [0.123456, np.nan]}), "t")
    assert [cell.text for (cell,) in table.rows] == ["0.123", "–"]
    assert [cell.sort for (cell,) in table.rows] == ["0.123456", "NaN"]


def test_a_table_refuses_unknown_columns():
    with pytest.raises(ValueError, match=r"no column 'y'\. It has: x"):
        to_table(pd.DataFrame({"x": [1]}), "t", names={"y": "why"})


def test_white_space_in_tokens_is_visible():
    assert show_token(" a\n\t\x00é") == "·a⏎⇥\\x00é"
