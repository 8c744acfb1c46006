"""A layer's attention read in blocks of keys, and as shares of its rows.

Source: the proxy of Gu et al. 2024 (arXiv:2410.10781) for unnormalised operators.
"""

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor

from mechsink.run import LayerAttention
from mechsink.sinks.measure import at_least_float32

MOST = 2**24
"""Numbers that one block's columns may hold, about."""


def as_shares(
    weights: Float[Tensor, "batch head query column"],
    total: Float[Tensor, "batch head query"],
) -> Float[Tensor, "batch head query column"]:
    """|A| / (sum of |A| over the row + 1e-8), 0 to 1; `total` is that sum."""
    return weights.abs() / (total + 1e-8)[..., None]


def row_sums(
    layer: LayerAttention, n_pos: int, most: int = MOST
) -> Float[Tensor, "batch head query"]:
    """Sum of |attention| over all keys, a block of keys at a time."""
    total: Tensor | None = None
    for _, weights in _blocks(layer, n_pos, most):
        part = weights.abs().sum(dim=-1)
        total = part if total is None else total + part
    assert total is not None
    return total


def key_blocks(
    layer: LayerAttention, n_pos: int
) -> Iterator[tuple[range, Float[Tensor, "batch head query column"]]]:
    """All of a pattern, little of it held: keys and every query's attention to them.

    Weights of a softmax are used as they are; others as |A| / sum of |A|.
    """
    total = None if layer.is_softmax else row_sums(layer, n_pos, MOST)
    for keys, weights in _blocks(layer, n_pos, MOST):
        yield keys, weights if total is None else as_shares(weights, total)


def _blocks(
    layer: LayerAttention, n_pos: int, most: int
) -> Iterator[tuple[range, Float[Tensor, "batch head query column"]]]:
    """Keys and their columns, so many that these hold about `most` numbers."""
    n_batch, n_heads = layer.columns([0]).shape[:2]
    step = max(1, most // (n_batch * n_heads * n_pos))
    for start in range(0, n_pos, step):
        keys = range(start, min(n_pos, start + step))
        yield keys, at_least_float32(layer.columns(keys))
