"""The in-context regression experiment: its tables, claims and figures."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mechsink.experiments.regression.experiment import (
    LENGTHS,
    SETTINGS,
    LinearRegressionStudy,
    linear_regression,
)
from mechsink.experiments.study import ClaimFailed


@pytest.fixture(scope="module")
def untrained() -> LinearRegressionStudy:
    """Two updates: weights are random."""
    return linear_regression(seeds=(3, 7), steps=2, n_test=256, progress=False)


def test_every_setting_is_measured(untrained: LinearRegressionStudy) -> None:
    table, patterns, weights = untrained.table, untrained.patterns, untrained.weights
    for frame in (table, patterns, weights):
        assert set(frame["setting"]) == set(SETTINGS)
    heads = table[table["predictor"] == "heads"]
    count = heads.groupby("setting")["seed"].nunique()
    assert count["four heads"] == 2
    assert count["two heads"] == 4  # twice as many
    long = heads[heads["setting"] == "four heads"]["n_examples"]
    assert sorted(set(long)) == list(LENGTHS)
    assert table["excess"].notna().all()
    # Weights began at random, and have not moved far.
    near = patterns[patterns["measure"] == "kq_diagonal"]
    assert (near["value"] - near["at_init"]).abs().max() < 0.1
    assert len(weights) == sum(
        (1 + given.more_seeds)
        * 2
        * given.n_heads
        * given.task.d_in
        * (given.task.d_in + given.task.n_tasks)
        for given in SETTINGS.values()
    )


def test_risks_are_exact_where_a_formula_is_known(
    untrained: LinearRegressionStudy,
) -> None:
    """Zero's risk is 1.1 at any length; a Bayes predictor's distance from itself 0."""
    table = untrained.table
    zero = table[(table["predictor"] == "zero") & (table["setting"] == "four heads")]
    assert (abs(zero["risk"] - 1.1) < 4 * zero["risk_se"]).all()
    bayes = table[table["predictor"] == "Bayes (ridge)"]
    assert (bayes[["excess", "above_bayes"]] == 0).all(axis=None)
    # Linear heads that divide by the prompt's length are the same at the trained one.
    linear = table[(table["setting"] == "linear attention") & table["seed"].notna()]
    by = linear.pivot(
        index=["n_examples", "seed"], columns="predictor", values="risk"
    ).reset_index()
    same = by["heads"] == by["heads, mean"]
    assert (same == (by["n_examples"] == 40)).all()


def test_random_heads_hold_no_claim_about_patterns(
    untrained: LinearRegressionStudy,
) -> None:
    with pytest.raises(ClaimFailed, match="share of KQ on the diagonal"):
        untrained.check()
    claims = untrained.claims.set_index("claim")["holds"]
    failed = claims[[name.startswith("four heads") for name in claims.index]]
    assert failed.sum() <= 2  # only bounds that weights of any kind may keep


def test_saved_and_drawn(untrained: LinearRegressionStudy, tmp_path: Path) -> None:
    again = LinearRegressionStudy.load(untrained.save(tmp_path / "study"))
    for name in ("table", "patterns", "weights", "claims"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(untrained, name))
    figures = again.figures()
    assert set(figures) == {"heads", "lengths"}
    heads = figures["heads"].axes[:3]
    weights = untrained.weights.query(
        "setting == 'two heads' and seed == 3 and matrix == 'KQ' and head == 1 "
        "and column < 5"
    )
    drawn = np.asarray(heads[1].images[0].get_array())
    assert drawn.ravel().tolist() == pytest.approx(weights["value"].tolist())
    assert set(again.tables()) == {
        "Risk at the trained length",
        "Patterns, mean over seeds",
    }


def test_one_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        linear_regression(seeds=(1,))
    with pytest.raises(ValueError, match="all different"):
        linear_regression(seeds=(1, 1))
