"""Where patched values enter the residual stream.

Patching a site of layer l changes the residual stream from resid_post of l on. An
`Entry` is that changed stream, for every layer at once: one pass in which every
layer starts from the base run's resid_pre gives all layers' effects together.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsink.models.continuation import BaseRun
from mechsink.run import Edit, Model
from mechsink.sites import AXES, Site

LOCAL = ("attn_out", "mlp_out", "resid_mid", "z", "q", "pattern", "mlp_post")
"""Sites where a change at one position changes the same block's output there only."""
SPREADING = ("k", "v")
"""Sites where it changes every later position of the block's output."""
STREAM = ("resid_pre", "resid_post")


@dataclass(frozen=True, eq=False)
class Entry:
    """Changed residual streams that share a position and a part.

    Args:
        pos: first changed position; None when all positions were patched.
        part: head, KV head or neuron; None when the site has none.
        level: layer to the index of the resid_pre that it enters as: l or l + 1.
        streams: layer to Float[prompt tail d_model], from `pos` (or 0) to the end.
    """

    pos: int | None
    part: int | None
    level: Mapping[int, int]
    streams: Mapping[int, Float[Tensor, "prompt tail d_model"]]

    @property
    def start(self) -> int:
        """First position of the streams."""
        return self.pos or 0


def entries(
    model: Model,
    base: BaseRun,
    source: Mapping[Site, Tensor],
    name: str,
    layers: Sequence[int],
    positions: Sequence[int] | None,
    parts: Sequence[int | None],
) -> Iterator[list[Entry]]:
    """Every patch of a sweep as a changed residual stream, a position at a time.

    Args:
        model: the model of `base`.
        base: the run that is patched.
        source: values of the whole site in the other run, one a layer.
        name: site name.
        layers: which layers.
        positions: which positions, one at a time; None for all at once.
        parts: heads, KV heads or neurons; [None] for the whole site.
    """
    spots: Sequence[int | None] = [None] if positions is None else positions
    up = 0 if name == "resid_pre" else 1  # a patched resid_pre enters its own layer
    level = {layer: layer + up for layer in layers}

    def patched(part: int | None, pos: int | None) -> dict[int, Tensor]:
        if name in STREAM:
            return {layer: source[Site(name, layer)] for layer in layers}
        edits = {
            layer: _replaced(name, source[Site(name, layer)], part, pos)
            for layer in layers
        }
        return _resid_post(model, base, name, edits)

    if name in SPREADING and positions is not None:
        for pos in positions:
            yield [
                Entry(pos, part, level, {n: x[:, pos:] for n, x in after.items()})
                for part in parts
                for after in [patched(part, pos)]
            ]
        return
    # One pass patches all positions together: each shows in its own row alone.
    everywhere = {part: patched(part, None) for part in parts}
    for pos in spots:
        yield [
            Entry(
                pos,
                part,
                level,
                {
                    layer: new
                    if pos is None
                    else _put_first(base.resid[level[layer]][:, pos:], new[:, pos])
                    for layer, new in after.items()
                },
            )
            for part, after in everywhere.items()
        ]


def _resid_post(
    model: Model, base: BaseRun, name: str, edits: Mapping[int, Edit]
) -> dict[int, Tensor]:
    """resid_post of each layer, were only that layer edited: one pass for all."""
    every: dict[Site, Edit] = {}
    for layer, edit in edits.items():
        every[Site("resid_pre", layer)] = lambda x, layer=layer: base.resid[layer]
        every[Site(name, layer)] = edit
    read = [Site("resid_post", layer) for layer in edits]
    cache = model.run(base.tokens, read=read, edit=every).cache
    return {site.layer: cache[site] for site in read}


def _replaced(name: str, new: Tensor, part: int | None, pos: int | None) -> Edit:
    index = part_index(name, part, pos)

    def edit(x: Tensor) -> Tensor:
        x = x.clone()
        x[index] = new[index]
        return x

    return edit


def part_index(
    name: str, part: int | None, pos: "int | Int[Tensor, ' row'] | None"
) -> tuple[slice | int | Tensor, ...]:
    """Index of a part at a position in the whole site's tensor, batch axis first.

    For a pattern the position is the query: its row is replaced.
    """
    everything = slice(None)
    axes = AXES[name]
    where = {"head": part, "kv_head": part, "d_mlp": part, "pos": pos, "query": pos}
    picked = [where.get(axis) for axis in axes]
    return tuple(everything if index is None else index for index in picked)


def _put_first(stream: Tensor, first: Tensor) -> Tensor:
    return torch.cat([first[:, None], stream[:, 1:]], dim=1)
