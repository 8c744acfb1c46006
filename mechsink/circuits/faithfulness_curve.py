"""Faithfulness against the size of the circuit, and the areas under it: CPR and CMD.

Source: MIB (Mueller et al. 2025, arXiv:2504.13151).
May import: rooms up to attribution.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import pandas as pd

from mechsink import plotting
from mechsink.attribution.edge_scores import EdgeScores
from mechsink.circuits.evaluation import (
    Ablation,
    CircuitRuns,
    References,
    check_wires,
)
from mechsink.circuits.faithfulness import ends_of, meta_of, shown
from mechsink.circuits.graph import Circuit
from mechsink.circuits.ratios import (
    areas,
    check_resamples,
    interval,
    ratio_of_means,
    resampled_ratios,
)
from mechsink.circuits.selection import greedy_edges, top_edges
from mechsink.models.any_model import any_model
from mechsink.plotting import Axes
from mechsink.progress import bar
from mechsink.prompts import PromptPairs
from mechsink.results import Result
from mechsink.run import Metric, Model
from toy_tasks.checks import checked

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The points of MIB."""
Selection = Literal["top", "greedy"]
SELECTIONS = {"top": top_edges, "greedy": greedy_edges}


@dataclass(frozen=True, eq=False)
class FaithfulnessCurve(Result):
    """Faithfulness of circuits of growing size, chosen by scores.

    `table`: fraction, edges (int(fraction * n_graph), as asked for), kept (left after
    pruning), value (mean metric, in its unit), faithfulness, low, high (95 % bootstrap
    over prompts, the same draw at all points).

    `cpr`: area under f over the fraction, by trapezoids from the first fraction on;
    `cmd`: area under |1 - f|. f is unclipped and the fraction is that asked for. A
    perfect circuit at MIB's ten points has cpr 0.999 and cmd 0; no circuit at all until
    the last point 0.25 and 0.749.

    `prompts`: prompt, full, ablated, and one column a fraction: the metric of each
    prompt.

    Attributes:
        cpr_low: lower end of the 95 % bootstrap interval of `cpr`.
        cpr_high: its upper end.
        cmd_low: the same of `cmd`.
        cmd_high: its upper end.
        ablation: what cut edges carried: "patch", "zero" or "mean".
        resamples: of the bootstrap.
        method: that gave the scores.
        selection: "top" or "greedy".
        sign: ranked by "absolute" or "signed" score.
        log: areas over the logarithm of the fraction.
        n_graph: edges of the model.

    Examples:
        >>> case = ms.planted("and")
        >>> scores = ms.eap_ig(case.model, case.pairs, ms.logit_diff)
        >>> curve = ms.faithfulness_curve(case.model, scores, case.pairs, ms.logit_diff)
        >>> list(curve.table)
        ['fraction', 'edges', 'kept', 'value', 'faithfulness', 'low', 'high']
        >>> ax = curve.plot()
    """

    prompts: pd.DataFrame
    cpr: float
    cpr_low: float
    cpr_high: float
    cmd: float
    cmd_low: float
    cmd_high: float
    method: str
    metric: str
    selection: str
    sign: str
    ablation: str
    log: bool
    n_graph: int
    resamples: int

    def describe(self) -> str:
        """The two areas with all that they depend on, in one line."""
        points = self.table["fraction"]
        return (
            f"CPR {shown(self.cpr, self.cpr_low, self.cpr_high)}, "
            f"CMD {shown(self.cmd, self.cmd_low, self.cmd_high)}; "
            f"{self.method} scores, {self.metric}, selection {self.selection}, "
            f"{self.sign} scores, ablation {self.ablation}, {len(points)} points from "
            f"{points.iloc[0]:g} to {points.iloc[-1]:g} of {self.n_graph} edges, "
            f"{'log' if self.log else 'linear'} scale, {len(self.prompts)} prompts, "
            f"{self.resamples} resamples"
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Faithfulness against the share of edges, log scale, with its interval.

        Args:
            ax: where to draw; default: a new figure.
        """
        ax = compare_curves({self.method: self}, ax)
        if (legend := ax.get_legend()) is not None:
            legend.remove()
        return ax


@any_model
@checked
def faithfulness_curve(
    model: Model,
    scores: EdgeScores,
    pairs: PromptPairs,
    metric: Metric,
    *,
    fractions: Sequence[float] = FRACTIONS,
    signed: bool = False,
    selection: Selection = "top",
    ablation: Ablation = "patch",
    reference: References | None = None,
    resamples: int = 1000,
    seed: int = 0,
    log: bool = False,
    progress: bool | None = None,
) -> FaithfulnessCurve:
    """Faithfulness of the best edges by their scores, at several sizes; CPR and CMD.

    At each fraction p the int(p * edges) best edges are chosen and pruned, and all
    others are cut. Score on other prompts than these, or the curve flatters.

    Args:
        model: any model whose wiring is known (`mechsink.models.wiring`).
        scores: of every edge of this model.
        pairs: clean and corrupted prompts.
        metric: a run to one number per prompt; may read sites.
        fractions: shares of the edges, ascending, at least two; MIB's by default.
        signed: rank by score, not by |score|. MIB prefers signed for CPR and |score|
            for CMD; both are stored with the result.
        selection: "top" (`top_edges`) or "greedy" (`greedy_edges`).
        ablation: what cut edges carry, "patch", "zero" or "mean": see `circuit_metric`.
        reference: prompts for "mean".
        resamples: bootstrap resamples of the prompts.
        seed: of the resamples.
        log: areas over ln p instead of p.
        progress: show a bar; default: on terminals, in notebooks.

    Returns:
        A `FaithfulnessCurve`, one row a fraction.

    Raises:
        ValueError: as `faithfulness`; fractions out of range or not ascending; scores
            of another graph, of some edges only, or for a metric that ends elsewhere.

    Source: MIB (Mueller et al. 2025, arXiv:2504.13151).

    Examples:
        >>> case = ms.planted("and")
        >>> scores = ms.eap_ig(case.model, case.pairs, ms.logit_diff)
        >>> curve = ms.faithfulness_curve(case.model, scores, case.pairs, ms.logit_diff)
        >>> curve.table[["edges", "faithfulness"]].round(2).tail(3).values.tolist()
        [[4.0, 0.5], [11.0, 1.0], [23.0, 1.0]]
        >>> round(curve.cpr, 2), round(curve.cmd, 2)
        (0.75, 0.25)
    """
    started = time.perf_counter()
    caller = "faithfulness_curve"
    fractions = _checked(caller, fractions, selection)
    check_resamples(caller, resamples)
    runs = CircuitRuns.of(caller, model, pairs, metric, ablation, reference)
    _check_scores(caller, scores, runs)
    n_graph = len(runs.ask.wires.edges)
    sizes = [int(p * n_graph) for p in fractions]
    circuits = [SELECTIONS[selection](scores, n, signed=signed) for n in sizes]
    full, ablated = ends_of(runs)
    value = _values(runs, circuits, progress)
    ratios = ratio_of_means(value, ablated, full)
    draws = resampled_ratios(
        value, ablated, full, resamples=resamples, seed=seed, caller=caller
    )
    low, high = interval(draws)
    found = areas(ratios, fractions, log)
    lows, highs = interval(np.stack(areas(draws, fractions, log), axis=1))
    table = pd.DataFrame(
        {
            "fraction": fractions,
            "edges": sizes,
            "kept": [circuit.n_edges for circuit in circuits],
            "value": value.mean(1),
            "faithfulness": ratios,
            "low": low,
            "high": high,
        }
    )
    prompts = pd.DataFrame({"prompt": range(len(full)), "full": full})
    prompts["ablated"] = ablated
    for p, row in zip(fractions, value, strict=True):
        prompts[f"{p:g}"] = row
    sign = "signed" if signed else "absolute"
    meta = meta_of(
        runs, started, metric=repr(metric), selection=selection, sign=sign, log=log,
        fractions=fractions, n_graph=n_graph, resamples=resamples, seed=seed,
        scores=scores.meta.get("settings", {}),
    )  # fmt: skip
    return FaithfulnessCurve(
        table, meta, prompts,
        float(found[0]), float(lows[0]), float(highs[0]),
        float(found[1]), float(lows[1]), float(highs[1]),
        scores.method, repr(metric), selection, sign, ablation, log, n_graph, resamples,
    )  # fmt: skip


def compare_curves(
    curves: Mapping[str, FaithfulnessCurve], ax: Axes | None = None
) -> Axes:
    """Several curves in one figure, each with its interval.

    The dotted lines are the full model, 1, and no circuit, 0.

    Args:
        curves: by name, of one metric and one ablation.
        ax: where to draw; default: a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: no curves, or curves of different metrics or ablations.

    Examples:
        >>> case = ms.planted("and")
        >>> curves = {}
        >>> for method in (ms.eap, ms.eap_ig):
        ...     scores = method(case.model, case.pairs, ms.logit_diff)
        ...     curves[method.__name__] = ms.faithfulness_curve(
        ...         case.model, scores, case.pairs, ms.logit_diff
        ...     )
        >>> ax = ms.compare_curves(curves)
        >>> ax.get_ylabel()
        'faithfulness'
    """
    kinds = {(curve.metric, curve.ablation) for curve in curves.values()}
    if len(kinds) != 1:
        raise ValueError(
            f"compare_curves: {len(curves)} curves of {sorted(kinds)}. Allowed: at "
            "least one, all of one metric and ablation; the shares do not compare "
            "otherwise."
        )
    with plotting.theme():
        ax = ax or plotting.new_axes()
        for level in (0, 1):
            ax.axhline(level, color="0.6", lw=0.8, ls=":", zorder=0)
        colours = plotting.colours(len(curves))
        for (name, curve), colour in zip(curves.items(), colours, strict=True):
            table = curve.table
            x = table["fraction"]
            ax.fill_between(
                x, table["low"], table["high"], color=colour, alpha=0.2, lw=0
            )
            label = plotting.literal(name)
            ax.plot(
                x, table["faithfulness"], color=colour, marker="o", ms=2.5, label=label
            )
        ax.set_xscale("log")
        plotting.plain_log(ax.xaxis)
        ax.set(xlabel="share of edges asked for", ylabel="faithfulness")
        ax.legend()
    return ax


def _values(
    runs: CircuitRuns, circuits: Sequence[Circuit], progress: bool | None
) -> np.ndarray:
    """[circuit prompt]; equal circuits are run once."""
    masks = np.stack([runs.mask(circuit) for circuit in circuits])
    different, which = np.unique(masks, axis=0, return_inverse=True)
    found = []
    with bar("circuits", len(different), progress) as advance:
        for first in range(0, len(different), runs.at_once):
            some = different[first : first + runs.at_once]
            found.append(runs.values(some))
            advance(len(some))
    return np.concatenate(found)[which.reshape(-1)]


def _checked(caller: str, fractions: Sequence[float], selection: str) -> list[float]:
    shares = [float(p) for p in fractions]
    rising = all(a < b for a, b in pairwise(shares))
    if len(shares) < 2 or not rising or not 0 < shares[0] < shares[-1] <= 1:
        raise ValueError(
            f"{caller}: fractions={shares}. Allowed: at least two shares of the edges, "
            "ascending, above 0 and up to 1; the default are MIB's ten."
        )
    if selection not in SELECTIONS:
        raise ValueError(
            f"{caller}: selection={selection!r}. Allowed: {', '.join(SELECTIONS)}."
        )
    return shares


def _check_scores(caller: str, scores: EdgeScores, runs: CircuitRuns) -> None:
    ask = runs.ask
    check_wires(scores.wires, ask.wires, caller, "table of scores")
    if len(scores.table) != len(ask.wires.edges):
        raise ValueError(
            f"{caller}: {len(scores.table)} scores for {len(ask.wires.edges)} edges, "
            "so shares of the graph are not defined. Score all edges (leave edges= "
            "out), or ask for single circuits with ms.faithfulness."
        )
    if set(scores.outputs) != set(ask.outputs):
        raise ValueError(
            f"{caller}: the scores are of a metric that reads {scores.outputs}, and "
            f"{ask.metric!r} reads {ask.outputs}: circuits pruned for one say nothing "
            "about the other. Score the edges for this metric."
        )
