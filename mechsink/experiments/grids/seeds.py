"""Measures over seeds: one number a run, means with Student-t intervals, dots.

A run's measures come by layer and head (`mechsink.experiments.formation.moment`);
comparing settings takes one number a run.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mechsink import plotting
from mechsink.intervals import student_t
from mechsink.plotting import Axes, Figure

OVER_HEADS: Mapping[str, str] = {
    "bos_markov": "max",
    "bos_markov_share": "max",
    "sink_logit": "max",
    "sink_top": "max",
    "previous_trigger": "max",
    "value_ratio": "min",
    "resid_ratio": "max",
}
"""How layers and heads become one number: the strongest sink, drain and peak.

What is not named here is the mean; of measures without layers it is the value.
"""

SHARES = {
    "bos_markov_share",
    "bos_trigger_share",
    "sink_rate",
    "sink_score",
    "sink_top",
}
LOG = {"value_ratio", "resid_ratio", "trigger_excess", "markov_excess", "excess"}


def by_run(table: pd.DataFrame) -> pd.DataFrame:
    """One row a setting and seed, one column a measure; layers and heads reduced.

    Args:
        table: setting, seed, layer, head, measure, value.
    """
    cells: dict[str, Any] = {}
    for measure, rows in table.groupby("measure", sort=False):
        over = rows.groupby(["setting", "seed"], sort=False)["value"]
        cells[str(measure)] = over.agg(OVER_HEADS.get(str(measure), "mean"))
    settings = list(dict.fromkeys(table["setting"]))
    wide = pd.DataFrame(cells).reset_index()
    order = wide["setting"].map(settings.index)
    wide = wide.assign(order=order).sort_values(["order", "seed"])
    return wide.drop(columns="order").reset_index(drop=True)


def summary(table: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """Means over seeds with 95 % Student-t intervals.

    Returns:
        setting, measure, mean, low, high, n (seeds that have a number). The interval
        is NaN of fewer than two seeds.
    """
    runs = by_run(table)
    rows = []
    for setting, part in runs.groupby("setting", sort=False):
        for measure in measures:
            values: Any = part[measure].dropna() if measure in part else []
            low, high = student_t(list(values))
            mean = float(np.mean(values)) if len(values) else float("nan")
            rows.append((setting, measure, mean, low, high, len(values)))
    columns = ["setting", "measure", "mean", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns)


def overview(table: pd.DataFrame, measures: Mapping[str, str]) -> pd.DataFrame:
    """What a page shows: a row a setting, a column a measure, "mean [low, high]".

    `measures`: measure to column heading.
    """
    found = summary(table, list(measures))
    found["cell"] = [
        cell(*row) for row in found[["mean", "low", "high"]].itertuples(index=False)
    ]
    wide = found.pivot(index="setting", columns="measure", values="cell")
    wide = wide.loc[list(dict.fromkeys(table["setting"])), list(measures)]
    return wide.rename(columns=dict(measures)).reset_index()


def cell(mean: float, low: float, high: float) -> str:
    """A mean and its interval in three digits; a dash where nothing was measured."""
    if np.isnan(mean):
        return "-"
    if np.isnan(low):
        return f"{mean:.3g}"
    return f"{mean:.3g} [{low:.3g}, {high:.3g}]"


def seed_panels(
    table: pd.DataFrame,
    measures: Mapping[str, str],
    references: Mapping[str, float] | None = None,
) -> Figure:
    """One panel a measure: a row a setting, every seed a dot, the mean its interval.

    Args:
        table: as for `by_run`.
        measures: measure to panel title, with its unit.
        references: measure to where a dotted line stands.
    """
    runs, found = by_run(table), summary(table, list(measures))
    settings = list(dict.fromkeys(table["setting"]))
    with plotting.theme():
        height = 0.55 + 0.17 * len(settings)
        panels = plotting.new_panels(len(measures), columns=3, height=height)
        for number, (ax, (measure, title)) in enumerate(
            zip(panels, measures.items(), strict=True)
        ):
            means = found[found["measure"] == measure].set_index("setting")
            _dots(ax, runs, means, measure, settings)
            if measure in (references or {}):
                ax.axvline((references or {})[measure], color="0.6", lw=0.8, ls=":")
            if number % 3:
                ax.set_yticklabels([])
            ax.set_title(title, fontsize="small")
        return plotting.figure_of(panels[0])


def seed_dots(
    table: pd.DataFrame,
    measure: str,
    title: str,
    ax: Axes | None = None,
    reference: float | None = None,
) -> Axes:
    """One panel of `seed_panels` alone, `title` below it; dotted at `reference`.

    Raises:
        ValueError: nothing of that name was measured.
    """
    there = list(dict.fromkeys(table["measure"]))
    if measure not in there:
        raise ValueError(
            f"plot: {measure!r} was not measured. Measured: {', '.join(there)}."
        )
    means = summary(table, [measure]).set_index("setting")
    settings = list(dict.fromkeys(table["setting"]))
    with plotting.theme():
        ax = ax or plotting.new_axes(height=0.75 + 0.17 * len(settings))
        _dots(ax, by_run(table), means, measure, settings)
        if reference is not None:
            ax.axvline(reference, color="0.6", lw=0.8, ls=":", zorder=0)
        ax.set_xlabel(title)
    return ax


def _dots(
    ax: Axes,
    runs: pd.DataFrame,
    means: pd.DataFrame,
    measure: str,
    settings: Sequence[str],
) -> None:
    is_log = measure in LOG
    dark, light = plotting.colours(2)
    for place, setting in enumerate(settings):
        values = runs.loc[runs["setting"] == setting, measure].dropna()
        if values.empty:
            continue
        ax.plot(values, [place] * len(values), "o", ms=2.6, alpha=0.6, color=light)
        mean, low, high = means.loc[setting, ["mean", "low", "high"]]
        if not np.isnan(low) and not (is_log and low <= 0):
            ax.plot([low, high], [place, place], color=dark, lw=1.4)
        ax.plot([mean], [place], "|", ms=7, mew=1.6, color=dark)
    if is_log:
        ax.set_xscale("log")
        plotting.plain_log(ax.xaxis)
    if measure in SHARES:
        ax.set_xlim(-0.03, 1.03)
    names = [plotting.literal(name) for name in settings]
    ax.set_yticks(range(len(settings)), names, fontsize="x-small")
    ax.set_ylim(len(settings) - 0.5, -0.5)
    ax.tick_params(axis="x", labelsize="x-small")
