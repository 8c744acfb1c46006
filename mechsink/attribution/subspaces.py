"""`subspaces`: the directions that a head's queries, keys or values take.

Source: Lieberum et al. 2023 (arXiv:2307.09458), section 4.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsink.attribution.logits import batches, place
from mechsink.models.any_model import any_model
from mechsink.prompts import PromptPairs, TokenPairs
from mechsink.run import Model
from mechsink.sites import Site

Where = Sequence[int] | Int[Tensor, "prompt position"]
"""Positions alike in all prompts, or a row of them for each; negative: from the end."""
Prompts = PromptPairs | Int[Tensor, "prompt pos"]


@dataclass(frozen=True, eq=False)
class Subspace:
    """Directions of a site by how much of it they hold, the most first.

    `mean` is zero where nothing was subtracted; `singular`: singular values.

    Attributes:
        mean: what was subtracted.
        directions: of unit length, orthogonal.
        singular: singular values, descending, in the site's unit.

    Examples:
        >>> case = ms.planted("letter")
        >>> query = ms.Site("q", layer=1, head=0)
        >>> space = ms.subspaces(case.model, case.pairs, [query], positions=[-1])[query]
        >>> [round(space.explained(rank), 2) for rank in (0, 2, 3)]
        [0.0, 0.75, 1.0]
    """

    mean: Float[Tensor, " d"]
    directions: Float[Tensor, "component d"]
    singular: Float[Tensor, " component"]

    def project(self, x: Float[Tensor, "*batch d"], rank: int) -> Tensor:
        """`x` with only the first `rank` directions, around the mean.

        Args:
            x: values of the site.
            rank: how many directions to keep.

        Returns:
            Float[*batch d], like `x`.
        """
        mean, kept = self.mean.to(x), self.directions[:rank].to(x)
        return mean + (x - mean) @ kept.T @ kept

    def explained(self, rank: int) -> float:
        """Share of the sum of squares (around the mean) that the first ones hold.

        Args:
            rank: how many directions, from the first.

        Returns:
            0 to 1.
        """
        power = self.singular.square()
        return float(power[:rank].sum() / power.sum()) if power.sum() > 0 else 1.0


@any_model
def subspaces(
    model: Model,
    prompts: Prompts,
    sites: Sequence[Site],
    *,
    positions: Where | Mapping[Site, Where] | None = None,
    centred: bool = False,
) -> dict[Site, Subspace]:
    """The directions that sites take over prompts and positions, by SVD.

    Args:
        model: any model.
        prompts: pairs, whose clean prompts are run, or tokens.
        sites: of vectors at positions: q, k, v or z of one head, or a residual.
        positions: where; for all sites or a mapping from site to its own; default
            everywhere.
        centred: take the mean off before, and keep it in every projection. Without,
            directions hold the most of the vectors themselves.

    Returns:
        Site to `Subspace`, whose `directions` are Float[component d].

    Raises:
        ValueError: no sites, one that holds no vectors or that the model lacks, or
            positions that do not fit.

    Source: Lieberum et al. 2023 (arXiv:2307.09458), section 4.

    Examples:
        >>> case = ms.planted("letter")
        >>> query = ms.Site("q", layer=1, head=0)
        >>> found = ms.subspaces(case.model, case.pairs, [query], positions=[-1])
        >>> tuple(found[query].directions.shape)
        (12, 16)
    """
    found: dict[Site, list[Tensor]] = {site: [] for site in sites}
    for batch in vector_batches("subspaces", model, prompts, sites):
        cache = model.run(batch.clean, read=sites).cache
        for site in sites:
            at = positions_of("subspaces", positions, site, batch)
            rows = torch.arange(len(batch), device=at.device)[:, None]
            found[site].append(cache[site][rows, at].double().flatten(0, 1).cpu())
    spaces = {}
    for site, pieces in found.items():
        vectors = torch.cat(pieces)
        mean = vectors.mean(0) if centred else torch.zeros_like(vectors[0])
        _, singular, directions = torch.linalg.svd(vectors - mean, full_matrices=False)
        spaces[site] = Subspace(mean, directions, singular)
    return spaces


def vector_batches(
    caller: str, model: Model, prompts: Prompts, sites: Sequence[Site]
) -> Iterator[TokenPairs]:
    """Prompts, as many at once as fit, once the sites are known to hold vectors."""
    if not sites:
        raise ValueError(
            f"{caller}: no sites given. Name at least one, such as "
            "Site('q', 2, head=1) or Site('k', 2, kv_head=0)."
        )
    for site in sites:
        model.shape.check(site)
        if len(site.axes) != 3 or site.axes[1] != "pos":
            hint = "head=" if "head" in site.axes else "kv_head="
            fix = f"Pick one, {hint}0." if "pos" in site.axes else "Take q, k, v or z."
            raise ValueError(
                f"{caller}: {site} has axes {' '.join(site.axes)}, and directions are "
                f"those of one vector at each position. {fix}"
            )
    if not isinstance(prompts, PromptPairs):
        prompts = PromptPairs(prompts, prompts)
    yield from batches(model, replace(prompts, corrupted=prompts.clean).tokens(model))


def positions_of(
    caller: str,
    positions: Where | Mapping[Site, Where] | None,
    site: Site,
    batch: TokenPairs,
) -> Int[Tensor, "batch position"]:
    """Positions of a site in each prompt of a batch, from 0."""
    if isinstance(positions, Mapping):
        if site not in positions:
            raise ValueError(
                f"{caller}: positions= names none of {site}, only of "
                f"{', '.join(map(str, positions))}. Give every site its own, or one "
                "list for all."
            )
        positions = positions[site]
    if positions is None:
        positions = range(batch.n_pos)
    if isinstance(positions, Tensor):
        if max(batch.index) >= len(positions):
            raise ValueError(
                f"{caller}: positions of {len(positions)} prompts for prompt "
                f"{max(batch.index)}. Give a row for each prompt."
            )
        rows = positions[batch.index].tolist()
    else:
        rows = [list(positions)] * len(batch)
    if not rows[0]:
        raise ValueError(f"{caller}: positions of {site} are empty. Name at least one.")
    found = [[place(caller, at, batch.n_pos) for at in row] for row in rows]
    return torch.tensor(found, device=batch.clean.device)
