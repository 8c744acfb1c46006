"""Attention rhythm on patterns: how far back queries look, who is looked back at.

WAAD, the windowed average attention distance of a token, says whether it still builds
on its neighbours; FAI, the future attention influence, how much later tokens return to
it.

Source: "Preplan-and-Anchor" (arXiv:2510.13554); horizons and peaks are ours, after the
paper.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Peaks = Literal["maximum", "jump"]


def waad(
    pattern: Float[Tensor, "*rows query key"], window: int = 10, first_key: int = 0
) -> Float[Tensor, "*rows query"]:
    """Windowed average attention distance: sum over keys of weight times distance.

    WAAD_t = sum over s <= t of A[t, s] * min(t - s, window).

    Args:
        pattern: attention after softmax; queries start at position 0.
        window: the largest distance that counts, tokens.
        first_key: position of the first key, where `pattern` holds some columns.

    Returns:
        0 (attends to itself) to `window`, in tokens. An even causal head has t / 2
        where t <= window.

    Raises:
        ValueError: a window under 1.

    Source: "Preplan-and-Anchor" (arXiv:2510.13554).

    Examples:
        >>> even = torch.ones(4, 4).tril() / torch.tensor([1, 2, 3, 4])[:, None]
        >>> ms.waad(even)
        tensor([0.0000, 0.5000, 1.0000, 1.5000])
    """
    if window < 1:
        raise ValueError(f"waad: window={window}. Allowed: 1 and more tokens.")
    distance = _distances(pattern, first_key).clamp(max=window)
    return (pattern * distance.to(pattern)).sum(-1)


def fai(
    pattern: Float[Tensor, "*rows query key"],
    low: int = 10,
    high: int | None = 50,
    first_key: int = 0,
) -> Float[Tensor, "*rows key"]:
    """Future attention influence: mean attention that a token gets from later ones.

    FAI_s = mean over t from s + low to min(T - 1, s + high) of A[t, s].

    Args:
        pattern: attention after softmax; queries start at position 0.
        low: nearest query that counts, tokens after the key. low=1, high=None is the
            plain version, all later queries.
        high: furthest query that counts; None: to the end.
        first_key: position of the first key, where `pattern` holds some columns.

    Returns:
        0 to 1, a share of attention; NaN for tokens without such a query, the last
        `low`. An even causal head falls as 1 / (t + 1) over its queries t.

    Raises:
        ValueError: low under 1, or high under low.

    Source: "Preplan-and-Anchor" (arXiv:2510.13554); horizons are ours, after the paper.

    Examples:
        >>> even = torch.ones(4, 4).tril() / torch.tensor([1, 2, 3, 4])[:, None]
        >>> ms.fai(even, low=1, high=None)
        tensor([0.3611, 0.2917, 0.2500,    nan])
    """
    if low < 1 or (high is not None and high < low):
        raise ValueError(
            f"fai: low={low}, high={high}. Allowed: low 1 and more, high at least low, "
            "or None for all later tokens."
        )
    distance = _distances(pattern, first_key, clamp=False)
    counts = distance >= low
    if high is not None:
        counts &= distance <= high
    return (pattern * counts.to(pattern)).sum(-2) / counts.sum(-2)  # 0 / 0: NaN


def head_span(
    pattern: Float[Tensor, "*rows query key"],
) -> Float[Tensor, "*rows"]:
    """Mean distance that a head looks back, tokens: mean_t sum_s A[t, s] (t - s).

    An even causal head over T tokens has (T - 1) / 4.
    """
    return (pattern * _distances(pattern, 0).to(pattern)).sum(-1).mean(-1)


def waad_peaks(
    series: Float[Tensor, " pos"], rule: Peaks = "maximum", top: float = 0.2
) -> Bool[Tensor, " pos"]:
    """Preplan tokens: where WAAD peaks.

    Args:
        series: WAAD of each token.
        rule: "maximum", higher than the neighbours on both sides (a plateau counts
            once, at its middle; never the first or the last token); "jump", the rise
            from the token before is among the `top` share of rises.
        top: share of tokens, for "jump".
    """
    found = torch.zeros(len(series), dtype=torch.bool)
    if rule == "maximum":
        from scipy.signal import find_peaks  # here: slow to import

        found[torch.from_numpy(find_peaks(series.numpy())[0])] = True
        return found
    rise = torch.full_like(series, torch.nan)
    rise[1:] = series.diff()
    return top_share(rise, top) & (rise > 0)


def top_share(series: Float[Tensor, " pos"], top: float = 0.2) -> Bool[Tensor, " pos"]:
    """Tokens above the (1 - top) quantile of those that are not NaN.

    Tokens level with the quantile are not: a flat series has no top.

    Raises:
        ValueError: a share outside 0 to 1.
    """
    if not 0 < top < 1:
        raise ValueError(f"top={top}. Allowed: a share of tokens above 0, below 1.")
    known = series[~series.isnan()]
    if not len(known):
        return torch.zeros(len(series), dtype=torch.bool)
    return series > torch.quantile(known, 1 - top)  # NaN: never


def _distances(pattern: Tensor, first_key: int, *, clamp: bool = True) -> Tensor:
    n_query, n_key = pattern.shape[-2:]
    query = torch.arange(n_query, device=pattern.device)[:, None]
    key = first_key + torch.arange(n_key, device=pattern.device)
    distance = query - key
    return distance.clamp(min=0) if clamp else distance
