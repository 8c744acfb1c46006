"""What `mkdocs build` adds to the pages as they stand in the repository.

- `<!-- names: ROOM -->` on a page of docs/api becomes the documentation of every
  public name of that room, read from `mechsink/__init__.pyi`, so none can be missing.
- A public name in code, `ms.patch_sweep` or `toy_tasks.train`, links to where it is
  documented.
- CONTRIBUTING.md and CHANGELOG.md of the repository become pages.
"""

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
ROOT_PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
MARK = re.compile(r"<!-- names: ([\w.]+) -->")
CODE = re.compile(r"<code>((ms|toy_tasks)((?:\.\w+)+)[^<]*)</code>")


def names_of_rooms() -> dict[str, list[str]]:
    """Room of mechsink to the public names that live in it, in the stub's order."""
    rooms: dict[str, list[str]] = {}
    stub = ast.parse((ROOT / "mechsink" / "__init__.pyi").read_text())
    for node in stub.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                room = (node.module or alias.name).split(".")[0]
                rooms.setdefault(room, []).append(alias.asname or alias.name)
    return rooms


def names_of_package(package: str) -> list[str]:
    """`__all__` of a package, as written in its `__init__.py`."""
    source = ROOT.joinpath(*package.split("."), "__init__.py").read_text()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


RESULTS = ("provenance.provenance", "results.read_table", "results.Result")
"""What an own measurement needs, though it is none of `ms`'s names."""


def public_names(room: str) -> list[str]:
    """Full names to document on the page of a room: functions first, then types."""
    if room == "results":
        return [f"mechsink.{name}" for name in RESULTS]
    if room.startswith("toy_tasks") or room == "prompt_sets":
        package = room if room.startswith("toy_tasks") else f"mechsink.{room}"
        found = names_of_package(package)
    else:
        package, found = "mechsink", names_of_rooms()[room]
    ordered = sorted(found, key=lambda name: (name[0].isupper(), name.lower()))
    return [f"{package}.{name}" for name in ordered]


def on_files(files: Any, config: Any) -> Any:
    """Adds the repository's own pages."""
    for source, page in ROOT_PAGES.items():
        text = (ROOT / source).read_text().replace("](docs/", "](")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Names of a room, and links to the repository's own pages."""
    for source, target in ROOT_PAGES.items():
        markdown = re.sub(
            rf"\]\(((?:\.\./)*)\.\./{re.escape(source)}", rf"](\1{target}", markdown
        )
    return MARK.sub(
        lambda mark: "\n\n".join(f"::: {name}" for name in public_names(mark[1])),
        markdown,
    )


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Names in code become references, which autorefs resolves."""
    known = {f"ms.{name}" for names in names_of_rooms().values() for name in names}
    known.discard("ms.prompt_sets")  # a module: its page is the room's
    known |= {f"toy_tasks.{name}" for name in names_of_package("toy_tasks")}

    def linked(found: re.Match[str]) -> str:
        name = found[2] + "." + found[3].split(".")[1]
        if name not in known:
            return found[0]
        identifier = name.replace("ms.", "mechsink.", 1)
        return f'<autoref identifier="{identifier}">{found[0]}</autoref>'

    # Headings stay as they are: they are links themselves, in the table of contents.
    parts = re.split(r"(<h\d.*?</h\d>|<a .*?</a>|<pre.*?</pre>)", html, flags=re.S)
    return "".join(
        part if number % 2 else CODE.sub(linked, part)
        for number, part in enumerate(parts)
    )
