"""Head searches: which heads to tune or calibrate, and how strongly.

Each is `profile_heads` (head_profile.py) with its edit and its rule of choice.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from mechsink import plotting
from mechsink.experiments.head_search.profile import (
    Goal,
    Head,
    HeadProfile,
    answer_is_right,
    as_groups,
    heads_of,
    profile_heads,
)
from mechsink.interventions.attention_edits import (
    act_calibration,
    on_heads,
    zero_tuning,
)
from mechsink.models.any_model import any_model
from mechsink.plotting import Axes
from mechsink.prompts import PromptPairs
from mechsink.results import Result
from mechsink.run import Edit, Metric, Model
from mechsink.sites import Site


@dataclass(frozen=True, eq=False)
class ZeroTuningSearch(Result):
    """Head classes and the shared gamma that ZeroTuning would use.

    `table`: layer, head, up, down, kind: mean effects with gamma above and below 1,
    and "up", "down" or "none" by the larger help. `grid`: gamma, value: the metric's
    mean with all heads of the larger class tuned together; gamma 1 is the plain model.

    Examples:
        >>> case = ms.planted("induction")
        >>> found = ms.zero_tuning_search(case.model, case.pairs, ms.logit_diff)
        >>> found.grid.gamma.tolist(), len(found.heads) == len(found.edit)
        ([0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0], True)
    """

    grid: pd.DataFrame
    kind: Literal["up", "down"]
    gamma: float

    @property
    def heads(self) -> list[Head]:
        """The heads of the larger class."""
        return heads_of(self.table[self.table["kind"] == self.kind])

    @property
    def edit(self) -> dict[Site, Edit]:
        """What was found, for `model.run` and `generate`."""
        return on_heads(zero_tuning(self.gamma), self.heads)

    def plot(self, ax: Axes | None = None) -> Axes:
        """The metric by gamma, the class tuned together; a ring on the gamma found.

        Args:
            ax: where to draw; a new figure by default.
        """
        gammas, values = (self.grid[c].to_numpy() for c in ("gamma", "value"))
        with plotting.theme():
            ax = ax or plotting.new_axes()
            ax.plot(gammas, values, "o-", ms=3, label=f'heads of class "{self.kind}"')
            found = gammas == self.gamma
            ax.plot(gammas[found], values[found], "o", ms=7, mfc="none", color="0.3",
                    label="found")  # fmt: skip
            plain = float(values[gammas == 1.0][0])
            ax.axhline(plain, color="0.6", lw=0.8, ls=":", label="plain model")
            ax.set_xscale("log", base=2)
            plotting.plain_log(ax.xaxis)
            ax.set(xlabel="gamma, factor of attention to the first token")
            ax.set(ylabel=plotting.literal(str(self.meta["settings"]["metric"])))
            ax.legend()
        return ax


@any_model
def zero_tuning_search(
    model: Model,
    prompts: PromptPairs | Int[Tensor, "prompt pos"],
    metric: Metric,
    *,
    probe: float = 1.5,
    gammas: Sequence[float] = (0.25, 0.5, 0.75, 1.25, 1.5, 2.0, 3.0),
    heads: Iterable[Head] | None = None,
    goal: Goal = "higher",
) -> ZeroTuningSearch:
    """Profile heads with gamma above and below 1, then tune the larger class.

    Each head is tried with `probe` and 1 / `probe`; a head that gains with the first
    is "up", with the second "down", by the larger gain if with both. The heads of
    the larger class share the gamma of `gammas` that is best for all prompts
    together, or 1 if none beats the plain model.

    Args:
        model: any model whose patterns can be edited.
        prompts: pairs, whose clean prompts are run, or tokens.
        metric: a run to one number per prompt; `next_token_entropy` with goal="lower"
            needs no answers.
        probe: the gamma of the profile, above 1.
        gammas: what is tried on the class, all above 0.
        heads: (layer, head) to try; default all.
        goal: whether a higher or a lower metric is better.

    Returns:
        A `ZeroTuningSearch`, one row a head.

    Raises:
        ValueError: probe not above 1, or as `profile_heads`.

    Source: ZeroTuning (arXiv:2505.11739).

    Examples:
        >>> case = ms.planted("induction")
        >>> found = ms.zero_tuning_search(
        ...     case.model, case.pairs, ms.logit_diff, gammas=[0.5, 2.0], heads=[(1, 0)]
        ... )
        >>> found.kind, found.gamma
        ('down', 0.5)
    """
    if not probe > 1:
        raise ValueError(f"zero_tuning_search: probe={probe}. Allowed: above 1.")
    tried = None if heads is None else list(heads)
    up, down = (
        profile_heads(model, prompts, zero_tuning(g), metric, heads=tried, goal=goal)
        for g in (probe, 1 / probe)
    )
    sign = 1 if goal == "higher" else -1
    table: Any = up.table[["layer", "head"]].copy()
    table["up"], table["down"] = up.table["effect"], down.table["effect"]
    gains: Any = sign * table[["up", "down"]]
    table["kind"] = np.where(gains.max(axis=1) > 0, gains.idxmax(axis=1), "none")
    counts = {kind: int((table["kind"] == kind).sum()) for kind in ("up", "down")}
    kind: Literal["up", "down"] = "up" if counts["up"] >= counts["down"] else "down"
    chosen = heads_of(table[table["kind"] == kind])
    plain: Any = up.prompts.drop_duplicates("prompt")["full"]
    values = {1.0: float(plain.mean())}
    for gamma in gammas if chosen else ():
        edits = on_heads(zero_tuning(gamma), chosen)
        values[gamma] = _mean(model, prompts, metric, edits)
    grid = pd.DataFrame(sorted(values.items()), columns=["gamma", "value"])
    best = max(values, key=lambda gamma: sign * values[gamma])
    meta = {**up.meta, "settings": {**up.meta["settings"], "probe": probe}}
    return ZeroTuningSearch(table, meta, grid, kind, float(best))


@any_model
def act_search(
    model: Model,
    prompts: PromptPairs | Int[Tensor, "prompt pos"],
    metric: Metric = answer_is_right,
    *,
    beta: float = 0.4,
    theta: float = 0.1,
    layers: Collection[int] | None = None,
    goal: Goal = "higher",
) -> HeadProfile:
    """ACT's head search: calibrate one head at a time on a calibration set.

    `.helpful()` are the heads that beat the uncalibrated model; apply them with
    on_heads(act_calibration(beta, theta), profile.helpful()).

    Args:
        model: any model whose patterns can be edited.
        prompts: pairs, whose clean prompts are run, or tokens.
        metric: a run to one number per prompt.
        beta: share of its attention that a sink keeps, as in `act_calibration`.
        theta: mean attention from which a key is a sink.
        layers: those searched; default: all but the first two and the last, as in
            the paper, or all of a model with fewer than four layers.
        goal: whether a higher or a lower metric is better.

    Returns:
        A `HeadProfile`, one row a head that was tried.

    Raises:
        ValueError: as `profile_heads`.

    Source: ACT (ICML 2024); keeping what beats the plain model is ours.

    Examples:
        >>> case = ms.planted("induction")
        >>> found = ms.act_search(case.model, case.pairs, ms.logit_diff)
        >>> found.helpful()
        []
    """
    n_layers = model.shape.n_layers
    if layers is None:
        layers = range(2, n_layers - 1) if n_layers > 3 else range(n_layers)
    heads = [(n, h) for n in layers for h in range(model.shape.n_heads)]
    edit = act_calibration(beta, theta)
    return profile_heads(model, prompts, edit, metric, heads=heads, goal=goal)


def _mean(
    model: Model,
    prompts: PromptPairs | Tensor,
    metric: Metric,
    edit: Mapping[Site, Edit],
) -> float:
    values = [
        metric(model.run(group.clean, read=metric.reads, edit=edit), group)
        for group in as_groups(model, prompts)
    ]
    return float(torch.cat(values).double().mean())
