"""`measure`: several measurements on the same forward passes.

A measurement is a `Meter`: what it reads off one layer, and the result that the
rows of all layers make. Nothing but those rows is kept, so memory stays linear
in the length of a prompt.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsink.files import plain
from mechsink.models.any_model import any_model
from mechsink.progress import Advance
from mechsink.provenance import provenance
from mechsink.run import LayerAttention, Model

Rows = Mapping[str, np.ndarray]
"""Column name to values, all of one length."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts of one length that go through the model together."""

    model: Model
    tokens: Int[Tensor, "batch pos"]
    index: int  # which batch of all
    first: int  # number of its first prompt among all prompts

    @property
    def prompts(self) -> list[int]:
        """Numbers of its prompts among all."""
        return list(range(self.first, self.first + len(self.tokens)))

    @property
    def n_pos(self) -> int:
        """Tokens in each prompt."""
        return self.tokens.shape[1]


class Meter:
    """One measurement: its options, what it reads, what it returns.

    A subclass is a frozen dataclass of options; it implements `result` and, of
    `attention` and `residual`, those that it names in `reads`.
    """

    reads: frozenset[str] = frozenset()
    """Of "attention" and "residual", which it wants to see."""

    def check(self, batches: Sequence[Batch]) -> None:
        """Raise ValueError if it cannot measure these prompts."""

    def attention(self, batch: Batch, layer: LayerAttention) -> Mapping[str, Rows]:
        """Rows for each of its tables, from one layer's attention."""
        return {}

    def residual(
        self, batch: Batch, layer: int, stream: Float[Tensor, "batch pos d_model"]
    ) -> Mapping[str, Rows]:
        """Rows for each of its tables, from the residual stream at one layer."""
        return {}

    def result(self, tables: Mapping[str, pd.DataFrame], meta: dict[str, Any]) -> Any:
        """The frozen result, from the rows of all layers and batches."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Watch(Meter):
    """Measures nothing; moves a progress bar on when a layer's attention is seen."""

    advance: Advance
    reads = frozenset({"attention"})

    def attention(self, batch: Batch, layer: LayerAttention) -> dict[str, Any]:
        """One step."""
        self.advance()
        return {}

    def result(self, tables: Mapping[str, pd.DataFrame], meta: dict[str, Any]) -> None:
        """Nothing."""


@any_model
def measure(
    model: Model,
    tokens: Tensor | Sequence[Tensor],
    meters: Sequence[Meter],
    *,
    meta: Mapping[str, Any] | None = None,
) -> list[Any]:
    """Run every batch once and let each meter read it, layer by layer.

    Args:
        model: any model.
        tokens: Int[batch pos], or a list of such tensors for prompts of different
            lengths, one forward pass each. Prompts are not padded.
        meters: such as `SinkScoreMeter()` or `ResidualNormMeter()`.
        meta: what the results say of their origin; default: `provenance`. A caller
            that measures many models on the same tokens saves time with its own.

    Returns:
        One result a meter, in order. Column `batch` of their tables numbers the
        prompts through all batches.

    Raises:
        ValueError: no tokens, or a meter cannot measure these prompts.

    Examples:
        >>> from mechsink.sinks.residuals import ResidualNormMeter
        >>> from mechsink.sinks.scores import SinkScoreMeter
        >>> model = ms.planted("backcopy").model
        >>> meters = [SinkScoreMeter(), ResidualNormMeter()]
        >>> scores, norms = ms.measure(model, model.to_tokens("b c d"), meters)
        >>> type(scores).__name__, len(norms.table)
        ('SinkScores', 8)
    """
    batches = as_batches(model, tokens)
    for meter in meters:
        meter.check(batches)
    started = time.perf_counter()
    found: list[dict[str, list[Rows]]] = [{} for _ in meters]

    def keep(meter: int, rows: Mapping[str, Rows]) -> None:
        for name, columns in rows.items():
            found[meter].setdefault(name, []).append(columns)

    def see_attention(layer: LayerAttention) -> None:
        for number, meter in enumerate(meters):
            if "attention" in meter.reads:
                keep(number, meter.attention(batch, layer))

    def see_residual(layer: int, stream: Float[Tensor, "batch pos d_model"]) -> None:
        for number, meter in enumerate(meters):
            if "residual" in meter.reads:
                keep(number, meter.residual(batch, layer, stream))

    wanted = frozenset[str]().union(*(meter.reads for meter in meters))
    for batch in batches:
        with torch.no_grad():
            model.visit(
                batch.tokens,
                attention=see_attention if "attention" in wanted else None,
                residual=see_residual if "residual" in wanted else None,
            )

    if meta is None:
        duration = time.perf_counter() - started
        given = [batch.tokens for batch in batches]
        meta = provenance(model, given, duration=duration)
    results: list[Any] = []
    for meter, tables in zip(meters, found, strict=True):
        name = type(meter).__name__.removesuffix("Meter")
        settings = plain({"measurement": name, **vars(meter)})
        joined = {name: _join(rows) for name, rows in tables.items()}
        results.append(meter.result(joined, {**meta, "settings": settings}))
    return results


