"""A Hugging Face model whose attention a stream computes, over caches of its own.

The weights are shared with the model; only the attention function is another one.
"""

import functools
import inspect
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor

from mechsink.models.plain import PlainModel, quiet_transformers
from mechsink.models.slot_cache import Rotation
from mechsink.models.views import shared_view
from mechsink.run import Model

IMPLEMENTATION = "mechsink_streaming"
ALLOWED = (
    "Allowed: Hugging Face models with rotary positions in every layer, in halves as "
    "Llama turns them (Llama, Mistral, Qwen, Gemma, Phi, GPT-NeoX and their like)."
)


class Reader(Protocol):
    """Who computes the attention: `Stream`."""

    model: Model

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        softcap: float | None,
        local: int | None,
    ) -> Tensor:
        """One layer's attention; shapes as in `Stream.attend`."""
        ...


reading: ContextVar[Reader | None] = ContextVar("mechsink_reading", default=None)
"""The stream whose forward pass this is."""


def streaming_view(model: Any) -> tuple[Any, Rotation, int, int]:
    """The model with our attention, its rotary angles, its context, its layers."""
    plain = getattr(model, "plain", None)
    if not isinstance(plain, PlainModel):
        raise refusal(model, f"a {type(model).__name__} has no rotary positions")
    _register()
    view: Any = shared_view(plain.model)
    rotary = getattr(view.get_decoder(), "rotary_emb", None)
    if rotary is None:
        raise refusal(model, "its positions are learned, ALiBi or none")
    kind = str(getattr(rotary, "rope_type", "default"))
    if "dynamic" in kind or "longrope" in kind:
        raise refusal(model, f"its angles depend on the text's length ({kind})")
    if "position_ids" not in inspect.signature(view.forward).parameters:
        raise refusal(model, "it takes no position ids")
    try:
        rotary(torch.zeros(1), torch.zeros(1, 1, dtype=torch.long))
    except Exception as error:
        raise refusal(model, "its layers turn by different angles") from error
    with quiet_transformers():
        view.set_attn_implementation(IMPLEMENTATION)
    rotation = Rotation(rotary, plain.dtype)
    return view, rotation, plain.n_ctx, len(plain.blocks)


def refusal(model: Model, why: str) -> ValueError:
    """The error for a model that can't be read so, saying which can."""
    plain: Any = getattr(model, "plain", None)
    kind = type(plain.model).__name__ if plain is not None else type(model).__name__
    return ValueError(f"Stream: {model.name} ({kind}) can't stream: {why}. {ALLOWED}")


@functools.cache
def _register() -> None:
    """Make our function known to transformers; it does its own masking."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(IMPLEMENTATION, _attention)
    AttentionMaskInterface.register(IMPLEMENTATION, _no_mask)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    reader = reading.get()
    assert reader is not None, "the view belongs to a stream alone"
    if s_aux is not None:
        raise refusal(reader.model, "it has learned sink logits")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = reader.attend(
        module.layer_idx, query, key, value, scale, softcap, sliding_window
    )
    return out.transpose(1, 2).contiguous(), None
