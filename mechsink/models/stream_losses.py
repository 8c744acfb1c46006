"""Log-loss of a text under cache policies, and of windows read anew.

Losses are of the next token, in nats; only they are kept, never the logits.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mechsink.models.any_model import any_model
from mechsink.models.cache_policies import Policy
from mechsink.models.hooks import check_tokens
from mechsink.models.plain import PlainModel
from mechsink.models.streaming import PIECE, Stream
from mechsink.run import Model

WINDOW_TOKENS = 2048  # in one forward pass of `window_losses`


@dataclass(frozen=True, eq=False)
class Piece:
    """Losses of one piece of text, and what reading it took.

    `losses[p, i]` is the loss of token `start + 1 + i` under policy p, predicted from
    what the cache let token `start + i` see. `cpu_seconds` are of this process, all
    threads; `rss` is its resident memory afterwards, bytes.
    """

    start: int
    losses: Float[Tensor, "policy pos"]
    seconds: float
    cpu_seconds: float
    rss: int
    slots: list[int]
    cache_bytes: list[int]


@any_model
def stream_losses(
    model: Model,
    tokens: Int[Tensor, " pos"],
    policies: Sequence[Policy],
    piece: int = 1,
) -> Iterator[Piece]:
    """Read one text through a `Stream` and hand out losses piece by piece.

    Args:
        model: a Hugging Face model with rotary positions.
        tokens: the text; its last token is only predicted.
        policies: cache policies, all in one batch.
        piece: tokens a forward pass. The numbers are those of 1; more is faster.

    Yields:
        Pieces: `losses` Float[policy pos] in nats, the first of token `start + 1`, with
        seconds, cpu_seconds, memory (bytes) and slots.

    Raises:
        ValueError: fewer than two tokens, or what `Stream` refuses.

    Source: StreamingLLM (Xiao et al. 2023, arXiv:2309.17453).

    Examples:
        >>> import transformers as hf
        >>> config = hf.LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=16,
        ...                         num_hidden_layers=2, num_attention_heads=2)
        >>> model = ms.load_model(hf.LlamaForCausalLM(config).eval())
        >>> policies = [ms.Dense(), ms.SinkWindow(sinks=1, window=4)]
        >>> for piece in ms.stream_losses(model, torch.arange(13), policies, piece=6):
        ...     print(piece.start, tuple(piece.losses.shape), piece.slots)
        0 (2, 6) [6, 5]
        6 (2, 6) [12, 5]
    """
    if len(tokens) < 2 or piece < 1:
        raise ValueError(
            f"stream_losses: {len(tokens)} tokens in pieces of {piece}. Give at least "
            "two tokens, one to read and one to predict, and pieces of 1 or more."
        )
    stream = Stream(model, policies)
    tokens = tokens.to(model.device)
    process = psutil.Process()
    for start in range(0, len(tokens) - 1, piece):
        wall, cpu = time.perf_counter(), time.process_time()
        part = tokens[start : start + piece + 1]
        found = [
            next_losses(stream.step(some[None])[:, 0], wanted).cpu()
            for some, wanted in zip(
                part[:-1].split(PIECE), part[1:].split(PIECE), strict=True
            )
        ]
        yield Piece(
            start=start,
            losses=torch.cat(found, dim=1),
            seconds=time.perf_counter() - wall,
            cpu_seconds=time.process_time() - cpu,
            rss=process.memory_info().rss,
            slots=stream.slots,
            cache_bytes=stream.n_bytes,
        )


@any_model
def window_losses(
    model: Model,
    tokens: Int[Tensor, " pos"],
    ends: Sequence[int],
    size: int,
) -> Iterator[Float[Tensor, " end"]]:
    """Losses of chosen tokens from the `size` tokens before, read anew each time.

    Args:
        model: a Hugging Face model.
        tokens: the text.
        ends: tokens to predict, each at least `size` from the start.
        size: tokens read before each, at positions 0 to size - 1.

    Yields:
        Losses of the next few `ends`, in order.

    Raises:
        ValueError: an end without `size` tokens before it, a model of another kind.

    Source: sliding window with re-computation of StreamingLLM (arXiv:2309.17453).

    Examples:
        >>> import transformers as hf
        >>> config = hf.LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=16,
        ...                         num_hidden_layers=2, num_attention_heads=2)
        >>> model = ms.load_model(hf.LlamaForCausalLM(config).eval())
        >>> losses = ms.window_losses(model, torch.arange(20), ends=[8, 12, 16], size=4)
        >>> torch.cat(list(losses)).shape
        torch.Size([3])
    """
    plain: Any = getattr(model, "plain", None)
    if not isinstance(plain, PlainModel):
        raise ValueError(
            f"window_losses: {model.name} is no Hugging Face model. Load one with "
            "ms.load_model."
        )
    outside = [end for end in ends if not size <= end < len(tokens)]
    if outside or size < 1:
        raise ValueError(
            f"window_losses: size={size}, ends such as {outside[:1]} of {len(tokens)} "
            f"tokens. Allowed: size >= 1, ends from {size} to {len(tokens) - 1}."
        )
    check_tokens(tokens[None, :size], plain.d_vocab, plain.n_ctx)
    at_once = max(1, WINDOW_TOKENS // size)
    tokens = tokens.to(plain.device)
    for first in range(0, len(ends), at_once):
        some = torch.as_tensor(ends[first : first + at_once], device=tokens.device)
        rows = tokens[some[:, None] + torch.arange(-size, 0, device=tokens.device)]
        with torch.no_grad():
            logits = plain.model(rows, use_cache=False, logits_to_keep=1).logits
        yield next_losses(logits[:, -1], tokens[some]).cpu()


def next_losses(
    logits: Float[Tensor, "*batch token vocab"], targets: Int[Tensor, " token"]
) -> Float[Tensor, "*batch token"]:
    """Loss of each target under the logits before it, nats; at least float32."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    rows = logits.to(wide).flatten(0, -2)
    wanted = targets.expand(logits.shape[:-1]).flatten()
    return F.cross_entropy(rows, wanted, reduction="none").view(logits.shape[:-1])
