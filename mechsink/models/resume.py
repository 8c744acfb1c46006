"""Exact continuation of a run from a layer and a position.

A change at layer l, position p leaves every layer before l and, in a causal
model, every position before p as they were. So the model's own blocks are
replayed on the changed rows alone, with the earlier positions' keys and values
read from the base run: no family is reimplemented. The sweep engine rests on it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsink.models.plain import Call, PlainModel, block_input, block_output
from toy_tasks.transformer import ToyTransformer

Past = tuple[Tensor, Tensor]  # one layer's keys and values, as the backend keeps them


class Tail(Protocol):
    """A model from a position on: its blocks, over a fixed earlier context."""

    def block(
        self, layer: int, resid: Float[Tensor, "rows pos d_model"], rows: Tensor | None
    ) -> Float[Tensor, "rows pos d_model"]:
        """resid_post of `layer` from its resid_pre; `rows` are base-run indices."""
        ...

    def logits(
        self,
        resid: Float[Tensor, "rows pos d_model"],
        vocabulary: Int[Tensor, " token"] | None = None,
    ) -> Float[Tensor, "rows pos token"]:
        """Final norm and unembedding, with the model's own scales and caps.

        `vocabulary`: only these tokens, in this order; default: all.
        """
        ...


@dataclass(frozen=True, eq=False)
class BaseRun:
    """A run that can be continued: its residuals, and its keys and values.

    `resid[l]` is layer l's resid_pre, `resid[n_layers]` the last resid_post, each
    Float[batch pos d_model]. `tail(pos)` gives the model from that position on.
    """

    tokens: Int[Tensor, "batch pos"]
    resid: list[Tensor]
    past: list[Past]
    tail: Callable[[int], Tail]

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.resid) - 1

    def resume(
        self,
        layer: int,
        pos: int,
        resid: Float[Tensor, "rows tail d_model"],
        rows: Int[Tensor, " rows"] | None = None,
    ) -> Float[Tensor, "rows tail vocab"]:
        """Logits from position `pos` on, with `resid` as layer `layer`'s resid_pre.

        Args:
            layer: 0 to n_layers; n_layers means the last resid_post.
            pos: position of the first row of `resid`; it reaches to the end.
            resid: the changed residual stream, of any number of variants.
            rows: which base prompt each variant continues; default: row i of
                `resid` continues prompt i.

        Raises:
            ValueError: layer or position outside the run, or a wrong shape.
        """
        n_pos = self.tokens.shape[1]
        if not 0 <= layer <= self.n_layers or not 0 <= pos < n_pos:
            raise ValueError(
                f"resume: layer={layer}, pos={pos}. Allowed: layers 0 to "
                f"{self.n_layers} (the last resid_post), positions 0 to {n_pos - 1}."
            )
        if resid.shape[1] != n_pos - pos:
            raise ValueError(
                f"resume: resid has {resid.shape[1]} positions, but from pos={pos} to "
                f"the end of this {n_pos}-token run there are {n_pos - pos}."
            )
        if rows is None and resid.shape[0] != len(self.tokens):
            raise ValueError(
                f"resume: {resid.shape[0]} variants of {len(self.tokens)} prompts. "
                "Pass rows=, the base prompt that each variant continues."
            )
        with torch.no_grad():
            tail = self.tail(pos)
            for later in range(layer, self.n_layers):
                resid = tail.block(later, resid, rows)
            return tail.logits(resid)


def base_run(model: Any, tokens: Int[Tensor, "batch pos"]) -> BaseRun:
    """Run a model once so that it can be continued.

    Args:
        model: a BridgeModel (any family that keeps a key-value cache) or ToyModel.
        tokens: the prompts, of one length.

    Raises:
        ValueError: the model's blocks can't be replayed.
    """
    tokens = tokens.to(model.device)
    if isinstance(getattr(model, "toy", None), ToyTransformer):
        return _toy_base(model.toy, tokens)
    if isinstance(getattr(model, "plain", None), PlainModel):
        return _hugging_face_base(model.plain, tokens)
    raise ValueError(
        f"resume: a {type(model).__name__} can't be continued, since its blocks are "
        "not at hand. Load it through ms.load_model."
    )


def _hugging_face_base(plain: PlainModel, tokens: Tensor) -> BaseRun:
    from transformers import DynamicCache

    cache = DynamicCache()
    resid: list[Tensor] = []
    outs: list[Any] = []
    # The last block's raw return value shows how this family wraps its residual.
    handle = plain.blocks[-1].register_forward_hook(
        lambda module, args, out: outs.append(out)
    )
    try:
        plain.visit(tokens, None, lambda layer, x: resid.append(x), cache)
    finally:
        handle.remove()
    layers: list[Any] = list(cache.layers)
    past = [(layer.keys, layer.values) for layer in layers]
    if len(past) != len(plain.blocks) or any(keys is None for keys, _ in past):
        raise ValueError(
            f"resume: {type(plain.model).__name__} keeps no keys and values in "
            f"{len(plain.blocks) - len(past)} of its {len(plain.blocks)} layers, so "
            "its runs can't be continued from a position."
        )
    width = None if isinstance(outs[0], Tensor) else len(outs[0])
    return BaseRun(
        tokens,
        resid,
        past,  # type: ignore[arg-type]
        lambda pos: _HuggingFaceTail(plain, tokens, past, pos, width),
    )


class _HuggingFaceTail:
    """Blocks called with the very arguments that the model itself gives them.

    Those arguments (masks, rotary angles, ALiBi) are caught by running the model
    with stand-ins for its blocks, which costs an embedding and a norm.
    """

    def __init__(
        self,
        plain: PlainModel,
        tokens: Tensor,
        past: list[Any],
        pos: int,
        width: int | None,
    ) -> None:
        self._plain, self._width = plain, width
        self._tokens = tokens[:1, pos:]  # all rows have alike masks and positions
        self._past = [(keys[:, :, :pos], values[:, :, :pos]) for keys, values in past]
        self._calls: dict[int, list[Call]] = {}

    def block(self, layer: int, resid: Tensor, rows: Tensor | None) -> Tensor:
        args, kwargs = self._arguments(resid.shape[0])[layer]
        cache = _Continued(self._past, rows)
        args = tuple(cache if _is_cache(x) else x for x in args)
        kwargs = {k: cache if _is_cache(x) else x for k, x in kwargs.items()}
        if args:
            args = (resid, *args[1:])
        else:
            kwargs["hidden_states"] = resid
        return block_output(self._plain.blocks[layer](*args, **kwargs))

    def logits(self, resid: Tensor, vocabulary: Tensor | None = None) -> Tensor:
        # The model's own forward around stand-ins that answer with `resid`: final
        # norm, head, logit scale and soft cap stay the model's business.
        model = self._plain.model
        head = model.get_output_embeddings()
        if vocabulary is not None and isinstance(head, torch.nn.Linear):
            model.set_output_embeddings(_some_rows(head, vocabulary))
        try:
            logits = self._run(model, 1, lambda args, kwargs: resid).logits
        finally:
            model.set_output_embeddings(head)
        if vocabulary is not None and not isinstance(head, torch.nn.Linear):
            logits = logits[..., vocabulary]
        return logits

    def _arguments(self, n_rows: int) -> list[Call]:
        """What each block is called with, for that many rows."""
        if not self._plain.arguments_broadcast(self._catch):
            if n_rows not in self._calls:
                self._calls = {n_rows: self._catch(n_rows)}
            return self._calls[n_rows]
        if 1 not in self._calls:
            self._calls = {1: self._catch(1)}
        return self._calls[1]

    def _catch(self, n_rows: int) -> list[Call]:
        calls: list[Call] = []

        def stand_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
            calls.append((args, kwargs))
            return block_input(args, kwargs)

        self._run(self._plain.model.base_model, n_rows, stand_in)
        return calls

    def _run(
        self,
        model: Any,
        n_rows: int,
        stand_in: Callable[[tuple[Any, ...], dict[str, Any]], Tensor],
    ) -> Any:
        from transformers import DynamicCache

        def forward(*args: Any, **kwargs: Any) -> Any:
            out = stand_in(args, kwargs)
            return out if self._width is None else (out, *[None] * (self._width - 1))

        cache = DynamicCache(
            [
                (k[:1].expand(n_rows, -1, -1, -1), v[:1].expand(n_rows, -1, -1, -1))
                for k, v in self._past
            ]
        )
        tokens = self._tokens.expand(n_rows, -1)
        try:
            for block in self._plain.blocks:
                block.forward = forward
            return model(tokens, past_key_values=cache, use_cache=True)
        finally:
            for block in self._plain.blocks:
                del block.forward  # the class's own shows again


def _some_rows(head: torch.nn.Linear, rows: Tensor) -> torch.nn.Linear:
    """The unembedding of a few tokens."""
    few = torch.nn.Linear(head.in_features, len(rows), bias=head.bias is not None)
    few.weight = torch.nn.Parameter(head.weight[rows], requires_grad=False)
    if head.bias is not None:
        few.bias = torch.nn.Parameter(head.bias[rows], requires_grad=False)
    return few


class _Continued:
    """A cache whose earlier positions are the base run's."""

    def __init__(self, past: list[Past], rows: Tensor | None) -> None:
        self._past, self._rows = past, rows

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> Past:
        """Base keys and values of the earlier positions, then the new ones."""
        old_keys, old_values = self._past[layer_idx]
        if old_keys.shape[0] == 1:  # one base prompt: a view serves all rows
            old_keys = old_keys.expand(len(keys), -1, -1, -1)
            old_values = old_values.expand(len(keys), -1, -1, -1)
        elif self._rows is not None:
            old_keys, old_values = old_keys[self._rows], old_values[self._rows]
        return torch.cat([old_keys, keys], 2), torch.cat([old_values, values], 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of earlier positions."""
        return self._past[layer_idx][0].shape[2]


def _is_cache(value: Any) -> bool:
    return hasattr(value, "update") and hasattr(value, "get_seq_length")


def _toy_base(toy: ToyTransformer, tokens: Tensor) -> BaseRun:
    past: list[Past] = [(torch.empty(0), torch.empty(0))] * len(toy.blocks)
    handles = []
    for layer, block in enumerate(toy.blocks):
        attention: Any = block.attn
        if attention is not None:

            def keep(module: Any, args: Any, out: Tensor, layer: int = layer) -> None:
                attn: Any = module
                _, k, v = attn.project(args[0])
                past[layer] = (k, v)

            handles.append(attention.register_forward_hook(keep))
    try:
        with torch.no_grad():
            resid = [toy.embed(tokens)]
            for block in toy.blocks:
                resid.append(block(resid[-1]))
    finally:
        for handle in handles:
            handle.remove()
    return BaseRun(tokens, resid, past, lambda pos: _ToyTail(toy, past, pos))


class _ToyTail:
    def __init__(self, toy: ToyTransformer, past: list[Past], pos: int) -> None:
        self._toy, self._past, self._pos = toy, past, pos

    def block(self, layer: int, resid: Tensor, rows: Tensor | None) -> Tensor:
        keys, values = self._past[layer]
        if rows is not None and len(keys):
            keys, values = keys[rows], values[rows]
        past = (keys[:, : self._pos], values[:, : self._pos]) if self._pos else None
        return self._toy.blocks[layer](resid, past if len(keys) else None)

    def logits(self, resid: Tensor, vocabulary: Tensor | None = None) -> Tensor:
        logits = self._toy.unembed(resid)
        return logits if vocabulary is None else logits[..., vocabulary]
