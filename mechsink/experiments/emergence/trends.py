"""Measured trend beside published trend: agree, disagree or unresolved.

A trend is one number a seed and the side of a bound on which it should lie. Its
Student-t interval over seeds decides: whole on that side, whole on the other, or
across the bound. Slopes and differences have the bound 0; "a sink" is a head whose
sink score is above 0.3, the eps of the source, which counts such heads.

Source: Gu et al. 2024 (arXiv:2410.10781): takeaways of its README, numbers of its
figures (Sink_1, share of heads in percent), and its abstract where said. What is known
from memory alone is marked unconfirmed and judged by nobody.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from mechsink.experiments.emergence.beds import Bed
from mechsink.experiments.emergence.scores import (
    EPS,
    Scores,
    Value,
    gap,
    in_view,
    moved,
    slope,
    strongest,
)
from mechsink.experiments.emergence.settings import POSITIONS
from mechsink.experiments.grids.seeds import cell
from mechsink.intervals import student_t
from toy_tasks import Preset

Source = Literal["README", "figure", "abstract of 2410.13835", "unconfirmed"]
Side = Literal["above", "below"]


@dataclass(frozen=True)
class Trend:
    """One published trend and how it is asked of this bed.

    `note`: how the bed differs from a language model, or what to keep in mind; {base},
    {seeds} and {tokens} in it become the run's own figures (`trend_table`).
    """

    knob: str
    trend: str
    published: str
    source: Source
    unit: str  # of the value
    value: Value
    side: Side
    bound: float = 0.0
    note: str = ""


_LEVEL = "score of the strongest head"


def trends(bed: Bed) -> list[Trend]:
    """All of them, by knob, as asked of that bed's settings."""
    base = bed.base
    lr = {f"lr {v}": float(v) for v in bed.lr} | {"base": base.lr}
    steps = {f"steps {v}": int(v) for v in bed.steps} | {"base": base.steps}
    data = {f"data {v}": int(v) for v in bed.data} | {"base": base.steps * base.batch}
    window = {f"window {v}": int(v) for v in bed.window} | {"base": base.model.n_ctx}
    p = bed.prefix
    found = [
        Trend("learning rate", "A larger learning rate: a stronger sink",
              "small learning rates: less obvious", "README", "score per factor 10",
              slope(lr, 10), "above"),
        Trend("steps", "More steps: a stronger sink",
              "emerges after effective training", "README", "score per doubling",
              slope(steps, 2), "above"),
        Trend("data", "More data: a stronger sink",
              "emerges with sufficient data", "README", "score per doubling",
              slope(data, 2), "above"),
        Trend("weight decay", "Weight decay of .5 against 0: a stronger sink",
              "encourages the sink", "README", "score", gap("decay 0.5", "decay 0"),
              "above"),
        Trend("weight decay", "Weight decay of 5: no sink", "kills it from 2 on",
              "unconfirmed", _LEVEL, strongest("decay 5"), "below", EPS),
        Trend("tokens", "No <s>: the sink is on the first token",
              "18.18 % on the first token", "figure", _LEVEL, strongest("no bos"),
              "above", EPS),
        Trend("tokens", "<s> at 2: the sink is there, not at 0",
              "shifts with the data's distribution", "README", "score, 2 over 0",
              moved("bos at 2", 2), "above"),
        Trend("tokens", "<s> at 5: the sink is there, not at 0",
              "shifts with the data's distribution", "README", "score, 5 over 0",
              moved("bos at 5", 5), "above"),
        Trend("tokens", "Random token at 0: the sink moves to 1",
              "moves to the next position", "unconfirmed", _LEVEL,
              strongest("random 0", 1), "above", EPS),
        Trend("tokens", "Random tokens at 0 and 1: it moves to 2",
              "moves to the next position", "unconfirmed", _LEVEL,
              strongest("random 0-1", 2), "above", EPS),
        Trend("prefix", f"Prefix of {p}: a sink among its tokens but the first",
              "among the prefix, not the first only (19 to 24 %)", "README", _LEVEL,
              strongest(f"prefix {p}", *range(1, p)), "above", EPS),
        Trend("prefix", f"Prefix of {p} without <s>: a sink among its tokens",
              "among the prefix, not the first only (19 to 24 %)", "README", _LEVEL,
              strongest(f"prefix {p}, no bos", *range(p)), "above", EPS),
        Trend("window", "A smaller window: a weaker sink",
              "small windows prevent it", "README", "score per doubling",
              slope(window, 2), "above"),
        Trend("window", "Window of 16: on the absolute, not the relative first token",
              "on the absolute first token", "README",
              "weight above an even head's, gap", in_view, "above"),
        *(_positions(name) for name in POSITIONS if name != base.model.positions),
        _bias("key-bias", "0.00 %", "below"),
        _bias("kv-bias", "0.04 %", "below"),
        _bias("sink-token", "0.00 %", "below"),
        _bias("v-bias", "17.53 %", "above"),
        _operator("sigmoid-sum", "30.24 %", "above"),
        _operator("elu-features-sum", "53.65 %", "above"),
        _operator("sigmoid", "0.44 %", "below"),
        _operator("elu", "0.80 %", "below"),
        _operator("linear", "0.00 %", "below"),
        _operator("mlp-clamped", "0.19 %", "below"),
        Trend("operators", "relu: no sink", "mitigates it", "abstract of 2410.13835",
              _LEVEL, strongest("relu"), "below", EPS),
    ]  # fmt: skip
    return [replace(one, note=bed.notes.get(one.trend, "")) for one in found]


