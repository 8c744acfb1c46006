"""`ablate`: what remains of a metric when sites lose what is theirs."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from mechsink import plotting
from mechsink.interventions.replacements import Replacement
from mechsink.models.any_model import any_model
from mechsink.models.memory import rows_that_fit
from mechsink.plotting import Axes
from mechsink.precision import below, floors
from mechsink.prompts import PromptPairs, TokenPairs
from mechsink.provenance import provenance
from mechsink.results import Result
from mechsink.run import Edit, Metric, Model
from mechsink.sites import Site
from toy_tasks.checks import checked

Positions = Sequence[int | slice | range]


@dataclass(frozen=True, eq=False)
class AblationResult(Result):
    """The metric with some sites replaced, one row a prompt.

    `table`: prompt, full (metric of the untouched run), ablated, change (ablated
    minus full), all in the metric's unit.

    Attributes:
        noise: floor of each prompt's metric.

    Examples:
        >>> case = ms.planted("induction")
        >>> head = ms.Site("z", layer=1, head=0)
        >>> done = ms.ablate(case.model, case.pairs, [head], ms.zero(), ms.logit_diff)
        >>> round(done.mean_change, 1), done.below_noise().sum().item()
        (-7.2, 0)
    """

    sites: list[str]
    metric: str
    noise: list[float] = field(default_factory=list)

    def below_noise(self) -> pd.Series:
        """Prompts whose metric changed by no more than rounding may.

        Raises:
            ValueError: the result was saved without a floor.
        """
        change, prompts = (self.table[c].to_numpy() for c in ("change", "prompt"))
        found = below(change, self.noise, prompts, "AblationResult")
        return pd.Series(found, index=self.table.index, name="below_noise")

    @property
    def mean_change(self) -> float:
        """Change of the metric, averaged over prompts."""
        return float(self.table["change"].to_numpy().mean())

    def plot(self, ax: Axes | None = None) -> Axes:
        """The metric without the sites against that of the whole, a dot a prompt.

        Args:
            ax: where to draw; a new figure by default.
        """
        with plotting.theme():
            ax = ax or plotting.new_axes(height=0.9 * plotting.WIDTH)
            ax.plot(self.table["full"], self.table["ablated"], "o", ms=3, alpha=0.7)
            plotting.equal_line(ax)
            metric = plotting.literal(self.metric)
            sites = ", ".join(self.sites)
            ax.set(xlabel=f"untouched, {metric}", ylabel=f"replaced, {metric}")
            ax.set_title(plotting.literal(sites, 48), fontsize="small")
            ax.legend()
        return ax


@any_model
@checked
def ablate(
    model: Model,
    prompts: PromptPairs | Int[Tensor, "prompt pos"],
    sites: Collection[Site],
    replacement: Replacement,
    metric: Metric,
    *,
    positions: Positions | Mapping[Site, Positions] | None = None,
) -> AblationResult:
    """Replace sites together, for one call, and measure again.

    Args:
        model: any model.
        prompts: pairs, whose clean prompts are run, or tokens.
        sites: replaced together; a site with a head loses that head alone.
        replacement: `zero()`, `mean(reference)`, `resample(reference)` or
            `context_mean(slot_prompts)`.
        metric: a run to one number per prompt.
        positions: replace only there (queries, for a pattern): numbers and spans,
            as in [0, range(3, 6), slice(8, None)], for all sites or a mapping from
            site to its own; default everywhere.

    Returns:
        An `AblationResult`, one row a prompt.

    Raises:
        ValueError: no sites, or sites, positions or references that do not fit, or
            a model that gives NaN.

    Examples:
        >>> case = ms.planted("induction")
        >>> head = ms.Site("z", layer=1, head=0)
        >>> done = ms.ablate(case.model, case.pairs, [head], ms.zero(), ms.logit_diff)
        >>> done.table[["full", "ablated", "change"]].mean().round(1).to_dict()
        {'full': 7.2, 'ablated': 0.0, 'change': -7.2}
    """
    if not sites:
        raise ValueError(
            "ablate: no sites given. Name at least one, such as Site('z', 2, head=1)."
        )
    started = time.perf_counter()
    found: list[tuple[int, float, float]] = []
    groups = _groups(model, prompts)
    for group in groups:
        where = {s: _resolved(positions, s, group.n_pos) for s in sites}
        new = replacement(model, sites, group.clean)
        for rows in _batches(model, group):
            some = group.rows(rows)
            edit = {
                site: _put(site, value if len(value) == 1 else value[rows], where[site])
                for site, value in ((s, _with_batch(new[s])) for s in sites)
            }
            full = metric(model.run(some.clean, read=metric.reads), some)
            if not full.isfinite().all():
                raise ValueError(
                    "ablate: the metric of the untouched run is NaN or infinite for "
                    f"prompt {some.index[int((~full.isfinite()).int().argmax())]}. The "
                    "model's weights or activations hold NaN, or overflow in this "
                    "dtype: check ms.selfcheck(model), or load it with "
                    "dtype=torch.float32."
                )
            run = model.run(some.clean, read=metric.reads, edit=edit)
            ablated = metric(run, some).tolist()
            found += zip(some.index, full.tolist(), ablated, strict=True)
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
        positions=None if positions is None else str(positions),
        replacement=_maker(replacement),
        seed=getattr(replacement, "seed", None),
    )
    noise = floors(model, groups, metric)
    return AblationResult(table, meta, names, repr(metric), noise)


def _maker(replacement: Replacement) -> str:
    """The function that made it: "resample" of "resample.<locals>.values"."""
    return getattr(replacement, "__qualname__", repr(replacement)).split(".")[0]


def _resolved(
    positions: Positions | Mapping[Site, Positions] | None, site: Site, n_pos: int
) -> list[int] | None:
    """Numbers of the positions where a site is replaced; None for all."""
    if isinstance(positions, Mapping):
        if site not in positions:
            raise ValueError(
                f"ablate: positions= names no positions of {site}, only of "
                f"{', '.join(map(str, positions))}. Give every ablated site its own, "
                "or one list for all."
            )
        positions = positions[site]
    if positions is None:
        return None
    found: list[int] = []
    for given in positions:
        if isinstance(given, slice):
            found += range(n_pos)[given]
        else:
            found += [given] if isinstance(given, int) else given
    if not found or any(not 0 <= pos < n_pos for pos in found):
        raise ValueError(
            f"ablate: positions={positions} are {found}, but a prompt has {n_pos} "
            f"tokens. Allowed: some of 0 to {n_pos - 1}, and spans of them."
        )
    return found


def _with_batch(new: Tensor) -> Tensor:
    """With a batch axis, of 1 where the value serves all prompts."""
    return new[None] if new.ndim == 0 else new


def _batches(model: Model, group: TokenPairs) -> list[slice]:
    n_logits = group.n_pos * model.shape.d_vocab
    fit = rows_that_fit(
        model.shape,
        group.n_pos,
        dtype=model.dtype,
        device=model.device,
        n_logits=n_logits,
    )
    return [slice(first, first + fit) for first in range(0, len(group), fit)]


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
