"""Tables of a report: DataFrames with readable names and rounded numbers.

A cell shows a rounded number and sorts by the exact one.
May import: nothing of mechsink.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Column:
    """Heading of a column, with its unit where it has one."""

    name: str
    numeric: bool


@dataclass(frozen=True)
class Cell:
    """What is shown, and the number to sort by (None: sort by the text)."""

    text: str
    sort: str | None


@dataclass(frozen=True)
class Table:
    """One table of a page, ready to be rendered; every text is still unescaped."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""


def to_table(
    frame: pd.DataFrame,
    title: str,
    *,
    names: Mapping[str, str] | None = None,
    caption: str = "",
) -> Table:
    """A DataFrame as a sortable table, its index left out.

    Args:
        frame: one row a thing; NaN is shown as "–" and sorts last.
        title: heading of the table.
        names: columns to show, in order, and how to call them; all by default.
        caption: what a row is, units and reference points.

    Raises:
        ValueError: `names` asks for a column that the frame does not have.
    """
    names = names or {str(column): str(column) for column in frame.columns}
    if missing := [name for name in names if name not in frame.columns]:
        raise ValueError(
            f"to_table: the frame has no column {missing[0]!r}. "
            f"It has: {', '.join(map(str, frame.columns))}."
        )
    columns: list[Any] = [frame[name] for name in names]
    kinds = [_is_number(column) for column in columns]
    cells = [
        [_cell(value, number) for value in column]
        for column, number in zip(columns, kinds, strict=True)
    ]
    heads = tuple(
        Column(text, number) for text, number in zip(names.values(), kinds, strict=True)
    )
    rows = tuple(zip(*cells, strict=True)) if len(frame) else ()
    return Table(title, heads, rows, caption)


def number(value: float | int, digits: int = 3) -> str:
    """A number for reading: `digits` significant digits, thousands apart.

    Without exponent between 0.001 and a billion; "–" for NaN.
    """
    if isinstance(value, bool) or not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "–")
    if value == int(value) and abs(value) < 1e9:
        return _minus(f"{int(value):,}")
    if abs(value) >= 10 ** (digits - 1):
        return _minus(f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.{digits}g}")
    if abs(value) < 1e-3:
        return _minus(f"{value:.1e}")
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return _minus(f"{value:.{min(places, 4)}f}")


def _minus(text: str) -> str:
    return text.replace("-", "−", 1) if text.startswith("-") else text


def _is_number(column: Any) -> bool:
    kind = column.dtype
    return pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind)


def _cell(value: Any, is_number: bool) -> Cell:
    if is_number:
        exact = float(value) if not pd.isna(value) else math.nan
        return Cell(number(exact), "NaN" if math.isnan(exact) else repr(exact))
    if isinstance(value, bool):
        return Cell("yes" if value else "no", None)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return Cell("–", None)
    return Cell(str(value), None)
