"""Which positions the MLP creation test compares, and their vectors.

Source: Secondary Attention Sinks (arXiv:2512.22213).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsink.run import Model
from mechsink.sinks.measure import at_least_float32
from mechsink.sinks.secondary.sinks import SecondarySinks
from mechsink.sites import Site

STAGES: Mapping[str, str | None] = {
    "x": "mlp_normed",
    "gate": None,  # no site so far
    "up": None,
    "act": None,
    "post": "mlp_post",
    "y": "mlp_out",
}
"""Stage of an MLP, in the paper's words, to the site where it is read."""
GROUPS = ("sink", "same token", "random")
PLACE = ("batch", "pos", "token")
SOURCES = ("attn_out", "resid_mid", "mlp_normed")
"""Sites whose vectors are taken apart into principal components."""


@dataclass(frozen=True)
class Spot:
    """One position of one prompt, and the layer at whose MLP it is looked at."""

    batch: int
    pos: int
    token: int
    layer: int
    group: str


@dataclass(frozen=True, eq=False)
class SpotVectors:
    """What was read at the spots.

    `cosines`: spot to stage to cosine with the primary. `sources`: (source, spot) to
    its vector. `outputs`: layer to the mean of the primaries' unit outputs.
    """

    cosines: Mapping[Spot, dict[str, float]]
    sources: Mapping[tuple[str, Spot], Float[Tensor, " d_model"]]
    outputs: Mapping[int, Float[Tensor, " d_model"]]
    example: Int[Tensor, "1 pos"]


def choose_spots(
    sinks: SecondarySinks,
    prompts: Mapping[int, Int[Tensor, "1 pos"]],
    labels: Sequence[str],
    seed: int,
) -> list[Spot]:
    """The sinks, and for each layer as many controls, if there are so many.

    Raises:
        ValueError: no sink has one of these labels.
    """
    table: Any = sinks.table
    chosen = table[table["label"].isin(list(labels))]
    if chosen.empty:
        counts = table["label"].value_counts().to_dict()
        raise ValueError(
            f"mlp_creation: no token is labelled {' or '.join(labels)}; found: "
            f"{counts or 'nothing'}. Pass longer or other prompts, labels= that were "
            "found, or sinks=secondary_sinks(..., active=, more_than=) that finds some."
        )
    rng = np.random.default_rng(seed)
    detected = set(zip(table["batch"], table["pos"], strict=True))
    ordinary = [
        (number, pos, token)
        for number, primary in enumerate(sinks.primaries["pos"].tolist())
        for pos, token in enumerate(prompts[number][0].tolist())
        if pos > primary and (number, pos) not in detected
    ]
    spots: list[Spot] = []
    for layer, rows in chosen.groupby("l_start"):
        places = zip(*(rows[name].tolist() for name in PLACE), strict=True)
        these = [Spot(b, pos, t, int(layer), GROUPS[0]) for b, pos, t in places]
        tokens = {spot.token for spot in these}
        same = [place for place in ordinary if place[2] in tokens]
        other = [place for place in ordinary if place[2] not in tokens]
        n_same = min(len(these), len(same))
        n_other = min(len(these) - n_same, len(other))
        spots += these
        for group, pool, n in zip(
            GROUPS[1:], (same, other), (n_same, n_other), strict=True
        ):
            drawn = sorted(rng.choice(len(pool), n, replace=False)) if n else []
            for b, pos, token in (pool[number] for number in drawn):
                spots.append(Spot(b, pos, token, int(layer), group))
    return spots


def read_spots(
    model: Model,
    prompts: Mapping[int, Int[Tensor, "1 pos"]],
    sinks: SecondarySinks,
    spots: Sequence[Spot],
) -> SpotVectors:
    """Run each prompt that has spots and read their vectors at every stage."""
    names = {*SOURCES, *(name for name in STAGES.values() if name)} & model.shape.sites
    cosines: dict[Spot, dict[str, float]] = {}
    sources: dict[tuple[str, Spot], Tensor] = {}
    units: dict[tuple[int, int], Tensor] = {}
    for number in sorted({spot.batch for spot in spots}):
        here = [spot for spot in spots if spot.batch == number]
        primary = int(sinks.primaries["pos"].iloc[number])
        layers = sorted({spot.layer for spot in here})
        read = [Site(name, layer) for name in names for layer in layers]
        cache = model.run(prompts[number], read=read).cache
        for spot in here:
            at = {name: cache[Site(name, spot.layer)][0] for name in names}
            cosines[spot] = {
                stage: cosine(at[site][spot.pos], at[site][primary])
                if site in at
                else np.nan
                for stage, site in STAGES.items()
            }
            sources |= {(n, spot): at[n][spot.pos].clone() for n in SOURCES if n in at}
            output = at_least_float32(at["mlp_out"][primary])
            units[spot.layer, number] = (
                output / output.norm()
            )  # NaN if nothing is written
    outputs = {
        layer: torch.stack([u for (at, _), u in units.items() if at == layer]).nanmean(
            0
        )
        for layer in {spot.layer for spot in spots}
    }
    example = prompts[spots[0].batch]
    return SpotVectors(cosines, sources, outputs, example)


def cosine(one: Float[Tensor, " d"], two: Float[Tensor, " d"]) -> float:
    """NaN where a vector is zero."""
    one, two = at_least_float32(one), at_least_float32(two)
    return float((one / one.norm()) @ (two / two.norm()))
