"""What the five parts of an operator share: sizes, parameters, what a head sees."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from toy_tasks.jsonable import checked_fields, json_fields

Parameters = Mapping[str, Tensor]


@dataclass(frozen=True)
class Sizes:
    """Sizes of one attention layer."""

    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    n_ctx: int


class Init(NamedTuple):
    """Shape of a parameter and how its values begin.

    `std`: of a normal law; 0 for zeros; None for uniform within 1/sqrt(inputs), the
    inputs being the last axis but one, as torch begins a linear layer.
    """

    shape: tuple[int, ...]
    std: float | None = None
    is_trained: bool = True


@dataclass(frozen=True, eq=False)
class Heads:
    """What the heads of one layer have to work with, at every position.

    Keys and values are repeated so that each query head has its own.
    """

    x: Float[Tensor, "batch pos d_model"]  # normed residual
    q: Float[Tensor, "batch head pos d_head"]
    k: Float[Tensor, "batch head pos d_head"]
    v: Float[Tensor, "batch head pos d_head"]

    @property
    def n_pos(self) -> int:
        """Length of the prompt."""
        return self.x.shape[1]


@dataclass(frozen=True)
class Part:
    """A part of an operator: settings alone, its parameters live in the layer.

    `takes_slots`: whether keys that are no tokens (memory slots) may stand beside.
    """

    takes_slots: ClassVar[bool] = True

    @property
    def is_causal(self) -> bool:
        """Whether an output never depends on later tokens."""
        return True

    @property
    def reads_x(self) -> bool:
        """Whether it reads the residual itself, beside queries, keys and values."""
        return False

    def parameters(self, sizes: Sizes) -> dict[str, Init]:
        """Parameters it needs, by name; none unless it says so."""
        return {}

    def to_json(self) -> dict[str, Any]:
        """Its name and settings."""
        return {"part": type(self).__name__, **json_fields(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Part":
        """The subclass of that name, with its settings.

        Raises:
            ValueError: no part of this kind has the name, or a setting is unknown.
        """
        known = {kind.__name__: kind for kind in _leaves(cls)}
        settings = dict(data)
        name = settings.pop("part", None)
        if name not in known:
            raise ValueError(
                f"Operator: {name!r} is no {cls.__name__.lower()}. Allowed: "
                f"{', '.join(sorted(known))}."
            )
        return known[name](**checked_fields(known[name], settings))


def _leaves(kind: type[Part]) -> list[type[Part]]:
    """The parts of a kind; those between are bases."""
    below = [leaf for sub in kind.__subclasses__() for leaf in _leaves(sub)]
    return below or [kind]


def causal_mask(n_pos: int, device: torch.device) -> Tensor:
    """Bool[query key]: keys at or before the query."""
    return torch.ones(n_pos, n_pos, dtype=torch.bool, device=device).tril()


def at_least_1(part: Any, **values: int) -> None:
    """Refuse settings below 1.

    Raises:
        ValueError: naming the setting.
    """
    for name, value in values.items():
        if value < 1:
            raise ValueError(
                f"{type(part).__name__}: {name}={value}. It must be at least 1."
            )


def exact(x: Tensor) -> Tensor:
    """At least float32: sums over keys in half precision would lose what they add."""
    return x if x.dtype == torch.float64 else x.float()
