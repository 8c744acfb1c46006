"""Where planted circuits are built: named directions, empty weights, distractors.

The residual stream is cut into named orthogonal directions. A planted head reads and
writes some of them; whatever is left is "junk", where distractors write and which
neither a planted part nor the unembedding reads.

Three variants of every circuit:

- "plain": no norm, as many key-value heads as heads; distractors do exactly nothing.
- "grouped": the same, with two heads to a key-value head.
- "rms": RMSNorm. Every token writes `CONST_RMS` along "const", so the norm's divisor
  hardly moves and its gain undoes it: what is read is the residual times 1 - O(1e-3).
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from toy_tasks.config import ToyConfig
from toy_tasks.planted.distractors import N_NEURONS, scatter
from toy_tasks.transformer import ToyTransformer

Variant = Literal["plain", "grouped", "rms"]
Parts = Mapping[str, Float[Tensor, "_ _"]]
"""Blocks of a weight matrix, by direction: [its dimensions, the other axis]."""

D_MODEL = 64
CONST_RMS = 128.0
ROUNDING = 1e-9
"""Effects below it are float64 rounding; in float32 rounding stays below 1e-4."""


class Workbench:
    """A `ToyTransformer` of zeros with named directions, to plant weights in.

    Args:
        where: who calls, for errors.
        directions: name to number of dimensions; "const" (1) is added, then "junk".
        n_heads: planted heads a layer, numbered from 0.
        d_head: a square number, so that scores are divided by a whole one.
        n_neurons: planted neurons a layer; with 0 the MLPs hold distractors only, and
            without distractors there are none.

    Raises:
        ValueError: an unknown variant.
    """

    def __init__(
        self,
        where: str,
        directions: Mapping[str, int],
        *,
        d_vocab: int,
        n_ctx: int,
        d_head: int,
        n_layers: int = 1,
        n_heads: int = 1,
        n_neurons: int = 0,
        variant: Variant = "plain",
        distractors: bool = True,
        seed: int = 0,
    ) -> None:
        if variant not in get_args(Variant):
            raise ValueError(
                f"{where}: variant={variant!r} is unknown. Allowed: "
                f"{', '.join(map(repr, get_args(Variant)))}."
            )
        sizes = {**directions, "const": 1}
        sizes["junk"] = D_MODEL - sum(sizes.values())
        assert sizes["junk"] >= 8 and math.isqrt(d_head) ** 2 == d_head
        self.directions: dict[str, tuple[int, ...]] = {}
        start = 0
        for name, size in sizes.items():
            self.directions[name] = tuple(range(start, start + size))
            start += size
        self.variant: Variant = variant
        self.const = CONST_RMS if variant == "rms" else 1.0
        group = 2 if variant == "grouped" else 1
        n_all = n_heads + 2 * distractors
        n_all += n_all % group
        n_mlp = n_neurons + N_NEURONS * distractors
        config = ToyConfig(
            d_vocab=d_vocab,
            n_layers=n_layers,
            n_heads=n_all,
            n_kv_heads=n_all // group,
            d_model=D_MODEL,
            d_head=d_head,
            d_mlp=max(1, n_mlp),
            n_ctx=n_ctx,
            norm="rms" if variant == "rms" else "none",
            mlp_layers=None if n_mlp else (),
        )
        self.model = ToyTransformer(config)
        self.model.requires_grad_(False)
        for parameter in self.model.parameters():
            parameter.zero_()
        if variant == "rms":
            for name, parameter in self.model.named_parameters():
                if name.endswith(".w"):  # undoes the divisor, const / sqrt(d_model)
                    parameter.fill_(self.const / math.sqrt(D_MODEL))
        self.group = group
        self._blocks: list[Any] = list(self.model.blocks)
        self.put(self.model.W_E, {"const": torch.full((1, d_vocab), self.const)}, -1)
        if distractors:
            scatter(
                self.model,
                const=self.directions["const"][0],
                const_size=self.const,
                junk=self.directions["junk"],
                n_heads=n_heads,
                n_neurons=n_neurons,
                seed=seed,
            )
        self.distractor_heads = tuple(
            f"a{layer}.h{head}"
            for layer in range(n_layers)
            for head in range(n_heads, n_all)
            if distractors
        )

    def put(
        self,
        weight: Float[Tensor, "..."],
        parts: Parts,
        axis: int,
    ) -> None:
        """Write blocks into a matrix whose `axis` (0 or -1) is the residual stream.

        Each block is [dimensions of the direction, the other axis from 0 on].
        """
        matrix = weight if axis == 0 else weight.T
        for name, block in parts.items():
            rows = list(self.directions[name])
            matrix[rows, : block.shape[1]] = block.to(matrix.dtype)

    def embed(
        self,
        tokens: Parts,
        positions: Parts,
    ) -> None:
        """What tokens and positions write, besides the constant."""
        self.put(self.model.W_E, tokens, -1)
        self.put(self.model.W_pos, positions, -1)

    def head(
        self,
        layer: int,
        head: int,
        *,
        q: Parts,
        k: Parts,
        v: Parts,
        o: Parts,
    ) -> None:
        """Plant a head; `q` is in units of attention scores, after the division.

        All blocks are [dimensions of the direction, dimensions of the head]; "const"
        is read as 1 whatever the variant.
        """
        attn = self._blocks[layer].attn
        kv = head // self.group
        scale = math.sqrt(self.model.config.d_head)
        for weight, parts, factor in (
            (attn.W_Q[head], q, scale),
            (attn.W_K[kv], k, 1.0),
            (attn.W_V[kv], v, 1.0),
        ):
            weight.zero_()
            self.put(weight, self._reading(parts, factor), 0)
        attn.W_O[head].zero_()
        self.put(attn.W_O[head], o, -1)

    def neurons(
        self,
        layer: int,
        w_in: Parts,
        w_out: Parts,
    ) -> None:
        """Plant the first neurons of an MLP; "const" is read as 1."""
        mlp = self._blocks[layer].mlp
        self.put(mlp.W_in, self._reading(w_in, 1.0), 0)
        self.put(mlp.W_out, w_out, -1)

    def unembed(self, parts: Parts) -> None:
        """What the logits read; "const" is read as 1."""
        self.put(self.model.W_unembed, self._reading(parts, 1.0), 0)

    def q(self, layer: int, head: int) -> str:
        """Name of a head's query as a target."""
        return f"a{layer}.h{head}<q>"

    def k(self, layer: int, head: int) -> str:
        """Name of its key."""
        return f"a{layer}.{self._kv_name(head)}<k>"

    def v(self, layer: int, head: int) -> str:
        """Name of its value."""
        return f"a{layer}.{self._kv_name(head)}<v>"

    def _kv_name(self, head: int) -> str:
        return f"h{head}" if self.group == 1 else f"kv{head // self.group}"

    def _reading(self, parts: Parts, factor: float) -> Parts:
        return {
            name: block * factor / (self.const if name == "const" else 1.0)
            for name, block in parts.items()
        }
