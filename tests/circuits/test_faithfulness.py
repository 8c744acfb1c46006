"""Faithfulness, CPR and CMD against hand calculation, brute force and pinned values."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from mechsink.attribution.edge_scores import EdgeScores
from mechsink.attribution.edges import eap
from mechsink.attribution.exact import exact_edges
from mechsink.attribution.wires import Wires
from mechsink.circuits.faithfulness import Faithfulness, faithfulness
from mechsink.circuits.faithfulness_curve import (
    FRACTIONS,
    FaithfulnessCurve,
    compare_curves,
    faithfulness_curve,
)
from mechsink.circuits.ratios import areas, interval, resampled_ratios
from mechsink.circuits.selection import greedy_edges, top_edges
from mechsink.metrics import logit_diff, sink_attention
from mechsink.models.toy import ToyModel
from mechsink.prompts import PromptPairs
from mechsink.run import Run
from mechsink.sites import Site
from tests.circuits.made import random_scores
from tests.circuits.small import (
    logit_diffs,
    pairs_of,
    run_by_hand,
    telling_pairs,
    toy,
    writes_of,
)
from toy_tasks.planted import noisy_gate

MODEL = toy(n_kv_heads=2)
PAIRS = telling_pairs(MODEL, 12)


@pytest.fixture(scope="module")
def model():
    return MODEL


@pytest.fixture(scope="module")
def scores(model):
    return exact_edges(model, telling_pairs(model, 6, seed=4), logit_diff)


class Constant:
    """1 whatever the logits are."""

    reads: frozenset[Site] = frozenset()
    logits_read = "last"

    def __call__(self, run: Run, prompts: object) -> Tensor:
        return torch.ones(len(run.logits))


def by_hand(model, circuit) -> tuple[np.ndarray, ...]:
    """Metric of circuit, no circuit and model, one a prompt."""
    instead = writes_of(model, PAIRS.corrupted)
    edges = Wires.of(model.shape).edges
    return tuple(
        logit_diffs(run_by_hand(model, PAIRS.clean, some, instead), PAIRS)
        for some in (circuit, [], edges)
    )


def mib_areas(f, log=False) -> tuple[float, float]:
    """The loop of MIB's evaluation, written out."""
    under = off = 0.0
    for i in range(len(FRACTIONS) - 1):
        a, b = FRACTIONS[i], FRACTIONS[i + 1]
        if log:
            a, b = np.log(a), np.log(b)
        under += (b - a) * (f[i] + f[i + 1]) / 2
        off += (b - a) * (abs(1 - f[i]) + abs(1 - f[i + 1])) / 2
    return under, off


def test_areas_worked_by_hand():
    # 0.1 to 0.5: (1.5 + 0.5) / 2 * 0.4 = 0.4; 0.5 to 1: (0.5 + 1) / 2 * 0.5 = 0.375.
    # |1 - f| is 0.5, 0.5, 0: 0.2 + 0.125.
    cpr, cmd = areas(np.array([1.5, 0.5, 1.0]), [0.1, 0.5, 1.0])
    assert (float(cpr), float(cmd)) == pytest.approx((0.775, 0.325))
    perfect, empty = np.ones(10), np.r_[np.zeros(9), 1.0]
    assert areas(perfect, FRACTIONS) == pytest.approx((0.999, 0))
    assert areas(empty, FRACTIONS) == pytest.approx((0.25, 0.749))
    f = np.random.default_rng(0).normal(0.5, 1, 10)
    for log in (False, True):
        assert areas(f, FRACTIONS, log) == pytest.approx(mib_areas(f, log), rel=1e-12)
    assert areas(perfect, FRACTIONS, log=True) == pytest.approx((np.log(1000), 0))


def test_the_interval_resamples_both_means_together():
    """Against numpy's own resampling, and where the answer is exactly known."""
    random = np.random.default_rng(1)
    n = 150
    full, ablated = random.normal(3, 1, n), random.normal(0, 1, n)
    circuit = 0.6 * full + 0.4 * ablated + random.normal(0, 0.3, n)
    options = {"resamples": 20_000, "seed": 0, "caller": "test"}
    low, high = interval(resampled_ratios(circuit[None], ablated, full, **options))
    rows = random.integers(n, size=(20_000, n))
    c, e, m = (x[rows].mean(1) for x in (circuit, ablated, full))
    want = np.percentile((c - e) / (m - e), [2.5, 97.5])
    assert [low[0], high[0]] == pytest.approx(want, abs=0.003)
    # A fixed share of every prompt's effect has no uncertainty, whatever the prompts.
    share = 0.3 * full + 0.7 * ablated
    low, high = interval(resampled_ratios(share[None], ablated, full, **options))
    assert [low[0], high[0]] == pytest.approx([0.3, 0.3], abs=1e-12)


