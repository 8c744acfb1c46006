"""One batch of pairs through a sweep: which engine, in what order, how much at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechsink.interventions.cells import cells
from mechsink.interventions.entries import STREAM, Entry, entries
from mechsink.interventions.places import Places, first_difference
from mechsink.interventions.reading import Reading, collides, why_not
from mechsink.interventions.rounding import wave_floor
from mechsink.interventions.wave import wave
from mechsink.models.continuation import BaseRun, CannotContinueError
from mechsink.models.memory import rows_that_fit
from mechsink.models.resume import base_run
from mechsink.precision import floor
from mechsink.prompts import TokenPairs
from mechsink.run import Metric, Model
from mechsink.sites import Site

Engine = Literal["auto", "wave", "cells"]
CALL_COST = {"cpu": 35.0}
"""What calling a block costs beside its tokens, in tokens: SmolLM2 on two cores takes
1.3 ms a call and 38 us a token. A GPU's tokens are nearly free beside its calls."""


@dataclass(frozen=True, eq=False)
class Swept:
    """The metric of every patch of some pairs, and of their two runs."""

    values: Float[Tensor, "prompt layer part spot"]
    patched: Float[Tensor, " prompt"]  # the run that values were patched into
    other: Float[Tensor, " prompt"]  # the run that they came from
    noise: Float[Tensor, " prompt"]  # how far `patched` moves by rounding
    engine: str


def swept(
    model: Model, pairs: TokenPairs, metric: Metric, places: Places, engine: Engine
) -> Swept:
    """Sweep a batch; after CUDA runs out of memory, again with half as much at once.

    Raises:
        ValueError: the wave was asked for and can't serve this.
        MemoryError: not even one patch of one pair fits.
    """
    share = 1.0
    while True:
        try:
            return _swept(model, pairs, metric, places, engine, share)
        except torch.OutOfMemoryError as error:
            if share < 1e-4:
                raise MemoryError(
                    "patch_sweep: not even one patch at a time fits on "
                    f"{model.device}. Use shorter prompts, fewer layers, or a "
                    "smaller dtype."
                ) from error
        # Outside the handler: its traceback would keep the tensors alive.
        torch.cuda.empty_cache()
        if len(pairs) > 1:
            half = len(pairs) // 2
            return _together(
                swept(model, pairs.rows(part), metric, places, engine)
                for part in (slice(None, half), slice(half, None))
            )
        share /= 2


def _together(parts: Iterator[Swept]) -> Swept:
    found = list(parts)
    return Swept(
        torch.cat([part.values for part in found]),
        torch.cat([part.patched for part in found]),
        torch.cat([part.other for part in found]),
        torch.cat([part.noise for part in found]),
        found[0].engine,
    )


@torch.no_grad()
def _swept(
    model: Model,
    pairs: TokenPairs,
    metric: Metric,
    places: Places,
    engine: Engine,
    share: float,
) -> Swept:
    base, why = None, "cells were asked for"
    if engine != "cells":
        base, why = _base(model, metric, places, pairs)
        if base is None and engine == "wave":
            raise ValueError(
                f'patch_sweep: engine="wave" can\'t serve this sweep: {why}. Leave '
                'engine="auto".'
            )
    if base is None:
        runs = [
            metric(model.run(tokens, read=metric.reads), pairs).double().cpu()
            for tokens in places.roles(pairs)
        ]
        values = cells(model, pairs, metric, places, places.layers, share)
        noise = floor(model, pairs, metric, tokens=places.roles(pairs)[0])
        return Swept(values, runs[0], runs[1], noise, f"cells ({why})")
    return _by_wave(model, base, pairs, metric, places, share)


def _base(
    model: Model, metric: Metric, places: Places, pairs: TokenPairs
) -> tuple[BaseRun | None, str]:
    """The run to be patched, ready to be continued, or why it can't be."""
    try:
        base = base_run(model, places.roles(pairs)[0])
    except CannotContinueError as error:
        return None, str(error).rstrip(".")
    why = why_not(metric, base, places.name)
    return (base, "") if why is None else (None, why)


