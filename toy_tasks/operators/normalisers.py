"""Normalisers: what the weights of a query are divided by.

Balanced ones (Sinkhorn, unitary) are in balanced.py, Flowformer's in flow.py.
"""

import abc
import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from toy_tasks.operators.kernels import Kernel
from toy_tasks.operators.parts import Heads, Init, Parameters, Part, Sizes, exact

Pattern = Float[Tensor, "batch head query key"]
Seen = Bool[Tensor, "#batch #head query key"]

TINY = 1e-8
"""Added to a sum of weights before dividing, as in Gu et al.'s code."""


@dataclass(frozen=True, eq=False)
class Scored:
    """What a normaliser is given: scores, which of them are seen, and their kernel."""

    scores: Pattern
    seen: Seen
    kernel: Kernel
    heads: Heads

    def weights(self) -> Pattern:
        """The kernel's weights, 0 where a key is not seen."""
        # Hidden scores are -inf: no kernel may see them, or its gradient is NaN.
        shown = self.scores.masked_fill(~self.seen, 0)
        return self.kernel.weights(shown).masked_fill(~self.seen, 0)


@dataclass(frozen=True)
class Normaliser(Part, abc.ABC):
    """Base of the normalisers."""

    @property
    def rows_sum_to_1(self) -> bool:
        """Whether the weights of a query sum to 1, given a positive kernel."""
        return False

    @property
    def reads_hidden(self) -> bool:
        """Whether it reads scores of keys that the query does not see."""
        return False

    @abc.abstractmethod
    def pattern(self, given: Scored, parameters: Parameters) -> Pattern:
        """Attention from scores; 0 where a key is not seen."""

    def check(self, kernel: Kernel) -> None:
        """Refuse a kernel that does not fit.

        Raises:
            ValueError: saying which fit.
        """


@dataclass(frozen=True)
class Sum(Normaliser):
    """Weights over their sum: softmax, with the exponential kernel."""

    @property
    def rows_sum_to_1(self) -> bool:
        """They do."""
        return True

    def pattern(self, given: Scored, parameters: Parameters) -> Pattern:
        """Rows sum to 1 (but for `TINY`, where the kernel is no exponential)."""
        if given.kernel.is_exponential:
            return softmax(given.scores, given.seen)
        weights = given.weights()
        return weights / (weights.sum(-1, keepdim=True) + TINY)


@dataclass(frozen=True)
class Unnormalised(Normaliser):
    """Weights as they are, divided by 1; with `by_rank` by the number of keys up to
    the query, i + 1, as in the ReLU attention of Guo et al. 2024 (arXiv:2410.13835).
    """

    by_rank: bool = False

    def pattern(self, given: Scored, parameters: Parameters) -> Pattern:
        """The weights of the keys that are seen."""
        weights = given.weights()
        if not self.by_rank:
            return weights
        rank = torch.arange(1, given.scores.shape[2] + 1, device=given.scores.device)
        return weights / rank[:, None].to(weights.dtype)

    def check(self, kernel: Kernel) -> None:
        """An exponential without a sum overflows."""
        if kernel.is_exponential:
            raise ValueError(
                f"Operator: {kernel} weighs by an exponential, which overflows where "
                "nothing divides it. Use Sum(), or another kernel such as "
                "Pointwise('sigmoid')."
            )


@dataclass(frozen=True)
class ClampedSum(Normaliser):
    """Weights over max(|their sum|, 1), for kernels that may be negative.

    Source: Gu et al. 2024 (arXiv:2410.10781).
    """

    def pattern(self, given: Scored, parameters: Parameters) -> Pattern:
        """Rows whose weights sum to less than 1 keep them."""
        weights = given.weights()
        return weights / weights.sum(-1, keepdim=True).abs().clamp(min=1)

    def check(self, kernel: Kernel) -> None:
        """An exponential overflows before it is divided."""
        Unnormalised().check(kernel)


@dataclass(frozen=True)
class SinkLogit(Normaliser):
    """Softmax with one more term in the denominator: exp(t), t per head.

    Learned from 0 on, or fixed at 0: softmax-1, exp / (1 + sum exp).

    Source: "zero sink" of StreamingLLM (arXiv:2309.17453); the learned logit is the
    "attention-sink baseline" as we define it for Affine-Scaled Attention
    (arXiv:2602.23057).
    """

    learned: bool = True

    def parameters(self, sizes: Sizes) -> dict[str, Init]:
        """t, [head]."""
        return {"t": Init((sizes.n_heads,), 0.0)} if self.learned else {}

    def pattern(self, given: Scored, parameters: Parameters) -> Pattern:
        """Rows sum to less than 1; the rest goes nowhere."""
        extra = given.scores.new_zeros(1, given.scores.shape[1], 1, 1)
        if self.learned:
            extra = extra + parameters["t"][:, None, None]
        extra = extra.expand(given.scores.shape[0], -1, given.scores.shape[2], 1)
        hidden = given.scores.masked_fill(~given.seen, -torch.inf)
        weights = exact(torch.cat([extra, hidden], dim=-1)).softmax(-1)
        return weights.to(hidden.dtype)[..., 1:]

    def check(self, kernel: Kernel) -> None:
        """Only for softmax's kernel."""
        must_be_exponential(self, kernel)


def softmax(scores: Tensor, seen: Seen) -> Pattern:
    """Softmax over the keys that are seen; zeros in a row that sees none."""
    hidden = scores.masked_fill(~seen, -torch.inf)
    if bool(seen.any(-1).all()):
        return hidden.softmax(-1)
    # A finite floor: a row of nothing but -inf has no softmax, nor a gradient.
    floor = hidden.masked_fill(~seen, -math.sqrt(torch.finfo(scores.dtype).max))
    return floor.softmax(-1).masked_fill(~seen, 0)


def must_be_exponential(normaliser: Normaliser, kernel: Kernel) -> None:
    """Refuse kernels whose weights are not exp(score).

    Raises:
        ValueError: naming the two.
    """
    if not kernel.is_exponential:
        raise ValueError(
            f"Operator: {type(normaliser).__name__} takes scores, so it needs an "
            f"exponential kernel (Exponential or Static), not {kernel}."
        )
