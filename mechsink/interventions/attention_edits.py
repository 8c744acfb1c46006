"""Edits of attention patterns: a small algebra, and published edits composed of it.

Five operations on a pattern [batch head query key] (or one head's [batch query
key]), each with the law it keeps for the row sums. As edits of the site `pattern`
they hold for one call, on any model whose patterns can be edited:

    model.run(tokens, edit={Site("pattern", 3): zero_tuning(2.0)})
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechsink.run import Edit

Pattern = Float[Tensor, "*head query key"]


def scale(
    pattern: Pattern, keys: Sequence[int], factor: float, *, renormalise: bool = True
) -> Pattern:
    """Multiply the attention to some keys; then rows are made to sum as before.

    Row sums: kept if `renormalise`, else changed by (factor - 1) times the mass on
    `keys`. Renormalised, it equals adding log(factor) to those keys' scores.
    """
    weights = torch.ones(pattern.shape[-1], dtype=pattern.dtype, device=pattern.device)
    weights[list(keys)] = factor
    scaled = pattern * weights
    return _summing_as(scaled, pattern) if renormalise else scaled


def redistribute(
    pattern: Pattern,
    keys: Sequence[int],
    keep: float,
    to: Bool[Tensor, " key"] | None = None,
) -> Pattern:
    """Take 1 - keep of the attention to `keys` and give it to others in proportion.

    `to` marks the receivers; default: all other keys. Row sums: kept. A row whose
    receivers have no attention at all is left as it was.
    """
    givers = torch.zeros(pattern.shape[-1], dtype=torch.bool, device=pattern.device)
    givers[list(keys)] = True
    receivers = ~givers if to is None else to.to(pattern.device) & ~givers
    given = (1 - keep) * (pattern * givers).sum(-1, keepdim=True)
    held = (pattern * receivers).sum(-1, keepdim=True)
    share = torch.where(held > 0, given / held, 0.0)
    taken = torch.where(held > 0, keep, 1.0)
    return pattern * torch.where(givers, taken, torch.where(receivers, 1 + share, 1.0))


def mix(
    pattern: Pattern, other: Float[Tensor, "*#head query key"], weight: float
) -> Pattern:
    """(1 - weight) of the pattern and weight of another.

    Row sums: kept where both sum alike. weight=0 changes nothing.
    """
    return (1 - weight) * pattern + weight * other


def mask(
    pattern: Pattern, visible: Bool[Tensor, "query key"], *, renormalise: bool = True
) -> Pattern:
    """Hide keys from queries.

    Row sums: kept if `renormalise` (a row that sees nothing any more becomes 0),
    else lessened by the hidden mass.
    """
    seen = pattern * visible.to(pattern.device)
    return _summing_as(seen, pattern) if renormalise else seen


def gate(pattern: Pattern, factor: float) -> Pattern:
    """Scale a head as a whole; row sums are multiplied by `factor`. 0 removes it."""
    return pattern * factor


def zero_tuning(gamma: float, key: int = 0) -> Edit:
    """Scale the initial token's attention and renormalise; gamma=1 is a no-op.

    Source: ZeroTuning (arXiv:2505.11739).
    """
    return lambda pattern: scale(pattern, [key], gamma)


def act_calibration(beta: float = 0.4, theta: float = 0.1) -> Edit:
    """Lower sinks other than the first and give their attention to all others.

    Per head, keys whose mean attention from themselves on exceeds `theta` are
    sinks; the first of them keeps its attention. Single queries (cached decoding)
    are left alone. Source: ACT, ICML 2024.
    """

    def edit(pattern: Tensor) -> Tensor:
        n = pattern.shape[-1]
        if pattern.shape[-2] == 1:
            return pattern
        later = torch.arange(n, 0, -1, dtype=pattern.dtype, device=pattern.device)
        is_sink = pattern.sum(-2) / later > theta
        first = is_sink & (is_sink.cumsum(-1) == 1)
        lowered = (is_sink & ~first)[..., None, :]
        given = (1 - beta) * (pattern * lowered).sum(-1, keepdim=True)
        held = (pattern * ~lowered).sum(-1, keepdim=True)
        share = torch.where(held > 0, given / held, 0.0)
        kept = torch.where(held > 0, beta, 1.0)
        return pattern * torch.where(lowered, kept, 1 + share)

    return edit


def move_to(key: int = 0) -> Edit:
    """All attention on one key, from the queries that can see it; rows sum to 1.

    Source: Active-Dormant Attention Heads (arXiv:2410.13835).
    """

    def edit(pattern: Tensor) -> Tensor:
        moved = torch.zeros_like(pattern)
        moved[..., key:, key] = 1
        moved[..., :key, :] = pattern[..., :key, :]
        return moved

    return edit


def zero_head() -> Edit:
    """No attention at all: the head writes nothing (arXiv:2410.13835)."""
    return lambda pattern: gate(pattern, 0.0)


def soft_pag(weight: float) -> Edit:
    """Mix with the identity: 0 changes nothing, 1 lets each token see itself only.

    Source: HeadHunter / SoftPAG.
    """

    def edit(pattern: Tensor) -> Tensor:
        n = pattern.shape[-1]
        identity = torch.eye(n, dtype=pattern.dtype, device=pattern.device)
        return mix(pattern, identity[-pattern.shape[-2] :], weight)

    return edit


def isolate(groups: Sequence[int]) -> Edit:
    """Tokens of one group do not see those of another; group 0 sees and is seen.

    `groups` has one number a token. Rows are renormalised. Source: IR-Diffusion.
    """

    def edit(pattern: Tensor) -> Tensor:
        group = torch.as_tensor(groups, device=pattern.device)
        query = group[-pattern.shape[-2] :, None]
        visible = (query == group) | (query == 0) | (group == 0)
        return mask(pattern, visible)

    return edit


def _summing_as(new: Tensor, old: Tensor) -> Tensor:
    total = new.sum(-1, keepdim=True)
    return torch.where(total > 0, new * (old.sum(-1, keepdim=True) / total), 0.0)
