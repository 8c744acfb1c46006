"""Weights of attention that is no softmax, as shares of their row.

Source: the proxy of Gu et al. 2024 (arXiv:2410.10781) for unnormalised operators.
"""

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor

from mechsink.run import LayerAttention
from mechsink.sinks.measure import at_least_float32


def as_shares(
    weights: Float[Tensor, "batch head query column"],
    total: Float[Tensor, "batch head query"],
) -> Float[Tensor, "batch head query column"]:
    """|A| / (sum of |A| over the row + 1e-8), 0 to 1; `total` is that sum."""
    return weights.abs() / (total + 1e-8)[..., None]


def row_sums(
    layer: LayerAttention, n_pos: int, most: int = 2**24
) -> Float[Tensor, "batch head query"]:
    """Sum of |attention| over all keys, a block of keys at a time."""
    total: Tensor | None = None
    for keys in _blocks(layer, n_pos, most):
        part = at_least_float32(layer.columns(keys)).abs().sum(dim=-1)
        total = part if total is None else total + part
    assert total is not None
    return total


def _blocks(layer: LayerAttention, n_pos: int, most: int) -> Iterator[range]:
    """Keys in blocks whose columns hold about `most` numbers."""
    n_batch, n_heads = layer.columns([0]).shape[:2]
    step = max(1, most // (n_batch * n_heads * n_pos))
    for start in range(0, n_pos, step):
        yield range(start, min(n_pos, start + step))
