"""What stands in for an ablated site: zeros, a mean, or another prompt's value.

Each is a function of the model, the sites and the prompts to the tensors that go
in. Reference statistics are streamed in float64, so they do not depend on how the
references are batched.
"""

from collections.abc import Collection, Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from mechsink.models.memory import rows_that_fit
from mechsink.run import Model
from mechsink.sites import Site


@runtime_checkable
class Replacement(Protocol):
    """Values for sites of a run on `tokens`."""

    def __call__(
        self, model: Model, sites: Collection[Site], tokens: Int[Tensor, "batch pos"]
    ) -> Mapping[Site, Tensor]:
        """One tensor a site, of the site's shape or broadcast to it."""
        ...


def zero() -> Replacement:
    """Nothing at all: removes the component and the mean it always writes.

    Returns:
        A replacement for `ablate`.

    Examples:
        >>> case = ms.planted("induction")
        >>> head = ms.Site("z", layer=1, head=0)
        >>> done = ms.ablate(case.model, case.pairs, [head], ms.zero(), ms.logit_diff)
        >>> done.table.ablated.abs().max().round(2).item()
        0.0
    """

    def values(
        model: Model, sites: Collection[Site], tokens: Tensor
    ) -> Mapping[Site, Tensor]:
        empty = torch.zeros((), dtype=model.dtype, device=model.device)
        return dict.fromkeys(sites, empty)

    return values


def mean(
    reference: Int[Tensor, "prompt pos"],
    *,
    by_position: bool = True,
    batch_size: int | None = None,
) -> Replacement:
    """The site's mean over reference prompts: removes what is specific to one.

    Args:
        reference: tokens of the prompts to average over.
        by_position: average each position apart (the references then need the
            length of the ablated prompts); else over positions too.
        batch_size: reference prompts a pass, no effect on the value; default: what
            fits into memory.

    Returns:
        A replacement for `ablate`.

    Raises:
        ValueError: when it is used: references of another length than the prompts
            (`by_position`), or a site without positions.

    Examples:
        >>> case = ms.planted("induction")
        >>> head = ms.Site("z", layer=1, head=0)
        >>> by = ms.mean(case.pairs.corrupted)
        >>> done = ms.ablate(case.model, case.pairs, [head], by, ms.logit_diff)
        >>> done.table.ablated.abs().max().round(1).item()
        0.6
    """

    def values(
        model: Model, sites: Collection[Site], tokens: Tensor
    ) -> Mapping[Site, Tensor]:
        if by_position:
            _same_length("mean", reference, tokens)
        totals: dict[Site, Tensor] = {}
        for rows in reference.split(batch_size or _fit(model, reference)):
            cache = model.run(rows, read=sites).cache
            for site in sites:
                part = cache[site].double().sum(0, keepdim=True)
                totals[site] = part if site not in totals else totals[site] + part
        means = {}
        for site, total in totals.items():
            average = total / len(reference)
            if not by_position:
                _need_pos_axis(site)
                average = average.mean(1, keepdim=True)
            means[site] = average.to(model.dtype)
        return means

    return values


def resample(reference: Int[Tensor, "prompt pos"], *, seed: int = 0) -> Replacement:
    """The value that the site has on another prompt, drawn at random for each.

    Keeps the site on its own distribution, which zeros and means leave.

    Args:
        reference: tokens of the prompts to draw from, as long as the ablated ones.
        seed: of the draw.

    Returns:
        A replacement for `ablate`.

    Raises:
        ValueError: when it is used: references of another length than the prompts.

    Examples:
        >>> case = ms.planted("induction")
        >>> head = ms.Site("z", layer=1, head=0)
        >>> by = ms.resample(case.pairs.corrupted, seed=0)
        >>> done = ms.ablate(case.model, case.pairs, [head], by, ms.logit_diff)
        >>> done.table.change.mean().round(1).item()
        -7.8
    """

    def values(
        model: Model, sites: Collection[Site], tokens: Tensor
    ) -> Mapping[Site, Tensor]:
        _same_length("resample", reference, tokens)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(len(reference), (len(tokens),), generator=generator)
        found: dict[Site, list[Tensor]] = {site: [] for site in sites}
        for rows in reference[drawn].split(_fit(model, reference)):
            cache = model.run(rows, read=sites).cache
            for site in sites:
                found[site].append(cache[site])
        return {site: torch.cat(parts) for site, parts in found.items()}

    values.seed = seed  # type: ignore[attr-defined]  # results store it
    return values


def _fit(model: Model, reference: Tensor) -> int:
    """Reference prompts that one pass can hold."""
    n_pos = reference.shape[1]
    return rows_that_fit(
        model.shape,
        n_pos,
        dtype=model.dtype,
        device=model.device,
        n_logits=n_pos * model.shape.d_vocab,
    )


def _same_length(name: str, reference: Tensor, tokens: Tensor) -> None:
    if len(reference) == 0 or reference.shape[1] != tokens.shape[1]:
        raise ValueError(
            f"{name}: the references have shape {tuple(reference.shape)}, the ablated "
            f"prompts {tokens.shape[1]} tokens. Positions are replaced one for one: "
            f"give at least one reference of {tokens.shape[1]} tokens, or use "
            "mean(..., by_position=False)."
        )


def _need_pos_axis(site: Site) -> None:
    if "pos" not in site.axes:
        raise ValueError(
            f"mean: {site} has axes {' '.join(site.axes)}, so it has no mean over "
            "positions. Use by_position=True."
        )
