"""Where to draw a circuit: rows by layer, few crossings, edges that bend round nodes.

Rows go upward: input, then of each layer its key-value heads (grouped-query
attention), heads, MLP; then the logits. One unit is the least distance between two
nodes of a row, and between two rows.
May import: rooms up to attribution.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
from jaxtyping import Float
from scipy.optimize import isotonic_regression

from mechsink.attribution.wires import INPUT, LOGITS

Point = tuple[float, float]
Curve = tuple[Point, Point, Point, Point]
"""Control points of a cubic Bézier curve, from below to above."""

HALF_WIDTH, HALF_HEIGHT = 0.42, 0.16
"""Of a node's box, in units."""
SWEEPS = 12
DOORS = {"q": -0.2, "k": 0.0, "v": 0.2}
"""Where on a head's lower side an edge ends, from its middle."""
_BENDS = sorted((b / 2.5 for b in range(-20, 21)), key=abs)
_MOST_COMPARED = 1500  # edges up to which crossings are counted


@dataclass(frozen=True, eq=False)
class Layout:
    """A circuit's drawing, in units.

    `at`: middle of each drawn node: a component, or a key-value head of a group.
    `curves`: one an edge of the circuit; `links`: from what a layer reads with to
    what it writes with, where these are different nodes. `bands`: a row's or a
    layer's name, and its rows from where to where. `box`: left, bottom, right, top.
    """

    rows: tuple[tuple[str, ...], ...]
    at: dict[str, Point]
    curves: dict[tuple[str, str], Curve]
    links: dict[tuple[str, str], Curve]
    bands: tuple[tuple[str, float, float], ...]
    outputs: frozenset[str]
    box: tuple[float, float, float, float]


def lay_out(graph: nx.DiGraph) -> Layout:
    """Place the nodes and edges of a `Circuit.graph`; the same graph, the same place.

    Rows are ordered by barycentre sweeps (Sugiyama et al. 1981); of the orders seen
    the one with the fewest crossings of straight lines is kept. A node stands as near
    to the mean of its neighbours as its row allows.
    """
    edges = [(s, t) for s, t, kind in graph.edges(data="kind") if kind == "edge"]
    inside = [(s, t) for s, t, kind in graph.edges(data="kind") if kind == "inside"]
    names = dict.fromkeys(part_of(name) for edge in edges for name in edge)
    pairs = dict.fromkeys((part_of(s), t) for s, t in inside)
    links = [(s, t) for s, t in pairs if s != t and s in names and t in names]
    outputs = frozenset(part_of(name) for name in graph.graph["outputs"])
    if not names:  # an empty circuit: its two ends
        names = dict.fromkeys([INPUT, *sorted(outputs)])
    keys = {name: _row(graph, name) for name in names}
    found = sorted(set(keys.values()))
    rows = [sorted((n for n in names if keys[n] == key), key=_natural) for key in found]
    joined = [(s, part_of(t)) for s, t in edges] + links
    at = _placed(rows, joined)
    lanes: list[list[float]] = [[] for _ in rows]
    curves = {}
    for source, target in sorted(edges, key=lambda e: _span(at, e)):
        door = DOORS[target[-2]] if target.endswith(">") else 0.0
        curves[source, target] = _curve(at, rows, lanes, source, target, door)
    ends = [(name, HALF_WIDTH) for name in at]
    xs = [at[name][0] + side * half for name, half in ends for side in (-1, 1)]
    # a cubic with these control points goes 3/4 of the way to them
    xs += [x for curve in curves.values() for x, _ in _sampled(curve)]
    return Layout(
        tuple(map(tuple, rows)),
        at,
        curves,
        {(s, t): _straight(at, s, t) for s, t in links},
        _bands(graph, found),
        outputs & {*at},
        (min(xs), -0.5, max(xs), len(rows) - 0.5),
    )


def part_of(name: str) -> str:
    """The node that a source or target is drawn as: its name without the port."""
    return name.split("<")[0]


def port_of(target: str) -> str:
    """ "q", "k" or "v", and "" for a target that is no port."""
    return target[-2] if target.endswith(">") else ""


def _row(graph: nx.DiGraph, name: str) -> tuple[int, int]:
    """Layer, and the place of the row in it."""
    wires = graph.graph["wires"]
    if name in (INPUT, LOGITS):
        return (-1 if name == INPUT else wires["n_layers"]), 0
    layer, _, head = name[1:].partition(".")
    if name[0] == "m":
        return int(layer), 1 if wires["is_parallel"] else 2
    reads_only = head.startswith("kv") or (head and not wires["splits_heads"])
    return int(layer), 0 if reads_only else 1


def _natural(name: str) -> tuple[str, int, str]:
    """Head 10 after head 9."""
    letters = name.rstrip("0123456789")
    return letters, int(name[len(letters) :] or 0), name


