"""Kinds of heads in multiple choice, by what the last token attends to.

Source: Lieberum et al. 2023 (arXiv:2307.09458), section 3, names the kinds; the rules
and thresholds are ours.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Category = Literal[
    "correct letter", "single letter", "uniform", "amplification", "other"
]
LEAST = 0.1
"""Attention to the labels from which a head looks at them."""
MOST = 0.5
"""Share of that which one label must have to be singled out."""
EVEN = 0.1
"""How far a label's share may be from an equal one."""


def attention_statistics(
    labels: Float[Tensor, "prompt label"],
    last: Float[Tensor, " prompt"],
    correct: Int[Tensor, " prompt"],
) -> dict[str, float]:
    """What one head's last query attends to, over prompts.

    Args:
        labels: attention to each option's label.
        last: attention to the last token itself.
        correct: which option is right.

    Returns:
        to_labels: attention to all labels; to_last; then shares of the attention to
        labels: to_correct, of the right one; follows: how often the right one has the
        most; to_one: what the label most attended to has where it is not right (NaN
        if one is always right); uneven: the largest distance of a label's mean share
        from an equal one. All 0 to 1, means over prompts.
    """
    labels, correct = labels.double(), correct.to(labels.device)
    n = labels.shape[1]
    share = labels / labels.sum(1, keepdim=True).clamp(min=1e-30)
    is_right = torch.zeros_like(share, dtype=torch.bool).scatter(
        1, correct[:, None], True
    )
    elsewhere = share.masked_fill(is_right, torch.nan).nanmean(0)
    known = elsewhere[elsewhere.isfinite()]
    return {
        "to_labels": float(labels.sum(1).mean()),
        "to_last": float(last.double().mean()),
        "to_correct": float(share[is_right].mean()),
        "follows": float((share.argmax(1) == correct).double().mean()),
        "to_one": float(known.max()) if len(known) else float("nan"),
        "uneven": float((share.mean(0) - 1 / n).abs().max()),
    }


def category(seen: dict[str, float], n_labels: int, direct_low: float) -> Category:
    """The kind of a head.

    The first that holds; thresholds are ours:
      correct letter: looks at labels (to_labels >= 0.1), gives the right one at least
        half of that (to_correct >= 0.5) and most often the most (follows >= 0.5);
      single letter: looks at labels and gives one of them at least half though it is
        wrong (to_one >= 0.5);
      uniform: looks at labels, all alike: no label's mean share, nor the right one's,
        is further than 0.1 from an equal share;
      amplification: looks elsewhere (to_labels < 0.1), yet raises the right label's
        logit: its direct effect is above 0, interval and all (`direct_low` > 0);
      other: none of these.
    """
    equal = 1 / n_labels
    if seen["to_labels"] < LEAST:
        return "amplification" if direct_low > 0 else "other"
    if seen["to_correct"] >= MOST and seen["follows"] >= MOST:
        return "correct letter"
    if seen["to_one"] >= MOST:
        return "single letter"
    if seen["uneven"] <= EVEN and abs(seen["to_correct"] - equal) <= EVEN:
        return "uniform"
    return "other"


NOTHING: dict[str, Any] = dict.fromkeys(
    ("to_labels", "to_last", "to_correct", "follows", "to_one", "uneven"), float("nan")
)
"""The statistics of what is no head."""
