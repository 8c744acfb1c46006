"""Sign flips against enumeration, false discoveries and intervals against peers."""

import itertools

import numpy as np
import pytest
import scipy.stats

from mechsink.attribution.inference import EXACT_UP_TO, bootstrap_counts, inference


def enumerated(values: np.ndarray) -> float:
    """Two-sided p-value over all sign patterns, one by one."""
    sums = [
        abs(float(np.dot(signs, values)))
        for signs in itertools.product((-1, 1), repeat=len(values))
    ]
    reach = abs(float(values.sum()))
    return float(np.mean([x >= reach * (1 - 1e-9) for x in sums]))


@pytest.mark.parametrize("n", [2, 3, 7, 10, 12])
def test_few_prompts_are_tested_exactly(n):
    values = np.random.default_rng(n).normal(0.5, 1, (n, 6))
    values[:, 5] = np.abs(values[:, 5])  # one sign: the least p-value there is
    found = inference(values)
    want = [enumerated(column) for column in values.T]
    np.testing.assert_allclose(found["p_value"], want, atol=1e-12)
    assert found["p_value"][5] == 2 / 2**n
    np.testing.assert_allclose(found["score"], values.mean(0), rtol=1e-12)


def test_ties_count_as_exceeding():
    """By hand: 1, 1, 1, -1 sums to 2, as do 8 of 16 patterns; |4| twice more: 10."""
    values = np.array([[1.0], [1.0], [1.0], [-1.0]])
    assert inference(values)["p_value"][0] == 10 / 16
    assert inference(values * 0.1)["p_value"][0] == 10 / 16  # 0.1 is no binary number
    zeros = inference(np.zeros((6, 2)))
    assert zeros["p_value"].tolist() == [1, 1]
    assert zeros["q_value"].tolist() == [1, 1]


def test_more_prompts_are_near_the_exact_value():
    """14 prompts, 16,384 patterns: within four standard errors of the draw."""
    assert EXACT_UP_TO == 12
    random = np.random.default_rng(0)
    values = random.normal(0, 1, (14, 8)) + np.linspace(0, 1.2, 8)
    found = inference(values, seed=3)["p_value"].to_numpy()
    want = np.array([enumerated(column) for column in values.T])
    n = np.where(found < 0.02, 20_000, 1_000)
    error = np.sqrt(want * (1 - want) / n) + 2 / n
    assert (np.abs(found - want) < 4 * error).all()
    assert want.min() < 0.005  # where more flips are drawn
    assert want.max() > 0.3


def test_the_t_test_agrees_where_it_should():
    values = np.random.default_rng(5).normal(0.2, 1, (200, 5))
    found = inference(values)
    peer = scipy.stats.ttest_1samp(values, 0)
    np.testing.assert_allclose(found["p_value"], peer.pvalue, atol=0.04)
    half = (found["high"] - found["low"]).to_numpy() / 2
    normal = 1.96 * values.std(0, ddof=1) / np.sqrt(200)
    np.testing.assert_allclose(half, normal, rtol=0.1)


def test_false_discoveries_by_hand():
    """Benjamini and Hochberg 1995: p sorted times m / rank, then made to rise."""
    n = 12
    values = np.random.default_rng(2).normal(0.4, 1, (n, 9))
    found = inference(values)
    p = found["p_value"].to_numpy()
    order = np.argsort(p)
    raw = p[order] * len(p) / np.arange(1, len(p) + 1)
    q = np.empty_like(p)
    q[order] = np.minimum.accumulate(raw[::-1])[::-1].clip(max=1)
    np.testing.assert_allclose(found["q_value"], q, rtol=1e-12)
    # Worked: .01, .02, .04, .5 give .04, .04, .0533, .5.
    peer = scipy.stats.false_discovery_control([0.01, 0.02, 0.04, 0.5])
    np.testing.assert_allclose(peer, [0.04, 0.04, 0.16 / 3, 0.5])


def test_the_interval_is_a_percentile_bootstrap():
    """The same draws by numpy; then numpy's own draws."""
    values = np.random.default_rng(7).gamma(2, 1, (40, 5))
    found = inference(values, seed=11)
    counts = bootstrap_counts(40, 1000, 11).numpy()
    assert (counts.sum(1) == 40).all()
    means = np.sort(counts @ values / 40, axis=0)
    np.testing.assert_allclose(found["low"], means[24], rtol=1e-5)
    np.testing.assert_allclose(found["high"], means[975], rtol=1e-5)
    rows = np.random.default_rng(8).integers(40, size=(20_000, 40))
    peer = np.percentile(values[rows].mean(1), [2.5, 97.5], axis=0)
    spread = values.std(0) / np.sqrt(40)
    np.testing.assert_allclose(found["low"], peer[0], atol=0.15 * spread.max())
    np.testing.assert_allclose(found["high"], peer[1], atol=0.15 * spread.max())
    skew = found["high"] - found["score"], found["score"] - found["low"]
    assert (skew[0] + skew[1] > 0).all()


def test_dependent_columns_and_chunks_change_nothing(monkeypatch):
    """Equal columns get equal numbers, whatever stands beside them or fits at once."""
    import mechsink.attribution.inference as module

    values = np.random.default_rng(1).normal(0.3, 1, (20, 6))
    values[:, 4], values[:, 5] = values[:, 0], -3 * values[:, 0]
    want = inference(values, seed=2)
    same = want.drop(columns="q_value")
    assert same.loc[0].tolist() == same.loc[4].tolist()
    assert same["p_value"][5] == same["p_value"][0]
    assert same["low"][5] == pytest.approx(-3 * same["high"][0], rel=1e-5)
    monkeypatch.setattr(module, "_CELLS", 2_500)
    got = inference(values, seed=2)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_one_prompt_has_no_interval():
    found = inference(np.array([[2.0, -1.0]]))
    assert found["score"].tolist() == [2, -1]
    assert found.drop(columns="score").isna().all().all()
