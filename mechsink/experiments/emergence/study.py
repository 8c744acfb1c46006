""" "When Attention Sink Emerges" at small scale: its knobs on two beds.

Learning rate, steps, amount of data, weight decay, what stands at the first positions,
prefix loss, window, position encodings, biases and operators; each trend beside the
published one. The beds are Bigram-Backcopy and a small language model.

Source: Gu et al. 2024 (arXiv:2410.10781), on the task of Guo et al. 2024
(arXiv:2410.13835) and on text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from mechsink import plotting
from mechsink.engines.engine import Engine
from mechsink.experiments.emergence.beds import BEDS
from mechsink.experiments.emergence.claims import claims_of
from mechsink.experiments.emergence.measures import BY_POSITION, measure_emergence
from mechsink.experiments.emergence.scores import EPS, Scores
from mechsink.experiments.emergence.settings import Turn, setting
from mechsink.experiments.emergence.settings import knobs as knobs_of
from mechsink.experiments.emergence.trends import trend_table
from mechsink.experiments.grids.grid import check_names, study_grid
from mechsink.experiments.grids.seeds import by_run, cell, overview, seed_dots
from mechsink.experiments.operators import COLUMNS
from mechsink.experiments.study import Study, as_claims
from mechsink.plotting import Axes, Figure

SHOWN = {"sink_score": "sink score at 0", "sink_top": "of the strongest head",
         **COLUMNS, "loss": "loss (nats)"}  # fmt: skip
Knobs = Mapping[str, Mapping[str, Turn]]


@dataclass(frozen=True, eq=False)
class EmergenceStudy(Study):
    """Sinks by knob on one bed, and each trend beside the published one.

    `table`: setting, seed, layer, head, measure, value, seconds, as in
    `OperatorStudy`, of position 0. `positions`: setting, seed, layer, head, position,
    score: sink score at the first ten. `trends`: knob, trend, published, source, unit,
    measured (mean over seeds), low, high (95 %), wanted ("> 0.3"), verdict, note.
    `meta["bed"]` names the bed.

    Examples:
        >>> study = ms.emergence(
        ...     "runs", knobs=["learning rate"], quick=True, engine="here"
        ... )
        >>> list(study.table), list(study.positions)
        (['setting', 'seed', 'layer', 'head', 'measure', 'value', 'seconds'],
        ['setting', 'seed', 'layer', 'head', 'position', 'score'])
    """

    positions: pd.DataFrame
    trends: pd.DataFrame

    title: ClassVar[str] = "When do attention sinks emerge?"

    def about(self) -> str:
        """The bed and its base."""
        preset = self.meta["presets"]["base"]
        model = preset["model"]
        return (
            f"On {BEDS[self.meta['bed']].text}. Base: {model['n_layers']} layers of "
            f"{model['n_heads']} heads, width {model['d_model']}, {model['n_ctx']} "
            f"tokens, {preset['steps']} steps of {preset['batch']} sequences, "
            f"lr {preset['lr']:g}."
        )

    def plot(self, ax: Axes | None = None, *, measure: str = "sink_score") -> Axes:
        """One measure by setting: every seed a dot, the mean and its interval.

        Args:
            ax: where to draw; a new figure by default.
        """
        return seed_dots(self.table, measure, SHOWN.get(measure, measure), ax)

    def figures(self) -> dict[str, Figure]:
        """Sink score by knob, every seed a dot; and where the sink is."""
        knobs = knobs_of(BEDS[self.meta["bed"]])
        return {
            "knobs": _knob_panels(self.positions, knobs),
            "positions": _position_map(self.positions, knobs),
        }

    def tables(self) -> dict[str, pd.DataFrame]:
        """Trends first, then means over seeds."""
        trends = self.trends.drop(columns=["measured", "low", "high"])
        there = set(self.table["measure"])
        shown = {name: title for name, title in SHOWN.items() if name in there}
        measured = [
            cell(*row)
            for row in self.trends[["measured", "low", "high"]].itertuples(index=False)
        ]
        trends.insert(5, "measured [95 %]", measured)
        means = "Means over seeds, 95 % Student-t intervals"
        found = {"Measured beside published": trends} if len(trends) else {}
        return {**found, means: overview(self.table, shown)}


def emergence(
    folder: str | Path,
    *,
    bed: str = "bigram",
    knobs: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    quick: bool = False,
    engine: Engine | str = "pool",
    workers: int | None = None,
    address: str | None = None,
    device: str | None = None,
    progress: bool | None = None,
) -> EmergenceStudy:
    """Turn the knobs of "When Attention Sink Emerges"; which trends show here?

    Args:
        folder: for the runs; what is there already is not trained again.
        bed: name of one of `BEDS`: bigram, text, or text-gpu for a GPU.
        knobs: such as "learning rate"; default: all, quick: some settings of some.
        seeds: default as many as the bed has, from 0; quick 0.
        quick: smaller and fewer steps, under a minute.
        engine: "pool", "here", "ray" or an `Engine`, as for `train_grid`.
        workers: how many.
        address: of a Ray cluster.
        device: as for `toy_tasks.train`.
        progress: show a bar with time left; None: only on a terminal.

    Returns:
        An `EmergenceStudy`.

    Raises:
        ValueError: no such bed or knob.
        RuntimeError: a training failed.

    Source: Gu et al. 2024 (arXiv:2410.10781).

    Examples:
        >>> study = ms.emergence(
        ...     "runs", knobs=["learning rate"], quick=True, engine="here"
        ... )
        >>> study.meta["bed"], study.trends.knob.unique().tolist()
        ('bigram', ['learning rate'])
    """
    check_names("emergence", "bed", [bed], BEDS)
    on = BEDS[bed]
    turns = knobs_of(on)
    check_names("emergence", "knob", knobs or (), turns)
    every = ["base", *(name for knob in knobs or turns for name in turns[knob])]
    names = on.quick_settings if quick and not knobs else dict.fromkeys(every)
    if seeds is None:
        seeds = range(1 if quick else on.seeds)
    chosen = {name: setting(on, name, quick) for name in names}
    found, meta = study_grid(
        chosen,
        folder,
        measure_emergence,
        quick=quick,
        seeds=seeds,
        engine=engine,
        workers=workers,
        address=address,
        device=device,
        progress=progress,
    )
    table, positions = _split(found)
    scores = Scores(by_run(table), positions)
    claims = as_claims(claims_of(scores, on, quick))
    trends = trend_table(scores, on, setting(on, "base", quick).preset)
    return EmergenceStudy(table, {**meta, "bed": bed}, claims, positions, trends)


def _split(found: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measures of position 0 and of the run; and scores by position."""
    is_at = found["measure"] == BY_POSITION
    at = pd.DataFrame(found[is_at]).rename(columns={"value": "score"})
    columns = ["setting", "seed", "layer", "head", "position", "score"]
    at = at.reindex(columns=columns).astype({"position": int})
    table = pd.DataFrame(found[~is_at]).drop(columns="position")
    return table.reset_index(drop=True), at.reset_index(drop=True)


