"""Reads a page as a browser would, and says what is on it that is not ours."""

import re
from html.parser import HTMLParser

OURS = set(
    [
        "html",
        "head",
        "meta",
        "title",
        "link",
        "style",
        "body",
        "a",
        "header",
        "p",
        "h1",
        "h2",
        "h3",
        "h4",
        "dl",
        "dt",
        "dd",
        "div",
        "b",
        "span",
        "nav",
        "ol",
        "ul",
        "li",
        "i",
        "main",
        "section",
        "figure",
        "figcaption",
        "label",
        "input",
        "output",
        "button",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "details",
        "summary",
        "small",
        "wbr",
        "footer",
        "script",
        "canvas",
        "select",
        "option",
        "img",
        "svg",
        "g",
        "path",
        "rect",
        "text",
        "tspan",
        "defs",
        "clippath",
        "use",
        "image",
        "lineargradient",
        "stop",
        "line",
        "polyline",
        "circle",
        "ellipse",
        "polygon",
        "metadata",
    ]
)
LOADS = (
    "src",
    "srcset",
    "href",
    "xlink:href",
    "poster",
    "action",
    "formaction",
    "data",
)


class Page(HTMLParser):
    """Every element with its attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.comments: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def handle_comment(self, data):
        self.comments.append(data)


def check_page(text: str, scripts: int = 1) -> Page:
    """Assert that a page has no element, handler or address but the report's own."""
    page = Page(text)
    tags = [tag for tag, _ in page.elements]
    assert {*tags} <= OURS, {*tags} - OURS
    kinds = [seen.get("type") for tag, seen in page.elements if tag == "script"]
    assert kinds.count(None) == scripts
    assert {*kinds} <= {None, "application/json"}  # data, which nothing runs
    assert page.comments == []
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{tag} has the handler {name}"
            if name in LOADS and value is not None:
                assert value.startswith(("#", "data:image/png;base64,", "data:,")), (
                    value
                )
            assert re.fullmatch(r"[a-z][a-z:-]*", name) or name in (
                "viewbox",
                "x1",
                "x2",
                "y1",
                "y2",
            ), name
    text.encode()  # no half characters
    return page
