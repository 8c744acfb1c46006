"""Patterns of trained regression heads: what KQ and OV look like, in numbers.

Shares are of absolute values. KQ is read on the query's x alone, since its other
entries are 0. Every measure has a value at random weights to compare with.
Source: after He et al. 2025 (arXiv:2503.12734), which shows the matrices; the
numbers are ours.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from toy_tasks.regression.heads import RegressionHeads
from toy_tasks.regression.task import LinearRegression


@dataclass(frozen=True, eq=False)
class HeadPatterns:
    """One value a head, or a model where heads are compared; no unit.

    - `omega`: mean of KQ's x diagonal, signed.
    - `mu`: OV from a task's own y to its prediction, signed.
    - `weight`: |KQ| |OV| (Frobenius) of a head over the sum of all heads', its part
      in the prediction for small scores.
    - `kq_diagonal`: share of |KQ| on the diagonal of x; even 1 / d_in, 1: diagonal.
    - `kq_spread`: standard deviation of that diagonal over its mean's size; 0:
      homogeneous.
    - `kq_one_sign`: share of the diagonal that has the commoner sign; 1/2 to 1.
    - `ov_last`: share of |OV| that reads y entries; even tasks / d_in.
    - `ov_sum`: |sum over heads of mu| over the sum of |mu|; 0: zero-sum.
    - `omega_spread`: standard deviation of |omega| over heads over its mean,
      weighted by `weight`.
    - `omega_sum`: |sum over heads of omega| over the sum of |omega|, likewise
      weighted; 0: sign-symmetric.
    """

    omega: Float[Tensor, "seed head"]
    mu: Float[Tensor, "seed head task"]
    weight: Float[Tensor, "seed head"]
    kq_diagonal: Float[Tensor, "seed head"]
    kq_spread: Float[Tensor, "seed head"]
    kq_one_sign: Float[Tensor, "seed head"]
    ov_last: Float[Tensor, "seed head"]
    ov_sum: Float[Tensor, " seed"]
    omega_spread: Float[Tensor, " seed"]
    omega_sum: Float[Tensor, " seed"]

    def of_model(self) -> dict[str, Float[Tensor, " seed"]]:
        """One value a model: those of a head averaged with `weight`.

        A head that adds nothing to the prediction keeps the weights it began with.
        """
        per_head = ("kq_diagonal", "kq_spread", "kq_one_sign", "ov_last")
        mean = {n: (getattr(self, n) * self.weight).sum(1) for n in per_head}
        names = ("ov_sum", "omega_spread", "omega_sum")
        return {**mean, **{n: getattr(self, n) for n in names}}


def head_patterns(heads: RegressionHeads, d: int) -> HeadPatterns:
    """Measure heads that read columns [x; y] with `d` entries of x.

    Raises:
        ValueError: no entry is left for y.
    """
    kq, ov = heads.KQ.detach(), heads.OV.detach()
    if not 1 <= d < kq.shape[-1]:
        raise ValueError(
            f"head_patterns: d={d}, and the heads read {kq.shape[-1]} entries. "
            f"Allowed: 1 to {kq.shape[-1] - 1}, the number of x entries: task.d."
        )
    seen = kq[..., :d]
    diagonal = seen.diagonal(dim1=-2, dim2=-1)
    omega = diagonal.mean(-1)
    mu = _own(ov[..., d:, :])
    size = seen.norm(dim=(-2, -1)) * ov.norm(dim=(-2, -1))
    weight = size / size.sum(1, keepdim=True)
    positive = (diagonal > 0).to(kq.dtype).mean(-1)
    level = (weight * omega.abs()).sum(1, keepdim=True)
    variance = (weight * (omega.abs() - level).square()).sum(1)
    return HeadPatterns(
        omega=omega,
        mu=mu,
        weight=weight,
        kq_diagonal=diagonal.abs().sum(-1) / seen.abs().sum((-2, -1)),
        kq_spread=diagonal.std(-1, correction=0) / omega.abs(),
        kq_one_sign=torch.maximum(positive, 1 - positive),
        ov_last=ov[..., d:, :].abs().sum((-2, -1)) / ov.abs().sum((-2, -1)),
        ov_sum=(mu.sum(1).abs() / mu.abs().sum(1)).mean(-1),
        omega_spread=variance.sqrt() / level[:, 0],
        omega_sum=(weight * omega).sum(1).abs() / level[:, 0],
    )


def effective_step(
    heads: RegressionHeads, d: int
) -> Float[Tensor, "seed task source d d"]:
    """The step that heads which read y take together when scores are small.

    sum_h OV_h[y_source, task] KQ_h[x, x]^T: as A in x . A . mean_i((x_i - mean x)
    y_i). Diagonal blocks task = source are a task's own step; the others are what one
    task's y adds to another's prediction. Heads may instead be keyed by y and read
    x, as KQ[y, x] OV[x]: d + 1 of them make the same step, of which nothing is seen
    here.
    """
    kq, ov = heads.KQ.detach()[..., :d, :d], heads.OV.detach()[..., d:, :]
    return torch.einsum("shut,shkq->stuqk", ov, kq)


@dataclass(frozen=True, eq=False)
class TaskPatterns:
    """How heads divide several tasks among them; no unit.

    - `part`: |OV to a task's prediction| |KQ| of a head, over the sum over heads and
      tasks.
    - `one_task`: share of all parts that is in each head's larger task; even 1 /
      tasks, 1: every head serves one task.
    - `interference`: norm of the effective step outside a task's own y and own
      coordinates, over its norm inside; 0: the tasks do not disturb one another. It
      sees heads that read y alone, as `effective_step` does.
    """

    part: Float[Tensor, "seed head task"]
    one_task: Float[Tensor, " seed"]
    interference: Float[Tensor, " seed"]


def task_patterns(heads: RegressionHeads, task: LinearRegression) -> TaskPatterns:
    """Measure heads that were trained on several tasks."""
    reads = (task.prior > 0).to(heads.W_Q.dtype)
    size = heads.KQ.detach()[..., : task.d].norm(dim=(-2, -1))
    part = heads.OV.detach().norm(dim=-2) * size[..., None]
    part = part / part.sum((1, 2), keepdim=True)
    square = effective_step(heads, task.d).square()
    own = torch.einsum("sttde,td,te->st", square, reads, reads)
    outside = square.sum((2, 3, 4)) - own
    return TaskPatterns(
        part, part.amax(-1).sum(1), (outside.sum(1) / own.sum(1)).sqrt()
    )


def _own(ov: Float[Tensor, "seed head source task"]) -> Tensor:
    return ov.diagonal(dim1=-2, dim2=-1)
