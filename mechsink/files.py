"""Files that are written whole or not at all, and values that JSON can hold.

May import: toy_tasks.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from toy_tasks.storage import put


def plain(value: Any) -> Any:
    """The same value of JSON's types only; NaN and infinities become None."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return plain(value.tolist())
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, set | frozenset):
        return sorted(plain(item) for item in value)
    if isinstance(value, list | tuple | range):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if abs(value) < float("inf") else None
    return str(value)  # paths, devices, dtypes


def to_json(meta: Mapping[str, Any]) -> str:
    """JSON of any mapping, one line for each of its keys."""
    lines = (
        f"  {json.dumps(str(key))}: {json.dumps(plain(value), ensure_ascii=False)}"
        for key, value in meta.items()
    )
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    # Half a character, of a file name of stray bytes, say, has no UTF-8 of its own.
    return re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text)


def atomic_write(path: Path | str, data: bytes | str) -> Path:
    """Write a file so that readers see the old content or the new, whole.

    Raises:
        OSError: the path cannot be written; nothing is left behind.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        put(path, data.encode() if isinstance(data, str) else data)
    except OSError as error:
        raise cannot_write(path, error) from error
    return path


def cannot_write(path: Path, error: OSError) -> OSError:
    """The error with what was to be written, and how to mend it."""
    return OSError(
        f"save: cannot write {path}: {error.strerror or error}. Allowed: a path in a "
        "folder that you may write to, on a disk with room. Pass another one."
    )
