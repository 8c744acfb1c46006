"""The formation timeline as a result: one table, and its panels.

Source: Guo et al. 2024 (arXiv:2410.13835), the training dynamics of sinks, value
drains and residual peaks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mechsink import plotting
from mechsink.experiments.formation.moment import MEASURES
from mechsink.plotting import Axes, Figure
from mechsink.results import Result

PANELS = (
    ("trigger_excess", "markov_excess"),
    ("loss",),
    ("bos_markov",),
    ("bos_trigger",),
    ("previous_trigger",),
    ("sink_score",),
    ("sink_logit",),
    ("value_ratio",),
    ("resid_ratio",),
    ("sink_rate",),
)
LOG = {"trigger_excess", "markov_excess", "value_ratio", "resid_ratio"}
REFERENCE = {"value_ratio": 1.0, "resid_ratio": 1.0, "sink_logit": 0.0}


@dataclass(frozen=True, eq=False)
class Formation(Result):
    """Measures of a sink through training.

    `table`: step, layer, head, measure, value; layer and head are NaN where a
    measure has none. Measures and their units are those of
    `mechsink.experiments.formation.moment.MEASURES`, means over prompts or queries. At
    layer l < n_layers, resid_* are of the input of block l, at n_layers of the last
    output.

    Examples:
        >>> recorder = ms.FormationRecorder(ms.planted("backcopy").pairs.clean)
        >>> recorder.add(0, ms.planted("backcopy").model)
        >>> found = recorder.result()
        >>> found.steps, list(found.table)
        ([0], ['step', 'layer', 'head', 'measure', 'value'])
        >>> ax = found.plot_measure("sink_score")
    """

    @property
    def steps(self) -> list[int]:
        """Training steps that were measured, ascending."""
        return sorted(self.table["step"].unique().tolist())

    @property
    def measures(self) -> list[str]:
        """Names of what was measured."""
        return self.table["measure"].unique().tolist()

    def final(self, measure: str) -> pd.DataFrame:
        """Rows of one measure at the last step: layer, head, value.

        Args:
            measure: one of `measures`.
        """
        is_last = self.table["step"] == self.steps[-1]
        here = is_last & (self.table["measure"] == self._known(measure))
        return pd.DataFrame(
            {c: self.table[c][here] for c in ("layer", "head", "value")}
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Attention to the sink against training steps, log scale.

        That of queries which need no other token, where the task tells them apart,
        else the sink score; of a run without either, what was measured first.
        `plot_measure` draws any other, `panels` all.

        Args:
            ax: where to draw; a new figure by default.
        """
        have = [*self.table.dropna(subset=["value"])["measure"].unique()]
        first = [name for name in ("bos_markov", "sink_score") if name in have]
        return self.plot_measure((first + have + self.measures)[0], ax)

    def panels(self) -> Figure:
        """One panel a measure against training steps, log scale, in a new figure."""
        have = set(self.table.dropna(subset=["value"])["measure"])
        finer: dict[tuple[str, ...], str] = {
            ("loss",): "markov_excess",
            ("sink_score",): "bos_markov",
        }
        shown = [
            names
            for names in PANELS
            if have.issuperset(names) and finer.get(names) not in have
        ]
        with plotting.theme():
            axes = plotting.new_panels(len(shown), columns=2)
            for ax, names in zip(axes, shown, strict=True):
                self._draw(ax, names)
            return plotting.figure_of(axes[0])

    def plot_measure(self, measure: str, ax: Axes | None = None) -> Axes:
        """One measure against training steps, a line a layer (mean over heads).

        Args:
            measure: one of `measures`.
            ax: where to draw; default: a new figure.
        """
        self._known(measure)
        with plotting.theme():
            ax = ax or plotting.new_axes()
            self._draw(ax, (measure,))
        return ax

    def _draw(self, ax: Axes, measures: Sequence[str]) -> None:
        lines: dict[str, Any] = {}
        for measure in measures:
            here = self.table[self.table["measure"] == measure]
            name = "triggers" if measure.startswith("trigger") else "elsewhere"
            shown = pd.DataFrame(here).fillna({"layer": -1})
            grid = shown.pivot_table(index="step", columns="layer", values="value")
            for layer in grid.columns:
                if layer >= 0:
                    name = f"layer {layer:.0f}"
                    if measure.startswith("resid") and layer == grid.columns[-1]:
                        name = "output"
                lines[name] = grid[layer]
        for (name, line), colour in zip(
            lines.items(), plotting.colours(len(lines)), strict=True
        ):
            ax.plot(line.index, line, color=colour, label=name)
        first = measures[0]
        if first in REFERENCE:
            ax.axhline(REFERENCE[first], color="0.6", lw=0.8, ls=":", zorder=0)
        plotting.step_axis(ax, self.steps[-1])
        if first in LOG:
            ax.set_yscale("log")
            plotting.plain_log(ax.yaxis)
        elif first.startswith(("bos", "previous", "sink_score", "sink_rate")):
            ax.set_ylim(-0.03, 1.03)
        title = "excess risk (nats)" if len(measures) > 1 else MEASURES[first]
        ax.set(xlabel="training step", title=title)
        if 1 < len(lines) <= 6:
            ax.legend()
        elif len(lines) > 6:
            names = list(lines)
            handles, _ = ax.get_legend_handles_labels()
            ax.legend([handles[0], handles[-1]], [names[0], names[-1]])

    def _known(self, measure: str) -> str:
        if measure not in self.measures:
            raise ValueError(
                f"Formation: {measure!r} was not measured. Measured: "
                f"{', '.join(self.measures)}."
            )
        return measure
