"""Options of a wrong type, refused in words before any work.

Python lets `layers="0"` or `steps=1.5` in; without a look at them they end in an
error from the depths, or in numbers that nobody asked for. What is looked at are the
plain types (numbers, texts, choices, lists of them); shapes are the tests' own matter.
"""

import functools
import inspect
import numbers
import reprlib
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin
from typing import get_type_hints as hints_of

import numpy as np

P = ParamSpec("P")
R = TypeVar("R")

_WORDS = {
    type(None): "None",
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
}


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """The function, refusing arguments of other types than its annotations name.

    Raises (when called):
        TypeError: says what was given for which option, and what is allowed.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        try:
            given = signature.bind(*args, **options).arguments
        except TypeError:
            return function(*args, **options)  # says it itself
        known = _hints(function)
        for name, value in given.items():
            if name in known:
                check(function.__name__, name, value, known[name])
        return function(*args, **options)

    return call


def check_fields(settings: Any) -> None:
    """Raise TypeError for a field of a dataclass that is not of its plain type."""
    known = _hints(type(settings))
    for field in fields(settings):
        value = getattr(settings, field.name)
        check(type(settings).__name__, field.name, value, known[field.name])


def check(caller: str, name: str, value: Any, hint: Any) -> None:
    """Raise TypeError if a value is none of what its annotation names."""
    if not _fits(value, hint):
        raise TypeError(
            f"{caller}: {name}={reprlib.repr(value)}, of type "
            f"{type(value).__name__}. Allowed: {_said(hint)}."
        )


@functools.cache
def _hints(owner: Any) -> dict[str, Any]:
    try:
        return hints_of(owner)
    except NameError:  # a name that only a type checker imports
        return dict(owner.__annotations__)


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        # A text that is no choice is refused where the choices are explained.
        return any(type(value) is type(one) for one in inner)
    if hint is bool:
        return isinstance(value, bool | np.bool_)
    if hint is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    if hint in _WORDS:
        return isinstance(value, hint)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = (inner[0],) * len(value) if inner[-1] is Ellipsis else inner
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    if origin in (Sequence, list):
        is_row = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        return is_row and all(_fits(item, inner[0]) for item in value)
    if origin is Mapping or origin is dict:
        return isinstance(value, Mapping)
    return True  # models, tensors, functions: their own code looks at them


def _said(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_said, inner)))
    if origin is Literal:
        return ", ".join(map(repr, inner))
    if origin in (Sequence, list):
        return f"a list of {_said(inner[0])} each"
    if origin is tuple:
        return f"a tuple of {_said(inner[0])} each"
    if origin is Mapping or origin is dict:
        return "a mapping"
    return _WORDS.get(hint) or getattr(hint, "__name__", str(hint))
