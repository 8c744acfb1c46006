"""Heat maps that a reader can walk through: values on hover, one map of many at a time.

`Maps` holds a stack of equal grids, such as the attention of every head or a score at
every training step. In the page it takes the place of the figure that it belongs to;
on paper, and where scripts are off, the figure stays.
May import: plotting, visible.
"""

import base64
import functools
import json
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from mechsink import plotting
from mechsink.visible import visible

FINE_UP_TO = 60_000
"""Values stored in two bytes each; larger stacks take one byte, 254 steps a range."""

MOST = 600_000
"""Values that one stack may hold: a page stays below its four megabytes."""


@dataclass(frozen=True)
class Choice:
    """One way through the stack: a list to choose from, or a slider."""

    name: str
    labels: tuple[str, ...]
    start: int = 0
    kind: Literal["list", "slider"] = "list"


@dataclass(frozen=True, eq=False)
class Maps:
    """Equal grids, one of which is shown at a time.

    Attributes:
        values: one number a cell, row 0 where `upwards` says; NaN: nothing there.
            The first axis runs over the choices' product, the last choice fastest.
        choices: ways through the stack; () for one grid.
        rows, columns: labels of the cells; a tuple of tuples gives the columns of
            each label of the first choice.
        names: what rows, columns and values are, the last with its unit.
        limits: values of the end colours.
        diverging: white at zero, else a ramp from light to dark.
        upwards: row 0 lies at the bottom, as layers do, or on top, as queries do.
        marked: row and column labels to stand out, by index.
    """

    values: Float[np.ndarray, "map row column"]
    rows: tuple[str, ...]
    columns: tuple[str, ...] | tuple[tuple[str, ...], ...]
    names: tuple[str, str, str]
    limits: tuple[float, float]
    choices: tuple[Choice, ...] = ()
    diverging: bool = False
    upwards: bool = True
    marked: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        n_maps, n_rows, n_columns = self.values.shape
        sets = self._column_sets()
        wanted = math.prod(len(choice.labels) for choice in self.choices)
        if (n_maps, n_rows) != (wanted, len(self.rows)) or any(
            len(labels) != n_columns for labels in sets
        ):
            raise ValueError(
                f"Maps: {n_maps} maps of {n_rows} by {n_columns} values, but labels "
                f"for {wanted} of {len(self.rows)} by {len(sets[0])}."
            )

    def _column_sets(self) -> tuple[tuple[str, ...], ...]:
        columns: Any = self.columns
        return columns if columns and isinstance(columns[0], tuple) else (columns,)

    def data(self) -> Markup:
        """All that the page's script needs: JSON that is safe inside a script tag."""
        numbers, low, high = _packed(self.values)
        labels = [[visible(text) for text in row] for row in self._column_sets()]
        table = {
            "values": base64.b64encode(numbers.tobytes()).decode(),
            "bytes": numbers.itemsize,
            "range": [low, high],
            "shape": list(self.values.shape),
            "rows": [visible(text) for text in self.rows],
            "columns": labels,
            "names": list(self.names),
            "limits": list(self.limits),
            "upwards": self.upwards,
            "marked": list(self.marked),
            "choices": [[visible(x) for x in choice.labels] for choice in self.choices],
            "colours": base64.b64encode(_ramp(self.diverging)).decode(),
        }
        text = json.dumps(table, ensure_ascii=True, separators=(",", ":"))
        # "</script>" or "<!--" in a token would end the element
        return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e"))


def fits(n_maps: int, n_rows: int, n_columns: int) -> bool:
    """Whether a stack of this size may go into a page."""
    return 0 < n_maps * n_rows * n_columns <= MOST


def _packed(
    values: Float[np.ndarray, "map row column"],
) -> tuple[np.ndarray, float, float]:
    """Whole numbers 0..top over the values' range; the number above top is NaN's."""
    kind = np.uint16 if values.size <= FINE_UP_TO else np.uint8
    top = np.iinfo(kind).max - 1
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    span = (high - low) or 1.0
    with np.errstate(invalid="ignore"):
        steps = np.rint((values - low) / span * top)
    numbers = np.where(np.isfinite(values), steps, top + 1).astype(kind)
    return numbers.astype(f"<u{numbers.itemsize}"), float(low), float(low + span)


@functools.cache
def _ramp(diverging: bool) -> bytes:
    """The figures' own 256 colours, three bytes each."""
    import matplotlib as mpl
    import seaborn  # noqa: F401  registers the ramp

    name = plotting.DIVERGING if diverging else plotting.SEQUENTIAL
    colours = mpl.colormaps[name](np.linspace(0, 1, 256))[:, :3]
    return np.rint(255 * colours).astype(np.uint8).tobytes()
