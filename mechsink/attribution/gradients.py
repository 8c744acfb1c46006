"""Gradients of a metric with respect to any site, on any backend.

May import: rooms up to models.
"""

from collections.abc import Collection
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mechsink.models.any_model import any_model
from mechsink.run import Metric, Model
from mechsink.sites import Site


@any_model
def gradients(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    metric: Metric,
    sites: Collection[Site],
    prompts: Any = None,
) -> dict[Site, Tensor]:
    """How fast each prompt's metric changes with each entry of each site.

    A zero is added at every site by an edit and differentiated, so whatever a
    model can edit it can differentiate, resid_mid on the skip path included.

    Args:
        model: any backend.
        tokens: the prompts.
        metric: a run to one number per prompt.
        sites: where to differentiate; a site with a head gives that head's slice.
        prompts: handed to the metric (answers and the like).

    Returns:
        Site to d metric[b] / d site[b, ...], in the site's shape; unit: the
        metric's over the site's.

    Raises:
        ValueError: no site given, a site that can't be edited, or a metric that
            is constant (nothing it reads depends on the model).

    Examples:
        >>> case = ms.planted("and")
        >>> (group,) = case.pairs.tokens(case.model)
        >>> site = ms.Site("resid_post", 0)
        >>> slopes = ms.gradients(case.model, group.clean, ms.logit_diff, [site], group)
        >>> tuple(slopes[site].shape)
        (12, 6, 64)
    """
    if not sites:
        raise ValueError(
            "gradients: no sites given. Name at least one, for example "
            "model.shape.all_sites('resid_pre')."
        )
    for site in sites:
        model.shape.check(site)
    zeros = {
        site: torch.zeros(
            model.shape.size(site, *tokens.shape),
            dtype=model.dtype,
            device=model.device,
            requires_grad=True,
        )
        for site in sites
    }
    edit = {site: zero.add for site, zero in zeros.items()}
    with torch.enable_grad():  # whatever the caller's mode
        run = model.run(tokens, read=metric.reads, edit=edit, grad=True)
        total = metric(run, prompts).sum()  # prompts do not mix: each keeps its own
    if not total.requires_grad:
        raise ValueError(
            f"gradients: the metric {metric!r} does not depend on any of the "
            f"{len(zeros)} sites, so it has no gradient there. Choose sites before "
            "what it reads."
        )
    grads = torch.autograd.grad(total, list(zeros.values()), allow_unused=True)
    return {
        site: torch.zeros_like(zero) if grad is None else grad
        for (site, zero), grad in zip(zeros.items(), grads, strict=True)
    }
