"""Does the 95 % interval of faithfulness contain the truth as often as it says?

The truth is a ratio of expectations over a whole population of 216 prompts. Samples
are drawn from it with replacement; the metric of each prompt is measured once, and
every interval comes from the function that the public call uses.
"""

import numpy as np
import pytest

from mechsink.attribution.edges import eap_ig
from mechsink.circuits.evaluation import CircuitRuns
from mechsink.circuits.faithfulness import faithfulness
from mechsink.circuits.ratios import interval, ratio_of_means, resampled_ratios
from mechsink.circuits.selection import top_edges
from mechsink.metrics import logit_diff
from mechsink.models.toy import ToyModel
from tests.circuits.small import pairs_of
from toy_tasks.planted import noisy_gate

REPEATS = 500
SIZES = (100, 200)


def found(circuit, ablated, full, rows, seed):
    low, high = interval(
        resampled_ratios(
            circuit[None, rows], ablated[rows], full[rows],
            resamples=1000, seed=seed, caller="test",
        )
    )  # fmt: skip
    return low[0], high[0]


def population(gate, circuit) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    case = gate.population.double()
    runs = CircuitRuns.of("test", ToyModel(case.model), pairs_of(case), logit_diff)
    full, ablated = runs.ends()
    return runs.values(runs.mask(circuit)[None])[0], ablated, full


def chosen_elsewhere(gate):
    """A circuit of the best edges by scores of other prompts than those tested."""
    case = gate.sample(50, seed=10**6).double()
    scores = eap_ig(ToyModel(case.model), pairs_of(case), logit_diff)
    return top_edges(scores, 4).edges


def rows_of(repeat: int, n: int) -> np.ndarray:
    return np.random.default_rng([11, repeat]).integers(216, size=n)


def test_the_public_call_gives_these_intervals():
    gate = noisy_gate()
    values = population(gate, gate.circuit)
    case = gate.population.double()
    whole = pairs_of(case)
    rows = rows_of(0, 100)
    pairs = type(whole)(*(x[rows] for x in (
        whole.clean, whole.corrupted, whole.answers, whole.wrong)))  # fmt: skip
    got = faithfulness(ToyModel(case.model), gate.circuit, pairs, logit_diff, seed=5)
    low, high = found(*values, rows, seed=5)
    assert (got.low, got.high) == pytest.approx((low, high), abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("which", ["planted", "chosen elsewhere"])
def test_intervals_cover(which, n):
    """92 to 98 % of 500; a binomial of .95 has a standard error of .0097."""
    gate = noisy_gate()
    circuit = gate.circuit if which == "planted" else chosen_elsewhere(gate)
    values = population(gate, circuit)
    truth = float(ratio_of_means(values[0][None], *values[1:])[0])
    if which == "planted":  # arithmetic that does not use the model
        assert truth == pytest.approx(gate.faithfulness, abs=1e-9)
    assert 0.05 < truth < 0.95
    hits, widths = [], []
    for repeat in range(REPEATS):
        low, high = found(*values, rows_of(repeat, n), seed=repeat)
        hits.append(low <= truth <= high)
        widths.append(high - low)
    share = np.mean(hits)
    print(f"{which}, {n} prompts: truth {truth:.4f}, covered {share:.3f} (standard "
          f"error {np.sqrt(share * (1 - share) / REPEATS):.3f}), mean width "
          f"{np.mean(widths):.3f}")  # fmt: skip
    assert 0.92 <= share <= 0.98
