"""`EdgeScores`: what each edge of the computational graph is worth to a metric."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from mechsink import plotting
from mechsink.attribution.wires import Wires
from mechsink.plotting import Axes
from mechsink.precision import below_mean
from mechsink.results import Result


@dataclass(frozen=True, eq=False)
class EdgeScores(Result):
    """One score an edge.

    `table`: source, target, score, low, high, p_value, q_value. `score` > 0:
    corrupting this edge lowers the metric; unit: the metric's; summed over positions,
    mean over prompts. low, high: 95 % bootstrap interval over prompts; p_value: sign
    flips over prompts, two-sided; q_value: Benjamini-Hochberg over edges. NaN where
    prompts are too few.

    Names: "input", "a0.h1", "m3", "logits"; targets "a2.h1<q>", "a2.h1<k>",
    "a2.h1<v>", with grouped-query attention "a2.kv0<k>", "a2.kv0<v>".

    Attributes:
        method: function that scored, such as "eap_ig".
        metric: as its repr says.
        corrupted: metric on the corrupted run, one a prompt, in its unit.
        noise: floor of each prompt's metric, where edges were patched; estimates have
            none.
        outputs: targets that the metric reads: "logits", or a head's q and k.
        graph: the fields of `Wires`.
        clean: metric on the clean run, one a prompt, in its unit.

    Examples:
        >>> case = ms.planted("induction")
        >>> scores = ms.eap(case.model, case.pairs, ms.logit_diff)
        >>> list(scores.table), scores.outputs
        (['source', 'target', 'score', 'low', 'high', 'p_value', 'q_value'], ['logits'])
        >>> ax = scores.plot(n=5)
    """

    method: str
    metric: str
    outputs: list[str]
    graph: dict[str, Any]
    clean: list[float]
    corrupted: list[float]
    noise: list[float] = field(default_factory=list)
    """Floor of each prompt's metric, where edges were patched; estimates have none."""

    def below_noise(self) -> pd.Series:
        """Edges whose score is no larger than rounding of the metric may make it.

        Raises:
            ValueError: the scores are estimates, or were saved without a floor.
        """
        score = self.table["score"].to_numpy()
        found = below_mean(score, self.noise, f"EdgeScores by {self.method}")
        return pd.Series(found, index=self.table.index, name="below_noise")

    @property
    def wires(self) -> Wires:
        """The graph that the edges are of."""
        return Wires(**self.graph)

    @property
    def matrix(self) -> Float[np.ndarray, "source target"]:
        """Scores by source and target; NaN where there is no edge."""
        wires = self.wires
        grid = np.full(wires.real.shape, np.nan)
        rows = [wires.source_index[name] for name in self.table["source"]]
        columns = [wires.target_index[name] for name in self.table["target"]]
        grid[rows, columns] = self.table["score"]
        return grid

    def plot(self, ax: Axes | None = None, n: int = 20) -> Axes:
        """The `n` strongest edges as bars with their intervals, on `ax` or anew."""
        order = np.argsort(-np.abs(self.table["score"].to_numpy()), kind="stable")
        rows = self.table.iloc[order[:n][::-1]]
        with plotting.theme():
            ax = ax or plotting.new_axes(height=0.9 + 0.16 * len(rows))
            names = rows["source"] + " → " + rows["target"]
            blue, red = plotting.colours(4)[0], plotting.colours(4)[3]
            colours = [blue if score > 0 else red for score in rows["score"]]
            reach = abs(rows[["low", "high"]].to_numpy().T - rows["score"].to_numpy())
            known = rows["low"].notna().all()  # not with one prompt
            ax.barh(names, rows["score"], color=colours, xerr=reach if known else None,
                    error_kw={"lw": 0.8, "ecolor": "0.3"})  # fmt: skip
            ax.axvline(0, color="0.6", lw=0.6)
            metric = plotting.literal(self.metric)
            ax.set_xlabel(f"{self.method} score: drop of {metric} when corrupted")
            ax.tick_params(axis="y", labelsize="x-small", length=0)
        return ax
