"""Normalisers that balance columns as well as rows.

A balanced row depends on all rows, so on later queries. `form` says what is done:
"prefix" balances every prefix by itself and keeps its last row, which is causal and
costs T times as much; "whole" balances the whole prompt, which is not causal.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from toy_tasks.operators.kernels import Kernel
from toy_tasks.operators.normalisers import (
    Normaliser,
    Pattern,
    Scored,
    must_be_exponential,
)
from toy_tasks.operators.parts import Parameters, at_least_1, exact

HIDDEN = -1e9  # score of a masked key, as in Sinkformer's code
ENTRIES = 4_000_000  # of scores that are balanced at once


class Balanced(Normaliser):
    """Base of the balanced normalisers, in one of several forms."""

    form: str

    @property
    def is_causal(self) -> bool:
        """Only prefix by prefix."""
        return self.form == "prefix"

    @property
    def reads_hidden(self) -> bool:
        """Earlier queries count, with the keys after them."""
        return self.form in ("prefix", "whole")

    def check(self, kernel: Kernel) -> None:
        """It takes scores."""
        must_be_exponential(self, kernel)


@dataclass(frozen=True)
class Sinkhorn(Balanced):
    """Attention balanced by `n_it` half-steps of Sinkhorn's algorithm.

    One half-step balances rows: softmax; the second columns, the third rows again;
    with an odd number rows sum to 1 exactly. Forms beside the two above: "masked",
    the source's with a causal mask (not causal: later queries move the columns, and
    as n_it grows the pattern drifts to the identity, the only triangular doubly
    stochastic matrix); "targets", masked, each column balanced to the sum that
    uniform causal attention gives it, c_j = sum_{i>=j} 1/(i+1) (ours: a control,
    since no column can then collect more than under uniform attention; not causal).

    Source: Sinkformer, Sander et al. 2022 (arXiv:2110.11773).
    """

    n_it: int = 5
    form: Literal["prefix", "whole", "masked", "targets"] = "prefix"

    def __post_init__(self) -> None:
        at_least_1(self, n_it=self.n_it)
        check_form(self, ("prefix", "whole", "masked", "targets"))

    @property
    def rows_sum_to_1(self) -> bool:
        """Where rows are balanced last."""
        return self.n_it % 2 == 1

    def pattern(self, given: Scored, parameters: Parameters) -> Pattern:
        """The balanced plan, times the number of keys."""
        if self.form == "prefix":
            return by_prefix(given.scores, self._plan)
        if self.form == "whole":
            return self._plan(given.scores)
        hidden = given.scores.masked_fill(~given.seen, HIDDEN)
        if self.form == "masked":
            return self._plan(hidden).masked_fill(~given.seen, 0)
        n = given.scores.shape[-1]
        rank = torch.arange(1, n + 1, device=given.scores.device, dtype=torch.float64)
        columns = (1 / rank).flip(0).cumsum(0).flip(0)
        return self._plan(hidden, columns.float()).masked_fill(~given.seen, 0)

    def _plan(self, scores: Tensor, columns: Tensor | None = None) -> Tensor:
        return sinkhorn(scores, self.n_it, columns)


def sinkhorn(scores: Tensor, n_it: int, columns: Tensor | None = None) -> Tensor:
    """Rows to sum 1 and columns to `columns` (1 each), alternately, rows first.

    Args:
        scores: [..., row, column]; -1e9 counts as hidden.
        n_it: half-steps.
        columns: target sums, [column].
    """
    z = exact(scores)
    u, v = z.new_zeros(z.shape[:-1]), z.new_zeros(*z.shape[:-2], z.shape[-1])
    target = 0 if columns is None else columns.to(z).log()
    for step in range(n_it):
        if step % 2 == 0:
            u = -torch.logsumexp(z + v[..., None, :], dim=-1)
        else:
            v = target - torch.logsumexp(z + u[..., None], dim=-2)
    return (z + u[..., None] + v[..., None, :]).exp().to(scores.dtype)


@dataclass(frozen=True)
class Unitary(Balanced):
    """|U|^2 of an orthogonal matrix made from the scores: doubly stochastic.

    "qr": U is the orthogonal factor of the scores' QR decomposition (columns signed
    so that R's diagonal is positive); "givens": U is the product of a rotation in
    the plane of every two tokens j < i, by the angle pi/2 * sigmoid(score of query i
    for key j), later queries last: the quantum circuit's classical counterpart.

    Forms: "prefix" (causal) and "whole".

    Source: after "Quantum Doubly Stochastic Transformers" (arXiv:2504.16275).
    """

    kind: Literal["qr", "givens"] = "qr"
    form: Literal["prefix", "whole"] = "prefix"

    def __post_init__(self) -> None:
        if self.kind not in ("qr", "givens"):
            raise ValueError(f"Unitary: kind={self.kind!r}. Allowed: 'qr', 'givens'.")
        check_form(self, ("prefix", "whole"))

    @property
    def rows_sum_to_1(self) -> bool:
        """They do."""
        return True

    def pattern(self, given: Scored, parameters: Parameters) -> Pattern:
        """Squared moduli; rows and columns sum to 1."""
        make = {"qr": squared_orthogonal, "givens": squared_rotations}[self.kind]
        if self.form == "whole":
            return make(given.scores)
        if self.kind == "givens":  # a later token turns earlier rows, its own last
            return squared_rotations(given.scores, every_prefix=True)
        return by_prefix(given.scores, make)


def squared_orthogonal(scores: Tensor) -> Tensor:
    """|Q|^2 of the QR decomposition of `scores`, [..., n, n].

    The identity is added to the scores, so that equal tokens leave them invertible.
    """
    z = exact(scores)
    q, _ = torch.linalg.qr(z + torch.eye(z.shape[-1], dtype=z.dtype, device=z.device))
    return q.square().to(scores.dtype)


def squared_rotations(scores: Tensor, every_prefix: bool = False) -> Tensor:
    """|U|^2 of the product of Givens rotations, [..., n, n].

    Args:
        scores: [..., n, n]; those of query i for keys j < i are used.
        every_prefix: row i of the result is the last row of the product for the
            first i + 1 tokens, instead of row i of the whole product.
    """
    z = exact(scores)
    n = z.shape[-1]
    angle = z.sigmoid() * (torch.pi / 2)
    sin, log_cos = angle.sin(), angle.cos().clamp(min=1e-12).log()
    u = z.new_ones(*z.shape[:-2], 1, 1)
    last = [F.pad(u[..., -1, :], (0, n - 1))]
    for i in range(1, n):
        s, c = sin[..., i, :i], log_cos[..., i, :i]
        # Row i as it is before it meets row j, after meeting those before: mixed of
        # row k by sin_k times the cosines between k and j, and of itself.
        total = F.pad(c.cumsum(-1), (1, 0))  # log of the cosines before j; j = 0 to i
        between = (total[..., :, None] - total[..., None, 1:]).tril(-1).exp()
        mixed = between.tril(-1) * s[..., None, :]  # [j, k], k < j
        before = F.pad(mixed @ u, (0, 1))
        before[..., -1] = total.exp()
        u = c.exp()[..., None] * F.pad(u, (0, 1)) - s[..., None] * before[..., :-1, :]
        u = torch.cat([u, before[..., -1:, :]], dim=-2)
        last.append(F.pad(before[..., -1, :], (0, n - i - 1)))
    if every_prefix:
        u = torch.stack(last, dim=-2)
    return u.square().to(scores.dtype)


def by_prefix(scores: Tensor, balance: Callable[[Tensor], Tensor]) -> Tensor:
    """Row i: the last row of what `balance` makes of the first i + 1 rows and columns.

    Prefixes are balanced one after another; where they are large, once more in the
    backward pass, so that memory does not grow with their number.
    """
    n_batch, n_heads, n, _ = scores.shape
    rows = []
    for end in range(1, n + 1):
        square = scores[..., :end, :end]

        def last(square: Tensor) -> Tensor:
            return balance(square)[..., -1, :]

        is_large = n_batch * n_heads * n**3 > ENTRIES and square.requires_grad
        row = (
            checkpoint(last, square, use_reentrant=False) if is_large else last(square)
        )
        assert isinstance(row, Tensor)
        rows.append(F.pad(row, (0, n - end)))
    return torch.stack(rows, dim=-2)


def check_form(part: Normaliser, allowed: tuple[str, ...]) -> None:
    """Refuse an unknown form.

    Raises:
        ValueError: naming those allowed.
    """
    form = getattr(part, "form", None)
    if form not in allowed:
        raise ValueError(
            f"{type(part).__name__}: form={form!r}. Allowed: "
            f"{', '.join(map(repr, allowed))}."
        )
