"""Minimality: does a circuit have edges that do nothing in it?

Source: Wang et al. 2022 (arXiv:2211.00593), section 4, there for nodes.
May import: rooms up to attribution.
"""

import time
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mechsink import plotting
from mechsink.attribution.inference import inference
from mechsink.circuits.evaluation import Ablation, CircuitRuns, Edges, References
from mechsink.circuits.removals import edges_in, meta_of, values_of, without
from mechsink.models.any_model import any_model
from mechsink.plotting import Axes
from mechsink.prompts import PromptPairs
from mechsink.results import Result
from mechsink.run import Metric, Model


@dataclass(frozen=True, eq=False)
class Minimality(Result):
    """What each edge of a circuit does in it.

    `table`, one row an edge: source, target; effect (F(C) - F(C - edge), mean metric in
    its unit; > 0: the edge raises it) with low, high (95 % bootstrap over prompts),
    p_value, q_value (sign flips, Benjamini-Hochberg over edges); share (effect over
    F(C) - F(no edge), NaN where these are equal); largest (the effect of the largest
    size among the edge alone and two nested chains of removals: F(C - K) - F(C - K -
    edge), K the edges of smaller effect, then those of larger effect) and after (edges
    in that K). An edge whose `largest` is about 0 is idle.

    Attributes:
        ablation: what cut edges carried: "patch", "zero" or "mean".

    Examples:
        >>> case = ms.planted("and")
        >>> circuit = list(case.edges)
        >>> found = ms.minimality(case.model, circuit, case.pairs, ms.logit_diff)
        >>> list(found.table)
        ['source', 'target', 'effect', 'low', 'high', 'p_value', 'q_value', 'share',
        'largest', 'after']
    """

    metric: str
    ablation: str

    def plot(self, ax: Axes | None = None, n: int = 20) -> Axes:
        """The `n` edges of the largest effects, with intervals; rings: `largest`.

        Args:
            ax: where to draw; a new figure by default.
        """
        order = np.argsort(-np.abs(self.table["largest"].to_numpy()), kind="stable")
        rows = self.table.iloc[order[:n][::-1]]
        with plotting.theme():
            ax = ax or plotting.new_axes(height=0.9 + 0.16 * len(rows))
            dark, light = plotting.colours(2)
            names = rows["source"] + " → " + rows["target"]
            values = rows[["low", "effect", "high"]].to_numpy(dtype=float)
            around = np.nan_to_num(np.abs(np.diff(values, axis=1)).T)
            ax.errorbar(values[:, 1], names, xerr=around, fmt="o", ms=3, color=dark,
                        elinewidth=0.8, label="alone")  # fmt: skip
            ax.plot(rows["largest"], names, "o", ms=5, mfc="none", color=light,
                    label="largest found")  # fmt: skip
            ax.axvline(0, color="0.6", lw=0.6)
            ax.set(xlabel=f"drop of {plotting.literal(self.metric)} without the edge")
            ax.tick_params(axis="y", labelsize="x-small", length=0)
            ax.legend(loc="lower right")
        return ax


@any_model
def minimality(
    model: Model,
    circuit: Edges,
    pairs: PromptPairs,
    metric: Metric,
    *,
    ablation: Ablation = "patch",
    reference: References | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Minimality:
    """Take each edge out of the circuit by itself, then all of them one by one.

    Three runs an edge. Redundant edges show in the chains: alone, neither of two edges
    that back each other up has an effect; once the other is gone, it has.

    Args:
        model: any model whose wiring is known (`mechsink.models.wiring`).
        circuit: a circuit, or its edges as (source, target).
        pairs: clean and corrupted prompts.
        metric: a run to one number per prompt; may read sites.
        seed: of intervals and tests.
        progress: show a bar; default: on terminals, in notebooks.
        ablation: what cut edges carry, "patch", "zero" or "mean": see `circuit_metric`.
        reference: prompts for "mean".

    Returns:
        A `Minimality`, one row an edge of the circuit.

    Raises:
        ValueError: as `circuit_metric`; an empty circuit.

    Source: Wang et al. 2022 (arXiv:2211.00593), section 4, there for nodes.

    Examples:
        >>> case = ms.planted("and")
        >>> circuit = [*case.edges, ("input", "m0")]  # the last is idle
        >>> found = ms.minimality(case.model, circuit, case.pairs, ms.logit_diff)
        >>> idle = found.table[found.table.largest.abs() < 0.01]
        >>> idle[["source", "target"]].values.tolist()
        [['input', 'm0']]
    """
    started = time.perf_counter()
    runs = CircuitRuns.of("minimality", model, pairs, metric, ablation, reference)
    mask, edges = edges_in(runs, circuit)
    n = len(edges)
    whole, nothing = runs.values(np.stack([mask, np.zeros_like(mask)]))
    alone = values_of(
        runs,
        (without(mask, runs, edges, np.array([k])) for k in range(n)),
        n,
        progress,
    )
    effects = whole - alone  # [edge prompt]
    order = np.argsort(np.abs(effects.mean(1)), kind="stable")
    largest, after = effects.mean(1), np.zeros(n, dtype=int)
    for chain in (order, order[::-1].copy()):
        steps = (without(mask, runs, edges, chain[: k + 1]) for k in range(n))
        left = np.concatenate(
            [[whole.mean()], values_of(runs, steps, n, progress).mean(1)]
        )
        effect = left[:-1] - left[1:]
        for place, k in enumerate(chain):
            if abs(effect[place]) > abs(largest[k]):
                largest[k], after[k] = effect[place], place
    table = pd.DataFrame(edges, columns=["source", "target"]).astype("str")
    found = inference(effects.T, seed).rename(columns={"score": "effect"})
    table = pd.concat([table, found], axis=1)
    scale = whole.mean() - nothing.mean()
    table["share"] = table["effect"] / scale if scale else np.nan
    table = table.assign(largest=largest, after=after)
    meta = meta_of(runs, started, edges, seed=seed)
    return Minimality(table, meta, repr(metric), ablation)
