"""Tables of a sink report: one row a head, a place, a token; and their intervals.

May import: sites, run.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsink.report.pattern_maps import pattern_rows
from mechsink.run import Model
from mechsink.sites import Site

ENOUGH = 50
"""Texts from which means carry a bootstrap interval; below, every value is shown."""

_BATCH_TOKENS = 1024  # logits of 49,152 words for so many weigh 200 MB
_PATTERN_TOKENS = 18  # as many token labels as fit along a figure
_PATTERN_HEADS = 1024  # 175,000 weights: some megabytes as a table


def bootstrap(
    values: Float[np.ndarray, "text column"], n: int = 2000, seed: int = 0
) -> tuple[Float[np.ndarray, " column"], Float[np.ndarray, " column"]]:
    """Ends of the 95 % percentile interval of each column's mean, over texts."""
    rng = np.random.default_rng(seed)
    # a resample of texts is how often each is drawn
    counts = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), n)
    low, high = np.quantile(counts @ values / len(values), [0.025, 0.975], axis=0)
    return low, high


def batches_of(rows: Sequence[Int[Tensor, "1 _"]]) -> list[Int[Tensor, "_ _"]]:
    """Texts of one length together, batch pos, a thousand tokens or so at a time."""
    by_length: dict[int, list[Tensor]] = {}
    for row in rows:
        by_length.setdefault(row.shape[1], []).append(row)
    batches = []
    for length, same in by_length.items():
        size = max(1, _BATCH_TOKENS // length)
        batches += [torch.cat(same[i : i + size]) for i in range(0, len(same), size)]
    return batches


def head_table(
    scores: pd.DataFrame, logits: pd.DataFrame, values: pd.DataFrame, eps: float
) -> pd.DataFrame:
    """One row a head: means over texts of what was measured one row a text and head."""
    by_head = ["layer", "head"]
    wide = scores.pivot(index="batch", columns=by_head, values="score")
    table = pd.DataFrame({"score": wide.mean(), "low": np.nan, "high": np.nan})
    if len(wide) >= ENOUGH:
        table["low"], table["high"] = bootstrap(wide.to_numpy())
    table["share"] = (wide > eps).mean()
    table["logit"] = logits.groupby(by_head)["logit"].mean()
    means: Any = values.groupby(by_head)[["norm", "others", "ratio"]].mean()
    return table.join(means).reset_index()


def massive_table(found: pd.DataFrame) -> pd.DataFrame:
    """One row a layer, position and dimension: mean value, and in how many texts."""
    places: Any = found.groupby(["layer", "pos", "dim"])
    table = places[["value", "ratio"]].mean()
    table["texts"] = places["batch"].nunique()
    return table.reset_index()


def patterns(
    model: Model, row: Int[Tensor, "1 pos"], heads: pd.DataFrame
) -> pd.DataFrame:
    """layer, head, query, key, weight: attention of every head on a prompt's start.

    Of a model with very many heads, those strongest at the sink, and the weakest.
    """
    columns = ["layer", "head", "query", "key", "weight"]
    if "pattern" not in model.shape.sites:
        return pd.DataFrame(columns=columns)
    ranked = heads.sort_values("score", ascending=False)
    kept: Any = pd.concat([ranked.head(_PATTERN_HEADS - 1), ranked.tail(1)])
    sites = [Site("pattern", layer) for layer in sorted(set(map(int, kept["layer"])))]
    run = model.run(row[:, :_PATTERN_TOKENS], read=sites)
    parts = []
    for site in sites:
        chosen: Any = kept.loc[kept["layer"] == site.layer, "head"].unique()
        numbers = sorted(map(int, chosen))
        weight = run.cache[site][0, numbers]
        parts.append(pattern_rows(weight, numbers, layer=site.layer))
    return pd.concat(parts, ignore_index=True)


def token_table(meta: dict[str, Any]) -> pd.DataFrame:
    """One row a token, as it stands in `meta`."""
    return pd.DataFrame(
        [
            {"batch": text, "pos": pos, "id": number, "token": string}
            for text, entry in enumerate(meta["tokens"])
            for pos, (number, string) in enumerate(
                zip(entry["ids"], entry["strings"], strict=True)
            )
        ]
    )
