"""Tokens of a marked span by the attention that they receive.

Readings from the same columns of each layer's pattern: gaze shift (GIFT),
outliers of a summary token (DAMRO), local information and spatial significance
(Fixing Imbalanced Attention). The formulas are ours, after the papers' descriptions.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechsink import plotting
from mechsink.interventions.attention_algebra import Span
from mechsink.models.any_model import any_model
from mechsink.plotting import Axes
from mechsink.results import Result
from mechsink.run import LayerAttention, Model
from mechsink.sinks.measure import (
    Batch,
    Meter,
    Rows,
    at_least_float32,
    check_positions,
    measure,
    rows,
)

_READINGS = {
    "gaze": "gaze: increases, summed",
    "summary": "from the summary token",
    "local": "from the span's next tokens",
    "spatial": "from all after the span",
}


@dataclass(frozen=True, eq=False)
class SpanTokens(Result):
    """Attention to each token of a span, in four readings, heads averaged.

    `table`: batch (prompt), layer, pos, gaze, summary, local, spatial. All are
    shares of attention: `gaze` the summed positive increases from query token to
    query token (it may exceed 1), `summary` from the summary token, `local` the
    mean from the span's next tokens (NaN for its last), `spatial` the mean from all
    tokens after the span.

    Examples:
        >>> case = ms.planted("letter")
        >>> found = ms.span_tokens(case.model, case.pairs.clean, range(1, 9))
        >>> found.outliers(n=1, layers=[1])
        [6]
        >>> found.saliency().shape, len(found.emphasised())
        (torch.Size([8]), 3)
    """

    span: list[int]

    def saliency(
        self, prompt: int = 0, *, layers: Collection[int] | None = None
    ) -> Float[Tensor, " span"]:
        """Gaze shift of the span's tokens, mean over layers (default: all).

        Args:
            prompt: which.
            layers: which; default: all.
        """
        return torch.tensor(self._means(prompt, layers)["gaze"].to_numpy())

    def outliers(
        self, prompt: int = 0, n: int = 10, *, layers: Collection[int] | None = None
    ) -> list[int]:
        """The `n` tokens that the summary token attends to most, most first.

        Args:
            prompt: which.
            n: how many.
            layers: which; default: all.
        """
        means = self._means(prompt, layers)["summary"]
        return [int(pos) for pos in means.nlargest(n).index]

    def emphasised(
        self,
        prompt: int = 0,
        share: float = 0.2,
        *,
        layers: Collection[int] | None = None,
    ) -> list[int]:
        """Tokens among the top `share` of the span by `local` or by `spatial`.

        Args:
            prompt: which.
            share: of the span's tokens, by each of the two.
            layers: which; default: all.
        """
        means = self._means(prompt, layers)
        n = max(1, round(share * len(self.span)))
        chosen = {*means["local"].nlargest(n).index}
        return sorted(int(p) for p in chosen | {*means["spatial"].nlargest(n).index})

    def plot(self, ax: Axes | None = None, *, prompt: int = 0) -> Axes:
        """The four readings along the span, means over layers.

        Args:
            ax: where to draw; a new figure by default.
            prompt: whose span, by its number.
        """
        means = self._means(prompt, None)
        with plotting.theme():
            ax = ax or plotting.new_axes()
            for reading, colour in zip(_READINGS, plotting.colours(4), strict=True):
                ax.plot(means.index, means[reading], "o-", ms=2.5, color=colour,
                        label=_READINGS[reading])  # fmt: skip
            ax.set(xlabel="position in the prompt", ylabel="attention received")
            ax.set_ylim(bottom=0)
            plotting.whole_numbers(ax.xaxis)
            ax.legend(fontsize="x-small")
        return ax

    def _means(self, prompt: int, layers: Collection[int] | None) -> Any:
        """One row a token of the span: means over layers."""
        here: Any = self.table[self.table["batch"] == prompt]
        if layers is not None:
            here = here[here["layer"].isin(list(layers))]
        if here.empty:
            raise ValueError(
                f"SpanTokens: no rows for prompt={prompt}, layers={layers}. Allowed: "
                f"prompts 0 to {self.table['batch'].max()}, layers 0 to "
                f"{self.table['layer'].max()}."
            )
        return here.groupby("pos").mean().loc[self.span]


@dataclass(frozen=True)
class SpanTokenMeter(Meter):
    """Readings of a span's tokens, for `measure`; options as in the function."""

    span: tuple[int, ...]
    query: tuple[int, ...]
    summary: int
    window: int
    reads = frozenset({"attention"})

    def check(self, batches: Sequence[Batch]) -> None:
        """Span, query and summary inside every prompt, after one another."""
        last = max(self.span)
        check_positions(batches, [*self.span, last + 1, *self.query])
        for batch in batches:
            summary = self._summary(batch.n_pos)
            if not last < summary < batch.n_pos:
                raise ValueError(
                    f"span_tokens: summary={self.summary} is not after the span, which "
                    f"ends at {last}, in a {batch.n_pos}-token prompt, so it can't see "
                    f"it all. Allowed: {last + 1} to {batch.n_pos - 1}, or -1 for the "
                    "last token."
                )

    def attention(self, batch: Batch, layer: LayerAttention) -> Mapping[str, Rows]:
        """One row a prompt and token."""
        columns = at_least_float32(layer.columns(self.span)).mean(1)  # heads alike
        read = columns[:, list(self.query)]  # batch query span
        gaze = (read[:, 1:] - read[:, :-1]).clamp(min=0).sum(1)
        axes = {"batch": batch.prompts, "layer": [layer.layer], "pos": self.span}
        values = rows(
            axes,
            gaze=gaze,
            summary=columns[:, self._summary(batch.n_pos)],
            local=self._local(columns),
            spatial=columns[:, max(self.span) + 1 :].mean(1),
        )
        return {"table": values}

    def result(self, tables: Mapping[str, pd.DataFrame], meta: dict[str, Any]) -> Any:
        """The readings as a result."""
        return SpanTokens(tables["table"], meta, list(self.span))

    def _summary(self, n_pos: int) -> int:
        return n_pos - 1 if self.summary == -1 else self.summary

    def _local(
        self, columns: Float[Tensor, "batch query span"]
    ) -> Float[Tensor, "batch span"]:
        means = torch.full_like(columns[:, 0], torch.nan)
        for number, key in enumerate(self.span):
            near = [i for i in self.span if key < i <= key + self.window]
            if near:
                means[:, number] = columns[:, near, number].mean(1)
        return means


