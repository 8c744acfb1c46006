"""`patch_sweep`: which place carries the behaviour, which is enough."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from mechsink import plotting
from mechsink.interventions.cells import cells
from mechsink.interventions.entries import Entry, entries
from mechsink.interventions.wave import wave
from mechsink.models.memory import rows_that_fit
from mechsink.models.resume import base_run
from mechsink.plotting import Axes
from mechsink.prompts import PromptPairs, TokenPairs
from mechsink.results import Result, provenance
from mechsink.run import Metric, Model, Run
from mechsink.sites import AXES, Site

Direction = Literal["denoising", "noising"]
PART_COLUMN = {"head": "head", "kv_head": "kv_head", "d_mlp": "neuron"}


@dataclass(frozen=True, eq=False)
class PatchingResult(Result):
    """Effect of patching, one row a prompt and place.

    `table`: prompt, layer, (head, kv_head or neuron,) pos, value, effect. `value` is
    the metric after the patch; `effect` 0 is the metric of the run being patched,
    1 that of the other; values outside 0..1 are kept; NaN where the two agree.
    pos is -1 where all positions were patched together.
    """

    site: str
    direction: Direction
    metric: str
    clean: list[float]  # metric on the clean run, one a prompt, in its unit
    corrupted: list[float]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Heat map of the mean effect over prompts: layer by position, or by head."""
        parts = [c for c in PART_COLUMN.values() if c in self.table.columns]
        several = len(self.table["pos"].unique()) > 1
        column = "pos" if several or not parts else parts[0]
        grid = self.table.pivot_table(index="layer", columns=column, values="effect")
        label = f"{self.direction} effect of {self.site}"
        with plotting.theme():
            ax = ax or plotting.new_axes()
            return plotting.heat_map(ax, grid, label, diverging=True)


def patch_sweep(
    model: Model,
    pairs: PromptPairs,
    metric: Metric,
    site: str = "resid_pre",
    direction: Direction = "denoising",
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | Literal["all"] | None = None,
    neurons: Sequence[int] | None = None,
    engine: Literal["auto", "wave", "cells"] = "auto",
) -> PatchingResult:
    """Patch one place at a time from the other run of each pair.

    Args:
        model: any model.
        pairs: clean and corrupted prompts.
        metric: a run to one number per prompt.
        site: name; z, q and pattern are patched head by head, k and v by KV head,
            a pattern row (query) at a time.
        direction: "denoising" puts clean values into the corrupted run (is this
            place enough?), "noising" corrupted ones into the clean run (is it
            needed?).
        layers: which; default all.
        positions: which, one at a time; default all, one at a time; "all" patches
            every position together.
        neurons: for site "mlp_post": which ones, one at a time.
        engine: "wave" replays blocks and is exact; "cells" runs the model once per
            place; "auto" takes the wave wherever it can, and `meta` says which ran.

    Raises:
        ValueError: bad pairs, site, layers or positions, or a wave that can't be.
    """
    started = time.perf_counter()
    chosen = _layers(model, layers)
    parts = _parts(model, site, neurons)
    groups = pairs.tokens(model)
    can_wave = getattr(metric, "last_logits_only", False) and not metric.reads
    if engine == "wave" and not can_wave:
        raise ValueError(
            f"patch_sweep: {metric!r} reads more than the last position's logits, "
            'so the wave engine cannot serve it. Leave engine="auto".'
        )
    ran = "wave" if can_wave and engine != "cells" else "cells"
    rows: list[dict[str, Any]] = []
    clean_values, corrupted_values = {}, {}
    for group in groups:
        spots = _positions(positions, group.n_pos)
        clean = metric(model.run(group.clean, read=metric.reads), group)
        corrupted = metric(model.run(group.corrupted, read=metric.reads), group)
        for number, index in enumerate(group.index):
            clean_values[index] = float(clean[number])
            corrupted_values[index] = float(corrupted[number])
        sweep = _wave if ran == "wave" else _cells
        for layer, pos, part, prompt, value in sweep(
            model, group, metric, site, direction, chosen, spots, parts
        ):
            row = {"prompt": group.index[prompt], "layer": layer}
            if part is not None:
                row[_part_column(site)] = part
            rows.append({**row, "pos": -1 if pos is None else pos, "value": value})
    table = pd.DataFrame(rows)
    start, end = clean_values, corrupted_values
    if direction == "denoising":
        start, end = end, start
    low = pd.Series([start[prompt] for prompt in table["prompt"]])
    span = pd.Series([end[prompt] for prompt in table["prompt"]]) - low
    table["effect"] = ((table["value"] - low) / span).where(span != 0)
    order = [c for c in table.columns if c not in ("value", "effect")]
    table = table.sort_values(order, ignore_index=True)
    tokens = [t for g in groups for t in (g.clean, g.corrupted)]
    meta = provenance(
        model,
        tokens,
        duration=time.perf_counter() - started,
        site=site,
        direction=direction,
        metric=repr(metric),
        engine=ran,
        pairs=len(pairs),
    )
    return PatchingResult(
        table,
        meta,
        site,
        direction,
        repr(metric),
        [clean_values[i] for i in range(len(pairs))],
        [corrupted_values[i] for i in range(len(pairs))],
    )


