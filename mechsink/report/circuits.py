"""`edge_report`: from prompts to a circuit, how faithful it is, and a page.

May import: sites, run, results, plotting, prompts, prompt_sets, attribution, circuits.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mechsink import plotting
from mechsink.attribution.edge_scores import EdgeScores
from mechsink.attribution.edges import eap_ig
from mechsink.attribution.wires import Wires
from mechsink.circuits.evaluation import Ablation, References
from mechsink.circuits.faithfulness import faithfulness
from mechsink.circuits.faithfulness_curve import (
    FRACTIONS,
    SELECTIONS,
    FaithfulnessCurve,
    Selection,
    faithfulness_curve,
)
from mechsink.circuits.graph import Circuit
from mechsink.circuits.selection import checked_count
from mechsink.models.any_model import any_model
from mechsink.prompt_sets.accuracy import accuracy
from mechsink.prompt_sets.sets import PromptSet
from mechsink.prompts import PromptPairs
from mechsink.provenance import provenance
from mechsink.report.circuit_page import circuit_report
from mechsink.report.html import Page, Plot
from mechsink.report.paged import Drawn, PagedResult
from mechsink.report.pair_parts import n_repeated, one_by_one, pair_table, some, split
from mechsink.report.svg import inline_svg
from mechsink.run import Metric, Model

Method = Callable[[Model, PromptPairs, Metric], EdgeScores]
Estimate = list[float | None]
"""A value, then the ends of its 95 % interval; None where it can't be known."""
MOST = 100
"""Edges of the circuit, where none are asked for."""


@dataclass(frozen=True, eq=False)
class EdgeReport(PagedResult):
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

    def save_drawn(self, folder: Path | str, drawn: Drawn) -> Path:
        """Tables, meta.json, circuit.json, circuit.graphml, figures and the page.

        Args:
            folder: new, or to be filled.
            drawn: figures that `draw` made.
        """
        folder = super().save_drawn(folder, drawn)
        circuit = self.circuit
        circuit.save(folder / "circuit.json")
        circuit.save(folder / "circuit.graphml")
        return folder


