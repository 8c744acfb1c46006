"""Gates: what scales queries, keys, values, weights or outputs of a head.

Routed heads are in routed_heads.py.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from toy_tasks.operators.parts import Heads, Init, Parameters, Part, Sizes


@dataclass(frozen=True)
class Gate(Part):
    """Base of the gates: changes nothing anywhere."""

    @property
    def has_loss(self) -> bool:
        """Whether it adds a term to the training loss."""
        return False

    def before(self, heads: Heads, parameters: Parameters) -> Heads:
        """Queries, keys and values, gated."""
        return heads

    def weigh(
        self, pattern: Tensor, seen: Tensor, x: Tensor, parameters: Parameters
    ) -> Tensor:
        """The pattern, gated."""
        return pattern

    def after(self, z: Tensor, x: Tensor, parameters: Parameters) -> Tensor:
        """Head outputs before W_O, gated: Float[batch pos head d_head]."""
        return z

    def output(self, out: Tensor, x: Tensor, parameters: Parameters) -> Tensor:
        """What attention writes, gated: Float[batch pos d_model]."""
        return out

    def loss(self, x: Tensor, parameters: Parameters) -> Tensor:
        """The term, a scalar with its weight."""
        return x.new_zeros(())


@dataclass(frozen=True)
class Open(Gate):
    """No gate."""


@dataclass(frozen=True)
class SigmoidGate(Gate):
    """sigmoid(x W), from the normed residual x, times the tensor at one place.

    Places: "z" (head output before W_O, G1 of the paper and its winner), "v" (G2),
    "k" (G3), "q" (G4), "out" (after W_O, G5). `per` "element" has a gate for every
    entry, "head" one for a head (not at "out"). With grouped keys "k" and "v" are
    gated per query head. W begins as a linear layer does, so gates begin near 1/2.

    Source: Gated Attention (arXiv:2505.06708).
    """

    place: Literal["z", "v", "k", "q", "out"] = "z"
    per: Literal["element", "head"] = "element"

    def __post_init__(self) -> None:
        if self.place not in ("z", "v", "k", "q", "out"):
            raise ValueError(
                f"SigmoidGate: place={self.place!r}. Allowed: 'z', 'v', 'k', 'q', "
                "'out'."
            )
        if self.per not in ("element", "head") or (
            self.per == "head" and self.place == "out"
        ):
            raise ValueError(
                f"SigmoidGate: per={self.per!r} at {self.place!r}. Allowed: 'element', "
                "and 'head' at all places but 'out', where heads are already summed."
            )

    @property
    def reads_x(self) -> bool:
        """It does."""
        return True

    def parameters(self, sizes: Sizes) -> dict[str, Init]:
        """W, [head, d_model, d_head or 1]; at "out" [1, d_model, d_model]."""
        if self.place == "out":
            return {"W": Init((1, sizes.d_model, sizes.d_model))}
        width = sizes.d_head if self.per == "element" else 1
        return {"W": Init((sizes.n_heads, sizes.d_model, width))}

    def before(self, heads: Heads, parameters: Parameters) -> Heads:
        """Gates q, k or v."""
        if self.place in ("z", "out"):
            return heads
        gated = getattr(heads, self.place) * self.gates(heads.x, parameters)
        parts = {"q": heads.q, "k": heads.k, "v": heads.v, self.place: gated}
        return Heads(heads.x, **parts)

    def after(self, z: Tensor, x: Tensor, parameters: Parameters) -> Tensor:
        """Gates head outputs."""
        if self.place != "z":
            return z
        return z * self.gates(x, parameters).transpose(1, 2)

    def output(self, out: Tensor, x: Tensor, parameters: Parameters) -> Tensor:
        """Gates their sum."""
        return out * self.gates(x, parameters)[:, 0] if self.place == "out" else out

    def gates(self, x: Tensor, parameters: Parameters) -> Tensor:
        """Float[batch head pos d_head], 0 to 1; a last axis of 1 where per head."""
        return (x[:, None] @ parameters["W"]).sigmoid()


@dataclass(frozen=True)
class Affine(Gate):
    """W_ij = s_i A_ij + b_i / n_i over the n_i keys that are seen.

    s_i = 2 sigmoid(x_i . w + c), b_i = tanh(x_i . u + e) per head, all zero at first,
    so that it begins as its base. Rows sum to s_i + b_i where those of A sum to 1;
    weights may become negative. `scale` and `shift` turn one of the two off.

    Source: definition ours, after Affine-Scaled Attention (arXiv:2602.23057).
    """

    scale: bool = True
    shift: bool = True

    @property
    def reads_x(self) -> bool:
        """It does."""
        return True

    def parameters(self, sizes: Sizes) -> dict[str, Init]:
        """w, c and u, e, as far as they are used."""
        names = ("w", "c") * self.scale + ("u", "e") * self.shift
        rows = {"w": sizes.d_model, "u": sizes.d_model, "c": 1, "e": 1}
        return {name: Init((sizes.n_heads, rows[name], 1), 0.0) for name in names}

    def weigh(
        self, pattern: Tensor, seen: Tensor, x: Tensor, parameters: Parameters
    ) -> Tensor:
        """Scaled and shifted weights."""
        rows = x[:, None]
        if self.scale:
            s = (rows @ parameters["w"] + parameters["c"]).sigmoid()
            pattern = 2 * s * pattern
        if self.shift:
            b = (rows @ parameters["u"] + parameters["e"]).tanh()
            even = seen.to(pattern.dtype)
            even = even / even.sum(-1, keepdim=True).clamp(min=1)
            pattern = pattern + b * even
        return pattern


@dataclass(frozen=True)
class ValueBias(Gate):
    """A learned vector added to every head output, N(0, .02) at first.

    Source: V bias of Gu et al. 2024 (arXiv:2410.10781).
    """

    def parameters(self, sizes: Sizes) -> dict[str, Init]:
        """v, [head, d_head]."""
        return {"v": Init((sizes.n_heads, sizes.d_head), 0.02)}

    def after(self, z: Tensor, x: Tensor, parameters: Parameters) -> Tensor:
        """z + v."""
        return z + parameters["v"]
