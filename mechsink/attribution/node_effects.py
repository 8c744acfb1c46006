"""`node_effects`: what heads and MLPs do directly, in all, and by way of others."""

import time
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from mechsink import plotting
from mechsink.attribution.inference import inference
from mechsink.attribution.logits import logit_attribution
from mechsink.interventions.paths import path_sweep
from mechsink.interventions.places import Direction
from mechsink.metrics import logit_diff
from mechsink.models.any_model import any_model
from mechsink.plotting import Axes
from mechsink.precision import below_mean
from mechsink.prompts import PromptPairs
from mechsink.provenance import provenance
from mechsink.results import Result
from mechsink.run import Metric, Model

KEYS = ["prompt", "layer", "component"]
COLUMNS = ("attribution", "attribution_change", "direct", "total", "indirect")


@dataclass(frozen=True, eq=False)
class NodeEffects(Result):
    """Attribution and patching of every head and MLP, side by side.

    `table`: layer, component (h0, h1, ..., mlp), then means over prompts, each with
    NAME_low and NAME_high, a 95 % bootstrap interval over prompts (NaN for one):
      attribution: what it adds to the logits of the clean prompt (`logit_attribution`);
      attribution_change: the same, less that of the corrupted prompt;
      direct: effect of its clean instead of its corrupted value on the metric, all
        later components held;
      total: the same, later components free to answer;
      indirect: total - direct.
    Positive effects: the clean value raises the metric (the corrupted one lowers it),
    in the metric's unit. Attributions are in logits, before a soft cap; NaN without
    answers. Without a norm `attribution_change` equals `direct` of `logit_diff`; a
    final norm's scale moves with the patch, but is held in an attribution.

    `by_prompt`: prompt, layer, component and the five numbers of each prompt.

    Attributes:
        direction: "denoising" or "noising": which run the other's values were put into.
        clean: metric on the clean run, one a prompt, in its unit.
        noise: floor of each prompt's metric.

    Examples:
        >>> case = ms.planted("and")
        >>> found = ms.node_effects(case.model, case.pairs)
        >>> mlp = found.table[found.table.component == "mlp"]
        >>> mlp[["direct", "total", "indirect"]].round(1).values.tolist()
        [[8.0, 8.0, 0.0]]
        >>> ax = found.plot()
    """

    by_prompt: pd.DataFrame
    direction: Direction
    metric: str
    clean: list[float]
    corrupted: list[float]
    noise: list[float] = field(default_factory=list)

    def below_noise(self, column: str = "total") -> pd.Series:
        """Nodes whose mean effect is no larger than rounding of the metric may make it.

        Args:
            column: direct, total or indirect.

        Raises:
            ValueError: another column, or a result that was saved without a floor.
        """
        if column not in ("direct", "total", "indirect"):
            raise ValueError(
                f"below_noise: column={column!r}. Allowed: direct, total, indirect."
            )
        effect = self.table[column].to_numpy()
        found = below_mean(effect, self.noise, "NodeEffects")
        return pd.Series(found, index=self.table.index, name="below_noise")

    def plot(self, ax: Axes | None = None, labels: int = 6) -> Axes:
        """Direct against total effect; `labels` of the largest are named.

        On the dashed line all of an effect is direct.

        Args:
            ax: where to draw; default: a new figure.
        """
        table = self.table
        ends = table[["direct", "total"]].to_numpy()
        reach = 1.1 * (np.abs(ends).max() or 1.0)
        with plotting.theme():
            ax = ax or plotting.new_axes(height=plotting.WIDTH)
            ax.plot([-reach, reach], [-reach, reach], color="0.7", ls="--", lw=0.8)
            for is_mlp, name, colour in (
                (False, "heads", plotting.colours(2)[0]),
                (True, "MLPs", plotting.colours(2)[1]),
            ):
                some = table.loc[(table["component"] == "mlp") == is_mlp]
                ax.errorbar(
                    some["direct"],
                    some["total"],
                    xerr=_around(some, "direct"),
                    yerr=_around(some, "total"),
                    fmt="o",
                    color=colour,
                    markersize=3,
                    elinewidth=0.5,
                    label=name,
                )
            order = np.argsort(-np.abs(ends).max(axis=1))[:labels]
            for _, row in table.iloc[order].iterrows():
                ax.annotate(
                    _name(row["layer"], row["component"]),
                    (row["direct"], row["total"]),
                    xytext=(3, 3),
                    textcoords="offset points",
                    fontsize=6,
                )
            metric = plotting.literal(self.metric)
            ax.set(xlabel=f"direct effect, {metric}", ylabel="total effect")
            ax.legend()
            return ax


