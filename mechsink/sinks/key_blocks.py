"""A layer's pattern, a block of keys at a time: all of it read, little of it held."""

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor

from mechsink.run import LayerAttention
from mechsink.sinks.measure import at_least_float32
from mechsink.sinks.shares import as_shares, row_sums

MOST = 2**24
"""Numbers that one block's columns may hold, about."""


def key_blocks(
    layer: LayerAttention, n_pos: int
) -> Iterator[tuple[range, Float[Tensor, "batch head query column"]]]:
    """Keys and every query's attention to them, as shares of the row.

    Weights of a softmax are used as they are; others as |A| / sum of |A|.
    """
    total = None if layer.is_softmax else row_sums(layer, n_pos, MOST)
    n_batch, n_heads = layer.columns([0]).shape[:2]
    step = max(1, MOST // (n_batch * n_heads * n_pos))
    for start in range(0, n_pos, step):
        keys = range(start, min(n_pos, start + step))
        weights = at_least_float32(layer.columns(keys))
        yield keys, weights if total is None else as_shares(weights, total)