@pytest.mark.matrix
def test_the_curve_against_runs_by_hand(model, scores):
    for selection, choose in (("top", top_edges), ("greedy", greedy_edges)):
        for signed in (False, True):
            curve = faithfulness_curve(
                model, scores, PAIRS, logit_diff, selection=selection, signed=signed
            )
            n = len(scores.table)
            assert curve.table["edges"].tolist() == [int(p * n) for p in FRACTIONS]
            for row, p in zip(curve.table.itertuples(), FRACTIONS, strict=True):
                circuit = choose(scores, int(p * n), signed=signed)
                c, e, m = by_hand(model, circuit.edges)
                want = (c.mean() - e.mean()) / (m.mean() - e.mean())
                assert row.kept == circuit.n_edges
                assert row.faithfulness == pytest.approx(want, abs=1e-9)
                assert row.low - 1e-9 <= row.faithfulness <= row.high + 1e-9
            f = curve.table["faithfulness"].to_numpy()
            assert (curve.cpr, curve.cmd) == pytest.approx(mib_areas(f), abs=1e-12)
            assert curve.cpr_low <= curve.cpr <= curve.cpr_high
            assert curve.cmd_low <= curve.cmd <= curve.cmd_high
            assert f[-1] == pytest.approx(1, abs=1e-12)
            assert np.ptp(f) > 0.5


@pytest.mark.matrix
def test_it_is_the_ratio_of_means_not_the_mean_of_ratios(model, scores):
    circuit = top_edges(scores, 40)
    c, e, m = by_hand(model, circuit.edges)
    found = faithfulness(model, circuit, PAIRS, logit_diff)
    ratio = (c.mean() - e.mean()) / (m.mean() - e.mean())
    assert found.value == pytest.approx(ratio, rel=1e-9)
    assert abs(found.value - ((c - e) / (m - e)).mean()) > 0.01
    assert found.low < found.value < found.high
    np.testing.assert_allclose(found.table["circuit"], c, rtol=1e-9)
    np.testing.assert_allclose(found.table["ablated"], e, rtol=1e-9)
    np.testing.assert_allclose(found.table["full"], m, rtol=1e-9)


@pytest.mark.matrix
def test_the_noisy_gate_has_its_expected_faithfulness():
    """All 216 pairs, each once: the ratio of expectations, computed without a model."""
    for arms in ((0,), (0, 1), (1, 2), (0, 1, 2), ()):
        gate = noisy_gate(arms=arms)
        case = gate.population.double()
        found = faithfulness(
            ToyModel(case.model), gate.circuit, pairs_of(case), logit_diff
        )
        assert found.value == pytest.approx(gate.faithfulness, abs=1e-9)
        table = found.table
        assert table["full"].mean() == pytest.approx(gate.full, abs=1e-9)
        assert table["ablated"].mean() == pytest.approx(gate.ablated, abs=1e-9)


GOLDEN = {  # selection, signed, log: CPR, CMD; changed by no refactoring
    ("top", False, False): (0.559320005, 0.439679995),
    ("top", True, False): (0.693745226, 0.305254774),
    ("greedy", False, False): (0.560145371, 0.438854629),
    ("top", False, True): (1.20534561, 5.702409669),
}


@pytest.mark.parametrize(("selection", "signed", "log"), GOLDEN)
@pytest.mark.first_case
def test_pinned_values(model, scores, selection, signed, log):
    curve = faithfulness_curve(
        model, scores, PAIRS, logit_diff, selection=selection, signed=signed, log=log
    )
    got = (curve.cpr, curve.cmd)
    assert got == pytest.approx(GOLDEN[selection, signed, log], abs=1e-6)


def test_every_number_says_what_it_depends_on(model, scores, tmp_path):
    curve = faithfulness_curve(
        model, scores, PAIRS, logit_diff, signed=True, ablation="mean",
        reference=PAIRS.corrupted, fractions=(0.1, 0.5, 1.0), log=True,
    )  # fmt: skip
    said = curve.describe()
    for word in ("exact_edges", "logit_diff", "selection top", "signed",
                 "ablation mean",
                 f"3 points from 0.1 to 1 of {curve.n_graph} edges", "log scale",
                 "12 prompts"):  # fmt: skip
        assert word in said
    settings = curve.meta["settings"]
    assert settings["fractions"] == [0.1, 0.5, 1.0]
    assert settings["mean_over"] == "prompts"
    again = FaithfulnessCurve.load(curve.save(tmp_path / "curve"))
    pd.testing.assert_frame_equal(again.table, curve.table)
    pd.testing.assert_frame_equal(again.prompts, curve.prompts)
    assert again.describe() == said
    one = faithfulness(model, [("m1", "logits")], PAIRS, logit_diff, ablation="zero")
    assert "1 of" in one.describe()
    assert "ablation zero, 12 prompts" in one.describe()
    assert Faithfulness.load(one.save(tmp_path / "one")).value == one.value


