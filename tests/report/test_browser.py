"""The page in a real browser: nothing loaded, no complaint, controls work."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mechsink.report.html import Page, Section, write_page
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
