"""A page of hostile texts in a real browser: nothing runs, nothing is asked for."""

import pytest

from mechsink.report.html import write_page
from tests.hostile.test_pages import page_of
from tests.hostile.texts import NASTY
from tests.report.browser import Browser, find_chromium

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        find_chromium() is None,
        reason="no Chromium on the PATH: apt-get install chromium",
    ),
]


def test_nothing_on_a_page_of_hostile_texts_runs(tmp_path):
    path = write_page(page_of("".join(NASTY)), tmp_path / "report.html")
    browser = Browser()
    try:
        browser.open(path.as_uri())
        asked = [u for u in browser.requests() if u[:5] not in ("file:", "data:")]
        assert asked == []
        assert browser.complaints() == []
        odd = "document.querySelectorAll('img, iframe, object, script').length"
        assert browser.js(odd) == 1  # our own script
        assert "alert(1)" in browser.js("document.body.innerText")
    finally:
        browser.close()
