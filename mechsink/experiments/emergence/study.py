""" "When Attention Sink Emerges" at small scale: its knobs on Bigram-Backcopy.

Learning rate, steps, amount of data, weight decay, what stands at the first positions,
prefix loss, window, position encodings, biases and operators; each trend beside the
published one.

Source: Gu et al. 2024 (arXiv:2410.10781), on the task of Guo et al. 2024
(arXiv:2410.13835).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from mechsink import plotting
from mechsink.experiments.emergence.measures import BY_POSITION, measure_emergence
from mechsink.experiments.emergence.settings import KNOBS, QUICK, setting
from mechsink.experiments.emergence.trends import EPS, Scores, trend_table
from mechsink.experiments.grids.grid import check_names, study_grid
from mechsink.experiments.grids.seeds import by_run, cell, overview
from mechsink.experiments.operators import COLUMNS
from mechsink.experiments.study import Study, as_claims, claim
from mechsink.plotting import Axes, Figure

SHOWN = {"sink_score": "sink score at 0", **COLUMNS}


@dataclass(frozen=True, eq=False)
class EmergenceStudy(Study):
    """Sinks by knob, and each trend beside the published one.

    `table`: setting, seed, layer, head, measure, value, seconds, as in
    `OperatorStudy`, of position 0. `positions`: setting, seed, layer, head, position,
    score: sink score at the first ten. `trends`: as in
    `mechsink.experiments.emergence.trends.trend_table`.
    """

    positions: pd.DataFrame
    trends: pd.DataFrame

    title: ClassVar[str] = "When do attention sinks emerge?"

    def figures(self) -> dict[str, Figure]:
        """Sink score by knob, every seed a dot; and where the sink is."""
        return {
            "knobs": _knob_panels(self.table, self.positions),
            "positions": _position_map(self.positions),
        }

    def tables(self) -> dict[str, pd.DataFrame]:
        """Trends first, then means over seeds."""
        trends = self.trends.drop(columns=["measured", "low", "high"])
        measured = [
            cell(*row)
            for row in self.trends[["measured", "low", "high"]].itertuples(index=False)
        ]
        trends.insert(5, "measured [95 %]", measured)
        return {
            "Measured beside published": trends,
            "Means over seeds, 95 % Student-t intervals": overview(self.table, SHOWN),
        }


def emergence(
    folder: str | Path,
    *,
    knobs: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    quick: bool = False,
    workers: int | None = None,
    device: str | None = None,
    progress: bool | None = None,
) -> EmergenceStudy:
    """Turn the knobs of "When Attention Sink Emerges"; which trends show here?

    Args:
        folder: for the runs; what is there already is not trained again.
        knobs: names of `KNOBS`; default: all, quick: four settings of some.
        seeds: default 0 to 2, quick 0.
        quick: shorter prompts and fewer steps, under a minute.
        workers, device, progress: as for `train_grid`.

    Raises:
        ValueError: no such knob.
        RuntimeError: a training failed.
    """
    check_names("emergence", "knob", knobs or (), KNOBS)
    names = list(QUICK) if quick and not knobs else _names(knobs or list(KNOBS))
    if seeds is None:
        seeds = range(1) if quick else range(3)
    chosen = {name: setting(name, quick) for name in names}
    found, meta = study_grid(
        chosen,
        folder,
        measure_emergence,
        quick=quick,
        seeds=seeds,
        workers=workers,
        device=device,
        progress=progress,
    )
    is_at = found["measure"] == BY_POSITION
    at = pd.DataFrame(found[is_at]).rename(columns={"value": "score"})
    columns = ["setting", "seed", "layer", "head", "position", "score"]
    at = at.reindex(columns=columns).astype({"position": int})
    positions = at.reset_index(drop=True)
    table = pd.DataFrame(found[~is_at]).drop(columns="position")
    table = table.reset_index(drop=True)
    scores = Scores(by_run(table), positions)
    claims = as_claims(_claims(scores))
    return EmergenceStudy(table, meta, claims, positions, trend_table(scores))


def _names(knobs: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(["base", *(n for knob in knobs for n in KNOBS[knob])]))


def _claims(scores: Scores) -> list[dict[str, Any]]:
    """What is asserted of those settings that were trained."""
    shorter = scores.of("base") - scores.of("steps 125")
    asserted: list[tuple[str, pd.Series, dict[str, Any]]] = [
        ("The base has a sink at <s> (sink score)", scores.of("base"), {"above": EPS}),
        ("It is weaker after an eighth of the steps (difference)", shorter.dropna(),
         {"above": 0.05}),
        ("<s> at 2: the sink is there", scores.at("bos at 2", 2), {"above": EPS}),
        ("and not at 0", scores.at("bos at 2", 0), {"below": 0.15}),
        ("Linear attention: no sink", scores.of("linear"), {"below": EPS}),
        ("ReLU attention: no sink", scores.of("relu"), {"below": EPS}),
    ]  # fmt: skip
    rows = [
        claim(sentence, values.tolist(), **bound)
        for sentence, values, bound in asserted
        if len(values)
    ]
    runs: Any = scores.runs
    worst = float(runs["beyond_oracle"].min())
    text = "No run beats the oracle (standard errors, the worst run)"
    return [*rows, claim(text, worst, above=-3.0)]


def _knob_panels(table: pd.DataFrame, positions: pd.DataFrame) -> Figure:
    """A panel a knob: every seed a dot for position 0, a ring for the best of ten."""
    runs = by_run(table)
    trained = set(runs["setting"])
    knobs = {knob: [n for n in names if n in trained] for knob, names in KNOBS.items()}
    knobs = {k: names for k, names in knobs.items() if set(names) - {"base"}}
    one = ["setting", "seed"]
    heads = positions.groupby([*one, "position"], as_index=False)["score"].mean()
    best = pd.Series(pd.DataFrame(heads).groupby(one)["score"].max())
    with plotting.theme():
        panels = plotting.new_panels(len(knobs), columns=3, height=2.0)
        for number, (ax, knob) in enumerate(zip(panels, knobs, strict=True)):
            _dots(ax, runs, best, knobs[knob])
            ax.set_title(knob, fontsize="small")
            if number % 3 == 0:
                ax.set_ylabel("sink score", fontsize="small")
        panels[0].legend(fontsize="x-small")
        return plotting.figure_of(panels[0])


def _dots(ax: Axes, runs: pd.DataFrame, best: pd.Series, names: Sequence[str]) -> None:
    dark, light = plotting.colours(2)
    for place, name in enumerate(names):
        values = runs.loc[runs["setting"] == name, "sink_score"]
        top = best[name]
        ring, dot = ("", "") if place else ("best of the first ten", "position 0")
        ax.plot(
            [place] * len(top), top, "o", ms=4.5, mfc="none", color=light, label=ring
        )
        ax.plot([place] * len(values), values, "o", ms=2.6, color=dark, label=dot)
    ax.axhline(EPS, color="0.6", lw=0.8, ls=":")
    ax.set_ylim(-0.03, 0.8)
    ax.set_xlim(-0.5, len(names) - 0.5)
    labels = [name.removeprefix("positions ") for name in names]
    ax.set_xticks(range(len(names)), labels, fontsize="x-small", rotation=60)
    ax.tick_params(axis="y", labelsize="x-small")


def _position_map(positions: pd.DataFrame) -> Figure:
    """Where the sink is: settings by position, mean over seeds and heads."""
    placed = {*KNOBS["tokens"], *KNOBS["prefix"]}
    here = positions[positions["setting"].isin(list(placed))]
    grid = here.pivot_table(index="setting", columns="position", values="score")
    grid = grid.loc[[n for n in dict.fromkeys(positions["setting"]) if n in placed]]
    with plotting.theme():
        height = 0.9 + 0.22 * len(grid)
        ax = plotting.new_axes(width=1.4 * plotting.WIDTH, height=max(height, 1.4))
        top = max(0.7, float(np.nanmax(grid.to_numpy())))
        plotting.heat_map(ax, grid, "sink score", limits=(0.0, top))
        return plotting.figure_of(ax)
