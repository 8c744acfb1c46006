"""Many toys: settings times seeds, trained side by side, measured, resumed.

FOLDER/SETTING/seed-0/run        the `toy_tasks.train` folder
FOLDER/SETTING/seed-0/measured   table.csv and meta.json, written when it is done

A grid is a function of its settings and seeds: how many processes trained it, and
how often it was stopped, changes no number.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mechsink.engines.engine import Engine, as_engine
from mechsink.engines.worker import default_workers
from mechsink.experiments.grids.jobs import Job, Measure, Setting, run_jobs
from mechsink.progress import bar
from mechsink.provenance import versions


def train_grid(
    settings: Mapping[str, Setting],
    folder: str | Path,
    measure: Measure,
    *,
    seeds: Sequence[int] = range(5),
    engine: Engine | str = "pool",
    workers: int | None = None,
    address: str | None = None,
    device: str | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Train every setting for every seed and measure each; goes on where it stopped.

    Args:
        settings: by name; names become folders.
        folder: for runs and their numbers; what is there already is not done again.
        measure: called on each finished run; its table is kept as it is.
        seeds: seeds of weights and data.
        engine: "pool" (processes of this machine), "here", "ray", or an `Engine`; one
            thread a run in all of them. On Ray `folder` is one that all machines share.
        workers: how many; default: one a core, or one on a GPU.
        address: of a Ray cluster, as for `ms.spread`.
        device: as for `train`.
        progress: show a bar with time left; None: on terminals, in notebooks.

    Returns:
        The tables of all runs below one another, with columns setting, seed before
        and seconds after their own: processor time of training, which on an idle
        machine is its duration; of a run that was interrupted, that of its last part.

    Raises:
        ValueError: no settings, seeds twice, or a folder with other runs.
        RuntimeError: some runs failed; names them. The others are kept.

    Examples:
        >>> from dataclasses import replace
        >>> import pandas as pd
        >>> from toy_tasks import PRESETS
        >>> from toy_tasks.planted import backcopy_task
        >>> preset = replace(PRESETS["bb-cpu"], steps=4, batch=4)
        >>> def last_loss(run):
        ...     return pd.DataFrame({"loss": [run.history[-1]["loss"]]})
        >>> settings = {"plain": ms.Setting(backcopy_task(), preset)}
        >>> table = ms.train_grid(
        ...     settings, "grid", last_loss, seeds=[0, 1], engine="here", progress=False
        ... )
        >>> list(table), len(table)
        (['setting', 'seed', 'loss', 'seconds'], 2)
    """
    jobs = _jobs(settings, Path(folder).absolute(), measure, seeds, device)
    where = _engine(engine, workers, address, device)
    return _trained(jobs, where, progress)[0]


def _engine(
    engine: Engine | str, workers: int | None, address: str | None, device: str | None
) -> Engine:
    if engine == "pool":
        workers = workers or default_workers(device)
        engine = "here" if workers == 1 else engine
    return as_engine(engine, workers, address)


def _trained(
    jobs: Sequence[Job], engine: Engine, progress: bool | None
) -> tuple[pd.DataFrame, int]:
    """The table of `train_grid`, and how many runs were there already."""
    tables: dict[Job, pd.DataFrame] = {}
    for job in jobs:
        found = job.table()
        if found is not None:
            tables[job] = found
    waiting = [job for job in jobs if job not in tables]
    total = sum(job.setting.preset.steps for job in waiting)
    failed: dict[Job, BaseException] = {}
    with bar(f"training {len(waiting)} toys", total, progress) as advance:
        for job, outcome in run_jobs(waiting, engine, advance):
            if isinstance(outcome, BaseException):
                failed[job] = outcome
            else:
                tables[job] = outcome
    if failed:
        lines = [f"{job.name}, seed {job.seed}: {e}" for job, e in failed.items()]
        raise RuntimeError(
            f"train_grid: {len(failed)} of {len(jobs)} runs failed. The others are "
            "kept and not repeated; call again to retry.\n  " + "\n  ".join(lines)
        ) from next(iter(failed.values()))
    parts = [
        tables[job].assign(setting=job.name, seed=job.seed) for job in jobs
    ]  # in the order of settings and seeds, not of finishing
    table = pd.concat(parts, ignore_index=True)
    first = ["setting", "seed"]
    ordered = table[first + [c for c in table if c not in first]]
    return pd.DataFrame(ordered), len(jobs) - len(waiting)


def study_grid(
    settings: Mapping[str, Setting],
    folder: str | Path,
    measure: Measure,
    *,
    quick: bool,
    seeds: Sequence[int] = range(5),
    engine: Engine | str = "pool",
    workers: int | None = None,
    address: str | None = None,
    device: str | None = None,
    progress: bool | None = None,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """`train_grid` with what a study says of it: recipes, seeds, versions, time.

    Args:
        settings, folder, measure, seeds, engine, workers, address, device, progress:
            as for `train_grid`.
        quick: whether this is the study's small form.

    Returns:
        The table, and a dict for `Result.meta`: training_s is processor time,
        n_resumed the number of runs that were there already.
    """
    started = time.perf_counter()
    jobs = _jobs(settings, Path(folder).absolute(), measure, seeds, device)
    where = _engine(engine, workers, address, device)
    table, n_resumed = _trained(jobs, where, progress)
    runs: Any = table.drop_duplicates(["setting", "seed"])
    return table, {
        "versions": versions(),
        "presets": {name: s.preset.to_json() for name, s in settings.items()},
        "seeds": runs["seed"].unique().tolist(),
        "n_runs": len(jobs),
        "n_resumed": n_resumed,
        "training_s": round(float(runs["seconds"].sum()), 1),
        "duration_s": round(time.perf_counter() - started, 1),
        "engine": where.name,
        "quick": quick,
    }


def check_names(caller: str, what: str, given: Sequence[str], known: Any) -> None:
    """Raise ValueError where a name is not among the known ones."""
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(
            f"{caller}: no {what} {', '.join(map(repr, unknown))}. Allowed: "
            f"{', '.join(map(repr, known))}."
        )


def _jobs(
    settings: Mapping[str, Setting],
    folder: Path,
    measure: Measure,
    seeds: Sequence[int],
    device: str | None,
) -> list[Job]:
    if not settings or not len(seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(
            f"train_grid: {len(settings)} settings, seeds {list(seeds)}. Give at least "
            "one setting, and each seed once, such as seeds=range(5)."
        )
    return [
        Job(name, setting, seed, folder / name / f"seed-{seed}", measure, device)
        for seed in seeds  # all settings of one seed first: early results compare
        for name, setting in settings.items()
    ]
