"""Runs with other position ids than 0, 1, 2, ...

The order of tokens and the causal mask stay as they are; only the positions that
rotary angles or learned embeddings are read at change.
"""

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mechsink.models.any_model import any_model
from mechsink.models.edited import EDITABLE, edit_attention
from mechsink.models.hooks import SiteHooks, check_tokens
from mechsink.models.hugging_face import HuggingFaceModel
from mechsink.models.plain import PlainModel
from mechsink.run import Edit, Model, Run
from mechsink.sites import Site
from toy_tasks.transformer import ToyTransformer


@any_model
def reposition(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    positions: Sequence[int] | Int[Tensor, " pos"],
    *,
    read: Collection[Site] = (),
    edit: Mapping[Site, Edit] | None = None,
) -> Run:
    """One run with remapped position ids; range(n) gives the plain run.

    Ids may repeat, leave gaps or run backwards: query i sees keys 0 to i all the
    same. On a Hugging Face model its plain view is run, so `pattern` and `z` can be
    read and edited, as in `generate`; on a toy every site.

    Args:
        model: a Hugging Face model that takes position ids, or a toy with positions.
        tokens: prompts of one length.
        positions: one id for each token, the same for all prompts.
        read: sites to read.
        edit: site to edit, for this call only.

    Returns:
        A `Run`: logits Float[batch pos vocab] and what was read.

    Raises:
        ValueError: ids that do not fit, a model without positions to remap (ALiBi,
            or none at all), or one of another kind.

    Source: IR-Diffusion's reposition, here for any transformer with position ids.

    Examples:
        >>> model = ms.planted("induction").model
        >>> tokens = model.to_tokens("A B C A")
        >>> plain = ms.reposition(model, tokens, range(5)).logits
        >>> bool((plain == model.run(tokens).logits).all())
        True
        >>> ms.reposition(model, tokens, [0, 1, 2, 3, 9]).logits.shape
        torch.Size([1, 5, 12])
    """
    ids = torch.as_tensor(list(positions)).to(model.device)
    toy, plain = getattr(model, "toy", None), getattr(model, "plain", None)
    n_ctx = plain.n_ctx if isinstance(plain, PlainModel) else model.shape.n_ctx
    if tokens.ndim != 2 or len(ids) != tokens.shape[1]:
        raise ValueError(
            f"reposition: {len(ids)} position ids for tokens of shape "
            f"{tuple(tokens.shape)}. Give tokens [batch pos] and one id for each pos."
        )
    if int(ids.min()) < 0 or int(ids.max()) >= n_ctx:
        raise ValueError(
            f"reposition: ids from {int(ids.min())} to {int(ids.max())}. Allowed: 0 to "
            f"{n_ctx - 1}, the positions that this model was made for."
        )
    if isinstance(toy, ToyTransformer):
        return _toy_run(model, toy, tokens, ids, read, edit)
    if isinstance(plain, PlainModel):
        return _plain_run(model, plain, tokens, ids, read, edit)
    raise ValueError(
        f"reposition: a {type(model).__name__} takes no position ids. Load it through "
        "ms.load_model as a Hugging Face model, or as a toy."
    )


def _toy_run(
    model: Model,
    toy: ToyTransformer,
    tokens: Tensor,
    ids: Tensor,
    read: Collection[Site],
    edit: Mapping[Site, Edit] | None,
) -> Run:
    if not toy.config.adds_positions:
        why = f"positions={toy.config.positions!r} adds no position embedding"
        raise _no_positions(model.name, why)
    learned = toy.config.positions == "learned"
    table: Any = toy.W_pos if learned else toy.sinusoids
    handle = toy.hook_pos_embed.register_forward_hook(
        lambda module, args, out: table[ids].expand_as(out)
    )
    try:
        return model.run(tokens, read=read, edit=edit)
    finally:
        handle.remove()


def _plain_run(
    model: Model,
    plain: PlainModel,
    tokens: Tensor,
    ids: Tensor,
    read: Collection[Site],
    edit: Mapping[Site, Edit] | None,
) -> Run:
    name = type(plain.model).__name__
    config = plain.model.config.get_text_config()
    if getattr(config, "alibi", False) or not _takes_ids(plain.model):
        raise _no_positions(model.name, f"{name} has no position ids (ALiBi, say)")
    sites = {*read, *(edit or {})}
    for site in sites:
        if site.name not in EDITABLE or not plain.attends:
            raise ValueError(
                f"reposition: {site} can't be read or edited with other position ids "
                f"in {name}. Allowed here: "
                f"{', '.join(EDITABLE) if plain.attends else 'the logits alone'}."
            )
        model.shape.check(site)
    check_tokens(tokens, plain.d_vocab, plain.n_ctx)
    if isinstance(model, HuggingFaceModel):
        model.check_image(tokens)
    tokens = tokens.to(plain.device)
    hooks = SiteHooks(read, edit, home=plain.device)
    with torch.no_grad(), edit_attention(hooks.points(resid_mid_is_hook=True)):
        logits = plain.model(
            tokens,
            position_ids=ids[None].expand_as(tokens),
            # Without a mask transformers takes ids that jump for packed texts and
            # hides them from each other.
            attention_mask=torch.ones_like(tokens),
            use_cache=False,
        ).logits
    hooks.check_all_fired()
    return Run(tokens, logits, hooks.cache)


def _takes_ids(model: Any) -> bool:
    return "position_ids" in inspect.signature(model.forward).parameters


def _no_positions(name: str, why: str) -> ValueError:
    return ValueError(
        f"reposition: {name} can't be run at other positions: {why}. Use a model with "
        "position ids, such as Llama or GPT-2, or a toy with learned positions."
    )
