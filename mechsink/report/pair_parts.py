"""Pairs of prompts in two parts: one chooses a circuit, the other measures it.

May import: sites, run, prompts, prompt_sets, attribution, circuits.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from mechsink.prompt_sets.accuracy import Accuracy
from mechsink.prompts import PromptPairs
from mechsink.run import Model

SPLIT_FROM = 20
"""Pairs from which half choose the circuit and the other half measure it."""


@dataclass(frozen=True, eq=False)
class OnePair:
    """One pair as tokens of a model, [pos], and its answers, [1]."""

    clean: Tensor
    corrupted: Tensor
    answer: Tensor | None
    wrong: Tensor | None

    @property
    def key(self) -> tuple[int, ...]:
        """Equal for two pairs of the same prompts."""
        return (*self.clean.tolist(), -1, *self.corrupted.tolist())


def split(n: int, seed: int) -> tuple[list[int], list[int]]:
    """Numbers of those that choose and of those that measure; all twice if few."""
    every = list(range(n))
    if n < SPLIT_FROM:
        return every, every
    first = {*random.Random(seed).sample(every, n // 2)}
    return sorted(first), [i for i in every if i not in first]


def some(pairs: PromptPairs, rows: Sequence[int]) -> PromptPairs:
    """Some of the pairs; one answer for all stays one."""

    def taken(given: Any) -> Any:
        if given is None or len(given) == 1:
            return given
        chosen = list(rows)
        return given[chosen] if isinstance(given, Tensor) else [given[i] for i in rows]

    names = ("clean", "corrupted", "answers", "wrong")
    return replace(pairs, **{name: taken(getattr(pairs, name)) for name in names})


def one_by_one(model: Model, pairs: PromptPairs) -> list[OnePair]:
    """Every pair as tokens, in the order given."""
    found: dict[int, OnePair] = {}
    for group in pairs.tokens(model):
        for place, i in enumerate(group.index):
            row = group.rows(slice(place, place + 1))
            found[i] = OnePair(row.clean[0], row.corrupted[0], row.answers, row.wrong)
    return [found[i] for i in range(len(found))]


def n_repeated(
    rows: Sequence[OnePair], choosing: Sequence[int], measuring: Sequence[int]
) -> int:
    """Measuring pairs that also stand, token for token, among other choosing ones."""
    keys = {rows[i].key: i for i in choosing}
    return sum(keys.get(rows[i].key, i) != i for i in measuring)


def pair_table(
    model: Model,
    rows: Sequence[OnePair],
    part: Mapping[int, str],
    values: Mapping[str, Mapping[int, float]],
    right: Accuracy | None,
) -> pd.DataFrame:
    """One row a pair: its part, the metric of each run (NaN: not run), its answers."""
    table = pd.DataFrame({"pair": range(len(rows))})
    table["part"] = pd.Series([part[i] for i in table["pair"]], dtype="str")
    for name, known in values.items():
        table[name] = [float(known.get(i, np.nan)) for i in table["pair"]]
    if right is not None:
        for name in ("answer", "wrong"):
            words = [model.to_strings(getattr(row, name))[0] for row in rows]
            table[name] = pd.Series(words, dtype="str")
        for name in ("beats_wrong", "is_top"):
            table[name] = right.table[name].to_numpy()
    return table
