"""`formation_report`: how the sink of one training run formed, as tables and a page.

May import: sites, run, results, plotting, models, sinks, experiments, toy_tasks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from mechsink.experiments.formation.checkpoints import as_checkpoints
from mechsink.experiments.formation.recorder import Formation, formation
from mechsink.plotting import Axes
from mechsink.report.html import Page
from mechsink.report.paged import Drawn, PagedResult
from mechsink.run import Model
from mechsink.sites import Site
from toy_tasks import TrainRun, load_run

_EXAMPLE = 24
"""Tokens of the example whose attention is drawn: as many labels as fit."""


@dataclass(frozen=True, eq=False)
class FormationReport(PagedResult):
    """A formation timeline with what a reader needs to judge it.

    Attributes:
        table: step, layer, head, measure, value, as in `Formation`.
        final: layer, measure, value at the last step, mean over heads.
        attention: layer, head, query, key, weight on one short sequence, after
            the last step.
        example: pos, id, token, is_trigger of that sequence.
        training: step, loss of each logged batch (nats); empty if not known.
    """

    final: pd.DataFrame
    attention: pd.DataFrame
    example: pd.DataFrame
    training: pd.DataFrame

    @property
    def formation(self) -> Formation:
        """The timeline alone."""
        return Formation(self.table, self.meta)

    @property
    def has_task(self) -> bool:
        """Whether queries and losses are split by trigger."""
        return "markov_excess" in set(self.table["measure"])

    def value(self, measure: str, layer: int | None = None) -> float:
        """A measure after the last step; NaN if it was not measured there."""
        here: Any = self.final[self.final["measure"] == measure]
        if layer is not None:
            here = here[here["layer"] == layer]
        return float(here["value"].iloc[0]) if len(here) else float("nan")

    @property
    def sink_layer(self) -> int:
        """Layer whose heads end up looking most at the sink."""
        measure = "bos_markov" if self.has_task else "sink_score"
        here: Any = self.final[self.final["measure"] == measure]
        return int(here.loc[here["value"].idxmax(), "layer"])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Attention to the sink through training; `formation.panels()` has all."""
        return self.formation.plot(ax)

    def draw(self) -> Drawn:
        """Every figure of the page."""
        from mechsink.report.formation_page import figures

        return figures(self)

    def page(self, drawn: Drawn | None = None) -> Page:
        """The page, with figures drawn already or now."""
        from mechsink.report.formation_page import formation_page

        return formation_page(self, drawn)


def formation_report(
    checkpoints: str | Path | TrainRun | Mapping[int, Any],
    tokens: Int[Tensor, "batch pos"] | None = None,
    **options: Any,
) -> FormationReport:
    """Measure every checkpoint of a run and tell how its sink formed.

    Args:
        checkpoints: a `toy_tasks.train` folder or what `train` returned, or a
            mapping from training step to anything `load_model` takes.
        tokens: what to measure on, by default fresh sequences of the task.
        options: of `ms.formation`, such as task=, position=, n_prompts=.

    Raises:
        ValueError, FileNotFoundError: as `formation`.
    """
    history, own_task = as_checkpoints(checkpoints)
    timeline = formation(checkpoints, tokens, **options)
    model = history[timeline.steps[-1]].load(selfcheck=False)
    task = options.get("task") or own_task
    meta = dict(timeline.meta)
    row = torch.tensor([meta["tokens"][0]["ids"]])[:, :_EXAMPLE]
    training = pd.DataFrame({"step": [], "loss": []})
    if isinstance(checkpoints, str | Path):
        path = str(checkpoints).removeprefix("toy:")
        checkpoints = load_run(path)
    if isinstance(checkpoints, TrainRun):
        run = checkpoints
        meta["training"] = {
            "preset": run.preset.to_json(),
            "seed": run.seed,
            "finished": run.is_finished,
            "model": run.config.to_json(),
            "triggers": []
            if own_task is None
            else [own_task.vocab[trigger] for trigger in own_task.triggers],
        }
        training = pd.DataFrame(run.history or {"step": [], "loss": []})
    is_trigger = (
        torch.zeros_like(row[0]).bool() if task is None else task.is_trigger(row)[0]
    )
    example = pd.DataFrame(
        {
            "pos": range(row.shape[1]),
            "id": row[0].tolist(),
            "token": model.to_strings(row[0]),
            "is_trigger": is_trigger.tolist(),
        }
    )
    return FormationReport(
        table=timeline.table,
        meta=meta,
        final=_final(timeline),
        attention=_patterns(model, row),
        example=example,
        training=training,
    )


def _final(timeline: Formation) -> pd.DataFrame:
    parts = []
    for measure in timeline.measures:
        rows: Any = timeline.final(measure)
        means = rows.groupby("layer", dropna=False, as_index=False)["value"].mean()
        parts.append(means.assign(measure=measure))
    return pd.concat(parts, ignore_index=True).reindex(
        columns=["layer", "measure", "value"]
    )


def _patterns(model: Model, row: Int[Tensor, "1 pos"]) -> pd.DataFrame:
    """Attention of head 0 of every layer, after training."""
    columns = ["layer", "head", "query", "key", "weight"]
    if "pattern" not in model.shape.sites:
        return pd.DataFrame(columns=columns)
    sites = [Site("pattern", layer, head=0) for layer in range(model.shape.n_layers)]
    run = model.run(row.to(model.device), read=sites)
    parts = []
    for site in sites:
        weight = run.cache[site][0].detach().double().cpu()
        query, key = torch.tril_indices(*weight.shape)
        place = {"layer": site.layer, "head": 0, "query": query, "key": key}
        parts.append(pd.DataFrame({**place, "weight": weight[query, key]}))
    return pd.concat(parts, ignore_index=True)
