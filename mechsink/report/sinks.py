"""`sink_report`: all that one forward pass tells about a model's sinks.

Sink scores, value drains, residual peaks and massive activations on the same
tokens, as tables, figures and a page.
May import: sites, run, results, plotting, sinks.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from jaxtyping import Int
from torch import Tensor

from mechsink.models.any_model import any_model
from mechsink.plotting import Axes
from mechsink.progress import Advance, bar
from mechsink.provenance import provenance
from mechsink.report.html import Page
from mechsink.report.paged import Drawn, PagedResult
from mechsink.report.sink_tables import (
    ENOUGH,
    batches_of,
    bootstrap,
    head_table,
    massive_table,
    patterns,
    token_table,
)
from mechsink.report.texts import default_rows, token_rows
from mechsink.run import Model
from mechsink.sinks.logits import SinkLogitMeter
from mechsink.sinks.massive.activations import MassiveActivationMeter
from mechsink.sinks.measure import Batch, Meter, measure
from mechsink.sinks.residuals import ResidualNormMeter
from mechsink.sinks.scores import SinkScoreMeter
from mechsink.sinks.values import ValueNormMeter
from toy_tasks.checks import checked


@dataclass(frozen=True, eq=False)
class SinkReport(PagedResult):
    """Sinks of a model on some texts; `position` is the sink asked about.

    Attributes:
        table: one row a head: layer, head, score (mean over texts, with the ends
            low, high of its 95 % interval), share (of texts that score above eps),
            logit (nats), norm, others, ratio (value norm of the position, of the
            other tokens, one over the other).
        scores: batch (text), layer, head, score of the position.
        positions: position, rate: sink rate there and at the first ten positions.
        residual: layer, norm, others, low, median, high, ratio; layer l is the
            input of block l, the last one the output of the model.
        massive: layer, pos, dim, value, ratio, texts: massive activations, mean
            over the `texts` that have them. No row: none.
        largest: batch, layer, median, rank, pos, dim, value: the three largest
            entries, massive or not.
        attention: layer, head, query, key, weight on the start of the first text.
        rates: batch, rate: sink rate of each text.
        tokens: batch, pos, id, token: what was run.

    Examples:
        >>> case = ms.planted("backcopy")
        >>> report = ms.sink_report(case.model, case.pairs.clean)
        >>> report.table.nlargest(1, "score")[["layer", "head"]].values.tolist()
        [[0, 0]]
        >>> round(report.rate, 2)
        0.33
    """

    scores: pd.DataFrame
    positions: pd.DataFrame
    residual: pd.DataFrame
    massive: pd.DataFrame
    largest: pd.DataFrame
    attention: pd.DataFrame
    rates: pd.DataFrame
    tokens: pd.DataFrame

    @property
    def position(self) -> int:
        """The candidate sink."""
        return self.meta["settings"]["position"]

    @property
    def eps(self) -> float:
        """Score above which a head counts as a sink head."""
        return self.meta["settings"]["eps"]

    @property
    def rate(self) -> float:
        """Share of heads, over layers and texts, that score above `eps`."""
        rates: Any = self.rates["rate"]
        return float(rates.mean())

    @property
    def rate_interval(self) -> tuple[float, float] | None:
        """95 % bootstrap interval of `rate` over texts; None below `ENOUGH` texts."""
        if len(self.rates) < ENOUGH:
            return None
        low, high = bootstrap(self.rates[["rate"]].to_numpy())
        return float(low[0]), float(high[0])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Sink score by layer and head, on `ax` or a new figure."""
        from mechsink.report.figures import score_map

        return score_map(self, ax)

    def draw(self) -> Drawn:
        """Every figure of the page."""
        from mechsink.report.sink_page import figures

        return figures(self)

    def page(self, drawn: Drawn | None = None) -> Page:
        """The page, with figures drawn already or now.

        Args:
            drawn: figures that `draw` made; default: drawn now.
        """
        from mechsink.report.sink_page import sink_page

        return sink_page(self, drawn)

    def _repr_html_(self) -> str:
        """The summary and the headline numbers, then as every result."""
        from mechsink.report.sink_page import snippet

        return snippet(self) + super()._repr_html_()


