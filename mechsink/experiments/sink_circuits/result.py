"""`SinkCircuit`: what makes a position a sink, as tables, a circuit and words."""

import textwrap
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mechsink import plotting
from mechsink.attribution.edge_scores import EdgeScores
from mechsink.circuits.graph import Circuit
from mechsink.circuits.selection import top_edges
from mechsink.plotting import Axes
from mechsink.results import Result

SCORED = ("score", "low", "high", "p_value", "q_value")
EDGE_NUMBERS = (*SCORED, "effect", "effect_low", "effect_high")


@dataclass(frozen=True, eq=False)
class SinkCircuit(Result):
    """Components and edges that make a position a sink, and who writes its peak.

    `table`: one row a component: component ("input", "a0.h1", "m3"), layer (-1 for
    the input), head, score, low, high, p_value, q_value (`inference`, over texts),
    effect, effect_low, effect_high: clean metric minus that with its write replaced at
    the position, NaN where it was not ablated. Both > 0: replacing it lowers the
    metric; in the metric's unit.

    `edges`: source, target, the same numbers; `effect` by cutting that edge alone at
    the position. Only edges out of the nodes with the largest |effect|; none where
    the metric reads the residual stream, or top_edges=0.
    `writes`: layer, component, share (of the norm there, along the stream's direction;
    a layer's sum to 1), low, high, norm (of the write itself, in units of the stream).
    `residual`: layer, norm, others (mean over other positions), ratio. `layer` numbers
    in both are of the stream before a block.
    `confirmation`: the metric with sets of nodes ablated: nodes ("clean", "top",
    "random", "rest", "all"; "rotated": other tokens instead), draw (number of a random
    set), n, components, value, low, high, change, change_low, change_high.
    `heads`: layer, head, clean, ablated (attention to the position without the top
    nodes).

    Attributes:
        peak_layer: before which block the position stands out most.
        uniform: score of heads that attend to all alike; other metrics None.
        outputs: targets that the metric reads.
        graph: the fields of `Wires`.
        clean: metric of each text, in its unit.
        replaced: metric with every write at the position replaced.

    Examples:
        >>> case = ms.planted("backcopy")
        >>> found = ms.sink_circuit(case.model, case.pairs.clean, heads=[(0, 0)])
        >>> found.peak().head(1)[["component", "share"]].round(2).values.tolist()
        [['m0', 0.64]]
        >>> found.circuit(n=3).n_edges >= 1
        True
    """

    edges: pd.DataFrame
    writes: pd.DataFrame
    residual: pd.DataFrame
    confirmation: pd.DataFrame
    heads: pd.DataFrame
    metric: str
    position: int
    peak_layer: int
    uniform: float | None
    outputs: list[str]
    graph: dict[str, Any]
    clean: list[float]
    replaced: list[float]

    @property
    def edge_scores(self) -> EdgeScores:
        """The edges as `ms.top_edges`, reports and comparisons take them.

        Raises:
            ValueError: edges were not scored.
        """
        if self.edges.empty:
            raise ValueError(
                f"SinkCircuit: no edges were scored for {self.metric}. Take a metric "
                "of patterns, outputs or logits, and top_edges of 1 or more."
            )
        scored = self.edges.loc[:, ["source", "target", *SCORED]]
        return EdgeScores(
            scored, self.meta, "sink_circuit", self.metric, self.outputs, self.graph,
            self.clean, self.replaced,
        )  # fmt: skip

    def circuit(self, n: int = 100) -> Circuit:
        """The `n` edges (or all, if fewer) of the largest |score|, loose ends dropped.

        Args:
            n: edges to choose.

        Raises:
            ValueError: edges were not scored, or n is below 0.
        """
        return top_edges(self.edge_scores, min(n, len(self.edges)))

    def peak(self, layer: int | None = None) -> pd.DataFrame:
        """Who writes the stream before `layer` (default `peak_layer`), largest first.

        Rows of `writes`; shares of the norm along its direction, summing to 1.

        Args:
            layer: before which the stream is looked at.

        Raises:
            ValueError: no such layer.
        """
        layer = self.peak_layer if layer is None else layer
        rows = self.writes[self.writes["layer"] == layer]
        if rows.empty:
            raise ValueError(
                f"SinkCircuit.peak: layer={layer}. Allowed: 0 to "
                f"{self.writes['layer'].max()}, the number of layers."
            )
        shares = np.asarray(rows["share"], dtype=float)
        order = np.argsort(-np.abs(shares), kind="stable")
        return rows.iloc[order].reset_index(drop=True)

    def summary(self) -> str:
        """What was found, in a few sentences with their numbers."""
        stream = self.residual.set_index("layer").loc[self.peak_layer]
        writers = [
            f"{row['component']} {row['share']:.2f}"
            for _, row in self.peak().head(3).iterrows()
        ]
        rows = self.confirmation.set_index("nodes")
        top, clean = rows.loc["top"], rows.loc["clean"]
        words = [
            f"Position {self.position} stands out most before layer "
            f"{self.peak_layer}: residual norm {stream['norm']:.4g} against "
            f"{stream['others']:.4g} elsewhere; shares of its largest writers: "
            f"{', '.join(writers)}.",
            f"{self.metric}: {clean['value']:.3g}; without "
            f"{top['components'] or 'nothing, as no node lowers it,'} "
            f"together {top['value']:.3g} [{top['low']:.3g}, {top['high']:.3g}].",
        ]
        others = self.confirmation[self.confirmation["nodes"] == "random"]["value"]
        if len(others):
            words.append(
                f"Without as many other nodes, {len(others)} times at random: "
                f"{others.min():.3g} to {others.max():.3g}."
            )
        words.append(
            f"With the tokens rotated by one: {rows.loc['rotated', 'value']:.3g}."
        )
        if self.uniform is not None:
            words.append(f"Uniform attention would score {self.uniform:.3g}.")
        return " ".join(words)

    def plot(self, ax: Axes | None = None, n: int = 12) -> Axes:
        """Scores of the top components beside the effects of ablating them.

        Args:
            ax: where to draw; default: a new figure.
            n: how many are drawn.
        """
        order = np.argsort(
            -self.table["effect"].fillna(0).abs().to_numpy()
            - 1e-9 * self.table["score"].abs().to_numpy(),
            kind="stable",
        )
        rows = self.table.iloc[order[:n][::-1]]
        with plotting.theme():
            ax = ax or plotting.new_axes(height=0.9 + 0.24 * len(rows))
            at = np.arange(len(rows))
            for shift, prefix, label, colour in zip(
                (0.2, -0.2),
                ("", "effect_"),
                ("attribution", "ablation"),
                plotting.colours(2),
                strict=True,
            ):
                value = rows["effect" if prefix else "score"].to_numpy()
                ends = rows[[f"{prefix}low", f"{prefix}high"]].to_numpy().T
                reach = np.nan_to_num(abs(ends - value))
                ax.barh(at + shift, np.nan_to_num(value), 0.38, label=label,
                        color=colour, xerr=reach,
                        error_kw={"lw": 0.8, "ecolor": "0.3"})  # fmt: skip
            ax.axvline(0, color="0.6", lw=0.6)
            ax.set_yticks(at, list(rows["component"]))
            metric = plotting.literal(self.metric)
            label = f"drop of {metric} without the write at {self.position}"
            ax.set_xlabel(textwrap.fill(label, 48))
            ax.tick_params(axis="y", labelsize="x-small", length=0)
            ax.legend()
        return ax
