"""Grids of toys: resumed, the same in any number of processes, failures named."""

import os
import subprocess
import sys
import time
from dataclasses import replace

import pandas as pd
import psutil
import pytest

from mechsink.experiments.grids import jobs
from mechsink.experiments.grids.grid import train_grid
from mechsink.experiments.grids.jobs import Setting
from toy_tasks import PRESETS, BigramBackcopy, Preset, ToyConfig, TrainRun

MODEL = ToyConfig(d_model=16, d_head=8, d_mlp=16, n_ctx=8)
PRESET = Preset("tiny", MODEL, steps=6, batch=4, lr=1e-2, checkpoints=(6,))
TASK = BigramBackcopy.from_text("abcdefgh" * 60 + "hgfedcba" * 60, n_triggers=1)
SETTINGS = {
    "softmax": Setting(TASK, PRESET),
    "relu": Setting(TASK, replace(PRESET, model=replace(MODEL, attention="relu"))),
}


def last_loss(run: TrainRun) -> pd.DataFrame:
    if os.environ.get("FAIL_SEED") == str(run.seed):
        raise OSError("no room left")
    return pd.DataFrame({"measure": ["loss"], "value": [run.history[-1]["loss"]]})


def numbers(table: pd.DataFrame) -> list[tuple]:
    return [tuple(row) for row in table[["setting", "seed", "value"]].to_numpy()]


def test_every_setting_and_seed_is_trained_once(tmp_path, monkeypatch):
    table = train_grid(SETTINGS, tmp_path, last_loss, seeds=[3, 4], workers=1)
    assert [row[:2] for row in numbers(table)] == [
        ("softmax", 3),
        ("relu", 3),
        ("softmax", 4),
        ("relu", 4),
    ]
    assert table["value"].nunique() == 4
    monkeypatch.setattr(jobs, "train", None)  # calling it would fail
    again = train_grid(SETTINGS, tmp_path, last_loss, seeds=[3, 4], workers=1)
    assert numbers(again) == numbers(table)


def test_a_failed_run_is_named_and_the_others_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("FAIL_SEED", "1")
    with pytest.raises(RuntimeError, match=r"2 of 4 runs failed[\s\S]*softmax, seed 1"):
        train_grid(SETTINGS, tmp_path, last_loss, seeds=[0, 1], workers=1)
    assert {path.parent.name for path in tmp_path.glob("*/*/measured")} == {"seed-0"}
    monkeypatch.delenv("FAIL_SEED")
    mended = train_grid(SETTINGS, tmp_path, last_loss, seeds=[0, 1], workers=1)
    fresh = train_grid(SETTINGS, tmp_path / "new", last_loss, seeds=[0, 1], workers=1)
    assert numbers(mended) == numbers(fresh)


def test_numbers_of_another_recipe_are_not_taken(tmp_path):
    train_grid(SETTINGS, tmp_path, last_loss, seeds=[0], workers=1)
    longer = replace(PRESET, steps=7, checkpoints=(7,))
    with pytest.raises(RuntimeError, match="holds another run"):
        settings = {"softmax": Setting(TASK, longer)}
        train_grid(settings, tmp_path, last_loss, seeds=[0], workers=1)


def test_seeds_twice_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"each seed once, such as seeds=range\(5\)"):
        train_grid(SETTINGS, tmp_path, last_loss, seeds=[0, 0])


@pytest.mark.matrix
def test_two_processes_give_the_bits_of_one(tmp_path):
    settings = {
        name: Setting(TASK, replace(setting.preset, model=PRESETS["bb-cpu"].model))
        for name, setting in SETTINGS.items()
    }
    tables = [
        train_grid(settings, tmp_path / str(n), last_loss, seeds=[0, 1], workers=n)
        for n in (1, 2)
    ]
    assert numbers(tables[0]) == numbers(tables[1])


ENDLESS = """
import sys
from dataclasses import replace
from mechsink.experiments.grids.grid import train_grid
from mechsink.experiments.grids.jobs import Setting
from mechsink.experiments.operators import measure_run
from toy_tasks import PRESETS, BigramBackcopy

if __name__ == "__main__":
    preset = replace(PRESETS["bb-cpu"], steps=100_000, checkpoints=(100_000,))
    setting = Setting(BigramBackcopy.from_text(), preset)
    train_grid({"a": setting}, sys.argv[1], measure_run, seeds=[0, 1], workers=2)
"""


@pytest.mark.matrix
def test_workers_leave_with_their_parent(tmp_path):
    """Killed outright, it can't stop them itself."""
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path / "runs")])
    try:
        wanted = [tmp_path / f"runs/a/seed-{s}/run/config.json" for s in (0, 1)]
        until(lambda: all(path.exists() for path in wanted), 120)
        workers = psutil.Process(parent.pid).children(recursive=True)
        assert len(workers) >= 2
    finally:
        parent.kill()
        parent.wait()
    _, left = psutil.wait_procs(workers, timeout=30)
    assert not left


def until(done, seconds):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
