"""The page of a report: one HTML file that opens anywhere and loads nothing.

A `Page` is plain data: sentences, headline numbers, figures, tables, tokens and
settings. `render` turns it into HTML with every text escaped; a content policy
inside the page forbids any request, whatever a prompt may contain.
May import: results, plotting.
"""

import base64
import functools
import hashlib
import importlib.metadata
import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mechsink.files import atomic_write, plain
from mechsink.report.maps import Maps
from mechsink.report.tables import Table
from mechsink.visible import visible

MAX_TEXTS = 24
"""Texts whose tokens are shown on the page; the rest stand in meta.json."""

LONGEST = 300
"""Characters shown of one setting; all of it stands in meta.json."""

LARGEST = 4 * 2**20
"""Bytes that a page may weigh."""


@dataclass(frozen=True)
class Headline:
    """One number that answers a question, its name and its reference point."""

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class Plot:
    """One figure: inline SVG with a title and a caption that explains its axes.

    `maps`: what a reader sees in its place where scripts run.
    """

    svg: Markup
    title: str
    caption: str
    wide: bool = False
    maps: Maps | None = None
    number: str = ""  # given by `render`


@dataclass(frozen=True)
class Token:
    """A token as it is shown, and its number in the vocabulary."""

    text: str
    id: int


@dataclass(frozen=True)
class TokenText:
    """One text, token by token, as the model read it."""

    title: str
    tokens: tuple[Token, ...]

    @classmethod
    def from_meta(cls, title: str, entry: Mapping[str, Any]) -> "TokenText":
        """From one entry of `provenance()["tokens"]`: ids and strings."""
        pairs = zip(entry["strings"], entry["ids"], strict=True)
        return cls(title, tuple(Token(show_token(text), id) for text, id in pairs))


@dataclass(frozen=True)
class Section:
    """A heading with sentences, numbers, figures and tables under it.

    A `chapter` opens a part of the page; other sections belong to the chapter
    before them.
    """

    title: str
    text: tuple[str, ...] = ()
    headlines: tuple[Headline, ...] = ()
    figures: tuple[Plot, ...] = ()
    tables: tuple[Table, ...] = ()
    chapter: bool = False


@dataclass(frozen=True)
class Page:
    """A whole report. `notes` warn before the numbers are read.

    `scripts`: files of templates/ that its figures need, beside the tables' own.
    """

    title: str
    summary: tuple[str, ...]
    headlines: tuple[Headline, ...] = ()
    sections: tuple[Section, ...] = ()
    texts: tuple[TokenText, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    texts_left_out: int = 0
    scripts: tuple[str, ...] = ()


def render(page: Page) -> str:
    """The page as HTML: self-contained, every text escaped, figures numbered."""
    script = "\n".join(map(_script, ("tables.js", "maps.js", *page.scripts)))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    if len(page.texts) > MAX_TEXTS:
        left_out = page.texts_left_out + len(page.texts) - MAX_TEXTS
        page = replace(page, texts=page.texts[:MAX_TEXTS], texts_left_out=left_out)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            page=replace(page, sections=_numbered(page.sections)),
            style=Markup(_asset("style.css")),  # ours: holds no text from outside
            script=Markup(script),
            script_hash=f"sha256-{digest}",
            version=_version(),
        )
    )


def write_page(page: Page, path: Path | str) -> Path:
    """Render and write, whole or not at all.

    Raises:
        ValueError: the page would weigh more than `LARGEST`.
        OSError: the path cannot be written.
    """
    data = render(page).encode("utf-8", "backslashreplace")
    if len(data) > LARGEST:
        raise ValueError(
            f"write_page: the page would weigh {len(data) / 2**20:.1f} MB. Allowed: "
            f"{LARGEST / 2**20:.0f} MB. Measure fewer or shorter texts, choose fewer "
            "edges, or save the tables without the page."
        )
    return atomic_write(path, data)


def settings_rows(meta: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """meta.json as rows of name and value; tokens have their own section."""
    rows: list[tuple[str, str]] = []
    for key, value in plain({k: v for k, v in meta.items() if k != "tokens"}).items():
        label: str = {"duration_s": "duration, s"}.get(key) or key.replace("_", " ")
        if isinstance(value, dict):
            rows += [(f"{label}: {k}", _words(v)) for k, v in value.items()]
        else:
            rows.append((label, _words(value)))
    return tuple(rows)


def show_token(text: str) -> str:
    """A token with its white space visible: · for a space, ⏎ for a line break."""
    swaps = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"}
    return "".join(
        swaps.get(char, char if char.isprintable() else f"\\x{ord(char):02x}")
        for char in text
    )


def _words(value: Any) -> str:
    if isinstance(value, dict):
        value = ", ".join(f"{k} {_words(v)}" for k, v in value.items())
    elif isinstance(value, list):
        value = ", ".join(_words(item) for item in value[:LONGEST])
    text = "–" if value is None else str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _numbered(sections: tuple[Section, ...]) -> tuple[Section, ...]:
    """Figures counted through; without chapters every section is one."""
    count, out = 0, []
    if not any(section.chapter for section in sections):
        sections = tuple(replace(section, chapter=True) for section in sections)
    for section in sections:
        figures = []
        for figure in section.figures:
            count += 1
            figures.append(replace(figure, number=f"Figure {count}"))
        out.append(replace(section, figures=tuple(figures)))
    return tuple(out)


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _shown(value: Any) -> Any:
    """Texts from outside without what can't be seen; markup is our own."""
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return visible(value) if is_text else value


@functools.cache
def _asset(name: str) -> str:
    folder = importlib.resources.files("mechsink.report") / "templates"
    return (folder / name).read_text(encoding="utf-8")


def _script(name: str) -> str:
    """One script of a page, its names its own."""
    return f"(() => {{\n{_asset(name)}}})();"


def _version() -> str:
    try:
        return importlib.metadata.version("mechsink")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
