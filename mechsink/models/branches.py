"""One run with side branches: a head edited, and the blocks after it run again.

Held are the run's own residual stream and one branch's, no pattern, and the logits of
a few tokens at a time, so that memory is linear in the length of a prompt and small:
for 32,768 tokens of SmolLM2 the streams of all layers alone would take 2.3 GB, the
logits 6.4.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsink.models.plain import PlainModel, block_input, watch_attention
from mechsink.models.replay_blocks import hugging_face_base
from mechsink.run import LayerAttention

HeadEdit = Callable[[Tensor, Tensor], Tensor]
"""Takes a head's z and the values that it reads, both Float[batch pos d_head], and
returns a new z of the same shape."""
LOGITS = 2**25
"""Logits made at once, about."""


@dataclass(frozen=True)
class Branch:
    """One head with one edit, by name."""

    layer: int
    head: int
    edit: str

    @property
    def place(self) -> tuple[int, int]:
        """Layer and head."""
        return self.layer, self.head


class Branches:
    """Whole prompts run block by block, for models whose attention can be watched.

    Args:
        plain: the model; `plain.attends` must hold.
        tokens: prompts of one length.

    Raises:
        CannotContinueError: its blocks can't be replayed.
    """

    def __init__(self, plain: PlainModel, tokens: Int[Tensor, "batch pos"]) -> None:
        assert plain.attends
        self._plain = plain
        self._tokens = tokens.to(plain.device)
        # How a family caches and wraps its blocks' output shows on a few tokens.
        self._few: Any = hugging_face_base(plain, self._tokens[:1, :16]).tail(0)
        self._tail = self._few.over(self._tokens)

    def streams(
        self, branches: Collection[Branch], edits: Mapping[str, HeadEdit]
    ) -> Iterator[tuple[Branch | None, Float[Tensor, "batch pos d_model"]]]:
        """The last resid_post of every branch, then (None) of the run itself.

        Args:
            branches: which heads, each edited alone.
            edits: name to edit.
        """
        n_layers = len(self._plain.blocks)
        with torch.no_grad():
            stream = self._embedded()
            for layer in range(n_layers):
                here = [branch for branch in branches if branch.layer == layer]
                for branch in here:
                    visitor = _editor(branch.head, edits[branch.edit])
                    with watch_attention(visitor):
                        side = self._tail.block(layer, stream, None)
                    for later in range(layer + 1, n_layers):
                        side = self._tail.block(later, side, None)
                    yield branch, side
                # The same kernel for both: a head that does nothing changes nothing.
                with watch_attention((lambda seen: None) if here else None):
                    stream = self._tail.block(layer, stream, None)
            yield None, stream

    def logits(
        self, stream: Float[Tensor, "batch pos d_model"]
    ) -> Iterator[tuple[int, Float[Tensor, "batch some vocab"]]]:
        """Logits of a few positions at a time, with the first one's number."""
        step = max(1, LOGITS // (len(stream) * self._plain.d_vocab))
        for start in range(0, stream.shape[1], step):
            some = stream[:, start : start + step]
            tokens = self._tokens[:, start : start + step]
            # A tail of as many tokens: some families shape their output as these are.
            yield start, self._few.over(tokens).logits(some)

    def _embedded(self) -> Float[Tensor, "batch pos d_model"]:
        """The first block's input."""
        found: list[Tensor] = []

        def leave(module: Any, args: Any, kwargs: Any) -> None:
            found.append(block_input(args, kwargs))
            raise _Left

        first = self._plain.blocks[0]
        handle = first.register_forward_pre_hook(leave, with_kwargs=True)
        try:
            self._plain.model.base_model(self._tokens, use_cache=False)
        except _Left:
            return found[0]
        finally:
            handle.remove()
        raise AssertionError("the first block was not entered")


class _Left(Exception):
    """The model was left on purpose."""


def _editor(head: int, edit: HeadEdit) -> Callable[[LayerAttention], None]:
    """A visitor that edits a head's output before the block goes on with it."""

    def visit(seen: Any) -> None:
        group = seen.out.shape[1] // seen.v.shape[1]
        seen.out[:, head] = edit(seen.out[:, head], seen.v[:, head // group])

    return visit
