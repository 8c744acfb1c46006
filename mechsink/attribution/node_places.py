"""Which nodes a node method scores, and how a site's tensor falls into them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechsink.run import ModelShape
from mechsink.sites import AXES, Site

PART_COLUMN = {"head": "head", "kv_head": "kv_head", "d_mlp": "neuron"}
Positions = Sequence[int] | Literal["all"] | None


@dataclass(frozen=True)
class NodePlaces:
    """The nodes of one site: layers by parts by positions.

    `parts` are heads, KV heads or neurons, [None] where the site is one node.
    `positions` None: every position a node of its own; "all": all together.
    A row (query) of pattern or attn_scores counts as its position.
    """

    name: str
    layers: tuple[int, ...]
    parts: tuple[int | None, ...]
    positions: tuple[int, ...] | Literal["all"] | None

    @property
    def sites(self) -> list[Site]:
        """One whole site a layer."""
        return [Site(self.name, layer) for layer in self.layers]

    @property
    def part_column(self) -> str | None:
        """Name of the parts in a table; None where the site is one node."""
        if self.parts == (None,):
            return None
        return next(PART_COLUMN[a] for a in AXES[self.name] if a in PART_COLUMN)

    def spots(self, n_pos: int) -> list[int]:
        """Positions of a prompt that are nodes; [-1] for all together."""
        if self.positions == "all":
            return [-1]
        return list(range(n_pos) if self.positions is None else self.positions)

    def by_node(self, product: Tensor) -> Float[Tensor, "batch part spot"]:
        """Entries of the site's tensor summed within each node, in double."""
        axes = list(AXES[self.name])
        if self.name == "mlp_post" and self.part_column is not None:
            product = product[..., list(self.parts)]
        for axis in ("d_model", "d_head", "key"):
            if axis in axes:
                product = product.sum(axes.index(axis), dtype=torch.float64)
                axes.remove(axis)
        if "d_mlp" in axes and self.part_column is None:
            product = product.sum(-1, dtype=torch.float64)
            axes.remove("d_mlp")
        if axes == ["batch", "pos"]:
            product = product[:, None]
        elif axes[1] == "pos":  # a part follows
            product = product.transpose(1, 2)
        return self.at_spots(product.double())

    def at_spots(
        self, by_pos: Float[Tensor, "batch part pos"]
    ) -> Float[Tensor, "batch part spot"]:
        """The positions that are nodes, or the sum over all of them."""
        if self.positions == "all":
            return by_pos.sum(-1, keepdim=True)
        return by_pos if self.positions is None else by_pos[..., list(self.positions)]


def node_places(
    caller: str,
    shape: ModelShape,
    name: str,
    layers: Sequence[int] | None,
    positions: Positions,
    neurons: Sequence[int] | None,
    n_pos: Sequence[int],
) -> NodePlaces:
    """Check what was asked for.

    Args:
        caller: named in errors.
        shape: the model's.
        name: of the site.
        layers: which; None for all.
        positions: which; None for all, one by one; "all" for all together.
        neurons: of mlp_post, one node each; None for the whole site.
        n_pos: lengths of the prompts.

    Raises:
        ValueError: a site, layer, position or neuron that is not there.
    """
    shape.check(Site(name, 0))
    if name in shape.read_only:
        raise ValueError(
            f"{caller}: this model's own attention code discards edits of {name}, so "
            "nothing can be differentiated there. Take z or attn_out instead."
        )
    chosen = range(shape.n_layers) if layers is None else layers
    _inside(caller, "layers", chosen, shape.n_layers)
    parts: Sequence[int | None] = [None]
    if neurons is not None:
        if name != "mlp_post":
            raise ValueError(
                f'{caller}: neurons= goes with site="mlp_post", not {name!r}.'
            )
        _inside(caller, "neurons", neurons, shape.d_mlp)
        parts = list(dict.fromkeys(neurons))
    elif "head" in AXES[name]:
        parts = range(shape.n_heads)
    elif "kv_head" in AXES[name]:
        parts = range(shape.n_kv_heads)
    where: tuple[int, ...] | Literal["all"] | None = "all"
    if isinstance(positions, str):
        if positions != "all":
            raise ValueError(
                f'{caller}: positions={positions!r}. Allowed: a list of numbers, "all" '
                "to take all together, or None for all, one at a time."
            )
    else:
        where = None if positions is None else tuple(dict.fromkeys(positions))
        if where is not None:
            _inside(caller, "positions", where, min(n_pos))
    return NodePlaces(name, tuple(sorted(set(chosen))), tuple(parts), where)


def _inside(caller: str, what: str, chosen: Sequence[int], n: int) -> None:
    if not chosen or any(not 0 <= number < n for number in chosen):
        has = "the shortest prompt has" if what == "positions" else "this model has"
        raise ValueError(
            f"{caller}: {what}={list(chosen)}, but {has} {n}. Allowed: some of 0 to "
            f"{n - 1}."
        )