def test_the_same_seed_gives_the_same_interval(model, scores):
    runs = [
        faithfulness(model, top_edges(scores, 30), PAIRS, logit_diff, seed=seed)
        for seed in (0, 0, 1)
    ]
    ends = [(run.low, run.high) for run in runs]
    assert ends[0] == ends[1] != ends[2]


@pytest.mark.matrix
def test_plots(model, scores):
    curve = faithfulness_curve(model, scores, PAIRS, logit_diff)
    ax = curve.plot()
    assert ax.get_legend() is None
    line = ax.get_lines()[-1]
    np.testing.assert_allclose(line.get_ydata(), curve.table["faithfulness"])
    other = faithfulness_curve(
        model, eap(model, PAIRS, logit_diff), PAIRS, logit_diff, selection="greedy"
    )
    both = compare_curves({"exact": curve, "eap": other})
    legend = both.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["exact", "eap"]
    zero = faithfulness_curve(model, scores, PAIRS, logit_diff, ablation="zero")
    with pytest.raises(ValueError, match="all of one metric and ablation"):
        compare_curves({"a": curve, "b": zero})


def test_weak_effects_have_no_interval(model):
    """Where resamples change the denominator's sign, no bound is given."""
    random = np.random.default_rng(0)
    full, ablated = random.normal(0.05, 1, 30), random.normal(0, 1, 30)
    with pytest.warns(UserWarning, match=r"other sign\. Give more prompts"):
        draws = resampled_ratios(
            full[None], ablated, full, resamples=1000, seed=0, caller="test"
        )
    low, high = interval(draws)
    assert np.isnan(low).all()
    assert np.isnan(high).all()
    one = PromptPairs(
        PAIRS.clean[:1], PAIRS.corrupted[:1], PAIRS.answers[:1], PAIRS.wrong[:1]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = faithfulness(model, [], one, logit_diff)
    assert (found.value, np.isnan(found.low)) == (0, True)


def test_bad_input(model, scores):
    def curve(*, table=scores, pairs=PAIRS, metric=logit_diff, **options):
        return faithfulness_curve(model, table, pairs, metric, **options)

    for fractions in ((0.0, 1.0), (0.5, 1.5), (0.5, 0.2), (0.5, 0.5), (1.0,), ()):
        with pytest.raises(ValueError, match="ascending, above 0 and up to 1"):
            curve(fractions=fractions)
    with pytest.raises(ValueError, match=r"resamples=10\. Allowed: 40"):
        curve(resamples=10)
    with pytest.raises(ValueError, match="table of scores is of another graph"):
        curve(table=random_scores(Wires(2, 4, 4), 0))
    some = EdgeScores(**{**vars(scores), "table": scores.table.head(7)})
    with pytest.raises(ValueError, match=r"7 scores for \d+ edges.*ms.faithfulness"):
        curve(table=some)
    with pytest.raises(
        ValueError, match=r"reads \['logits'\].*Score the edges for this"
    ):
        curve(metric=sink_attention(layer=1, head=0))
    same = PromptPairs(PAIRS.clean, PAIRS.clean, PAIRS.answers, PAIRS.wrong)
    with pytest.raises(ValueError, match="identical in all 12 pairs"):
        curve(pairs=same)
    for call in (
        lambda: faithfulness(model, [], PAIRS, Constant()),
        lambda: curve(metric=Constant()),
    ):
        with pytest.raises(ValueError, match=r"it is constant.*Check answers"):
            call()


def test_effects_that_cancel_are_refused(model):
    """Every pair with its mirror: the means agree though single prompts do not."""
    both = [
        torch.cat([PAIRS.clean, PAIRS.corrupted]),
        torch.cat([PAIRS.corrupted, PAIRS.clean]),
    ]
    answers, wrong = (torch.cat([x, x]) for x in (PAIRS.answers, PAIRS.wrong))
    pairs = PromptPairs(*both, answers, wrong)
    with pytest.raises(ValueError, match=r"divides by zero.*orient the pairs"):
        faithfulness(model, [], pairs, logit_diff)
