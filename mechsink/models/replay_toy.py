"""Continuing a toy's run: its blocks take earlier keys and values themselves."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mechsink.models.continuation import BaseRun, CannotContinueError, Past
from toy_tasks.transformer import ToyTransformer


def toy_base(toy: ToyTransformer, tokens: Tensor) -> BaseRun:
    """Run once, keeping residuals, keys and values.

    Raises:
        CannotContinueError: an operator reads the whole prompt, or a prefix sees
            later tokens.
    """
    if toy.config.prefix:
        raise CannotContinueError(
            f"resume: the first {toy.config.prefix} tokens of this toy see each other "
            "(prefix), so a run can't be continued from earlier keys and values."
        )
    if toy.config.operators is not None:
        raise CannotContinueError(
            "resume: this toy's attention is an operator, which reads the whole "
            "prompt, so a run can't be continued from earlier keys and values."
        )
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

    def block(
        self,
        layer: int,
        resid: Tensor,
        rows: Tensor | None,
        on_pattern: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        keys, values = self._past[layer]
        if rows is not None and len(keys):
            keys, values = keys[rows], values[rows]
        past = (keys[:, : self._pos], values[:, : self._pos]) if self._pos else None
        block: Any = self._toy.blocks[layer]
        if on_pattern is None:
            return block(resid, past if len(keys) else None)
        handle = block.attn.hook_pattern.register_forward_hook(
            lambda module, args, out: on_pattern(out)
        )
        try:
            return block(resid, past if len(keys) else None)
        finally:
            handle.remove()

    def last(self, layer: int, resid: Tensor, rows: Tensor | None) -> Tensor:
        return self.block(layer, resid, rows)[:, -1:]

    def logits(self, resid: Tensor, vocabulary: Tensor | None = None) -> Tensor:
        logits = self._toy.unembed(resid)
        return logits if vocabulary is None else logits[..., vocabulary]
