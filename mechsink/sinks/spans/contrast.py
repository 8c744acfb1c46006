"""Contrast of attention maps: what a task makes of a span, over what all tasks do.

Source: CARVE, "Focusing by Contrastive Attention" (arXiv:2509.06461): the map of the
question at hand over that of a general instruction, so that noise of the span itself
falls out. The floor in both parts of the ratio is ours.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsink import plotting
from mechsink.interventions.attention_algebra import Span
from mechsink.interventions.attention_edits import at_layers
from mechsink.interventions.span_edits import hide_span
from mechsink.models.any_model import any_model
from mechsink.plotting import Axes
from mechsink.results import Result
from mechsink.run import Edit, Model
from mechsink.sinks.spans.tokens import span_tokens
from mechsink.sites import Site


def map_contrast(
    specific: Float[Tensor, "*map span"],
    general: Float[Tensor, "*map span"],
    *,
    floor: float = 0.1,
) -> Float[Tensor, "*map span"]:
    """(specific + floor) / (general + floor), made to sum to 1 over the span.

    Both maps are made to sum to 1 first; `floor` is in units of an even share, so it
    is floor / n that is added for n tokens. Equal maps, of any shape and size, give
    1 / n everywhere. A large floor contrasts less; 0 leaves the plain ratio.

    Args:
        specific: attention to each token of the span under the task, 0 and more.
        general: the same under a general request.
        floor: keeps tokens that get next to nothing in both from standing out.

    Returns:
        Share of the contrast, 0 to 1; an even share is 1 / n. NaN for a map that is 0
        everywhere.

    Raises:
        ValueError: negative attention, or a floor below 0.

    Source: CARVE (arXiv:2509.06461); the floor in both parts is ours.

    Examples:
        >>> general = torch.tensor([0.4, 0.4, 0.2])
        >>> specific = torch.tensor([0.2, 0.6, 0.2])
        >>> ms.map_contrast(specific, general, floor=0.0)
        tensor([0.1667, 0.5000, 0.3333])
    """
    if floor < 0 or bool((specific < 0).any()) or bool((general < 0).any()):
        raise ValueError(
            f"map_contrast: floor={floor}, least attention {float(specific.min()):.3g} "
            f"and {float(general.min()):.3g}. Allowed: 0 and more."
        )
    n = specific.shape[-1]
    over, under = (
        x / x.sum(-1, keepdim=True) + floor / n  # 0 / 0: NaN
        for x in (specific, general)
    )
    # 0 / 0, without a floor: neither map looks there.
    ratio = torch.where((over == 0) & (under == 0), torch.ones_like(over), over / under)
    return ratio / ratio.sum(-1, keepdim=True)


@dataclass(frozen=True, eq=False)
class SpanContrast(Result):
    """A span's tokens by attention under a task, over attention in general.

    `table`: batch (prompt), layer, pos, specific, general, contrast. The two maps are
    shares of attention from the last token, heads averaged; `contrast` sums to 1 over
    the span, so 1 / len(span) is even.

    Examples:
        >>> model = ms.planted("letter").model
        >>> specific = model.to_tokens("sun A owl B key C map D key")
        >>> general = model.to_tokens("sun A owl B key C map D fox")
        >>> found = ms.span_contrast(model, specific, general, range(1, 9))
        >>> found.kept(share=0.25, layers=[1])
        [2, 6]
        >>> ax = found.plot()
    """

    span: list[int]

    def contrast(
        self, prompt: int = 0, *, layers: Collection[int] | None = None
    ) -> Float[Tensor, " span"]:
        """The contrast of the span's tokens, mean over layers (default: all).

        Args:
            prompt: which.
            layers: which; default: all.

        Raises:
            ValueError: no such prompt or layers.
        """
        here: Any = self.table[self.table["batch"] == prompt]
        if layers is not None:
            here = here[here["layer"].isin(list(layers))]
        if here.empty:
            raise ValueError(
                f"SpanContrast: no rows for prompt={prompt}, layers={layers}. Allowed: "
                f"prompts 0 to {self.table['batch'].max()}, layers 0 to "
                f"{self.table['layer'].max()}."
            )
        means = here.groupby("pos")["contrast"].mean()
        return torch.tensor(means.loc[self.span].to_numpy())

    def kept(
        self,
        share: float = 0.5,
        prompt: int = 0,
        *,
        layers: Collection[int] | None = None,
    ) -> list[int]:
        """The top `share` of the span's tokens by contrast, at least one, in order.

        Args:
            share: of the span's tokens, above 0 to 1.
            prompt: which.
            layers: which; default: all.

        Raises:
            ValueError: a share outside 0 to 1.
        """
        if not 0 < share <= 1:
            raise ValueError(
                f"SpanContrast.kept: share={share}. Allowed: above 0, to 1 (all)."
            )
        contrast = self.contrast(prompt, layers=layers)
        n = max(1, round(share * len(self.span)))
        best = contrast.argsort(descending=True, stable=True)[:n]
        return sorted(self.span[i] for i in best.tolist())

    def edits(
        self,
        on_layers: Iterable[int],
        share: float = 0.5,
        prompt: int = 0,
        *,
        layers: Collection[int] | None = None,
    ) -> dict[Site, Edit]:
        """Hide the span's other tokens from all queries outside the span.

        For `edit=` of `model.run` and `generate`, on one prompt. Row sums: kept.

        Args:
            on_layers: where to hide them; all layers: as if they were not there.
            share: as in `kept`.
            prompt: as in `kept`.
            layers: as in `kept`.
        """
        kept = set(self.kept(share, prompt, layers=layers))
        return at_layers(hide_span([p for p in self.span if p not in kept]), on_layers)

    def plot(self, ax: Axes | None = None, *, prompt: int = 0) -> Axes:
        """Both maps, as shares of the span, and their contrast, mean over layers.

        Args:
            ax: where to draw; default: a new figure.
            prompt: which.
        """
        here: Any = self.table[self.table["batch"] == prompt]
        means = here.groupby("pos")[["specific", "general", "contrast"]].mean()
        means = means / means.sum()
        with plotting.theme():
            ax = ax or plotting.new_axes()
            for name, colour in (("specific", "C0"), ("general", "0.6")):
                ax.plot(means.index, means[name], color=colour, label=name)
            ax.plot(means.index, means["contrast"], color="C1", label="contrast")
            ax.axhline(1 / len(means), color="0.8", lw=0.8, zorder=0, label="even")
            ax.set_xlabel("position in the prompt")
            ax.set_ylabel("share of the span's attention")
            ax.legend()
            return ax


@any_model
def span_contrast(
    model: Model,
    specific: Int[Tensor, "batch pos"],
    general: Int[Tensor, "_ other"],
    span: Span,
    *,
    floor: float = 0.1,
) -> SpanContrast:
    """Attention of the last token to a span: a task's over a general instruction's.

    Args:
        model: any model.
        specific: prompts with the span and then the question.
        general: the same prompts up to the end of the span, then a general request,
            such as "Write a description of it."; one for each, or one row for all.
        span: marked positions, with tokens after them.
        floor: as in `map_contrast`.

    Returns:
        A `SpanContrast`, one row a prompt, layer and token of the span.

    Raises:
        ValueError: prompts that differ up to the span's end, or as `span_tokens`.

    Source: CARVE (arXiv:2509.06461).

    Examples:
        >>> model = ms.planted("letter").model
        >>> specific = model.to_tokens("sun A owl B key C map D key")
        >>> general = model.to_tokens("sun A owl B key C map D fox")
        >>> found = ms.span_contrast(model, specific, general, range(1, 9))
        >>> found.table.query("layer == 1").nlargest(1, "contrast").pos.tolist()  # C
        [6]
    """
    n, end = len(specific), max(span, default=-1) + 1
    if len(general) == 1:
        general = general.expand(n, -1)
    same = len(general) == n and torch.equal(specific[:, :end], general[:, :end])
    if not same:
        raise ValueError(
            f"span_contrast: {n} specific and {len(general)} general prompts, which "
            f"must be equal up to the end of the span, position {end - 1}. Put the "
            "span first and change only what follows it."
        )
    keys = ["batch", "layer", "pos"]
    maps: list[Any] = [span_tokens(model, x, span) for x in (specific, general)]
    tables = [m.table[[*keys, "summary"]].sort_values(keys) for m in maps]
    shape = (-1, len(span))
    on, off = (torch.tensor(t["summary"].to_numpy()).reshape(shape) for t in tables)
    contrast = map_contrast(on, off, floor=floor)
    table = pd.DataFrame(
        {
            **{key: tables[0][key].to_numpy() for key in keys},
            "specific": on.flatten().numpy(),
            "general": off.flatten().numpy(),
            "contrast": contrast.flatten().numpy(),
        }
    )
    settings = {**maps[0].meta["settings"], "floor": floor}
    meta = {**maps[0].meta, "settings": settings, "general": maps[1].meta["tokens"]}
    return SpanContrast(table, meta, list(span))
