"""`NodeScores`: what each node (a head, an MLP, a neuron, a position) is worth."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from torch import Tensor

from mechsink import plotting
from mechsink.attribution.inference import inference
from mechsink.attribution.node_runs import AskedNodes
from mechsink.plotting import Axes
from mechsink.provenance import provenance
from mechsink.results import Result

Direction = Literal["noising", "denoising"]
PARTS = ("head", "kv_head", "neuron")


@dataclass(frozen=True, eq=False)
class NodeScores(Result):
    """One score a prompt and node; score > 0: corrupting the node lowers the metric.

    `table`: prompt, layer, (head, kv_head or neuron; or node and component,) pos,
    score, in the metric's unit; pos is -1 where all positions are one node. Beside it
    `estimate`, what `patch_sweep` would find as `value` were the model linear, or
    `magnitude` (`atp_star`).

    `nodes`: the same without prompt and pos: score summed over positions, mean over
    prompts, with low, high (95 % bootstrap over prompts), p_value (sign flips over
    prompts, two-sided), q_value (Benjamini-Hochberg over nodes); NaN with one prompt.

    Attributes:
        method: function that scored.
        site: what was scored, in words.
        direction: "noising" or "denoising": which run a node's value is put into.
        metric: as its repr says.
        corrupted: metric on the corrupted run, one a prompt, in its unit.
        clean: metric on the clean run, one a prompt, in its unit.

    Examples:
        >>> case = ms.planted("induction")
        >>> scores = ms.attribution_patching(case.model, case.pairs, ms.logit_diff)
        >>> list(scores.nodes)
        ['layer', 'head', 'score', 'low', 'high', 'p_value', 'q_value']
        >>> ax = scores.plot()
    """

    nodes: pd.DataFrame
    method: str
    site: str
    direction: Direction
    metric: str
    clean: list[float]
    corrupted: list[float]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Heat map of the mean score over prompts: layer by position, or by part.

        Scores of several parts are summed where positions are shown; where a node is
        a component, positions are summed and layer by component is shown.

        Args:
            ax: where to draw; default: a new figure.
        """
        if "component" in self.table:
            column, names = "component", list(dict.fromkeys(self.nodes["component"]))
        else:
            parts = [c for c in PARTS if c in self.table]
            several = len(self.table["pos"].unique()) > 1
            column, names = ("pos" if several or not parts else parts[0]), None
        # Summed within a prompt, then averaged over the prompts that have the cell.
        totals = self.table.pivot_table(
            index=["layer", "prompt"], columns=column, values="score", aggfunc="sum"
        )
        grid = pd.DataFrame(totals.groupby("layer").mean())
        grid = grid if names is None else grid.reindex(columns=names)
        with plotting.theme():
            ax = ax or plotting.new_axes()
            label = f"{self.method}, {self.metric}"
            return plotting.heat_map(ax, grid, label, diverging=True)


def node_scores(
    ask: AskedNodes,
    method: str,
    site: str,
    direction: Direction,
    keys: pd.DataFrame,
    spots: Sequence[Sequence[int]],
    columns: Mapping[str, Sequence[Tensor]],
    seed: int,
    started: float,
    **settings: Any,
) -> NodeScores:
    """The result, from one [node spot] tensor a prompt.

    Args:
        ask: the question.
        method: function that scored.
        site: what was scored, in words.
        direction: which run a node's value is put into.
        keys: one row a node: layer and the like.
        spots: positions of each prompt.
        columns: "score" first; what else the table has.
        seed: of `inference`.
        started: `time.perf_counter()` at the start.
        settings: for `meta`.
    """
    tables = []
    for prompt, mine in enumerate(spots):
        rows = np.repeat(np.arange(len(keys)), len(mine))
        table = keys.iloc[rows].reset_index(drop=True)
        table.insert(0, "prompt", prompt)
        table["pos"] = np.tile(np.asarray(mine, dtype=np.int64), len(keys))
        for name, values in columns.items():
            table[name] = values[prompt].flatten().numpy()
        tables.append(table)
    totals = {
        name: np.stack([x.sum(-1).numpy() for x in values])
        for name, values in columns.items()
    }
    nodes = pd.concat([keys, inference(totals["score"], seed)], axis=1)
    if "magnitude" in totals:
        nodes["magnitude"] = totals["magnitude"].mean(0)
    meta = provenance(
        ask.model,
        [x for group in ask.groups for x in (group.clean, group.corrupted)],
        duration=time.perf_counter() - started,
        method=method,
        site=site,
        direction=direction,
        metric=repr(ask.metric),
        seed=seed,
        pairs=len(spots),
        sign="score > 0: corrupting the node lowers the metric",
        **settings,
    )
    return NodeScores(
        pd.concat(tables, ignore_index=True),
        meta,
        nodes,
        method,
        site,
        direction,
        repr(ask.metric),
        ask.clean,
        ask.corrupted,
    )
