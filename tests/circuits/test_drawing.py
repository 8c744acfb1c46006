"""The layered figure: rows in order, no two nodes in one place, nothing left out."""

import io
import itertools

import matplotlib
import numpy as np
import pytest

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.colors import to_hex
from matplotlib.patches import PathPatch
from PIL import Image

from mechsink.attribution.wires import Wires
from mechsink.circuits.drawing import NEGATIVE, POSITIVE, draw
from mechsink.circuits.graph import Circuit
from mechsink.circuits.layout import HALF_WIDTH, _crossings, lay_out, part_of
from mechsink.circuits.selection import top_edges
from tests.circuits.made import SHAPES, random_scores


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def some_circuit(wires: Wires, seed: int = 0) -> Circuit:
    return top_edges(random_scores(wires, seed), len(wires.edges) // 3)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.first_case
def test_every_edge_goes_up_and_no_two_nodes_meet(name, seed):
    circuit = some_circuit(SHAPES[name], seed)
    layout = lay_out(circuit.graph)
    assert set(layout.curves) == set(circuit.edges)
    assert {*circuit.nodes} <= {*layout.at}
    for (source, target), curve in layout.curves.items():
        assert layout.at[source][1] < layout.at[part_of(target)][1]
        assert [y for _, y in curve] == sorted(y for _, y in curve)
        assert abs(curve[0][0] - layout.at[source][0]) < HALF_WIDTH
        assert abs(curve[3][0] - layout.at[part_of(target)][0]) < HALF_WIDTH
    for y, row in enumerate(layout.rows):
        xs = [layout.at[node][0] for node in row]
        assert all(layout.at[node][1] == y for node in row)
        assert (np.diff(xs) >= 1 - 1e-9).all()


def test_rows_go_from_the_input_through_the_layers_to_the_logits():
    layout = lay_out(Circuit.full(Wires(2, 2, 1)).graph)
    rows = [sorted(row) for row in layout.rows]
    assert rows == [
        ["input"],
        ["a0.kv0"],
        ["a0.h0", "a0.h1"],
        ["m0"],
        ["a1.kv0"],
        ["a1.h0", "a1.h1"],
        ["m1"],
        ["logits"],
    ]
    assert set(layout.links) == {
        (f"a{layer}.kv0", f"a{layer}.h{head}") for layer in (0, 1) for head in (0, 1)
    }
    assert layout.bands == (("layer 0", 0.5, 3.5), ("layer 1", 3.5, 6.5))
    assert layout.outputs == {"logits"}


def test_parallel_blocks_draw_heads_and_mlp_side_by_side():
    layout = lay_out(Circuit.full(Wires(1, 2, 2, is_parallel=True)).graph)
    assert [sorted(row) for row in layout.rows][1] == ["a0.h0", "a0.h1", "m0"]


def test_crossings_are_counted_by_hand():
    level = {"a": 0, "b": 0, "c": 1, "d": 1, "e": 2}
    x = {"a": 0.0, "b": 1.0, "c": 0.0, "d": 1.0, "e": 0.5}
    assert _crossings(x, level, [("a", "d"), ("b", "c")]) == 1
    assert _crossings(x, level, [("a", "c"), ("b", "d"), ("a", "d")]) == 0
    # b -> e passes between c and d, over a -> d
    assert _crossings(x, level, [("b", "e"), ("a", "d")]) == 1


def test_the_sweeps_untangle_what_can_be_untangled():
    # a head of layer 0 feeds the head of layer 1 that stands across from it
    wires = Wires(2, 6, 6, has_mlp=False)
    edges = [("input", f"a0.h{n}<v>") for n in range(6)]
    edges += [(f"a0.h{n}", f"a1.h{5 - n}<v>") for n in range(6)]
    edges += [(f"a1.h{n}", "logits") for n in range(6)]
    layout = lay_out(Circuit.of(wires, edges).graph)
    x = {name: place for name, (place, _) in layout.at.items()}
    level = {name: int(y) for name, (_, y) in layout.at.items()}
    pairs = [(source, part_of(target)) for source, target in edges]
    assert _crossings(x, level, pairs) == 0
    before = {name: float(name[-1]) if "h" in name else 2.5 for name in x}
    before["logits"] = before["input"] = 2.5
    assert _crossings(before, level, pairs) == 15


def test_a_long_edge_bends_round_the_nodes_between():
    wires = Wires(5, 1, 1, has_attention=False)
    chain = ["input", *(f"m{layer}" for layer in range(5)), "logits"]
    edges = [*itertools.pairwise(chain), ("input", "logits")]
    layout = lay_out(Circuit.of(wires, edges).graph)
    curve = np.array(layout.curves["input", "logits"])
    t = np.linspace(0, 1, 200)[:, None]
    points = (1 - t) ** 3 * curve[0] + 3 * (1 - t) ** 2 * t * curve[1]
    points = points + 3 * (1 - t) * t**2 * curve[2] + t**3 * curve[3]
    for layer in range(5):
        x, y = layout.at[f"m{layer}"]
        at_node = points[np.abs(points[:, 1] - y).argmin()]
        assert abs(at_node[0] - x) > HALF_WIDTH


@pytest.mark.matrix
def test_the_same_circuit_is_always_drawn_the_same():
    one, two = (lay_out(some_circuit(Wires(4, 4, 2)).graph) for _ in range(2))
    assert (one.at, one.curves) == (two.at, two.curves)


def test_width_and_colour_say_size_and_sign():
    wires = SHAPES["plain"]
    values = {("input", "m0"): 4.0, ("m0", "m1"): -2.0, ("m1", "logits"): float("nan")}
    ax = Circuit.of(wires, values, values).plot()
    lines = sorted(
        (patch for patch in ax.patches if isinstance(patch, PathPatch)),
        key=lambda patch: -patch.get_linewidth(),
    )
    colours = [to_hex(line.get_edgecolor()) for line in lines]
    assert colours == [POSITIVE, NEGATIVE, "#8c8c8c"]
    widths = [line.get_linewidth() for line in lines]
    assert widths[1] - widths[2] == pytest.approx((widths[0] - widths[2]) / 2)
    assert {"input", "m0", "m1", "logits"} <= {text.get_text() for text in ax.texts}
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == [
        "corrupting it lowers the metric",
        "corrupting it raises the metric",
        "no score",
    ]


def test_ports_have_line_styles_of_their_own():
    edges = [("input", f"a0.h0<{port}>") for port in "qkv"]
    ax = Circuit.of(SHAPES["plain"], edges).plot()
    patches = [patch for patch in ax.patches if isinstance(patch, PathPatch)]
    assert len({str(patch.get_linestyle()) for patch in patches}) == 3
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels[1:] == ["into queries", "into keys", "into values, MLPs, logits"]


@pytest.mark.first_case
@pytest.mark.parametrize("n", [0, 5, 60, 250])
def test_figures_of_any_size_are_drawn(n):
    circuit = top_edges(random_scores(Wires(12, 12, 4), 3), n, prune=False)
    out = io.BytesIO()
    circuit.plot().figure.savefig(out, format="png", dpi=50)
    low, high = Image.open(out).convert("L").getextrema()
    assert high - low > 100


@pytest.mark.matrix
def test_labels_do_not_overlap_in_a_figure_of_its_own():
    circuit = top_edges(random_scores(Wires(12, 12, 12), 3), 60, prune=False)
    ax = circuit.plot()
    ax.figure.canvas.draw()
    layout = lay_out(circuit.graph)
    boxes = [
        text.get_window_extent() for text in ax.texts if text.get_text() in layout.at
    ]
    assert len(boxes) == len(layout.at) > 60
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
    assert not any(a.overlaps(b) for a, b in pairs)


def test_an_axes_of_the_users_is_drawn_on():
    figure, ax = plt.subplots()
    assert draw(some_circuit(SHAPES["plain"]).graph, ax) is ax
    assert figure.axes == [ax]
