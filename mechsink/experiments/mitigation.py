"""What keeps sinks, drains and residual peaks from forming: before and after.

Source: the remedies of systems.md's rows: gates (arXiv:2505.06708), softmax plus one
(2309.17453), key biases (2402.17762), ReLU and SGD (2410.13835), and a decorrelation
loss after AVSR sinks; all on Bigram-Backcopy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from mechsink.engines.engine import Engine
from mechsink.experiments.grids.grid import check_names, study_grid
from mechsink.experiments.grids.jobs import Setting
from mechsink.experiments.grids.seeds import by_run, overview, seed_dots, seed_panels
from mechsink.experiments.operators import COLUMNS, PANELS, measure_run
from mechsink.experiments.study import Study, as_claims, claim
from mechsink.intervals import student_t
from mechsink.plotting import Axes, Figure
from toy_tasks import PRESETS, BigramBackcopy, Preset
from toy_tasks.operators import OPERATORS

_BASE = replace(
    PRESETS["bb-cpu"],
    model=replace(PRESETS["bb-cpu"].model, n_layers=2),
    checkpoints=(1500,),
)
_SGD = replace(_BASE, optimizer="sgd", lr=PRESETS["bb-sgd"].lr)


def _operator(name: str) -> Preset:
    return replace(_BASE, model=replace(_BASE.model, operators=OPERATORS[name]))


REMEDIES: Mapping[str, Preset] = {
    "none": _BASE,
    "gate": _operator("gate"),
    "softmax1": _operator("softmax1"),
    "key-bias": _operator("key-bias"),
    "ReLU": replace(_BASE, model=replace(_BASE.model, attention="relu"), lr=3e-3),
    "SGD": _SGD,
    "decorrelation": replace(_BASE, model=replace(_BASE.model, decorrelation=1.0)),
}
"""Name to recipe; each differs from "none" (2 layers, softmax, AdamW) in one thing.

