"""The site builds without a warning, lists every name, and asks nothing of others."""

import html.parser
import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from filelock import FileLock

import mechsink
import toy_tasks
import toy_tasks.operators
from tests.docs.pages import ROOT
from tests.report.browser import Browser, find_chromium

pytestmark = [
    pytest.mark.matrix,
    pytest.mark.skipif(
        importlib.util.find_spec("mkdocs") is None,
        reason='no mkdocs here: pip install "mechsink[docs]"',
    ),
]
FETCHED = {
    "link": "href",
    "script": "src",
    "img": "src",
    "iframe": "src",
    "use": "href",
}


class Page(html.parser.HTMLParser):
    """Ids, links and what a browser would fetch, of one page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        if "id" in given:
            self.ids.add(given["id"])
        if tag == "a" and "name" in given:
            self.ids.add(given["name"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in FETCHED and FETCHED[tag] in given:
            if tag == "link" and given.get("rel") in ("canonical", "prev", "next"):
                return
            self.fetched.append(given[FETCHED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    """Every page, built once for all workers."""
    root = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        root = root.parent  # shared by the workers
    folder, said = root / "site", root / "site.txt"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    with FileLock(root / "site.lock"):
        if not said.exists():
            done = subprocess.run(
                [*command, "--site-dir", str(folder)],
                cwd=ROOT,
                capture_output=True,
                text=True,
                env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
            )
            said.write_text(f"{done.returncode}\n{done.stdout}{done.stderr}")
    assert said.read_text() == "0\n", said.read_text()
    return {path: Page(path) for path in folder.rglob("*.html")}


def test_every_public_name_is_documented(site: dict[Path, Page]) -> None:
    ids = set().union(*(page.ids for page in site.values()))
    wanted = {f"mechsink.{name}" for name in mechsink.__all__}
    wanted |= {f"toy_tasks.{name}" for name in toy_tasks.__all__}
    wanted |= {f"toy_tasks.operators.{name}" for name in toy_tasks.operators.__all__}
    assert len(wanted) > 250
    assert not sorted(wanted - ids)


def test_names_in_the_table_of_systems_lead_to_their_documentation(
    site: dict[Path, Page],
) -> None:
    (page,) = (page for path, page in site.items() if path.name == "systems.html")
    for name in ("mechsink.active_dormant", "toy_tasks.BigramBackcopy"):
        assert any(link.endswith(f"#{name}") for link in page.links)
    bare = re.findall(r"<code>(ms\.\w+)[^<]*</code>(?!</a>)", page.text)
    assert not bare


def test_every_notebook_is_a_page_with_its_figures(site: dict[Path, Page]) -> None:
    pages = {path.stem: path for path in site if path.parent.name == "notebooks"}
    for source in (ROOT / "notebooks").glob("*.ipynb"):
        path = pages.pop(source.stem)
        kept = source.read_text(encoding="utf-8").count('"image/png"')
        figures = [u for u in site[path].fetched if u.startswith(source.stem)]
        assert kept == len(figures) and 'class="output' in site[path].text
        for figure in figures:
            assert (path.parent / figure).read_bytes().startswith(b"\x89PNG")
    assert [*pages] == ["index"]


def test_links_within_the_site_arrive(site: dict[Path, Page]) -> None:
    lost = []
    for path, page in site.items():
        for link in page.links:
            if re.match(r"[a-z]+:", link) or path.name == "404.html":
                continue
            target, anchor = urldefrag(link)
            there = (path.parent / unquote(target)).resolve() if target else path
            ids = site[there].ids if there in site else {unquote(anchor)}
            if not there.exists() or (anchor and unquote(anchor) not in ids):
                lost.append((path.name, link))
    assert not lost, lost[:20]


def test_nothing_is_fetched_from_elsewhere(site: dict[Path, Page]) -> None:
    for path, page in site.items():
        outside = [u for u in page.fetched if re.match(r"([a-z]+:)?//", u)]
        assert not outside, (path.name, outside)
    folder = min(site, key=lambda path: len(path.parts)).parent
    for style in folder.rglob("*.css"):
        found = re.findall(r"url\(\s*['\"]?((?:https?:)?//[^)]+)", style.read_text())
        assert not found, (style.name, found)


@pytest.mark.browser
@pytest.mark.skipif(find_chromium() is None, reason="no Chromium on the PATH")
def test_in_a_browser_from_the_file_system(site: dict[Path, Page]) -> None:
    """No complaint, nothing asked of a host, no sideways scrolling; search finds."""
    folder = min(site, key=lambda path: len(path.parts)).parent
    browser = Browser()
    try:
        phone = ("systems", "api/sinks", "notebooks/1-sinks-in-a-real-model")
        for name, width in (("start", 1280), *((name, 390) for name in phone)):
            browser.open((folder / f"{name}.html").as_uri(), width=width)
            away = [u for u in browser.requests() if not u.startswith("file:")]
            assert not [u for u in away if not u.startswith(("data:", "about:"))]
            assert browser.complaints() == []
            wide = browser.js("document.documentElement.scrollWidth")
            assert wide <= width, (name, wide)
        browser.open((folder / "start.html").as_uri(), width=1280)
        browser.js("document.querySelector('.md-search__input').focus()")
        browser.call("Input.insertText", text="sink_scores")
        browser.key("End", 35)
        found = "document.querySelectorAll('.md-search-result__link').length"
        until = time.monotonic() + 20
        while not browser.js(found) and time.monotonic() < until:
            time.sleep(0.2)
        assert browser.js(found) > 0
    finally:
        browser.close()
