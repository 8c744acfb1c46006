"""The noise floor: how far a metric moves when nothing but rounding does.

Every number of the embedded prompt is moved to about the next one that its type can
hold, up or down at random, and the run is repeated: no result may depend on that, and
all rounding after it falls out anew. The floor is `FACTOR` times the root mean square
of the metric's moves. A difference between two runs that is no larger may be rounding
alone; a larger one is not (`below`). It says nothing about the rounding of the weights.
May import: rooms up to models.

Source: the idea of random last digits, Vignes 1993 (CESTAC), Parker 1997 (Monte Carlo
arithmetic); here at the input alone, so that no kernel need be changed.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechsink import plotting
from mechsink.metrics import at_least_float32
from mechsink.models.any_model import any_model
from mechsink.models.float64 import working_dtype
from mechsink.models.memory import rows_that_fit
from mechsink.plotting import Axes
from mechsink.prompts import PromptPairs, TokenPairs
from mechsink.provenance import provenance
from mechsink.results import Result
from mechsink.run import Metric, Model, Run
from mechsink.sites import Site

REPEATS = 4
"""Runs with other last digits, for each prompt that is measured."""
PROMPTS = 4
"""Prompts on which a measurement looks for its floor; others get the largest."""
FACTOR = 8.0
"""Times the spread: a quotient by four squares follows Student's t with 4 degrees of
freedom, which exceeds 8 once in 750 times."""
STEP = 0.75
"""Of the unit in the last place of 1: rounds to one unit, whatever the mantissa."""


@dataclass(frozen=True, eq=False)
class NoiseFloor(Result):
    """How far a metric moves by rounding, one row a prompt.

    `table`: prompt, value (the metric), spread (root mean square of its moves when
    the prompt's embeddings change in their last digit), floor (`FACTOR` times the
    spread, at least one unit in the last place of the value); all in the metric's unit.

    Attributes:
        eps: one unit in the last place of 1, in the least exact type of a run.

    Examples:
        >>> case = ms.planted("induction")
        >>> found = ms.noise_floor(case.model, case.pairs, ms.logit_diff)
        >>> list(found.table), found.eps
        (['prompt', 'value', 'spread', 'floor'], 1.1920928955078125e-07)
    """

    metric: str
    eps: float

    def plot(self, ax: Axes | None = None) -> Axes:
        """The floor against the metric's size, a dot a prompt, log scales.

        The dotted line is one unit in the last place of the metric: no floor is lower.

        Args:
            ax: where to draw; a new figure by default.
        """
        size = np.abs(self.table["value"].to_numpy(dtype=float))
        known = size > 0
        with plotting.theme():
            ax = ax or plotting.new_axes()
            floors = self.table["floor"].to_numpy(dtype=float)
            ax.plot(size[known], floors[known], "o", ms=3, alpha=0.7)
            ax.set(xscale="log", yscale="log")
            ends = np.array(ax.get_xlim())
            ax.plot(ends, self.eps * ends, color="0.6", lw=0.8, ls=":",
                    label="last digit of the metric")  # fmt: skip
            ax.set(xlim=tuple(ends), xlabel=f"|{plotting.literal(self.metric)}|")
            ax.set(ylabel="noise floor, in its unit")
            plotting.plain_log(ax.xaxis)
            ax.legend()
        return ax


@any_model
def noise_floor(
    model: Model, prompts: PromptPairs | Int[Tensor, "prompt pos"], metric: Metric
) -> NoiseFloor:
    """Measure the noise floor of a metric on every prompt.

    `patch_sweep`, `ablate`, `path_patch`, `node_effects`, `exact_edges` and
    `faithfulness` measure their own, and mark what lies below: `.below_noise()`.

    Args:
        model: any model.
        prompts: pairs, whose clean prompts are run, or tokens.
        metric: a run to one number per prompt.

    Returns:
        A `NoiseFloor`, one row a prompt.

    Raises:
        ValueError: as `PromptPairs.tokens`.

    Source: random last digits, Vignes 1993 (CESTAC), Parker 1997 (Monte Carlo
    arithmetic); at the input alone.

    Examples:
        >>> case = ms.planted("induction")
        >>> found = ms.noise_floor(case.model, case.pairs, ms.logit_diff)
        >>> bool((found.table.floor < 1e-3).all())  # logits, of differences around 8
        True
    """
    started = time.perf_counter()
    if not isinstance(prompts, PromptPairs):
        prompts = PromptPairs(prompts, prompts)
    groups = prompts.tokens(model)
    rows = []
    for group in groups:
        for batch in _batches(model, group):
            some = group.rows(batch)
            value, spread = _spread(model, some.clean, some, metric)
            columns = (value, spread, floor_of(value, spread, unit(model)))
            rows += zip(some.index, *(x.tolist() for x in columns), strict=True)
    table = pd.DataFrame(rows, columns=["prompt", "value", "spread", "floor"])
    meta = provenance(
        model,
        [group.clean for group in groups],
        duration=time.perf_counter() - started,
        metric=repr(metric),
        repeats=REPEATS,
        factor=FACTOR,
    )
    table = table.sort_values("prompt", ignore_index=True)
    return NoiseFloor(table, meta, repr(metric), unit(model))


def floors(
    model: Model,
    groups: Sequence[TokenPairs],
    metric: Metric,
    *,
    corrupted: bool = False,
) -> list[float]:
    """The noise floor of each prompt, in the order of the pairs' numbers.

    Measured on `PROMPTS` of them, spread over all, at most; the others get the
    largest found: a few more forward passes, however many prompts there are.

    Args:
        model: any model.
        groups: all pairs, by length.
        metric: a run to one number per prompt.
        corrupted: run the corrupted prompts, not the clean ones.
    """
    places = [(g, row) for g, group in enumerate(groups) for row in range(len(group))]
    at = np.linspace(0, len(places) - 1, min(PROMPTS, len(places))).round().astype(int)
    found: dict[int, float] = {}
    for g, group in enumerate(groups):
        chosen = [row for here, row in (places[i] for i in at) if here == g]
        if chosen:
            some = group.rows(torch.tensor(chosen))
            tokens = some.corrupted if corrupted else some.clean
            each = floor(model, some, metric, tokens).tolist()
            found |= dict(zip(some.index, each, strict=True))
    largest = max(found.values())
    return [found.get(i, largest) for i in range(len(places))]


def floor(
    model: Model,
    pairs: TokenPairs,
    metric: Metric,
    tokens: Int[Tensor, "prompt pos"] | None = None,
) -> Float[Tensor, " prompt"]:
    """The noise floor of some pairs of one length, each measured; `tokens` are run.

    Default: their clean prompts.
    """
    tokens = pairs.clean if tokens is None else tokens
    found = []
    for rows in _batches(model, pairs):
        value, spread = _spread(model, tokens[rows], pairs.rows(rows), metric)
        found.append(floor_of(value, spread, unit(model)))
    return torch.cat(found)


def floor_of(
    value: Float[Tensor, " prompt"], spread: Float[Tensor, " prompt"], eps: float
) -> Float[Tensor, " prompt"]:
    """The floor from the spread; at least a unit in the last place of the value."""
    return torch.maximum(FACTOR * spread, eps * value.abs())


def spread_of(
    value: Float[Tensor, " prompt"],
    *moved: Float[Tensor, "repeat prompt"],
) -> Float[Tensor, " prompt"]:
    """Root mean square of the moves; of several kinds of moves, together."""
    squares = torch.stack([(each - value).square().mean(0) for each in moved])
    return squares.sum(0).sqrt()


def reread(
    run: Run,
    logits_read: str,
    eps: float,
    metric: Callable[[Run], Float[Tensor, " prompt"]],
) -> Float[Tensor, "repeat prompt"]:
    """The metric of one run whose logits and sites, as read, have other last digits.

    In half precision logits are coarse, and few nudges of the input move them at all.
    Logits of all positions are left as they are: a metric averages over them.
    """
    moved = {
        site: nudged(at_least_float32(value), eps) for site, value in run.cache.items()
    }
    logits = [run.logits] * REPEATS
    if logits_read == "last" and run.logits.numel():
        logits = list(nudged(at_least_float32(run.logits), eps))
    found = [
        metric(Run(run.tokens, some, {site: x[i] for site, x in moved.items()}))
        for i, some in enumerate(logits)
    ]
    return torch.stack(found)


def nudged(
    x: Float[Tensor, "batch pos d_model"], eps: float
) -> Float[Tensor, "repeat batch pos d_model"]:
    """The same numbers, each with another last digit, `REPEATS` times over.

    Up or down is drawn once for each place and serves all prompts, so that a prompt's
    floor does not depend on the others of its batch.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (REPEATS, 1, *x.shape[1:])
    up = torch.randint(2, shape, generator=generator, dtype=torch.int8).to(x.device)
    step = x * (STEP * eps)
    return torch.where(up.bool(), x + step, x - step)


