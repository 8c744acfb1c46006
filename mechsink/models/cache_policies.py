"""Which keys a streaming cache keeps: slot arithmetic, without any tensors of a model.

A slot is a place in the cache, counted from its start; slot order is token order.
Eviction happens after a forward pass, so that a query attends to what the cache held
and to itself: at most `size` + 1 keys.

Source: StreamingLLM (Xiao et al. 2023, arXiv:2309.17453); H2O (Zhang et al. 2023,
arXiv:2306.14048) for `HeavyHitters`.
May import: nothing of mechsink.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Policy:
    """A rule of eviction; subclasses say `size`, `sinks` and `keep`."""

    reads_attention: ClassVar[bool] = False

    @property
    def size(self) -> int | None:
        """Most slots held between two forward passes; None: no limit."""
        raise NotImplementedError

    @property
    def n_sinks(self) -> int:
        """Slots at the start that are never dropped."""
        return 0

    def keep(self, n: int) -> list[int]:
        """Slots, of `n`, that stay after a forward pass.

        The same whether it is asked after every token or once after several.
        """
        if self.size is None or n <= self.size:
            return list(range(n))
        recent = self.size - self.n_sinks
        return [*range(self.n_sinks), *range(n - recent, n)]

    def evict_for_space(self, n: int, coming: int) -> list[int]:
        """Slots, of `n`, that stay so that `coming` more fill the cache just up.

        Raises:
            ValueError: more are coming than the recent slots can hold.
        """
        if self.size is None or n + coming <= self.size:
            return list(range(n))
        recent = self.size - self.n_sinks
        if not 0 <= coming <= recent:
            raise ValueError(
                f"evict_for_space: coming={coming} with {self}. Allowed: 0 to "
                f"{recent}, the slots that are not sinks; feed the text in pieces."
            )
        stop = min(self.n_sinks, n)
        return [*range(stop), *range(max(stop, n - recent + coming), n)]


def evict_range(n: int, start: int, stop: int) -> list[int]:
    """Slots, of `n`, that stay when those from `start` up to `stop` are dropped.

    Raises:
        ValueError: the range lies outside the cache or runs backwards.
    """
    if not 0 <= start <= stop <= n:
        raise ValueError(
            f"evict_range: start={start}, stop={stop} of {n} slots. Allowed: "
            f"0 <= start <= stop <= {n}; stop itself is kept."
        )
    return [*range(start), *range(stop, n)]


@dataclass(frozen=True)
class Dense(Policy):
    """Everything is kept: plain attention, up to the model's own context.

    Examples:
        >>> ms.Dense().keep(5)
        [0, 1, 2, 3, 4]
    """

    @property
    def size(self) -> None:
        """No limit."""
        return None


@dataclass(frozen=True)
class SinkWindow(Policy):
    """The first `sinks` slots and the last `window`.

    Args:
        sinks: tokens at the start that stay.
        window: last tokens that stay.

    Raises:
        ValueError: a number out of range.

    Source: StreamingLLM (arXiv:2309.17453).

    Examples:
        >>> ms.SinkWindow(sinks=2, window=3).keep(8)
        [0, 1, 5, 6, 7]
    """

    sinks: int = 4
    window: int = 124

    def __post_init__(self) -> None:
        _at_least(self, sinks=(self.sinks, 0), window=(self.window, 1))

    @property
    def size(self) -> int:
        """Sinks and window."""
        return self.sinks + self.window

    @property
    def n_sinks(self) -> int:
        """The first slots."""
        return self.sinks


@dataclass(frozen=True)
class Window(Policy):
    """The last `window` slots alone.

    Args:
        window: last tokens that stay.

    Raises:
        ValueError: a window under 1.

    Source: window attention, the baseline of StreamingLLM (arXiv:2309.17453).

    Examples:
        >>> ms.Window(window=3).keep(8)
        [5, 6, 7]
    """

    window: int = 128

    def __post_init__(self) -> None:
        _at_least(self, window=(self.window, 1))

    @property
    def size(self) -> int:
        """The window."""
        return self.window


@dataclass(frozen=True)
class HeavyHitters(Policy):
    """The last `recent` slots, the `heavy` that gathered most attention, and sinks.

    After each query the attention it paid is added to the accounts of the keys in the
    cache, and what is neither recent, heavy nor among the first `sinks` is dropped for
    good. Each key-value head keeps its own; its account is the sum over the query
    heads that share it, which for multi-head attention is the published rule and the
    one of `toy_tasks.operators`.

    Args:
        recent: last tokens that stay.
        heavy: tokens that stay for the attention they gathered.
        sinks: tokens at the start that stay.

    Raises:
        ValueError: a number out of range.

    Source: H2O (arXiv:2306.14048); in-cache positions as in StreamingLLM.

    Examples:
        >>> policy = ms.HeavyHitters(recent=2, heavy=1)
        >>> policy.keep_heaviest(torch.tensor([[0.9, 0.1, 0.5, 0.2, 0.3]])).tolist()
        [[0, 3, 4]]
    """

    recent: int = 64
    heavy: int = 64
    sinks: int = 0

    reads_attention: ClassVar[bool] = True

    def __post_init__(self) -> None:
        at_least = {"recent": (self.recent, 1), "heavy": (self.heavy, 0)}
        _at_least(self, **at_least, sinks=(self.sinks, 0))

    @property
    def size(self) -> int:
        """Recent, heavy and sinks."""
        return self.recent + self.heavy + self.sinks

    @property
    def n_sinks(self) -> int:
        """The first slots."""
        return self.sinks

    def keep(self, n: int) -> list[int]:
        """All slots while they fit; beyond, `keep_heaviest` decides.

        Args:
            n: slots there are.

        Raises:
            ValueError: more than fit: attention decides there.
        """
        if n > self.size:
            raise ValueError(
                f"HeavyHitters.keep: {n} slots in a cache of {self.size}: which stay "
                "depends on their attention. Use keep_heaviest(account)."
            )
        return list(range(n))

    def keep_heaviest(
        self, account: Float[Tensor, "*heads slot"]
    ) -> Int[Tensor, "*heads kept"]:
        """Slots that stay, in order, for each head.

        Args:
            account: attention that each slot gathered, summed over queries.

        Returns:
            Numbers of slots, ascending.
        """
        n = account.shape[-1]
        if n <= self.size:
            return torch.arange(n, device=account.device).expand(account.shape)
        ranked = account.clone()
        ranked[..., : self.sinks] = torch.inf
        old = ranked[..., : n - self.recent]
        best = old.topk(self.sinks + self.heavy, dim=-1).indices.sort(dim=-1).values
        recent = torch.arange(n - self.recent, n, device=account.device)
        return torch.cat([best, recent.expand(*best.shape[:-1], -1)], dim=-1)

    def evict_for_space(self, n: int, coming: int) -> list[int]:
        """Only where nothing need go: tokens come one by one here.

        Args:
            n: slots there are.
            coming: tokens that are to come.

        Raises:
            ValueError: something would have to go.
        """
        if n + coming > self.size:
            raise ValueError(
                f"evict_for_space: coming={coming} to {n} slots with {self}. Heavy "
                "hitters are chosen after each query: just step through the tokens."
            )
        return list(range(n))


def _at_least(policy: Policy, **given: tuple[int, int]) -> None:
    for name, (value, least) in given.items():
        if value < least:
            raise ValueError(
                f"{type(policy).__name__}: {name}={value}. Allowed: {least} or more "
                "slots."
            )
