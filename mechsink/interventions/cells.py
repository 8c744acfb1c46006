"""One forward pass per patch, many patches a batch: the engine of last resort.

For metrics that read more than the last logits, and models whose blocks can't be
replayed. It is also what the wave engine is tested against.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mechsink.interventions.entries import part_index
from mechsink.prompts import TokenPairs
from mechsink.run import Metric, Model
from mechsink.sites import Site


def cells(
    model: Model,
    base: Tensor,
    pairs: TokenPairs,
    source: Mapping[Site, Tensor],
    metric: Metric,
    name: str,
    layers: Sequence[int],
    positions: Sequence[int] | None,
    parts: Sequence[int | None],
    max_rows: int,
) -> Iterator[tuple[int, int | None, int | None, int, Float[Tensor, ""]]]:
    """Layer, position, part, prompt and metric of every patch."""
    spots: Sequence[int | None] = [None] if positions is None else positions
    rows = [
        (prompt, pos, part)
        for part in parts
        for pos in spots
        for prompt in range(len(pairs))
    ]
    for layer in layers:
        site = Site(name, layer)
        for start in range(0, len(rows), max_rows):
            chunk = rows[start : start + max_rows]
            prompts = torch.tensor([row[0] for row in chunk], device=base.device)

            def edit(x: Tensor, chunk: list = chunk, site: Site = site) -> Tensor:
                x = x.clone()
                for number, (prompt, pos, part) in enumerate(chunk):
                    index = part_index(name, part, pos)[1:]
                    x[number][index] = source[site][prompt][index]
                return x

            run = model.run(base[prompts], read=metric.reads, edit={site: edit})
            values = metric(run, pairs.rows(prompts))
            for (prompt, pos, part), value in zip(chunk, values, strict=True):
                yield layer, pos, part, prompt, value
