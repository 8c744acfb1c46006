"""The Active-Dormant paper on toys: what makes extreme tokens, and what they do.

Settings differ from the plain 1-layer toy in one thing each: layers, optimiser,
attention, number of triggers. Every run is measured at its checkpoints, and with
its attention swapped at the end.

Source: Guo et al. 2024 (arXiv:2410.13835).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from mechsink import plotting
from mechsink.engines.engine import Engine
from mechsink.experiments.formation.recorder import formation
from mechsink.experiments.formation.swaps import swap_effects
from mechsink.experiments.grids.grid import check_names, study_grid
from mechsink.experiments.grids.jobs import Setting
from mechsink.experiments.grids.seeds import (
    LOG,
    by_run,
    overview,
    seed_dots,
    seed_panels,
)
from mechsink.experiments.operators import UNSEEN
from mechsink.experiments.study import Study, as_claims, claim
from mechsink.models.toy import ToyModel
from mechsink.plotting import Axes, Figure
from toy_tasks import PRESETS, BigramBackcopy, Preset, TrainRun

PANELS = {
    "bos_markov": "attention to <s>, other queries",
    "bos_trigger": "attention to <s>, triggers",
    "sink_logit": "sink logit (nats)",
    "value_ratio": "value of <s> / others",
    "resid_ratio": "residual of <s> / others",
    "markov_excess": "excess off triggers (nats)",
}
COLUMNS = {
    **PANELS,
    "previous_trigger": "attention to previous, triggers",
    "trigger_excess": "excess on triggers (nats)",
}
REFERENCES = {"value_ratio": 1.0, "resid_ratio": 1.0, "sink_logit": 0.0}
TIMELINE = ("bos_markov", "sink_logit", "value_ratio", "trigger_excess")


@dataclass(frozen=True, eq=False)
class FormationStudy(Study):
    """Extreme tokens by setting, through training and with attention swapped.

    `table`: setting, seed, step, layer, head, measure, value, seconds; measures as in
    `mechsink.experiments.formation.moment.MEASURES`. `swaps`: setting, seed, swap,
    measure, value: excess risk after training (`mechsink.experiments.formation.swaps`).

    Examples:
        >>> study = ms.formation_study(
        ...     "runs", settings=["1 layer"], quick=True, engine="here", progress=False
        ... )
        >>> list(study.table), list(study.swaps)
        (['setting', 'seed', 'step', 'layer', 'head', 'measure', 'value', 'seconds'],
        ['setting', 'seed', 'swap', 'measure', 'value'])
    """

    swaps: pd.DataFrame

    title: ClassVar[str] = "What makes extreme tokens, and what do they do?"

    @property
    def final(self) -> pd.DataFrame:
        """Rows of every run's last step."""
        last = self.table.groupby(["setting", "seed"])["step"].transform("max")
        return pd.DataFrame(self.table[self.table["step"] == last])

    def plot(self, ax: Axes | None = None, *, measure: str = "bos_markov") -> Axes:
        """One measure after training: every seed a dot, the mean and its interval.

        Args:
            ax: where to draw; a new figure by default.
        """
        title, at = COLUMNS.get(measure, measure), REFERENCES.get(measure)
        return seed_dots(self.final, measure, title, ax, at)

    def figures(self) -> dict[str, Figure]:
        """Every seed at the end, and the plain toy through training."""
        return {
            "settings": seed_panels(self.final, PANELS, REFERENCES),
            "training": _timeline(self.table),
        }

    def tables(self) -> dict[str, pd.DataFrame]:
        """Means over seeds, and what the swaps cost."""
        swapped = self.swaps.assign(
            setting=self.swaps["setting"] + ": " + self.swaps["swap"]
        )
        columns = {
            "trigger_excess": "excess on triggers (nats)",
            "markov_excess": "excess off triggers (nats)",
        }
        return {
            "After training: means over seeds, 95 % Student-t intervals": overview(
                self.final, COLUMNS
            ),
            "Attention of layer 0 swapped": overview(swapped, columns),
        }


