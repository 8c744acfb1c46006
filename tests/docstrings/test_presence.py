"""Every public name says what it takes, what it gives, what it refuses, and how."""

import ast
import inspect
import re

import pytest

from tests.docstrings.names import (
    DATA,
    NAMES,
    ROOMS,
    doc_of,
    entries,
    has_bare_tensor,
    object_of,
    parameters,
    raises,
    sections,
    source_of,
)


@pytest.mark.parametrize("name", NAMES)
def test_a_summary_and_an_example(name: str) -> None:
    doc = doc_of(name)
    assert doc, f"{name} has no docstring"
    summary = inspect.cleandoc(doc).splitlines()[0]
    assert re.match(r"[^a-z\s].*[.?:]$", summary), f"{name}: {summary!r} is no sentence"
    assert ">>> " in sections(doc).get("Examples", ""), f"{name} shows no example"


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name not in DATA and name not in ROOMS]
)
def test_arguments_results_and_errors(name: str) -> None:
    # Sorted out here, not while tests are collected: that would import everything.
    if inspect.isclass(object_of(name)):
        check_fields(name)
        check_methods(name)
    else:
        check_function(name)


def check_function(name: str) -> None:
    """A function names its arguments, its result and its errors."""
    node, module = source_of(object_of(name))
    assert isinstance(node, ast.FunctionDef)
    said = sections(object_of(name).__doc__)
    given, told = parameters(node), entries(said.get("Args", ""))
    assert (list(told) and set(told) == set(given)) or not given, (
        f"{name}: not told of {sorted(set(given) - set(told))}, "
        f"told of {sorted(set(told) - set(given))} that it does not take"
    )
    for argument, annotation in given.items():
        if has_bare_tensor(annotation):
            shape = re.search(r"(Int|Bool|Float)\[|`\w+`", told[argument])
            assert shape, f"{name}: {argument} is a tensor of what shape?"
    if node.returns is None or ast.unparse(node.returns) != "None":
        assert {"Returns", "Yields"} & set(said), f"{name} does not say what it gives"
    if raises(node, module):
        assert "ValueError:" in said.get("Raises", ""), f"{name} hides its ValueError"


def check_fields(name: str) -> None:
    """A class says what its fields, or its arguments, are."""
    found = object_of(name)
    node, _ = source_of(found)
    words = set(re.findall(r"\w+", found.__doc__))
    init = [n for n in node.body if getattr(n, "name", "") == "__init__"]
    wanted = [n for one in init for n in parameters(one)]
    for i, statement in enumerate(node.body):
        if not isinstance(statement, ast.AnnAssign) or "ClassVar" in ast.unparse(
            statement.annotation
        ):
            continue
        field = ast.unparse(statement.target)
        after = node.body[i + 1] if i + 1 < len(node.body) else None
        told_after = isinstance(after, ast.Expr)
        if not (field.startswith("_") or told_after):
            wanted.append(field)
    missing = [field for field in wanted if field not in words]
    assert not missing, f"{name} says nothing of {missing}"
    told = entries(sections(found.__doc__).get("Args", ""))
    if told:
        assert set(told) <= set(inspect.signature(found).parameters), f"{name}: {told}"


def check_methods(name: str) -> None:
    """Public methods name their arguments and their errors."""
    node, module = source_of(object_of(name))
    for method in node.body:
        if not isinstance(method, ast.FunctionDef) or method.name.startswith("_"):
            continue
        doc = ast.get_docstring(method)
        where = f"{name}.{method.name}"
        assert doc, f"{where} has no docstring"
        words = set(re.findall(r"\w+", doc))
        missing = set(parameters(method)) - words
        assert not missing, f"{where} says nothing of {sorted(missing)}"
        told = set(entries(sections(doc).get("Args", "")))
        assert told <= set(parameters(method)), f"{where} does not take {told}"
        if raises(method, module):
            known = re.search(r"ValueError|Raise|raise|[A-Z]\w+(Error|Failed)", doc)
            assert known, f"{where} hides its error"
