"""Every result draws itself, for a paper and in a notebook, and disturbs nothing."""

import base64
import html
import inspect
import io
import re
from dataclasses import dataclass

import matplotlib as mpl
import pandas as pd
import pytest

mpl.use("agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from PIL import Image

import mechsink as ms
from mechsink import plotting
from mechsink.attribution.wires import Wires
from mechsink.circuits.graph import Circuit
from mechsink.results import Result
from tests.circuits.made import SHAPES
from tests.drawn_results import MADE
from tests.kernel import run_cells

WITHOUT_PLOT = {
    "CircuitPaged": "what reports with a circuit share; each draws its own",
    "PagedResult": "what reports share; each draws its own",
    "Study": "what experiments share; each draws its own",
}


def result_types() -> list[type[Result]]:
    for name in ms.__all__:
        getattr(ms, name)  # public names are imported when asked for
    found, waiting = set(), [Result]
    while waiting:
        new = waiting.pop().__subclasses__()
        found |= {kind for kind in new if kind.__module__.startswith("mechsink.")}
        waiting += new
    return sorted(found, key=lambda kind: kind.__name__)


@pytest.mark.matrix  # it imports all there is
def test_every_result_has_a_plot() -> None:
    types = result_types()
    assert len(types) > 50
    without = {kind.__name__ for kind in types if not hasattr(kind, "plot")}
    assert without == set(WITHOUT_PLOT)
    for kind in types:
        if kind.__name__ in WITHOUT_PLOT:
            continue
        _, ax, *more = inspect.signature(kind.plot).parameters.values()
        assert (ax.name, ax.default) == ("ax", None), kind
        assert all(option.default is not option.empty for option in more), kind


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.mark.first_case
@pytest.mark.parametrize("name", [*MADE])
def test_a_plot_is_labelled_and_fits_a_column(name):
    result = MADE[name]()
    ax = result.plot()
    assert isinstance(ax, Axes)
    assert ax.get_xlabel() and (ax.get_ylabel() or ax.get_yticklabels())
    figure = plotting.figure_of(ax)
    assert figure.get_size_inches()[0] == pytest.approx(plotting.WIDTH)
    texts = [*ax.get_xticklabels(), *ax.get_yticklabels(), ax.xaxis.label]
    assert min(text.get_fontsize() for text in texts if text.get_text()) > 5.9
    figure.canvas.draw()
    box = figure.get_tightbbox()  # inches: nothing sticks out by more than a hair
    assert box.x0 > -0.05 and box.x1 < plotting.WIDTH + 0.05
    mine = plt.subplots()[1]
    assert result.plot(mine) is mine


@pytest.mark.first_case
@pytest.mark.parametrize("name", [*MADE])
def test_a_saved_figure_keeps_its_text(name, tmp_path):
    ax = MADE[name]().plot()  # saved long after theme() was left
    figure = plotting.figure_of(ax)
    figure.savefig(tmp_path / "figure.svg")
    words = ax.get_xlabel().split("\n")[0]
    svg = (tmp_path / "figure.svg").read_text()
    assert words in html.unescape(re.sub(r"<text[^>]*>|</text>", "", svg))
    figure.savefig(tmp_path / "figure.pdf")
    pdf = (tmp_path / "figure.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and b"/Type3" not in pdf
    assert b"/CIDFontType2" in pdf  # fonts whole: text can be edited


def test_the_users_own_resolution_is_kept(tmp_path):
    figure = plotting.figure_of(MADE["Accuracy"]().plot())
    figure.savefig(tmp_path / "300.png")
    with mpl.rc_context({"savefig.dpi": 50}):
        figure.savefig(tmp_path / "50.png")
    for dpi, width in ((300, 1020), (50, 170)):
        with Image.open(tmp_path / f"{dpi}.png") as saved:
            assert saved.width == width


def picture(shown: str) -> Image.Image:
    (data,) = re.findall(r'<img src="data:image/png;base64,([\w+/=]+)"', shown)
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.mark.first_case
@pytest.mark.parametrize("name", [*MADE])
def test_a_result_shows_itself(name):
    result = MADE[name]()
    shown = result._repr_html_()
    assert f"{name} · {len(result.table)} rows" in shown
    assert "made up" in shown and "<table" in shown
    assert picture(shown).width > 300
    assert len(shown) < 120_000


def test_a_circuit_shows_itself_unless_it_is_large():
    wires = SHAPES["plain"]
    small = Circuit.of(wires, wires.edges[:4], {wires.edges[0]: 1.0})
    assert picture(small._repr_html_()).width > 300
    shown = Circuit.full(Wires(n_layers=6, n_heads=4, n_kv_heads=4))._repr_html_()
    assert "Circuit · " in shown and "<table" in shown and "<img" not in shown


def test_where_there_is_only_text_it_is_short():
    said: list[str] = []

    class Printer:
        text = staticmethod(said.append)

    result = MADE["Accuracy"]()
    assert "_repr_pretty_" in vars(type(result))  # where IPython looks first
    result._repr_pretty_(Printer(), cycle=False)
    line, *head = said[0].split("\n")
    assert line == "Accuracy · 12 rows · made up · float32 · cpu · 12 prompts"
    assert len(head) == 9 and "is_top" in head[0]


def test_showing_a_result_disturbs_nothing():
    mine, style = plt.figure(), dict(mpl.rcParams)
    with plt.ion():
        MADE["SpanSinks"]()._repr_html_()
        assert plt.isinteractive()
    assert plt.get_fignums() == [mine.number] and plt.gcf() is mine
    assert dict(mpl.rcParams) == style


@dataclass(frozen=True, eq=False)
class Broken(Result):
    def plot(self, ax=None):
        plt.figure()
        raise KeyError("<b>no such column</b>")


def test_what_cannot_be_drawn_is_shown_as_a_table():
    table = pd.DataFrame({"token": ["<s>"]})
    shown = Broken(table, {})._repr_html_()
    assert "No figure: KeyError" in shown and "&lt;b&gt;" in shown
    assert "&lt;s&gt;" in shown and "<img" not in shown
    assert not plt.get_fignums()


@pytest.mark.matrix
def test_a_kernel_shows_each_figure_once():
    drawn = "from mechsink import plotting\nwith plotting.theme():\n"
    first, shown, own, again = run_cells(
        drawn + "    ax = plotting.new_axes()",
        "from tests.drawn_results import MADE\nMADE['Accuracy']()",
        "import matplotlib.pyplot as plt\nax = plt.subplots()[1]",
        "ax = MADE['Accuracy']().plot()",
    )
    for outputs in (first, own, again):
        assert len(outputs) == 1 and "image/png" in outputs[0].data
    assert len(shown) == 1 and "<img" in shown[0].data["text/html"]
    assert shown[0].data["text/plain"].startswith("Accuracy · 12 rows")
