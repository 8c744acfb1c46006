"""Figures of a sink report, each on one pair of axes, fit for a paper's column.

Every function takes the report and draws on `ax` or on a new figure.
May import: sites, run, results, plotting, sinks.
"""

import math
from typing import Any

import numpy as np

from mechsink import plotting
from mechsink.plotting import Axes
from mechsink.report.html import show_token
from mechsink.report.sinks import SinkReport
from mechsink.sinks.massive.activations import MassiveActivations

REFERENCE = "0.45"
"""Grey of reference lines: read on white and on black."""
MASKED = (0.5, 0.5, 0.5, 0.3)
"""Behind keys that a query cannot see: no value, on white and on black paper."""


def score_map(report: SinkReport, ax: Axes | None = None) -> Axes:
    """Attention to the position, layer by head, mean over texts."""
    grid = report.table.pivot(index="head", columns="layer", values="score")
    with plotting.theme():
        ax = ax or plotting.new_axes(height=0.62 * plotting.WIDTH)
        label = f"attention to position {report.position}"
        return plotting.heat_map(ax, grid, label, limits=(0.0, 1.0))


def drain_map(report: SinkReport, ax: Axes | None = None) -> Axes:
    """Value norm of the position over that of the others, layer by head, in log2."""
    grid = report.table.pivot(index="head", columns="layer", values="ratio")
    with plotting.theme(), np.errstate(divide="ignore"):
        ax = ax or plotting.new_axes(height=0.62 * plotting.WIDTH)
        label = f"value norm of position {report.position}\n/ others (log2)"
        log: Any = np.log2(grid)
        return plotting.heat_map(ax, log, label, diverging=True)


def drains_by_score(report: SinkReport, ax: Axes | None = None) -> Axes:
    """One dot a head: attention to the position against its value ratio."""
    with plotting.theme():
        ax = ax or plotting.new_axes()
        heads: Any = report.table
        depth = heads["layer"] / max(heads["layer"].max(), 1)
        dots = ax.scatter(heads["score"], heads["ratio"], c=depth, s=10, cmap="viridis")
        dots.set(edgecolor=REFERENCE, linewidth=0.3)  # dark dots on dark paper
        ax.axvline(report.eps, color=REFERENCE, lw=0.8, ls="--")
        ax.axhline(1, color=REFERENCE, lw=0.8, ls=":")
        bar = plotting.figure_of(ax).colorbar(dots, ax=ax, label="depth", ticks=[0, 1])
        bar.ax.set_yticklabels(["first", "last"])
        bar.outline.set_visible(False)  # type: ignore[operator]
        ax.set(
            xlabel=f"sink score (attention to position {report.position})",
            ylabel="value norm / others",
            yscale="log",
            xlim=(-0.02, 1.02),
        )
        plain_log(ax)
    return ax


def positions(report: SinkReport, ax: Axes | None = None) -> Axes:
    """Sink rate at the first positions; a sink elsewhere would show here."""
    with plotting.theme():
        ax = ax or plotting.new_axes()
        (colour,) = plotting.colours(1)
        shares, places = 100 * report.positions["rate"], range(len(report.positions))
        ax.bar(places, shares, color=colour, width=0.7, linewidth=0)
        ax.set_xticks(places, report.positions["position"])
        ax.set(xlabel="position", ylabel="sink rate (%)", ylim=(0, 100))
    return ax


def residual_peak(report: SinkReport, ax: Axes | None = None) -> Axes:
    """Residual norm of the position and of the others by layer, log scale."""
    shown: Any = report.residual
    with plotting.theme():
        ax = ax or plotting.new_axes()
        sink, other = plotting.colours(2)
        ax.fill_between(
            shown["layer"],
            shown["low"],
            shown["high"],
            color=other,
            alpha=0.3,
            linewidth=0,
            label="others, 10 to 90 %",
        )
        ax.plot(shown["layer"], shown["median"], color=other, label="others, median")
        ax.plot(
            shown["layer"],
            shown["norm"],
            color=sink,
            marker="o",
            ms=2.5,
            label=f"position {report.position}",
        )
        ax.set(xlabel="layer (last: output)", ylabel="residual norm", yscale="log")
        ax.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[attr-defined]
        plain_log(ax)
        ax.legend()
    return ax


def massive(report: SinkReport, ax: Axes | None = None) -> Axes:
    """Three largest entries and the median by layer, means over texts."""
    ax = MassiveActivations(report.massive, report.meta, report.largest).plot(ax)
    plain_log(ax)
    return ax


def attention(
    report: SinkReport, layer: int, head: int, ax: Axes | None = None
) -> Axes:
    """Attention of one head on the first tokens of the first text."""
    table: Any = report.attention
    here = table[(table["layer"] == layer) & (table["head"] == head)]
    grid = here.pivot(index="query", columns="key", values="weight")
    names = [tick_label(token) for token in example_tokens(report)]
    with plotting.theme():
        ax = ax or plotting.new_axes(height=plotting.WIDTH)
        top = max(1.0, float(here["weight"].max()))
        plotting.heat_map(ax, grid, "attention", limits=(0.0, top))
        ax.set_facecolor(MASKED)
        ax.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        ax.set_yticks(range(len(names)), names, fontsize=6)
        ax.tick_params(length=0)
        ax.invert_yaxis()  # reading order runs down
        ax.set(xlabel="key", ylabel="query", title=f"layer {layer}, head {head}")
    return ax


def example_tokens(report: SinkReport) -> list[str]:
    """Tokens of the text whose attention the report holds, as far as it does."""
    first: Any = report.tokens[report.tokens["batch"] == 0]
    queries: Any = report.attention["query"]
    n_pos = int(queries.max()) + 1
    return first["token"].head(n_pos).tolist()


def tick_label(token: str, most: int = 9) -> str:
    """A token as a tick: visible spaces, cut short, no formula."""
    return plotting.literal(show_token(token), most)


def plain_log(ax: Axes) -> None:
    """Ticks of a log axis as 0.1, 1, 10, also between them on a short range."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = ax.get_ylim()
    decades = math.log10(high / low) if low > 0 else 9
    if decades < 0.5:  # a decade's ticks would leave it without numbers
        ax.set_yscale("linear")
        return
    axis = ax.yaxis
    if decades < 2.2:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_formatter(NullFormatter())
