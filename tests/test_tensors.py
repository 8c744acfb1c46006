"""Tables as dense tensors: against the table cell by cell, and what is refused."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from mechsink.results import Result


def result(table: pd.DataFrame) -> Result:
    return Result(table, {})


GRID = pd.DataFrame(
    [
        {
            "prompt": p,
            "layer": layer,
            "pos": pos,
            "value": 10 * p + layer,
            "effect": pos,
        }
        for p in (1, 0)
        for layer in (2, 5)
        for pos in range(3)
        if (p, layer, pos) != (0, 5, 1)
    ]
).astype({"value": float, "effect": float})


def test_each_cell_is_its_row() -> None:
    found = result(GRID).to_torch("effect")
    assert found.axes == {"prompt": [0, 1], "layer": [2, 5], "pos": [0, 1, 2]}
    assert found.values.shape == (2, 2, 3)
    assert found.values.dtype == torch.float64
    for row in GRID.to_dict("records"):
        at = found.at(prompt=row["prompt"], layer=row["layer"], pos=row["pos"])
        assert at.item() == row["effect"]
    assert math.isnan(found.at(prompt=0, layer=5, pos=1).item())  # no such row
    assert found.at(layer=5).shape == (2, 3)


def test_the_order_of_axes_column_fill_and_type_are_the_callers() -> None:
    default = result(GRID).to_torch()
    assert default.at(prompt=1, layer=5, pos=0).item() == 15  # the column "value"
    other = result(GRID).to_torch(
        "value", ["pos", "layer", "prompt"], fill=-7, dtype=torch.float32
    )
    assert list(other.axes) == ["pos", "layer", "prompt"]
    assert other.values.dtype == torch.float32
    assert other.at(prompt=0, layer=5, pos=1).item() == -7
    filled = default.values.nan_to_num(-7).float()
    torch.testing.assert_close(other.values, filled.permute(2, 1, 0))


def test_texts_keep_their_order_and_missing_coordinates_come_last() -> None:
    table = pd.DataFrame(
        {
            "component": ["input", "head", "head", "mlp"],
            "layer": [np.nan, 1.0, 0.0, 0.0],
            "head": [np.nan, 0.0, 0.0, np.nan],
            "value": [1.0, 2.0, np.nan, 4.0],
        }
    )
    found = result(table).to_torch(fill=0)
    assert found.axes == {
        "component": ["input", "head", "mlp"],
        "layer": [0, 1, None],
        "head": [0, None],
    }
    assert found.at(component="input", layer=None, head=None).item() == 1.0
    assert math.isnan(
        found.at(component="head", layer=0, head=0).item()
    )  # measured NaN
    assert found.values.nansum().item() == 7.0


def test_what_stands_at_a_position_is_no_axis() -> None:
    table = pd.DataFrame(
        {"pos": [0, 1, 2], "token": ["the", "cat", "the"], "norm": [3.0, 1.0, 2.0]}
    )
    found = result(table).to_torch()
    assert found.axes == {"pos": [0, 1, 2]}
    assert found.values.tolist() == [3.0, 1.0, 2.0]
    edges = pd.DataFrame(
        {"source": ["a", "a"], "target": ["b", "c"], "score": [1.0, 2]}
    )
    assert list(result(edges).to_torch().axes) == ["source", "target"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"column": "efect"}, "column='efect' has no numbers"),
        ({"axes": ["layer", "pos"]}, "several rows are at .*Name more columns"),
        ({"axes": ["layer", "depth"]}, "axes=.*Allowed: one or more columns"),
        ({"axes": []}, "Allowed: one or more columns"),
        ({"axes": ["layer", "layer"]}, "each once"),
    ],
)
def test_what_is_no_grid_is_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        result(GRID).to_torch(**options)


def test_a_coordinate_that_is_not_there_is_refused() -> None:
    found = result(GRID).to_torch()
    with pytest.raises(ValueError, match="layer=3 is not on that axis"):
        found.at(layer=3)
    with pytest.raises(ValueError, match="no axis is called 'head'"):
        found.at(head=0)


def test_a_table_that_would_fill_the_memory_is_refused() -> None:
    n = 3000
    table = pd.DataFrame({name: range(n) for name in ("layer", "head", "pos")})
    with pytest.raises(ValueError, match="3000 x 3000 x 3000 cells for 3000 rows"):
        result(table.assign(value=0.5)).to_torch()
