"""The reduced model of a sink: loss, gradient and Hessian, and where it can rest.

Source: after the theory of Guo et al. 2024 (arXiv:2410.13835); see
`toy_tasks.dynamics`.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from numpy import ndarray


@dataclass(frozen=True, eq=False)
class SinkModel:
    """A setting of the reduced model: loss, gradient and Hessian in closed form.

    `table`: law after each query. `pi`: share of each query. `weight`: W, the sum of
    exp(score) over the other keys. `others`: what those write on each query, logits.

    Raises:
        ValueError: shapes that do not match, no law, or W that is not positive.
    """

    table: Float64[ndarray, "query vocab"]
    pi: Float64[ndarray, " query"]
    weight: float
    others: Float64[ndarray, "query vocab"]

    def __post_init__(self) -> None:
        n_query = len(self.table)
        if self.pi.shape != (n_query,) or self.others.shape != self.table.shape:
            raise ValueError(
                f"SinkModel: table {self.table.shape}, pi {self.pi.shape}, others "
                f"{self.others.shape}. Give [query vocab], [query] and [query vocab]."
            )
        for name, law in (("table", self.table), ("pi", self.pi)):
            off = np.abs(law.sum(-1) - 1).max()
            if not (law.min() >= 0 and off < 1e-6):
                raise ValueError(
                    f"SinkModel: {name} is no law: smallest entry {law.min():.3g}, "
                    f"sums off 1 by {off:.3g}. Divide by its sums."
                )
        if not (self.weight > 0 and np.isfinite(self.others).all()):
            raise ValueError(
                f"SinkModel: weight={self.weight}. The other keys weigh more than 0, "
                "and what they write must be finite."
            )

    def sink_weight(
        self, alpha: Float64[ndarray, " query"]
    ) -> Float64[ndarray, " query"]:
        """Attention to `<s>` on each query, 0 to 1."""
        return 1 / (1 + self.weight * np.exp(-alpha))

    def loss(
        self, alpha: Float64[ndarray, " query"], beta: Float64[ndarray, " vocab"]
    ) -> float:
        """sum_v pi_v KL(P[v] || prediction), nats."""
        w = self.sink_weight(alpha)[:, None]
        out = w * beta + (1 - w) * self.others
        centred = out - (self.table * out).sum(-1, keepdims=True)
        # log E exp(centred); so written it keeps its digits when the output is small.
        excess = (self.table * (np.expm1(centred) - centred)).sum(-1)
        return float(self.pi @ np.log1p(excess))

    def gradient(
        self, alpha: Float64[ndarray, " query"], beta: Float64[ndarray, " vocab"]
    ) -> tuple[Float64[ndarray, " query"], Float64[ndarray, " vocab"]]:
        """Of the loss, by alpha and by beta."""
        w, error, _ = self._errors(alpha, beta)
        pull = (error * (beta - self.others)).sum(-1)
        return self.pi * w * (1 - w) * pull, (self.pi * w) @ error

    def hessian(
        self, alpha: Float64[ndarray, " query"], beta: Float64[ndarray, " vocab"]
    ) -> Float64[ndarray, "n n"]:
        """Second derivatives of the loss, by alpha first and then by beta."""
        w, error, law = self._errors(alpha, beta)
        slope = w * (1 - w)
        apart = beta - self.others
        spread = law * (apart - (law * apart).sum(-1, keepdims=True))  # C_v (beta-o_v)
        own = slope**2 * (spread * apart).sum(-1)
        own += slope * (1 - 2 * w) * (error * apart).sum(-1)
        mixed = (self.pi * slope)[:, None] * (w[:, None] * spread + error)
        share = self.pi * w**2
        value = np.diag(share @ law) - (law * share[:, None]).T @ law
        return np.block([[np.diag(self.pi * own), mixed], [mixed.T, value]])

    def curvature(
        self, alpha: Float64[ndarray, " query"], beta: Float64[ndarray, " vocab"]
    ) -> float:
        """Largest eigenvalue of the Hessian: steps of descent stay below 2 over it."""
        return float(np.linalg.eigvalsh(self.hessian(alpha, beta))[-1])

    def _errors(
        self, alpha: Float64[ndarray, " query"], beta: Float64[ndarray, " vocab"]
    ) -> tuple[
        Float64[ndarray, " query"],
        Float64[ndarray, "query vocab"],
        Float64[ndarray, "query vocab"],
    ]:
        """Attention to the sink, prediction minus the right law, and prediction."""
        w = self.sink_weight(alpha)
        out = w[:, None] * beta + (1 - w)[:, None] * self.others
        law = self.table * np.exp(out - out.max(-1, keepdims=True))
        law /= law.sum(-1, keepdims=True)
        return w, law - self.table, law


def resting_alpha(
    n_query: int, weight: float, write: Float64[ndarray, " vocab"]
) -> float:
    """Where the sink's logit ends if the others write the same on every query, nats.

    With o_v = o gradient flow keeps |beta - o|^2 / 2 - sum_v (exp(alpha_v) / W +
    alpha_v), whatever table and shares are, since d(alpha_v) / (1 - w_v) is beta - o
    times query v's share of d(beta). At the end w beta + (1 - w) o = 0 in every query.
    Holds for alpha = 0 and beta = 0 at the start; of o only what differs between
    tokens counts, as softmax does not see the rest.

    Source: ours.
    """
    from scipy.optimize import brentq  # here: slow to import

    centred = write - write.mean()
    size = float(centred @ centred)

    def gap(alpha: float) -> float:
        w = 1 / (1 + weight * np.exp(-alpha))
        grown = n_query * ((np.exp(alpha) - 1) / weight + alpha)
        return grown - size / 2 * (1 / w**2 - 1)

    return float(np.asarray(brentq(gap, -1.0, 50.0, xtol=1e-12)).item())
