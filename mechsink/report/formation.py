"""`formation_report`: how the sink of one training run formed, as tables and a page.

May import: sites, run, results, plotting, models, sinks, experiments, toy_tasks.
"""

from collections.abc import Mapping, Sequence
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
from mechsink.report.pattern_maps import pattern_rows
from mechsink.run import Model
from mechsink.sites import Site
from toy_tasks import TrainRun, load_run

_EXAMPLE = 24
"""Tokens of the example whose attention is drawn: as many labels as fit."""
_MOST = 400_000
"""Weights of the example that are kept over all steps."""


@dataclass(frozen=True, eq=False)
class FormationReport(PagedResult):
    """A formation timeline with what a reader needs to judge it.

    Attributes:
        table: step, layer, head, measure, value, as in `Formation`.
        final: layer, measure, value at the last step, mean over heads.
        attention: step, layer, head, query, key, weight on one short sequence.
        example: pos, id, token, is_trigger of that sequence.
        training: step, loss of each logged batch (nats); empty if not known.

    Examples:
        >>> from dataclasses import replace
        >>> from toy_tasks import PRESETS, train
        >>> from toy_tasks.planted import backcopy_task
        >>> preset = replace(PRESETS["bb-cpu"], steps=4, batch=4, checkpoints=(0, 4))
        >>> run = train(backcopy_task(), preset, "run", progress=False)
        >>> report = ms.formation_report(run, n_prompts=4, n_pos=12)
        >>> report.has_task, report.sink_layer
        (True, 0)
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

    @property
    def sink_measure(self) -> str:
        """What rests on the sink: attention away from triggers, where there are any."""
        return "bos_markov" if self.has_task else "sink_score"

    def value(self, measure: str, layer: int | None = None) -> float:
        """A measure after the last step; NaN if it was not measured there.

        Args:
            measure: one of `formation.measures`.
            layer: which; default: a measure without layers.
        """
        here: Any = self.final[self.final["measure"] == measure]
        if layer is not None:
            here = here[here["layer"] == layer]
        return float(here["value"].iloc[0]) if len(here) else float("nan")

    @property
    def sink_layer(self) -> int:
        """Layer whose heads end up looking most at the sink."""
        here: Any = self.final[self.final["measure"] == self.sink_measure]
        return int(here.loc[here["value"].idxmax(), "layer"])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Attention to the sink through training; `formation.panels()` has all.

        Args:
            ax: where to draw; a new figure by default.
        """
        return self.formation.plot(ax)

    def draw(self) -> Drawn:
        """Every figure of the page."""
        from mechsink.report.formation_page import figures

        return figures(self)

    def page(self, drawn: Drawn | None = None) -> Page:
        """The page, with figures drawn already or now.

        Args:
            drawn: figures that `draw` made; default: drawn now.
        """
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

    Returns:
        A `FormationReport`: `.save(folder)` writes tables, figures and report.html.

    Raises:
        ValueError, FileNotFoundError: as `formation`.

    Source: Guo et al. 2024 (arXiv:2410.13835), the training dynamics.

    Examples:
        >>> from dataclasses import replace
        >>> from toy_tasks import PRESETS, train
        >>> from toy_tasks.planted import backcopy_task
        >>> preset = replace(PRESETS["bb-cpu"], steps=4, batch=4, checkpoints=(0, 4))
        >>> run = train(backcopy_task(), preset, "run", progress=False)
        >>> report = ms.formation_report(run, n_prompts=4, n_pos=12)
        >>> report.formation.steps
        [0, 4]
    """
    history, own_task = as_checkpoints(checkpoints)
    seen = _Patterns(len(history))
    timeline = formation(checkpoints, tokens, watch=seen, **options)
    model = seen.model
    assert model is not None  # there is a step
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
        attention=seen.table(),
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


class _Patterns:
    """Attention on the start of the first sequence, while each model is loaded.

    Of every head if that stays a table of reasonable size, else of one head a layer.
    """

    def __init__(self, n_steps: int) -> None:
        self.n_steps = n_steps
        self.parts: list[pd.DataFrame] = []
        self.model: Model | None = None

    def __call__(self, step: int, model: Model, tokens: Sequence[Tensor]) -> None:
        self.model, shape = model, model.shape
        if "pattern" not in shape.sites:
            return
        row = tokens[0][:1, :_EXAMPLE]
        cells = self.n_steps * shape.n_layers * shape.n_heads * row.shape[1] ** 2 // 2
        n_heads = shape.n_heads if cells <= _MOST else 1
        sites = [Site("pattern", layer) for layer in range(shape.n_layers)]
        run = model.run(row.to(model.device), read=sites)
        for site in sites:
            weight = run.cache[site][0, :n_heads]
            place = {"step": step, "layer": site.layer}
            self.parts.append(pattern_rows(weight, range(n_heads), **place))

    def table(self) -> pd.DataFrame:
        """step, layer, head, query, key, weight."""
        if not self.parts:
            return pd.DataFrame(
                columns=["step", "layer", "head", "query", "key", "weight"]
            )
        return pd.concat(self.parts, ignore_index=True)