def _operator(name: str, percent: str, side: Side) -> Trend:
    has = "no sink" if side == "below" else "a sink"
    published = f"{percent} (softmax 18.18 %)"
    text = f"{name}: {has}"
    return Trend(
        "operators", text, published, "figure", _LEVEL, strongest(name), side, EPS
    )


def _positions(name: str) -> Trend:
    published = "positions do not decide whether a sink forms"
    setting = f"positions {name}"
    text = f"{name} positions: a sink"
    value = strongest(setting)
    return Trend("positions", text, published, "README", _LEVEL, value, "above", EPS)


def _bias(name: str, percent: str, side: Side) -> Trend:
    where = "still on the first token" if side == "above" else "no more on the first"
    published = f"{percent} on the first token (none 18.18 %)"
    text = f"{name}: {where}"
    return Trend(
        "biases", text, published, "figure", _LEVEL, strongest(name), side, EPS
    )


def verdict(values: Sequence[float], side: Side, bound: float) -> str:
    """agree, disagree or unresolved, by the 95 % Student-t interval of the mean.

    One seed has no interval: unresolved.
    """
    low, high = student_t(list(values))
    if low > bound:
        return "agree" if side == "above" else "disagree"
    if high < bound:
        return "agree" if side == "below" else "disagree"
    return "unresolved"


def trend_table(scores: Scores, bed: Bed, preset: Preset) -> pd.DataFrame:
    """A row for each trend whose settings were trained, `preset` being the base.

    Returns:
        knob, trend, published, source, unit, measured (mean over seeds), low, high,
        wanted ("> 0.3"), verdict, note. Unconfirmed ones have the verdict
        "unconfirmed", whatever was measured.
    """
    rows = []
    base = strongest("base")(scores).tolist()
    of_base = cell(float(np.mean(base)), *student_t(base)) if base else "not trained"
    read = preset.steps * preset.batch * preset.model.n_ctx
    for one in trends(bed):
        values = one.value(scores).tolist()
        if not values:
            continue
        low, high = student_t(values)
        sign = ">" if one.side == "above" else "<"
        judged = verdict(values, one.side, one.bound)
        if one.source == "unconfirmed":
            judged = "unconfirmed"
        rows.append(
            {
                "knob": one.knob,
                "trend": one.trend,
                "published": one.published,
                "source": one.source,
                "unit": one.unit,
                "measured": float(np.mean(values)),
                "low": low,
                "high": high,
                "wanted": f"{sign} {one.bound:g}",
                "verdict": judged,
                "note": one.note.format(
                    base=of_base,
                    tokens=f"{read / 1e6:.1f} million",
                    seeds=", ".join(f"{value:.2g}" for value in values),
                ),
            }
        )
    columns = ["knob", "trend", "published", "source", "unit", "measured", "low",
               "high", "wanted", "verdict", "note"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)
