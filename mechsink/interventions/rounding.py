"""The noise floor of a sweep, at the price of a few of its patches.

Copies of the patched run whose embeddings have other last digits ride the wave as
patches do: through the same blocks, in the same batches, read by the same metric.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mechsink.interventions.entries import Entry
from mechsink.interventions.places import first_difference
from mechsink.interventions.reading import Reading
from mechsink.interventions.wave import wave
from mechsink.models.continuation import BaseRun
from mechsink.precision import floor_of, nudged, reread, spread_of, unit
from mechsink.prompts import TokenPairs
from mechsink.run import Model, Run


def wave_floor(
    model: Model,
    base: BaseRun,
    reading: Reading,
    at_base: Run,
    pairs: TokenPairs,
    low: Float[Tensor, " prompt"],
    rows: int,
) -> Float[Tensor, " prompt"]:
    """The noise floor of the run that is patched, one a prompt.

    From where a pair's prompts part on: what comes before is the same, to the bit, in
    every patch.

    Args:
        model: the model of `base`.
        base: the run that is patched.
        reading: what the metric reads.
        at_base: the same of the base run.
        pairs: the prompts of `base`.
        low: the metric of the base run.
        rows: that a block may hold.
    """
    differs, eps = first_difference(pairs), unit(model)
    read = reread(at_base, reading.logits, eps, lambda run: reading.value(run, pairs))
    start = int(differs.min())
    if start == pairs.n_pos:  # all pairs are of equal prompts
        return floor_of(low, spread_of(low, read), eps)
    stream = base.resid[0][:, start:]
    here = torch.arange(start, pairs.n_pos, device=differs.device) >= differs[:, None]
    moved = torch.where(here[..., None], nudged(stream, eps), stream)
    ride = [
        Entry("resid_pre", start, number, {0: 0}, {0: each})
        for number, each in enumerate(moved)
    ]
    size = max(1, rows // len(pairs))
    found = [
        wave(base, ride[first : first + size], reading, at_base, pairs)[1]
        for first in range(0, len(ride), size)
    ]
    return floor_of(low, spread_of(low, torch.cat(found), read), eps)