@any_model
def node_effects(
    model: Model,
    pairs: PromptPairs,
    metric: Metric = logit_diff,
    *,
    direction: Direction = "denoising",
    seed: int = 0,
) -> NodeEffects:
    """Attribution, direct and total effect of every head and MLP.

    Args:
        model: any model with attn_out and mlp_out, whose weights are at hand.
        pairs: clean and corrupted prompts.
        metric: a run to one number per prompt.
        direction: "denoising" puts clean values into the corrupted run, "noising"
            corrupted ones into the clean run. Effects are positive in both where the
            clean value raises the metric.
        seed: of the bootstrap.

    Returns:
        A `NodeEffects`, one row a head or MLP.

    Raises:
        ValueError: as `path_sweep` and `logit_attribution`.

    Sources: direct and indirect effects, Vig et al. 2020 (arXiv:2004.12265); their
    measurement by paths, Wang et al. 2022 (arXiv:2211.00593).

    Examples:
        >>> case = ms.planted("induction")
        >>> found = ms.node_effects(case.model, case.pairs)
        >>> best = found.table.nlargest(2, "total")
        >>> best[["layer", "component", "direct"]].round(1).values.tolist()
        [[1, 'h0', 14.3], [0, 'h0', 0.0]]
    """
    started = time.perf_counter()
    sweep = path_sweep(model, pairs, metric, receivers=None, direction=direction)
    sign = 1 if direction == "denoising" else -1
    numbers = {
        name: sign * sweep.table[name].to_numpy(dtype=float)
        for name in ("direct", "total", "indirect")
    }
    at = pd.MultiIndex.from_frame(sweep.table.filter(KEYS))
    numbers |= dict.fromkeys(
        ("attribution", "attribution_change"), np.full(len(at), np.nan)
    )
    if pairs.answers is not None:
        of_clean = _attributed(model, pairs, at)
        of_corrupted = _attributed(model, replace(pairs, clean=pairs.corrupted), at)
        numbers |= {
            "attribution": of_clean,
            "attribution_change": of_clean - of_corrupted,
        }
    by_prompt = at.to_frame(index=False).assign(**{n: numbers[n] for n in COLUMNS})
    table = means_of(by_prompt, seed)
    meta = provenance(
        model,
        [t for g in pairs.tokens(model) for t in (g.clean, g.corrupted)],
        duration=time.perf_counter() - started,
        direction=direction,
        metric=repr(metric),
        seed=seed,
        pairs=len(pairs),
    )
    return NodeEffects(
        table, meta, by_prompt, direction, repr(metric), sweep.clean, sweep.corrupted,
        sweep.noise,
    )  # fmt: skip


def means_of(by_prompt: pd.DataFrame, seed: int) -> pd.DataFrame:
    """`NodeEffects.table` from the rows of its prompts."""
    # They come prompt by prompt, nodes in one order.
    n_nodes = len(by_prompt) // len(by_prompt["prompt"].unique())
    table = by_prompt.head(n_nodes).filter(KEYS[1:])
    for name in COLUMNS:
        values = by_prompt[name].to_numpy(dtype=float, copy=True)
        found = inference(values.reshape(-1, n_nodes), seed)
        table[name] = found["score"]
        table[f"{name}_low"], table[f"{name}_high"] = found["low"], found["high"]
    return table


def _attributed(model: Model, pairs: PromptPairs, at: pd.MultiIndex) -> np.ndarray:
    """Logit attribution of the clean prompts, in the order of `at`."""
    nodes = logit_attribution(model, pairs).nodes
    stacked = nodes.T.stack().reorder_levels(KEYS)
    return stacked.reindex(at).to_numpy(dtype=float)


def _name(layer: int, component: str) -> str:
    """As edges name it: m3, a3.h0."""
    return f"m{layer}" if component == "mlp" else f"a{layer}.{component}"


def _around(table: pd.DataFrame, name: str) -> np.ndarray:
    """Distances of an interval's ends from its mean."""
    low, high = table[f"{name}_low"], table[f"{name}_high"]
    return np.stack([table[name] - low, high - table[name]]).clip(min=0)
