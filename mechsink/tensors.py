"""A tidy table as a dense torch tensor, each axis with its name and coordinates.

May import: nothing of mechsink.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

MOST = 2**30  # cells; more is a table that is no grid

_INDICES = {"batch", "prompt", "layer", "head", "kv_head", "neuron", "pos", "position"}
"""Columns that stay axes where a missing one made numbers with a point of them."""

_LABELS = {"token", "string", "id"}
"""What stands at a position, beside `pos`."""


@dataclass(frozen=True, eq=False)
class TableTensor:
    """One column of a table, laid out over others.

    `values`: one dimension an axis, in the order of `axes`. `axes`: name to its
    coordinates, in the order of `values`; numbers ascending, texts as they first come,
    None last for rows that have none (the layer of an embedding, say).

    Examples:
        >>> case = ms.planted("induction")
        >>> scores = ms.sink_scores(case.model, case.pairs.clean).to_torch("score")
        >>> list(scores.axes), tuple(scores.values.shape)
        (['batch', 'position', 'layer', 'head'], (12, 1, 2, 3))
        >>> scores.at(layer=0, head=1, position=0).shape
        torch.Size([12])
    """

    values: Tensor
    axes: dict[str, list[Any]]

    def at(self, **coordinates: Any) -> Tensor:
        """The part at these coordinates, such as at(layer=3, head=2); others stay.

        Raises:
            ValueError: no such axis, or no such coordinate on it.
        """
        index: list[Any] = [slice(None)] * len(self.axes)
        for name, wanted in coordinates.items():
            if name not in self.axes:
                raise ValueError(
                    f"TableTensor.at: no axis is called {name!r}. Allowed: "
                    f"{', '.join(self.axes)}."
                )
            if wanted not in self.axes[name]:
                raise ValueError(
                    f"TableTensor.at: {name}={wanted!r} is not on that axis. Allowed: "
                    f"{_some(self.axes[name])}."
                )
            index[list(self.axes).index(name)] = self.axes[name].index(wanted)
        return self.values[tuple(index)]


def table_tensor(
    table: pd.DataFrame,
    column: str | None = None,
    axes: Sequence[str] | None = None,
    *,
    fill: float | int = math.nan,
    dtype: torch.dtype = torch.float64,
) -> TableTensor:
    """See `Result.to_torch`, whose table this lays out."""
    chosen = _default_axes(table) if axes is None else list(axes)
    numbers = [
        str(name)
        for name in table.columns
        if name not in chosen and pd.api.types.is_numeric_dtype(table[name])
    ]
    column = column or next(iter(numbers), None)
    if column not in numbers:
        raise ValueError(
            f"to_torch: column={column!r} has no numbers to lay out over "
            f"{', '.join(chosen) or 'no axis'}. Allowed: "
            f"{', '.join(numbers) or 'none'}."
        )
    unknown = [name for name in chosen if name not in table.columns]
    if unknown or not chosen or len({*chosen}) < len(chosen):
        raise ValueError(
            f"to_torch: axes={chosen}. Allowed: one or more columns of the table, each "
            f"once: {', '.join(map(str, table.columns))}."
        )
    repeated = table.duplicated(subset=chosen)
    if repeated.any():
        where = table.loc[repeated, chosen].iloc[0].to_dict()
        raise ValueError(
            f"to_torch: several rows are at {where}, so axes={chosen} do not tell them "
            "apart. Name more columns as axes, or take the mean first: "
            f"result.table.groupby({chosen})[{column!r}].mean()."
        )
    columns: list[Any] = [table[name] for name in chosen]
    codes, coordinates = zip(*map(_coordinates, columns), strict=True)
    sizes = [len(one) for one in coordinates]
    if math.prod(sizes) > MOST:
        raise ValueError(
            f"to_torch: axes={chosen} span {' x '.join(map(str, sizes))} cells for "
            f"{len(table)} rows. Name fewer axes, or pick rows of result.table first."
        )
    values = torch.full(sizes, fill, dtype=dtype)
    found = torch.from_numpy(
        table[column].to_numpy(dtype=float, na_value=math.nan).copy()
    )
    values[tuple(torch.from_numpy(code) for code in codes)] = found.to(dtype)
    return TableTensor(values, dict(zip(chosen, coordinates, strict=True)))


def _default_axes(table: pd.DataFrame) -> list[str]:
    """Columns that come before the numbers, less what only names a position."""
    keys: list[str] = []
    for name in map(str, table.columns):
        if pd.api.types.is_float_dtype(table[name]) and name not in _INDICES:
            break
        if name not in _LABELS:
            keys.append(name)
    return keys


def _coordinates(column: pd.Series) -> tuple[np.ndarray, list[Any]]:
    """A number for each row, and what the numbers stand for."""
    is_number = pd.api.types.is_numeric_dtype(column)
    codes, found = pd.factorize(column, sort=is_number)
    names: list[Any] = found.tolist()
    if pd.api.types.is_float_dtype(column) and all(n == int(n) for n in names):
        names = [int(n) for n in names]
    if (codes < 0).any():  # a row without this coordinate
        codes = np.where(codes < 0, len(names), codes)
        names.append(None)
    return codes.astype(np.int64), names


def _some(names: list[Any]) -> str:
    shown = list(map(repr, names))
    return ", ".join(shown if len(shown) < 9 else [*shown[:6], "...", shown[-1]])
