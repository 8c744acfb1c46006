"""Maps to walk through: what the page's script gets is what was measured."""

import base64
import json

import numpy as np
import pytest

from mechsink.report.maps import FINE_UP_TO, MOST, Choice, Maps, fits

NAMES = ("layer", "position", "effect")


def _maps(values: np.ndarray, **more) -> Maps:
    _, n_rows, n_columns = values.shape
    rows = tuple(map(str, range(n_rows)))
    columns = tuple(map(str, range(n_columns)))
    more = {"rows": rows, "columns": columns, "limits": (-1.0, 1.0), **more}
    return Maps(values, names=NAMES, **more)


def _read(maps: Maps) -> np.ndarray:
    """As the script reads them."""
    data = json.loads(maps.data())
    kind = "<u2" if data["bytes"] == 2 else "u1"
    stored = np.frombuffer(base64.b64decode(data["values"]), kind)
    top = 65534 if data["bytes"] == 2 else 254
    low, high = data["range"]
    values = np.where(stored > top, np.nan, low + stored / top * (high - low))
    return values.reshape(data["shape"])


def test_values_come_back_to_the_stored_digits():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 5, 7))
    values[1, 2, 3] = np.nan
    names = Choice("pair", ("a", "b", "c"))
    found = _read(_maps(values, choices=(names,)))
    step = (np.nanmax(values) - np.nanmin(values)) / 65534
    np.testing.assert_allclose(found, values, atol=0.51 * step, rtol=0)


def test_a_large_stack_takes_one_byte_a_value():
    values = np.linspace(-1, 1, FINE_UP_TO + 10).reshape(1, 10, -1)
    found = _read(_maps(values))
    np.testing.assert_allclose(found, values, atol=1.02 / 254, rtol=0)


@pytest.mark.parametrize("fill", [0.25, np.nan])
def test_a_map_of_one_value(fill):
    found = _read(_maps(np.full((1, 2, 2), fill)))
    np.testing.assert_array_equal(found, np.full((1, 2, 2), fill))


def test_zero_is_white_where_signs_matter():
    data = json.loads(_maps(np.zeros((1, 1, 1)), diverging=True).data())
    ramp = np.frombuffer(base64.b64decode(data["colours"]), "u1").reshape(256, 3)
    assert ramp[127:129].min() > 240
    assert ramp[0].argmax() == 2  # blue below zero
    assert ramp[255].argmax() == 0  # red above


def test_tokens_cannot_end_the_script():
    maps = _maps(np.zeros((1, 1, 2)), columns=("</script><b>", "\u202eevil<!--"))
    text = str(maps.data())
    assert not {"<", ">", "\u202e"} & set(text)
    assert json.loads(text)["columns"][0][0] == "</script><b>"


def test_labels_must_fit():
    with pytest.raises(ValueError, match="2 maps of 3 by 4 values, but labels"):
        _maps(np.zeros((2, 3, 4)))


def test_what_a_page_can_hold():
    assert fits(1, 2, 3)
    assert not fits(0, 2, 3)
    assert not fits(MOST, 2, 1)
