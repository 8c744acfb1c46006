"""Published edits of whole attention patterns, each a short composition.

As edits of the site `pattern` they hold for one call, on any model whose patterns
can be edited, in `model.run` and in `generate`:

    model.run(tokens, edit={Site("pattern", 3): zero_tuning(2.0)})

All but `act_calibration` change each query's row by itself, so that generating
with a cache equals one run over all tokens.
May import: sites, run, the algebra.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mechsink.interventions.attention_algebra import (
    gate,
    mask,
    mix,
    query_positions,
    redistribute,
    scale,
)
from mechsink.run import Edit
from mechsink.sites import Site


def zero_tuning(gamma: float, keys: int | Sequence[int] = 0) -> Edit:
    """Scale the initial token's attention and renormalise; gamma=1 is a no-op.

    Row sums: kept. It equals adding log(gamma) to the key's score: gamma > 1
    flattens the rest of the row, gamma < 1 sharpens it. Other `keys` than 0 are the
    paper's control.

    Args:
        gamma: factor of the attention to `keys`, above 0.
        keys: position or positions, 0 for the initial token.

    Returns:
        An edit of `pattern`, Float[batch (head) query key].

    Raises:
        ValueError: `gamma` is not above 0.

    Source: ZeroTuning (arXiv:2505.11739).

    Examples:
        >>> even = torch.full((1, 1, 4, 4), 0.25)
        >>> ms.zero_tuning(3.0)(even)[0, 0, -1]
        tensor([0.5000, 0.1667, 0.1667, 0.1667])
    """
    if not gamma > 0:
        raise ValueError(
            f"zero_tuning: gamma={gamma}. Allowed: above 0, since log(gamma) is added "
            "to a score; to hide the key, use `mask`."
        )
    chosen = [keys] if isinstance(keys, int) else list(keys)
    return lambda pattern: scale(pattern, chosen, gamma)


def act_calibration(beta: float = 0.4, theta: float = 0.1) -> Edit:
    """Lower sinks other than the first and give their attention to all others.

    Per head, keys whose mean attention from themselves on exceeds `theta` are
    sinks; the first of them keeps its attention, the others keep `beta` of it.
    Row sums: kept. Whether a key is a sink is seen from its whole column: single
    queries (cached generation) are left alone, as in the paper.

    Args:
        beta: share of its attention that a sink keeps, 0 to 1; 1 is a no-op.
        theta: mean attention from which a key is a sink, 0 to 1.

    Returns:
        An edit of `pattern`, Float[batch (head) query key].

    Source: ACT, ICML 2024.

    Examples:
        >>> row = torch.tensor([0.5, 0.3, 0.1, 0.1])
        >>> pattern = row.repeat(4, 1)[None, None]
        >>> ms.act_calibration(beta=0.5, theta=0.2)(pattern)[0, 0, -1]
        tensor([0.6667, 0.1500, 0.1333, 0.0500])
    """

    def edit(pattern: Tensor) -> Tensor:
        n_query, n_key = pattern.shape[-2:]
        if n_query == 1 and n_key > 1:
            return pattern
        later = torch.arange(n_key, 0, -1, dtype=pattern.dtype, device=pattern.device)
        is_sink = pattern.sum(-2) / later > theta
        first = is_sink & (is_sink.cumsum(-1) == 1)
        return redistribute(pattern, (is_sink & ~first)[..., None, :], beta)

    return edit


def move_to(key: int = 0) -> Edit:
    """All attention on one key, from the queries that can see it.

    Row sums: 1 for those queries, others are left as they were.

    Args:
        key: the position that gets it all, 0 for the first token.

    Returns:
        An edit of `pattern`, Float[batch (head) query key].

    Source: Active-Dormant Attention Heads (arXiv:2410.13835).

    Examples:
        >>> even = torch.ones(1, 1, 3, 3).tril() / torch.tensor([1, 2, 3])[:, None]
        >>> ms.move_to(1)(even)[0, 0]
        tensor([[1., 0., 0.],
                [0., 1., 0.],
                [0., 1., 0.]])
    """

    def edit(pattern: Tensor) -> Tensor:
        at_key = torch.arange(pattern.shape[-1], device=pattern.device) == key
        sees = (query_positions(pattern) >= key)[:, None]
        return torch.where(sees, at_key.to(pattern.dtype), pattern)

    return edit


def zero_head() -> Edit:
    """No attention at all: the head writes nothing. Row sums: 0.

    Returns:
        An edit of `pattern`, Float[batch (head) query key].

    Source: Active-Dormant Attention Heads (arXiv:2410.13835).

    Examples:
        >>> ms.zero_head()(torch.full((1, 1, 2, 2), 0.5)).sum().item()
        0.0
    """
    return lambda pattern: gate(pattern, 0.0)


def soft_pag(weight: float) -> Edit:
    """Mix with the identity: 0 changes nothing, 1 lets each token see itself only.

    Row sums: kept where they are 1.

    Args:
        weight: share of the identity, 0 to 1.

    Returns:
        An edit of `pattern`, Float[batch (head) query key].

    Source: HeadHunter / SoftPAG.

    Examples:
        >>> even = torch.full((1, 1, 4, 4), 0.25)
        >>> ms.soft_pag(0.5)(even)[0, 0, -1]
        tensor([0.1250, 0.1250, 0.1250, 0.6250])
    """

    def edit(pattern: Tensor) -> Tensor:
        keys = torch.arange(pattern.shape[-1], device=pattern.device)
        identity = keys == query_positions(pattern)[:, None]
        return mix(pattern, identity.to(pattern.dtype).expand_as(pattern), weight)

    return edit


def isolate(groups: Sequence[int]) -> Edit:
    """Tokens of one group do not see those of another; group 0 sees and is seen.

    `groups` has one number a token; tokens after them, as when generating, are of
    group 0, and numbers for tokens yet to come may be given ahead. Row sums: kept,
    since rows are renormalised.

    Args:
        groups: one number a token; 0 sees all and is seen by all.

    Returns:
        An edit of `pattern`, Float[batch (head) query key].

    Source: IR-Diffusion.

    Examples:
        >>> even = torch.full((1, 1, 4, 4), 0.25)
        >>> ms.isolate([0, 1, 2, 2])(even)[0, 0, -1]
        tensor([0.3333, 0.0000, 0.3333, 0.3333])
    """

    def edit(pattern: Tensor) -> Tensor:
        n_key = pattern.shape[-1]
        group = torch.zeros(n_key, dtype=torch.long, device=pattern.device)
        given = torch.as_tensor(list(groups[:n_key]), device=pattern.device)
        group[: len(given)] = given
        query = group[query_positions(pattern)][:, None]
        visible = (query == group) | (query == 0) | (group == 0)
        return mask(pattern, visible)

    return edit


def at_layers(edit: Edit, layers: Iterable[int]) -> dict[Site, Edit]:
    """One pattern edit on whole layers, for `edit=`.

    Args:
        edit: of a pattern, Float[batch head query key].
        layers: which, from 0.

    Returns:
        Site to edit, one a layer.

    Examples:
        >>> [str(site) for site in ms.at_layers(ms.zero_tuning(2.0), range(2))]
        ['L0.pattern', 'L1.pattern']
    """
    return {Site("pattern", layer): edit for layer in layers}


def on_heads(edit: Edit, heads: Iterable[tuple[int, int]]) -> dict[Site, Edit]:
    """One pattern edit on several heads, (layer, head), for `edit=`.

    Args:
        edit: of one head's pattern, Float[batch query key].
        heads: which, as (layer, head).

    Returns:
        Site to edit, one a head.

    Examples:
        >>> [str(site) for site in ms.on_heads(ms.zero_head(), [(0, 1), (2, 3)])]
        ['L0H1.pattern', 'L2H3.pattern']
    """
    return {Site("pattern", layer, head=head): edit for layer, head in heads}