def unit(model: Model) -> float:
    """One unit in the last place of 1, in the least exact type of a model's runs."""
    return torch.finfo(working_dtype(model)).eps


def below(
    change: np.ndarray, noise: Sequence[float], prompts: np.ndarray, caller: str
) -> Bool[np.ndarray, "*row"]:
    """Whether each change is no larger than its prompt's floor.

    Raises:
        ValueError: the result holds no floor.
    """
    if not len(noise):
        raise no_floor(caller)
    return np.abs(change) <= np.asarray(noise)[prompts]


def below_mean(
    change: np.ndarray, noise: Sequence[float], caller: str
) -> Bool[np.ndarray, "*row"]:
    """The same of means over all prompts, and the mean of their floors.

    The mean takes no credit for averaging: rounding errors of like prompts may agree.

    Raises:
        ValueError: the result holds no floor.
    """
    if not len(noise):
        raise no_floor(caller)
    return np.abs(change) <= np.mean(noise)


def no_floor(caller: str) -> ValueError:
    """The error for a result that was saved, or estimated, without a floor."""
    return ValueError(
        f"below_noise: this {caller} holds no noise floor: it is an estimate, or was "
        "made before floors were measured. Measure again by patching, or ask "
        "ms.noise_floor(model, prompts, metric) for one."
    )


