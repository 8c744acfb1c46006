"""Do anchors follow preplan tokens more often than chance would have it?

Source: the coupling of WAAD and FAI peaks in "Preplan-and-Anchor" (arXiv:2510.13554);
the test is ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool
from torch import Tensor

from mechsink import plotting
from mechsink.plotting import Axes
from mechsink.results import Result

SHIFTS = 1_999
"""Random shifts where several prompts make all of them too many."""


@dataclass(frozen=True, eq=False)
class RhythmCoupling(Result):
    """How often an anchor follows a preplan token, against shifted series.

    `table`: batch, positions, preplan, anchors (counts), hits, share, expected.
    `share` of preplan tokens have an anchor `within` tokens after them (or at them);
    `expected` is the mean of that over all shifts of the prompt. NaN without preplan
    tokens. `null`: shift (number), share: over all prompts together, once a shift.
    `p_value` is one-sided; NaN where nothing can be compared.

    Examples:
        >>> preplan = torch.arange(12) % 4 == 1
        >>> found = ms.coupling_test([preplan], [preplan.roll(1)], within=1)
        >>> found.share, round(found.expected, 2)
        (1.0, 0.5)
        >>> ax = found.plot()
    """

    null: pd.DataFrame
    share: float
    expected: float
    p_value: float

    def plot(self, ax: Axes | None = None) -> Axes:
        """Shares under shifts, with the true one, on `ax` or a new figure."""
        with plotting.theme():
            ax = ax or plotting.new_axes()
            ax.hist(self.null["share"], bins=30, color="0.7", label="shifted")
            label = f"measured, p = {self.p_value:.3g}"
            ax.axvline(self.share, color="C3", label=label)
            within = self.meta["settings"]["within"]
            ax.set_xlabel(f"share of preplan tokens with an anchor within {within}")
            ax.set_ylabel("shifts")
            ax.legend()
            return ax


def coupling_test(
    preplan: Sequence[Bool[Tensor, " _"]],
    anchor: Sequence[Bool[Tensor, " _"]],
    *,
    within: int = 3,
    seed: int = 0,
    meta: dict[str, Any] | None = None,
) -> RhythmCoupling:
    """P(an anchor at or up to `within` tokens after a preplan token), against chance.

    Chance: each prompt's anchors shifted around the circle of its positions, which
    keeps how they cluster. For one prompt all shifts are tried and the p-value is
    exact; for several, shifts are drawn at random. The end of a prompt is followed by
    its beginning, in the true order too, so that all shifts are alike. A trend that
    both series share along the prompt is not taken off: leave such positions out. Take
    `within` well below the usual distance of preplan tokens; where each stretch of text
    is within reach of one, nothing can be told.

    Args:
        preplan: which tokens are preplan, one series a prompt.
        anchor: which are anchors, over the same positions.
        within: how many tokens after a preplan token an anchor still counts.
        seed: of random shifts.
        meta: what the result says of its origin.

    Returns:
        p_value = (shifts, the true order included, with at least the true share) /
        (all of them).

    Raises:
        ValueError: no prompts, series of unequal lengths, `within` below 0 or as long
            as a prompt.

    Source: coupling of WAAD and FAI peaks, "Preplan-and-Anchor" (arXiv:2510.13554);
    the test is ours.

    Examples:
        >>> preplan = torch.arange(12) == 3
        >>> found = ms.coupling_test([preplan], [preplan.roll(1)], within=1)
        >>> found.share, round(found.p_value, 2)  # two shifts of twelve do as well
        (1.0, 0.17)
    """
    lengths = [len(part) for part in preplan]
    if not lengths or lengths != [len(part) for part in anchor]:
        raise ValueError(
            f"coupling_test: preplan series of lengths {lengths}, anchor series of "
            f"{[len(part) for part in anchor]}. Give one of each a prompt, over the "
            "same positions."
        )
    if not 0 <= within < min(lengths) - 1:
        raise ValueError(
            f"coupling_test: within={within} in a prompt of {min(lengths)} positions. "
            "Allowed: 0 and more, and at least two positions further on; leave short "
            "prompts out."
        )
    shifted = [
        _hits_by_shift(p.cpu().numpy(), a.cpu().numpy(), within)
        for p, a in zip(preplan, anchor, strict=True)
    ]
    peaks = np.array([int(part.sum()) for part in preplan])
    table = pd.DataFrame(
        {
            "batch": range(len(lengths)),
            "positions": lengths,
            "preplan": peaks,
            "anchors": [int(part.sum()) for part in anchor],
            "hits": [int(hits[0]) for hits in shifted],
        }
    )
    some = np.where(peaks > 0, peaks, np.nan)
    table["share"] = table["hits"] / some
    table["expected"] = np.array([hits.mean() for hits in shifted]) / some
    if len(shifted) == 1:
        hits = shifted[0]
    else:
        draws = np.random.default_rng(seed)
        at = [draws.integers(n, size=SHIFTS) for n in lengths]
        drawn = sum(hits[i] for hits, i in zip(shifted, at, strict=True))
        hits = np.concatenate([[table["hits"].sum()], drawn])
    total = peaks.sum()
    idle = total == 0 or not any(bool(part.any()) for part in anchor)
    share = hits / total if total else np.full(len(hits), np.nan)
    null = pd.DataFrame({"shift": range(len(hits)), "share": share})
    given = meta or {}
    settings = {**given.get("settings", {}), "within": within, "seed": seed}
    return RhythmCoupling(
        table,
        {**given, "settings": settings},
        null,
        share=float(share[0]),
        expected=float(sum(h.mean() for h in shifted) / total) if total else np.nan,
        p_value=float("nan") if idle else float(np.mean(hits >= hits[0])),
    )


def _hits_by_shift(
    preplan: Bool[np.ndarray, " pos"], anchor: Bool[np.ndarray, " pos"], within: int
) -> np.ndarray:
    """Preplan tokens with an anchor close after, for each shift of the anchors."""
    near = np.zeros(len(anchor), dtype=bool)
    for ahead in range(within + 1):
        near |= np.roll(anchor, -ahead)
    places = np.flatnonzero(preplan)
    n = len(near)
    # After a shift by d, near[t] is what was near[t - d].
    return np.array([near[(places - d) % n].sum() for d in range(n)])
