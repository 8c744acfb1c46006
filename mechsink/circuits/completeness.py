"""Completeness: does a circuit lack edges that the model uses?

Source: Wang et al. 2022 (arXiv:2211.00593), section 4, there for nodes.
May import: rooms up to attribution.
"""

import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Int

from mechsink import plotting
from mechsink.circuits.evaluation import Ablation, CircuitRuns, Edges, References
from mechsink.circuits.ratios import (
    check_resamples,
    check_told_apart,
    interval,
    resampled_means,
)
from mechsink.circuits.removals import edges_in, meta_of, values_of, without
from mechsink.models.any_model import any_model
from mechsink.plotting import Axes
from mechsink.prompts import PromptPairs
from mechsink.results import Result
from mechsink.run import Metric, Model


@dataclass(frozen=True, eq=False)
class Completeness(Result):
    """What a circuit and the model lose alike when edges go: F(C - K) and F(M - K).

    F is the mean metric, in its unit; K are random sets of the circuit's edges.
    `table`, one row a set, the first empty: sample, removed (edges of K), circuit
    (F(C - K)), full (F(M - K)), difference (circuit - full) with low and high (95 %
    bootstrap over prompts), gap (its absolute value), share (gap over |F(M) - F(no
    edge)|). A complete circuit has gaps of 0.

    `removed`: sample, source, target of what was taken out.

    Attributes:
        ablation: what cut edges carried: "patch", "zero" or "mean".

    Examples:
        >>> case = ms.planted("and")
        >>> circuit = list(case.edges)
        >>> found = ms.completeness(
        ...     case.model, circuit, case.pairs, ms.logit_diff, samples=3
        ... )
        >>> found.worst < 0.01
        True
    """

    removed: pd.DataFrame
    metric: str
    ablation: str

    @property
    def worst(self) -> float:
        """The largest gap, in the metric's unit."""
        return float(self.table["gap"].to_numpy().max())

    def plot(self, ax: Axes | None = None) -> Axes:
        """F(C - K) against F(M - K), a dot a set; on the line they are alike.

        Args:
            ax: where to draw; a new figure by default.
        """
        table = self.table
        with plotting.theme():
            ax = ax or plotting.new_axes(height=0.85 * plotting.WIDTH)
            size = table["removed"].to_numpy(dtype=float)
            dots = ax.scatter(table["full"], table["circuit"], c=size, s=14,
                              cmap=plotting.SEQUENTIAL, ec="0.45", lw=0.3)  # fmt: skip
            bar = plotting.figure_of(ax).colorbar(dots, ax=ax, label="edges removed")
            bar.outline.set_visible(False)  # type: ignore[operator]
            plotting.equal_line(ax, "complete")
            metric = plotting.literal(self.metric)
            ax.set(xlabel=f"model without them, {metric}")
            ax.set(ylabel=f"circuit without them, {metric}")
            ax.legend()
        return ax


@any_model
def completeness(
    model: Model,
    circuit: Edges,
    pairs: PromptPairs,
    metric: Metric,
    *,
    samples: int = 20,
    ablation: Ablation = "patch",
    reference: References | None = None,
    resamples: int = 1000,
    seed: int = 0,
    progress: bool | None = None,
) -> Completeness:
    """Take random edges out of the circuit and out of the model, and compare.

    Sizes of the sets are uniform from 1 to all of the circuit but one, so that small
    and large ones are both seen.

    Args:
        model: any model whose wiring is known (`mechsink.models.wiring`).
        circuit: a circuit, or its edges as (source, target).
        pairs: clean and corrupted prompts.
        metric: a run to one number per prompt; may read sites.
        samples: random sets, besides the empty one.
        resamples: bootstrap resamples of the prompts.
        seed: of the sets and the resamples.
        progress: show a bar; default: on terminals, in notebooks.
        ablation: what cut edges carry, "patch", "zero" or "mean": see `circuit_metric`.
        reference: prompts for "mean".

    Returns:
        A `Completeness`, one row a set of removed edges.

    Raises:
        ValueError: as `circuit_metric`; an empty circuit; `samples` under 1; a metric
            that is the same with all edges and with none.

    Source: Wang et al. 2022 (arXiv:2211.00593), section 4, there for nodes.

    Examples:
        >>> case = ms.planted("and")
        >>> found = ms.completeness(
        ...     case.model, list(case.edges), case.pairs, ms.logit_diff, samples=3
        ... )
        >>> found.table[["sample", "removed"]].values.tolist()
        [[0, 0], [1, 4], [2, 3], [3, 3]]
    """
    started = time.perf_counter()
    caller = "completeness"
    check_resamples(caller, resamples)
    if isinstance(samples, bool) or samples < 1:
        raise ValueError(
            f"{caller}: samples={samples}. Allowed: 1 and more; 20 will do."
        )
    runs = CircuitRuns.of(caller, model, pairs, metric, ablation, reference)
    mask, edges = edges_in(runs, circuit)
    sets = [np.array([], dtype=int), *_random_sets(len(edges), samples, seed)]
    full, ablated = runs.ends()
    check_told_apart(caller, repr(metric), ablated, full, model.dtype)
    ends = [mask, runs.ask.wires.real]
    value = values_of(
        runs,
        (without(end, runs, edges, some) for some in sets for end in ends),
        2 * len(sets),
        progress,
    )
    of_circuit, of_model = value[::2], value[1::2]
    low, high = interval(
        resampled_means(of_circuit - of_model, resamples=resamples, seed=seed)
    )
    table = pd.DataFrame(
        {
            "sample": range(len(sets)),
            "removed": [len(some) for some in sets],
            "circuit": of_circuit.mean(1),
            "full": of_model.mean(1),
        }
    )
    table["difference"] = table["circuit"] - table["full"]
    table = table.assign(low=low, high=high, gap=table["difference"].abs())
    table["share"] = table["gap"] / abs(full.mean() - ablated.mean())
    rows = [(n, *edges[k]) for n, some in enumerate(sets) for k in some]
    removed = pd.DataFrame(rows, columns=["sample", "source", "target"])
    meta = meta_of(
        runs, started, edges, samples=samples, resamples=resamples, seed=seed
    )
    return Completeness(table, meta, removed, repr(metric), ablation)


def _random_sets(n: int, samples: int, seed: int) -> list[Int[np.ndarray, " edge"]]:
    random = np.random.default_rng(seed)
    sizes = random.integers(1, max(n, 2), samples)  # 1 to n - 1; 1 where n is 1
    return [np.sort(random.permutation(n)[:size]) for size in sizes]