@torch.no_grad()
def _spread(
    model: Model, tokens: Tensor, pairs: TokenPairs, metric: Metric
) -> tuple[Tensor, Tensor]:
    """The metric of some prompts, and its spread: one pass of all repeats."""
    n = len(tokens)
    rows = torch.arange(n, device=tokens.device).repeat(REPEATS + 1)
    eps = unit(model)

    def edit(x: Tensor) -> Tensor:
        return torch.cat([x[:n], nudged(x[:n], eps).flatten(0, 1)])

    first = {Site("resid_pre", 0): edit}
    run = model.run(tokens[rows], read=metric.reads, edit=first)
    values = metric(run, pairs.rows(rows)).double().cpu().reshape(REPEATS + 1, n)
    kind = getattr(metric, "logits_read", "all")
    shown = slice(-1, None) if kind == "last" else slice(None)
    cache = {site: value[:n] for site, value in run.cache.items()}
    one = Run(tokens[:, shown], run.logits[:n, shown], cache)
    read = reread(one, kind, eps, lambda run: metric(run, pairs).double().cpu())
    return values[0], spread_of(values[0], values[1:], read)


def _batches(model: Model, group: TokenPairs) -> Sequence[Tensor]:
    fit = rows_that_fit(
        model.shape,
        group.n_pos,
        dtype=model.dtype,
        device=model.device,
        n_logits=group.n_pos * model.shape.d_vocab,
    )
    rows = torch.arange(len(group), device=group.clean.device)
    return rows.split(max(1, fit // (REPEATS + 1)))
