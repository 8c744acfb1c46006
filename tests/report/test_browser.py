"""The page in a real browser: nothing loaded, no complaint, controls work."""

import io

import numpy as np
import pandas as pd
import pytest
from markupsafe import Markup
from PIL import Image

from mechsink.report.html import Page, Plot, Section, write_page
from mechsink.report.maps import Choice, Maps
from mechsink.report.tables import to_table
from tests.report.browser import Browser, find_chromium
from tests.report.test_html import hostile_page

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        find_chromium() is None,
        reason="no Chromium on the PATH: apt-get install chromium",
    ),
]

FIRST = "document.querySelectorAll('tbody tr:not([hidden])')[0].cells[1].textContent"


@pytest.fixture(scope="module")
def browser():
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    return write_page(hostile_page(), path).as_uri()


@pytest.fixture(scope="module")
def sortable(tmp_path_factory):
    frame = pd.DataFrame({"name": [f"h{i}" for i in range(12)]})
    frame["score"] = [np.nan, 0.2, 1e-4, 900.0, *range(1, 9)]
    page = Page("t", (), sections=(Section("s", tables=(to_table(frame, "t"),)),))
    path = tmp_path_factory.mktemp("page") / "report.html"
    return write_page(page, path).as_uri()


def test_the_browser_would_tell(browser, tmp_path):
    (tmp_path / "bad.html").write_text(
        "<img src='http://127.0.0.1:9/x.png'><script>console.error('oh')</script>"
    )
    browser.open((tmp_path / "bad.html").as_uri())
    assert "http://127.0.0.1:9/x.png" in browser.requests()
    assert any("oh" in complaint for complaint in browser.complaints())


@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_no_request_no_complaint_and_something_to_see(browser, hostile, width, dark):
    browser.open(hostile, width=width, dark=dark)
    assert [
        url for url in browser.requests() if url[:5] not in ("file:", "data:")
    ] == []
    assert browser.complaints() == []
    picture = Image.open(io.BytesIO(browser.picture())).convert("L")
    low, high = picture.getextrema()
    assert high - low > 150
    assert (np.asarray(picture).mean() < 128) == dark


def test_the_page_is_no_wider_than_a_phone(browser, hostile):
    browser.open(hostile, width=390)
    assert browser.js("document.documentElement.scrollWidth") <= 390


def test_a_click_sorts_by_number_and_missing_ones_stay_last(browser, sortable):
    browser.open(sortable)
    button = "document.querySelectorAll('th button')[1].click()"
    last = "[...document.querySelectorAll('tbody tr')].at(-1).cells[1].textContent"
    browser.js(button)
    assert (browser.js(FIRST), browser.js(last)) == ("900", "–")
    browser.js(button)
    assert (browser.js(FIRST), browser.js(last)) == ("1.0e-04", "–")
    sorted_by = "document.querySelectorAll('th')[1].getAttribute('aria-sort')"
    assert browser.js(sorted_by) == "ascending"


def test_the_keyboard_sorts_too(browser, sortable):
    browser.open(sortable)
    browser.js("document.querySelectorAll('th button')[1].focus()")
    browser.key("Enter", 13, "\r")
    assert browser.js(FIRST) == "900"


def test_the_filter_hides_rows_and_says_how_many(browser, sortable):
    browser.open(sortable)
    browser.js(
        "const f = document.querySelector('[data-filter]'); f.value = 'h1';"
        "f.dispatchEvent(new Event('input'))"
    )
    count = browser.js("document.querySelector('[data-count]').textContent")
    assert count == "3 of 12 rows"  # h1, h10, h11


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """Two choices, a list and a slider, over maps of 2 by 3."""
    values = np.arange(36, dtype=float).reshape(6, 2, 3)
    values[5, 1, 2] = np.nan
    maps = Maps(
        values,
        rows=("low", "high"),
        columns=(("a", "b", "c"), ("</script>", "y", "z")),
        names=("row", "column", "attention"),
        limits=(0.0, 36.0),
        choices=(
            Choice("Pair", ("first", "second")),
            Choice("After step", ("0", "10", "100"), 2, "slider"),
        ),
    )
    svg = Markup('<svg viewBox="0 0 9 9"><circle r="4"/></svg>')
    plot = Plot(svg, "a map", "of numbers", maps=maps)
    page = Page("t", (), sections=(Section("s", figures=(plot,)),))
    path = tmp_path_factory.mktemp("page") / "report.html"
    return write_page(page, path).as_uri()


READ = "document.querySelector('[data-value]').textContent"


def _colours(browser: Browser) -> int:
    """How many colours the map has painted."""
    return browser.js(
        "const c = document.querySelector('canvas');"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "new Set(new Uint32Array(d.buffer)).size"
    )


def test_arrow_keys_read_a_map(browser, walked):
    browser.open(walked)
    assert browser.complaints() == []
    assert browser.js("getComputedStyle(document.querySelector('.plot')).display") == (
        "none"
    )
    assert _colours(browser) > 8
    browser.js("document.querySelector('canvas').focus()")
    browser.key("ArrowRight", 39)  # the first key enters at the first cell
    assert browser.js(READ) == "row low, column a: attention 12.000"
    browser.key("ArrowRight", 39)
    browser.key("ArrowUp", 38)  # rows go upwards
    assert browser.js(READ) == "row high, column b: attention 16.000"
    browser.key("ArrowUp", 38)  # and stop at the edge
    assert browser.js(READ) == "row high, column b: attention 16.000"


def test_lists_and_sliders_change_the_map(browser, walked):
    browser.open(walked)
    browser.js("document.querySelector('canvas').focus()")
    browser.key("ArrowRight", 39)
    change = (
        "{const [list, slider] = document.querySelectorAll('[data-choice]');"
        "list.value = 1; list.dispatchEvent(new Event('input'));"
        "slider.value = VALUE; slider.dispatchEvent(new Event('input'));"
        "slider.parentElement.querySelector('output').textContent}"
    )
    assert browser.js(change.replace("VALUE", "1")) == "10"
    assert browser.js(READ) == "row low, column </script>: attention 24.000"
    browser.js(change.replace("VALUE", "2"))
    for name, code in (("ArrowUp", 38), ("ArrowRight", 39), ("ArrowRight", 39)):
        browser.key(name, code)
    assert browser.js(READ) == "row high, column z: no value"


def test_the_pointer_reads_a_map(browser, walked):
    browser.open(walked)
    box = browser.js(
        "{const r = document.querySelector('canvas').getBoundingClientRect();"
        "[r.x, r.y]}"
    )
    # cells are at most 72 pixels wide, right of the rows' names; row 0 lies below
    x, y = box[0] + 50 + 2.5 * 72, box[1] + 8
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert browser.js(READ) == "row high, column c: attention 17.000"


def test_paper_gets_the_figure(browser, walked):
    browser.open(walked)
    browser.call("Emulation.setEmulatedMedia", media="print")
    shown = [
        browser.js(f"getComputedStyle(document.querySelector('{what}')).display")
        for what in (".plot", ".maps")
    ]
    assert shown == ["block", "none"]
    browser.call("Emulation.setEmulatedMedia", media="")
