"""One look for every figure: column width, colour-blind-safe, vector-friendly.

Each `.plot()` draws inside `theme()`, which leaves the user's rcParams alone.
matplotlib is imported when something is drawn, never before.
May import: visible.
"""

import base64
import functools
import html
import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mechsink.visible import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:  # so that the shape checker can resolve annotations without matplotlib
    Axes = Figure = Any

WIDTH = 3.4
"""Inches: one column of a two-column paper."""
INLINE_DPI = 144
"""Dots an inch of a figure in a notebook: one and a half a CSS pixel."""
KEPT_AS_TEXT: dict[str, Any] = {"svg.fonttype": "none", "pdf.fonttype": 42}
"""In saved figures text stays text: it can be searched, selected and edited."""
SEQUENTIAL = "mako_r"
DIVERGING = "RdBu_r"


@contextmanager
def theme() -> Iterator[None]:
    """The look of a mechsink figure, for what is drawn inside the block."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    _load_backend()
    look: Any = {
        **sns.plotting_context("paper", font_scale=0.9),
        **sns.axes_style("ticks"),
        "axes.prop_cycle": plt.cycler(color=sns.color_palette("colorblind")),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "figure.constrained_layout.use": True,
        "figure.dpi": 150,
        "figure.max_open_warning": 0,  # a report draws more than twenty
        "legend.frameon": False,
        "lines.linewidth": 1.2,
        "savefig.dpi": 300,
        **KEPT_AS_TEXT,
    }
    with plt.rc_context(look):
        yield


def new_axes(width: float = WIDTH, height: float | None = None) -> Axes:
    """One empty pair of axes in a new figure; sizes in inches, 4:3 by default.

    Call it inside `theme()`.
    """
    import matplotlib.pyplot as plt

    size = (width, height or 0.75 * width)
    return plt.subplots(figsize=size, FigureClass=_figure_class())[1]


def new_panels(
    n: int, columns: int = 2, width: float = 2 * WIDTH, height: float = 1.9
) -> list[Axes]:
    """`n` empty axes in a new figure of rows `height` inches high.

    Call it inside `theme()`.
    """
    import matplotlib.pyplot as plt

    columns = min(columns, n)
    rows = -(-n // columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(width, rows * height),
        squeeze=False,
        FigureClass=_figure_class(),
    )
    panels = list(grid.flat)
    for empty in panels[n:]:
        figure.delaxes(empty)
    return panels[:n]


def colours(n: int) -> list[Any]:
    """`n` colours told apart by colour-blind readers; an ordered ramp above 8."""
    import seaborn as sns

    if n <= 8:
        return list(sns.color_palette("colorblind", n))
    return list(sns.color_palette("viridis", n))


def literal(text: object, most: int = 60) -> str:
    """A text from outside for a figure: drawn as it is, on one line, cut short.

    No formula begins at "$", and a legend shows it though it is empty or begins
    with "_".
    """
    text = visible(str(text)).replace("\n", "⏎").replace("\t", "⇥")
    text = text if len(text) <= most else text[: most - 1] + "…"
    lead = " " if not text or text[0] == "_" else ""
    return lead + text.replace("$", r"\$")


def heat_map(
    ax: Axes,
    grid: pd.DataFrame,
    label: str,
    *,
    limits: tuple[float, float] | None = None,
    diverging: bool = False,
) -> Axes:
    """Draw `grid`, its index upwards and its columns rightwards, on `ax`.

    Args:
        ax: where to draw.
        grid: one number a cell; the index and column names label the axes.
        label: what a colour means, with its unit.
        limits: values of the end colours; by default those of the data.
        diverging: white at zero and the same range on both sides.
    """
    values = grid.to_numpy(dtype=float)
    finite = values[np.isfinite(values)]
    if diverging:
        reach = max((abs(end) for end in limits or finite), default=1.0) or 1.0
        low, high = -reach, reach
    elif limits is not None:
        low, high = limits
    else:
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    rows, columns = grid.shape
    image = ax.imshow(
        values,
        cmap=DIVERGING if diverging else SEQUENTIAL,
        vmin=low,
        vmax=high,
        aspect="auto",
        origin="lower",
        interpolation="none",
    )
    ax.set_facecolor("0.85")  # not measured is grey, not a value
    ax.set_xlabel(str(grid.columns.name))
    ax.set_ylabel(str(grid.index.name))
    _ticks(ax.xaxis, list(grid.columns), most=12)
    _ticks(ax.yaxis, list(grid.index), most=10)
    ax.set(xlim=(-0.5, columns - 0.5), ylim=(-0.5, rows - 0.5))
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    label = re.sub(r"(?<!\\)\$", r"\\$", label)  # no formula: it may name a metric
    bar = ax.figure.colorbar(image, ax=ax, label=label, fraction=0.05, pad=0.02)
    bar.outline.set_visible(False)
    return ax


def whole_numbers(axis: Any) -> None:
    """Put ticks at integers alone, for layers and counts."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def plain_log(axis: Any) -> None:
    """A few ticks, written as plain numbers, on a log axis that has its data."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = sorted(axis.get_view_interval())
    if high < 5 * low:
        locator = MaxNLocator(nbins=4, steps=[1, 2, 5, 10])
    else:
        locator = LogLocator(subs=(1.0,) if high > 200 * low else (1.0, 2.0, 5.0))
    axis.set_major_locator(locator)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def equal_line(ax: Axes, label: str = "no change") -> None:
    """Both axes alike, and the dashed diagonal on which x is y; drawn last."""
    ends = [*ax.get_xlim(), *ax.get_ylim()]
    low, high = min(ends), max(ends)
    ax.plot([low, high], [low, high], color="0.6", ls="--", lw=0.8, label=label)
    ax.set(xlim=(low, high), ylim=(low, high))


def step_axis(ax: Axes, last: int) -> None:
    """Training steps from 0 on a log scale, up to `last`."""
    from matplotlib.ticker import FixedLocator, NullLocator

    ax.set_xscale("symlog", linthresh=1, linscale=0.4)
    ax.set_xlim(0, max(last, 1) * 1.05)
    ticks = [0, *(10**n for n in range(9) if 10**n <= max(last, 1))]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")


def figure_of(ax: Axes) -> Figure:
    """The figure that `ax` belongs to."""
    return ax.get_figure()  # type: ignore[return-value]


def inline(plot: Callable[[], Axes], words: str) -> str:
    """What `plot` draws, as an image element for a notebook.

    The figure is closed, the user's other figures, style and interactive mode stay
    as they were.

    Args:
        plot: draws on a new figure.
        words: said where the image can't be shown.

    Raises:
        Exception: whatever `plot` does.
    """
    import matplotlib.pyplot as plt

    _load_backend()
    png, before = io.BytesIO(), set(plt.get_fignums())
    with warnings.catch_warnings(), plt.ioff():
        warnings.simplefilter("ignore")  # a token that is emoji, a name too long
        try:
            figure = figure_of(plot())
            figure.savefig(
                png,
                format="png",
                dpi=INLINE_DPI,
                bbox_inches="tight",
                metadata={"Software": None},
            )
        finally:
            for number in set(plt.get_fignums()) - before:
                plt.close(number)
    data = png.getvalue()
    width = int.from_bytes(data[16:20], "big") * 96 // INLINE_DPI  # CSS pixels
    text = base64.b64encode(data).decode()
    words = html.escape(visible(words))
    return (
        f'<img src="data:image/png;base64,{text}" alt="{words}" width="{width}" '
        'style="max-width: 100%">'
    )


@functools.cache
def _load_backend() -> None:
    # A notebook's backend turns interactive mode on when it is first loaded. Within
    # rc_context that would be undone, and no later figure of the user's be shown.
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    plt.switch_backend(mpl.get_backend())


@functools.cache  # a class made once; matplotlib is imported by then
def _figure_class() -> Any:
    from matplotlib import rc_context, rcParams
    from matplotlib.figure import Figure

    class PaperFigure(Figure):
        """A figure that is saved as it was drawn, long after `theme()` was left."""

        def savefig(self, *args: Any, **options: Any) -> None:
            look: Any = dict(KEPT_AS_TEXT)
            if rcParams["savefig.dpi"] == "figure":  # no wish of the user's own
                look["savefig.dpi"] = 300
            with rc_context(look):
                super().savefig(*args, **options)

    return PaperFigure


def _ticks(axis: Any, labels: list[Any], most: int) -> None:
    """Label every cell, or every n-th where there are more than `most`."""
    step = next(
        step
        for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, len(labels))
        if len(labels) <= most * step
    )
    shown = [literal(x) if isinstance(x, str) else x for x in labels[::step]]
    axis.set_ticks(range(0, len(labels), step), shown)