def _by_wave(
    model: Model,
    base: BaseRun,
    pairs: TokenPairs,
    metric: Metric,
    places: Places,
    share: float,
) -> Swept:
    reading = Reading.of(metric, pairs)
    at_base = reading.of_base(base)
    low = reading.value(at_base, pairs)
    source, high = _source(model, pairs, places, reading)
    spots = places.spots(pairs.n_pos)
    shape = (len(pairs), len(places.layers), len(places.parts), len(spots))
    values = low[:, None, None, None].expand(shape).clone()

    inside = [n for n in places.layers if collides(reading, places.name, n)]
    depth = reading.depth(base.n_layers)
    enters = 0 if places.name == "resid_pre" else 1
    layers = [n for n in places.layers if n not in inside and n + enters <= depth]
    differs = first_difference(pairs)
    high = torch.where(differs.cpu() == pairs.n_pos, low, high)  # the same run
    first = int(differs.min())
    live = [s for s in spots if s is None or s >= first] if first < pairs.n_pos else []
    fit, a_pass = _sizes(model, reading, pairs.n_pos, share)
    noise = wave_floor(model, base, reading, at_base, pairs, low, fit)
    for at, layer in enumerate(places.layers):
        if layer in inside:
            values[:, at] = cells(model, pairs, metric, places, [layer], share)[:, 0]
    if not (live and layers):
        return Swept(values, low, high, noise, _said(inside))

    row = {name: n for n, name in enumerate(places.layers)}
    part_row = {name: n for n, name in enumerate(places.parts)}
    spot_row = {name: n for n, name in enumerate(spots)}
    # Streams are kept for a few parts at a time, a fraction of a block's rows each.
    at_once = max(1, 4 * fit // (len(layers) * len(pairs)))
    for some in _chunks(places.parts, at_once):
        found = entries(model, base, source, places.name, layers, live, some, a_pass)
        cost = CALL_COST.get(base.tokens.device.type, 20_000.0)
        most = max(1, fit // len(pairs))
        for together in _grouped(found, len(pairs), cost, most):
            for few in _split(together, most):
                labels, values_of = wave(base, few, reading, at_base, pairs)
                for (layer, part, pos), value in zip(labels, values_of, strict=True):
                    at = row[layer], part_row[part], spot_row[pos]
                    values[:, at[0], at[1], at[2]] = value
    # Before a pair parts its runs are one: no rounding of the batch's may show.
    ends = torch.tensor([pairs.n_pos - 1 if pos is None else pos for pos in spots])
    same = ends[None] < differs.cpu()[:, None]
    unchanged = low[:, None, None, None].expand(shape)
    values = torch.where(same[:, None, None, :], unchanged, values)
    return Swept(values, low, high, noise, _said(inside))


def _said(inside: Sequence[int]) -> str:
    if not inside:
        return "wave"
    return f"wave; cells in layer {inside[0]}, where the metric reads"


def _source(
    model: Model, pairs: TokenPairs, places: Places, reading: Reading
) -> tuple[dict[Site, Tensor], Tensor]:
    """The other run's values at the swept sites, and its metric."""
    other = places.roles(pairs)[1]
    if places.name in STREAM:
        run = base_run(model, other)
        up = 0 if places.name == "resid_pre" else 1
        source = {site: run.resid[site.layer + up] for site in places.sites}
        return source, reading.value(reading.of_base(run), pairs)
    seen = model.run(other, read=[*places.sites, *reading.sites])
    source = {site: seen.cache[site] for site in places.sites}
    return source, reading.metric(seen, pairs).double().cpu()


def _sizes(model: Model, reading: Reading, n_pos: int, share: float) -> tuple[int, int]:
    """Rows that a block of the wave may hold, and prompts that a whole pass may."""
    shape, kind = model.shape, {"dtype": model.dtype, "device": model.device}
    kept = reading.n_floats(n_pos, shape.d_vocab)
    whole = n_pos * (shape.d_vocab + shape.n_layers * shape.d_model)
    sizes = (
        rows_that_fit(shape, n_pos, n_logits=n_logits, **kind)
        for n_logits in (kept, whole)
    )
    fit, a_pass = (max(1, int(size * share)) for size in sizes)
    return fit, a_pass


def _grouped(
    found: Iterator[list[Entry]], n_prompts: int, cost: float, most: int
) -> Iterator[list[Entry]]:
    """Neighbouring positions in one wave, where that is cheaper than two.

    A later position's rows then carry the earlier ones along unchanged; that pays
    while they are fewer tokens than a call of a block costs.
    """
    group: list[Entry] = []
    streams = 0
    for here in found:
        new = sum(len(entry.streams) for entry in here)
        if group:
            # Rows grow from none to all layers: half of them on average.
            extra = n_prompts * new / 2 * (here[0].start - group[0].start)
            if extra > cost or streams + new > most:
                yield group
                group, streams = [], 0
        group, streams = group + here, streams + new
    if group:
        yield group


def _split(together: Sequence[Entry], most: int) -> Iterator[list[Entry]]:
    """Entries in groups of at most `most` streams, layers apart where needed."""
    for group in _chunks(together, max(1, most // len(together[0].streams))):
        for layers in _chunks(list(group[0].streams), max(1, most // len(group))):
            yield [entry.only(layers) for entry in group]


def _chunks(items: Sequence, size: int) -> Iterator[Sequence]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
