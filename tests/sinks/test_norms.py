"""Value norms, residual norms and massive activations, worked by hand."""

import math

import numpy as np
import pytest
import torch

from mechsink.sinks.massive.activations import massive_activations
from mechsink.sinks.residuals import residual_norms
from mechsink.sinks.values import value_norm, value_norms
from tests.sinks.canned import CannedModel, tokens


def drain_model():
    """Two query heads on one key-value head; values (0, 1), (3, 4), (0, 2)."""
    values = torch.tensor([[0.0, 1.0], [3.0, 4.0], [0.0, 2.0]])
    w_out = torch.zeros(1, 2, 2, 3)
    w_out[0, 0] = torch.tensor([[2.0, 0, 0], [0, 0, 2]])  # doubles every value
    w_out[0, 1] = torch.tensor([[1.0, 0, 0], [0, 0, 0]])  # keeps its first part
    return CannedModel(
        scores=lambda n: torch.zeros(1, 2, n, n),
        values=lambda n: values[None, None, :n],
        w_out=w_out,
    )


def test_value_norms_by_hand_with_a_shared_value_head():
    table = value_norms(drain_model(), tokens(3), positions=(0, 1)).table
    by_head = table.set_index(["position", "head"])
    assert by_head["norm"].tolist() == pytest.approx([2, 0, 10, 3])
    assert by_head["others"].tolist() == pytest.approx([7, 1.5, 3, 0])
    assert by_head["ratio"].tolist()[:3] == pytest.approx([2 / 7, 0, 10 / 3])


def test_value_norms_are_those_of_the_product():
    torch.manual_seed(0)
    v = torch.randn(2, 2, 5, 3, dtype=torch.float64)
    w_o = torch.randn(4, 3, 7, dtype=torch.float64)
    want = torch.einsum("bhpd,hdm->bhpm", v[:, [0, 0, 1, 1]], w_o).norm(dim=-1)
    torch.testing.assert_close(value_norm(v, w_o), want)


def test_one_token_has_no_others():
    row = value_norms(drain_model(), tokens(1)).table.iloc[0]
    assert row["norm"] == pytest.approx(2)
    assert math.isnan(row["others"]) and math.isnan(row["ratio"])


def peak_model():
    """Layer 0: all norms 1 to 4; layer 1: position 0 has 100."""
    stream = torch.zeros(2, 4, 2)
    stream[0, :, 0] = torch.tensor([1.0, 2, 3, 4])
    stream[1, :, 1] = torch.tensor([-100.0, 1, 2, 6])
    return CannedModel(stream=lambda n: stream[:, :n])


def test_residual_norms_by_hand():
    norms = residual_norms(peak_model(), [tokens(4), tokens(2)])
    assert len(norms.table) == 2 * 4 + 2 * 2
    assert norms.table["norm"].tolist()[4:8] == [100, 1, 2, 6]
    summary = norms.summary(0)
    assert summary["layer"].tolist() == [0, 1]
    assert summary["norm"].tolist() == pytest.approx([1, 100])
    # prompt 0: mean of 2 3 4 and of 1 2 6; prompt 1: 2 and 1
    assert summary["others"].tolist() == pytest.approx([2.5, 2])
    assert summary["ratio"].tolist() == pytest.approx(
        [(1 / 3 + 1 / 2) / 2, (100 / 3 + 100) / 2]
    )
    assert summary["median"].tolist() == pytest.approx([2.5, 1.5])
    assert norms.summary(3)["norm"].tolist() == pytest.approx([4, 6])
    with pytest.raises(
        ValueError, match=r"position=4 is in no prompt. Allowed: 0 to 3"
    ):
        norms.summary(4)


def massive_model():
    """d_model 4, 3 tokens: median |h| .1; 150 and -99 at position 0, 100 at 2."""
    stream = torch.full((2, 3, 4), 0.1)
    stream[1, 0, 2], stream[1, 0, 3], stream[1, 2, 0] = 150.0, -99.0, -100.5
    return CannedModel(stream=lambda n: stream)


def test_massive_activations_by_hand():
    found = massive_activations(massive_model(), tokens(3))
    rows = found.table[["layer", "pos", "dim"]].to_numpy().tolist()
    assert rows == [[1, 0, 2], [1, 2, 0]]
    assert found.table["value"].tolist() == pytest.approx([150, -100.5])
    assert found.table["ratio"].tolist() == pytest.approx([1500, 1005])
    top = found.layers[found.layers["layer"] == 1]
    assert top["rank"].tolist() == [1, 2, 3]
    assert top["value"].tolist() == pytest.approx([150, -100.5, -99])
    assert top["dim"].tolist() == [2, 0, 3]
    np.testing.assert_allclose(found.layers["median"], 0.1, rtol=1e-6)


def test_both_thresholds_must_be_passed():
    model = massive_model()
    assert len(massive_activations(model, tokens(3), threshold=90.0).table) == 2
    assert (
        len(massive_activations(model, tokens(3), threshold=90.0, times=900.0).table)
        == 3
    )
    assert len(massive_activations(model, tokens(3), times=1200.0).table) == 1
    assert massive_activations(model, tokens(3), threshold=150.0).table.empty
    with pytest.raises(ValueError, match="Allowed: zero or more"):
        massive_activations(model, tokens(3), threshold=-1.0)


def test_results_save_and_plot(tmp_path):
    for result in (
        value_norms(drain_model(), tokens(3)),
        residual_norms(peak_model(), tokens(4)),
        massive_activations(massive_model(), tokens(3)),
    ):
        folder = result.save(tmp_path / type(result).__name__)
        assert len(type(result).load(folder).table) == len(result.table)
        assert result.plot().get_xlabel() == "layer"
