"""Attention of many heads, or of one head at many steps, as maps to walk through.

May import: results, plotting.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechsink.report.html import show_token
from mechsink.report.maps import Choice, Maps, fits


def pattern_rows(
    weight: Float[Tensor, "head query key"], heads: Sequence[int], **place: int
) -> pd.DataFrame:
    """Causal attention as rows: the columns of `place`, head, query, key, weight."""
    query, key = torch.tril_indices(*weight.shape[1:]).numpy()
    weights = weight.detach().float().cpu().numpy()[:, query, key]
    columns = {
        "head": np.repeat(heads, len(query)),
        "query": np.tile(query, len(heads)),
        "key": np.tile(key, len(heads)),
        "weight": weights.ravel(),
    }
    return pd.DataFrame({**place, **columns})


def head_patterns(
    attention: pd.DataFrame, tokens: list[str], start: tuple[int, int]
) -> Maps | None:
    """Every head's attention on one text; None where that is too much for a page.

    Args:
        attention: layer, head, query, key, weight.
        tokens: what stands at each position.
        start: layer and head shown first.
    """
    layers, heads = _sorted(attention["layer"]), _sorted(attention["head"])
    values = _stack(attention, {"layer": layers, "head": heads}, len(tokens))
    if values is None:
        return None
    choices = (
        Choice("Layer", _names(layers), layers.index(start[0])),
        Choice("Head", _names(heads), heads.index(start[1])),
    )
    return _maps(values, tokens, choices)


def step_patterns(
    attention: pd.DataFrame, tokens: list[str], layer: int, marked: tuple[int, ...]
) -> Maps | None:
    """One layer's attention at every training step; None where that is too much.

    Args:
        attention: step, layer, head, query, key, weight.
        tokens: what stands at each position.
        layer: which.
        marked: positions to stand out.
    """
    here: Any = attention[attention["layer"] == layer]
    steps, heads = _sorted(here["step"]), _sorted(here["head"])
    values = _stack(here, {"head": heads, "step": steps}, len(tokens))
    if values is None:
        return None
    slider = Choice("After step", _names(steps), len(steps) - 1, "slider")
    choices = (slider,) if len(heads) == 1 else (Choice("Head", _names(heads)), slider)
    return _maps(values, tokens, choices, marked)


def _stack(
    table: pd.DataFrame, axes: dict[str, list[int]], n_pos: int
) -> np.ndarray | None:
    """map query key, NaN where a query can't see a key; maps in the axes' order."""
    sizes = [len(labels) for labels in axes.values()]
    if not fits(int(np.prod(sizes)), n_pos, n_pos):
        return None
    values = np.full((*sizes, n_pos, n_pos), np.nan, dtype=np.float32)
    places = [
        pd.Index(labels).get_indexer(table[name].to_numpy())  # type: ignore[arg-type]
        for name, labels in axes.items()
    ]
    at = (*places, table["query"].to_numpy(), table["key"].to_numpy())
    values[at] = table["weight"].to_numpy()
    return values.reshape(-1, n_pos, n_pos)


def _maps(
    values: np.ndarray,
    tokens: list[str],
    choices: tuple[Choice, ...],
    marked: tuple[int, ...] = (),
) -> Maps:
    names = tuple(f"{pos} {show_token(token)}" for pos, token in enumerate(tokens))
    top = max(1.0, float(np.nanmax(values)))  # some operators' weights exceed 1
    return Maps(
        values,
        rows=names,
        columns=names,
        names=("query", "key", "attention"),
        limits=(0.0, top),
        choices=choices,
        upwards=False,  # reading order runs down
        marked=marked,
    )


def _sorted(column: Any) -> list[int]:
    return sorted({int(number) for number in column})


def _names(numbers: list[int]) -> tuple[str, ...]:
    return tuple(f"{number:,}" for number in numbers)
