"""The public names, where they are defined, and what their docstrings say."""

import ast
import functools
import importlib
import inspect
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mechsink
import toy_tasks
from mechsink import prompt_sets

ROOMS = {"ms": mechsink, "ms.prompt_sets": prompt_sets, "toy_tasks": toy_tasks}
DATA = {
    "ms.prompt_sets.ALL": "mechsink.prompt_sets",
    "toy_tasks.PLANTED": "toy_tasks.planted",
    "toy_tasks.PRESETS": "toy_tasks.presets",
}
"""Plain dicts, described by a string after them in these modules."""
NAMES = [
    f"{room}.{name}"
    for room, module in ROOMS.items()
    for name in sorted(module.__all__)
]
_HEAD = re.compile(
    r"^(Args|Attributes|Returns|Yields|Raises|Examples):\s*$", re.MULTILINE
)
_STRUCTURE = ast.FunctionDef | ast.ClassDef


def object_of(name: str) -> Any:
    """What a public name stands for; of a ready instance (`logit_diff`) its class."""
    room, _, last = name.rpartition(".")
    found = getattr(ROOMS[room], last)
    is_named = isinstance(found, type | types.FunctionType | types.ModuleType)
    return found if is_named else type(found)


def sections(doc: str) -> dict[str, str]:
    """Text of each section of a docstring, and under "" what comes before."""
    parts = _HEAD.split(inspect.cleandoc(doc))
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def entries(section: str) -> dict[str, str]:
    """Name to description, as Args and Attributes list them."""
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if start := re.match(r"    \*{0,2}(\w+): (.*)", line):
            name, found[start[1]] = start[1], start[2]
        elif line.startswith("     ") and name:
            found[name] += " " + line.strip()
        elif line and not line.startswith(" "):
            break  # a paragraph after the section, such as the source
    return found


@functools.cache
def tree(file: str) -> ast.Module:
    """A source file, parsed."""
    return ast.parse(Path(file).read_text())


def source_of(found: Any) -> tuple[_STRUCTURE, ast.Module]:
    """The definition of a function or class, and its whole file."""
    module = tree(importlib.import_module(found.__module__).__file__)
    node: Any = module
    for part in found.__qualname__.split("."):
        node = next(
            child
            for child in node.body
            if isinstance(child, _STRUCTURE) and child.name == part
        )
    return node, module


def parameters(node: ast.FunctionDef) -> dict[str, ast.expr | None]:
    """Name to annotation; self and cls left out."""
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    given += [one for one in (node.args.vararg, node.args.kwarg) if one]
    return {a.arg: a.annotation for a in given if a.arg not in ("self", "cls")}


def raises(node: ast.AST, module: ast.Module) -> bool:
    """Whether a function, or a private one of its file that it calls, refuses values.

    `raise some_error(...)` counts: errors that several functions share are made so.
    """
    private = {
        child.name: child
        for child in module.body
        if isinstance(child, ast.FunctionDef) and child.name.startswith("_")
    }
    seen: set[str] = set()
    todo: list[ast.AST] = [node]
    while todo:
        for part in _own(todo.pop()):
            if isinstance(part, ast.Raise) and isinstance(part.exc, ast.Call):
                name = ast.unparse(part.exc.func)
                if name == "ValueError" or name.split(".")[-1].lstrip("_").islower():
                    return True
            if isinstance(part, ast.Call) and isinstance(part.func, ast.Name):
                name = part.func.id
                if name in private and name not in seen:
                    seen.add(name)
                    todo.append(private[name])
    return False


def _own(node: ast.AST) -> Iterator[ast.AST]:
    """A function's own statements, without those of functions made inside."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.Lambda):
            yield child
            yield from _own(child)


def has_bare_tensor(annotation: ast.expr | None) -> bool:
    """Whether an annotation names tensors without their shape."""
    if annotation is None:
        return False
    text = re.sub(
        r"\b\w+\[(np\.ndarray|Tensor), '[^']*'\]", "", ast.unparse(annotation)
    )
    return re.search(r"\bTensor\b", text) is not None


def doc_of(name: str) -> str | None:
    """The docstring of a public name."""
    if name not in DATA:
        return object_of(name).__doc__
    module = tree(importlib.import_module(DATA[name]).__file__)
    for i, node in enumerate(module.body):
        if isinstance(node, ast.AnnAssign):
            after: Any = module.body[i + 1]
            if ast.unparse(node.target) == name.split(".")[-1]:
                return after.value.value if isinstance(after, ast.Expr) else None
    return None
