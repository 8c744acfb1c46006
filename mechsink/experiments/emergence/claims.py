"""What the emergence study asserts of each bed."""

from typing import Any

import pandas as pd

from mechsink.experiments.emergence.beds import Bed
from mechsink.experiments.emergence.scores import EPS, Scores, strongest
from mechsink.experiments.study import claim


def claims_of(scores: Scores, bed: Bed) -> list[dict[str, Any]]:
    """Rows of `claim`, of those settings that were trained."""
    fewest = f"steps {bed.steps[0]}"
    share = round(bed.base.steps / int(bed.steps[0]))
    top = {name: strongest(name)(scores) for name in ("base", fewest)}
    shorter = (top["base"] - top[fewest]).dropna()
    asserted: list[tuple[str, pd.Series, dict[str, Any]]] = [
        ("The base has a sink at <s> (sink score)", top["base"], {"above": EPS}),
        (f"It is weaker after 1/{share} of the steps (difference)", shorter,
         {"above": 0.05}),
        ("<s> at 2: the sink is there", scores.at("bos at 2", 2), {"above": EPS}),
        ("and not at 0", scores.at("bos at 2", 0), {"below": 0.15}),
        ("Linear attention: no sink", scores.at("linear", 0), {"below": EPS}),
        ("ReLU attention: no sink", scores.at("relu", 0), {"below": EPS}),
    ]  # fmt: skip
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
