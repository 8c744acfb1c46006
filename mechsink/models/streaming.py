"""Texts without end: a model read token by token over a cache of bounded size.

Several policies run as rows of one batch, each over its own cache: a step of a small
model is bound by reading its weights, so that more rows cost little.

Source: StreamingLLM (Xiao et al. 2023, arXiv:2309.17453): keys cached before rotation,
positions counted within the cache.
"""

import functools
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsink.models.any_model import any_model
from mechsink.models.cache_policies import Dense, Policy, evict_range
from mechsink.models.hooks import check_tokens
from mechsink.models.plain import PlainModel
from mechsink.models.sampling import Sampler, greedy
from mechsink.models.slot_cache import SlotCache
from mechsink.models.stream_view import reading, refusal, streaming_view
from mechsink.run import Model

PIECE = 256
"""Most tokens in a forward pass: memory is that of their scores, however long the
text, and a bounded cache is not asked about a whole text's worth of keys."""


class Stream:
    """A text read piece by piece, by the same model under one or several policies.

    What every token sees is what it would see if tokens came one by one, however they
    are cut into pieces. At first use the model is shown to be understood: a short
    text, nothing evicted, must give its own logits.

    Args:
        model: a Hugging Face model with rotary positions (ms.load_model).
        policies: cache policies; each is a row of the batch.

    Raises:
        ValueError: no policy, a family whose positions can't be counted within the
            cache, or a cache larger than the model's own context or local window.

    Examples:
        >>> import transformers as hf
        >>> config = hf.LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=16,
        ...                         num_hidden_layers=2, num_attention_heads=2)
        >>> model = ms.load_model(hf.LlamaForCausalLM(config).eval())
        >>> stream = ms.Stream(model, ms.SinkWindow(sinks=1, window=4))
        >>> stream.step(torch.arange(10)[None]).shape
        torch.Size([1, 1, 10, 50])
        >>> stream.n_seen, stream.slots
        (10, [5])
    """

    @any_model
    def __init__(self, model: Model, policies: Policy | Sequence[Policy]) -> None:
        given = [policies] if isinstance(policies, Policy) else list(policies)
        if not given:
            raise ValueError(
                "Stream: no policy. Give at least one, such as SinkWindow(4, 124)."
            )
        self.model = model
        self.policies: list[Policy] = given
        self._view, self._rotation, self._n_ctx, n_layers = streaming_view(model)
        self._local: int | None = None  # the narrowest window of the model's own
        self._calls = 0
        self._caches = [[SlotCache(p) for p in given] for _ in range(n_layers)]
        self._logits: Tensor | None = None
        self.n_seen = 0
        """Tokens read so far."""
        for policy in given:
            if policy.size is not None and policy.size >= self._n_ctx:
                raise ValueError(
                    f"Stream: {policy} gives a query position {policy.size}, but "
                    f"{model.name} was made for {self._n_ctx} tokens. Allowed: caches "
                    f"of at most {self._n_ctx - 1} slots."
                )

    @property
    def slots(self) -> list[int]:
        """Slots held now, one number a policy."""
        return [cache.n for cache in self._caches[0]]

    @property
    def n_bytes(self) -> list[int]:
        """Memory of keys, values and accounts over all layers, one number a policy."""
        return [
            sum(caches[row].n_bytes for caches in self._caches)
            for row in range(len(self.policies))
        ]

    @property
    def longest(self) -> int:
        """Tokens that `Dense` can hold: the model's context, or its own window."""
        return self._n_ctx if self._limit is None else min(self._limit, self._n_ctx)

    def step(
        self, tokens: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "policy batch pos vocab"]:
        """Read more tokens, any number at once; logits after each of them.

        What a long piece takes is its logits, so give a long text in pieces of some
        hundred tokens; it is read in such pieces in any case.

        Args:
            tokens: the next piece of each text; the number of texts never changes.

        Returns:
            Logits after each token, one row a policy.

        Raises:
            ValueError: tokens that the model has not, or beyond the context of a
                policy that keeps everything.
        """
        check_tokens(tokens, self._view.get_input_embeddings().weight.shape[0], 2**62)
        self._check_room(tokens)
        tokens = tokens.to(self.model.device)
        one_by_one = any(policy.reads_attention for policy in self.policies)
        pieces = tokens.split(1 if one_by_one else PIECE, dim=1)
        parts = [self._step(piece) for piece in pieces]
        logits = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        self._logits = logits[:, :, -1].clone()  # a view would keep all of them
        return logits

    def generate(
        self, n_new: int, sampler: Sampler = greedy
    ) -> Int[Tensor, "batch new"]:
        """Continue the text by tokens of one's own, as long as wanted.

        The last of them is read too, so that `step` or `generate` can go on.

        Args:
            n_new: tokens to add.
            sampler: `greedy` or `temperature(value, seed)`.

        Returns:
            The new tokens.

        Raises:
            ValueError: nothing was read yet, or several policies are running.
        """
        if self._logits is None or len(self.policies) > 1 or n_new < 1:
            raise ValueError(
                f"generate: n_new={n_new} with {len(self.policies)} policies after "
                f"{self.n_seen} tokens. Allowed: n_new >= 1, one policy, and a prompt "
                "first: stream.step(model.to_tokens(text))."
            )
        new = []
        for _ in range(n_new):
            chosen = sampler(self._logits[0]).to(self.model.device)
            new.append(chosen[:, None])
            self.step(new[-1])
        return torch.cat(new, dim=1)

    def evict_for_space(self, coming: int) -> None:
        """Make room, so that the next `coming` tokens all see what stays now.

        Args:
            coming: number of tokens that are to come.

        Raises:
            ValueError: more are coming than a policy can hold.
        """
        kept = [
            policy.evict_for_space(n, coming)
            for policy, n in zip(self.policies, self.slots, strict=True)
        ]
        self._select(kept)

    def evict_range(self, start: int, stop: int) -> None:
        """Drop slots from `start` up to `stop`; what follows moves up.

        Args:
            start: first slot to drop.
            stop: first slot after these that stays.

        Raises:
            ValueError: the range lies outside a policy's cache.
        """
        self._select([evict_range(n, start, stop) for n in self.slots])

    def _select(self, kept: Sequence[list[int]]) -> None:
        for caches in self._caches:
            for cache, slots in zip(caches, kept, strict=True):
                cache.select(slots)

    def _step(self, tokens: Tensor) -> Tensor:
        rows = tokens.repeat(len(self.policies), 1)
        self._calls = 0
        before = reading.set(self)
        try:
            with torch.no_grad():
                # At position 0 nothing is turned: keys arrive as they are cached.
                logits = self._view(
                    rows, position_ids=torch.zeros_like(rows), use_cache=False
                ).logits
        finally:
            reading.reset(before)
        if self._calls != len(self._caches):
            raise refusal(self.model, "its attention code can't be entered")
        self.n_seen += tokens.shape[1]
        return logits.unflatten(0, (len(self.policies), -1))

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "row head new d_head"],
        k: Float[Tensor, "row kv_head new d_head"],
        v: Float[Tensor, "row kv_head new d_value"],
        scale: float,
        softcap: float | None,
        local: int | None,
    ) -> Float[Tensor, "row head new d_value"]:
        """One layer's attention, each policy over its own cache.

        Args:
            layer: which.
            q: queries of the new tokens, before rotation.
            k: their keys, before rotation.
            v: their values.
            scale: of the scores.
            softcap: of the scores; None: none.
            local: the layer's own window, in tokens; None: none.
        """
        self._calls += 1
        if local is not None:
            self._local = min(local, self._local or local)
        n = len(self.policies)
        parts = zip(
            self._caches[layer], q.chunk(n), k.chunk(n), v.chunk(n), strict=True
        )
        out = [
            cache.attend(q, k, v, self._rotation, scale, softcap)
            for cache, q, k, v in parts
        ]
        return out[0] if n == 1 else torch.cat(out)

    def _check_room(self, tokens: Tensor) -> None:
        local = self._limit
        for policy, n in zip(self.policies, self.slots, strict=True):
            after = n + tokens.shape[1]
            if policy.size is None and after > self._n_ctx:
                raise ValueError(
                    f"Stream: {policy} would hold {after} tokens, but "
                    f"{self.model.name} was made for {self._n_ctx}. Allowed: up to "
                    "there; beyond it use Window or SinkWindow."
                )
            seen = after if policy.size is None else policy.size + 1
            if local is not None and seen > local:
                raise ValueError(
                    f"Stream: {self.model.name} has layers with a window of {local} "
                    f"tokens of their own, and {policy} shows a query {seen} keys. "
                    f"Allowed: caches of at most {local - 1} slots."
                )

    @functools.cached_property
    def _limit(self) -> int | None:
        """The model's own window, found while proving that it is understood."""
        if isinstance(self, _Probe):
            return None
        plain: Any = getattr(self.model, "plain", None)
        if plain not in _proved:
            _proved[plain] = _prove(self.model)
        return _proved[plain]


# Models shown to be understood, with the narrowest window of their own.
_proved: WeakKeyDictionary[PlainModel, int | None] = WeakKeyDictionary()


class _Probe(Stream):
    """A stream that asks nothing of itself."""


def _prove(model: Model) -> int | None:
    """The model's narrowest own window, once a stream gave its own logits.

    Raises:
        ValueError: it did not.
    """
    plain: Any = model
    plain = plain.plain
    # Tokens that differ: among equal ones a lost causal mask would not show.
    tokens = torch.arange(12, device=plain.device)[None] * 7919 % plain.d_vocab
    first = _Probe(model, Dense())
    first.step(tokens[:, :2])
    tokens = tokens[:, : min(first._local or 12, 12)]
    stream = _Probe(model, Dense())
    pieces = [stream.step(piece)[0] for piece in tokens.split(4, dim=1)]
    with torch.no_grad():
        own = plain.model(tokens, use_cache=False).logits
    close = max(1e-3, 20 * torch.finfo(plain.dtype).eps)
    if not (torch.cat(pieces, dim=1) - own).abs().max() <= close * own.abs().max():
        raise refusal(model, "reading it so does not give its own logits")
    return first._local