ReLU and SGD keep the step sizes of their own presets, without which they do not learn.
"""

EFFECTS = ("bos_markov_share", "sink_rate", "value_ratio", "resid_ratio", "excess")


@dataclass(frozen=True, eq=False)
class MitigationStudy(Study):
    """Sinks with and without each remedy.

    `table`: setting (the remedy), seed, layer, head, measure, value, seconds, as in
    `OperatorStudy`. `effects`: remedy, measure, before, after, change, low, high: means
    over seeds, and of the change, seed by seed, with its Student-t interval; ratios of
    norms change by the logarithm of after over before, others by after minus before.

    Examples:
        >>> study = ms.mitigation_study("runs", quick=True, engine="here")
        >>> list(study.effects)
        ['remedy', 'measure', 'before', 'after', 'change', 'low', 'high']
    """

    effects: pd.DataFrame

    title: ClassVar[str] = "What keeps sinks from forming?"

    def plot(
        self, ax: Axes | None = None, *, measure: str = "bos_markov_share"
    ) -> Axes:
        """One measure by remedy: every seed a dot, the mean and its interval.

        Args:
            ax: where to draw; a new figure by default.
        """
        at = 1.0 if measure.endswith("_ratio") else None
        return seed_dots(self.table, measure, COLUMNS.get(measure, measure), ax, at)

    def figures(self) -> dict[str, Figure]:
        """Every seed a dot, a panel a measure."""
        return {
            "remedies": seed_panels(
                self.table, PANELS, {"value_ratio": 1.0, "resid_ratio": 1.0}
            )
        }

    def tables(self) -> dict[str, pd.DataFrame]:
        """Means by remedy, and the paired differences."""
        return {
            "Means over seeds, 95 % Student-t intervals": overview(self.table, COLUMNS),
            "Before and after": self.effects,
        }


def mitigation_study(
    folder: str | Path,
    *,
    remedies: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    quick: bool = False,
    engine: Engine | str = "pool",
    workers: int | None = None,
    address: str | None = None,
    device: str | None = None,
    progress: bool | None = None,
) -> MitigationStudy:
    """Train with each remedy over seeds; what became of sink, drain and peak?

    Args:
        folder: for the runs; what is there already is not trained again.
        remedies: names of `REMEDIES`; "none" is always trained. Default: all, quick:
            ReLU.
        seeds: default 0 to 4, quick 0.
        quick: one layer, smaller and fewer steps, under a minute.
        engine: "pool", "here", "ray" or an `Engine`, as for `train_grid`.
        workers: how many.
        address: of a Ray cluster.
        device: as for `toy_tasks.train`.
        progress: show a bar with time left; None: only on a terminal.

    Returns:
        A `MitigationStudy`.

    Raises:
        ValueError: no such remedy.
        RuntimeError: a training failed.

    Source: gates (arXiv:2505.06708), softmax plus one (arXiv:2309.17453), key biases
    (arXiv:2402.17762), ReLU and SGD (arXiv:2410.13835), decorrelation after AVSR sinks.

    Examples:
        >>> study = ms.mitigation_study("runs", quick=True, engine="here")
        >>> study.effects.remedy.unique().tolist()
        ['ReLU']
    """
    names = list(remedies or (["ReLU"] if quick else REMEDIES))
    check_names("mitigation_study", "remedy", names, REMEDIES)
    if seeds is None:
        seeds = range(1) if quick else range(5)
    task = BigramBackcopy.from_text()
    chosen = {
        name: Setting(task, _sized(REMEDIES[name], quick))
        for name in dict.fromkeys(["none", *names])
    }
    table, meta = study_grid(
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
    effects = _effects(table)
    return MitigationStudy(table, meta, as_claims(_claims(table)), effects)


def _sized(preset: Preset, quick: bool) -> Preset:
    if not quick:
        return preset
    model = replace(preset.model, n_layers=1, n_ctx=32, d_mlp=128)
    return replace(preset, steps=400, batch=48, model=model, checkpoints=(400,))


def _effects(table: pd.DataFrame) -> pd.DataFrame:
    """Each remedy against none, seed by seed."""
    runs = by_run(table).set_index("seed")
    before = runs[runs["setting"] == "none"]
    rows = []
    for name in dict.fromkeys(runs["setting"]):
        after = runs[runs["setting"] == name]
        for measure in EFFECTS if name != "none" else ():
            changes = _changes(after[measure], before[measure])
            means = before[measure].mean(), after[measure].mean(), np.mean(changes)
            rows.append((name, measure, *means, *student_t(changes)))
    columns = ["remedy", "measure", "before", "after", "change", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def _changes(after: Any, before: Any) -> list[float]:
    """Seed by seed; ratios of norms are compared by their logarithm."""
    if str(after.name).endswith("_ratio"):
        return np.log(after / before).tolist()
    return (after - before).tolist()


def _claims(table: pd.DataFrame) -> list[dict[str, Any]]:
    """What is asserted of those remedies that were trained."""
    runs: Any = by_run(table).set_index("seed")

    def of(name: str, measure: str) -> pd.Series:
        return pd.Series(runs.loc[runs["setting"] == name, measure])

    before = of("none", "bos_markov_share")
    rows = [claim("Without a remedy a sink forms", before.tolist(), above=0.5)]
    # SGD lowers the residual peak in three layers (formation); two are too few to tell.
    for name, text in (("ReLU", "ReLU lowers attention to <s>"),
                       ("gate", "A gate lowers it")):  # fmt: skip
        if name in set(runs["setting"]):
            changes = _changes(of(name, "bos_markov_share"), before)
            rows.append(claim(f"{text} (change)", changes, below=-0.3))
    worst = float(runs["beyond_oracle"].min())
    text = "No run beats the oracle (standard errors, the worst run)"
    return [*rows, claim(text, worst, above=-3.0)]
