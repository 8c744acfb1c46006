"""Faithfulness as a ratio of means, its areas, and their intervals over prompts.

May import: rooms up to attribution.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.integrate import trapezoid

from mechsink.attribution.inference import bootstrap_counts

TAIL = 0.025
"""On either side of a 95 % interval."""


def ratio_of_means(
    circuit: Float[np.ndarray, "*point prompt"],
    ablated: Float[np.ndarray, " prompt"],
    full: Float[np.ndarray, " prompt"],
) -> Float[np.ndarray, "*point"]:
    """(mean circuit - mean ablated) / (mean full - mean ablated), as MIB has it."""
    base = ablated.mean()
    return (circuit.mean(-1) - base) / (full.mean() - base)


def resampled_ratios(
    circuit: Float[np.ndarray, "point prompt"],
    ablated: Float[np.ndarray, " prompt"],
    full: Float[np.ndarray, " prompt"],
    *,
    resamples: int,
    seed: int,
    caller: str,
) -> Float[np.ndarray, "resample point"]:
    """The ratio on resampled prompts: one draw serves both means and all points.

    Returns:
        NaN everywhere, with a warning, where the denominator itself is not sure: it
        is zero or of the other sign in more than 2.5 % of the resamples, so that no
        bound on the ratio can be given. NaN also for a single prompt.
    """
    n = len(full)
    nothing = np.full((resamples, len(circuit)), np.nan)
    if n < 2:
        return nothing
    weights = bootstrap_counts(n, resamples, seed).double().numpy() / n
    base = weights @ ablated
    whole = weights @ full - base
    sign = np.sign(full.mean() - ablated.mean())
    unsure = np.mean(np.sign(whole) != sign)
    if unsure > TAIL:
        warnings.warn(
            f"{caller}: full and ablated model are told apart too weakly for an "
            f"interval: in {unsure:.0%} of the resamples their difference has the "
            "other sign. Give more prompts, or a corruption that changes more.",
            stacklevel=4,
        )
        return nothing
    with np.errstate(divide="ignore", invalid="ignore"):
        return (weights @ circuit.T - base[:, None]) / whole[:, None]


def resampled_means(
    values: Float[np.ndarray, "item prompt"], *, resamples: int, seed: int
) -> Float[np.ndarray, "resample item"]:
    """Means over resampled prompts, the same draw for all items; NaN for one prompt."""
    n = values.shape[1]
    if n < 2:
        return np.full((resamples, len(values)), np.nan)
    weights = bootstrap_counts(n, resamples, seed).double().numpy() / n
    return weights @ values.T


def interval(
    draws: Float[np.ndarray, "resample item"],
) -> tuple[Float[np.ndarray, " item"], Float[np.ndarray, " item"]]:
    """95 % percentile interval of each item, the order statistics of `inference`."""
    k = max(1, round(TAIL * len(draws)))
    ordered = np.sort(draws, axis=0)  # NaN comes last
    return ordered[k - 1], np.where(np.isnan(ordered[-1]), np.nan, ordered[-k])


def areas(
    ratios: Float[np.ndarray, "*resample point"],
    fractions: Sequence[float],
    log: bool = False,
) -> tuple[Float[np.ndarray, "*resample"], Float[np.ndarray, "*resample"]]:
    """CPR and CMD: trapezoids under f and under |1 - f|, over the share of edges.

    From the first fraction to the last, f unclipped. `log`: over the natural logarithm
    of the share.

    Source: MIB (Mueller et al. 2025, arXiv:2504.13151), evaluation.py.
    """
    x = np.log(fractions) if log else np.asarray(fractions)
    under, off = trapezoid(ratios, x), trapezoid(np.abs(1 - ratios), x)
    return np.asarray(under), np.asarray(off)


def check_resamples(caller: str, resamples: int) -> None:
    """Raise ValueError for a number of resamples that gives no interval."""
    if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < 40:
        raise ValueError(
            f"{caller}: resamples={resamples!r}. Allowed: 40 and more, so that 2.5 % "
            "of them is one; 1000 is usual."
        )


def check_told_apart(
    caller: str,
    metric: str,
    ablated: Float[np.ndarray, " prompt"],
    full: Float[np.ndarray, " prompt"],
    dtype: torch.dtype,
) -> None:
    """Raise ValueError where the denominator is zero, up to rounding of `dtype`."""
    eps = min(torch.finfo(t).eps for t in (dtype, torch.float32))
    size = float(np.abs([full, ablated]).max())
    if np.abs(full - ablated).max() <= 8 * eps * size:
        raise ValueError(
            f"{caller}: the metric {metric} is the same on every prompt with all edges "
            f"and with none ({full.mean():.4g}): it is constant, or the corruption "
            "does not change it. Check answers and wrong answers, or corrupt what the "
            "metric depends on."
        )
    if abs(full.mean() - ablated.mean()) <= 8 * eps * size:
        raise ValueError(
            f"{caller}: the mean of {metric} is {full.mean():.4g} with all edges and "
            "with none, so faithfulness, (circuit - ablated) / (full - ablated), "
            "divides by zero. Single prompts differ but cancel out: orient the pairs "
            "so that the clean prompt is the one with the higher metric."
        )
