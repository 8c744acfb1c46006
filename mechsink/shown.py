"""How results show themselves in a notebook: a line, a figure, a table's head.

May import: visible, plotting.
"""

import html
from collections.abc import Mapping
from typing import Any

import pandas as pd

from mechsink import plotting
from mechsink.visible import visible

ROWS, COLUMNS = 8, 12
"""Most of a table that is shown."""
_ORIGIN = ("model", "metric", "dtype", "device", "seed")


class Shown:
    """Shows itself in a notebook; for classes with a `table` and a `meta`.

    The figure is what `plot()` draws, where there is one. Nothing that fails while
    drawing hides the table, and every text is escaped.
    """

    table: Any  # a pandas DataFrame, also as a property
    meta: dict[str, Any]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # IPython asks class by class, and takes a dataclass's __repr__, with all its
        # tokens, before what a parent offers.
        cls._repr_pretty_ = Shown._repr_pretty_

    def _repr_html_(self) -> str:
        """A line of provenance, the result's own figure and the table's head."""
        line = html.escape(visible(self._origin()))
        return f"<p>{line}</p>{self._figure()}{table_html(self.table.head(ROWS))}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """The same line and head, where a notebook or IPython shows text alone."""
        printer.text(f"{visible(self._origin())}\n{self.table.head(ROWS)}")

    def _origin(self) -> str:
        """What was measured, and on what, in one line."""
        words = [type(self).__name__, f"{len(self.table):,} rows"]
        found = {"metric": getattr(self, "metric", None), **self.meta}
        words += [str(found[k]) for k in _ORIGIN if found.get(k) is not None]
        if isinstance(n := found.get("n_prompts"), int):
            words.append(f"{n:,} prompt{'' if n == 1 else 's'}")
        if isinstance(used := found.get("versions"), Mapping) and used.get("mechsink"):
            words.append(f"mechsink {used['mechsink']}")
        return " · ".join(words)

    def _figure(self) -> str:
        """The plot as an image, or why there is none: the table is shown anyway."""
        plot = getattr(self, "plot", None)
        if plot is None or not self._draws_quickly():
            return ""
        try:
            return plotting.inline(plot, f"{type(self).__name__}, drawn")
        except Exception as error:  # of whatever kind: a picture is an extra
            reason = f"No figure: {type(error).__name__}: {error}"
            return f"<p><i>{html.escape(visible(reason[:300]))}</i></p>"

    def _draws_quickly(self) -> bool:
        """Whether a figure takes no more than a second or so."""
        return True


def table_html(table: pd.DataFrame) -> str:
    """A table for a notebook, numbers in four digits."""
    return table.to_html(
        index=False,
        escape=True,
        border=0,
        max_cols=COLUMNS,
        float_format="{:.4g}".format,
    )
