"""Circuits in files: both forms give the same bits, and damage is told."""

import functools
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from mechsink.circuits.graph import Circuit
from mechsink.circuits.selection import greedy_edges, top_edges
from mechsink.files import plain
from tests.circuits.made import SHAPES, made_scores, random_scores
from tests.hostile.cases import hostile
from tests.hostile.clear import is_refused, tried
from tests.hostile.texts import any_texts

numbers = st.one_of(
    st.floats(allow_infinity=False),
    st.sampled_from([5e-324, -1.7976931348623157e308, -0.0, 0.1]),
)


metas = st.dictionaries(any_texts, any_texts | numbers, max_size=3)


def same(one: Circuit, other: Circuit) -> None:
    assert (one.wires, one.edges) == (other.wires, other.edges)
    assert (one.outputs, one.meta) == (other.outputs, other.meta)
    left, right = one.table["score"].to_numpy(), other.table["score"].to_numpy()
    gone = np.isnan(left)
    assert (gone == np.isnan(right)).all()
    assert left[~gone].tobytes() == right[~gone].tobytes()


@hostile(
    4,
    700,
    shape=st.sampled_from([*SHAPES]),
    scores=st.lists(st.tuples(st.integers(0, 40), numbers), max_size=6),
    meta=metas,
    form=st.sampled_from(["json", "graphml"]),
)
def test_a_circuit_comes_back_from_either_form(shape, scores, meta, form):
    wires = SHAPES[shape]
    known = {wires.edges[place % len(wires.edges)]: score for place, score in scores}
    circuit = Circuit.of(wires, [*known], known, meta=plain(meta))
    with tempfile.TemporaryDirectory() as folder:
        path = circuit.save(Path(folder) / f"circuit.{form}")
        same(Circuit.load(path), circuit)


@functools.cache
def good(form: str) -> tuple[bytes, Circuit]:
    scores = random_scores(SHAPES["plain"], 0)
    circuit = top_edges(scores, 9)
    with tempfile.TemporaryDirectory() as folder:
        path = circuit.save(Path(folder) / f"circuit.{form}")
        return path.read_bytes(), circuit


@hostile(
    15,
    900,
    form=st.sampled_from(["json", "graphml"]),
    what=st.sampled_from(["flip", "flip", "cut", "add"]),
    place=st.integers(0, 10**6),
    byte=st.integers(1, 255),
)
def test_a_damaged_circuit_is_as_it_was_or_refused(form, what, place, byte):
    data, circuit = good(form)
    at = place % len(data)
    data = {
        "flip": data[:at] + bytes([data[at] ^ byte]) + data[at + 1 :],
        "cut": data[:at],
        "add": data + bytes([byte]),
    }[what]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"circuit.{form}"
        path.write_bytes(data)
        found = tried(Circuit.load, path)
        if is_refused(found):
            assert str(path) in str(found)
        else:
            same(found, circuit)


@hostile(
    10, 300, data=st.binary(max_size=80), form=st.sampled_from(["json", "graphml"])
)
def test_any_bytes_are_no_circuit(data, form):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"circuit.{form}"
        path.write_bytes(data)
        assert is_refused(tried(Circuit.load, path))


@hostile(
    20,
    500,
    shape=st.sampled_from([*SHAPES]),
    values=st.lists(st.floats(), min_size=1, max_size=4),
    n=st.one_of(st.integers(-2, 60), st.integers(), st.booleans()),
    signed=st.booleans(),
    prune=st.booleans(),
    choose=st.sampled_from([top_edges, greedy_edges]),
)
def test_any_number_of_edges_is_chosen_or_refused(
    shape, values, n, signed, prune, choose
):
    wires = SHAPES[shape]
    scores = made_scores(wires, dict(zip(wires.edges, values, strict=False)))
    found = tried(choose, scores, n, signed=signed, prune=prune)
    if not is_refused(found):
        assert found.n_edges <= n and np.isfinite(values[: len(wires.edges)]).all()
        if not prune and choose is top_edges:
            assert found.n_edges == n
