"""A model's history: training steps, and how to load the model at each.

One shape for all sources: a mapping from step to `Checkpoint`, loaded one at a
time and only when its turn comes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mechsink.models.load import load_model
from mechsink.run import Model
from toy_tasks import BigramBackcopy, TrainRun, load_run


@dataclass(frozen=True)
class Checkpoint:
    """One model of a history: what `load_model` takes, with its options.

    Args:
        source: what `load_model` takes.
        options: of `load_model`.

    Examples:
        >>> from toy_tasks import ToyConfig, ToyTransformer
        >>> checkpoint = ms.Checkpoint(ToyTransformer(ToyConfig(d_vocab=9)))
        >>> checkpoint.load().shape.d_vocab
        9
    """

    source: Any
    options: Mapping[str, Any] = field(default_factory=dict)

    def load(self, **defaults: Any) -> Model:
        """The model; `defaults` are options that this checkpoint does not set.

        Args:
            defaults: options of `load_model`.
        """
        return load_model(self.source, **{**defaults, **self.options})


def checkpoints_of(
    name: str, revisions: Mapping[int, str], **options: Any
) -> dict[int, Checkpoint]:
    """Revisions of one hub model as a history, downloaded one at a time.

    Args:
        name: hub id, such as "EleutherAI/pythia-70m".
        revisions: training step to branch, tag or commit, such as
            {0: "step0", 1000: "step1000"}.
        options: passed to `load_model`, such as device= and dtype=.

    Returns:
        Step to `Checkpoint`, for `formation`.

    Raises:
        ValueError: no revisions.

    Examples:
        >>> revisions = {0: "step0", 1000: "step1000"}
        >>> history = ms.checkpoints_of("EleutherAI/pythia-70m", revisions)
        >>> history[1000].source, history[1000].options
        ('EleutherAI/pythia-70m', {'revision': 'step1000'})
    """
    if not revisions:
        raise ValueError(
            "checkpoints_of: no revisions given. Pass training step to revision, such "
            'as {0: "step0", 1000: "step1000"}; the model page lists its branches.'
        )
    return {
        step: Checkpoint(name, {**options, "revision": revision})
        for step, revision in revisions.items()
    }


def as_checkpoints(
    source: str | Path | TrainRun | Mapping[int, Any],
) -> tuple[dict[int, Checkpoint], BigramBackcopy | None]:
    """Any description of a history as checkpoints by ascending step, and its task.

    The task is given where it has triggers to split by; that of a run on sums is not.

    Args:
        source: a `toy_tasks.train` folder (or "toy:FOLDER", or what `train`
            returned), which knows its task; or a mapping from step to anything
            `load_model` accepts, or to a `Checkpoint`.

    Raises:
        ValueError: no checkpoints, or keys that are no steps.
        FileNotFoundError: the folder holds no run.
    """
    if isinstance(source, str | Path):
        source = load_run(str(source).removeprefix("toy:"))
    if isinstance(source, TrainRun):
        folder, name = f"toy:{source.folder}", f"toy:{source.folder.name}"
        task = source.task if isinstance(source.task, BigramBackcopy) else None
        return {
            step: Checkpoint(folder, {"revision": str(step), "name": name})
            for step in source.steps
        }, task
    wrong = [step for step in source if not isinstance(step, int) or step < 0]
    if wrong or not source:
        raise ValueError(
            f"formation: {'steps ' + repr(wrong) if wrong else 'an empty mapping'} "
            "given. Pass training steps, whole numbers from 0, each with a model: "
            '{0: "ckpt-0", 100: "ckpt-100"}.'
        )
    return {
        step: given if isinstance(given, Checkpoint) else Checkpoint(given)
        for step, given in sorted(source.items())
    }, None
