"""The table of dormancies: means by domain, contrasts, what is corrected together."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from mechsink.sinks.dormant.contrast import contrasts, q_values

Head = tuple[int, int]  # layer, head
ROUNDING = 1e-6
"""Differences of attention up to so much are rounding in float32: none."""


def compared(
    dormancy: Float[np.ndarray, "text item"],
    of_text: Int[np.ndarray, " text"],
    domains: Sequence[str],
    keys: Sequence[Head],
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """The table of `ActiveDormant` from dormancies, but for the losses.

    Args:
        dormancy: one row a text, one column a head.
        of_text: each text's domain, by number.
        domains: their names.
        keys: (layer, head) of each column.
        seed: of the permutations.
    """
    means = {
        name: dormancy[of_text == number].mean(0) for number, name in enumerate(domains)
    }
    start = pd.DataFrame(keys, columns=["layer", "head"])
    parts = []
    for name, weights in contrast_weights(domains).items():
        part = start.assign(**({"domain": name} if len(domains) > 2 else {}), **means)
        n_tests = len(keys) * (len(domains) if len(domains) > 2 else 1)
        found = contrasts(
            dormancy, of_text, weights, rounding=ROUNDING, n_tests=n_tests, seed=seed
        )
        parts.append(part.join(found))
    table = pd.concat(parts, ignore_index=True)
    table["q_value"] = q_values(table["p_value"].to_numpy())
    table = table.sort_values(["layer", "head"], kind="stable", ignore_index=True)
    first = ["layer", "head", *(["domain"] if len(domains) > 2 else []), *domains]
    order = [*first, "difference", "low", "high", "q_value", "p_value", "effect_size"]
    found: Any = table[order]
    return found


def contrast_weights(
    domains: Sequence[str],
) -> dict[str, Float[np.ndarray, " domain"]]:
    """Weights of the domains' means: first minus second; or each minus the others."""
    n = len(domains)
    if n == 2:
        return {domains[0]: np.array([1.0, -1.0])}
    others = np.full((n, n), -1 / (n - 1))
    np.fill_diagonal(others, 1.0)
    return dict(zip(domains, others, strict=True))


def with_losses(
    table: pd.DataFrame, confirmation: pd.DataFrame, domains: Sequence[str]
) -> pd.DataFrame:
    """With the loss changes when zeroed, after q_value."""
    zeroed: Any = confirmation[confirmation["edit"] == "zeroed"]
    columns = {name: f"zeroed_{name}" for name in domains}
    zeroed = zeroed[["layer", "head", *domains]].rename(columns=columns)
    zeroed = zeroed.drop_duplicates(["layer", "head"])
    joined = table.merge(zeroed, on=["layer", "head"], how="left")
    at = list(table.columns).index("q_value") + 1
    order = [*table.columns[:at], *columns.values(), *table.columns[at:]]
    found: Any = joined[order]
    return found
