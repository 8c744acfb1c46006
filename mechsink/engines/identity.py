"""What was asked, as JSON: the same question gives the same, in every process."""

import functools
import hashlib
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from mechsink.run import Model
from toy_tasks.runs import digest

ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""In the repr of a function: another one in every process."""
DEPTH = 12
"""Deeper than any argument; nothing refers to itself for ever."""


def identity(value: Any, depth: int = DEPTH) -> Any:
    """A value by what it is made of; functions by name, code and what they close over.

    Large tensors become digests, so that other references of a mean, say, differ.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth == 0:
        return ADDRESS.sub("", repr(value))
    inside = functools.partial(identity, depth=depth - 1)
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous().flatten()
        short = data.tolist() if data.numel() <= 16 else digest(data.double().tolist())
        return {str(value.dtype): [list(value.shape), short]}
    if isinstance(value, Mapping):
        return {str(key): inside(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(str, map(inside, value)))
    if isinstance(value, list | tuple | range):
        return [inside(item) for item in value]
    if isinstance(value, functools.partial):
        return {"partial": inside([value.func, value.args, value.keywords])}
    if is_dataclass(value) and not isinstance(value, type):
        own = {f.name: inside(getattr(value, f.name)) for f in fields(value)}
        return {type(value).__qualname__: own}
    if isinstance(value, Model):
        return value.name
    if hasattr(value, "__qualname__"):
        return _function(value, inside)
    own = getattr(value, "__dict__", None)
    if own:
        return {type(value).__qualname__: inside(own)}
    return ADDRESS.sub("", repr(value))


def _function(value: Any, inside: Any) -> Any:
    module = value.__module__ or "builtins"
    name = f"{module}.{value.__qualname__}"
    code = getattr(value, "__code__", None)
    if code is None or module.startswith("mechsink."):
        own: dict[str, Any] = {}
    else:  # somebody's own: it may be changed and keep its name
        own = {"code": hashlib.sha256(code.co_code).hexdigest()[:16]}
        own["constants"] = [ADDRESS.sub("", str(c)) for c in code.co_consts]
    cells = getattr(value, "__closure__", None)
    if cells:
        names = code.co_freevars if code is not None else ()
        own["closure"] = {
            cell_name: inside(cell.cell_contents)
            for cell_name, cell in zip(names, cells, strict=True)
        }
    return {name: own} if own else name
