"""Measured trend beside published trend: agree, disagree or unresolved.

A trend is one number a seed and the side of a bound on which it should lie. Its
Student-t interval over seeds decides: whole on that side, whole on the other, or
across the bound. Slopes and differences have the bound 0; "a sink" is a sink score
above 0.3, the eps of the source, which counts heads above it.

Source: Gu et al. 2024 (arXiv:2410.10781): takeaways of its README, numbers of its
figures (Sink_1, share of heads in percent), and its abstract where said. What is known
from memory alone is marked unconfirmed and judged by nobody.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from mechsink.experiments.emergence.settings import DATA, LR, STEPS
from mechsink.results import student_t

EPS = 0.3
"""Sink score from which a head counts as a sink."""

Source = Literal["README", "figure", "abstract of 2410.13835", "unconfirmed"]
Side = Literal["above", "below"]


@dataclass(frozen=True)
class Scores:
    """Numbers of all runs, by setting and measure or position: one a seed."""

    runs: pd.DataFrame  # setting, seed, one column a measure
    positions: pd.DataFrame  # setting, seed, layer, head, position, score

    def of(self, setting: str, measure: str = "sink_score") -> pd.Series:
        """One measure by seed; empty if the setting was not trained."""
        rows = pd.DataFrame(self.runs[self.runs["setting"] == setting])
        if measure not in rows:
            return pd.Series(dtype=float)
        return pd.Series(rows.set_index("seed")[measure]).dropna()

    def at(self, setting: str, *positions: int) -> pd.Series:
        """Sink score by seed: the highest over the positions, mean over heads."""
        table = self.positions
        here = (table["setting"] == setting) & table["position"].isin(positions)
        rows = pd.DataFrame(table[here])
        means = rows.groupby(["seed", "position"], as_index=False)["score"].mean()
        return pd.Series(pd.DataFrame(means).groupby("seed")["score"].max())


Value = Callable[[Scores], pd.Series]


def slope(points: Mapping[str, int | float], base: int) -> Value:
    """Sink score gained per factor `base` of a knob, a least-squares line a seed."""

    def value(scores: Scores) -> pd.Series:
        lines = {name: scores.of(name) for name in points}
        table = pd.DataFrame(lines).dropna()
        if table.empty:
            return pd.Series(dtype=float)
        x = [math.log(points[name], base) for name in table]
        found = [np.polyfit(x, row, 1)[0] for row in table.to_numpy()]
        return pd.Series(found, index=table.index)

    return value


def gap(one: str, other: str = "base") -> Value:
    """Sink score of one setting above another's, seed by seed."""
    return lambda scores: (scores.of(one) - scores.of(other)).dropna()


def level(setting: str, measure: str = "sink_score") -> Value:
    """A measure of one setting."""
    return lambda scores: scores.of(setting, measure)


def strongest(setting: str, *positions: int) -> Value:
    """The highest sink score among some positions."""
    return lambda scores: scores.at(setting, *positions)


def moved(setting: str, to: int) -> Value:
    """Sink score at one position above the one at 0."""
    return lambda scores: (scores.at(setting, to) - scores.at(setting, 0)).dropna()


def _in_view(scores: Scores) -> pd.Series:
    absolute = scores.of("window 16", "bos_in_view")
    return (absolute - scores.of("window 16", "oldest_in_view")).dropna()


