"""Kernels: how queries and keys become scores, and scores weights.

`Pointwise("linear")` and `Features("learned")` may be negative; all others are not.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from toy_tasks.operators.parts import Heads, Init, Parameters, Part, Sizes

Scores = Float[Tensor, "#batch head query key"]


@dataclass(frozen=True)
class Kernel(Part):
    """Base of the kernels: the scaled dot product, and its exponential.

    `is_exponential`: weights are exp(score), so that a softmax can take the scores.
    """

    is_exponential: ClassVar[bool] = True

    def scores(self, heads: Heads, k: Tensor, parameters: Parameters) -> Scores:
        """Scores of every query for the keys `k`, seen or not."""
        return heads.q @ k.transpose(2, 3) / math.sqrt(k.shape[3])

    def weights(self, scores: Scores) -> Scores:
        """What the normaliser divides."""
        return scores.exp()


@dataclass(frozen=True)
class Exponential(Kernel):
    """exp(q.k / sqrt(d_head)), softmax's kernel.

    `query_token` adds a learned vector per head to every query (zero at first), the
    learnable query embedding of TransNeXt (arXiv:2311.17132).
    """

    query_token: bool = False

    def parameters(self, sizes: Sizes) -> dict[str, Init]:
        """The query token, [head, 1, d_head]."""
        shape = (sizes.n_heads, 1, sizes.d_head)
        return {"query": Init(shape, 0.0)} if self.query_token else {}

    def scores(self, heads: Heads, k: Tensor, parameters: Parameters) -> Scores:
        """Scaled dot products."""
        if self.query_token:
            heads = replace(heads, q=heads.q + parameters["query"])
        return super().scores(heads, k, parameters)


@dataclass(frozen=True)
class Pointwise(Kernel):
    """A function of the scaled dot product s, other than its exponential.

    "sigmoid": sigmoid(s); "elu": elu(s) + 1; "relu": relu(s); "linear": s itself,
    which may be negative.

    Source: Gu et al. 2024 (arXiv:2410.10781); ReLU, Guo et al. 2024
    (arXiv:2410.13835).
    """

    is_exponential: ClassVar[bool] = False
    function: Literal["sigmoid", "elu", "relu", "linear"] = "sigmoid"

    def __post_init__(self) -> None:
        if self.function not in _FUNCTIONS:
            raise ValueError(
                f"Pointwise: function={self.function!r}. Allowed: "
                f"{', '.join(map(repr, _FUNCTIONS))}."
            )

    def weights(self, scores: Scores) -> Scores:
        """The function of each score."""
        return _FUNCTIONS[self.function](scores)


_FUNCTIONS = {
    "sigmoid": torch.sigmoid,
    "elu": lambda s: F.elu(s) + 1,
    "relu": torch.relu,
    "linear": lambda s: s,
}


@dataclass(frozen=True)
class Features(Kernel):
    """phi(q).phi(k), the kernel of linear attention.

    "elu": phi = elu + 1, scaled by 1/sqrt(d_head); "sigmoid": phi = sigmoid, not
    scaled (Flowformer); "learned": phi(x) = W2 relu(W1 x), one pair of matrices for
    queries, keys and all heads, scaled; it may be negative.

    Source: Gu et al. 2024 (arXiv:2410.10781); Wu et al. 2022 (arXiv:2202.06258).
    """

    is_exponential: ClassVar[bool] = False
    phi: Literal["elu", "sigmoid", "learned"] = "elu"

    def __post_init__(self) -> None:
        if self.phi not in ("elu", "sigmoid", "learned"):
            raise ValueError(
                f"Features: phi={self.phi!r}. Allowed: 'elu', 'sigmoid', 'learned'."
            )

    def parameters(self, sizes: Sizes) -> dict[str, Init]:
        """W1 and W2, [d_head, d_head], where they are learned."""
        shape = (sizes.d_head, sizes.d_head)
        return {"W1": Init(shape), "W2": Init(shape)} if self.phi == "learned" else {}

    def scores(self, heads: Heads, k: Tensor, parameters: Parameters) -> Scores:
        """Products of features; they are the weights themselves."""
        q, k = (self.features(t, parameters) for t in (heads.q, k))
        scale = 1 if self.phi == "sigmoid" else math.sqrt(k.shape[3])
        return q @ k.transpose(2, 3) / scale

    def weights(self, scores: Scores) -> Scores:
        """The scores."""
        return scores

    def features(self, x: Tensor, parameters: Parameters) -> Tensor:
        """phi of queries or keys."""
        if self.phi == "elu":
            return F.elu(x) + 1
        if self.phi == "sigmoid":
            return x.sigmoid()
        return (x @ parameters["W1"]).relu() @ parameters["W2"]


@dataclass(frozen=True)
class Static(Kernel):
    """Scores that no token's content decides.

    "uniform": all equal, so that softmax gives the running mean; "learned": a table
    [query, key] per head; "random": such a table drawn once and never trained;
    "position": learned queries and keys of the positions.

    Source: after "Deconstructing Attention" (systems.md row 14), our definitions.
    """

    takes_slots: ClassVar[bool] = False
    kind: Literal["uniform", "learned", "random", "position"] = "uniform"

    def __post_init__(self) -> None:
        if self.kind not in ("uniform", "learned", "random", "position"):
            raise ValueError(
                f"Static: kind={self.kind!r}. Allowed: 'uniform', 'learned', 'random', "
                "'position'."
            )

    def parameters(self, sizes: Sizes) -> dict[str, Init]:
        """`table` [head, n_ctx, n_ctx], or `q` and `k` [head, n_ctx, d_head]."""
        table = (sizes.n_heads, sizes.n_ctx, sizes.n_ctx)
        per_position = (sizes.n_heads, sizes.n_ctx, sizes.d_head)
        return {
            "uniform": {},
            "learned": {"table": Init(table, 0.02)},
            "random": {"table": Init(table, 1.0, is_trained=False)},
            "position": {"q": Init(per_position, 1.0), "k": Init(per_position, 1.0)},
        }[self.kind]

    def scores(self, heads: Heads, k: Tensor, parameters: Parameters) -> Scores:
        """The same for every prompt; `k` gives the length alone."""
        n_batch, n_heads, n, d_head = heads.q.shape
        if self.kind == "uniform":
            scores = heads.q.new_zeros(n_heads, n, n)
        elif self.kind == "position":
            q, at = parameters["q"][:, :n], parameters["k"][:, :n]
            scores = q @ at.transpose(1, 2) / math.sqrt(d_head)
        else:
            scores = parameters["table"][:, :n, :n]
        return scores.to(heads.q.dtype).expand(n_batch, -1, -1, -1)
