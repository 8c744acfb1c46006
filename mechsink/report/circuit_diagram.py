"""A circuit as inline SVG, which the page's script makes interactive.

With scripts off it is a complete still figure.
May import: sites, run, results, plotting, attribution, circuits.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from mechsink.circuits.graph import Circuit, Edge
from mechsink.circuits.layout import (
    HALF_WIDTH,
    Curve,
    Layout,
    Point,
    lay_out,
    part_of,
    port_of,
)
from mechsink.report.html import Plot, _asset, _environment
from mechsink.report.tables import number

ROWS = "Edges of the circuit"
"""Title of the table that follows the diagram."""
SCRIPT = "circuit.js"
"""What makes the diagrams of a page answer."""
MOST_DRAWN = 400
"""Edges in a diagram; more can't be told apart."""
ACROSS, UP = 64.0, 62.0
"""Pixels of one unit of the layout."""
MARGIN = 74.0  # left of the nodes, for the layers' names
THIN, THICK = 0.8, 5.0

_SIGNS = (
    ("pos", "corrupting it lowers the metric"),
    ("neg", "corrupting it raises the metric"),
    ("none", "no score"),
)
_PORTS = (("q", "into queries"), ("k", "into keys"), ("v", "into values, MLPs, logits"))


@dataclass(frozen=True)
class _Frame:
    """From the layout's units to the drawing's pixels, downward."""

    left: float
    top: float

    def __call__(self, point: Point) -> tuple[float, float]:
        x = MARGIN + (point[0] - self.left) * ACROSS
        return round(x, 1), round((self.top - point[1]) * UP, 1)

    def path(self, curve: Curve) -> str:
        """SVG path data."""
        a, b, c, d = (f"{x:g} {y:g}" for x, y in map(self, curve))
        return f"M{a}C{b} {c} {d}"


def circuit_plot(circuit: Circuit, title: str = "The circuit") -> Plot:
    """The diagram as a figure of a page.

    The page must carry the script: `Page(scripts=(SCRIPT,))`.
    """
    drawn = strongest(circuit, MOST_DRAWN)
    caption = (
        "Read upwards: an edge leaves the top of what writes and ends below what "
        "reads. Width: |score|, against the largest."
    )
    if drawn.n_edges < circuit.n_edges:
        caption += (
            f" Drawn are the {drawn.n_edges} strongest of {circuit.n_edges:,} edges."
        )
    return Plot(diagram(drawn), title, caption, wide=True)


def strongest(circuit: Circuit, n: int) -> Circuit:
    """At most `n` edges, those of the largest |score|; loose ends stay."""
    if circuit.n_edges <= n:
        return circuit
    scores = scores_of(circuit)
    return Circuit.of(
        circuit.wires,
        by_strength(scores)[:n],
        scores,
        outputs=circuit.outputs,
        meta=circuit.meta,
    )


def by_strength(scores: dict[Edge, float]) -> list[Edge]:
    """Edges by |score|, the largest first; those without a score last."""
    values = np.abs(np.array(list(scores.values()), dtype=float))
    order = np.argsort(-np.nan_to_num(values, nan=-1.0), kind="stable")
    return [list(scores)[place] for place in order]


def diagram(circuit: Circuit) -> Markup:
    """SVG, key and controls; the controls are hidden until the script shows them."""
    layout = lay_out(circuit.graph)
    left, bottom, right, top = layout.box
    frame = _Frame(left, top)
    width = MARGIN + (right - left) * ACROSS + 12
    height = (top - bottom) * UP
    edges = _edges(circuit, layout, frame)
    parts = {"n": circuit.n_edges, "nodes": len(layout.at)}
    text = (
        _environment()
        .get_template("circuit.html.j2")
        .render(
            rows=ROWS,
            style=Markup(_asset("circuit.css")),
            box=f"0 0 {width:.0f} {height:.0f}",
            width=f"{1.25 * width:.0f}",
            narrow=f"{min(width, 0.8 * width + 60):.0f}",
            label="Circuit: {n} edges between {nodes} nodes".format(**parts),
            bands=[
                {
                    "name": name,
                    "x": 0,
                    "y": round((top - high) * UP, 1),
                    "width": round(width),
                    "height": round((high - low) * UP, 1),
                }
                for name, low, high in layout.bands
            ],
            links=[
                {"low": low, "high": high, "d": frame.path(curve)}
                for (low, high), curve in layout.links.items()
            ],
            edges=edges,
            nodes=_nodes(layout, frame),
            key=_key(edges, layout),
        )
    )
    return Markup(text)  # the template escapes every name


def scores_of(circuit: Circuit) -> dict[Edge, float]:
    """Score by edge, in the model's order; NaN where it has none."""
    return {edge: circuit.graph.edges[edge]["score"] for edge in circuit.edges}


def _edges(circuit: Circuit, layout: Layout, frame: _Frame) -> list[dict[str, Any]]:
    """Weakest first, so that the strongest lie on top."""
    scores = scores_of(circuit)
    ranked = by_strength(scores)
    largest = max((abs(s) for s in scores.values() if s == s), default=0.0)
    found = []
    for rank, edge in enumerate(ranked):
        score = scores[edge]
        share = abs(score) / largest if largest and score == score else 0.0
        width, port = THIN + (THICK - THIN) * share, port_of(edge[1]) or "v"
        sign = "none" if math.isnan(score) else "neg" if score < 0 else "pos"
        found.append(
            {
                "source": edge[0],
                "target": edge[1],
                "part": part_of(edge[1]),
                "port": port,
                "sign": sign,
                "rank": rank,
                "size": abs(scores[edge]),
                "d": frame.path(layout.curves[edge]),
                "width": f"{width:.2f}",
                "dashes": _dashes(port, width),
                "opacity": f"{0.6 + 0.35 * share:.2f}",
                "title": f"{edge[0]} → {edge[1]}: {number(score)}",
            }
        )
    return found[::-1]


def _dashes(port: str, width: float) -> str:
    """Dashes into queries, round dots into keys; longer where the line is wider."""
    if port == "q":
        return f"{6 + 1.5 * width:.1f} {3 + width:.1f}"
    return f"0 {2.5 + 1.5 * width:.1f}" if port == "k" else "none"


def _nodes(layout: Layout, frame: _Frame) -> list[dict[str, Any]]:
    """From the input up, row by row: the order in which Tab goes."""
    kinds = {"a": "head", "m": "mlp"}
    return [
        {
            "name": name,
            "kind": kinds.get(name[0], "end"),
            "output": name in layout.outputs,
            "half": round(HALF_WIDTH * ACROSS),
            **dict(zip("xy", frame(layout.at[name]), strict=True)),
        }
        for row in layout.rows
        for name in row
    ]


def _key(edges: list[dict[str, Any]], layout: Layout) -> list[tuple[str, str]]:
    """What the lines mean, as far as they occur."""
    signs, ports = ({edge[what] for edge in edges} for what in ("sign", "port"))
    key = [(name, words) for name, words in _SIGNS if name in signs]
    if ports & {"q", "k"}:
        key += [(name, words) for name, words in _PORTS if name in ports]
    if layout.links:
        key.append(("link", "feeds the head"))
    return [*key, ("output", "read by the metric")]