@any_model
def span_tokens(
    model: Model,
    tokens: Tensor | Sequence[Tensor],
    span: Span,
    *,
    query: Span | None = None,
    summary: int = -1,
    window: int = 8,
) -> SpanTokens:
    """Attention that each token of a span receives, in four readings.

    Args:
        model: any model.
        tokens: Int[batch pos], or a list of such tensors (see `measure`).
        span: marked positions, the same in every prompt, with tokens after them.
        query: tokens of the question, in the order of reading, for `gaze`; default:
            the span's next tokens, to the end of the shortest prompt.
        summary: the summary token, -1 for the last one.
        window: how many next tokens of the span count as near, for `local`.

    Returns:
        `SpanTokens`, one row a prompt, layer and token of the span.

    Raises:
        ValueError: span, query or summary outside a prompt or out of order.

    Source: GIFT (gaze), DAMRO, arXiv:2410.04514 (summary), Fixing Imbalanced
    Attention (local, spatial).

    Examples:
        >>> case = ms.planted("letter")
        >>> found = ms.span_tokens(case.model, case.pairs.clean, range(1, 9))
        >>> list(found.table)
        ['batch', 'layer', 'pos', 'gaze', 'summary', 'local', 'spatial']
    """
    given = [tokens] if isinstance(tokens, Tensor) else list(tokens)
    if not len(span) or list(span) != sorted(set(span)):
        raise ValueError(
            f"span_tokens: span={list(span)}. Mark at least one position, in order, "
            "each once, such as range(3, 9)."
        )
    if query is None:
        query = range(max(span) + 1, min((part.shape[-1] for part in given), default=0))
    if any(pos <= max(span) for pos in query) or list(query) != sorted(query):
        raise ValueError(
            f"span_tokens: query={list(query)} must come after the span, which ends at "
            f"{max(span)}, in the order of reading."
        )
    meter = SpanTokenMeter(tuple(span), tuple(query), summary, window)
    return measure(model, tokens, [meter])[0]
