"""One forward pass per patch, many patches a batch: the engine of last resort.

For metrics that read inside a block, and models whose blocks can't be replayed.
It is also what the wave engine is tested against.
"""

import functools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mechsink.interventions.entries import part_index
from mechsink.interventions.places import Places
from mechsink.models.memory import rows_that_fit
from mechsink.prompts import TokenPairs
from mechsink.run import Metric, Model
from mechsink.sites import Site


def cells(
    model: Model,
    pairs: TokenPairs,
    metric: Metric,
    places: Places,
    layers: Sequence[int],
    share: float,
) -> Float[Tensor, "prompt layer part spot"]:
    """The metric after every patch of some layers.

    `share` of what fits into memory is used; after an overrun it shrinks.
    """
    base, other = places.roles(pairs)
    spots = places.spots(pairs.n_pos)
    source = model.run(other, read=[Site(places.name, n) for n in layers]).cache
    fit = rows_that_fit(
        model.shape,
        pairs.n_pos,
        dtype=model.dtype,
        device=model.device,
        n_logits=pairs.n_pos * model.shape.d_vocab,
    )
    max_rows = max(1, int(fit * share))
    rows = [
        (prompt, number, pos)
        for prompt in range(len(pairs))
        for number in range(len(places.parts))
        for pos in spots
    ]
    found = torch.empty(len(layers), len(rows), dtype=torch.float64)
    for at, layer in enumerate(layers):
        site = Site(places.name, layer)
        for start in range(0, len(rows), max_rows):
            chunk = rows[start : start + max_rows]
            prompts = torch.tensor([row[0] for row in chunk], device=base.device)
            changes = []
            for prompt, number, pos in chunk:
                index = part_index(site.name, places.parts[number], pos)[1:]
                changes.append((index, source[site][prompt][index]))
            edit = {site: functools.partial(_put, changes=changes)}
            run = model.run(base[prompts], read=metric.reads, edit=edit)
            values = metric(run, pairs.rows(prompts))
            found[at, start : start + len(chunk)] = values.double().cpu()
    shape = (len(layers), len(pairs), len(places.parts), len(spots))
    return found.reshape(shape).transpose(0, 1)


def _put(x: Tensor, changes: list) -> Tensor:
    """Each row's own change: (index within the row, what goes there)."""
    x = x.clone()
    for row, (index, value) in enumerate(changes):
        x[row][index] = value
    return x
