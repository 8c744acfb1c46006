"""The plain Hugging Face model: its blocks, and its attention watched as it runs.

The bridge builds T x T patterns; the plain model runs flash attention, and
transformers' AttentionInterface lets a function of ours stand in its place.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechsink.models.attention import FlashAttention
from mechsink.models.devices import device_of
from mechsink.models.edited import edited_attention, points_at
from mechsink.run import LayerAttention

Call = tuple[tuple[Any, ...], dict[str, Any]]  # what a block is called with
IMPLEMENTATION = "mechsink"
_visitor: ContextVar[Callable[[LayerAttention], None] | None] = ContextVar(
    "mechsink_attention_visitor", default=None
)


class PlainModel:
    """A Hugging Face causal language model run block by block."""

    def __init__(self, model: Any) -> None:
        self.model: Any = model
        register_attention()
        self.own_attention = model.config._attn_implementation
        self._broadcast: bool | None = None

    @property
    def device(self) -> torch.device:
        """Device of the token embedding, where inputs go."""
        return device_of(self.model.get_input_embeddings())

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the token embedding."""
        return self.model.get_input_embeddings().weight.dtype

    @property
    def d_vocab(self) -> int:
        """Number of tokens that can be embedded."""
        return self.model.get_input_embeddings().weight.shape[0]

    @property
    def n_ctx(self) -> int:
        """Longest prompt that the model was made for."""
        config = self.model.config.get_text_config()
        # BLOOM's ALiBi has no limit of its own.
        return getattr(config, "max_position_embeddings", None) or 2**31 - 1

    @functools.cached_property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks: the decoder's one list of n_layers modules."""
        n_layers = self.model.config.get_text_config().num_hidden_layers
        decoder = self.model.get_decoder()
        lists = [
            child
            for child in decoder.children()
            if isinstance(child, nn.ModuleList) and len(child) == n_layers
        ]
        if len(lists) != 1:
            raise ValueError(
                f"{type(self.model).__name__}: expected one list of {n_layers} blocks "
                f"in {type(decoder).__name__}, found {len(lists)}."
            )
        return lists[0]

    @functools.cached_property
    def attends(self) -> bool:
        """Whether our attention function can stand in for the model's own.

        Families that compute attention in code of their own (GPT-J, GPT-Neo,
        BLOOM, Falcon) ignore it; then it is taken out again.
        """
        calls: list[int] = []
        close = max(1e-3, 20 * torch.finfo(self.dtype).eps)
        # Tokens that differ: among equal ones a lost causal mask would not show.
        tokens = torch.arange(8, device=self.device)[None] * 7919 % self.d_vocab
        with torch.no_grad(), quiet_transformers():
            before = self.model(tokens, use_cache=False).logits
            self.model.set_attn_implementation(IMPLEMENTATION)
            try:
                with watch_attention(lambda seen: calls.append(seen.layer)):
                    after = self.model(tokens, use_cache=False).logits
            except Exception:
                after = None
            works = (
                after is not None
                and calls == list(range(len(self.blocks)))
                and bool((before - after).abs().max() <= close * before.abs().max())
            )
            if not works:
                self.model.set_attn_implementation(self.own_attention)
        return works

    @functools.cached_property
    def is_causal(self) -> bool:
        """Whether no position sees a later one: tried by changing the last token."""
        tokens = torch.arange(8, device=self.device)[None] * 7919 % self.d_vocab
        other = tokens.clone()
        other[0, -1] = (other[0, -1] + 1) % self.d_vocab
        with torch.no_grad():
            one, two = (
                self.model(t, use_cache=False).logits[:, :-1] for t in (tokens, other)
            )
        close = max(1e-4, 20 * torch.finfo(one.dtype).eps)
        return bool((one - two).abs().max() <= close * one.abs().max())

    def arguments_broadcast(
        self, catch: Callable[[int], list[Call]], one_row_serves: Callable[[], bool]
    ) -> bool:
        """Whether the blocks' arguments for one row serve any number of rows.

        True where batch is a leading axis of its own, which ALiBi may fold into heads,
        and where it was tried.
        """
        if self._broadcast is None:
            one, two = (
                [x.shape for args, kwargs in catch(n) for x in tensors_in(args, kwargs)]
                for n in (1, 2)
            )
            self._broadcast = all(
                a == b or (a[0] == 1 and a[1:] == b[1:])
                for a, b in zip(one, two, strict=True)
            )
            self._broadcast = self._broadcast and one_row_serves()
        return self._broadcast

    def visit(
        self,
        tokens: Tensor,
        attention: Callable[[LayerAttention], None] | None,
        residual: Callable[[int, Float[Tensor, "batch pos d_model"]], None] | None,
        cache: Any = None,
    ) -> None:
        """Run the blocks, without the unembedding, and hand out each layer.

        `cache`, if given, is a transformers cache that keeps keys and values.
        """
        _ = self.attends  # settles which attention runs, for this and later passes
        handles = []
        if residual is not None:
            for layer, block in enumerate(self.blocks):
                handles.append(
                    block.register_forward_pre_hook(
                        lambda module, args, kwargs, layer=layer: residual(
                            layer, block_input(args, kwargs).to(self.device)
                        ),
                        with_kwargs=True,
                    )
                )
            n_layers = len(self.blocks)
            handles.append(
                self.blocks[-1].register_forward_hook(
                    lambda module, args, out: residual(
                        n_layers, block_output(out).to(self.device)
                    )
                )
            )
        try:
            with torch.no_grad(), watch_attention(attention):
                self.model.base_model(
                    tokens, past_key_values=cache, use_cache=cache is not None
                )
        finally:
            for handle in handles:
                handle.remove()


def tensors_in(*values: Any) -> Iterator[Tensor]:
    """All tensors in nested arguments; caches are not looked into."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from tensors_in(*value)
        elif isinstance(value, dict):
            yield from tensors_in(*value.values())


def block_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The residual stream among a block's arguments."""
    return args[0] if args else kwargs["hidden_states"]


def block_output(out: Any) -> Tensor:
    """The residual stream in what a block returns, a tensor or a tuple."""
    return out if isinstance(out, Tensor) else out[0]


@contextlib.contextmanager
def watch_attention(
    visitor: Callable[[LayerAttention], None] | None,
) -> Iterator[None]:
    """Within, call `visitor` at every layer that runs our attention function."""
    token = _visitor.set(visitor)
    try:
        yield
    finally:
        _visitor.reset(token)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' log lines off the screen while a probe expects them."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)


@functools.cache
def register_attention() -> None:
    """Make our function known to transformers, with the mask that goes with it.

    Without the mask function nothing would be causal, in silence. `sdpa_mask`
    leaves the mask out where a layer is plainly causal, so no T x T tensor.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(IMPLEMENTATION, _attention)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if not getattr(module, "is_causal", True):  # an image's encoder, not a block
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    points = points_at(module.layer_idx)
    if points:
        out = edited_attention(
            points,
            module.layer_idx,
            query,
            key,
            value,
            scale=scale,
            mask=attention_mask,
            softcap=softcap,
            sink_logit=s_aux,
        )
        return out.contiguous(), None
    visitor = _visitor.get()
    if visitor is None and softcap is None and s_aux is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    seen = FlashAttention(
        layer=module.layer_idx,
        q=query,
        k=key,
        v=value,
        scale=scale,
        mask=attention_mask,
        softcap=softcap,
        sink_logit=s_aux,
    )
    if visitor is not None:
        visitor(seen)
    return seen.out.transpose(1, 2).contiguous(), None
