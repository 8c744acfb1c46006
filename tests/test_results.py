"""Results are saved whole or not at all, and come back as they were."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mechsink import results
from mechsink.files import atomic_write, plain, to_json
from mechsink.results import Result, read_table


@dataclass(frozen=True, eq=False)
class Scores(Result):
    layers: pd.DataFrame
    unit: str


def example() -> Scores:
    table = pd.DataFrame(
        {
            "layer": [0, 1, 2, 3, 4],
            "score": [0.1, 1 / 3, float("nan"), 1e-300, -0.0],
            "token": [" the", "NA", "\n", 'a,"b"', "<s>"],
        }
    )
    layers = pd.DataFrame({"layer": [0], "is_sink": [True]})
    return Scores(table, {"model": "toy", "settings": {"eps": 0.3}}, layers, "nats")


def test_a_saved_result_comes_back_as_it_was(tmp_path):
    saved = example()
    folder = saved.save(tmp_path / "new" / "scores")
    assert sorted(path.name for path in folder.iterdir()) == [
        "layers.csv",
        "meta.json",
        "table.csv",
    ]
    back = Scores.load(folder)
    pd.testing.assert_frame_equal(back.table, saved.table, check_exact=True)
    pd.testing.assert_frame_equal(back.layers, saved.layers)
    assert (back.meta, back.unit) == (saved.meta, "nats")
    pd.testing.assert_frame_equal(read_table(folder), saved.table)


def test_saved_files_need_no_mechsink(tmp_path):
    folder = example().save(tmp_path / "scores")
    assert pd.read_csv(folder / "table.csv")["layer"].tolist() == [0, 1, 2, 3, 4]
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["files"]["table"]["rows"] == 5
    assert meta["fields"] == {"unit": "nats"}


def test_a_large_table_is_parquet_and_its_stale_csv_goes(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    folder = example().save(tmp_path / "scores")
    monkeypatch.setattr(results, "LARGE", 5)
    example().save(folder)
    assert (folder / "table.parquet").exists()
    assert not (folder / "table.csv").exists()
    pd.testing.assert_frame_equal(Scores.load(folder).table, example().table)


def test_other_files_in_the_folder_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    example().save(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results, "to_json", full_disk)
    with pytest.raises(OSError, match=r"cannot write .*No space left.*Allowed"):
        example().save(tmp_path / "scores")
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_gives_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for write in (example().save, lambda path: atomic_write(path, "text")):
        with pytest.raises(OSError, match=r"cannot write .*Allowed.*Pass another"):
            write(tmp_path / "file" / "scores")
    with pytest.raises(OSError, match="cannot write"):
        example().save(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_killed_atomic_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = atomic_write(tmp_path / "a.txt", "old")

    def killed(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, b"new")
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_loading_something_else_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="holds no saved result"):
        Scores.load(tmp_path)
    folder = example().save(tmp_path / "scores")
    with pytest.raises(ValueError, match=r"holds a Scores. Load it with Scores.load"):
        Result.load(folder)
    with pytest.raises(ValueError, match="It has: table, layers"):
        read_table(folder, "heads")
    (tmp_path / "meta.json").write_text("[]")
    with pytest.raises(ValueError, match="not written by"):
        Scores.load(tmp_path)


def test_the_html_view_escapes_tokens():
    shown = example()._repr_html_()
    assert "&lt;s&gt;" in shown and "<s>" not in shown
    assert "5 rows" in shown and "toy" in shown


def test_plain_values():
    given = {
        1: torch.float32,
        "t": torch.tensor([1, 2]),
        "n": np.float32(0.5),
        "nan": float("nan"),
        "path": Path("a"),
        "set": {2, 1},
    }
    want = {
        "1": "torch.float32",
        "t": [1, 2],
        "n": 0.5,
        "nan": None,
        "path": "a",
        "set": [1, 2],
    }
    assert plain(given) == want
    assert json.loads(to_json(plain(given))) == want
