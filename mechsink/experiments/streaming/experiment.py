"""`streaming`: how long a model stays a model when its cache is bounded.

The keys of the first few tokens, which nobody needs for their content, are what a
window can't do without: they are the sinks.

Source: Xiao et al. 2023 (arXiv:2309.17453).
"""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from mechsink.experiments.streaming.study import (
    ANEW,
    DENSE,
    N_BLOCKS,
    SINKS,
    WINDOW,
    Streaming,
    claims,
    losses_table,
)
from mechsink.experiments.study import as_claims
from mechsink.models.any_model import any_model
from mechsink.models.cache_policies import Dense, Policy, SinkWindow, Window
from mechsink.models.stream_losses import Piece, stream_losses, window_losses
from mechsink.models.streaming import Stream
from mechsink.progress import bar
from mechsink.prompt_sets.prose import prose
from mechsink.provenance import provenance
from mechsink.run import Model

PER_TOKEN = 7  # characters of default prose cut for each token: English needs five
LONG = 5_000  # tokens from which drift, time and memory are judged


@any_model
def streaming(
    model: Model,
    text: str | Int[Tensor, "1 pos"] | None = None,
    *,
    n_tokens: int = 20_000,
    cache: int = 128,
    sinks: int = 4,
    policies: Mapping[str, Policy] | None = None,
    recompute_every: int = 16,
    piece: int = 64,
    quick: bool = False,
    progress: bool | None = None,
) -> Streaming:
    """Log-loss, time and memory along a text, for caches of one size.

    A window and sinks with a window always run, in one batch with whatever `policies`
    adds; beside them dense attention, up to the model's own context, and a window read
    anew for every few tokens, which is the best that its size allows.

    Args:
        model: a Hugging Face model with rotary positions.
        text: a text or its tokens; default: prose of `pydoc_data.topics`.
        n_tokens: tokens of it that are used.
        cache: slots of each streaming cache; a query sees one more, its own.
        sinks: of these, first tokens that stay.
        policies: more of them by name; default: one sink.
        recompute_every: a window is read anew for every so many tokens.
        piece: tokens a forward pass. The losses are those of token by token (which
            `HeavyHitters` forces), the time is less.
        quick: at most 512 tokens with at most 64 slots, under a minute; drift, time
            and memory are not judged.
        progress: show a bar with time left; None: on terminals, in notebooks.

    Returns:
        A `Streaming`, one row a policy and predicted token.

    Raises:
        ValueError: a text too short, sizes that do not fit, a model that can't stream.

    Source: Xiao et al. 2023 (arXiv:2309.17453).

    Examples:
        >>> import transformers as hf
        >>> config = hf.LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=16,
        ...                         num_hidden_layers=2, num_attention_heads=2)
        >>> model = ms.load_model(hf.LlamaForCausalLM(config).eval())
        >>> tokens = (torch.arange(60) ** 2 % 50)[None]
        >>> study = ms.streaming(
        ...     model, tokens, n_tokens=60, cache=6, sinks=2, recompute_every=2
        ... )
        >>> study.table.policy.unique().tolist()
        ['window', 'sinks + window', '1 sink + window', 'dense', 'window read anew']
    """
    if quick:
        n_tokens, cache, recompute_every = min(n_tokens, 512), min(cache, 64), 10
    more = {"1 sink + window": SinkWindow(1, cache - 1)} if policies is None else {}
    more = {**more, **(policies or {})}
    _check(n_tokens, cache, sinks, recompute_every, piece, more)
    tokens, source = _tokens(model, text, n_tokens)
    started = time.perf_counter()
    chosen = {WINDOW: Window(cache), SINKS: SinkWindow(sinks, cache - sinks), **more}
    n_dense = min(Stream(model, Dense()).longest, n_tokens - 1)
    ends = list(range(cache, n_tokens, recompute_every))
    total = 2 * n_tokens + n_dense + len(ends)
    with bar(f"streaming {n_tokens:,} tokens", total, progress) as advance:

        def read(tokens: Tensor, policies: list[Policy], piece: int) -> Iterator[Piece]:
            for part in stream_losses(model, tokens, policies, piece):
                yield part
                advance(part.losses.shape[1] * (2 if len(policies) > 1 else 1))

        stream = list(read(tokens, list(chosen.values()), piece))
        dense = list(read(tokens[: n_dense + 1], [Dense()], piece))
        anew: list[Tensor] = []
        for part in window_losses(model, tokens, ends, cache):
            anew.append(part)
            advance(len(part))

    rows = torch.cat([part.losses for part in stream], dim=1)
    after = np.arange(1, n_tokens)
    losses: dict[str, tuple[Any, Tensor]] = {
        name: (after, row) for name, row in zip(chosen, rows, strict=True)
    }
    losses[DENSE] = after[:n_dense], torch.cat([p.losses for p in dense], dim=1)[0]
    losses[ANEW] = ends, torch.cat(anew)
    table = losses_table(losses)
    costs = pd.concat(
        [_costs("stream", stream), _costs("dense", dense)], ignore_index=True
    )
    return Streaming(
        table=table,
        claims=as_claims(claims(table, costs, cache, long=n_tokens >= LONG)),
        costs=costs,
        meta=provenance(
            model,
            tokens[None],
            duration=time.perf_counter() - started,
            measurement="streaming",
            text=source,
            n_tokens=n_tokens,
            cache=cache,
            sinks=sinks,
            policies={name: str(policy) for name, policy in chosen.items()},
            recompute_every=recompute_every,
            piece=piece,
            threads=torch.get_num_threads(),
            quick=quick,
        ),
    )


