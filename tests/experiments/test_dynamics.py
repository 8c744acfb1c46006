"""The study of sink dynamics: its slopes from made tables, and its quick form."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from mechsink.experiments.dynamics.paths import _moments
from mechsink.experiments.dynamics.study import SinkDynamics, sink_dynamics
from mechsink.experiments.study import as_claims


def made(**powers):
    """A study whose paths are exact: source to powers (alpha, beta, loss)."""
    time = np.geomspace(1, 1000, 40)
    parts = [
        pd.DataFrame(
            {
                "source": source,
                "seed": seed,
                "time": time,
                "alpha": seed + a * np.log(time),
                "beta": 2 * time**b,
                "loss": (1 + seed) * time**c,
            }
        )
        for source, (a, b, c) in powers.items()
        for seed in (0, 1)
    ]
    return SinkDynamics(pd.concat(parts, ignore_index=True), {}, as_claims([]))


def test_slopes_and_tables_of_exact_powers():
    study = made(reduced=(0.5, -0.5, -1.0), whole=(0.2, 0.1, -0.3))
    found = study.slopes()
    assert len(found) == 4
    rows = found[found["source"] == "whole"]
    np.testing.assert_allclose(rows[["alpha", "beta", "loss"]], [[0.2, 0.1, -0.3]] * 2)
    means = study.tables()["Slopes over the last octave, 95 % Student-t intervals"]
    assert means["source"].tolist() == ["theory", "reduced model", "toy, all trains"]


def test_figure_has_three_panels_and_every_seed():
    study = made(reduced=(0.5, -0.5, -1.0), planted=(0.5, -0.5, -1.0))
    (figure,) = study.figures().values()
    assert len(figure.axes) == 3
    assert [len(ax.lines) for ax in figure.axes] == [5, 5, 5]  # 4 paths and theory
    plt.close(figure)


def test_saved_and_loaded(tmp_path):
    study = made(reduced=(0.5, -0.5, -1.0))
    study.save(tmp_path / "s")
    pd.testing.assert_frame_equal(SinkDynamics.load(tmp_path / "s").table, study.table)


def test_enough_moments_lie_in_the_last_octave():
    for steps in (300, 600, 4000):
        at = np.array(_moments(steps))
        assert at[-1] == steps and (at >= steps / 2).sum() >= 7


def test_one_seed_is_refused():
    with pytest.raises(ValueError, match="at least two"):
        sink_dynamics(seeds=[0])
