"""`low_rank`: how many dimensions of a head's queries, keys or values are needed?

Source: Lieberum et al. 2023 (arXiv:2307.09458), section 4.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from mechsink import plotting
from mechsink.attribution.inference import inference
from mechsink.attribution.subspaces import (
    Prompts,
    Subspace,
    Where,
    positions_of,
    subspaces,
    vector_batches,
)
from mechsink.metrics import logit_diff
from mechsink.models.any_model import any_model
from mechsink.plotting import Axes
from mechsink.prompts import TokenPairs
from mechsink.provenance import provenance
from mechsink.results import Result
from mechsink.run import Edit, Metric, Model
from mechsink.sites import Site


@dataclass(frozen=True, eq=False)
class LowRank(Result):
    """A metric with sites cut down to a few directions, one row a site and rank.

    `table`: site ("all": all of them together), layer, head (key-value head for k and
    v; NaN for "all"), rank, explained (share of the site's sum of squares that is
    kept; NaN for "all"), then means over prompts: before, after and change of the
    metric, in its unit, and accuracy_before and accuracy_after, 0 to 1. Each has
    NAME_low and NAME_high, a 95 % bootstrap interval over prompts (NaN for one).

    `spectrum`: site, rank, explained, for every rank from 0 on.
    `by_prompt`: site, rank, prompt, before, after.

    Attributes:
        centred: whether the mean was taken off before the directions were found.

    Examples:
        >>> case = ms.planted("letter")
        >>> query = ms.Site("q", layer=1, head=0)
        >>> cut = ms.low_rank(case.model, case.pairs, [query], [0, 3], positions=[-1])
        >>> cut.table[["rank", "accuracy_after"]].values.tolist()
        [[0.0, 0.0], [3.0, 1.0]]
        >>> ax = cut.plot()
    """

    spectrum: pd.DataFrame
    by_prompt: pd.DataFrame
    metric: str
    centred: bool

    def plot(self, ax: Axes | None = None) -> Axes:
        """The metric by rank, a line a site; dashed without any cut.

        Args:
            ax: where to draw; default: a new figure.
        """
        with plotting.theme():
            ax = ax or plotting.new_axes()
            names = list(dict.fromkeys(self.table["site"]))
            for name, colour in zip(names, plotting.colours(len(names)), strict=True):
                rows = self.table.loc[self.table["site"] == name].sort_values("rank")
                ax.plot(
                    rows["rank"],
                    rows["after"],
                    "o-",
                    color=colour,
                    label=plotting.literal(name),
                )
                ends = (rows["after_low"], rows["after_high"])
                ax.fill_between(rows["rank"], *ends, color=colour, alpha=0.15, lw=0)
            ax.axhline(self.table["before"].iloc[0], color="0.6", ls="--", lw=0.8)
            ax.set(xlabel="rank kept", ylabel=plotting.literal(self.metric))
            plotting.whole_numbers(ax.xaxis)
            ax.legend()
            return ax


@any_model
def low_rank(
    model: Model,
    prompts: Prompts,
    sites: Sequence[Site],
    rank: int | Sequence[int],
    metric: Metric = logit_diff,
    *,
    positions: Where | Mapping[Site, Where] | None = None,
    centred: bool = False,
    fitted: Mapping[Site, Subspace] | None = None,
    right: Metric | None = None,
    seed: int = 0,
) -> LowRank:
    """Keep only the first directions of sites while the model runs, and measure.

    Each site is projected by itself and, if there are several, all together. Queries
    and keys are cut where the site is: before rotary positions (and before a norm of
    their own). A key-value head serves its whole group of heads.

    Args:
        model: any model.
        prompts: pairs, whose clean prompts are run, or tokens.
        sites: as in `subspaces`.
        rank: how many directions to keep, from 0 to the site's width; one or several.
        metric: a run to one number per prompt.
        positions: where sites are fitted and projected, as in `subspaces`.
        centred: fit and keep the mean; see `subspaces`.
        fitted: directions from other prompts, as `subspaces` gives them, to see
            whether they generalise; default: fitted on these prompts.
        right: 1 for each prompt that is answered right, else 0; default: whether the
            metric is above 0.
        seed: of the bootstrap.

    Returns:
        A `LowRank`, one row a site and rank.

    Raises:
        ValueError: as `subspaces`; a rank that is not there; a site without
            directions in `fitted`; a metric that is NaN.

    Source: Lieberum et al. 2023 (arXiv:2307.09458), section 4, who keep 3.

    Examples:
        >>> case = ms.planted("letter")
        >>> query = ms.Site("q", layer=1, head=0)
        >>> cut = ms.low_rank(case.model, case.pairs, [query], 3, positions=[-1])
        >>> cut.table[["explained", "before", "after"]].round(1).values.tolist()
        [[1.0, 7.5, 7.5]]
    """
    started = time.perf_counter()
    ranks = [rank] if isinstance(rank, int) else list(rank)
    sites = list(dict.fromkeys(sites))
    groups = list(vector_batches("low_rank", model, prompts, sites))
    _check_ranks(model, sites, ranks)
    if fitted is None:
        fitted = subspaces(model, prompts, sites, positions=positions, centred=centred)
    missing = [str(site) for site in sites if site not in fitted]
    if missing:
        raise ValueError(
            f"low_rank: fitted= has no directions of {', '.join(missing)}. Fit them "
            "with ms.subspaces(model, prompts, sites)."
        )
    cuts = [(site,) for site in sites] + ([tuple(sites)] if len(sites) > 1 else [])
    rows: list[dict[str, object]] = []
    for batch in groups:
        before, right_before = _measured(model, batch, metric, right, {})
        for cut in cuts:
            where = {
                site: positions_of("low_rank", positions, site, batch) for site in cut
            }
            for kept in ranks:
                edit = {s: _projecting(fitted[s], kept, where[s]) for s in cut}
                after, right_after = _measured(model, batch, metric, right, edit)
                for n, prompt in enumerate(batch.index):
                    rows.append(
                        {
                            "site": str(cut[0]) if len(cut) == 1 else "all",
                            "rank": kept,
                            "prompt": prompt,
                            "before": float(before[n]),
                            "after": float(after[n]),
                            "accuracy_before": float(right_before[n]),
                            "accuracy_after": float(right_after[n]),
                        }
                    )
    by_prompt = pd.DataFrame(rows)
    names = {str(site): site for site in sites}
    spectrum = pd.DataFrame(
        [
            {"site": name, "rank": kept, "explained": fitted[site].explained(kept)}
            for name, site in names.items()
            for kept in range(len(fitted[site].singular) + 1)
        ]
    )
    meta = provenance(
        model,
        [batch.clean for batch in groups],
        duration=time.perf_counter() - started,
        sites=[str(site) for site in sites],
        ranks=ranks,
        metric=repr(metric),
        positions=None if positions is None else str(positions),
        centred=centred,
        seed=seed,
    )
    table = _summary(by_prompt, names, fitted, seed)
    return LowRank(table, meta, spectrum, by_prompt, repr(metric), centred)


def _summary(
    by_prompt: pd.DataFrame,
    names: Mapping[str, Site],
    fitted: Mapping[Site, Subspace],
    seed: int,
) -> pd.DataFrame:
    rows: list[dict[str, object]] = []
    for key, some in by_prompt.groupby(["site", "rank"], sort=False):
        name, kept = str(key[0]), int(key[1])  # type: ignore[index]
        site = names.get(name)
        head = None if site is None else _number(site)
        row: dict[str, object] = {
            "site": name,
            "layer": float("nan") if site is None else float(site.layer),
            "head": float("nan") if head is None else float(head),
            "rank": kept,
            "explained": float("nan") if site is None else fitted[site].explained(kept),
        }
        values = {n: some[n].to_numpy(dtype=float) for n in ("before", "after")}
        values["change"] = values["after"] - values["before"]
        for n in ("accuracy_before", "accuracy_after"):
            values[n] = some[n].to_numpy(dtype=float)
        found = inference(np.stack(list(values.values()), axis=1), seed)
        for n, (mean, low, high) in zip(
            values, found[["score", "low", "high"]].to_numpy(), strict=True
        ):
            row |= {n: mean, f"{n}_low": low, f"{n}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def _projecting(space: Subspace, rank: int, at: Int[Tensor, "batch position"]) -> Edit:
    def edit(x: Tensor) -> Tensor:
        rows = torch.arange(len(x), device=x.device)[:, None]
        new = x.clone()
        new[rows, at] = space.project(x[rows, at].double(), rank).to(x.dtype)
        return new

    return edit


def _measured(
    model: Model,
    batch: TokenPairs,
    metric: Metric,
    right: Metric | None,
    edit: Mapping[Site, Edit],
) -> tuple[Tensor, Tensor]:
    """The metric, and whether prompts are right, of one run."""
    reads = metric.reads if right is None else metric.reads | right.reads
    run = model.run(batch.clean, read=reads, edit=edit)
    values = metric(run, batch).double()
    if not values.isfinite().all():
        bad = torch.tensor(batch.index)[~values.isfinite().cpu()].tolist()
        raise ValueError(
            f"low_rank: the metric {metric!r} is NaN or infinite for prompts "
            f"{bad[:8]}. Check ms.selfcheck(model), or load it with "
            "dtype=torch.float32."
        )
    share = (values > 0).double() if right is None else right(run, batch).double()
    return values.cpu(), share.cpu()


def _number(site: Site) -> int | None:
    return site.kv_head if site.head is None else site.head


def _check_ranks(model: Model, sites: Sequence[Site], ranks: Sequence[int]) -> None:
    width = min(model.shape.size(site, 1, 1)[-1] for site in sites)
    if not ranks or any(not 0 <= rank <= width for rank in ranks):
        raise ValueError(
            f"low_rank: rank={list(ranks)}. Allowed: 0 (nothing is kept, or the mean) "
            f"to {width}, the width of the narrowest site; 3 is usual."
        )
