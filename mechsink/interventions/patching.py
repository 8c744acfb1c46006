"""`patch_sweep`: which place carries the behaviour, which is enough."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mechsink import plotting
from mechsink.interventions.parts import Parts
from mechsink.interventions.places import (
    PART_COLUMN,
    Direction,
    Places,
    first_difference,
    places,
)
from mechsink.interventions.sweep import Engine, Swept, swept
from mechsink.models.any_model import any_model
from mechsink.plotting import Axes
from mechsink.precision import below, below_mean
from mechsink.progress import bar
from mechsink.prompts import PromptPairs, TokenPairs
from mechsink.provenance import provenance
from mechsink.results import Result
from mechsink.run import Metric, Model
from toy_tasks.checks import checked

PAIRS_A_BATCH = 32  # an interrupted sweep loses at most so many pairs' work


@dataclass(frozen=True, eq=False)
class PatchingResult(Result):
    """Effect of patching, one row a prompt and place.

    `table`: prompt, layer, (head, kv_head or neuron,) pos, value, effect. `value` is
    the metric after the patch; `effect` 0 is the metric of the run being patched,
    1 that of the other; values outside 0..1 are kept; NaN where the two agree.
    pos is -1 where all positions were patched together.

    Attributes:
        site: name of what was patched.
        direction: "denoising" or "noising": which run the other's values were put into.
        metric: as its repr says.
        corrupted: metric on the corrupted run, one a prompt, in its unit.
        clean: metric on the clean run, one a prompt, in its unit.
        noise: floor of each prompt's metric.

    Examples:
        >>> case = ms.planted("induction")
        >>> swept = ms.patch_sweep(case.model, case.pairs, ms.logit_diff, site="z")
        >>> best = swept.table.groupby(["layer", "head"]).effect.max()
        >>> best[best > 0.5].round(2).to_dict()
        {(0, 0): 0.54, (1, 0): 1.0}
        >>> ax = swept.plot()
    """

    site: str
    direction: Direction
    metric: str
    clean: list[float]
    corrupted: list[float]
    noise: list[float] = field(default_factory=list)

    @property
    def change(self) -> pd.Series:
        """`value` less the metric of the run being patched, one a row of `table`."""
        base = self.corrupted if self.direction == "denoising" else self.clean
        change: Any = self.table["value"] - np.asarray(base)[self.table["prompt"]]
        return change

    def below_noise(self) -> pd.Series:
        """Rows whose patch moved the metric by no more than rounding may.

        The run being patched and its patched copy then can't be told apart at this
        precision; `mechsink.precision` says how the floor, `noise`, is measured.

        Raises:
            ValueError: the result was saved without a floor.
        """
        prompts = self.table["prompt"].to_numpy()
        found = below(self.change.to_numpy(), self.noise, prompts, "PatchingResult")
        return pd.Series(found, index=self.table.index, name="below_noise")

    def plot(self, ax: Axes | None = None) -> Axes:
        """Heat map of the mean effect over prompts: layer by position, or by head.

        A dot marks a place that moved the metric, but by no more than rounding may.

        Args:
            ax: where to draw; default: a new figure.
        """
        parts = [c for c in PART_COLUMN.values() if c in self.table.columns]
        several = len(self.table["pos"].unique()) > 1
        column = "pos" if several or not parts else parts[0]
        grid = self.table.pivot_table(index="layer", columns=column, values="effect")
        label = f"{self.direction} effect of {self.site}"
        with plotting.theme():
            ax = ax or plotting.new_axes()
            plotting.heat_map(ax, grid, label, diverging=True)
            if self.noise:
                moved = self.table.assign(change=self.change.abs())
                moved = moved.pivot_table(
                    index="layer", columns=column, values="change"
                )
                size = moved.reindex_like(grid).to_numpy()
                small = below_mean(size, self.noise, "PatchingResult") & (size > 0)
                row, at = small.nonzero()
                ax.plot(at, row, ".", ms=2, color="0.4", ls="")
            if column == "pos" and (names := self._tokens()) is not None:
                ax.set_xticks(range(len(grid.columns)))
                shown = [plotting.literal(names[pos]) for pos in grid.columns]
                ax.set_xticklabels(shown, rotation=90)
                ax.set_xlabel("token (· where the prompts differ)")
            return ax

    def _tokens(self) -> list[str] | None:
        """What stands at each position of every prompt; None where that is long."""
        rows = [row["strings"] for row in self.meta["tokens"]]
        if len({len(row) for row in rows}) > 1 or len(rows[0]) > 40:
            return None
        columns = (set(column) for column in zip(*rows, strict=True))
        return [c.pop().strip() if len(c) == 1 else "·" for c in columns]


@any_model
@checked
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
    engine: Engine = "auto",
    folder: Path | str | None = None,
    progress: bool | None = None,
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
        folder: save the result there, and batches of pairs as they finish: the same
            call on the same folder goes on where it was interrupted.
        progress: show a bar; default: on terminals, in notebooks.

    Returns:
        A `PatchingResult`, one row a prompt and place.

    Raises:
        ValueError: bad pairs, site, layers or positions, a model that gives NaN, a
            wave that can't be, or a folder that holds another sweep.
        RuntimeError: another process is at work in the folder.

    Examples:
        >>> case = ms.planted("induction")
        >>> swept = ms.patch_sweep(case.model, case.pairs, ms.logit_diff)
        >>> means = swept.table.groupby(["layer", "pos"]).effect.mean()
        >>> means[means > 0.2].round(2).to_dict()
        {(0, 8): 0.25, (0, 9): 0.33, (1, 6): 0.21, (1, 8): 0.34, (1, 9): 0.33}
    """
    started = time.perf_counter()
    where = places(model.shape, site, direction, layers, positions, neurons)
    for read in metric.reads:
        model.shape.check(read)
    groups = pairs.tokens(model)
    for group in groups:
        where.spots(group.n_pos)  # before any work: positions fit all prompts
    batches = list(_batches(groups))
    with ExitStack() as held:
        parts = None
        if folder is not None:
            asked = _identity(model, groups, metric, where)
            parts = held.enter_context(Parts.held(folder, asked, _probe(groups, model)))
            if parts.is_done:
                return PatchingResult.load(folder)
        found: list[Swept] = []
        with bar(f"patch {site}", len(pairs), progress) as advance:
            for batch in batches:
                done = None if parts is None else parts.read(batch.index)
                if done is None:
                    done = swept(model, batch, metric, where, engine)
                    _require_numbers(done, batch, direction)
                    if parts is not None:
                        parts.write(batch.index, done)
                found.append(done)
                advance(len(batch))
        table = pd.concat(
            [
                _table(some, batch, where)
                for some, batch in zip(found, batches, strict=True)
            ],
            ignore_index=True,
        )
        order = [c for c in table.columns if c not in ("value", "effect")]
        ends = _by_pair(batches, [some.patched for some in found])
        others = _by_pair(batches, [some.other for some in found])
        clean, corrupted = (
            (others, ends) if direction == "denoising" else (ends, others)
        )
        meta = provenance(
            model,
            [t for g in groups for t in (g.clean, g.corrupted)],
            duration=time.perf_counter() - started,
            site=site,
            direction=direction,
            metric=repr(metric),
            engine="; ".join(dict.fromkeys(some.engine for some in found)),
            pairs=len(pairs),
        )
        result = PatchingResult(
            table.sort_values(order, ignore_index=True),
            meta,
            site,
            direction,
            repr(metric),
            clean,
            corrupted,
            _by_pair(batches, [some.noise for some in found]),
        )
        if parts is not None:
            result.save(parts.folder)
            parts.remove()
    return result


