"""Every message quoted in docs/troubleshooting.md is one that the code still says."""

import ast
import re
from functools import cache

from markdown_it import MarkdownIt

from tests.docs.pages import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
GAP = "…"


def quotes() -> list[str]:
    """Code in block quotes."""
    found: list[str] = []
    depth = 0
    for token in MarkdownIt("commonmark").parse(PAGE.read_text(encoding="utf-8")):
        depth += {"blockquote_open": 1, "blockquote_close": -1}.get(token.type, 0)
        if depth and token.children:
            found += [c.content for c in token.children if c.type == "code_inline"]
    return found


@cache
def said() -> list[str]:
    """String literals of the source, with a gap for each value that is put in."""
    found = []
    for package in ("mechsink", "toy_tasks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    found.append("".join(map(_part, node.values)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return [text for text in found if len(text) > 12]


def _part(node: ast.expr) -> str:
    is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return str(node.value) if is_text else GAP  # type: ignore[union-attr]


def is_said(quote: str) -> bool:
    # A gap of the page covers any text and gaps of the source.
    pieces = (re.escape(piece) for piece in quote.split(GAP))
    pattern = re.compile(".*?".join(pieces), re.DOTALL)
    return any(pattern.search(text) for text in said())


def test_there_are_many_and_each_is_said() -> None:
    found = quotes()
    assert len(found) >= 40 and len(set(found)) == len(found)
    assert not [quote for quote in found if not is_said(quote)]


def test_what_nobody_says_is_noticed() -> None:
    assert not is_said("PromptPairs: pair … has no luck")
    assert is_said("PromptPairs: pair … has … clean and … corrupted tokens.")


def test_each_is_followed_by_what_to_do() -> None:
    text = PAGE.read_text(encoding="utf-8")
    parts = re.split(r"^> `.*`$", text, flags=re.MULTILINE)[1:]
    assert len(parts) == len(quotes())
    for part in parts:
        advice = part.split("\n## ")[0].strip()
        assert len(advice) > 25 and not advice.startswith(">"), part[:80]
