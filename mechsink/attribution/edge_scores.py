"""`EdgeScores`: what each edge of the computational graph is worth to a metric."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from mechsink.attribution.wires import Wires
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
    """

    method: str
    metric: str
    outputs: list[str]  # targets that the metric reads: "logits", or a head's q and k
    graph: dict[str, Any]  # the fields of `Wires`
    clean: list[float]  # metric on the clean run, one a prompt, in its unit
    corrupted: list[float]

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