def _by_pair(batches: Sequence[TokenPairs], values: Sequence[Tensor]) -> list[float]:
    """Numbers of the pairs of each batch, in the order of the pairs."""
    found: dict[int, float] = {}
    for batch, some in zip(batches, values, strict=True):
        found |= dict(zip(batch.index, some.tolist(), strict=True))
    return [found[i] for i in range(len(found))]


def _batches(groups: Sequence[TokenPairs]) -> Iterator[TokenPairs]:
    """Pairs that part late together: what comes before is never computed."""
    for group in groups:
        order = first_difference(group).argsort(stable=True)
        for chosen in order.split(PAIRS_A_BATCH):
            yield group.rows(chosen)


def _table(found: Swept, batch: TokenPairs, where: Places) -> pd.DataFrame:
    spots = [-1 if pos is None else pos for pos in where.spots(batch.n_pos)]
    axes: list[tuple[str, Sequence[Any]]] = [
        ("prompt", batch.index),
        ("layer", where.layers),
        (where.part_column or "part", where.parts),
        ("pos", spots),
    ]
    index = pd.MultiIndex.from_product(
        [values for _, values in axes], names=[name for name, _ in axes]
    )
    table = index.to_frame(index=False)
    if where.part_column is None:
        del table["part"]
    table["value"] = found.values.flatten().numpy()
    low = found.patched[:, None, None, None]
    span = (found.other - found.patched)[:, None, None, None]
    effect = (found.values - low) / span
    table["effect"] = torch.where(span != 0, effect, torch.nan).flatten().numpy()
    return table


def _require_numbers(found: Swept, batch: TokenPairs, direction: Direction) -> None:
    """Raise ValueError if a run or a patched run gave no number."""
    names = (
        ("corrupted", "clean") if direction == "denoising" else ("clean", "corrupted")
    )
    for values, name in zip((found.patched, found.other), names, strict=True):
        bad = [
            i for i, ok in zip(batch.index, values.isfinite(), strict=True) if not ok
        ]
        if bad:
            raise ValueError(
                f"patch_sweep: the metric of the {name} run is NaN or infinite for "
                f"pairs {bad[:8]}. The model's weights or activations hold NaN, or "
                "overflow in this dtype: check ms.selfcheck(model), or load it with "
                "dtype=torch.float32."
            )


def _identity(
    model: Model, groups: Sequence[TokenPairs], metric: Metric, where: Places
) -> dict[str, Any]:
    return {
        "model": model.name,
        "dtype": model.dtype,
        "metric": repr(metric),
        "site": where.name,
        "direction": where.direction,
        "layers": where.layers,
        "parts": where.parts,
        "positions": where.positions,
        "clean": [group.clean for group in groups],
        "corrupted": [group.corrupted for group in groups],
        "answers": [group.answers for group in groups],
        "wrong": [group.wrong for group in groups],
        "order": [group.index for group in groups],
    }


def _probe(groups: Sequence[TokenPairs], model: Model) -> Tensor:
    """Some logits: they tell other weights under the same name."""
    return model.run(groups[0].clean[:1]).logits[0, -1, :16].double().cpu()