def _placed(
    rows: list[list[str]], edges: Sequence[tuple[str, str]]
) -> dict[str, Point]:
    """Middles of the nodes; sorts each of the rows in place."""
    near: dict[str, list[str]] = {name: [] for row in rows for name in row}
    level = {name: y for y, row in enumerate(rows) for name in row}
    for source, target in edges:
        near[source].append(target)
        near[target].append(source)
    x = {name: i - (len(row) - 1) / 2 for row in rows for i, name in enumerate(row)}
    best, fewest = dict(x), _crossings(x, level, edges)
    for sweep in range(SWEEPS):
        upward = sweep % 2 == 0
        for row in rows if upward else reversed(rows):
            # the last sweeps look both ways, for the middle between the neighbours
            wish = {
                name: _mean(
                    [
                        x[other]
                        for other in near[name]
                        if sweep >= SWEEPS - 4 or (level[other] < level[name]) == upward
                    ],
                    x[name],
                )
                for name in row
            }
            row.sort(key=lambda name: round(wish[name], 6))  # stable: ties as before
            x.update(zip(row, _apart([wish[name] for name in row]), strict=True))
        crossings = _crossings(x, level, edges)
        if crossings <= fewest:
            best, fewest = dict(x), crossings
    for row in rows:
        row.sort(key=best.__getitem__)
    middle = (max(best.values()) + min(best.values())) / 2
    return {name: (best[name] - middle, float(level[name])) for name in best}


def _mean(values: list[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _apart(wishes: list[float]) -> list[float]:
    """Places at least 1 apart, least squares from the wishes, in their order."""
    steps = np.arange(len(wishes))
    return list(isotonic_regression(np.array(wishes) - steps).x + steps)


def _crossings(
    x: dict[str, float], level: dict[str, int], edges: Sequence[tuple[str, str]]
) -> float:
    """Pairs of edges that cross as straight lines; lengths for very many edges."""
    if not edges:
        return 0.0
    ends = np.array([[x[s], level[s], x[t], level[t]] for s, t in edges], dtype=float)
    if len(edges) > _MOST_COMPARED:
        return float(np.abs(ends[:, 0] - ends[:, 2]).sum())
    a, b = ends[:, :2], ends[:, 2:]

    def side(p: Any, q: Any, r: Any) -> Any:
        u, v = q - p, r - p
        return np.sign(np.round(u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0], 9))

    p, q, r, s = a[:, None], b[:, None], a[None], b[None]
    apart = (side(p, q, r) * side(p, q, s) < 0) & (side(r, s, p) * side(r, s, q) < 0)
    return float(apart.sum()) / 2


def _span(at: dict[str, Point], edge: tuple[str, str]) -> tuple[float, float, float]:
    """Short edges first, from the left: they leave the middle to themselves."""
    (x0, y0), (x1, y1) = at[edge[0]], at[part_of(edge[1])]
    return y1 - y0, x0 + x1, y0


def _curve(
    at: dict[str, Point],
    rows: list[list[str]],
    lanes: list[list[float]],
    source: str,
    target: str,
    door: float,
) -> Curve:
    """A curve that meets few nodes on its way and few curves drawn before.

    `lanes`: where on each row curves pass already; this one is added.
    """
    (x0, y0), (x1, y1) = at[source], at[part_of(target)]
    start, end = (x0, y0 + HALF_HEIGHT), (x1 + door, y1 - HALF_HEIGHT)
    between = range(int(y0) + 1, int(y1))
    crossed = [np.array([at[name][0] for name in rows[y]]) for y in between]
    best, least, passes = None, np.inf, np.zeros(0)
    for bend in _BENDS if between else [0.0]:
        curve = _bent(start, end, bend)
        points = _sampled(curve)
        here = np.interp(list(between), points[:, 1], points[:, 0])
        cost = 0.12 * abs(bend)
        for place, nodes, y in zip(here, crossed, between, strict=True):
            cost += 4.0 * bool((np.abs(nodes - place) < HALF_WIDTH + 0.1).any())
            cost += 0.5 * any(abs(other - place) < 0.1 for other in lanes[y])
        if cost < least:
            best, least, passes = curve, cost, here
    assert best is not None
    for place, y in zip(passes, between, strict=True):
        lanes[y].append(float(place))
    return best


def _bent(start: Point, end: Point, bend: float) -> Curve:
    """Upright at both ends; `bend` moves its middle sideways."""
    (x0, y0), (x1, y1) = start, end
    reach = max(0.4 * (y1 - y0), 0.3)
    return start, (x0 + bend, y0 + reach), (x1 + bend, y1 - reach), end


def _straight(at: dict[str, Point], low: str, high: str) -> Curve:
    (x0, y0), (x1, y1) = at[low], at[high]
    return _bent((x0, y0 + HALF_HEIGHT), (x1, y1 - HALF_HEIGHT), 0.0)


def _sampled(curve: Curve) -> Float[np.ndarray, "point 2"]:
    t = np.linspace(0, 1, 25)[:, None]
    p = np.array(curve)
    return (
        (1 - t) ** 3 * p[0]
        + 3 * (1 - t) ** 2 * t * p[1]
        + 3 * (1 - t) * t**2 * p[2]
        + t**3 * p[3]
    )


def _bands(
    graph: nx.DiGraph, keys: Sequence[tuple[int, int]]
) -> tuple[tuple[str, float, float], ...]:
    """Rows of each layer; the input and the logits say themselves what they are."""
    layers = [layer for layer, _ in keys]
    bands = []
    for layer in dict.fromkeys(layers):
        if 0 <= layer < graph.graph["wires"]["n_layers"]:
            first = layers.index(layer)
            name = f"layer {layer}"
            bands.append((name, first - 0.5, first + layers.count(layer) - 0.5))
    return tuple(bands)
