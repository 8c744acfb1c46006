"""A circuit as a layered matplotlib figure.

May import: rooms up to attribution.
"""

import math
from typing import Any

import networkx as nx

from mechsink import plotting
from mechsink.circuits.layout import Curve, lay_out, port_of
from mechsink.plotting import Axes

POSITIVE, NEGATIVE, UNKNOWN = "#0072b2", "#d55e00", "0.55"
"""Blue, vermilion, grey: told apart by colour-blind readers, and on black paper."""
DASHES: dict[str, Any] = {"": "-", "v": "-", "q": (0, (5, 2)), "k": (0, (1.2, 1.6))}
"""Line style by port."""
FILL = {"a": "#e7eef5", "m": "#f4ecdd"}
INCH = 0.52
"""One unit of the layout on a new figure."""
THIN, THICK = 0.5, 2.8


def draw(graph: nx.DiGraph, ax: Axes | None = None) -> Axes:
    """Draw a `Circuit.graph`; see `Circuit.plot`."""
    layout = lay_out(graph)
    left, bottom, right, top = layout.box
    wide = max(INCH * (right - left + 1.6), plotting.WIDTH)
    with plotting.theme():
        ax = ax or plotting.new_axes(wide, INCH * (top - bottom + 0.9) + 0.3)
        ax.set(xlim=(left - 1.3, right + 0.3), ylim=(bottom, top))
        ax.axis("off")
        for n, (name, low, high) in enumerate(layout.bands):
            if n % 2 == 0:
                ax.axhspan(low, high, color="0.5", alpha=0.08, lw=0, zorder=0)
            where = left - 1.25, (low + high) / 2
            ax.text(*where, name, fontsize=6, color="0.4", va="center")
        for curve in layout.links.values():
            _add_curve(ax, curve, color="0.6", lw=2.2, alpha=0.5, zorder=1)
        edges = sorted(layout.curves, key=lambda edge: _size(graph, edge))
        largest = max((_size(graph, edge) for edge in edges), default=0.0)
        for rank, edge in enumerate(edges):  # the strongest on top
            share = _size(graph, edge) / largest if largest else 0.0
            _add_curve(
                ax,
                layout.curves[edge],
                color=colour_of(graph.edges[edge]["score"]),
                lw=THIN + (THICK - THIN) * share,
                alpha=0.55 + 0.4 * share,
                ls=DASHES[port_of(edge[1])],
                zorder=2 + rank / max(len(edges), 1),
            )
        for name, (x, y) in layout.at.items():
            box = {
                "boxstyle": "round,pad=0.25",
                "fc": FILL.get(name[0], "white"),
                "ec": "0.25" if name in layout.outputs else "0.55",
                "lw": 1.4 if name in layout.outputs else 0.6,
            }
            ax.text(
                x, y, name, fontsize=6, ha="center", va="center", bbox=box, zorder=4
            )
        _add_legend(ax, graph, list(layout.curves))
    return ax


def colour_of(score: float) -> str:
    """Colour of an edge by its score's sign."""
    if math.isnan(score):
        return UNKNOWN
    return NEGATIVE if score < 0 else POSITIVE


def _size(graph: nx.DiGraph, edge: tuple[str, str]) -> float:
    score = abs(graph.edges[edge]["score"])
    return 0.0 if math.isnan(score) else score


def _add_curve(ax: Axes, curve: Curve, **style: Any) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    codes = [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]
    path = Path(list(curve), codes)  # type: ignore[arg-type]
    ax.add_patch(PathPatch(path, fill=False, capstyle="butt", **style))


def _add_legend(ax: Axes, graph: nx.DiGraph, edges: list[tuple[str, str]]) -> None:
    """Only what occurs in this circuit."""
    from matplotlib.lines import Line2D

    scores = [graph.edges[edge]["score"] for edge in edges]
    signs = {
        "corrupting it lowers the metric": (POSITIVE, any(s >= 0 for s in scores)),
        "corrupting it raises the metric": (NEGATIVE, any(s < 0 for s in scores)),
        "no score": (UNKNOWN, any(math.isnan(s) for s in scores)),
    }
    lines = [
        Line2D([], [], color=colour, lw=2, label=label)
        for label, (colour, occurs) in signs.items()
        if occurs
    ]
    ports = {port_of(target) for _, target in edges}
    if ports - {""}:
        words = {
            "q": "into queries",
            "k": "into keys",
            "v": "into values, MLPs, logits",
        }
        lines += [
            Line2D([], [], color="0.35", lw=1.2, ls=DASHES[port], label=label)
            for port, label in words.items()
            if port in ports or port == "v"
        ]
    if lines:
        ax.legend(
            handles=lines,
            loc="upper center",
            bbox_to_anchor=(0.5, 0.0),
            ncols=2,
            fontsize=6,
            handlelength=2.4,
        )
