"""Uncertainty of scores over prompts: intervals, sign-flip tests, false discoveries.

A score that means nothing is as often positive as negative over prompts: flipping
the signs at random shows how large its mean would then be.
"""

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.stats import false_discovery_control
from torch import Tensor

EXACT_UP_TO = 12
"""Prompts up to which all sign flips are tried, 4,096 at most."""
FLIPS, MORE_FLIPS, FEW = 1_000, 20_000, 20
"""Else so many at random; more where fewer than FEW of the first exceed the mean."""
RESAMPLES = 1_000
_CELLS = 2**25  # numbers held at once, and in a core's cache
_CACHED = 2**20


def inference(
    by_prompt: Float[np.ndarray, "prompt item"], seed: int = 0
) -> pd.DataFrame:
    """Mean over prompts of each item, and how sure it is.

    Args:
        by_prompt: one row a prompt, one column a score.
        seed: of resampling and sign flips; the same seed gives the same table.

    Returns:
        One row an item: score (mean), low and high (95 % percentile bootstrap over
        prompts), p_value (two-sided sign-flip test of mean 0, exact up to 12
        prompts), q_value (Benjamini-Hochberg over items). With one prompt all but
        the score are NaN. No p-value can be below 2 / 2**n for n prompts.

    Sources: sign flips, Fisher 1935; Benjamini and Hochberg 1995.
    """
    values = torch.as_tensor(np.ascontiguousarray(by_prompt))
    n, items = values.shape
    table = pd.DataFrame({"score": values.double().mean(0).numpy()})
    if n < 2:
        return table.assign(low=np.nan, high=np.nan, p_value=np.nan, q_value=np.nan)
    single = values.float()
    low, high = np.empty(items), np.empty(items)
    p_value = np.empty(items)
    generator = torch.Generator().manual_seed(seed)
    weights = _resampled(n, generator)
    first, more = _flips(n, generator)
    step = max(1, _CELLS // max(len(weights), len(first)))
    for start in range(0, items, step):
        some = slice(start, start + step)
        low[some], high[some] = _percentiles(single[:, some], weights)
        p_value[some] = _exceeding(single[:, some], first)
    if more is not None:
        again = np.flatnonzero(p_value * (len(first) + 1) < FEW + 1)
        step = max(1, _CELLS // len(more))
        for start in range(0, len(again), step):
            some = again[start : start + step]
            p_value[some] = _exceeding(single[:, torch.from_numpy(some)], more)
    # In float32 means may lie a rounding outside an interval of width 0.
    low, high = (
        bound(table["score"], x) for bound, x in ((np.minimum, low), (np.maximum, high))
    )
    return table.assign(
        low=low, high=high, p_value=p_value, q_value=false_discovery_control(p_value)
    )


def bootstrap_counts(n: int, repeats: int, seed: int) -> Float[Tensor, "repeat prompt"]:
    """How often each of `n` prompts is drawn, in each of many resamples of n."""
    return _resampled(n, torch.Generator().manual_seed(seed), repeats) * n


def _resampled(n: int, generator: torch.Generator, repeats: int = RESAMPLES) -> Tensor:
    drawn = torch.randint(n, (repeats, n), generator=generator)
    counts = torch.zeros(repeats, n).scatter_add_(1, drawn, torch.ones(repeats, n))
    return counts / n


def _percentiles(values: Tensor, weights: Tensor) -> tuple[np.ndarray, np.ndarray]:
    means = (values.T @ weights.T.to(values)).contiguous()
    k = max(1, round(0.025 * len(weights)))
    # The k-th from an end: topk finds it in half the time of kthvalue.
    low = means.topk(k, dim=1, largest=False, sorted=False).values.amax(1)
    high = means.topk(k, dim=1, sorted=False).values.amin(1)
    return low.double().numpy(), high.double().numpy()


def _flips(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """Signs to try, one row a flip of all prompts; and more of them."""
    if n <= EXACT_UP_TO:
        every = torch.arange(2**n)[:, None] >> torch.arange(n)
        return (every % 2 * 2 - 1).float(), None
    signs = torch.randint(2, (MORE_FLIPS, n), generator=generator) * 2.0 - 1
    return signs[:FLIPS], signs


def _exceeding(values: Tensor, signs: Tensor) -> np.ndarray:
    """Share of flips whose sum is as far from 0 as the true one."""
    n = len(values)
    # Ties count as exceeding; rounding must not break them.
    reach = values.sum(0).abs() - 1e-6 * values.abs().sum(0)
    signs, items = signs.to(values), values.T.contiguous()
    step = max(1, _CACHED // len(signs))
    counts = [
        (some @ signs.T).abs_().ge_(least[:, None]).sum(1)
        for some, least in zip(items.split(step), reach.split(step), strict=True)
    ]
    count = torch.cat(counts).double().numpy()
    if n <= EXACT_UP_TO:  # the true signs are among them
        return count / len(signs)
    return (count + 1) / (len(signs) + 1)