def formation_study(
    folder: str | Path,
    *,
    settings: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    quick: bool = False,
    engine: Engine | str = "pool",
    workers: int | None = None,
    address: str | None = None,
    device: str | None = None,
    progress: bool | None = None,
) -> FormationStudy:
    """Train the settings over seeds; which extreme tokens form, and what are they for?

    Args:
        folder: for the runs; what is there already is not trained again.
        settings: names of `SETTINGS`; default: all, quick: 1 layer and its ReLU.
        seeds: default 0 to 4, quick 0.
        quick: a smaller toy and fewer steps, under a minute.
        engine: "pool", "here", "ray" or an `Engine`, as for `train_grid`.
        workers: how many.
        address: of a Ray cluster.
        device: as for `toy_tasks.train`.
        progress: show a bar with time left; None: only on a terminal.

    Returns:
        A `FormationStudy`.

    Raises:
        ValueError: no such setting.
        RuntimeError: a training failed.

    Source: Guo et al. 2024 (arXiv:2410.13835).

    Examples:
        >>> study = ms.formation_study(
        ...     "runs", settings=["1 layer"], quick=True, engine="here", progress=False
        ... )
        >>> study.final.measure.nunique() > 5
        True
    """
    names = settings or (["1 layer", "ReLU"] if quick else list(SETTINGS))
    check_names("formation_study", "setting", names, SETTINGS)
    if seeds is None:
        seeds = range(1) if quick else range(5)
    chosen = {name: _setting(name, quick) for name in names}
    found, meta = study_grid(
        chosen,
        folder,
        measure_run,
        quick=quick,
        seeds=seeds,
        engine=engine,
        workers=workers,
        address=address,
        device=device,
        progress=progress,
    )
    table: Any = found
    is_swap = table["swap"] != ""
    swaps = table[is_swap][["setting", "seed", "swap", "measure", "value"]]
    timeline = table[~is_swap].drop(columns="swap").reset_index(drop=True)
    study = FormationStudy(timeline, meta, as_claims([]), swaps.reset_index(drop=True))
    return replace(study, claims=as_claims(_claims(study)))


def measure_run(run: TrainRun) -> pd.DataFrame:
    """The timeline of a finished run, then its swaps (rows with a `swap`)."""
    assert isinstance(run.task, BigramBackcopy)
    table = formation(run, n_prompts=64, n_pos=run.config.n_ctx, progress=False).table
    tokens = run.task.sample(256, run.config.n_ctx + 1, UNSEEN)
    swaps = pd.DataFrame()
    if run.config.attention == "softmax":
        model = ToyModel(run.model(), run.task)
        swaps = swap_effects(model, run.task, tokens)
        swaps["step"] = run.preset.steps
    both = pd.concat([table.assign(swap=""), swaps], ignore_index=True)
    return both.astype({"layer": float, "head": float, "value": float, "step": int})


_ONE, _SGD, _RELU = PRESETS["bb-cpu"], PRESETS["bb-sgd"], PRESETS["bb-relu"]


def _layers(preset: Preset, n: int, steps: int) -> Preset:
    return replace(preset, steps=steps, model=replace(preset.model, n_layers=n))


SETTINGS: Mapping[str, tuple[Preset, int]] = {
    "1 layer": (_ONE, 3),
    "SGD": (_SGD, 3),
    "ReLU": (_RELU, 3),
    "2 layers": (_layers(_ONE, 2, 1500), 3),
    "3 layers": (_layers(_ONE, 3, 1500), 3),
    "3 layers, SGD": (_layers(_SGD, 3, 2000), 3),
    "3 layers, ReLU": (_layers(_RELU, 3, 1500), 3),
    "0 triggers": (_ONE, 0),
    "1 trigger": (_ONE, 1),
    "5 triggers": (_ONE, 5),
    "10 triggers": (_ONE, 10),
}
"""Name to recipe and number of triggers; "1 layer" is softmax, AdamW, 3 triggers."""


def _setting(name: str, quick: bool) -> Setting:
    preset, n_triggers = SETTINGS[name]
    preset = replace(preset, checkpoints=20)
    if quick:
        model = replace(preset.model, n_ctx=32, d_mlp=128)
        preset = replace(preset, steps=400, batch=48, model=model, checkpoints=6)
    return Setting(BigramBackcopy.from_text(n_triggers=n_triggers), preset)


