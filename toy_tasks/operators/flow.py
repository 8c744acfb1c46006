"""Flow attention: weights conserved as flows between sources and sinks."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from toy_tasks.operators.kernels import Features, Kernel
from toy_tasks.operators.normalisers import Normaliser, Pattern, Scored
from toy_tasks.operators.parts import Parameters, exact

EPS = 1e-6  # added to both factors of every flow product


@dataclass(frozen=True)
class Flow(Normaliser):
    """Flowformer's competition among sources and allocation among sinks, causal.

    With n_i = i + 1 keys up to query i, incoming flow I_i = n_i / q_i.sum_{j<=i} k_j,
    outgoing O_i = n_i / k_i.sum_{j<=i} q_j, conserved ones
    Ihat_i = q_i.sum_{j<=i} k_j O_j / n_i and
    Ohat_i = clip(k_i.sum_{j<=i} q_j I_j / n_i, -1, 1):
    A_ij = sigmoid(Ihat_i) I_i/n_i (q_i.k_j) c_j,
    c_j = n_j exp(Ohat_j) / sum_{j'<=j} exp(Ohat_j').
    Rows sum to about sigmoid(Ihat_i), not to 1.

    Source: Wu et al. 2022 (arXiv:2202.06258), the causal form of its code.
    """

    takes_slots: ClassVar[bool] = False

    def pattern(self, given: Scored, parameters: Parameters) -> Pattern:
        """The equivalent attention matrix."""
        assert isinstance(given.kernel, Features)
        q, k = (
            exact(given.kernel.features(t, parameters))
            for t in (given.heads.q, given.heads.k)
        )
        n = torch.arange(1, given.heads.n_pos + 1, device=q.device, dtype=q.dtype)

        def flow(a: Tensor, total: Tensor) -> Tensor:
            return ((a + EPS) * (total + EPS)).sum(-1)

        incoming = n / flow(q, k.cumsum(2))
        outgoing = n / flow(k, q.cumsum(2))
        kept_in = flow(q, (k * outgoing[..., None]).cumsum(2)) / n
        kept_out = flow(k, (q * incoming[..., None]).cumsum(2)) / n
        compete = kept_out.clamp(-1, 1).exp()
        compete = n * compete / compete.cumsum(-1)
        row = kept_in.sigmoid() * incoming / n
        shown = exact(given.scores).masked_fill(~given.seen, 0)
        weights = row[..., None] * shown * compete[..., None, :]
        return weights.to(given.scores.dtype)

    def check(self, kernel: Kernel) -> None:
        """Flows need positive features."""
        if not isinstance(kernel, Features) or kernel.phi == "learned":
            raise ValueError(
                f"Operator: Flow conserves sums of positive features, so its kernel "
                f"is Features('sigmoid') or Features('elu'), not {kernel}."
            )
