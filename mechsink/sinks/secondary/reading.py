"""What secondary sinks are read from: two passes in memory linear in length.

The first sees norms and cosines of every position, the second the attention that
the positions found receive and the size of their values.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsink.run import LayerAttention, Model
from mechsink.sinks.measure import Batch, at_least_float32
from mechsink.sinks.shares import as_shares, row_sums

COLUMNS = 128  # keys read at a time


@dataclass(frozen=True, eq=False)
class States:
    """Norms and cosines of block outputs; layer l is the output of block l."""

    norms: Float[Tensor, "prompt layer pos"]
    cosines: Float[Tensor, "prompt layer candidate pos"]


def read_states(batch: Batch, candidates: Sequence[int]) -> States:
    """One forward pass: norms, and cosines with each candidate in the same layer.

    The cosine with a vector of zeros is 0.

    Raises:
        ValueError: a norm is NaN or infinite.
    """
    norms: list[Tensor] = []
    cosines: list[Tensor] = []

    def see(layer: int, stream: Float[Tensor, "batch pos d_model"]) -> None:
        if layer == 0:
            return  # the embedding is no block's output
        stream = at_least_float32(stream)
        size = stream.norm(dim=-1)
        unit = stream / size.clamp(min=torch.finfo(stream.dtype).tiny)[..., None]
        norms.append(size.cpu())
        cosines.append((unit[:, list(candidates)] @ unit.transpose(1, 2)).cpu())

    with torch.no_grad():
        batch.model.visit(batch.tokens, residual=see)
    states = States(torch.stack(norms, dim=1), torch.stack(cosines, dim=1))
    if not states.norms.isfinite().all():
        raise ValueError(
            "secondary_sinks: the residual stream holds NaN or infinite values, so "
            "nothing can be compared. Check ms.selfcheck(model), or load it with "
            "dtype=torch.float32."
        )
    return states


@dataclass(frozen=True, eq=False)
class Received:
    """What positions of one prompt receive and give, by the block that reads them.

    `scores`: (block, position) to one score a head, NaN at the last token; missing
    where the block has no attention. `values`: block to ||v|| over that of ordinary
    tokens, mean over key-value heads, one a position.
    """

    scores: Mapping[tuple[int, int], Float[Tensor, " head"]]
    values: Mapping[int, Mapping[int, float]]


def read_received(
    model: Model,
    prompt: Int[Tensor, "1 pos"],
    wanted: Mapping[int, Sequence[int]],
    sinks: Sequence[int],
) -> Received:
    """One forward pass over one prompt.

    Args:
        model: any model.
        prompt: its tokens.
        wanted: block to the positions whose scores are asked for there.
        sinks: positions that are not ordinary, the primary among them.
    """
    n_pos = prompt.shape[1]
    scores: dict[tuple[int, int], Tensor] = {}
    values: dict[int, dict[int, float]] = {}

    def see(layer: LayerAttention) -> None:
        size = value_sizes(layer)[0]
        is_ordinary = torch.ones(n_pos, dtype=torch.bool, device=size.device)
        is_ordinary[list(sinks)] = False
        ratio = size / size[is_ordinary].mean()  # NaN if no token is ordinary
        values[layer.layer] = {pos: float(ratio[pos]) for pos in sinks}
        for keys, found in score_columns(layer, wanted.get(layer.layer, ()), n_pos):
            for number, pos in enumerate(keys):
                scores[layer.layer, pos] = found[0, :, number].cpu()

    with torch.no_grad():
        model.visit(prompt, attention=see)
    return Received(scores, values)


def value_sizes(layer: LayerAttention) -> Float[Tensor, "batch pos"]:
    """||v|| of every position, mean over key-value heads."""
    return at_least_float32(layer.v).norm(dim=-1).mean(dim=1)


def score_columns(
    layer: LayerAttention, positions: Sequence[int], n_pos: int
) -> Iterator[tuple[Sequence[int], Float[Tensor, "batch head column"]]]:
    """Mean attention to each position over strictly later queries, block by block.

    As a share of attention; the query's own position is left out, for near the end
    of a prompt it would be most of the mean. NaN at the last token.
    """
    total = None
    if len(positions) and not layer.is_softmax:
        total = row_sums(layer, n_pos)
    for first in range(0, len(positions), COLUMNS):
        keys = list(positions[first : first + COLUMNS])
        weights = at_least_float32(layer.columns(keys))
        if total is not None:
            weights = as_shares(weights, total)
        at = torch.arange(n_pos, device=weights.device)
        is_later = at[:, None] > torch.tensor(keys, device=weights.device)
        sums = torch.where(is_later, weights, 0).sum(dim=2)
        yield keys, sums / is_later.sum(dim=0)  # 0 / 0 is NaN