def _knob_panels(positions: pd.DataFrame, knobs: Knobs) -> Figure:
    """A panel a knob: every seed a dot for position 0, a ring for the best of ten.

    Of several heads the strongest counts.
    """
    trained = set(positions["setting"])
    there = {knob: [n for n in names if n in trained] for knob, names in knobs.items()}
    shown = {knob: names for knob, names in there.items() if set(names) - {"base"}}
    one = ["setting", "seed"]
    best = pd.Series(positions.groupby(one)["score"].max())
    first = pd.DataFrame(positions[positions["position"] == 0])
    at_0 = pd.Series(first.groupby(one)["score"].max())
    with plotting.theme():
        panels = plotting.new_panels(len(shown), columns=3, height=2.0)
        for number, (ax, knob) in enumerate(zip(panels, shown, strict=True)):
            _dots(ax, at_0, best, shown[knob])
            ax.set_title(knob, fontsize="small")
            if number % 3 == 0:
                ax.set_ylabel("sink score", fontsize="small")
        panels[0].legend(fontsize="x-small")
        return plotting.figure_of(panels[0])


def _dots(ax: Axes, at_0: pd.Series, best: pd.Series, names: Sequence[str]) -> None:
    dark, light = plotting.colours(2)
    for place, name in enumerate(names):
        values, top = at_0[name], best[name]
        ring, dot = ("", "") if place else ("best of the first ten", "position 0")
        ax.plot(
            [place] * len(top), top, "o", ms=4.5, mfc="none", color=light, label=ring
        )
        ax.plot([place] * len(values), values, "o", ms=2.6, color=dark, label=dot)
    ax.axhline(EPS, color="0.6", lw=0.8, ls=":")
    ax.set_ylim(-0.03, max(0.8, best.max() + 0.05))
    ax.set_xlim(-0.5, len(names) - 0.5)
    labels = [name.removeprefix("positions ") for name in names]
    ax.set_xticks(range(len(names)), labels, fontsize="x-small", rotation=60)
    ax.tick_params(axis="y", labelsize="x-small")


def _position_map(positions: pd.DataFrame, knobs: Knobs) -> Figure:
    """Where the sink is: settings by position; the strongest head, mean over seeds."""
    placed = {*knobs["tokens"], *knobs["prefix"]}
    here = positions[positions["setting"].isin(list(placed))]
    one = ["setting", "seed", "position"]
    top = pd.DataFrame(here.groupby(one, as_index=False)["score"].max())
    grid = top.pivot_table(index="setting", columns="position", values="score")
    grid = grid.loc[[n for n in dict.fromkeys(positions["setting"]) if n in placed]]
    with plotting.theme():
        height = 0.9 + 0.22 * len(grid)
        ax = plotting.new_axes(width=1.4 * plotting.WIDTH, height=max(height, 1.4))
        top = max(0.7, float(np.nanmax(grid.to_numpy())))
        plotting.heat_map(ax, grid, "sink score", limits=(0.0, top))
        return plotting.figure_of(ax)
