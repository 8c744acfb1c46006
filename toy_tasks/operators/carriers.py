"""Carriers: which of the tokens a query may see.

Fixed masks are here; those that the content decides are in routed.py.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from toy_tasks.operators.parts import Heads, Parameters, Part, at_least_1, causal_mask

View = tuple[Tensor, Tensor | None]
"""A mask, Bool[#batch #head query key], and the share of the output it gives,
Float[batch #head query 1]; None for the only one."""


@dataclass(frozen=True)
class Carrier(Part):
    """Base of the carriers: itself and all tokens before."""

    def views(self, heads: Heads, scores: Tensor, parameters: Parameters) -> list[View]:
        """Masks whose results are mixed; most carriers have one."""
        n_heads, n = heads.q.shape[1], heads.n_pos
        return [(self.mask(n, n_heads, heads.q.device), None)]

    def mask(self, n_pos: int, n_heads: int, device: torch.device) -> Tensor:
        """Bool[1 #head query key], for carriers that need no content."""
        return causal_mask(n_pos, device)[None, None]


@dataclass(frozen=True)
class Full(Carrier):
    """Itself and all tokens before."""


@dataclass(frozen=True)
class Bidirectional(Carrier):
    """All tokens, later ones too."""

    @property
    def is_causal(self) -> bool:
        """It is not."""
        return False

    def mask(self, n_pos: int, n_heads: int, device: torch.device) -> Tensor:
        """Everything."""
        return torch.ones(1, 1, n_pos, n_pos, dtype=torch.bool, device=device)


@dataclass(frozen=True)
class Window(Carrier):
    """The last `window` tokens, itself among them, and the first `sinks`.

    Source: window attention, i - window < j <= i, of Gu et al. 2024
    (arXiv:2410.10781); with sinks, StreamingLLM (arXiv:2309.17453).
    """

    window: int = 16
    sinks: int = 0

    def __post_init__(self) -> None:
        at_least_1(self, window=self.window, sinks=self.sinks + 1)

    def mask(self, n_pos: int, n_heads: int, device: torch.device) -> Tensor:
        """The band and the first columns."""
        causal = causal_mask(n_pos, device)
        seen = causal & ~causal.tril(-self.window)
        seen[:, : self.sinks] = causal[:, : self.sinks]
        return seen[None, None]


@dataclass(frozen=True)
class Halo(Carrier):
    """Blocks of `block` tokens; a query sees its block and `halo` tokens around it.

    Source: HaloNets (arXiv:2103.12731), one-dimensional; later tokens are hidden, so
    that only the halo before a block counts.
    """

    block: int = 8
    halo: int = 4

    def __post_init__(self) -> None:
        at_least_1(self, block=self.block, halo=self.halo + 1)

    def mask(self, n_pos: int, n_heads: int, device: torch.device) -> Tensor:
        """Block by block."""
        at = torch.arange(n_pos, device=device)
        start = at // self.block * self.block
        seen = at[None] >= (start - self.halo)[:, None]
        return (seen & causal_mask(n_pos, device))[None, None]


@dataclass(frozen=True)
class Shards(Carrier):
    """Head h sees every `stride`-th token, those with j mod stride = h mod stride, and
    the last `local`. With at least `stride` heads their union is the full context.

    `local` is at least 1, so that each query sees itself and no row is empty.

    Source: heterogeneous context sharding, after S2-Attention (arXiv:2407.17678);
    the definition is ours.
    """

    stride: int = 2
    local: int = 1

    def __post_init__(self) -> None:
        at_least_1(self, stride=self.stride, local=self.local)

    def mask(self, n_pos: int, n_heads: int, device: torch.device) -> Tensor:
        """One mask per head."""
        causal = causal_mask(n_pos, device)
        near = causal & ~causal.tril(-self.local)
        head = torch.arange(n_heads, device=device) % self.stride
        key = torch.arange(n_pos, device=device) % self.stride
        return ((head[:, None, None] == key) & causal | near)[None]


@dataclass(frozen=True)
class ShiftedGroups(Carrier):
    """Groups of `group` tokens; in shifted heads the groups begin half a group later.

    `unshifted` is the share of heads, from the first, that are not shifted; every
    query also sees the first `sinks` tokens.

    Source: SinkLoRA (arXiv:2406.05678), after the shifted sparse attention of
    LongLoRA (arXiv:2309.12307). Shifted groups do not wrap around: that would mix
    the end of a prompt with its beginning.
    """

    group: int = 16
    sinks: int = 1
    unshifted: float = 0.5

    def __post_init__(self) -> None:
        at_least_1(self, group=self.group, sinks=self.sinks + 1)
        if not 0 <= self.unshifted <= 1:
            raise ValueError(
                f"ShiftedGroups: unshifted={self.unshifted}. Allowed: 0 (every head "
                "shifted) to 1 (none)."
            )

    def mask(self, n_pos: int, n_heads: int, device: torch.device) -> Tensor:
        """One mask per head."""
        at = torch.arange(n_pos, device=device)
        n_plain = round(self.unshifted * n_heads)
        shift = torch.zeros(n_heads, dtype=torch.long, device=device)
        shift[n_plain:] = self.group // 2
        member = (at[None] + shift[:, None]) // self.group
        seen = member[:, :, None] == member[:, None, :]
        seen[..., : self.sinks] = True
        return (seen & causal_mask(n_pos, device))[None]
