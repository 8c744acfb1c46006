"""What the attention rhythm reads off each layer, without its whole pattern.

Source: "Preplan-and-Anchor" (arXiv:2510.13554).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mechsink.results import Result
from mechsink.run import LayerAttention
from mechsink.sinks.measure import Batch, Meter, Rows, check_positions, rows
from mechsink.sinks.rhythm.series import fai, waad
from mechsink.sinks.shares import key_blocks

Heads = tuple[tuple[int, int], ...]
"""(layer, head) of each."""


@dataclass(frozen=True)
class HeadSpanMeter(Meter):
    """Distance that every head looks back, for `measure`."""

    sink: int = 0
    reads = frozenset({"attention"})

    def check(self, batches: Sequence[Batch]) -> None:
        """The sink inside every prompt."""
        check_positions(batches, [self.sink])

    def attention(self, batch: Batch, layer: LayerAttention) -> Mapping[str, Rows]:
        """One row a prompt and head."""
        query = torch.arange(batch.n_pos)
        sums: dict[str, Any] = dict.fromkeys(("all", "rest", "mass", "sink"), 0.0)
        for keys, shares in key_blocks(layer, batch.n_pos):
            key = torch.arange(keys.start, keys.stop)
            distance = (query[:, None] - key).clamp(min=0).to(shares)
            is_sink = (key == self.sink).to(shares)
            far = (shares * distance).sum(-2)  # batch head column
            received = shares.sum(-2)
            sums["all"] = sums["all"] + far.sum(-1)
            sums["rest"] = sums["rest"] + (far * (1 - is_sink)).sum(-1)
            sums["mass"] = sums["mass"] + (received * (1 - is_sink)).sum(-1)
            sums["sink"] = sums["sink"] + (received * is_sink).sum(-1)
        axes = {
            "batch": batch.prompts,
            "layer": [layer.layer],
            "head": range(sums["all"].shape[1]),
        }
        rest = torch.where(sums["mass"] > 1e-6, sums["rest"] / sums["mass"], torch.nan)
        values = {
            "span": sums["all"] / batch.n_pos,
            "span_rest": rest,
            "sink": sums["sink"] / (batch.n_pos - self.sink),
        }
        return {"table": rows(axes, **values)}

    def result(self, tables: Mapping[str, pd.DataFrame], meta: dict[str, Any]) -> Any:
        """Means over prompts, as a plain result."""
        means: Any = tables["table"].groupby(["layer", "head"]).mean()
        return Result(means.drop(columns="batch").reset_index(), meta)


@dataclass(frozen=True)
class RhythmMeter(Meter):
    """WAAD over local heads and FAI over global ones, for `measure`."""

    local: Heads
    far: Heads
    window: int
    low: int
    high: int | None
    reads = frozenset({"attention"})

    def attention(self, batch: Batch, layer: LayerAttention) -> Mapping[str, Rows]:
        """One row a prompt and token: sums over this layer's chosen heads."""
        local, far = (
            [head for n, head in heads if n == layer.layer]
            for heads in (self.local, self.far)
        )
        if not local and not far:
            return {}
        shape = (len(batch.tokens), batch.n_pos)
        back: Any = torch.zeros(shape, dtype=torch.float64)
        near: list[Tensor] = []
        plain: list[Tensor] = []
        for keys, shares in key_blocks(layer, batch.n_pos):
            at = {"first_key": keys.start}
            back = back + waad(shares[:, local], self.window, **at).sum(1).cpu()
            near.append(fai(shares[:, far], self.low, self.high, **at).sum(1).cpu())
            plain.append(fai(shares[:, far], 1, None, **at).sum(1).cpu())
        values = {
            "waad": back,
            "fai": torch.cat(near, -1),
            "fai_plain": torch.cat(plain, -1),
        }
        axes = {"batch": batch.prompts, "layer": [layer.layer], "pos": range(shape[1])}
        return {"table": rows(axes, **values)}

    def result(self, tables: Mapping[str, pd.DataFrame], meta: dict[str, Any]) -> Any:
        """Means over the chosen heads, as a plain result."""
        grouped: Any = tables["table"].groupby(["batch", "pos"])
        table = grouped[["waad", "fai", "fai_plain"]].sum(min_count=1).reset_index()
        table["waad"] /= len(self.local)
        table[["fai", "fai_plain"]] /= len(self.far)
        # A layer without global heads sums nothing to 0, where no query is far enough.
        length = table.groupby("batch")["pos"].transform("max") + 1
        for name, least in (("fai", self.low), ("fai_plain", 1)):
            table.loc[table["pos"] + least >= length, name] = np.nan
        return Result(table, meta)
