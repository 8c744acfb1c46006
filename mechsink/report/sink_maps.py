"""Maps of a sink report to walk through: every head's score, text by text, and drains.

May import: results, plotting, sinks.
"""

from typing import Any

import numpy as np

from mechsink.report.maps import Choice, Maps, fits
from mechsink.report.sinks import SinkReport

TEXTS = 24
"""Texts that can be looked at one by one; all stand in scores.csv."""


def score_maps(report: SinkReport) -> Maps | None:
    """Sink score by layer and head: the mean over texts, and single texts."""
    mean = _grid(report.table, "score")
    scores: Any = report.scores
    texts = sorted(scores["batch"].unique())[:TEXTS]
    if len(report.rates) == 1:
        texts = []  # its mean is itself
    if not fits(1 + len(texts), *mean.shape):
        return None
    grids = [mean, *(_grid(scores[scores["batch"] == text], "score") for text in texts)]
    names = ("mean over texts", *(f"text {text}" for text in texts))
    return Maps(
        np.stack([grid.to_numpy(float) for grid in grids]),
        rows=_labels(mean.index),
        columns=_labels(mean.columns),
        names=("head", "layer", "sink score"),
        limits=(0.0, 1.0),
        choices=(Choice("Show", names),) if texts else (),
    )


def drain_maps(report: SinkReport) -> Maps | None:
    """Value norm of the position over the others', log2, by layer and head."""
    with np.errstate(divide="ignore"):
        grid: Any = np.log2(_grid(report.table, "ratio"))
    values = np.where(np.isfinite(grid), grid, np.nan)
    if not fits(1, *grid.shape):
        return None
    reach = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    return Maps(
        values[None],
        rows=_labels(grid.index),
        columns=_labels(grid.columns),
        names=("head", "layer", "log2 of value norm / others"),
        limits=(-reach, reach),
        diverging=True,
    )


def _grid(table: Any, value: str) -> Any:
    return table.pivot(index="head", columns="layer", values=value)


def _labels(index: Any) -> tuple[str, ...]:
    return tuple(str(number) for number in index)