def as_batches(model: Model, tokens: Tensor | Sequence[Tensor]) -> list[Batch]:
    """Tokens of one tensor or of many, as batches on the model's device.

    Raises:
        ValueError: no prompts, a prompt without tokens, or no token tensors.
    """
    given = [tokens] if isinstance(tokens, Tensor) else list(tokens)
    batches: list[Batch] = []
    first = 0
    for index, part in enumerate(given):
        if not isinstance(part, Tensor) or part.dim() != 2 or part.is_floating_point():
            shown = list(part.shape) if isinstance(part, Tensor) else repr(part)[:40]
            raise ValueError(
                f"measure: prompts {index} are {shown}, not token numbers with axes "
                "batch pos. Pass `model.to_tokens(text)`, or a list of such tensors."
            )
        if part.numel() == 0:
            raise ValueError(
                f"measure: prompts {index} have shape {list(part.shape)}, so there is "
                "no token to measure. Allowed: at least one prompt of one token; "
                "leave empty texts out."
            )
        batches.append(Batch(model, part.to(model.device), index, first))
        first += len(part)
    if not batches:
        raise ValueError(
            "measure: the list of prompts is empty. Pass at least one tensor of "
            "tokens, such as `model.to_tokens(text)`."
        )
    return batches


def as_positions(positions: int | Sequence[int]) -> tuple[int, ...]:
    """One position or several, as a tuple without repeats."""
    if isinstance(positions, int | np.integer):
        given = (int(positions),)
    else:
        given = tuple(positions)
    if not given or len(set(given)) < len(given):
        raise ValueError(
            f"positions={given}: give at least one position and each one once, such "
            "as positions=(0, 1)."
        )
    return given


def check_positions(batches: Sequence[Batch], positions: Sequence[int]) -> None:
    """Raise ValueError if a position lies outside a prompt."""
    shortest = min(batches, key=lambda batch: batch.n_pos)
    for position in positions:
        if not 0 <= position < shortest.n_pos:
            raise ValueError(
                f"position={position} is outside prompt {shortest.first}, which has "
                f"{shortest.n_pos} tokens. Allowed: 0 to {shortest.n_pos - 1}, counted "
                "from the start; leave shorter prompts out or ask for an earlier one."
            )


def rows(axes: Mapping[str, Sequence[Any]], **columns: Tensor) -> Rows:
    """Tensors of one shape as long columns, after one column for each axis."""
    grid = np.meshgrid(*axes.values(), indexing="ij")
    long = {name: part.ravel() for name, part in zip(axes, grid, strict=True)}
    for name, column in columns.items():
        values = column.detach().cpu().numpy().ravel()
        long[name] = values.astype(float) if column.is_floating_point() else values
    return long


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision widened, float32 and float64 as they are."""
    return values if values.dtype == torch.float64 else values.float()


def _join(parts: Sequence[Rows]) -> pd.DataFrame:
    names = parts[0]
    return pd.DataFrame({n: np.concatenate([part[n] for part in parts]) for n in names})
