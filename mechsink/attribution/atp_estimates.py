"""AtP*'s estimate of each node as a function of gradients, made ready once a batch.

GradDrop takes many gradients of one batch: what does not depend on them, the changes of
values and patterns, is computed before.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from mechsink.attribution.node_places import NodePlaces
from mechsink.attribution.qk_fix import OneKey, by_kv_head, is_softmax, query_scores
from mechsink.models.selfcheck import probe_tokens
from mechsink.prompts import TokenPairs
from mechsink.run import Model
from mechsink.sites import Site

Gradients = dict[Site, Tensor]
ByNode = Float[Tensor, "batch part spot"]
Estimate = Callable[[Gradients], ByNode]


def by_change(places: NodePlaces, site: Site, delta: Tensor) -> Estimate:
    """Change of a site's value times the gradient at it."""
    return lambda gradients: places.by_node(delta * gradients[site])


def by_pattern(
    model: Model,
    batch: TokenPairs,
    places: NodePlaces,
    corrupted: Mapping[Site, Tensor],
) -> dict[Site, Estimate]:
    """Scores of queries or keys from gradients at patterns.

    One pass gives every layer's pattern with that layer alone patched: each layer
    starts from the clean run's resid_pre.
    """
    layers = places.layers
    one_key = places.name == "k" and places.positions != "all"
    streams = model.shape.all_sites("resid_pre")
    read = [Site(n, layer) for n in ("pattern", "attn_scores") for layer in layers]
    read = [site for site in read if one_key or site.name == "pattern"]
    clean = model.run(batch.clean, read=[*streams, *read]).cache
    edit = {
        site: (lambda x, new=new: new)
        for site, new in (
            *((s, clean[s]) for s in streams),
            *((s, corrupted[s]) for s in places.sites),
        )
    }
    patched = model.run(batch.clean, read=read, edit=edit).cache
    found: dict[Site, Estimate] = {}
    for site in places.sites:
        pattern = Site("pattern", site.layer)
        if one_key:
            scores = Site("attn_scores", site.layer)
            if not is_softmax(clean[scores], clean[pattern]):
                raise ValueError(
                    f"atp_star: in {model.name} the attention pattern is no softmax "
                    "of its scores, which the QK fix for keys needs. Pass "
                    'qk_fix=False, or positions="all".'
                )
            rows = (
                None if model.shape.rows_sum_to_1 else clean[pattern].double().sum(-1)
            )
            fix = OneKey.of(clean[scores], patched[scores], rows)
            found[site] = _one_key(places, pattern, fix, model.shape.n_kv_heads)
        else:
            n_kv = model.shape.n_kv_heads if places.name == "k" else None
            ends = (clean[pattern], patched[pattern])
            found[site] = _rows(places, pattern, ends, n_kv)
    return found


def _one_key(
    places: NodePlaces, pattern: Site, fix: OneKey, n_kv_heads: int
) -> Estimate:
    return lambda gradients: places.at_spots(
        by_kv_head(fix(gradients[pattern]), n_kv_heads)
    )


def _rows(
    places: NodePlaces,
    pattern: Site,
    ends: tuple[Tensor, Tensor],
    n_kv_heads: int | None,
) -> Estimate:
    """Whole rows changed: queries, or all keys of a head together."""

    def scores(gradients: Gradients) -> ByNode:
        rows = query_scores(*ends, gradients[pattern])
        if n_kv_heads is not None:
            rows = by_kv_head(rows, n_kv_heads)
        return places.at_spots(rows)

    return scores


@torch.no_grad()
def require_own_rows(model: Model, name: str, layer: int) -> None:
    """Raise ValueError if one head's query or key changes other heads' patterns.

    A norm over all of a layer's queries or keys does that.
    """
    axis = "head" if name == "q" else "kv_head"
    n_heads, n_parts = model.shape.n_heads, model.shape.n_heads
    if name == "k":
        n_parts = model.shape.n_kv_heads
    if n_parts == 1:
        return
    pattern, tokens = Site("pattern", layer), probe_tokens(model.shape, model.device)
    edit = {Site(name, layer, **{axis: 0}): lambda x: 1 - 3 * x}
    clean, moved = (
        model.run(tokens, read=[pattern], edit=e).cache[pattern] for e in (None, edit)
    )
    by_head = (moved - clean).abs().amax((0, 2, 3))
    own = n_heads // n_parts
    if by_head[own:].max() > 1e-3 * by_head[:own].max():
        raise ValueError(
            f"atp_star: in {model.name} the {name} of one head changes the attention "
            "of others (a norm over all heads together), so the QK fix can't tell "
            "them apart. Pass qk_fix=False."
        )
