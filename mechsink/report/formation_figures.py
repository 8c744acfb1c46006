"""Figures of a formation report: one panel a question, training steps to the right.

May import: sites, run, results, plotting, sinks, experiments.
"""

from typing import Any

import pandas as pd

from mechsink import plotting
from mechsink.plotting import Axes
from mechsink.report.figures import MASKED, REFERENCE, plain_log, tick_label
from mechsink.report.formation import FormationReport

LINES = ("-", "--", ":")

Line = tuple[str, pd.Series]
"""Name of a line, and its values by training step."""


def attention_by_query(
    report: FormationReport, layer: int, ax: Axes | None = None
) -> Axes:
    """Where one layer's heads look, by kind of query."""
    names = {
        "bos_markov": "to <s>, elsewhere",
        "bos_trigger": "to <s>, on triggers",
        "previous_trigger": "to previous, on triggers",
    }
    lines = [(name, _series(report, key, layer)) for key, name in names.items()]
    ax = _timeline(lines, "attention", ax)
    ax.set_ylim(-0.03, 1.03)
    with plotting.theme():  # upper left is free: an untrained head spreads itself
        ax.legend(loc="upper left")
    return ax


def by_layer(
    report: FormationReport,
    measure: str,
    label: str,
    ax: Axes | None = None,
    *,
    log: bool = False,
    reference: float | None = None,
) -> Axes:
    """One measure, a line a layer (mean over heads)."""
    here: Any = report.table[report.table["measure"] == measure]
    layers = sorted(int(layer) for layer in here["layer"].dropna().unique())
    last = max(layers)
    is_resid = measure.startswith("resid")
    lines = [
        (
            "output" if is_resid and layer == last else f"layer {layer}",
            _series(report, measure, layer),
        )
        for layer in layers
    ]
    return _timeline(lines, label, ax, log=log, reference=reference)


def excess_risk(report: FormationReport, ax: Axes | None = None) -> Axes:
    """Loss above the best possible, on trigger and on other positions."""
    lines = [
        ("after triggers", _series(report, "trigger_excess")),
        ("elsewhere", _series(report, "markov_excess")),
    ]
    return _timeline(lines, "excess risk (nats)", ax, log=True)


def example_attention(
    report: FormationReport, layer: int, ax: Axes | None = None
) -> Axes:
    """Attention of one layer's head 0 on a short sequence, after the last step."""
    table: Any = report.attention
    table = table[(table["layer"] == layer) & (table["head"] == 0)]
    here = table[table["step"] == table["step"].max()]
    grid = here.pivot(index="query", columns="key", values="weight")
    names = [tick_label(token) for token in report.example["token"]]
    with plotting.theme():
        ax = ax or plotting.new_axes(height=plotting.WIDTH)
        top = max(1.0, float(here["weight"].max()))
        plotting.heat_map(ax, grid, "attention", limits=(0.0, top))
        ax.set_facecolor(MASKED)
        turn = 90 if max(map(len, names)) > 2 else 0
        ax.set_xticks(range(len(names)), names, fontsize=7, rotation=turn)
        ax.set_yticks(range(len(names)), names, fontsize=7)
        marked = plotting.colours(4)[3]
        for axis in (ax.get_xticklabels(), ax.get_yticklabels()):
            for text, is_trigger in zip(
                axis, report.example["is_trigger"], strict=True
            ):
                if is_trigger:
                    text.set(color=marked, fontweight="bold")
        ax.tick_params(length=0)
        ax.invert_yaxis()  # reading order runs down
        ax.set(xlabel="key", ylabel="query")
    return ax


def head_map(report: FormationReport, ax: Axes | None = None) -> Axes:
    """Attention to the sink by layer and head, after the last step."""
    table: Any = report.table[report.table["measure"] == report.sink_measure]
    last = table[table["step"] == table["step"].max()]
    grid = last.pivot(index="head", columns="layer", values="value")
    with plotting.theme():
        ax = ax or plotting.new_axes(height=0.62 * plotting.WIDTH)
        return plotting.heat_map(ax, grid, "attention to the sink", limits=(0.0, 1.0))


def _series(
    report: FormationReport, measure: str, layer: int | None = None
) -> pd.Series:
    here: Any = report.table[report.table["measure"] == measure]
    if layer is not None:
        here = here[here["layer"] == layer]
    return here.groupby("step")["value"].mean()


def _timeline(
    lines: list[Line],
    label: str,
    ax: Axes | None = None,
    *,
    log: bool = False,
    reference: float | None = None,
) -> Axes:
    """Lines against training steps, on a log axis that has room for step 0."""
    with plotting.theme():
        ax = ax or plotting.new_axes()
        styles = zip(lines, plotting.colours(len(lines)), strict=True)
        for number, ((name, line), colour) in enumerate(styles):
            style = LINES[number % len(LINES)]
            ax.plot(line.index, line, color=colour, ls=style, label=name)
        if reference is not None:
            ax.axhline(reference, color=REFERENCE, lw=0.8, zorder=0)
        ax.set_xscale("symlog", linthresh=1, linscale=0.3)
        ax.set_xlim(0, None)
        _step_ticks(ax)
        if log:
            ax.set_yscale("log")
            plain_log(ax)
        ax.set(xlabel="training step", ylabel=label)
        if len(lines) > 1:
            # over the panel, where no line can run through it
            ax.legend(
                loc="lower left",
                bbox_to_anchor=(-0.02, 1.0),
                ncols=4,
                columnspacing=1.0,
                handlelength=1.6,
                borderaxespad=0.2,
            )
    return ax


def _step_ticks(ax: Axes) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    _, last = ax.get_xlim()
    ticks = [0.0] + [10.0**power for power in range(7) if 10.0**power <= last]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