@any_model
@checked
def sink_report(
    model: Model,
    texts: str | Sequence[str] | Int[Tensor, "batch pos"] | None = None,
    *,
    position: int = 0,
    length: int | None = None,
    eps: float = 0.3,
    n_texts: int = 100,
) -> SinkReport:
    """Measure a model's attention sinks and what goes with them.

    Args:
        model: any model with a tokenizer.
        texts: one text or several, or their tokens; None for English prose that
            comes with Python, or for a toy model sequences of its own task.
        position: candidate sink, 0 for the first token.
        length: tokens taken of each text, so that texts can be compared; None
            takes given texts whole, and 64 tokens of the default ones.
        eps: sink score above which a head counts as a sink head.
        n_texts: how many of the default texts.

    Returns:
        A `SinkReport`: `.save(folder)` writes tables, figures and report.html.

    Raises:
        ValueError: no text, one with fewer than `length` tokens or without the
            position, or an eps that is no share.

    Source: sink rate of Gu et al. 2024 (arXiv:2410.10781), there with eps=0.3 on
    100 texts of 64 tokens; drains and peaks of Guo et al. 2024 (arXiv:2410.13835);
    massive activations of Sun et al. 2024 (arXiv:2402.17762).

    Examples:
        >>> case = ms.planted("backcopy")
        >>> report = ms.sink_report(case.model, case.pairs.clean)
        >>> report.to_html("sinks.html").name
        'sinks.html'
    """
    if not 0 <= eps < 1:
        raise ValueError(
            f"sink_report: eps={eps} is no share of attention. Allowed: 0 to below 1; "
            "0.3 is usual."
        )
    if length is not None and length < 1:
        raise ValueError(
            f"sink_report: length={length} tokens. Allowed: 1 and more, or None to "
            "take given texts whole."
        )
    started = time.perf_counter()
    if texts is None:
        rows, origin = default_rows(model, n_texts, length or 64)
    else:
        rows, origin = token_rows(model, texts, length), "given"
    shortest = min(row.shape[1] for row in rows)
    if not 0 <= position < shortest:
        raise ValueError(
            f"sink_report: position={position} is outside the shortest text, which has "
            f"{shortest} tokens. Allowed: 0 to {shortest - 1}, counted from the start."
        )
    batches = batches_of(rows)
    rows = [row[None] for batch in batches for row in batch]  # in the order measured
    positions = tuple(sorted({position, *range(min(10, shortest))}))
    meters: list[Meter] = [
        SinkScoreMeter(positions),
        SinkLogitMeter((position,)),
        ValueNormMeter((position,)),
        ResidualNormMeter(),
        MassiveActivationMeter(),
    ]
    with bar(f"{model.name}: texts", len(batches) * (model.shape.n_layers + 1)) as step:
        meters.append(_Watch(step))
        scores, logits, values, norms, massive, _ = measure(model, batches, meters)
    here = scores.table[scores.table["position"] == position]
    heads = head_table(here, logits.table, values.table, eps)
    meta = provenance(
        model,
        rows,
        duration=time.perf_counter() - started,
        measurement="sink_report",
        texts=origin,
        n_texts=len(rows),
        length=length,
        position=position,
        eps=eps,
        massive="|value| > 100 and at least 1000 times the median |value| of the layer",
    )
    rates = (here["score"] > eps).groupby(here["batch"]).mean()
    return SinkReport(
        table=heads,
        meta=meta,
        scores=here[["batch", "layer", "head", "score"]].reset_index(drop=True),
        positions=scores.rates(eps).reset_index(),
        residual=norms.summary(position),
        massive=massive_table(massive.table),
        largest=massive.layers,
        attention=patterns(model, rows[0], heads),
        rates=rates.rename("rate").reset_index(),
        tokens=token_table(meta),
    )


@dataclass(frozen=True, eq=False)
class _Watch(Meter):
    """Measures nothing; tells the progress bar that a layer is done."""

    advance: Advance
    reads = frozenset({"residual"})

    def residual(self, batch: Batch, layer: int, stream: Tensor) -> dict[str, Any]:
        self.advance()
        return {}

    def result(self, tables: Any, meta: dict[str, Any]) -> None:
        return None
