"""Which attention operators form sinks? The grid of operators and seeds.

Source: the question of Gu et al. 2024 (arXiv:2410.10781), asked of the
Bigram-Backcopy task of Guo et al. 2024 (arXiv:2410.13835).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from mechsink.engines.engine import Engine
from mechsink.experiments.formation.moment import Texts, measure_moment
from mechsink.experiments.grids.grid import check_names, study_grid
from mechsink.experiments.grids.jobs import Setting
from mechsink.experiments.grids.seeds import (
    by_run,
    cell,
    overview,
    seed_dots,
    seed_panels,
)
from mechsink.experiments.study import Study, as_claims, claim
from mechsink.models.toy import ToyModel
from mechsink.plotting import Axes, Figure
from toy_tasks import PRESETS, BigramBackcopy, Preset, TrainRun, realised_excess
from toy_tasks.operators import MAIN, OPERATORS

QUICK = ("softmax", "relu")
"""The operators of the quick form."""
UNSEEN = 2**31
"""Seed of the sequences that are measured; training draws from other ones."""

PANELS = {
    "bos_markov_share": "share of <s>, other queries",
    "bos_trigger_share": "share of <s>, triggers",
    "sink_rate": "sink rate, eps .3",
    "value_ratio": "value of <s> / others",
    "resid_ratio": "residual of <s> / others",
    "excess": "excess risk (nats)",
}
COLUMNS = {
    **PANELS,
    "bos_markov": "weight on <s>, other queries",
    "row_sum_markov": "weight on all tokens",
    "previous_trigger": "weight on previous, triggers",
    "trigger_excess": "excess on triggers",
}


@dataclass(frozen=True, eq=False)
class OperatorStudy(Study):
    """Sinks by attention operator.

    `table`: setting (the operator's name), seed, layer, head, measure, value,
    seconds; measures are those of `mechsink.experiments.formation.moment.MEASURES`, and
    `beyond_oracle`: loss above the oracle's on the tokens that came, in standard
    errors; under -3 the operator sees the future.

    Examples:
        >>> from dataclasses import replace
        >>> from toy_tasks import PRESETS
        >>> from toy_tasks.planted import backcopy_task
        >>> study = ms.operator_study(
        ...     "runs", ["softmax"], seeds=[0, 1], task=backcopy_task(), engine="here",
        ...     preset=replace(PRESETS["bb-cpu"], steps=4, batch=4), progress=False,
        ... )
        >>> list(study.table)
        ['setting', 'seed', 'layer', 'head', 'measure', 'value', 'seconds']
    """

    title: ClassVar[str] = "Which attention operators form sinks?"

    def plot(
        self, ax: Axes | None = None, *, measure: str = "bos_markov_share"
    ) -> Axes:
        """One measure by operator: every seed a dot, the mean and its interval.

        Dotted: a head that looks everywhere alike, an ordinary token.

        Args:
            ax: where to draw; a new figure by default.
        """
        at = self._references().get(measure)
        return seed_dots(self.table, measure, COLUMNS.get(measure, measure), ax, at)

    def figures(self) -> dict[str, Figure]:
        """Every seed a dot, a panel a measure."""
        return {"operators": seed_panels(self.table, PANELS, self._references())}

    def _references(self) -> dict[str, float]:
        preset = next(iter(self.meta["presets"].values()))
        even = even_share(preset["model"]["n_ctx"])
        return {"bos_markov_share": even, "value_ratio": 1.0, "resid_ratio": 1.0}

    def tables(self) -> dict[str, pd.DataFrame]:
        """Means over seeds with their intervals."""
        runs = by_run(self.table)
        seconds: Any = self.table.groupby("setting")["seconds"].mean()
        found = overview(self.table, COLUMNS)
        found["s a run"] = [
            cell(float(seconds[name]), np.nan, np.nan) for name in found["setting"]
        ]
        every: Any = runs[["setting", "seed", *COLUMNS]]
        return {
            "Means over seeds, 95 % Student-t intervals": found,
            "Every seed": every,
        }


def even_share(n_pos: int) -> float:
    """What a head that looks everywhere alike gives `<s>`, over its later queries."""
    return sum(1 / n for n in range(2, n_pos + 1)) / (n_pos - 1)


def operator_study(
    folder: str | Path,
    names: Sequence[str] = MAIN,
    *,
    seeds: Sequence[int] | None = None,
    preset: Preset = PRESETS["bb-cpu"],
    task: BigramBackcopy | None = None,
    quick: bool = False,
    engine: Engine | str = "pool",
    workers: int | None = None,
    address: str | None = None,
    device: str | None = None,
    progress: bool | None = None,
) -> OperatorStudy:
    """Train operators on Bigram-Backcopy over seeds; what became of their sinks?

    Args:
        folder: for the runs; what is there already is not trained again.
        names: of `toy_tasks.operators.OPERATORS`.
        seeds: of weights and data; default 0 to 4, quick 0 and 1.
        preset: sizes, optimiser, steps; its operator is replaced.
        task: default: `BigramBackcopy.from_text()`.
        quick: a smaller toy, under a minute; of the default names `QUICK` alone.
        engine: "pool", "here", "ray" or an `Engine`, as for `train_grid`.
        workers: how many.
        address: of a Ray cluster.
        device: as for `toy_tasks.train`.
        progress: show a bar with time left; None: only on a terminal.

    Returns:
        An `OperatorStudy`.

    Raises:
        ValueError: no such operator.
        RuntimeError: a training failed.

    Source: the question of Gu et al. 2024 (arXiv:2410.10781), asked of the
    Bigram-Backcopy task of Guo et al. 2024 (arXiv:2410.13835).

    Examples:
        >>> from dataclasses import replace
        >>> from toy_tasks import PRESETS
        >>> from toy_tasks.planted import backcopy_task
        >>> study = ms.operator_study(
        ...     "runs", ["softmax"], seeds=[0, 1], task=backcopy_task(), engine="here",
        ...     preset=replace(PRESETS["bb-cpu"], steps=4, batch=4), progress=False,
        ... )
        >>> study.table.setting.unique().tolist(), study.table.seed.nunique()
        (['softmax'], 2)
    """
    check_names("operator_study", "operator", names, OPERATORS)
    if quick:
        names = QUICK if names is MAIN else names
        model = replace(preset.model, n_ctx=32, d_mlp=128)
        preset = replace(preset, steps=400, batch=48, model=model)
    if seeds is None:
        seeds = range(2) if quick else range(5)
    task = task or BigramBackcopy.from_text()
    settings = {name: Setting(task, _with(preset, name)) for name in names}
    table, meta = study_grid(
        settings,
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
    return OperatorStudy(table, meta, as_claims(_claims(table)))


def measure_run(run: TrainRun) -> pd.DataFrame:
    """Measures of a finished run on 512 unseen sequences."""
    assert isinstance(run.task, BigramBackcopy)
    tokens = run.task.sample(512, run.config.n_ctx + 1, UNSEEN)
    toy = run.model()
    model = ToyModel(toy, run.task)
    table = measure_moment(model, Texts([tokens], run.task), shares=True)
    mean, error = realised_excess(toy, run.task, tokens)
    row = pd.DataFrame({"measure": ["beyond_oracle"], "value": [mean / error]})
    return pd.concat([table, row], ignore_index=True)


def _with(preset: Preset, name: str) -> Preset:
    """The preset with that operator; plain softmax attention is the faster code."""
    operator = None if name == "softmax" else OPERATORS[name]
    model = replace(preset.model, operators=operator)
    return replace(preset, model=model, checkpoints=(preset.steps,))


def _claims(table: pd.DataFrame) -> list[dict]:
    """What is asserted of those operators that were trained."""
    runs: Any = by_run(table)
    worst = float(runs["beyond_oracle"].min())
    rows = [
        claim(
            "No run beats the oracle (standard errors, the worst run)",
            worst,
            above=-3.0,
        )
    ]

    def of(name: str, measure: str) -> list[float]:
        return runs.loc[runs["setting"] == name, measure].tolist()

    for name, sentence, above, below in (
        ("softmax", "Softmax: other queries rest on <s>", 0.5, None),
        ("relu", "ReLU: they do not", None, 0.2),
        ("linear", "Linear attention: they do not", None, 0.2),
        ("affine", "Affine-scaled attention: they do not", None, 0.2),
        ("flow", "Flow attention: they do not", None, 0.2),
        ("gate", "A gate on the outputs: they do so less", None, 0.7),
    ):
        values = of(name, "bos_markov_share")
        if values:
            rows.append(claim(sentence, values, above=above, below=below))
    return rows
