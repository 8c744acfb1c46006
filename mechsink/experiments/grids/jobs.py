"""The runs of a grid: trained and measured on an engine, stored, found again."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mechsink.engines.engine import Engine, Work
from mechsink.progress import Advance
from mechsink.results import Result
from toy_tasks import Preset, TrainRun, train
from toy_tasks.runs import digest, identity
from toy_tasks.task import Task

Measure = Callable[[TrainRun], pd.DataFrame]
"""A finished run to a tidy table: a function of a module, by whose name it is known."""

TICK = 25
"""Training steps between two reports of a worker."""


@dataclass(frozen=True)
class Setting:
    """One cell of a grid: what is trained on what; the seed comes later.

    Args:
        task: what is learnt.
        preset: how.

    Examples:
        >>> from toy_tasks import PRESETS
        >>> from toy_tasks.planted import backcopy_task
        >>> setting = ms.Setting(backcopy_task(), PRESETS["bb-cpu"])
        >>> setting.preset.name, setting.task.d_vocab
        ('bb-cpu', 9)
    """

    task: Task
    preset: Preset


@dataclass(frozen=True)
class Job:
    """One training run of a grid."""

    name: str
    setting: Setting
    seed: int
    folder: Path
    measure: Measure
    device: str | None

    @property
    def measured(self) -> Path:
        """Where its numbers go."""
        return self.folder / "measured"

    @property
    def key(self) -> str:
        """Marks what was measured: a digest of the run and of the function."""
        of = identity(self.setting.task, self.setting.preset, self.seed)
        how = f"{self.measure.__module__}.{self.measure.__qualname__}"
        return digest({"run": of, "measure": how})

    def table(self) -> pd.DataFrame | None:
        """What was measured earlier, with seconds; None if it is yet to be done."""
        if not (self.measured / "meta.json").exists():
            return None
        found = Result.load(self.measured)
        if found.meta.get("key") != self.key:
            return None  # of another run or measure: trained or measured anew
        return found.table


def run_jobs(
    jobs: Sequence[Job], engine: Engine, advance: Advance
) -> Iterator[tuple[Job, pd.DataFrame | BaseException]]:
    """Do the jobs on an engine; each with its table or what went wrong.

    A job whose worker is lost goes on where the worker stopped: its folder must be
    one that all machines share.
    """
    work = Work(_nothing, _do)
    for number, outcome in engine.run(work, jobs, advance):
        yield jobs[number], outcome.value


def _nothing() -> None:
    pass


def _do(opened: None, job: Job, advance: Advance) -> pd.DataFrame:
    """Train one toy, measure it, and store the numbers."""
    started = time.process_time()
    before = -1

    def tick(step: int, model: Any, task: Any) -> None:
        nonlocal before
        advance(step - max(before, 0))
        before = step

    preset = job.setting.preset
    run = train(
        job.setting.task,
        preset,
        job.folder / "run",
        job.seed,
        callbacks=[tick],
        callback_steps=[*range(0, preset.steps, TICK), preset.steps],
        device=job.device,
        progress=False,
    )
    seconds = time.process_time() - started
    table = job.measure(run).assign(seconds=seconds)
    meta = {"key": job.key, "seed": job.seed, "preset": preset.to_json()}
    Result(table, meta).save(job.measured)
    return table
