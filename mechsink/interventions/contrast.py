"""Contrastive decoding against a span's outlier tokens.

The model is asked twice, with the whole span and with the outliers alone: what the
outliers say by themselves is taken off the logits.

Source: DAMRO (arXiv:2410.04514); hiding by mask, positions kept, is ours.
May import: run, models, the algebra.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsink.interventions.attention_algebra import Span
from mechsink.interventions.attention_edits import at_layers
from mechsink.interventions.span_edits import hide_span
from mechsink.models.any_model import any_model
from mechsink.models.generation import Generation, generate
from mechsink.models.sampling import Sampler, greedy
from mechsink.run import Edit, Model


def contrast(
    full: Float[Tensor, "*rows vocab"],
    outliers: Float[Tensor, "*rows vocab"],
    weight: float,
    *,
    plausible: float = 0.0,
) -> Float[Tensor, "*rows vocab"]:
    """(1 + weight) * full - weight * outliers; weight=0 gives `full`.

    Args:
        full: logits with the whole span in view.
        outliers: logits with only the outliers of the span in view.
        weight: of the contrast, 0 and more.
        plausible: tokens whose probability in `full` is below this share of the
            likeliest one's become -inf; 0 keeps all, the paper's value is 0.1.

    Raises:
        ValueError: weight or share out of range.
    """
    if weight < 0 or not 0 <= plausible <= 1:
        raise ValueError(
            f"contrast: weight={weight}, plausible={plausible}. Allowed: weight 0 and "
            "more, plausible 0 to 1."
        )
    new = (1 + weight) * full - weight * outliers
    if plausible == 0:
        return new
    least = full.max(-1, keepdim=True).values + torch.tensor(plausible).log()
    return new.masked_fill(full < least.to(full), -torch.inf)


@any_model
def damro_logits(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    span: Span,
    outliers: Sequence[int],
    weight: float = 0.5,
    *,
    plausible: float = 0.0,
) -> Float[Tensor, "batch pos vocab"]:
    """Contrasted logits of every position; see `contrast`.

    Args:
        model: any model whose patterns can be edited.
        tokens: prompts of one length.
        span: the image, or any context.
        outliers: its tokens that gather attention, as `span_tokens(...).outliers`
            finds them.
        weight: of the contrast, 0 and more; 0 gives the plain logits.
        plausible: tokens whose probability is below this share of the likeliest one's
            become -inf; 0 keeps all.

    Returns:
        (1 + weight) * logits - weight * logits with the outliers alone in view.

    Raises:
        ValueError: outliers that are not in the span, or as `contrast`.

    Source: DAMRO (arXiv:2410.04514); hiding by mask, positions kept, is ours.

    Examples:
        >>> model = ms.planted("induction").model
        >>> tokens = model.to_tokens("A B C D A")
        >>> plain = model.run(tokens).logits
        >>> same = ms.damro_logits(model, tokens, range(1, 4), [2], weight=0.0)
        >>> bool(torch.allclose(same, plain))
        True
    """
    hidden = _rest(span, outliers)
    edit = at_layers(hide_span(hidden), range(model.shape.n_layers))
    full = model.run(tokens).logits
    alone = model.run(tokens, edit=edit).logits
    return contrast(full, alone, weight, plausible=plausible)


@any_model
def damro_generate(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    n_new: int,
    span: Span,
    outliers: Sequence[int],
    weight: float = 0.5,
    *,
    plausible: float = 0.0,
    sampler: Sampler = greedy,
    keep_logits: bool = False,
) -> Generation:
    """Generate from contrasted logits; see `damro_logits` and `generate`.

    Both views go through the model as one batch, rows with the whole span first.

    Args:
        model: any model whose patterns can be edited.
        tokens: prompts of one length.
        n_new: tokens to add to each.
        span: the image, or any context.
        outliers: its tokens that gather attention.
        weight: of the contrast, 0 and more; 0 generates plainly.
        plausible: as in `damro_logits`.
        sampler: `greedy` or `temperature(value, seed)`.
        keep_logits: return the contrasted logits of every step.

    Returns:
        A `Generation`.

    Raises:
        ValueError: as `damro_logits` and `generate`.

    Source: DAMRO (arXiv:2410.04514).

    Examples:
        >>> model = ms.planted("induction").model
        >>> tokens = model.to_tokens("A B C D A")
        >>> made = ms.damro_generate(model, tokens, 2, range(1, 4), [2], weight=0.5)
        >>> model.to_strings(made.new[0])
        ['B', 'C']
    """
    hide, n = hide_span(_rest(span, outliers)), len(tokens)
    seen: list[Tensor] = []

    def in_second_half(pattern: Tensor) -> Tensor:
        return torch.cat([pattern[:n], hide(pattern[n:])])

    def choose(logits: Tensor) -> Tensor:
        seen.append(contrast(logits[:n], logits[n:], weight, plausible=plausible))
        return sampler(seen[-1]).repeat(2)

    edit: Edit = in_second_half
    twice = generate(
        model,
        torch.cat([tokens, tokens]),
        n_new,
        edit=at_layers(edit, range(model.shape.n_layers)),
        sampler=choose,
    )
    kept = torch.stack(seen, dim=1) if keep_logits else None
    return Generation(twice.tokens[:n], twice.n_prompt, twice.path, kept)


def _rest(span: Span, outliers: Sequence[int]) -> list[int]:
    missing = sorted(set(outliers) - set(span))
    if missing:
        raise ValueError(
            f"damro: outliers {missing} are not in the span {list(span)}. Name tokens "
            "of the span, such as span_tokens(...).outliers(prompt)."
        )
    return [key for key in span if key not in set(outliers)]
