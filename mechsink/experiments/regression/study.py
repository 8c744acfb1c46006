"""What the in-context regression experiment found: tables and figures."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd

from mechsink.experiments.regression.claims import TRAINED
from mechsink.experiments.study import Study
from mechsink.plotting import (
    Axes,
    Figure,
    colours,
    figure_of,
    heat_map,
    new_axes,
    new_panels,
    plain_log,
    theme,
)


@dataclass(frozen=True, eq=False)
class LinearRegressionStudy(Study):
    """Regression heads of several seeds, in several settings.

    `table`: setting, predictor ("heads", or one that needs no training), seed (NaN
    for those), n_examples, risk (mean squared error),
    above_bayes (less that of the Bayes predictor, prompt by prompt), excess (mean
    squared distance from it), each with NAME_se, a standard error over prompts;
    from_step and from_debiased_step, the mean squared distance from the steps that
    are best at 40 examples, preconditioned where x is correlated or tasks are
    several. Linear heads have two predictors, which divide by the trained length
    ("heads") and by the prompt's ("heads, mean").
    `patterns`: setting, seed, head (NaN for a whole model), measure, value, at_init
    (the same at the seed's random initial weights).
    `weights`: setting, seed, head, matrix ("KQ" or "OV"), row, column, value.

    Examples:
        >>> study = ms.linear_regression(
        ...     seeds=[0, 1], steps=20, n_test=64, progress=False
        ... )
        >>> list(study.weights)
        ['setting', 'seed', 'head', 'matrix', 'row', 'column', 'value']
    """

    patterns: pd.DataFrame
    weights: pd.DataFrame

    title: ClassVar[str] = "In-context linear regression"

    def figures(self) -> dict[str, Figure]:
        """KQ and OV of one model, and risk against prompt length."""
        return {"heads": self.plot_heads(), "lengths": self.plot_lengths()}

    def tables(self) -> dict[str, pd.DataFrame]:
        """Risks at the trained length, and patterns beside their random reference."""
        table: Any = self.table
        at = table[table["n_examples"] == TRAINED]
        by = at.groupby(["setting", "predictor"], sort=False)
        risk = by[["risk", "risk_se", "excess", "excess_se"]].mean()
        patterns: Any = self.patterns
        whole = patterns[patterns["head"].isna()]
        by = whole.groupby(["setting", "measure"], sort=False)
        pattern = by[["value", "at_init"]].mean()
        return {
            "Risk at the trained length": pd.DataFrame(risk).reset_index(),
            "Patterns, mean over seeds": pd.DataFrame(pattern).reset_index(),
        }

    def plot_heads(self, setting: str = "two heads", seed: int | None = None) -> Figure:
        """Heat maps of a model's KQ, and of its OV; by default of the first seed.

        Args:
            setting: whose model.
            seed: which; default: the first.
        """
        table: Any = self.weights
        if seed is None:
            seed = int(table["seed"].min())
        chosen = table[(table["setting"] == setting) & (table["seed"] == seed)]
        n_heads = int(chosen["head"].max()) + 1
        with theme():
            panels = new_panels(n_heads + 1, columns=n_heads + 1, height=2.1)
            kq = chosen[chosen["matrix"] == "KQ"]
            # A query's y entries are 0: those columns do nothing and are not drawn.
            n_tasks = chosen[chosen["matrix"] == "OV"]["column"].nunique()
            kq = kq[kq["column"] < kq["column"].nunique() - n_tasks]
            for head, ax in enumerate(panels[:-1]):
                grid = kq[kq["head"] == head].pivot(
                    index="row", columns="column", values="value"
                )
                grid = grid.rename_axis(index="entry of key", columns="entry of query")
                heat_map(ax, grid, "KQ", diverging=True)
                ax.set_title(f"head {head}")
            ov = chosen[(chosen["matrix"] == "OV") & (chosen["column"] == 0)]
            grid = ov.pivot(index="row", columns="head", values="value")
            grid = grid.rename_axis(index="entry read")
            heat_map(panels[-1], grid, "OV", diverging=True)
            return figure_of(panels[0])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Excess risk over Bayes against examples; a band is the range of seeds.

        Args:
            ax: where to draw; a new figure by default.
        """
        table: Any = self.table
        lines = {
            "softmax heads": ("four heads", "heads"),
            "linear heads": ("linear attention", "heads"),
            "linear heads, mean": ("linear attention", "heads, mean"),
            "gradient step": ("four heads", "gradient step"),
            "debiased step": ("four heads", "debiased gradient step"),
        }
        with theme():
            ax = ax or new_axes(height=3.0)
            for (label, (setting, name)), colour in zip(
                lines.items(), colours(len(lines)), strict=True
            ):
                rows = table[
                    (table["setting"] == setting) & (table["predictor"] == name)
                ]
                by = rows.groupby("n_examples")["excess"]
                style = "-" if name.startswith("heads") else "--"
                ax.plot(by.mean(), style, color=colour, label=label)
                low, high = by.min(), by.max()
                ax.fill_between(low.index, low, high, color=colour, alpha=0.2)
            ax.axvline(TRAINED, color="0.6", linewidth=0.8)
            ax.set(xscale="log", yscale="log", xlabel="examples in the prompt")
            ax.set_ylabel("risk above Bayes (y squared)")
            plain_log(ax.xaxis)
            ax.legend(loc="upper left")
            return ax

    def plot_lengths(self) -> Figure:
        """`plot` in a new figure."""
        return figure_of(self.plot())