def _check(
    n_tokens: int,
    cache: int,
    sinks: int,
    recompute_every: int,
    piece: int,
    more: Mapping[str, Policy],
) -> None:
    n_anew = len(range(cache + 2, n_tokens, max(recompute_every, 1)))
    if not 1 <= sinks < cache or n_anew < N_BLOCKS or recompute_every < 1 or piece < 1:
        raise ValueError(
            f"streaming: n_tokens={n_tokens}, cache={cache}, sinks={sinks}, "
            f"recompute_every={recompute_every}, piece={piece}. Allowed: 1 <= sinks < "
            f"cache, and {N_BLOCKS} windows or more to read anew: n_tokens >= cache + "
            f"{N_BLOCKS} * recompute_every + 2."
        )
    taken = {WINDOW, SINKS, DENSE, ANEW} & set(more)
    other = {name: policy for name, policy in more.items() if policy.size != cache}
    if taken or other:
        raise ValueError(
            f"streaming: policies {sorted(taken | set(other))}. Allowed: names other "
            f"than {WINDOW!r}, {SINKS!r}, {DENSE!r}, {ANEW!r}, and policies of {cache} "
            "slots, since only caches of one size are compared."
        )


def _tokens(
    model: Model, text: str | Tensor | None, n_tokens: int
) -> tuple[Int[Tensor, " pos"], str]:
    source = "given" if text is not None else "English prose of pydoc_data.topics"
    if text is None:
        text = " ".join(prose())[: PER_TOKEN * n_tokens]
    tokens = model.to_tokens(text)[0] if isinstance(text, str) else text[0]
    if len(tokens) < n_tokens:
        raise ValueError(
            f"streaming: the text has {len(tokens)} tokens, n_tokens={n_tokens}. Give "
            f"a longer text or n_tokens={len(tokens)}."
        )
    return tokens[:n_tokens], source


def _costs(name: str, pieces: list[Piece]) -> pd.DataFrame:
    rows: list[dict[str, Any]] = [
        {
            "pass": name,
            "start": piece.start,
            "tokens": piece.losses.shape[1],
            "seconds": piece.seconds,
            "cpu_seconds": piece.cpu_seconds,
            "rss_mb": piece.rss / 2**20,
            "slots": max(piece.slots),
            "cache_mb": max(piece.cache_bytes) / 2**20,
        }
        for piece in pieces
    ]
    return pd.DataFrame(rows)
