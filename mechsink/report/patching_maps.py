"""What a patch page lets a reader walk through: every place, of the mean and of a pair.

May import: sites, run, results, plotting, prompts, interventions.
"""

from typing import Any

import numpy as np
import pandas as pd

from mechsink.interventions.patching import PatchingResult
from mechsink.interventions.places import PART_COLUMN
from mechsink.prompts import PromptPairs
from mechsink.report.html import show_token
from mechsink.report.maps import Choice, Maps, fits
from mechsink.run import Model

PAIRS = 24
"""Pairs that can be looked at one by one; all stand in table.csv."""

TOKENS = {"prompt": "int64", "pos": "int64", "clean": "str", "corrupted": "str"}


def pair_tokens(model: Model, pairs: PromptPairs) -> pd.DataFrame:
    """What stands at each position of both prompts: prompt, pos, clean, corrupted."""
    rows = []
    for group in pairs.tokens(model):
        for row, prompt in enumerate(group.index):
            clean = model.to_strings(group.clean[row])
            corrupted = model.to_strings(group.corrupted[row])
            both = enumerate(zip(clean, corrupted, strict=True))
            rows += [(prompt, pos, *strings) for pos, strings in both]
    table = pd.DataFrame(rows, columns=list(TOKENS))
    return table.astype(TOKENS).sort_values(["prompt", "pos"], ignore_index=True)


def sweep_maps(sweep: PatchingResult, tokens: pd.DataFrame) -> Maps | None:
    """Effects by layer and position (or head): the mean, and pair by pair.

    None where the map would be too large for a page, or has no cell.
    """
    table: Any = sweep.table
    parts = [name for name in PART_COLUMN.values() if name in table]
    column = "pos" if table["pos"].nunique() > 1 or not parts else parts[0]
    mean = table.pivot_table(index="layer", columns=column, values="effect")
    known = sorted(map(int, table["prompt"].unique()))
    prompts = known[:PAIRS] if column == "pos" else []
    if not fits(1 + len(prompts), *mean.shape):
        return None
    numbers = [int(number) for number in mean.columns]
    grids, labels = [mean.to_numpy(float)], [_numbers(numbers)]
    if prompts:
        labels[0] = _common(tokens, numbers)
    for prompt in prompts:
        here = table[table["prompt"] == prompt]
        grid = here.pivot_table(index="layer", columns=column, values="effect")
        grids.append(grid.reindex_like(mean).to_numpy(float))
        labels.append(_positions(tokens, prompt, numbers))
    if len(known) == 1 and prompts:  # its mean is itself
        grids, labels, prompts = grids[1:], labels[1:], []
    values = np.stack(grids)
    reach = float(np.nanmax(np.abs(values[:1]), initial=0.0)) or 1.0
    names = ("mean over pairs", *(f"pair {prompt}" for prompt in prompts))
    return Maps(
        values,
        rows=_numbers(mean.index),
        columns=tuple(labels) if prompts else labels[0],
        names=("layer", "position" if column == "pos" else "head", "effect"),
        limits=(-reach, reach),
        choices=(Choice("Show", names),) if prompts else (),
        diverging=True,
    )


def _numbers(index: Any) -> tuple[str, ...]:
    return tuple("all" if number == -1 else str(number) for number in index)


def _common(tokens: pd.DataFrame, columns: list[int]) -> tuple[str, ...]:
    """Tokens that all prompts share at a position, else its number."""
    both: Any = tokens.melt("pos", ["clean", "corrupted"], value_name="token")
    shared = both.groupby("pos")["token"].agg(["nunique", "first"])
    known = shared.loc[shared["nunique"] == 1, "first"]
    names = _numbers(columns)
    return tuple(
        show_token(known[pos]) if pos in known.index else name
        for pos, name in zip(columns, names, strict=True)
    )


def _positions(
    tokens: pd.DataFrame, prompt: int, columns: list[int]
) -> tuple[str, ...]:
    """A pair's tokens at some positions; both where they differ; "" past its end."""
    here: Any = tokens[tokens["prompt"] == prompt].set_index("pos")
    if here.empty:
        return _numbers(columns)
    shown = {
        pos: show_token(clean) if clean == other else f"{clean.strip()}/{other.strip()}"
        for pos, clean, other in zip(
            here.index, here["clean"], here["corrupted"], strict=True
        )
    }
    return tuple("all" if pos == -1 else shown.get(pos, "") for pos in columns)
