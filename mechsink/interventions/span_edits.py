"""Published edits around a marked span: an image, a context, a question.

The papers speak of image tokens; a span here is any range of positions, so the
edits work on text models and vision-language models alike. What they need to know
is measured in mechsink/sinks: sinks (spans.py), saliency (span_tokens.py),
sensitive heads (span_attention.py, divergence.py).

All of them change each query's row by itself: edits of `Site("pattern", layer)`,
in `model.run` and in `generate`.
May import: run, the algebra, attention_edits.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from mechsink.interventions.attention_algebra import (
    Span,
    gate,
    marked,
    mask,
    query_positions,
    redistribute,
    scale,
)
from mechsink.interventions.attention_edits import on_heads
from mechsink.run import Edit
from mechsink.sites import Site


def hide_span(span: Span) -> Edit:
    """No query outside the span sees it; positions are kept.

    On every layer this is the prompt without the span, its other tokens where they
    were. Row sums: kept.

    Args:
        span: positions that are hidden.

    Returns:
        An edit of `pattern`, Float[batch (head) query key].

    Examples:
        >>> even = torch.full((1, 1, 4, 4), 0.25)
        >>> ms.hide_span([1, 2])(even)[0, 0, -1]
        tensor([0.5000, 0.0000, 0.0000, 0.5000])
    """

    def edit(pattern: Tensor) -> Tensor:
        hidden = marked(pattern, span)
        from_inside = hidden[0, query_positions(pattern)][:, None]
        return mask(pattern, ~hidden | from_inside)

    return edit


def var_redistribution(
    span: Span, sinks: Span, *, keep: float = 0.6, rho: float = 0.5, least: float = 0.2
) -> Edit:
    """Image-centric heads: attention moved from sinks to the span's other tokens.

    A row (head and query after the span) is image-centric if it gives the span at
    least `least` of its attention, and the sinks in the span at most `rho` of that.
    There every sink, in the span or outside, keeps `keep` of its attention; the rest
    goes to the span's other tokens in proportion. Row sums: kept. Without sinks in
    the span nothing changes.

    Args:
        span: the image, or any context.
        sinks: all sink tokens, as `span_sinks(...).positions(layer)` finds them.
        keep: share that a sink keeps; 1 is a no-op.
        rho: largest share of the span's attention that its sinks may have.
        least: least attention to the span.

    Returns:
        An edit of `pattern`, Float[batch (head) query key].

    Source: Visual Attention Sink (VAR); a span of text is our reading.

    Examples:
        >>> even = torch.full((1, 1, 5, 5), 0.2)
        >>> ms.var_redistribution(range(1, 4), [0, 1], keep=0.5)(even)[0, 0, -1]
        tensor([0.1000, 0.1000, 0.3000, 0.3000, 0.2000])
    """
    inside = sorted(set(span) & set(sinks))

    def edit(pattern: Tensor) -> Tensor:
        if not inside:
            return pattern
        in_span, at_sinks = marked(pattern, span), marked(pattern, inside)
        on_span = (pattern * in_span).sum(-1, keepdim=True)
        # 1e-6 a token of the span, as the paper guards its ratio
        ratio = (pattern * at_sinks).sum(-1, keepdim=True) / (
            on_span + 1e-6 * len(span)
        )
        after = (query_positions(pattern) > max(span))[:, None]
        is_centric = (ratio <= rho) & (on_span >= least) & after
        new = redistribute(pattern, sinks, keep, to=in_span)  # never to a sink
        return torch.where(is_centric, new, pattern)

    return edit


def vhr_amplify(
    heads: Iterable[tuple[int, int]], alpha: float = 2.0
) -> dict[Site, Edit]:
    """The heads' outputs multiplied by `alpha`; alpha=1 is a no-op.

    Row sums: multiplied by `alpha`; the output z is linear in the pattern, so it is
    too. Merge it with other edits: {**vhr_amplify(heads), site: edit}.

    Args:
        heads: (layer, head), as `vhr_heads` finds them.
        alpha: the factor; 2 in the paper.

    Returns:
        Site to edit, one a head.

    Source: VHR, vision-aware head reinforcement.

    Examples:
        >>> edit = ms.vhr_amplify([(0, 1)], alpha=2.0)
        >>> ((site, double),) = edit.items()
        >>> str(site), double(torch.ones(1, 2, 2)).sum().item()
        ('L0H1.pattern', 8.0)
    """
    return on_heads(lambda pattern: gate(pattern, alpha), heads)


def gift_amplify(
    span: Span,
    saliency: Float[Tensor, " span"],
    query: Span = (),
    *,
    strength: float = 1.0,
) -> Edit:
    """Amplify the span by its gaze-shift saliency, and the query tokens with it.

    Key j of the span is multiplied by 1 + strength * saliency_j / max saliency, the
    keys of the query by the mean of these factors, so that looking more at the span
    does not mean forgetting the question; then rows sum as before. Queries after the
    span only. Row sums: kept. Without any saliency, or with strength=0, a no-op.

    Args:
        span: the image, or any context.
        saliency: one number >= 0 a token of the span, such as
            `span_tokens(...).saliency()`.
        query: positions of the question.
        strength: extra weight of the most salient token, in multiples of its own.

    Returns:
        An edit of `pattern`, Float[batch (head) query key].

    Raises:
        ValueError: negative or miscounted saliency.

    Source: GIFT (gaze shift); the formula is ours, after the paper's description.

    Examples:
        >>> even = torch.full((1, 1, 4, 4), 0.25)
        >>> edit = ms.gift_amplify([0, 1], torch.tensor([0.0, 1.0]))
        >>> edit(even)[0, 0, -1]
        tensor([0.2000, 0.4000, 0.2000, 0.2000])
    """
    if not len(span) or len(saliency) != len(span) or bool((saliency < 0).any()):
        raise ValueError(
            f"gift_amplify: {len(saliency)} saliencies, least "
            f"{float(saliency.min()) if len(saliency) else None}, for a span of "
            f"{len(span)} tokens. Give one a token, none below 0, such as "
            "span_tokens(...).saliency()."
        )
    most = saliency.max()
    share = torch.where(most > 0, saliency / most, 0.0)
    on_span = 1 + strength * share
    on_query = on_span.mean().expand(len(query))
    keys = torch.tensor([*span, *query])
    factors = torch.cat([on_span, on_query])

    def edit(pattern: Tensor) -> Tensor:
        row = torch.ones(pattern.shape[-1], dtype=pattern.dtype, device=pattern.device)
        known = keys < len(row)
        row[keys[known].to(row.device)] = factors[known].to(row)
        later = (query_positions(pattern) > max(span))[:, None]
        return scale(pattern, later.expand(pattern.shape[-2:]), row)

    return edit


def emphasise(
    keys: Span, gain: float, sensitivity: Float[Tensor, " head"] | None = None
) -> Edit:
    """Token emphasis with a gain for each head; gain=1 is a no-op.

    Head h multiplies the attention to `keys` by 1 + (gain - 1) * sensitivity_h /
    max sensitivity, and its rows then sum as before: heads that attend to the span
    anyway are amplified most. Row sums: kept.

    Args:
        keys: tokens to emphasise, such as `span_tokens(...).emphasised()`.
        gain: factor of the most sensitive head.
        sensitivity: one number >= 0 for each of the layer's heads, such as
            `span_attention(...).sensitivity(layer)`; None: all alike.

    Returns:
        An edit of `pattern`, Float[batch head query key].

    Raises:
        ValueError: a gain below 0; when the pattern is edited, `sensitivity` with
            another number of heads than it has.

    Source: Fixing Imbalanced Attention; formula ours, after the paper's description.

    Examples:
        >>> even = torch.full((1, 1, 4, 4), 0.25)
        >>> ms.emphasise([1, 2], gain=2.0)(even)[0, 0, -1]
        tensor([0.1667, 0.3333, 0.3333, 0.1667])
    """
    if not gain >= 0:
        raise ValueError(f"emphasise: gain={gain}. Allowed: 0 and more; 1 is a no-op.")

    def edit(pattern: Tensor) -> Tensor:
        if sensitivity is None:
            return scale(pattern, keys, gain)
        if pattern.ndim != 4 or pattern.shape[1] != len(sensitivity):
            raise ValueError(
                f"emphasise: {len(sensitivity)} sensitivities for a pattern of shape "
                f"{tuple(pattern.shape)}. Edit the whole site, Site('pattern', layer), "
                "with one sensitivity a head; for a single head leave them out."
            )
        most = sensitivity.max()
        share = torch.where(most > 0, sensitivity / most, 0.0).to(pattern)
        return scale(pattern, keys, (1 + (gain - 1) * share)[:, None, None])

    return edit


def redirect_to_fillers(fillers: Span, sinks: Span, *, keep: float = 0.0) -> Edit:
    """Move attention from global sinks to filler tokens, in proportion.

    Row sums: kept; what the sinks lose the fillers gain. A query that sees no
    filler, or is itself a sink or before one, is left as it was.

    Args:
        fillers: positions of appended filler words.
        sinks: positions that lose attention.
        keep: share of its attention that a sink keeps, 0 to 1; 1 is a no-op.

    Returns:
        An edit of `pattern`, Float[batch (head) query key].

    Source: RefAM (arXiv:2509.22650), "stop words" appended as attention magnets.

    Examples:
        >>> even = torch.full((1, 1, 4, 4), 0.25)
        >>> ms.redirect_to_fillers([2], [0], keep=0.4)(even)[0, 0, -1]
        tensor([0.1000, 0.2500, 0.4000, 0.2500])
    """
    return lambda pattern: redistribute(pattern, sinks, keep, to=fillers)


def ref_am(fillers: Span, sinks: Span = (), *, renormalise: bool = False) -> Edit:
    """Filter the attention to fillers and global sinks.

    Row sums: lessened by just the mass on `fillers` and `sinks`; with `renormalise`
    they are kept, the other keys sharing that mass in proportion (a row that sees
    nothing else becomes 0).

    Args:
        fillers: positions of appended filler words, which gather surplus attention.
        sinks: global sinks to suppress as well.
        renormalise: give the mass to the other keys instead of dropping it.

    Returns:
        An edit of `pattern`, Float[batch (head) query key].

    Source: RefAM (arXiv:2509.22650).

    Examples:
        >>> even = torch.full((1, 1, 4, 4), 0.25)
        >>> ms.ref_am([2], [0])(even)[0, 0, -1]
        tensor([0.0000, 0.2500, 0.0000, 0.2500])
        >>> ms.ref_am([2], [0], renormalise=True)(even)[0, 0, -1]
        tensor([0.0000, 0.5000, 0.0000, 0.5000])
    """

    def edit(pattern: Tensor) -> Tensor:
        dropped = marked(pattern, fillers) | marked(pattern, sinks)
        return mask(pattern, ~dropped, renormalise=renormalise)

    return edit
