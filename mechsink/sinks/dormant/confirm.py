"""Causal confirmation: a head that works on a domain is missed there."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from mechsink.run import Model
from mechsink.sinks.dormant.contrast import contrasts, q_values
from mechsink.sinks.dormant.losses import HeadLosses, head_losses
from mechsink.sinks.dormant.table import contrast_weights

Head = tuple[int, int]  # layer, head
ROUNDING = 8.0
"""Loss changes up to so many epsilons of the dtype, times the loss, are rounding."""


def tested_heads(
    table: pd.DataFrame,
    keys: Sequence[Head],
    confirm: str | Sequence[Head],
    q: float,
    n_confirm: int,
) -> list[Head]:
    """The heads to edit, in order; a list is taken as it is, without repeats."""
    if not isinstance(confirm, str):
        return list(dict.fromkeys((int(layer), int(head)) for layer, head in confirm))
    if confirm == "all":
        return list(keys)
    if confirm == "none":
        return []
    flagged: Any = table[table["q_value"] < q]
    flagged = flagged.iloc[np.argsort(-flagged["difference"].abs(), kind="stable")]
    pairs = zip(flagged["layer"].tolist(), flagged["head"].tolist(), strict=True)
    return list(dict.fromkeys(pairs))[:n_confirm]


def confirmation_tables(
    model: Model,
    tokens: Int[Tensor, "text pos"],
    of_text: Int[np.ndarray, " text"],
    domains: Sequence[str],
    table: pd.DataFrame,
    heads: Sequence[Head],
    position: int,
    *,
    q: float,
    seed: int,
    progress: bool | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """`confirmation` and `losses` of `ActiveDormant`, and how losses were computed.

    Args:
        model: any model.
        tokens: all domains' texts.
        of_text: each text's domain, by number.
        domains: their names.
        table: the contrasts of dormancy, which say where a head is active.
        heads: (layer, head) to edit.
        position: the sink.
        q: level of `is_confirmed`.
        seed: of the permutations.
        progress: show a bar; default on a terminal only.
    """
    several = len(domains) > 2
    empty = pd.DataFrame(
        {
            "layer": pd.Series(dtype=int),
            "head": pd.Series(dtype=int),
            **({"domain": pd.Series(dtype="str")} if several else {}),
            "edit": pd.Series(dtype="str"),
            "active": pd.Series(dtype="str"),
            **{name: pd.Series(dtype=float) for name in domains},
            **{name: pd.Series(dtype=float) for name in _NUMBERS},
            "is_confirmed": pd.Series(dtype=bool),
        }
    )
    if not heads:
        return empty, _losses(None, of_text, domains, heads), "none"
    measured = head_losses(model, tokens, heads, position, progress)
    rounding = ROUNDING * torch.finfo(model.dtype).eps * float(measured.full.mean())
    parts = []
    for edit, losses in measured.edited.items():
        change = losses - measured.full[:, None]
        found = _contrasts(
            change, of_text, domains, table, heads, rounding=rounding, seed=seed
        )
        found["edit"] = edit
        found["q_value"] = q_values(found["p_value"].to_numpy())
        # Intervals hold for one head each; of many tested some would exceed 0.
        found["is_confirmed"] = (found["low"] > rounding) & (found["q_value"] < q)
        parts.append(found)
    if not parts:
        return empty, _losses(measured, of_text, domains, heads), "not editable"
    confirmation: Any = pd.concat(parts, ignore_index=True)[list(empty.columns)]
    return confirmation, _losses(measured, of_text, domains, heads), measured.path


_NUMBERS = ("difference", "low", "high", "p_value", "q_value")


def _contrasts(
    change: np.ndarray,
    of_text: np.ndarray,
    domains: Sequence[str],
    table: pd.DataFrame,
    heads: Sequence[Head],
    *,
    rounding: float,
    seed: int,
) -> pd.DataFrame:
    """Loss change where active minus where dormant: a row a head and contrast."""
    several = len(domains) > 2
    means = np.stack([change[of_text == d].mean(0) for d in range(len(domains))])
    rows: list[dict[str, Any]] = []
    every = contrast_weights(domains)
    for name, weights in every.items():
        n_tests = len(heads) * len(every)
        found = contrasts(
            change, of_text, weights, rounding=rounding, n_tests=n_tests, seed=seed
        )
        here: Any = table[table["domain"] == name] if several else table
        dormancy = here.set_index(["layer", "head"])["difference"]
        for number, head in enumerate(heads):
            row = found.iloc[number]
            is_dormant = dormancy.loc[head] > 0  # more attention to the sink on `name`
            ends = [row["low"], row["high"]]
            low, high = (-ends[1], -ends[0]) if is_dormant else ends
            rest = domains[1] if not several else "others"
            rows.append(
                {
                    "layer": head[0],
                    "head": head[1],
                    **({"domain": name} if several else {}),
                    "active": rest if is_dormant else name,
                    **dict(zip(domains, means[:, number], strict=True)),
                    "difference": row["difference"] * (-1 if is_dormant else 1),
                    "low": low,
                    "high": high,
                    "p_value": row["p_value"],
                }
            )
    return pd.DataFrame(rows)


def _losses(
    measured: HeadLosses | None,
    of_text: np.ndarray,
    domains: Sequence[str],
    heads: Sequence[Head],
) -> pd.DataFrame:
    """One row a text, head and edit."""
    number = np.concatenate([np.arange(n) for n in np.bincount(of_text)])
    edits = list(measured.edited) if measured else []
    n, m, e = len(of_text), len(heads) if edits else 0, len(edits)
    index = np.indices((n, m, e)).reshape(3, -1)
    columns: dict[str, Any] = {
        "domain": pd.Series(np.array(domains)[of_text[index[0]]], dtype="str"),
        "text": number[index[0]],
        "layer": np.array([layer for layer, _ in heads], dtype=int)[index[1]],
        "head": np.array([head for _, head in heads], dtype=int)[index[1]],
        "edit": pd.Series(np.array(edits, dtype="U8")[index[2]], dtype="str"),
        "full": np.empty(0),
        "edited": np.empty(0),
    }
    if measured and edits:
        columns["full"] = measured.full[index[0]]
        every = np.stack([measured.edited[edit] for edit in edits], axis=-1)
        columns["edited"] = every.ravel()
    return pd.DataFrame(columns)
