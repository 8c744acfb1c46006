"""Attention-based peeking: who may look at whom, layer by layer; and how to wait.

Masks say which keys each query sees; `hide` turns them into edits of a model. The
position that stays visible to all, 0, keeps its role as a sink.

Source: "All for One" (arXiv:2509.09650).
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechsink.interventions.attention_edits import mask
from mechsink.interventions.replacements import Replacement
from mechsink.models.any_model import any_model
from mechsink.run import Edit, Model
from mechsink.sites import Site

Mask = Bool[Tensor, "query key"]


def self_mask(n_pos: int) -> Mask:
    """Each token sees itself and position 0."""
    visible = torch.eye(n_pos, dtype=torch.bool)
    visible[:, 0] = True
    return visible


def last_sees_all(n_pos: int) -> Mask:
    """The last token sees all, every other one itself and position 0."""
    visible = self_mask(n_pos)
    visible[-1] = True
    return visible


def last_sees_self(n_pos: int) -> Mask:
    """The last token sees itself and position 0; the others see what they did."""
    visible = torch.ones(n_pos, n_pos, dtype=torch.bool)
    visible[-1] = self_mask(n_pos)[-1]
    return visible


def peek_masks(
    n_pos: int, n_layers: int, *, wait: int, peek: Collection[int]
) -> dict[int, Mask]:
    """What is visible in each layer from `wait` on.

    In the layers of `peek` the last token sees all and every other token itself and
    position 0; in the rest all tokens see themselves and position 0.

    Args:
        n_pos: tokens a prompt.
        n_layers: of the model.
        wait: first layer with a mask.
        peek: layers, `wait` and later, in which the last token sees all.

    Returns:
        Layer to Bool[query key], True where a query sees a key.

    Raises:
        ValueError: `wait` is no layer, or `peek` names one outside wait to the last.

    Source: "All for One" (arXiv:2509.09650).

    Examples:
        >>> masks = ms.peek_masks(4, 3, wait=1, peek=[1])
        >>> masks[1].int()
        tensor([[1, 0, 0, 0],
                [1, 1, 0, 0],
                [1, 0, 1, 0],
                [1, 1, 1, 1]], dtype=torch.int32)
        >>> masks[2].int()[-1]
        tensor([1, 0, 0, 1], dtype=torch.int32)
    """
    if not 0 <= wait < n_layers:
        raise ValueError(
            f"all_for_one: wait={wait}, but this model has {n_layers} layers. "
            f"Allowed: 0 (nothing waits) to {n_layers - 1} (all but the last do)."
        )
    outside = sorted(layer for layer in set(peek) if not wait <= layer < n_layers)
    if outside:
        raise ValueError(
            f"all_for_one: peek={sorted(peek)} names layers {outside}, where nobody "
            f"can peek: below wait={wait} activations are replaced. Allowed: some of "
            f"{wait} to {n_layers - 1}."
        )
    return {
        layer: last_sees_all(n_pos) if layer in set(peek) else self_mask(n_pos)
        for layer in range(wait, n_layers)
    }


def hide(model: Model, masks: Mapping[int, Mask]) -> dict[Site, Edit]:
    """Masks, by layer, as edits for `model.run`.

    Hidden scores go to the lowest number of their type and the model's own softmax
    renormalises; where scores can't be edited the pattern is, rows summing as before.

    Raises:
        ValueError: this model's own attention code lets neither be edited.
    """
    shape = model.shape
    for name in ("attn_scores", "pattern"):
        if name in shape.sites and name not in shape.read_only:
            build = _hidden_scores if name == "attn_scores" else _hidden_pattern
            return {Site(name, layer): build(seen) for layer, seen in masks.items()}
    raise ValueError(
        f"peeking: {model.name} lets neither attention scores nor patterns be edited "
        "(its attention code is its own, or some layer has none). Peeking needs a "
        "model whose model.shape has attn_scores or pattern in sites and not in "
        "read_only, such as Llama, Qwen, Gemma, GPT-2 and their relatives."
    )


@any_model
def peek_edits(
    model: Model, n_pos: int, *, wait: int, peek: Collection[int]
) -> dict[Site, Edit]:
    """`peek_masks` as edits: attention-based peeking from layer `wait` on.

    Args:
        model: a model whose attention can be edited.
        n_pos: tokens a prompt.
        wait: first layer that is masked.
        peek: layers, `wait` and later, in which the last token sees all.

    Returns:
        Site to edit, one a layer from `wait` on.

    Raises:
        ValueError: as `peek_masks`, or a model whose attention can't be edited.

    Source: "All for One" (arXiv:2509.09650).

    Examples:
        >>> model = ms.planted("induction").model
        >>> tokens = model.to_tokens("A B C A")
        >>> edits = ms.peek_edits(model, n_pos=5, wait=0, peek=[1])
        >>> pattern = ms.Site("pattern", 1, head=0)
        >>> row = model.run(tokens, read=[pattern], edit=edits).cache[pattern][0, -2]
        >>> (row > 0).tolist()  # the last but one: itself and position 0
        [True, False, False, True, False]
    """
    masks = peek_masks(n_pos, model.shape.n_layers, wait=wait, peek=peek)
    return hide(model, masks)


@runtime_checkable
class Waiting(Protocol):
    """What tokens are kept from before layer `wait`, as edits of a run on `tokens`."""

    def __call__(
        self, model: Model, wait: int, tokens: Int[Tensor, "batch pos"]
    ) -> Mapping[Site, Edit]:
        """Edits of resid_pre at `wait`, or of layers before it."""
        ...


def replaced_by(replacement: Replacement) -> Waiting:
    """Wait by replacing resid_pre at `wait`: by `zero()`, `resample(...)` and so on.

    Args:
        replacement: `zero()`, `mean(reference)`, `resample(reference)` or
            `context_mean(slot_prompts)`.

    Returns:
        A `Waiting`, for `all_for_one(means=)`.

    Examples:
        >>> model = ms.planted("induction").model
        >>> edits = ms.replaced_by(ms.zero())(model, 1, model.to_tokens("A B C A"))
        >>> [str(site) for site in edits]
        ['L1.resid_pre']
    """

    def edits(model: Model, wait: int, tokens: Tensor) -> Mapping[Site, Edit]:
        site = Site("resid_pre", wait)
        new = replacement(model, [site], tokens)[site]
        return {site: lambda x: new.to(x).expand_as(x).clone()}

    return edits


def no_attention() -> Waiting:
    """Wait without attention: no head of an earlier layer writes anything.

    Returns:
        A `Waiting`, for `all_for_one(means=)`.

    Source: a baseline of "All for One" (arXiv:2509.09650).

    Examples:
        >>> model = ms.planted("induction").model
        >>> edits = ms.no_attention()(model, 1, model.to_tokens("A B C A"))
        >>> [str(site) for site in edits]
        ['L0.attn_out']
    """

    def edits(model: Model, wait: int, tokens: Tensor) -> Mapping[Site, Edit]:
        return {Site("attn_out", layer): torch.zeros_like for layer in range(wait)}

    return edits


def self_attention() -> Waiting:
    """Wait with each token seeing itself and position 0 in earlier layers.

    Returns:
        A `Waiting`, for `all_for_one(means=)`.

    Source: a baseline of "All for One" (arXiv:2509.09650).

    Examples:
        >>> model = ms.planted("induction").model
        >>> edits = ms.self_attention()(model, 1, model.to_tokens("A B C A"))
        >>> [str(site) for site in edits]
        ['L0.attn_scores']
    """

    def edits(model: Model, wait: int, tokens: Tensor) -> Mapping[Site, Edit]:
        seen = self_mask(tokens.shape[1])
        return hide(model, dict.fromkeys(range(wait), seen)) if wait else {}

    return edits


def _hidden_scores(visible: Mask) -> Edit:
    def edit(scores: Tensor) -> Tensor:
        lowest = torch.finfo(scores.dtype).min
        return scores.masked_fill(~_rows(visible, scores), lowest)

    return edit


def _hidden_pattern(visible: Mask) -> Edit:
    return lambda pattern: mask(pattern, _rows(visible, pattern))


def _rows(visible: Mask, x: Tensor) -> Tensor:
    """The mask where `x` is, and of its size."""
    n_query, n_key = x.shape[-2:]
    if visible.shape != (n_query, n_key):
        sizes: Sequence[int] = tuple(visible.shape)
        raise ValueError(
            f"peeking: a mask of {sizes} for attention of {n_query} queries and "
            f"{n_key} keys. Build masks for the prompt's own length."
        )
    return visible.to(x.device)
