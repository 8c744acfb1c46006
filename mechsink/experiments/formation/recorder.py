"""How a sink forms: its measures at every checkpoint of a training run.

Source: Guo et al. 2024 (arXiv:2410.13835), the training dynamics of sinks, value
drains and residual peaks.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from mechsink.experiments.formation.checkpoints import Checkpoint, as_checkpoints
from mechsink.experiments.formation.moment import Texts, measure_moment
from mechsink.experiments.formation.timeline import Formation
from mechsink.models.toy import ToyModel
from mechsink.progress import bar
from mechsink.provenance import provenance
from mechsink.run import Model
from mechsink.sinks.measure import as_batches
from toy_tasks import BigramBackcopy, ToyTransformer, TrainRun

Watch = Callable[[int, Model, Sequence[Tensor]], None]
"""Gets the training step, the model as it was then, and the tokens measured on."""


def formation(
    checkpoints: str | Path | TrainRun | Mapping[int, Any],
    tokens: Tensor | Sequence[Tensor] | None = None,
    *,
    task: BigramBackcopy | None = None,
    position: int = 0,
    eps: float = 0.3,
    n_prompts: int = 64,
    n_pos: int = 64,
    seed: int = 2**31,
    watch: Watch | None = None,
    progress: bool | None = None,
) -> Formation:
    """Measure a sink at every checkpoint: when did it form, and what else did?

    Args:
        checkpoints: a `toy_tasks.train` folder or what `train` returned; or a
            mapping from training step to anything `load_model` accepts (folders,
            model objects), or `checkpoints_of(name, revisions)` for the hub.
        tokens: what to measure on, the same at every step: Int[batch pos] or a list
            of such tensors. With a task the last token of a prompt is only
            predicted. Default: `n_prompts` fresh sequences of the task.
        task: splits queries and loss by trigger, and gives the oracle; a toy run
            knows its own.
        position: the candidate sink, 0 for `<s>`.
        eps: score above which a head counts in the sink rate.
        n_prompts: sequences to draw.
        n_pos: inputs in each; at most the model's context are drawn.
        seed: of the draw; the default is one that `train` does not draw from.
        watch: called after each step was measured, to measure something of one's own
            while the model is loaded.
        progress: show a bar with time left; None: on terminals, in notebooks.

    Returns:
        A `Formation`, one row a step, measure and, where it has them, layer and head.

    Raises:
        ValueError: no checkpoints, nothing to measure on, or a model whose
            vocabulary is not the task's.
        FileNotFoundError: no such run or model.

    Source: Guo et al. 2024 (arXiv:2410.13835).

    Examples:
        >>> from dataclasses import replace
        >>> from toy_tasks import PRESETS, train
        >>> from toy_tasks.planted import backcopy_task
        >>> preset = replace(PRESETS["bb-cpu"], steps=4, batch=4, checkpoints=(0, 4))
        >>> run = train(backcopy_task(), preset, "run", progress=False)
        >>> found = ms.formation(run, n_prompts=4, n_pos=12)
        >>> found.steps, found.measures[:3]
        ([0, 4], ['sink_score', 'sink_rate', 'sink_logit'])
    """
    history, own_task = as_checkpoints(checkpoints)
    task = own_task if task is None else task
    drawn = None
    if tokens is None:
        if task is None:
            raise ValueError(
                "formation: tokens=None, and these checkpoints come with no task. Pass "
                "tokens=model.to_tokens(texts), or task= to draw sequences from."
            )
        n_ctx = next(iter(history.values())).load(selfcheck=False).shape.n_ctx
        tokens = task.sample(n_prompts, min(n_pos, n_ctx) + 1, seed)
        drawn = seed
    recorder = FormationRecorder(tokens, task=task, position=position, eps=eps)
    recorder._seed = drawn
    for number, (step, checkpoint) in enumerate(_bar(history, progress)):
        # Hooks are proved on the first checkpoint; the others have its build.
        model = checkpoint.load(selfcheck=number == 0)
        recorder.add(step, model)
        if watch is not None:
            watch(step, model, recorder.texts.tokens)
    return recorder.result()


class FormationRecorder:
    """Measures a model while it trains: `train(..., callbacks=[recorder])`.

    `result()` gives the timeline of the steps seen so far. Options are those of
    `formation`.

    Args:
        tokens: what to measure on, the same at every step: Int[batch pos] or a list.
        task: splits queries and loss by trigger; default: no split.
        position: the candidate sink, 0 for `<s>`.
        eps: score above which a head counts in the sink rate.

    Source: Guo et al. 2024 (arXiv:2410.13835).

    Examples:
        >>> from toy_tasks.planted import backcopy_task
        >>> task = backcopy_task()
        >>> recorder = ms.FormationRecorder(task.sample(4, 13, seed=0), task=task)
        >>> recorder.add(0, ms.planted("backcopy").model)
        >>> recorder.result().final("bos_markov").value.round(2).tolist()
        [0.99, 0.19, 0.22]
    """

    def __init__(
        self,
        tokens: Tensor | Sequence[Tensor],
        *,
        task: BigramBackcopy | None = None,
        position: int = 0,
        eps: float = 0.3,
    ) -> None:
        given = [tokens] if isinstance(tokens, Tensor) else list(tokens)
        self.texts = Texts(given, task, position, eps)
        self._rows: dict[int, pd.DataFrame] = {}
        self._model: Model | None = None
        self._seconds = 0.0
        self._seed: int | None = None  # that the tokens were drawn with

    def __call__(self, step: int, model: ToyTransformer, task: BigramBackcopy) -> None:
        """Measure a toy transformer in training."""
        toy: Any = ToyModel(model, task)
        self.add(step, toy)

    def add(self, step: int, model: Model) -> None:
        """Measure any model as the one after `step` updates.

        Args:
            step: updates made before.
            model: any model.
        """
        started = time.perf_counter()
        as_batches(model, self.texts.tokens)  # refuses what cannot be measured
        with torch.no_grad():
            rows = measure_moment(model, self.texts)
        rows.insert(0, "step", step)
        self._rows[step] = rows
        self._model = model
        self._seconds += time.perf_counter() - started

    def result(self) -> Formation:
        """The timeline so far.

        Raises:
            ValueError: nothing was measured yet.
        """
        if self._model is None:
            raise ValueError(
                "FormationRecorder: no step was measured yet. Pass it to train as a "
                "callback, or call add(step, model)."
            )
        steps = sorted(self._rows)
        meta = provenance(
            self._model,
            self.texts.tokens,
            duration=self._seconds,
            measurement="Formation",
            seed=self._seed,
            position=self.texts.position,
            eps=self.texts.eps,
            steps=steps,
            task=None if self.texts.task is None else self.texts.task.to_json(),
        )
        table = pd.concat([self._rows[step] for step in steps], ignore_index=True)
        return Formation(table, meta)


def _bar(
    history: Mapping[int, Checkpoint], progress: bool | None
) -> Iterator[tuple[int, Checkpoint]]:
    """The checkpoints, with a bar on a terminal."""
    with bar("measuring checkpoints", len(history), progress) as advance:
        for item in history.items():
            yield item
            advance()
