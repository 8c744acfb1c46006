"""Directions of an MLP's input that make it write along the primary sink's.

Source: Secondary Attention Sinks (arXiv:2512.22213).
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsink.run import Model
from mechsink.sinks.measure import at_least_float32
from mechsink.sinks.secondary.spots import SOURCES, Spot, SpotVectors, cosine
from mechsink.sites import Site

EFFECTIVE = 0.98
"""Least |cosine| with the primary's output, exclusive, of an effective direction."""
COLUMNS = {
    "layer": int, "source": str, "component": int, "explained": float, "sign": int,
    "scale": float, "cosine": float, "norm": float,
}  # fmt: skip


def directions(
    model: Model,
    vectors: SpotVectors,
    spots: Sequence[Spot],
    scales: Sequence[float],
    n_components: int,
) -> pd.DataFrame:
    """Principal components of sinks and controls, pushed through the MLP alone.

    No row where the MLP's input has no site, or a layer has one spot.
    """
    rows: list[tuple[Any, ...]] = []
    if "mlp_normed" in model.shape.sites:
        for layer in sorted(vectors.outputs):
            here = [spot for spot in spots if spot.layer == layer]
            for source in SOURCES:
                if len(here) < 2 or (source, here[0]) not in vectors.sources:
                    continue
                states = torch.stack([vectors.sources[source, spot] for spot in here])
                rows += _pushed(
                    model, vectors, layer, source, states, scales, n_components
                )
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def _pushed(
    model: Model,
    vectors: SpotVectors,
    layer: int,
    source: str,
    states: Float[Tensor, "spot d_model"],
    scales: Sequence[float],
    n_components: int,
) -> list[tuple[Any, ...]]:
    components, explained = principal_components(states, n_components)
    grid = [
        (c, sign, s) for c in range(len(components)) for sign in (1, -1) for s in scales
    ]
    if not grid:
        return []
    inputs = torch.stack([components[c] * (sign * scale) for c, sign, scale in grid])
    outputs = mlp_alone(model, layer, inputs, vectors.example)
    towards = vectors.outputs[layer].to(outputs)
    return [
        (
            layer,
            source,
            c,
            float(explained[c]),
            sign,
            scale,
            cosine(y, towards),
            float(y.norm()),
        )
        for (c, sign, scale), y in zip(grid, outputs, strict=True)
    ]


def principal_components(
    states: Float[Tensor, "spot d_model"], most: int
) -> tuple[Float[Tensor, "component d_model"], Float[Tensor, " component"]]:
    """Unit components of the centred states, with their share of the variance.

    At most `most`, and none without variance.
    """
    states = at_least_float32(states).double()
    size, components = torch.linalg.svd(
        states - states.mean(dim=0), full_matrices=False
    )[1:]
    kept = int((size > 1e-9 * states.norm()).sum())
    kept = min(kept, most, len(states) - 1)
    share = size.square() / size.square().sum()
    return components[:kept], share[:kept]


def mlp_alone(
    model: Model,
    layer: int,
    inputs: Float[Tensor, "row d_model"],
    prompt: Int[Tensor, "1 pos"],
) -> Float[Tensor, "row d_model"]:
    """What an MLP writes when its normed inputs are these.

    Runs the model on repeats of `prompt` and puts the vectors in place of mlp_normed,
    so it works on any model with that site whose MLP sees one position at a time.
    """
    n_pos = prompt.shape[1]
    found: list[Tensor] = []
    for rows in inputs.split(n_pos):
        put = torch.zeros(
            n_pos, inputs.shape[1], dtype=inputs.dtype, device=prompt.device
        )
        put[: len(rows)] = rows.to(put.device)
        site = Site("mlp_out", layer)
        run = model.run(
            prompt,
            read=[site],
            edit={Site("mlp_normed", layer): lambda x, put=put: put[None].to(x.dtype)},
        )
        found.append(at_least_float32(run.cache[site][0, : len(rows)]))
    return torch.cat(found)
