"""Secondary sinks of one prompt, as rows of the result's tables."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from mechsink.run import Model
from mechsink.sinks.secondary.reading import Received, read_received
from mechsink.sinks.secondary.rules import LabelRule, alike_layers, is_contiguous

COLUMNS: Mapping[str, Mapping[str, type]] = {
    "table": {
        "batch": int,
        "pos": int,
        "token": int,
        "string": str,
        "label": str,
        "l_start": int,
        "lifetime": int,
        "is_contiguous": bool,
        "norm": float,
        "norm_jump": float,
        "value_before": float,
        "value_after": float,
        "score_mean": float,
        "score_max": float,
    },
    "layers": {
        "batch": int,
        "pos": int,
        "layer": int,
        "cosine": float,
        "norm": float,
        "score_mean": float,
        "score_max": float,
    },
    "primaries": {
        "batch": int,
        "pos": int,
        "token": int,
        "string": str,
        "start": int,
        "end": int,
        "norm": float,
        "more_than": float,
        "fewer_than": float,
        "rule": str,
    },
}
"""Table to its columns and their types."""

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Prompt:
    """One prompt's tokens and states, its primary and the rule of its labels."""

    number: int
    tokens: Int[Tensor, "1 pos"]
    strings: list[str]
    norms: Float[Tensor, "layer pos"]
    cosines: Float[Tensor, "layer pos"]
    primary: int
    active: tuple[int, int]
    rule: LabelRule

    def rows(self, model: Model, threshold: float) -> Mapping[str, list[Row]]:
        """Rows of each table; the model is run again if any token was found."""
        start, end = self.active
        rule = self.rule
        primary = {
            **self._named(self.primary),
            "start": start,
            "end": end,
            "norm": float(self.norms[start:end, self.primary].mean()),
            "more_than": rule.more_than,
            "fewer_than": rule.fewer_than,
            "rule": rule.origin,
        }
        life = alike_layers(self.cosines, self.primary, start, end, threshold)
        table: list[Row] = []
        layers: list[Row] = []
        if life:
            readers: dict[int, list[int]] = {}
            for pos, alive in life.items():
                for layer in alive:
                    readers.setdefault(layer + 1, []).append(pos)
            everyone = [self.primary, *life]
            received = read_received(model, self.tokens, readers, everyone)
            for pos, alive in life.items():
                lived = [self._layer(pos, layer, received) for layer in alive]
                table.append(self._token(pos, alive, lived, received))
                layers += lived
        return {"table": table, "layers": layers, "primaries": [primary]}

    def _layer(self, pos: int, layer: int, received: Received) -> Row:
        heads = received.scores.get((layer + 1, pos))
        return {
            "batch": self.number,
            "pos": pos,
            "layer": layer,
            "cosine": float(self.cosines[layer, pos]),
            "norm": float(self.norms[layer, pos]),
            "score_mean": np.nan if heads is None else float(heads.mean()),
            "score_max": np.nan if heads is None else float(heads.max()),
        }

    def _token(
        self, pos: int, alive: list[int], lived: list[Row], received: Received
    ) -> Row:
        first = alive[0]
        norm = float(self.norms[first, pos])
        # The embedding is no layer: at layer 0 there is nothing to rise from.
        before = float(self.norms[first - 1, pos]) if first else np.nan
        values = received.values
        scores = pd.DataFrame(lived)[["score_mean", "score_max"]]
        return {
            **self._named(pos),
            "label": self.rule.label(len(alive)),
            "l_start": first,
            "lifetime": len(alive),
            "is_contiguous": is_contiguous(alive),
            "norm": norm,
            "norm_jump": norm - before,
            "value_before": values.get(first, {}).get(pos, np.nan),
            "value_after": values.get(first + 1, {}).get(pos, np.nan),
            "score_mean": scores["score_mean"].mean(),  # of the blocks that read it
            "score_max": scores["score_max"].max(),
        }

    def _named(self, pos: int) -> Row:
        return {
            "batch": self.number,
            "pos": pos,
            "token": int(self.tokens[0, pos]),
            "string": self.strings[pos],
        }


def as_tables(found: list[Mapping[str, list[Row]]]) -> dict[str, pd.DataFrame]:
    """The rows of all prompts as tables whose columns keep their types when empty."""
    return {
        name: pd.DataFrame(
            [row for rows in found for row in rows[name]], columns=list(columns)
        ).astype(dict(columns))
        for name, columns in COLUMNS.items()
    }