@any_model
def edge_report(
    model: Model,
    pairs: PromptPairs | PromptSet,
    metric: Metric,
    *,
    method: Method = eap_ig,
    n: int | None = None,
    signed: bool = False,
    selection: Selection = "top",
    fractions: Sequence[float] = FRACTIONS,
    ablation: Ablation = "patch",
    reference: References | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> EdgeReport:
    """Score all edges, choose a circuit, measure how faithful it is.

    From 20 pairs on, half of them, drawn at random, choose (scores, intervals and
    tests of edges are over these) and the others measure. With fewer all pairs do
    both, which flatters the circuit; the page says so.

    Args:
        model: any model whose wiring is known (`mechsink.models.wiring`).
        pairs: clean and corrupted prompts, or one of `ms.prompt_sets`.
        metric: a run to one number per prompt; may read sites (a sink score).
        method: what scores the edges: `ms.eap_ig`, `partial(ms.eap_ig, steps=20)`,
            `ms.exact_edges`, or any function like them.
        n: edges to choose; the circuit loses its loose ends after that. Default: 100,
            or all where there are fewer.
        signed: rank by score, not by |score|.
        selection: "top" (`top_edges`) or "greedy" (`greedy_edges`).
        fractions: shares of the edges, ascending, as in `faithfulness_curve`.
        ablation: what cut edges carry: "patch", "zero" or "mean".
        reference: prompts for "mean".
        resamples: bootstrap resamples of the prompts.
        seed: of the split and the resamples.

    Returns:
        An `EdgeReport`: `.save(folder)` writes tables, the circuit, figures and
        report.html.

    Raises:
        ValueError: as the method and `faithfulness_curve`; a method that is no
            function; n under 1 or more than the edges there are.

    Source: the curve and its areas, MIB (Mueller et al. 2025, arXiv:2504.13151).

    Examples:
        >>> case = ms.planted("and", n_prompts=20)
        >>> report = ms.edge_report(case.model, case.pairs, ms.logit_diff, n=5)
        >>> set(report.circuit.edges) == case.edges
        True
    """
    started = time.perf_counter()
    n = _checked(method, n, selection, len(Wires.of(model.shape).edges))
    about: dict[str, Any] = {}
    if isinstance(pairs, PromptSet):
        about["prompt_set"] = {**pairs.settings, "dropped": dict(pairs.dropped)}
        pairs = pairs.pairs
    choosing, measuring = split(len(pairs), seed)
    scores = method(model, some(pairs, choosing), metric)
    circuit = SELECTIONS[selection](scores, n, signed=signed)
    others = some(pairs, measuring)
    options: dict[str, Any] = {
        "ablation": ablation, "reference": reference, "resamples": resamples,
        "seed": seed,
    }  # fmt: skip
    curve = faithfulness_curve(
        model, scores, others, metric, fractions=fractions, signed=signed,
        selection=selection, **options,
    )  # fmt: skip
    faith = faithfulness(model, circuit, others, metric, **options)
    has_answers = pairs.answers is not None and pairs.wrong is not None
    right = accuracy(model, pairs) if has_answers else None
    rows = one_by_one(model, pairs)
    settings: dict[str, Any] = {
        **curve.meta["settings"], "n": n, "pairs": len(pairs),
        "pairs_that_choose": choosing, "pairs_that_measure": measuring, **about,
    }  # fmt: skip
    meta = provenance(
        model,
        [tokens[None] for row in rows for tokens in (row.clean, row.corrupted)],
        duration=time.perf_counter() - started,
        **settings,
    )
    kept = {*circuit.edges}
    edges = zip(scores.table["source"], scores.table["target"], strict=True)
    is_split = choosing != measuring
    part = dict.fromkeys(choosing, "choose") | dict.fromkeys(measuring, "measure")
    of_pair = {
        "full": dict(zip(choosing, scores.clean, strict=True)),
        "corrupted": dict(zip(choosing, scores.corrupted, strict=True)),
    }
    for name in ("full", "circuit", "ablated"):
        found = zip(measuring, faith.table[name], strict=True)
        of_pair[name] = of_pair.get(name, {}) | dict(found)
    return EdgeReport(
        scores.table.assign(in_circuit=[edge in kept for edge in edges]),
        meta,
        curve.table,
        pair_table(
            model, rows, part if is_split else dict.fromkeys(part, "both"), of_pair,
            right,
        ),
        _shares(curve, measuring),
        scores.method, repr(metric), scores.outputs, asdict(scores.wires), n,
        selection, curve.sign, ablation, is_split,
        n_repeated(rows, choosing, measuring) if is_split else 0, resamples,
        _estimate(faith.value, faith.low, faith.high),
        _estimate(curve.cpr, curve.cpr_low, curve.cpr_high),
        _estimate(curve.cmd, curve.cmd_low, curve.cmd_high),
        [None] * 3
        if right is None
        else _estimate(right.beats_wrong, right.low, right.high),
    )  # fmt: skip


def _shares(curve: FaithfulnessCurve, measuring: list[int]) -> pd.DataFrame:
    table = curve.prompts.drop(columns=["full", "ablated"])
    return table.rename(columns={"prompt": "pair"}).assign(pair=measuring)


def _checked(method: object, n: int | None, selection: str, n_graph: int) -> int:
    if not callable(method):
        raise ValueError(
            f"edge_report: method={method!r} is no function. Give one that scores "
            "edges, such as ms.eap_ig or functools.partial(ms.eap_ig, steps=20)."
        )
    if selection not in SELECTIONS:
        raise ValueError(
            f"edge_report: selection={selection!r}. Allowed: {', '.join(SELECTIONS)}."
        )
    if n is None:
        return min(MOST, n_graph)
    number = checked_count(n, n_graph, "edge_report")
    if number < 1:
        raise ValueError(
            f"edge_report: n={n} edges make no circuit. Allowed: 1 to {n_graph}."
        )
    return number


def _estimate(*values: float) -> Estimate:
    return [float(x) if np.isfinite(x) else None for x in values]


def _floats(estimate: Estimate) -> list[float]:
    return [float("nan") if x is None else x for x in estimate]
