"""Work that is killed: each job writes a folder, resumes it, and can be read back.

`work(folder)` does it or goes on with it; `state(folder)` is what is there, by name, as
a reader meets it: anything but the truth would be a damaged file read as good.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import mechsink as ms
from mechsink.engines.store import Store
from mechsink.experiments.operators import operator_study
from mechsink.interventions import patching
from mechsink.report.folder import output_folder
from mechsink.report.studies import write_study
from mechsink.results import Result, read_table
from tests.engines.measures import pairs, toy_model
from toy_tasks import BigramBackcopy, Preset, ToyConfig, load_run, train

MODEL = ToyConfig(d_model=32, d_head=16, d_mlp=32, n_ctx=16)
PRESET = Preset(
    "tiny", MODEL, steps=60, batch=8, lr=1e-2,
    checkpoints=tuple(range(0, 61, 6)), save_every=4,
)  # fmt: skip
TASK = BigramBackcopy.from_text("abcdefgh" * 60 + "hgfedcba" * 60, n_triggers=1)


@dataclass(frozen=True)
class Job:
    """What is done in a folder, and what a reader finds there."""

    work: Callable[[Path], Any]
    state: Callable[[Path], dict[str, Any]]


def _train(folder: Path) -> None:
    train(TASK, PRESET, folder / "run", seed=0, progress=False)


def _trained(folder: Path) -> dict[str, Any]:
    try:
        run = load_run(folder / "run")
    except FileNotFoundError:
        return {}
    except ValueError as error:
        assert "no checkpoint yet" in str(error), error
        return {}
    found: dict[str, Any] = {f"step {s}": _bits(run.model(s)) for s in run.steps}
    if run.is_finished:
        found["log"] = run.history
    return found


def _bits(model: torch.nn.Module) -> list[bytes]:
    return [t.numpy().tobytes() for t in model.state_dict().values()]


def _sweep(folder: Path) -> None:
    patching.PAIRS_A_BATCH = 2  # of this process, which ends with the job
    ms.patch_sweep(toy_model(), pairs(40), ms.logit_diff, folder=folder / "sweep")


def _spread(folder: Path) -> None:
    ms.spread(
        ms.patch_sweep, toy_model(), pairs(16), ms.logit_diff,
        engine="here", folder=folder / "spread",
    )  # fmt: skip


def _swept(folder: Path) -> dict[str, Any]:
    whole = folder / "sweep"
    if not (whole / "meta.json").exists():
        return {}
    return {"whole": ms.PatchingResult.load(whole).table}


def _spread_state(folder: Path) -> dict[str, Any]:
    home = folder / "spread"
    if not (home / "work.json").exists():
        return {}
    store = Store.__new__(Store)  # to read alone: no claim, no lock
    store.folder, store.parts = home, home / "parts"
    found = {
        f"pair {path.name}": store.part(int(path.name))
        for path in store.parts.glob("[0-9]*")
    }
    tables = {name: part.table for name, part in found.items() if part is not None}
    whole = store.whole()
    if whole is not None:
        tables["whole"] = whole.table
        for number, rows in whole.table.groupby("prompt"):
            mine = rows.assign(prompt=0).reset_index(drop=True)
            tables[f"pair {number:06d}"] = mine  # as its part was
    return tables


def _experiment(folder: Path) -> None:
    """As the command line does it: toys in a folder of their own, then the page."""
    preset = replace(PRESET, steps=20, checkpoints=(20,), model=MODEL)
    with output_folder(folder / "out") as stage:
        study = operator_study(
            stage.parent / "runs", ("softmax", "relu"), seeds=[0], preset=preset,
            task=TASK, engine="here", progress=False,
        )  # fmt: skip
        write_study(study, stage, "mechsink experiment operators")


def _experimented(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in folder.glob("out/runs/*/seed-0/measured/meta.json"):
        table = Result.load(path.parent).table
        found[path.parts[-4]] = table.drop(columns="seconds")
    if (folder / "out/meta.json").exists() and (folder / "out/table.csv").exists():
        found["whole"] = read_table(folder / "out").drop(columns="seconds")
    return found


JOBS = {
    "training": Job(_train, _trained),
    "sweep": Job(_sweep, _swept),
    "spread": Job(_spread, _spread_state),
    "experiment": Job(_experiment, _experimented),
}


def same(one: Any, other: Any) -> bool:
    """Whether two states' parts are equal to the last bit."""
    if isinstance(one, pd.DataFrame):
        return isinstance(other, pd.DataFrame) and one.equals(other)
    return one == other
