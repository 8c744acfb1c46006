"""Faithfulness: how much of the model's own effect a circuit has, with intervals.

(mean circuit - mean ablated) / (mean full - mean ablated), means over prompts of the
metric: 1 for a circuit as good as the model, 0 for one as good as no edge at all,
unclipped. Numerator and denominator are resampled together.
May import: rooms up to attribution.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from mechsink import plotting
from mechsink.circuits.evaluation import (
    Ablation,
    CircuitRuns,
    Edges,
    References,
)
from mechsink.circuits.ratios import (
    check_resamples,
    check_told_apart,
    interval,
    ratio_of_means,
    resampled_ratios,
)
from mechsink.models.any_model import any_model
from mechsink.plotting import Axes
from mechsink.precision import below, below_mean, floors
from mechsink.prompts import PromptPairs
from mechsink.provenance import provenance
from mechsink.results import Result
from mechsink.run import Metric, Model
from toy_tasks.checks import checked


@dataclass(frozen=True, eq=False)
class Faithfulness(Result):
    """One circuit's faithfulness.

    `table`: prompt, full, circuit, ablated: the metric of each prompt, in its unit.
    `value`: the ratio of means; low, high: its 95 % bootstrap interval, NaN for one
    prompt or where full and ablated can't be told apart.

    Attributes:
        ablation: what cut edges carried: "patch", "zero" or "mean".
        n_edges: of the circuit.
        n_graph: of the model.
        noise: floor of each prompt's metric.

    Examples:
        >>> case = ms.planted("and")
        >>> found = ms.faithfulness(
        ...     case.model, list(case.edges), case.pairs, ms.logit_diff
        ... )
        >>> round(found.value, 3), found.n_edges
        (1.0, 5)
    """

    value: float
    low: float
    high: float
    n_edges: int
    n_graph: int
    metric: str
    ablation: str
    noise: list[float] = field(default_factory=list)

    def below_noise(self) -> pd.Series:
        """Prompts where full and ablated differ by no more than rounding may.

        Raises:
            ValueError: the result was saved without a floor.
        """
        full, ablated, prompts = (
            self.table[c].to_numpy() for c in ("full", "ablated", "prompt")
        )
        found = below(full - ablated, self.noise, prompts, "Faithfulness")
        return pd.Series(found, index=self.table.index, name="below_noise")

    def plot(self, ax: Axes | None = None) -> Axes:
        """The circuit's metric against the model's, a dot a prompt.

        Dashed: as the model has it; dotted: the mean with no edge at all.

        Args:
            ax: where to draw; a new figure by default.
        """
        with plotting.theme():
            ax = ax or plotting.new_axes(height=0.9 * plotting.WIDTH)
            ax.plot(self.table["full"], self.table["circuit"], "o", ms=3, alpha=0.7)
            ablated = float(self.table["ablated"].to_numpy().mean())
            ax.axhline(ablated, color="0.6", lw=0.8, ls=":", label="no edge, mean")
            plotting.equal_line(ax, "as the model")
            metric = plotting.literal(self.metric)
            ax.set(xlabel=f"model, {metric}", ylabel=f"circuit, {metric}")
            share = shown(self.value, self.low, self.high)
            ax.set_title(f"faithfulness {share}", fontsize="small")
            ax.legend()
        return ax

    def describe(self) -> str:
        """The number with all that it depends on, in one line."""
        words = (
            f"faithfulness {shown(self.value, self.low, self.high)} of "
            f"{self.n_edges} of {self.n_graph} edges; {self.metric}, ablation "
            f"{self.ablation}, {len(self.table)} prompts"
        )
        means = self.table[["full", "ablated"]].mean()
        apart = np.array([means["full"] - means["ablated"]])
        if self.noise and below_mean(apart, self.noise, "Faithfulness")[0]:
            words += "; full and ablated differ by no more than rounding may"
        return words


@any_model
@checked
def faithfulness(
    model: Model,
    circuit: Edges,
    pairs: PromptPairs,
    metric: Metric,
    *,
    ablation: Ablation = "patch",
    reference: References | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Faithfulness:
    """How faithful one circuit is; choose it on other prompts than these.

    Args:
        model: any model whose wiring is known (`mechsink.models.wiring`).
        circuit: a circuit, or its edges as (source, target).
        pairs: clean and corrupted prompts.
        metric: a run to one number per prompt; may read sites.
        ablation: what cut edges carry, "patch", "zero" or "mean": see `circuit_metric`.
        reference: prompts for "mean".
        resamples: bootstrap resamples of the prompts.
        seed: of the resamples.

    Returns:
        A `Faithfulness`: 1 for a circuit as good as the model, 0 for one as good as no
        edge at all, unclipped.

    Raises:
        ValueError: as `circuit_metric`; a metric that has the same mean with all edges
            and with none.

    Source: the ratio of MIB (Mueller et al. 2025, arXiv:2504.13151); intervals ours.

    Examples:
        >>> case = ms.planted("and")
        >>> scores = ms.eap_ig(case.model, case.pairs, ms.logit_diff)
        >>> circuit = ms.top_edges(scores, 5)
        >>> found = ms.faithfulness(case.model, circuit, case.pairs, ms.logit_diff)
        >>> round(found.value, 3)
        1.0
    """
    started = time.perf_counter()
    caller = "faithfulness"
    check_resamples(caller, resamples)
    runs = CircuitRuns.of(caller, model, pairs, metric, ablation, reference)
    mask = runs.mask(circuit)
    full, ablated = ends_of(runs)
    value = runs.values(mask[None])
    low, high = interval(
        resampled_ratios(
            value, ablated, full, resamples=resamples, seed=seed, caller=caller
        )
    )
    table = pd.DataFrame({"full": full, "circuit": value[0], "ablated": ablated})
    table.insert(0, "prompt", range(len(table)))
    name = repr(metric)
    meta = meta_of(runs, started, metric=name, resamples=resamples, seed=seed)
    return Faithfulness(
        table, meta, float(ratio_of_means(value, ablated, full)[0]),
        float(low[0]), float(high[0]), int(mask.sum()), len(runs.ask.wires.edges),
        name, ablation, floors(model, runs.ask.groups, metric),
    )  # fmt: skip


def ends_of(runs: CircuitRuns) -> tuple[np.ndarray, np.ndarray]:
    """The metric with all edges and with none, [prompt] each.

    Raises:
        ValueError: their means are equal.
    """
    full, ablated = runs.ends()
    ask = runs.ask
    check_told_apart(ask.caller, repr(ask.metric), ablated, full, ask.model.dtype)
    return full, ablated


def meta_of(runs: CircuitRuns, started: float, **settings: Any) -> dict[str, Any]:
    """Provenance of a measurement of circuits."""
    ask = runs.ask
    tokens = [x for group in ask.groups for x in (group.clean, group.corrupted)]
    return provenance(
        ask.model,
        tokens if runs.ablation == "patch" else tokens[::2],
        duration=time.perf_counter() - started,
        pairs=runs.n_prompts,
        **runs.settings,
        **settings,
    )


def shown(value: float, low: float, high: float) -> str:
    """A number and its interval."""
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
