"""Attention to a span's tokens without its positional trend, to prune by content.

Later tokens of a span often get more attention wherever what matters stands, and
padding gathers some as a sink: ranking by plain attention keeps those.

Source: Attention Debiasing for Token Pruning in vision-language models; the fits and
their choice are ours, after the paper's description.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from torch import Tensor

from mechsink import plotting
from mechsink.interventions.attention_algebra import Span
from mechsink.models.any_model import any_model
from mechsink.plotting import Axes
from mechsink.results import Result
from mechsink.run import Model
from mechsink.sinks.spans.tokens import span_tokens

Fit = Literal["polynomial", "isotonic", "mean"]
Removal = Literal["divide", "subtract"]
Reading = Literal["summary", "spatial"]


@dataclass(frozen=True, eq=False)
class DebiasedPositions(Result):
    """Attention to a span's tokens before and after its trend is taken off.

    `table`: batch (prompt), layer, pos, attention (a share, heads averaged; 0 on
    padding), trend (fitted over prompts, NaN on padding), debiased (same level and
    unit as attention), rank_before, rank_after (1: most, within a prompt and layer;
    equals by position), is_padding.

    Examples:
        >>> case = ms.planted("letter")
        >>> found = ms.debias_positions(case.model, case.pairs.clean, range(1, 9))
        >>> list(found.table)
        ['batch', 'layer', 'pos', 'attention', 'trend', 'debiased', 'rank_before',
        'rank_after', 'is_padding']
        >>> ax = found.plot()
    """

    span: list[int]

    def kept(
        self, n: int, prompt: int = 0, *, layer: int | None = None, plain: bool = False
    ) -> list[int]:
        """The `n` tokens to keep, in order: most debiased attention, no padding.

        Args:
            n: how many.
            prompt: which prompt.
            layer: that of one layer; default: the mean over layers.
            plain: by attention as it was, for comparison.

        Raises:
            ValueError: no such prompt or layer.
        """
        here: Any = self.table[(self.table["batch"] == prompt)]
        here = here[~here["is_padding"].astype(bool)]
        if layer is not None:
            here = here[here["layer"] == layer]
        if here.empty:
            raise ValueError(
                f"DebiasedPositions.kept: nothing for prompt={prompt}, layer={layer}. "
                f"Allowed: prompts 0 to {self.table['batch'].max()}, layers 0 to "
                f"{self.table['layer'].max()}."
            )
        column = "attention" if plain else "debiased"
        means = here.groupby("pos")[column].mean()
        return sorted(int(pos) for pos in means.nlargest(n).index)

    def plot(self, ax: Axes | None = None, *, layer: int | None = None) -> Axes:
        """Mean attention by position, before and after, with the trend.

        Args:
            ax: where to draw; default: a new figure.
            layer: which; default: the mean over layers.
        """
        here: Any = self.table[~self.table["is_padding"].astype(bool)]
        if layer is not None:
            here = here[here["layer"] == layer]
        means = here.groupby("pos")[["attention", "trend", "debiased"]].mean()
        with plotting.theme():
            ax = ax or plotting.new_axes()
            for name, colour, line in (
                ("attention", "C0", "-"),
                ("trend", "0.5", "--"),
                ("debiased", "C1", "-"),
            ):
                places, values = means.index, means[name]
                ax.plot(places, values, label=name, color=colour, linestyle=line)
            where = "all layers" if layer is None else f"layer {layer}"
            ax.set_xlabel("position in the prompt")
            ax.set_ylabel(f"share of attention, {where}")
            ax.legend()
            return ax


def positional_trend(
    attention: Float[np.ndarray, "prompt span"],
    padding: Bool[np.ndarray, "prompt span"] | None = None,
    *,
    fit: Fit = "polynomial",
    degree: int = 2,
) -> Float[np.ndarray, " span"]:
    """Attention as a function of the place in the span, fitted over prompts.

    "polynomial": least squares of `degree`, over all tokens that are no padding: low,
    so that it follows the trend and not what stands there. "isotonic": the increasing
    function nearest in least squares, for trends that only rise. "mean": each place's
    mean over prompts; takes off whatever prompts share, and needs many that differ.

    Args:
        attention: to each token of the span.
        padding: tokens to leave out.
        fit, degree: as above.

    Returns:
        The trend, in the unit of `attention`; NaN where all prompts have padding.

    Raises:
        ValueError: nothing but padding, too few places for the degree, or "mean" of
            one prompt.
    """
    known = np.ones_like(attention, dtype=bool) if padding is None else ~padding
    count = known.sum(0)
    seen = count > 0
    single = fit == "mean" and len(attention) < 2
    few = fit == "polynomial" and not 0 <= degree < seen.sum()
    if not seen.any() or single or few:
        raise ValueError(
            f"positional_trend: fit={fit!r}, degree={degree}, {len(attention)} "
            f"prompts, {seen.sum()} places not all padding. Allowed: 'mean' of two "
            "prompts and more, 'polynomial' of a degree below the number of places, "
            "'isotonic' of any."
        )
    places = np.arange(attention.shape[1])
    total = np.where(known, attention, 0.0).sum(0)
    mean = total[seen] / count[seen]
    # Least squares over tokens are those over means, weighted by how many they are of.
    if fit == "polynomial":
        domain = (0, max(len(places) - 1, 1))
        weight = np.sqrt(count[seen])
        line = np.polynomial.Polynomial.fit(
            places[seen], mean, degree, domain=domain, w=weight
        )
        fitted = line(places[seen])
    elif fit == "isotonic":
        from scipy.optimize import isotonic_regression  # here: slow to import

        fitted = isotonic_regression(mean, weights=count[seen].astype(float)).x
    else:
        fitted = mean
    trend = np.full(attention.shape[1], np.nan)
    trend[seen] = fitted
    return trend


def without_trend(
    attention: Float[np.ndarray, "prompt span"],
    trend: Float[np.ndarray, " span"],
    padding: Bool[np.ndarray, "prompt span"] | None = None,
    *,
    remove: Removal = "divide",
) -> Float[np.ndarray, "prompt span"]:
    """Attention with the trend taken off, at the trend's mean level; padding is 0.

    "divide": attention / trend * mean trend, for a trend that multiplies, spread and
    all; "subtract": attention - trend + mean trend, for one that adds (values may fall
    below 0).

    Raises:
        ValueError: to divide by a trend that is not above 0 everywhere.
    """
    known = ~np.isnan(trend)
    if remove == "divide" and not (trend[known] > 0).all():
        raise ValueError(
            f"without_trend: the trend falls to {np.nanmin(trend):.3g}, so attention "
            "can't be divided by it. Take remove='subtract', fit='isotonic' or "
            "'mean', or a lower degree=."
        )
    level = trend[known].mean()
    with np.errstate(invalid="ignore"):
        if remove == "divide":
            new = attention / trend * level
        else:
            new = attention - trend + level
    return np.where(np.zeros_like(new, bool) if padding is None else padding, 0.0, new)


@any_model
def debias_positions(
    model: Model,
    tokens: Tensor | Sequence[Tensor],
    span: Span,
    *,
    padding: Bool[Tensor, "prompt span"] | None = None,
    reading: Reading = "summary",
    fit: Fit = "polynomial",
    degree: int = 2,
    remove: Removal = "divide",
) -> DebiasedPositions:
    """Take the positional trend off the attention to a span's tokens, layer by layer.

    Args:
        model: any model.
        tokens: Int[batch pos], or a list of such tensors; many prompts, whose
            contents differ, so that what they share is the position.
        span: marked positions, the same in every prompt, with tokens after them.
        padding: which of the span's tokens are padding: 0 and last in rank.
        reading: attention from the last token ("summary") or mean over all tokens
            after the span ("spatial"), heads averaged, as in `span_tokens`.
        fit: of the trend: "polynomial", "isotonic" or "mean" (of many prompts).
        degree: of the polynomial.
        remove: "divide" by the trend, where it multiplies, or "subtract" it.

    Returns:
        `DebiasedPositions`, one row a prompt, layer and token of the span.

    Raises:
        ValueError: as `span_tokens`, `positional_trend` and `without_trend`; padding
            of another shape.

    Source: Attention Debiasing for Token Pruning; fits ours.

    Examples:
        >>> case = ms.planted("letter")
        >>> found = ms.debias_positions(case.model, case.pairs.clean, range(1, 9))
        >>> case.model.to_strings(case.pairs.clean[0])
        ['<s>', 'key', 'A', 'map', 'B', 'cup', 'C', 'hat', 'D', 'cup']
        >>> found.kept(1, prompt=0, layer=1)  # the label after the question's content
        [6]
    """
    found = span_tokens(model, tokens, span)
    table: Any = found.table[["batch", "layer", "pos", reading]]
    table = table.rename(columns={reading: "attention"})
    n, given = table["batch"].nunique(), None if padding is None else padding.shape
    if given is not None and tuple(given) != (n, len(span)):
        raise ValueError(
            f"debias_positions: padding has shape {tuple(given)} for {n} prompts with "
            f"a span of {len(span)}. Give one Bool a prompt and token of the span."
        )
    hidden = (
        np.zeros((n, len(span)), bool) if padding is None else padding.cpu().numpy()
    )
    parts = []
    for _, part in table.groupby("layer"):
        part = part.sort_values(["batch", "pos"])
        seen = part["attention"].to_numpy().reshape(n, len(span))
        seen = np.where(hidden, 0.0, seen)
        trend = positional_trend(seen, hidden, fit=fit, degree=degree)
        new = without_trend(seen, trend, hidden, remove=remove)
        parts.append(
            part.assign(
                attention=seen.ravel(),
                trend=np.where(hidden, np.nan, trend).ravel(),
                debiased=new.ravel(),
                rank_before=_ranks(seen, hidden).ravel(),
                rank_after=_ranks(new, hidden).ravel(),
                is_padding=hidden.ravel(),
            )
        )
    settings = {
        **found.meta["settings"],
        "reading": reading,
        "fit": fit,
        "degree": degree if fit == "polynomial" else None,
        "remove": remove,
    }
    joined = pd.concat(parts).sort_values(["batch", "layer", "pos"], ignore_index=True)
    return DebiasedPositions(joined, {**found.meta, "settings": settings}, list(span))


def _ranks(
    values: Float[np.ndarray, "prompt span"], padding: Bool[np.ndarray, "prompt span"]
) -> np.ndarray:
    """1: most; padding comes last."""
    order = np.where(padding, -np.inf, values)
    best_first = np.argsort(-order, axis=1, kind="stable")
    return np.argsort(best_first, axis=1, kind="stable") + 1
