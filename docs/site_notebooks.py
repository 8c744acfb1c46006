"""The notebooks as pages of the site: text, code, and the outputs that are kept.

A page is the notebook's cells in turn; its figures become files beside it.
"""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

FOLDER = Path(__file__).parent.parent / "notebooks"
INDEX = "notebooks/index.md"
Cell = dict[str, Any]


def on_files(files: Any, config: Any) -> Any:
    """Adds a page for each notebook, its figures, and the list of notebooks."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    text = text.replace(".ipynb)", ".md)")
    files.append(File.generated(config, INDEX, content=text))
    for source in sorted(FOLDER.glob("[0-9]-*.ipynb")):
        cells = json.loads(source.read_text(encoding="utf-8"))["cells"]
        figures: list[bytes] = []
        parts = [part for cell in cells for part in markdown_of(cell, figures, source)]
        page = f"notebooks/{source.stem}.md"
        files.append(File.generated(config, page, content="\n\n".join(parts)))
        for number, figure in enumerate(figures, start=1):
            name = f"notebooks/{source.stem}-{number}.png"
            files.append(File.generated(config, name, content=figure))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links to the notebooks' folder lead to their pages."""
    pattern = r"\]\(((?:\.\./)*)\.\./notebooks/README\.md"
    return re.sub(pattern, rf"](\1{INDEX}", markdown)


def markdown_of(cell: Cell, figures: list[bytes], source: Path) -> Iterator[str]:
    """A cell as Markdown, then its outputs; figures are added to the list."""
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        # From notebooks/ to docs/ in the repository: one folder up in the site.
        yield re.sub(r"\]\(\.\./docs/", "](../", text)
        return
    yield fenced(text, "python")
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            figures.append(base64.b64decode("".join(data["image/png"])))
            number = len(figures)
            yield f"![Figure {number} of this page]({source.stem}-{number}.png)"
        elif "text/html" in data:
            yield as_block("".join(data["text/html"]))
        else:
            said = "".join(data.get("text/plain", output.get("text", "")))
            yield fenced(said, "{ .text .output .no-copy }")


def fenced(text: str, language: str) -> str:
    """A code block; its fence is longer than any within."""
    longest = max(map(len, re.findall("`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def as_block(html: str) -> str:
    """HTML that Markdown passes on whole: one element, without an empty line."""
    return '<div class="output">' + re.sub(r"\s*\n\s*", "\n", html.strip()) + "</div>"