@dataclass(frozen=True)
class Trend:
    """One published trend and how it is asked of this bed.

    `note`: how the bed differs from a language model, or what to keep in mind.
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


_BOS = "<s>, known by its content, stands first: the sink stays there"
_BARE = "one layer sees no first token without <s>: nothing but its position tells it"
_RIVAL = "<s> stays and serves as well as the bias, so either may take the sink"
_ONE = "one layer finds the token before by position alone"
_PROXY = "score of |A| / sum |A|, as in the source"
_LEVEL = "sink score"


def _operator(name: str, percent: str, side: Side, note: str = "") -> Trend:
    has = "no sink" if side == "below" else "a sink"
    published = f"{percent} (softmax 18.18 %)"
    text = f"{name}: {has}"
    return Trend(
        "operators", text, published, "figure", _LEVEL, level(name), side, EPS, note
    )


def _positions(name: str, note: str = "") -> Trend:
    published = "positions do not decide whether a sink forms"
    setting = f"positions {name}"
    text = f"{name} positions: a sink"
    return Trend(
        "positions", text, published, "README", _LEVEL, level(setting), "above", EPS,
        note,
    )  # fmt: skip


def _bias(name: str, percent: str, side: Side, note: str = "") -> Trend:
    where = "still on the first token" if side == "above" else "no more on the first"
    published = f"{percent} on the first token (none 18.18 %)"
    text = f"{name}: {where}"
    return Trend(
        "biases", text, published, "figure", _LEVEL, level(name), side, EPS, note
    )


TRENDS: Sequence[Trend] = (
    Trend("learning rate", "A larger learning rate: a stronger sink",
          "small learning rates: less obvious", "README", "score per factor 10",
          slope(LR, 10), "above"),
    Trend("steps", "More steps: a stronger sink",
          "emerges after effective training", "README", "score per doubling",
          slope(STEPS, 2), "above"),
    Trend("data", "More data: a stronger sink",
          "emerges with sufficient data", "README", "score per doubling",
          slope(DATA, 2), "above"),
    Trend("weight decay", "Weight decay of .5 against 0: a stronger sink",
          "encourages the sink", "README", "score", gap("decay 0.5", "decay 0"),
          "above", note="little room: queries on triggers, a third, never rest"),
    Trend("weight decay", "Weight decay of 5: no sink", "kills it from 2 on",
          "unconfirmed", _LEVEL, level("decay 5"), "below", EPS),
    Trend("tokens", "No <s>: the sink is on the first token",
          "18.18 % on the first token", "figure", _LEVEL, strongest("no bos", 0),
          "above", EPS, _BARE),
    Trend("tokens", "<s> at 2: the sink is there, not at 0",
          "shifts with the data's distribution", "README", "score, 2 over 0",
          moved("bos at 2", 2), "above"),
    Trend("tokens", "<s> at 5: the sink is there, not at 0",
          "shifts with the data's distribution", "README", "score, 5 over 0",
          moved("bos at 5", 5), "above"),
    Trend("tokens", "Random token at 0: the sink moves to 1",
          "moves to the next position", "unconfirmed", _LEVEL,
          strongest("random 0", 1), "above", EPS, _BARE),
    Trend("tokens", "Random tokens at 0 and 1: it moves to 2",
          "moves to the next position", "unconfirmed", _LEVEL,
          strongest("random 0-1", 2), "above", EPS, _BARE),
    Trend("prefix", "Prefix of 5: a sink among its tokens but the first",
          "among the prefix, not the first only (19 to 24 %)", "README", _LEVEL,
          strongest("prefix 5", 1, 2, 3, 4), "above", EPS, _BOS),
    Trend("prefix", "Prefix of 5 without <s>: a sink among its tokens",
          "among the prefix, not the first only (19 to 24 %)", "README", _LEVEL,
          strongest("prefix 5, no bos", 0, 1, 2, 3, 4), "above", EPS, _BARE),
    Trend("window", "A smaller window: a weaker sink",
          "small windows prevent it", "README", "score per doubling",
          slope({"window 4": 4, "window 16": 16, "window 32": 32, "base": 64}, 2),
          "above", note="partly by construction: fewer queries see position 0"),
    Trend("window", "Window of 16: on the absolute, not the relative first token",
          "on the absolute first token", "README", "weight above an even head's, gap",
          _in_view, "above"),
    _positions("none", _ONE + ", and NoPE gives none"),
    _positions("sinusoidal"),
    _positions("rotary"),
    _positions("alibi", _ONE + ", and one head's ALiBi takes off .004 a token"),
    _positions("relative"),
    _bias("key-bias", "0.00 %", "below", _RIVAL),
    _bias("kv-bias", "0.04 %", "below", _RIVAL),
    _bias("sink-token", "0.00 %", "below", _RIVAL),
    _bias("v-bias", "17.53 %", "above"),
    _operator("sigmoid-sum", "30.24 %", "above"),
    _operator("elu-features-sum", "53.65 %", "above",
              "positive features of low rank; the task needs sharp attention"),
    _operator("sigmoid", "0.44 %", "below", _PROXY),
    _operator("elu", "0.80 %", "below", _PROXY),
    _operator("linear", "0.00 %", "below", _PROXY),
    _operator("mlp-clamped", "0.19 %", "below", _PROXY),
    Trend("operators", "relu: no sink", "mitigates it", "abstract of 2410.13835",
          _LEVEL, level("relu"), "below", EPS, _PROXY),
)  # fmt: skip
"""All of them, by knob."""


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


def trend_table(scores: Scores) -> pd.DataFrame:
    """A row for each trend whose settings were trained.

    Returns:
        knob, trend, published, source, unit, measured (mean over seeds), low, high,
        wanted ("> 0.3"), verdict, note. Unconfirmed ones have the verdict
        "unconfirmed", whatever was measured.
    """
    rows = []
    for one in TRENDS:
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
                "note": one.note,
            }
        )
    columns = ["knob", "trend", "published", "source", "unit", "measured", "low",
               "high", "wanted", "verdict", "note"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)
