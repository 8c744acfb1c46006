"""How a sink formed, head by head: a map with a slider over training steps.

May import: results, plotting, experiments.
"""

from typing import Any

import numpy as np

from mechsink.report.formation import FormationReport
from mechsink.report.maps import Choice, Maps, fits


def head_steps(report: FormationReport) -> Maps | None:
    """Attention to the sink by layer and head, one map a step; None: too many."""
    table: Any = report.table[report.table["measure"] == report.sink_measure]
    by_step = {
        int(step): here.pivot(index="head", columns="layer", values="value")
        for step, here in table.groupby("step")
    }
    last = list(by_step.values())[-1]
    if not fits(len(by_step), *last.shape):
        return None
    steps = tuple(f"{step:,}" for step in by_step)
    return Maps(
        np.stack(
            [grid.reindex_like(last).to_numpy(float) for grid in by_step.values()]
        ),
        rows=tuple(f"{head:.0f}" for head in last.index),
        columns=tuple(f"{layer:.0f}" for layer in last.columns),
        names=("head", "layer", "attention to the sink"),
        limits=(0.0, 1.0),
        choices=(Choice("After step", steps, len(steps) - 1, "slider"),),
    )