Bound = Mapping[str, Any]
WANTED: tuple[tuple[str, str, str, Bound], ...] = (
    ("1 layer", "bos_markov", "Other queries rest on <s>", {"above": 0.5}),
    ("1 layer", "bos_trigger", "Triggers do not", {"below": 0.05}),
    ("1 layer", "previous_trigger", "They look at the token before", {"above": 0.8}),
    ("1 layer", "value_ratio", "The value of <s> drains", {"below": 0.5}),
    ("3 layers", "resid_ratio", "3 layers: the residual of <s> peaks", {"above": 2.0}),
    ("SGD", "bos_markov", "SGD: a sink still forms", {"above": 0.5}),
    ("ReLU", "bos_markov", "ReLU: no sink", {"below": 0.2}),
    ("0 triggers", "bos_markov", "Without triggers: no sink", {"below": 0.2}),
    ("5 triggers", "bos_markov", "5 triggers: a sink", {"above": 0.5}),
    ("10 triggers", "bos_markov", "10 triggers: a sink", {"above": 0.5}),
)
COMPARED = (
    ("ReLU", "1 layer", "value_ratio", "The value of <s> drains less with ReLU"),
    ("3 layers", "1 layer", "resid_ratio", "The residual peaks higher in 3 layers"),
    ("3 layers", "3 layers, SGD", "resid_ratio", "and higher under Adam than SGD"),
)
SWAPPED: tuple[tuple[str, str, str, Bound], ...] = (
    ("all to sink", "markov_excess", "other queries lose little", {"below": 0.1}),
    ("all to sink", "trigger_excess", "triggers lose their answer", {"above": 0.5}),
    ("masked sink", "markov_excess", "other queries do", {"above": 0.0}),
    ("clean", "trigger_excess", "triggers keep their answer", {"below": 0.05}),
)


def _claims(study: FormationStudy) -> list[dict[str, Any]]:
    """What is asserted of those settings that were trained."""
    runs = by_run(study.final)

    def of(setting: str, measure: str) -> list[float]:
        return runs.loc[runs["setting"] == setting, measure].tolist()

    rows = [
        claim(text, of(setting, measure), **bounds)
        for setting, measure, text, bounds in WANTED
        if setting in set(runs["setting"])
    ]
    for one, other, measure, text in COMPARED:
        pairs = zip(of(one, measure), of(other, measure), strict=False)
        if gaps := [math.log(a / b) for a, b in pairs]:  # both are ratios of norms
            rows.append(claim(f"{text} (log of one over the other)", gaps, above=0.0))
    plain = study.swaps[study.swaps["setting"] == "1 layer"]
    cost = plain.pivot(index="seed", columns=["swap", "measure"], values="value")
    for swap, measure, text, bounds in SWAPPED if len(cost) else ():
        added = (cost[swap, measure] - cost["none", measure]).tolist()
        rows.append(claim(f"1 layer, {swap}: {text} (added nats)", added, **bounds))
    return rows


def _timeline(table: pd.DataFrame, setting: str = "1 layer") -> Figure:
    """Measures of one setting through training: a line a seed."""
    if setting not in set(table["setting"]):
        setting = table["setting"].iloc[0]
    here: Any = table[table["setting"] == setting]
    colours = plotting.colours(here["seed"].nunique())
    with plotting.theme():
        panels = plotting.new_panels(len(TIMELINE), columns=2)
        for ax, measure in zip(panels, TIMELINE, strict=True):
            of = here[here["measure"] == measure]
            grid = of.pivot_table(index="step", columns="seed", values="value")
            for colour, seed in zip(colours, grid, strict=False):
                ax.plot(grid.index, grid[seed], color=colour, label=f"seed {seed}")
            plotting.step_axis(ax, int(grid.index.max()))
            if measure in LOG:
                ax.set_yscale("log")
                plotting.plain_log(ax.yaxis)
            ax.set(xlabel="training step", title=COLUMNS[measure])
        panels[0].legend(fontsize="x-small")
        return plotting.figure_of(panels[0])