Found = Iterator[tuple[int, int | None, int | None, int, float]]


def _wave(
    model: Model,
    group: TokenPairs,
    metric: Any,
    name: str,
    direction: Direction,
    layers: Sequence[int],
    positions: Sequence[int] | None,
    parts: Sequence[int | None],
) -> Found:
    vocabulary = None
    if hasattr(metric, "vocabulary"):
        vocabulary = torch.unique(metric.vocabulary(group))
    # A wave holds one row a prompt, layer and part; prompts are split first.
    fit = rows_that_fit(
        model.shape, group.n_pos, dtype=model.dtype, device=model.device
    )
    a_prompt = len(layers) * len(parts)
    step = max(1, fit // a_prompt)
    for first in range(0, len(group), step):
        some = group.rows(slice(first, first + step))
        patched, other = _roles(some, direction)
        base = base_run(model, patched)
        read = [Site(name, layer) for layer in layers]
        source = model.run(other, read=read).cache
        asked = some if vocabulary is None else _in_vocabulary(some, vocabulary)
        for together in entries(model, base, source, name, layers, positions, parts):
            for few in _split(together, max(1, fit // len(some))):
                for cell in wave(base, few, vocabulary):
                    run = Run(patched[:, -1:], cell.logits[:, None], {})
                    values = metric(run, asked).tolist()
                    for number, value in enumerate(values):
                        yield cell.layer, cell.pos, cell.part, first + number, value


def _split(together: Sequence[Entry], most: int) -> Iterator[list[Entry]]:
    """Entries in groups of at most `most` streams, layers apart where needed."""
    for group in _chunks(together, max(1, most // len(together[0].streams))):
        for layers in _chunks(list(group[0].streams), max(1, most // len(group))):
            yield [
                Entry(e.pos, e.part, e.level, {n: e.streams[n] for n in layers})
                for e in group
            ]


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _cells(
    model: Model,
    group: TokenPairs,
    metric: Metric,
    name: str,
    direction: Direction,
    layers: Sequence[int],
    positions: Sequence[int] | None,
    parts: Sequence[int | None],
) -> Found:
    patched, other = _roles(group, direction)
    source = model.run(other, read=[Site(name, layer) for layer in layers]).cache
    fit = rows_that_fit(
        model.shape,
        group.n_pos,
        dtype=model.dtype,
        device=model.device,
        n_logits=group.n_pos * model.shape.d_vocab,
    )
    for layer, pos, part, prompt, value in cells(
        model, patched, group, source, metric, name, layers, positions, parts, fit
    ):
        yield layer, pos, part, prompt, float(value)


def _roles(group: TokenPairs, direction: Direction) -> tuple[Tensor, Tensor]:
    """The run that is patched, and the one that the values come from."""
    if direction == "denoising":
        return group.corrupted, group.clean
    return group.clean, group.corrupted


def _in_vocabulary(group: TokenPairs, vocabulary: Tensor) -> TokenPairs:
    """The same pairs with answers numbered within a sorted part of the vocabulary."""
    answers, wrong = (
        None if tokens is None else torch.searchsorted(vocabulary, tokens)
        for tokens in (group.answers, group.wrong)
    )
    return replace(group, answers=answers, wrong=wrong)


def _layers(model: Model, layers: Sequence[int] | None) -> list[int]:
    n = model.shape.n_layers
    chosen = list(range(n) if layers is None else layers)
    if not chosen or any(not 0 <= layer < n for layer in chosen):
        raise ValueError(
            f"patch_sweep: layers={chosen}, but this model has {n}. Allowed: some of "
            f"0 to {n - 1}."
        )
    return sorted(set(chosen))


def _positions(
    positions: Sequence[int] | Literal["all"] | None, n_pos: int
) -> list[int] | None:
    if positions == "all":
        return None
    chosen = list(range(n_pos) if positions is None else positions)
    if not chosen or any(not 0 <= pos < n_pos for pos in chosen):
        raise ValueError(
            f"patch_sweep: positions={chosen}, but a prompt has {n_pos} tokens. "
            f'Allowed: some of 0 to {n_pos - 1}, or "all" to patch them together.'
        )
    return chosen


def _parts(
    model: Model, name: str, neurons: Sequence[int] | None
) -> Sequence[int | None]:
    model.shape.check(Site(name, 0))
    if name in model.shape.read_only:
        raise ValueError(
            f"patch_sweep: this model's own attention code discards edits of {name}. "
            "Sweep z or attn_out instead."
        )
    if name == "attn_scores":
        raise ValueError(
            "patch_sweep: sweep pattern, whose rows are what attn_scores "
            "become, or q and k, which make them."
        )
    if neurons is not None and name != "mlp_post":
        raise ValueError(
            f'patch_sweep: neurons= goes with site="mlp_post", not {name!r}.'
        )
    if "head" in AXES[name]:
        return range(model.shape.n_heads)
    if "kv_head" in AXES[name]:
        return range(model.shape.n_kv_heads)
    return [None] if neurons is None else list(neurons)


def _part_column(name: str) -> str:
    return next(PART_COLUMN[axis] for axis in AXES[name] if axis in PART_COLUMN)
