"""The smallest model that learns regression in context: one layer of heads, no more.

Several seeds live in one module, along a leading axis, and train in one pass.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

Kind = Literal["softmax", "linear", "linear-mean"]


class RegressionHeads(nn.Module):
    """One layer of heads that reads examples.

    sum_h OV_h sum_i a_hi z_i, a_h the weights of scores z_i . KQ_h . z.

    The query z reads the examples z_i, not itself. `kind`: a softmax of the scores;
    "linear", the scores over `n_examples`, a constant that keeps the scale of the
    trained length at every other; "linear-mean", the scores over the number of
    examples that there are.

    Initial weights are torch's defaults for linear layers, drawn from each seed
    alone.

    Args:
        d_in: entries of an input column.
        n_heads: heads.
        n_out: predictions, one a task.
        seeds: one model each.
        kind: "softmax", "linear" or "linear-mean".
        n_examples: the constant of "linear".

    Raises:
        ValueError: no seeds, a size under 1 or an unknown kind.

    Source: He et al. 2025 (arXiv:2503.12734): the architecture, with scores over
    sqrt(d_in) and d_head = d_in.

    Examples:
        >>> from toy_tasks import LinearRegression, RegressionHeads
        >>> task = LinearRegression(d=3)
        >>> heads = RegressionHeads(task.d_in, n_heads=2, seeds=[0, 1])
        >>> prompts = task.sample(batch=4, n_examples=10, seed=0)
        >>> tuple(heads(prompts.inputs[None], prompts.query[None]).shape)
        (2, 4, 1)
    """

    def __init__(
        self,
        d_in: int,
        n_heads: int,
        n_out: int = 1,
        *,
        seeds: Sequence[int] = (0,),
        kind: Kind | str = "softmax",
        n_examples: int = 40,
    ) -> None:
        super().__init__()
        if not seeds or min(d_in, n_heads, n_out, n_examples) < 1:
            raise ValueError(
                f"RegressionHeads: d_in={d_in}, n_heads={n_heads}, n_out={n_out}, "
                f"n_examples={n_examples}, seeds={list(seeds)}. Allowed: sizes of at "
                "least 1, and at least one seed."
            )
        if kind not in get_args(Kind):
            raise ValueError(
                f"RegressionHeads: kind={kind!r}. Allowed: "
                f"{', '.join(map(repr, get_args(Kind)))}."
            )
        self.seeds, self.kind, self.n_examples = tuple(seeds), kind, n_examples
        square = (len(self.seeds), n_heads, d_in, d_in)
        self.W_Q = nn.Parameter(torch.empty(square))
        self.W_K = nn.Parameter(torch.empty(square))
        self.W_V = nn.Parameter(torch.empty(square))
        self.W_O = nn.Parameter(torch.empty(*square[:3], n_out))
        with torch.no_grad():
            for number, seed in enumerate(self.seeds):
                generator = torch.Generator().manual_seed(seed)
                for name, weight in self.named_parameters():
                    fan_in = d_in * n_heads if name == "W_O" else d_in
                    bound = 1 / math.sqrt(fan_in)
                    weight[number].uniform_(-bound, bound, generator=generator)

    @classmethod
    def planted(
        cls,
        kq: Float[Tensor, "head key query"],
        ov: Float[Tensor, "head input task"],
        kind: Kind | str = "softmax",
        n_examples: int = 40,
    ) -> "RegressionHeads":
        """One model with these KQ and OV.

        Args:
            kq: scores' matrices.
            ov: outputs' matrices.
            kind: "softmax", "linear" or "linear-mean".
            n_examples: the constant of "linear".
        """
        n_heads, d_in, n_out = ov.shape
        model = cls(d_in, n_heads, n_out, kind=kind, n_examples=n_examples)
        model = model.to(kq.dtype)
        eye = torch.eye(d_in, dtype=kq.dtype)
        with torch.no_grad():
            model.W_K.copy_(kq[None] * math.sqrt(d_in))
            model.W_Q.copy_(eye.expand_as(model.W_Q))
            model.W_V.copy_(eye.expand_as(model.W_V))
            model.W_O.copy_(ov[None])
        return model

    @property
    def KQ(self) -> Float[Tensor, "seed head key query"]:
        """What a score is made of, 1/sqrt(d_in) included.

        The query's last entries are always 0, so the last columns do nothing.
        """
        return self.W_K @ self.W_Q.transpose(-1, -2) / math.sqrt(self.W_Q.shape[-1])

    @property
    def OV(self) -> Float[Tensor, "seed head input task"]:
        """What an entry of a read column adds to each prediction."""
        return self.W_V @ self.W_O

    def forward(
        self,
        inputs: Float[Tensor, "#seed batch example d_in"],
        query: Float[Tensor, "#seed batch d_in"],
    ) -> Float[Tensor, "seed batch task"]:
        """Predictions; inputs with a leading axis of 1 are shared by all seeds.

        Args:
            inputs: the examples, [x; y] each.
            query: [x; 0].
        """
        keys = torch.einsum(
            "shkq,sbq->sbhk", self.KQ, query.expand(len(self.seeds), -1, -1)
        )
        scores = keys @ inputs.transpose(-1, -2)
        if self.kind == "softmax":
            weights = scores.softmax(-1)
        elif self.kind == "linear":
            weights = scores / self.n_examples
        else:
            weights = scores / scores.shape[-1]
        return torch.einsum("sbhk,shkt->sbt", weights @ inputs, self.OV)
