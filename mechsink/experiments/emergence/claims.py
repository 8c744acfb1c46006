"""What the emergence study asserts of each bed."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from mechsink.experiments.emergence.beds import BIGRAM, TEXT, Bed
from mechsink.experiments.emergence.scores import EPS, Scores
from mechsink.experiments.study import claim

Asserted = tuple[str, pd.Series, dict[str, Any]]  # sentence, one number a seed, bound


def claims_of(scores: Scores, bed: Bed, quick: bool = False) -> list[dict[str, Any]]:
    """Rows of `claim`, of those settings that were trained.

    quick: on text no head's sink has formed by then; the residual of `<s>` stands out.
    """
    if bed.name == BIGRAM.name:
        asserted = _of_bigrams(scores, bed)
    elif bed.name == TEXT.name and not quick:
        asserted = _of_text(scores)
    else:
        asserted = _of_residuals(scores)
    rows = [
        claim(sentence, values.tolist(), **bound)
        for sentence, values, bound in asserted
        if len(values)
    ]
    if "beyond_oracle" in scores.runs:
        worst = float(pd.Series(scores.runs["beyond_oracle"]).min())
        text = "No run beats the oracle (standard errors, the worst run)"
        rows.append(claim(text, worst, above=-3.0))
    return rows


def _of_bigrams(scores: Scores, bed: Bed) -> Iterator[Asserted]:
    """The strongest head's sink score, where it should and should not be high."""
    fewest = f"steps {bed.steps[0]}"
    share = round(bed.base.steps / int(bed.steps[0]))
    base = scores.at("base", 0)
    shorter = (base - scores.at(fewest, 0)).dropna()
    yield "The base has a sink at <s> (sink score)", base, {"above": EPS}
    weaker = f"It is weaker after 1/{share} of the steps (difference)"
    yield weaker, shorter, {"above": 0.05}
    yield "<s> at 2: the sink is there", scores.at("bos at 2", 2), {"above": EPS}
    yield "and not at 0", scores.at("bos at 2", 0), {"below": 0.15}
    yield "Linear attention: no sink", scores.at("linear", 0), {"below": EPS}
    yield "ReLU attention: no sink", scores.at("relu", 0), {"below": EPS}


def _of_text(scores: Scores) -> Iterator[Asserted]:
    """As `_of_bigrams`; whether the base has a sink depends on the seed."""
    yield from _of_residuals(scores)
    at_2 = scores.at("bos at 2", 2)
    yield "Weight decay of .5: a sink at <s>", scores.at("decay 0.5", 0), {"above": EPS}
    yield "No weight decay: none", scores.at("decay 0", 0), {"below": EPS}
    yield "<s> at 2: the sink is there", at_2, {"above": EPS}
    yield "and not at 0", scores.at("bos at 2", 0), {"below": 0.15}
    yield "Without <s>: none", scores.at("no bos", *range(10)), {"below": 0.15}
    yield "A small learning rate: none", scores.at("lr 1e-3", 0), {"below": EPS}


def _of_residuals(scores: Scores) -> Iterator[Asserted]:
    ratio = scores.of("base", "resid_ratio")
    more = (ratio - scores.of("no bos", "resid_ratio")).dropna()
    yield "The residual of <s> stands out (over the others')", ratio, {"above": 1.3}
    yield "More than that of any first token (difference)", more, {"above": 0.2}
