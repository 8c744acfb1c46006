"""Results in files: the same bits come back, and what was changed is not read."""

import functools
import json
import math
import shutil
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import strategies as st

from mechsink.files import plain, to_json
from mechsink.results import Result, read_table
from tests.hostile.cases import hostile
from tests.hostile.clear import is_refused, tried
from tests.hostile.texts import any_texts, texts


@dataclass(frozen=True, eq=False)
class Two(Result):
    other: pd.DataFrame
    note: str
    numbers: list[float]


floats = st.one_of(
    st.floats(),
    st.sampled_from([5e-324, 1.7976931348623157e308, -0.0, math.nan, math.inf, 0.1]),
)
singles = st.floats(width=32)
columns = {
    "float64": floats,
    "float32": singles,
    "int64": st.integers(-(2**63), 2**63 - 1),
    "uint8": st.integers(0, 255),
    "bool": st.booleans(),
    "str": texts,
}
names = st.one_of(st.sampled_from(["layer", "NA", "a,b", '"', "\n", "<b>", "0"]), texts)


@st.composite
def tables(draw) -> pd.DataFrame:
    n = draw(st.integers(0, 5))
    heads = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    frame = {}
    for name in heads:
        kind = draw(st.sampled_from([*columns]))
        values = draw(st.lists(columns[kind], min_size=n, max_size=n))
        frame[name] = pd.Series(values, dtype=kind)  # type: ignore[call-overload]
    return pd.DataFrame(frame)


def bits(table: pd.DataFrame) -> list[list[object]]:
    """Every value, numbers as their bits; NaN is NaN."""
    found = []
    for name in table.columns:
        column = table[name]
        if column.dtype.kind == "f":
            size = {8: "<d", 4: "<f"}[column.dtype.itemsize]
            found.append(
                [x != x or struct.pack(size, x) for x in column.to_numpy().tolist()]
            )
        else:
            found.append(column.tolist())
    return found


metas = st.dictionaries(
    st.sampled_from(["model", "device", "tokens", "x"]) | texts,
    st.recursive(
        st.none() | st.booleans() | st.integers() | any_texts | floats,
        lambda inside: (
            st.lists(inside, max_size=2) | st.dictionaries(texts, inside, max_size=2)
        ),
        max_leaves=3,
    ),
    max_size=3,
)
OWN = {"result", "files", "fields"}  # keys of meta.json that say what is saved


@hostile(
    4,
    700,
    [
        {
            "table": pd.DataFrame(
                {"t": ["NA", "a\rb", "\r\n", '"', "\x00", "", " x "]}
            ),
            "other": pd.DataFrame({"a,b\n": [1e-300, -0.0]}),
            "note": "\ud800",
            "meta": {"tokens": ["\udcff"]},
        },
        {
            "table": pd.DataFrame({"t": pd.Series([], dtype="str")}),
            "other": pd.DataFrame({"t": ["", "\t"]}),
            "note": "",
            "meta": {},
        },
    ],
    table=tables(),
    other=tables(),
    note=any_texts,
    meta=metas.filter(lambda meta: not OWN & set(meta)),
)
def test_a_saved_result_comes_back_bit_for_bit(table, other, note, meta):
    saved = Two(table, plain(meta), other, note, [0.1, -0.0])
    with tempfile.TemporaryDirectory() as folder:
        saved.save(Path(folder) / "result")
        back = Two.load(Path(folder) / "result")
        alone = read_table(Path(folder) / "result")
    for was, now in ((table, back.table), (other, back.other), (table, alone)):
        assert list(now.columns) == list(was.columns)
        assert list(map(str, now.dtypes)) == list(map(str, was.dtypes))
        assert bits(now) == bits(was)
    assert back.meta == saved.meta and back.note == note
    assert struct.pack("<2d", *back.numbers) == struct.pack("<2d", 0.1, -0.0)


@hostile(30, 500, meta=metas)
def test_any_meta_is_json(meta):
    text = to_json(meta)
    assert json.loads(text.encode()) == plain(meta)


def example(folder: Path) -> Path:
    table = pd.DataFrame(
        {"layer": [0, 1, 2], "score": [0.1, 1 / 3, np.nan], "token": ["a", "NA", "\n"]}
    )
    return Two(table, {"model": "toy"}, table.head(1), "note", [1.0]).save(folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return example(tmp_path_factory.mktemp("saved") / "result")


@functools.cache
def good() -> tuple[dict[str, bytes], Two]:
    """A saved result's files, and what they hold."""
    with tempfile.TemporaryDirectory() as folder:
        path = example(Path(folder) / "result")
        return {file.name: file.read_bytes() for file in path.iterdir()}, Two.load(path)


@st.composite
def damages(draw) -> tuple[str, str, int, int]:
    """Which file, what happens to it, where (a share of it), and with what."""
    return (
        draw(st.sampled_from(["table.csv", "other.csv", "meta.json"])),
        draw(st.sampled_from(["flip", "cut", "add", "gone"])),
        draw(st.integers(0, 10**6)),
        draw(st.integers(1, 255)),
    )


def damaged(data: bytes, what: str, place: int, byte: int) -> bytes:
    at = place % max(1, len(data))
    if what == "flip":
        return data[:at] + bytes([data[at] ^ byte]) + data[at + 1 :]
    return data[:at] if what == "cut" else data + bytes([byte])


@hostile(30, 1200, damage=damages())
def test_a_damaged_result_is_as_it_was_or_not_read(damage):
    name, what, place, byte = damage
    files, want = good()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        for other, data in files.items():
            (path / other).write_bytes(data)
        file = path / name
        if what == "gone":
            file.unlink()
        else:
            file.write_bytes(damaged(file.read_bytes(), what, place, byte))
        found = tried(Two.load, path)
        if is_refused(found):
            assert str(path) in str(found) and "load: " in str(found)
            return
        assert (found.note, found.numbers) == (want.note, want.numbers)
        assert found.meta == want.meta
        assert bits(found.table) == bits(want.table)
        assert bits(found.other) == bits(want.other)


def test_a_result_saved_before_there_were_checksums_is_read(saved, tmp_path):
    folder = Path(shutil.copytree(saved, tmp_path / "old"))
    meta = json.loads((folder / "meta.json").read_text())
    del meta["sha256"]
    for file in meta["files"].values():
        del file["sha256"]
    (folder / "meta.json").write_text(json.dumps(meta))
    assert bits(Two.load(folder).table) == bits(Two.load(saved).table)
    lines = (folder / "table.csv").read_text().splitlines(keepends=True)
    (folder / "table.csv").write_text("".join(lines[:2]))
    with pytest.raises(ValueError, match="1 rows, but 3 were saved"):
        Two.load(folder)


def test_a_changed_table_can_be_read_without_mechsink(saved, tmp_path):
    folder = Path(shutil.copytree(saved, tmp_path / "changed"))
    path = folder / "table.csv"
    path.write_text(path.read_text().replace("0.1", "0.2"))
    with pytest.raises(ValueError, match=r"table.csv is not as it was saved.*read_csv"):
        Two.load(folder)
