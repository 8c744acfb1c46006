"""The runs of a grid: trained and measured in processes, stored, found again."""

import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mechsink.progress import Advance
from mechsink.results import Result
from toy_tasks import Preset, TrainRun, train
from toy_tasks.runs import digest, identity
from toy_tasks.task import Task

Measure = Callable[[TrainRun], pd.DataFrame]
"""A finished run to a tidy table; a function of a module, so that processes find it."""

TICK = 25
"""Training steps between two reports of a worker."""


@dataclass(frozen=True)
class Setting:
    """One cell of a grid: what is trained on what; the seed comes later."""

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
    jobs: Sequence[Job], workers: int, advance: Advance
) -> Iterator[tuple[Job, pd.DataFrame | BaseException]]:
    """Do the jobs, here or in processes; each with its table or what went wrong."""
    if workers == 1 or len(jobs) < 2:
        for job in jobs:
            try:
                with _one_thread():
                    outcome: Any = _do(job, advance)
            except Exception as error:
                outcome = error
            yield job, outcome
        return
    # A fresh interpreter each: a fork would inherit torch's threads half-dead.
    context = multiprocessing.get_context("spawn")
    steps: Any = context.Queue()
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)), context, initializer=_start, initargs=(steps,)
    )
    try:
        doing: dict[Future[pd.DataFrame], Job] = {
            pool.submit(_do_in_worker, job): job for job in jobs
        }
        while doing:
            done, _ = wait(doing, timeout=0.5, return_when=FIRST_COMPLETED)
            _drain(steps, advance)
            for future in done:
                error = future.exception()
                yield doing.pop(future), future.result() if error is None else error
    finally:
        pool.shutdown(cancel_futures=True)


def _do(job: Job, advance: Advance) -> pd.DataFrame:
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


_report: Advance | None = None  # of this worker process


def _start(done: Any) -> None:
    global _report
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def report(steps: int = 1) -> None:
        done.put(steps)

    _report = report


def _end_with_parent() -> None:
    """Leave when the parent was killed: else the worker would train on, unseen."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os._exit(1)


def _do_in_worker(job: Job) -> pd.DataFrame:
    assert _report is not None
    return _do(job, _report)


def _drain(steps: Any, advance: Advance) -> None:
    while True:
        try:
            advance(steps.get_nowait())
        except queue.Empty:
            return


@contextmanager
def _one_thread() -> Iterator[None]:
    """As in a worker: sums over several threads differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def default_workers(device: str | None) -> int:
    """One process a core, or one on a GPU."""
    on_gpu = torch.cuda.is_available() if device is None else device != "cpu"
    if on_gpu:
        return 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
