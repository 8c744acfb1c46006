"""Frozen settings as JSON values and back, also those written by earlier versions."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

ADDED_LATER = {"added_later": True}
"""Metadata of a field that the first format lacked. At its default it is not written,
so that the digest of a run, which marks its files, stays what it was."""


def json_fields(settings: Any) -> dict[str, Any]:
    """Fields of a dataclass as JSON values: tuples as lists, nested settings too."""
    return {
        field.name: _json(getattr(settings, field.name))
        for field in fields(settings)
        if "added_later" not in field.metadata
        or getattr(settings, field.name) != field.default
    }


def checked_fields(kind: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """What `json_fields` wrote, ready for the constructor: lists as tuples.

    Raises:
        ValueError: a field is unknown, or missing though it was there from the first.
    """
    names = {field.name for field in fields(kind)}
    needed = {f.name for f in fields(kind) if "added_later" not in f.metadata}
    wrong = (set(data) - names) | (needed - set(data))
    if wrong:
        raise ValueError(
            f"{kind.__name__}.from_json: fields {sorted(wrong)} are unknown or "
            f"missing. Allowed: exactly {sorted(needed)}"
            + (f", and {sorted(names - needed)}." if names - needed else ".")
        )
    return {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}


def _json(value: Any) -> Any:
    if hasattr(value, "to_json"):
        return value.to_json()
    return [_json(v) for v in value] if isinstance(value, tuple) else value
