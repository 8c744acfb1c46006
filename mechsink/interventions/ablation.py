"""`ablate`: what remains of a metric when sites lose what is theirs."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from mechsink.interventions.replacements import Replacement
from mechsink.prompts import PromptPairs, TokenPairs
from mechsink.results import Result, provenance
from mechsink.run import Edit, Metric, Model
from mechsink.sites import Site


@dataclass(frozen=True, eq=False)
class AblationResult(Result):
    """The metric with some sites replaced, one row a prompt.

    `table`: prompt, full (metric of the untouched run), ablated, change (ablated
    minus full), all in the metric's unit.
    """

    sites: list[str]
    metric: str

    @property
    def mean_change(self) -> float:
        """Change of the metric, averaged over prompts."""
        return float(self.table["change"].to_numpy().mean())


def ablate(
    model: Model,
    prompts: PromptPairs | Int[Tensor, "prompt pos"],
    sites: Collection[Site],
    replacement: Replacement,
    metric: Metric,
    *,
    positions: Sequence[int] | None = None,
) -> AblationResult:
    """Replace sites together, for one call, and measure again.

    Args:
        model: any model.
        prompts: pairs, whose clean prompts are run, or tokens.
        sites: replaced together; a site with a head loses that head alone.
        replacement: `zero()`, `mean(reference)` or `resample(reference)`.
        metric: a run to one number per prompt.
        positions: replace only there (queries, for a pattern); default everywhere.

    Raises:
        ValueError: no sites, or sites, positions or references that do not fit.
    """
    if not sites:
        raise ValueError(
            "ablate: no sites given. Name at least one, such as Site('z', 2, head=1)."
        )
    started = time.perf_counter()
    found: list[tuple[int, float, float]] = []
    groups = _groups(model, prompts)
    for group in groups:
        n_pos = group.n_pos
        if positions is not None and any(not 0 <= pos < n_pos for pos in positions):
            raise ValueError(
                f"ablate: positions={list(positions)}, but a prompt has {n_pos} "
                f"tokens. Allowed: some of 0 to {n_pos - 1}."
            )
        new = replacement(model, sites, group.clean)
        edit = {site: _put(site, new[site], positions) for site in sites}
        full = metric(model.run(group.clean, read=metric.reads), group)
        run = model.run(group.clean, read=metric.reads, edit=edit)
        rows = zip(group.index, full.tolist(), metric(run, group).tolist(), strict=True)
        found += rows
    table = pd.DataFrame(found, columns=["prompt", "full", "ablated"])
    table = table.sort_values("prompt", ignore_index=True)
    table["change"] = table["ablated"] - table["full"]
    names = [str(site) for site in sites]
    meta = provenance(
        model,
        [group.clean for group in groups],
        duration=time.perf_counter() - started,
        sites=names,
        metric=repr(metric),
        positions=None if positions is None else list(positions),
    )
    return AblationResult(table, meta, names, repr(metric))


def _put(site: Site, new: Tensor, positions: Sequence[int] | None) -> Edit:
    axis = next(n for n, name in enumerate(site.axes) if name in ("pos", "query"))

    def edit(x: Tensor) -> Tensor:
        full = new.to(x.dtype).expand_as(x)
        if positions is None:
            return full.clone()
        chosen = torch.zeros(x.shape[axis], dtype=torch.bool, device=x.device)
        chosen[list(positions)] = True
        shape = [1] * x.ndim
        shape[axis] = -1
        return torch.where(chosen.reshape(shape), full, x)

    return edit


def _groups(
    model: Model, prompts: PromptPairs | Int[Tensor, "prompt pos"]
) -> list[TokenPairs]:
    if isinstance(prompts, PromptPairs):
        # The corrupted prompts play no part, so they need not match in length.
        return replace(prompts, corrupted=prompts.clean).tokens(model)
    return PromptPairs(prompts, prompts).tokens(model)
