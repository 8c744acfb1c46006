"""p-values under a true null: which token is the answer is decided by a coin.

A coin for each prompt exchanges answer and wrong answer; the logit difference, and so
every edge's score on this prompt, changes its sign. Sign flips then have exactly the
distribution that the test assumes, however edges depend on one another.
"""

import numpy as np
import pytest
import torch

from mechsink.attribution.edges import eap
from mechsink.attribution.inference import inference
from mechsink.metrics import logit_diff
from mechsink.models.toy import ToyModel
from mechsink.prompts import PromptPairs
from toy_tasks import ToyConfig, ToyTransformer

ALPHA = 0.05
N_MODELS, N_REPEATS = 50, 20  # 1,000 cases
SIZES = (12, 13, 16, 20)  # exact up to 12: there p < .05 has probability 204 / 4096


def made(seed: int, n: int) -> tuple[ToyModel, PromptPairs]:
    """A random toy, and pairs that differ at every position."""
    model = ToyTransformer(
        ToyConfig(d_vocab=30, n_layers=2, n_heads=2, d_model=12, d_head=4, d_mlp=16,
                  n_kv_heads=1 + seed % 2), seed,
    ).double()  # fmt: skip
    drawn = torch.Generator().manual_seed(seed)
    clean = torch.randint(0, 30, (n, 5), generator=drawn)
    corrupted = (clean + torch.randint(1, 30, (n, 5), generator=drawn)) % 30
    answers = torch.randint(0, 15, (n,), generator=drawn)
    return ToyModel(model), PromptPairs(clean, corrupted, answers, answers + 15)


def swapped(pairs: PromptPairs, coins: np.ndarray) -> PromptPairs:
    flip = torch.from_numpy(coins)
    return PromptPairs(
        pairs.clean,
        pairs.corrupted,
        torch.where(flip, pairs.wrong, pairs.answers),
        torch.where(flip, pairs.answers, pairs.wrong),
    )


def by_prompt(model: ToyModel, pairs: PromptPairs) -> np.ndarray:
    """Scores of every edge on every prompt, each asked alone."""
    rows = []
    for i in range(len(pairs)):
        one = PromptPairs(*(x[i : i + 1] for x in (
            pairs.clean, pairs.corrupted, pairs.answers, pairs.wrong)))  # fmt: skip
        rows.append(eap(model, one, logit_diff).table["score"].to_numpy())
    return np.stack(rows)


def coins_of(case: int, n: int) -> np.ndarray:
    return np.random.default_rng([7, case]).integers(2, size=n).astype(bool)


@pytest.mark.first_case
@pytest.mark.parametrize("n", [12, 16])
@pytest.mark.matrix
def test_swapping_answers_flips_signs(n):
    """The public call on truly exchanged answers is the test on flipped scores."""
    model, pairs = made(3, n)
    scores = by_prompt(model, pairs)
    for case in range(2):
        coins = coins_of(case, n)
        got = eap(model, swapped(pairs, coins), logit_diff, seed=case).table
        want = inference(np.where(coins, -1, 1)[:, None] * scores, case)
        columns = ["score", "low", "high", "p_value", "q_value"]
        np.testing.assert_allclose(got[columns], want[columns], rtol=1e-5, atol=1e-9)


@pytest.mark.slow
def test_p_values_are_uniform_and_discoveries_are_rare(record_property):
    """The pooled share of p < .05, and cases with any q < .05; see docs/."""
    shares, any_found = [], []
    for number in range(N_MODELS):
        n = SIZES[number % len(SIZES)]
        model, pairs = made(number, n)
        scores = by_prompt(model, pairs)
        # An edge that carries nothing on every prompt has p = 1 and is no test.
        live = scores[:, (np.abs(scores) > 1e-12).all(0)]
        assert live.shape[1] > 0.5 * scores.shape[1]
        for repeat in range(N_REPEATS):
            case = number * N_REPEATS + repeat
            signs = np.where(coins_of(case, n), -1, 1)[:, None]
            shares.append((inference(signs * live, case)["p_value"] < ALPHA).mean())
            whole = inference(signs * scores, case)  # all edges, as a user has them
            any_found.append((whole["q_value"] < ALPHA).any())
    cases = len(shares)
    assert cases == 1000
    share, error = np.mean(shares), np.std(shares, ddof=1) / np.sqrt(cases)
    found = np.mean(any_found)
    found_error = np.sqrt(ALPHA * (1 - ALPHA) / cases)
    print(f"p < .05: {share:.4f} (standard error by case {error:.4f}); cases with "
          f"q < .05: {found:.4f} (standard error {found_error:.4f})")  # fmt: skip
    record_property("share", float(share))
    record_property("any", float(found))
    assert abs(share - ALPHA) <= 2 * error
    assert found <= ALPHA + 2 * found_error
