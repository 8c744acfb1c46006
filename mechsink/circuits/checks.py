"""Completeness and minimality: does a circuit lack edges, does it have idle ones?

Source: Wang et al. 2022 (arXiv:2211.00593), section 4, there for nodes.
May import: rooms up to attribution.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from mechsink import plotting
from mechsink.attribution.inference import inference
from mechsink.circuits.evaluation import Ablation, CircuitRuns, Edges, References
from mechsink.circuits.graph import Edge
from mechsink.circuits.pruning import edges_of
from mechsink.circuits.ratios import (
    check_resamples,
    check_told_apart,
    interval,
    resampled_means,
)
from mechsink.models.any_model import any_model
from mechsink.plotting import Axes
from mechsink.progress import bar
from mechsink.prompts import PromptPairs
from mechsink.provenance import provenance
from mechsink.results import Result
from mechsink.run import Metric, Model

Mask = Bool[np.ndarray, "source target"]


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
    mask, edges = _edges(runs, circuit)
    sets = [np.array([], dtype=int), *_random_sets(len(edges), samples, seed)]
    full, ablated = runs.ends()
    check_told_apart(caller, repr(metric), ablated, full, model.dtype)
    ends = [mask, runs.ask.wires.real]
    value = _run(
        runs,
        (_without(end, runs, edges, some) for some in sets for end in ends),
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
    meta = _meta(runs, started, edges, samples=samples, resamples=resamples, seed=seed)
    return Completeness(table, meta, removed, repr(metric), ablation)


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
    mask, edges = _edges(runs, circuit)
    n = len(edges)
    whole, nothing = runs.values(np.stack([mask, np.zeros_like(mask)]))
    alone = _run(
        runs,
        (_without(mask, runs, edges, np.array([k])) for k in range(n)),
        n,
        progress,
    )
    effects = whole - alone  # [edge prompt]
    order = np.argsort(np.abs(effects.mean(1)), kind="stable")
    largest, after = effects.mean(1), np.zeros(n, dtype=int)
    for chain in (order, order[::-1].copy()):
        steps = (_without(mask, runs, edges, chain[: k + 1]) for k in range(n))
        left = np.concatenate([[whole.mean()], _run(runs, steps, n, progress).mean(1)])
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
    meta = _meta(runs, started, edges, seed=seed)
    return Minimality(table, meta, repr(metric), ablation)


def _edges(runs: CircuitRuns, circuit: Edges) -> tuple[Mask, list[Edge]]:
    mask = runs.mask(circuit)
    if not mask.any():
        raise ValueError(
            f"{runs.ask.caller}: the circuit has no edges, so there are none to take "
            "out. Give one with at least one edge: choose more, or do not prune."
        )
    return mask, edges_of(runs.ask.wires, mask)


def _random_sets(n: int, samples: int, seed: int) -> list[Int[np.ndarray, " edge"]]:
    random = np.random.default_rng(seed)
    sizes = random.integers(1, max(n, 2), samples)  # 1 to n - 1; 1 where n is 1
    return [np.sort(random.permutation(n)[:size]) for size in sizes]


def _without(
    mask: Mask, runs: CircuitRuns, edges: list[Edge], some: Int[np.ndarray, " edge"]
) -> Mask:
    left, wires = mask.copy(), runs.ask.wires
    for k in some:
        source, target = edges[k]
        left[wires.source_index[source], wires.target_index[target]] = False
    return left


def _run(
    runs: CircuitRuns, masks: Iterable[Mask], n: int, progress: bool | None
) -> Float[np.ndarray, "circuit prompt"]:
    """Many circuits, as many at once as fit."""
    found, waiting = [], []
    with bar(runs.ask.caller, n, progress) as advance:
        for number, mask in enumerate(masks, start=1):
            waiting.append(mask)
            if number == n or len(waiting) == runs.at_once:
                found.append(runs.values(np.stack(waiting)))
                advance(len(waiting))
                waiting = []
    return np.concatenate(found)


def _meta(
    runs: CircuitRuns, started: float, edges: list[Edge], **settings: object
) -> dict:
    ask = runs.ask
    return provenance(
        ask.model,
        [x for group in ask.groups for x in (group.clean, group.corrupted)],
        duration=time.perf_counter() - started,
        metric=repr(ask.metric),
        n_edges=len(edges),
        n_graph=len(ask.wires.edges),
        pairs=runs.n_prompts,
        **runs.settings,
        **settings,
    )
