"""Secondary sinks: the published rules of detection, on norms and cosines alone.

Layers are numbered as in the paper: l = 0 to L-1 is the output of block l.
Source: Secondary Attention Sinks (arXiv:2512.22213), its code.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

LEAST_LAYERS = 24
"""From so many layers on the published rule, fewer than L - 15 layers, leaves room."""


@dataclass(frozen=True)
class LabelRule:
    """Which lifetimes make a secondary sink: more_than < lifetime < fewer_than.

    A longer life makes a `bos_sink`, a shorter one `noise`. `origin`: "published",
    "fraction (ours)" or "given".
    """

    more_than: float
    fewer_than: float
    origin: str

    def label(self, lifetime: int) -> str:
        """Of a token that resembles the primary in so many layers."""
        if lifetime >= self.fewer_than:
            return "bos_sink"
        return "secondary" if lifetime > self.more_than else "noise"


def label_rule(
    n_layers: int,
    start: int,
    end: int,
    *,
    more_than: int | float | None = None,
    fewer_than: int | float | None = None,
) -> LabelRule:
    """The rule for a model and an active range; given bounds replace its own.

    Published: 4 < lifetime < L - 15, tuned to models of 36 to 64 layers. Below
    `LEAST_LAYERS` it leaves little or no room, and fractions of the active range
    that are ours take its place: (end - start) / 7 (4 of Qwen3-4B's 28 layers)
    < lifetime < .65 (end - start).
    """
    if n_layers >= LEAST_LAYERS:
        low, high, origin = 4.0, float(n_layers - 15), "published"
    else:
        n_active = end - start
        low, high, origin = n_active / 7, 0.65 * n_active, "fraction (ours)"
    if more_than is not None or fewer_than is not None:
        origin = "given"
    return LabelRule(
        low if more_than is None else float(more_than),
        high if fewer_than is None else float(fewer_than),
        origin,
    )


def active_range(norms: Float[Tensor, " layer"]) -> tuple[int, int]:
    """Layers [start, end) in which the primary sink's norm is large.

    `start` is the layer after the largest rise, `end` the layer after the largest
    fall from there on (the smallest rise where it never falls); end = L where no
    layer is left.
    """
    rise = norms.diff()
    start = int(rise.argmax()) + 1
    later = rise[start:]
    return start, start + int(later.argmin()) + 1 if len(later) else len(norms)


def primary_of(norms: Float[Tensor, "layer candidate"]) -> int:
    """The candidate of the largest norm, averaged over layers; an index of the axis."""
    return int(norms.mean(dim=0).argmax())


def alike_layers(
    cosines: Float[Tensor, "layer pos"],
    primary: int,
    start: int,
    end: int,
    threshold: float,
) -> Mapping[int, list[int]]:
    """Later position to the active layers in which |cosine| exceeds `threshold`.

    `cosines` are those of every state with the primary's in the same layer.
    """
    is_alike = cosines.abs() > threshold
    is_alike[:start] = False
    is_alike[end:] = False
    is_alike[:, : primary + 1] = False
    found: dict[int, list[int]] = {}
    for pos, layer in is_alike.T.nonzero().tolist():
        found.setdefault(pos, []).append(layer)
    return found


def is_contiguous(layers: list[int]) -> bool:
    """Whether no layer is missing between the first and the last."""
    return layers[-1] - layers[0] + 1 == len(layers)
