"""What a grid measured, and the one number a seed that a trend asks of it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

EPS = 0.3
"""Sink score above which a head counts as a sink."""


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
        """Sink score by seed: the highest over these positions and over heads."""
        table = self.positions
        here = (table["setting"] == setting) & table["position"].isin(positions)
        return pd.Series(pd.DataFrame(table[here]).groupby("seed")["score"].max())


Value = Callable[[Scores], pd.Series]


def slope(points: Mapping[str, int | float], base: int) -> Value:
    """Mean sink score gained per factor `base` of a knob, a line to each seed."""

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
    """Mean sink score of one setting above another's, seed by seed."""
    return lambda scores: (scores.of(one) - scores.of(other)).dropna()


def strongest(setting: str, *positions: int) -> Value:
    """The highest sink score of any head, at position 0 or at any of those given."""
    return lambda scores: scores.at(setting, *(positions or (0,)))


def moved(setting: str, to: int) -> Value:
    """Sink score at one position above the one at 0."""
    return lambda scores: (scores.at(setting, to) - scores.at(setting, 0)).dropna()


def in_view(scores: Scores) -> pd.Series:
    """In a window of 16: weight on the absolute first token above the oldest seen."""
    absolute = scores.of("window 16", "bos_in_view")
    return (absolute - scores.of("window 16", "oldest_in_view")).dropna()
