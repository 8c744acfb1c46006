"""Continuing a Hugging Face model's run by replaying its own blocks.

The blocks get the very arguments (masks, rotary angles, ALiBi) that the model
itself would give them, and a cache whose earlier positions are the base run's.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mechsink.models.continuation import BaseRun, CannotContinueError, Past
from mechsink.models.devices import is_placed
from mechsink.models.plain import (
    Call,
    PlainModel,
    block_input,
    block_output,
    watch_attention,
)


def hugging_face_base(plain: PlainModel, tokens: Tensor) -> BaseRun:
    """Run once, keeping residuals, keys and values."""
    from transformers import DynamicCache

    if not plain.is_causal:
        raise CannotContinueError(
            f"resume: in {type(plain.model).__name__} earlier positions see later "
            "ones, so a change is not confined to what comes after it."
        )
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
        raise CannotContinueError(
            f"resume: {type(plain.model).__name__} keeps no keys and values in "
            f"{len(plain.blocks) - len(past)} of its {len(plain.blocks)} layers, so "
            "its runs can't be continued from a position."
        )
    width = None if isinstance(outs[0], Tensor) else len(outs[0])
    end = tokens.shape[1] - 1
    final = HuggingFaceTail(plain, tokens, past, end, width, None)

    def tail(pos: int) -> HuggingFaceTail:
        if pos == end:
            return final
        return HuggingFaceTail(plain, tokens, past, pos, width, final)

    return BaseRun(
        tokens,
        resid,
        past,  # type: ignore[arg-type]
        tail,
        lambda: plain.attends,
    )


class HuggingFaceTail:
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
        final: "HuggingFaceTail | None",
    ) -> None:
        self._plain, self._width, self._final = plain, width, final
        self._tokens = tokens[:1, pos:]  # all rows have alike masks and positions
        self._past = [(keys[:, :, :pos], values[:, :, :pos]) for keys, values in past]
        self._calls: dict[int, list[Call]] = {}

    def over(self, tokens: Tensor) -> "HuggingFaceTail":
        """The same blocks over other prompts, of which nothing was run before.

        For a tail from position 0, which has no earlier keys and values.
        """
        self._arguments(1)  # tries, but once a model, whether one row's serve all
        return HuggingFaceTail(self._plain, tokens, self._past, 0, self._width, None)

    def block(
        self,
        layer: int,
        resid: Tensor,
        rows: Tensor | None,
        on_pattern: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """See `mechsink.models.continuation.Tail`."""
        cache = _Continued(self._past, rows)
        if on_pattern is None:
            return self._call(layer, resid, cache)
        keys = range(cache.get_seq_length() + resid.shape[1])
        self._arguments(resid.shape[0])  # tries a block: its patterns are not these
        home = self._plain.device
        with watch_attention(lambda seen: on_pattern(seen.columns(keys).to(home))):
            return self._call(layer, resid, cache)

    def last(self, layer: int, resid: Tensor, rows: Tensor | None) -> Tensor:
        """See `mechsink.models.continuation.Tail`."""
        # Earlier positions are needed as keys and values only: the block is left as
        # soon as it hands them to its cache, then called for the last position.
        if self._final is None:
            return self.block(layer, resid, rows)
        whole = _KeysAndValuesOnly(self._past, rows)
        try:
            out = self._call(layer, resid, whole)
        except _Left:
            return self._final._call(layer, resid[:, -1:], _Given(whole.joined))
        return out[:, -1:]  # a block that keeps none here

    def _call(self, layer: int, resid: Tensor, cache: Any) -> Tensor:
        call = self._arguments(resid.shape[0])[layer]
        return self._called(call, layer, resid, cache)

    def _called(self, call: Call, layer: int, resid: Tensor, cache: Any) -> Tensor:
        args = tuple(cache if _is_cache(x) else x for x in call[0])
        kwargs = {k: cache if _is_cache(x) else x for k, x in call[1].items()}
        if args:
            args = (resid, *args[1:])
        else:
            kwargs["hidden_states"] = resid
        # Layers may lie on several devices: their hooks fetch what they need.
        out = block_output(self._plain.blocks[layer](*args, **kwargs))
        return out.to(self._plain.device)

    def logits(self, resid: Tensor, vocabulary: Tensor | None = None) -> Tensor:
        """See `mechsink.models.continuation.Tail`."""
        # The model's own forward around stand-ins that answer with `resid`: final
        # norm, head, logit scale and soft cap stay the model's business.
        model = self._plain.model
        head = model.get_output_embeddings()
        few = isinstance(head, torch.nn.Linear) and not is_placed(head)
        if vocabulary is not None and few:
            model.set_output_embeddings(_some_rows(head, vocabulary))
        try:
            logits = self._headed(resid).to(self._plain.device)
        finally:
            model.set_output_embeddings(head)
        if vocabulary is not None and not few:
            logits = logits[..., vocabulary]
        return logits

    def _headed(self, resid: Tensor) -> Tensor:
        """What the model makes of its last blocks' output; one row of tokens serves.

        GPT-BigCode alone shapes that output as its tokens were: it takes as many.
        """
        model = self._plain.model
        try:
            return self._run(model, 1, lambda args, kwargs: resid).logits
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            if len(resid) == 1:
                raise
            return self._run(model, len(resid), lambda args, kwargs: resid).logits

    def _arguments(self, n_rows: int) -> list[Call]:
        """What each block is called with, for that many rows."""
        if not self._plain.arguments_broadcast(self._catch, self._one_row_serves):
            if n_rows not in self._calls:
                if len(self._calls) > 4:
                    self._calls.clear()
                self._calls[n_rows] = self._catch(n_rows)
            return self._calls[n_rows]
        if 1 not in self._calls:
            self._calls = {1: self._catch(1)}
        return self._calls[1]

    def _one_row_serves(self) -> bool:
        """Whether a block gives two rows the same with the arguments for one.

        Falcon's ALiBi looks as if it did, but is reshaped inside: an error, or, with
        as many rows as keys, wrong numbers.
        """
        rows = torch.zeros(2, dtype=torch.long, device=self._tokens.device)
        resid = torch.cat([block_input(*self._catch(1)[0])] * 2)
        try:
            one, two = (
                self._called(self._catch(n)[0], 0, resid, _Continued(self._past, rows))
                for n in (1, 2)
            )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            return False
        close = 20 * torch.finfo(one.dtype).eps
        return bool((one - two).abs().max() <= close * two.abs().max())

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
        # Where a model is spread over devices, a block has a forward of its own.
        own = [vars(block).get("forward") for block in self._plain.blocks]
        try:
            for block in self._plain.blocks:
                block.forward = forward
            return model(tokens, past_key_values=cache, use_cache=True)
        finally:
            for block, before in zip(self._plain.blocks, own, strict=True):
                if before is None:
                    del block.forward  # the class's own shows again
                else:
                    block.forward = before


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
            rows = self._rows.to(old_keys.device)
            old_keys, old_values = old_keys[rows], old_values[rows]
        return torch.cat([old_keys, keys], 2), torch.cat([old_values, values], 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of earlier positions."""
        return self._past[layer_idx][0].shape[2]


class _Left(Exception):
    """A block was left on purpose."""


class _KeysAndValuesOnly(_Continued):
    """A cache that keeps what it is handed and leaves the block."""

    joined: Past

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> Past:
        """Never returns."""
        self.joined = super().update(keys, values, layer_idx)
        raise _Left


class _Given(_Continued):
    """A cache that already holds every position, the last one included."""

    def __init__(self, joined: Past) -> None:
        self._joined = joined

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> Past:
        """What it holds; the last position's keys and values are among it."""
        return self._joined

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of earlier positions."""
        return self._joined[0].shape[2] - 1


def _is_cache(value: Any) -> bool:
    return hasattr(value, "update") and hasattr(value, "get_seq_length")
