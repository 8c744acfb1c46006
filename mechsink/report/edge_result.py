"""What `edge_report` found: a circuit, how faithful it is, and its page.

May import: rooms up to circuits.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mechsink import plotting
from mechsink.attribution.edge_scores import EdgeScores
from mechsink.attribution.wires import Wires
from mechsink.circuits.faithfulness_curve import FaithfulnessCurve
from mechsink.circuits.graph import Circuit
from mechsink.report.circuit_page import CircuitPaged, circuit_report
from mechsink.report.html import Page, Plot
from mechsink.report.paged import Drawn
from mechsink.report.svg import inline_svg

Estimate = list[float | None]
"""A value, then the ends of its 95 % interval; None where it can't be known."""


@dataclass(frozen=True, eq=False)
class EdgeReport(CircuitPaged):
    """Scores of all edges, the circuit of the strongest, and how faithful it is.

    `table`: as in `EdgeScores`, and in_circuit. `points`: the faithfulness curve, as
    `FaithfulnessCurve.table`. `pairs`: pair, part ("choose", "measure", or "both"),
    full (the metric of the clean run), corrupted (where it chose), circuit, ablated
    (where it measured), NaN elsewhere; with answers also answer, wrong, beats_wrong,
    is_top. `shares`: pair and one column a fraction: the metric of the curve's
    circuits.

    `faithfulness`, `cpr`, `cmd`, `accuracy` (share of clean prompts whose answer beats
    the wrong one): value, low, high.

    Attributes:
        method: function that scored, such as "eap_ig".
        metric: as its repr says.
        outputs: targets that the metric reads.
        selection: "top" or "greedy".
        sign: ranked by "absolute" or "signed" score.
        ablation: what cut edges carried: "patch", "zero" or "mean".
        is_split: whether some pairs chose and others measured.
        resamples: of the bootstrap.
        graph: the fields of `Wires`.
        n: edges chosen, before loose ends were dropped.
        repeated: measuring pairs whose tokens are those of a choosing one.

    Examples:
        >>> case = ms.planted("and", n_prompts=20)
        >>> report = ms.edge_report(case.model, case.pairs, ms.logit_diff, n=5)
        >>> [round(x, 2) for x in report.faithfulness], report.is_split
        ([1.0, 1.0, 1.0], True)
    """

    points: pd.DataFrame
    pairs: pd.DataFrame
    shares: pd.DataFrame
    method: str
    metric: str
    outputs: list[str]
    graph: dict[str, Any]
    n: int
    selection: str
    sign: str
    ablation: str
    is_split: bool
    repeated: int
    resamples: int
    faithfulness: Estimate
    cpr: Estimate
    cmd: Estimate
    accuracy: Estimate

    @property
    def scores(self) -> EdgeScores:
        """Scores of all edges, over the pairs that chose."""
        chose: Any = self.pairs[self.pairs["part"] != "measure"]
        return EdgeScores(
            self.table.drop(columns="in_circuit"), self.meta, self.method, self.metric,
            self.outputs, self.graph, chose["full"].tolist(),
            chose["corrupted"].tolist(),
        )  # fmt: skip

    @property
    def circuit(self) -> Circuit:
        """The circuit whose faithfulness is measured."""
        table: Any = self.table[self.table["in_circuit"]]
        table = table.drop(columns="in_circuit")
        edges = list(zip(table["source"], table["target"], strict=True))
        meta = {
            **self.meta, "method": self.method, "metric": self.metric,
            "selection": self.selection, "sign": self.sign, "n": self.n,
            "n_edges": len(edges), "n_graph": len(self.table), "pruned": True,
        }  # fmt: skip
        return Circuit.of(
            Wires(**self.graph), edges, table, outputs=self.outputs, meta=meta
        )

    @property
    def curve(self) -> FaithfulnessCurve:
        """Faithfulness at each share of the edges."""
        measured = self.measured
        runs = self.shares.rename(columns={"pair": "prompt"})
        runs.insert(1, "full", measured["full"].to_numpy())
        runs.insert(2, "ablated", measured["ablated"].to_numpy())
        cpr, cmd = _floats(self.cpr), _floats(self.cmd)
        return FaithfulnessCurve(
            self.points, self.meta, runs,
            cpr[0], cpr[1], cpr[2], cmd[0], cmd[1], cmd[2],
            self.method, self.metric, self.selection, self.sign, self.ablation, False,
            len(self.table), self.resamples,
        )  # fmt: skip

    @property
    def measured(self) -> pd.DataFrame:
        """The rows of `pairs` that faithfulness is over."""
        rows: Any = self.pairs[self.pairs["part"] != "choose"]
        return rows.reset_index(drop=True)

    def plot(self, ax: plotting.Axes | None = None) -> plotting.Axes:
        """Faithfulness by the share of edges, with this circuit marked on it.

        Args:
            ax: where to draw; a new figure by default.
        """
        with plotting.theme():
            ax = self.curve.plot(ax or plotting.new_axes(1.4 * plotting.WIDTH, 2.4))
            value, low, high = _floats(self.faithfulness)
            x = self.n / len(self.table)
            reach = np.nan_to_num([[value - low], [high - value]])
            ax.errorbar(
                x, value, np.maximum(reach, 0), fmt="D", ms=4, lw=1,
                color=plotting.colours(4)[3], label=f"the circuit, {self.n} edges",
            )  # fmt: skip
            ax.legend(loc="best")
        return ax

    def draw(self) -> Drawn:
        """The circuit, and the curve with this circuit marked on it."""
        import matplotlib.pyplot as plt

        figure = plotting.figure_of(self.plot())
        plt.close(figure)
        over = f"{len(self.measured)} pairs"
        plot = Plot(
            inline_svg(figure, "faithfulness"),
            "Faithfulness by the share of edges",
            f"The best edges by score are kept and all others cut. 1: as the whole "
            f"model; 0: as no edge at all. Bands: 95 % bootstrap over {over}.",
        )
        drawn = circuit_report(self.circuit).draw()
        return {**drawn, "faithfulness": (figure, plot)}

    def page(self, drawn: Drawn | None = None) -> Page:
        """The page: the circuit, how faithful it is, its edges, the prompts.

        Args:
            drawn: figures that `draw` made; default: drawn now.
        """
        from mechsink.report.edge_page import edge_page  # it writes of this type

        return edge_page(self, drawn or self.draw())


def _floats(estimate: Estimate) -> list[float]:
    return [float("nan") if x is None else x for x in estimate]
