"""Markdown pages taken apart: what runs, what is a command, what is skipped.

Comments in a page steer the tests and are seen by no reader:

    <!-- setup
    tokens = ...        code run before what follows
    -->
    <!-- not run: needs a GPU -->       before a block that can't run here
"""

import linecache
import re
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
)
SETUP = re.compile(r"<!-- setup\n(.*?)-->", re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: (.*?) -->")
SHELL = {"", "sh", "bash", "console"}


@dataclass(frozen=True)
class Block:
    """A piece of code of a page, with the line on which it begins, from 1."""

    page: Path
    line: int
    code: str
    language: str
    skipped: str = ""  # why it is not run

    @property
    def where(self) -> str:
        """Page and line, as editors open them."""
        return f"{name_of(self.page)}:{self.line}"


def name_of(page: Path) -> str:
    """Path within the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """Fenced and indented code of a page, hidden setup included, in order."""
    found: list[Block] = []
    skipped = ""
    for token in MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8")):
        line = (token.map or [0])[0] + 1
        if token.type == "html_block":
            skipped = " ".join(NOT_RUN.findall(token.content))
            for setup in SETUP.findall(token.content):
                found.append(Block(page, line + 1, setup, "python"))
        elif token.type in ("fence", "code_block"):
            words = token.info.split()
            language = words[0] if words else ""
            first = line + (token.type == "fence")
            found.append(Block(page, first, token.content, language, skipped))
            skipped = ""
        elif token.type in ("paragraph_open", "heading_open"):
            skipped = ""
    return found


def inline_code(page: Path) -> Iterator[tuple[int, str]]:
    """Code within text, with its line."""
    text = page.read_text(encoding="utf-8")
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        for child in token.children or ():
            if child.type == "code_inline":
                yield (token.map or [0])[0] + 1, child.content


def table_rows(page: Path) -> Iterator[tuple[int, list[list[str]]]]:
    """Body rows of a page's tables: the line, and the code of each cell."""
    text = page.read_text(encoding="utf-8")
    row: list[list[str]] = []
    line = 0
    inside = False
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "tbody_open":
            inside = True
        elif token.type == "tbody_close":
            inside = False
        elif token.type == "tr_open":
            row, line = [], (token.map or [0])[0] + 1
        elif token.type == "inline" and inside:
            row.append(_codes(token))
        elif token.type == "tr_close" and inside:
            yield line, row


def _codes(token: Token) -> list[str]:
    # A pipe inside a table's code is written \| in Markdown.
    return [c.content for c in token.children or () if c.type == "code_inline"]


class Running:
    """One page's namespace: blocks run in it one after another."""

    def __init__(self, page: Path) -> None:
        self.page = page
        name = "page_" + re.sub(r"\W", "_", name_of(page))
        self.module = types.ModuleType(name)

    def __enter__(self) -> "Running":
        sys.modules[self.module.__name__] = self.module  # dataclasses look it up
        return self

    def __exit__(self, *_: object) -> None:
        del sys.modules[self.module.__name__]

    def run(self, code: str, line: int) -> None:
        """Execute code; errors show the page and its line."""
        padded = "\n" * (line - 1) + code
        name = f"{self.page}:{line}"
        linecache.cache[name] = (len(padded), None, padded.splitlines(True), name)
        exec(compile(padded, name, "exec"), self.module.__dict__)
