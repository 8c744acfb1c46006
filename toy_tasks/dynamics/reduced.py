"""Reduced dynamics of a sink: its logit and its value, reinforcing each other.

All of a Bigram-Backcopy head but the sink is held fixed. On query v the head gives
`<s>` the weight w_v = exp(alpha_v) / (exp(alpha_v) + W) and writes, in logits,
w_v beta + (1 - w_v) o_v, where o_v is what the other tokens write. The right law is
P[v] alone, so this output is only noise, and the loss is sum_v pi_v KL(P[v] || law).
While o_v varies with v, no beta cancels it: the sink takes more weight, its value
shrinks, and neither ends. Under gradient flow, late: alpha = log(t) / 2 + const,
||beta|| ~ t^(-1/2), loss ~ 1 / t. Where o_v = o, beta cancels it and all stands still.

The model as written here is after the paper. Source: Guo et al. 2024
(arXiv:2410.13835), the theory of mutual reinforcement.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int
from numpy import ndarray

from toy_tasks.dynamics.model import SinkModel

WEIGHT, SCALE = 20.0, 6.0
"""Defaults: total weight of the other keys; logits they give to the query's token."""


@dataclass(frozen=True)
class Slopes:
    """Local slopes over a span of time; theory says 0.5, -0.5 and -1."""

    alpha: float  # of the mean sink logit, nats for each e-fold of time
    beta: float  # of log ||beta|| by log time
    loss: float  # of log loss by log time


@dataclass(frozen=True, eq=False)
class SinkFlow:
    """A path of the reduced dynamics.

    Time is that of gradient flow: d(theta)/dt = -dLoss/d(theta), step size times steps
    for descent. `curvature`: largest eigenvalue of the Hessian there.
    """

    model: SinkModel
    time: Float64[ndarray, " time"]  # ascending, log-spaced from 1 on
    alpha: Float64[ndarray, "time query"]  # nats
    beta: Float64[ndarray, "time vocab"]  # logits
    loss: Float64[ndarray, " time"]  # nats
    curvature: Float64[ndarray, " time"]

    @property
    def mean_alpha(self) -> Float64[ndarray, " time"]:
        """Sink logit, mean over queries by their shares."""
        return self.alpha @ self.model.pi

    @property
    def beta_norm(self) -> Float64[ndarray, " time"]:
        """Norm of the sink's value, logits."""
        return np.linalg.norm(self.beta, axis=1)

    @property
    def stability_limit(self) -> float:
        """Descent with a longer step would have diverged somewhere on this path."""
        return float(2 / self.curvature.max())

    def local_slope(
        self, start: float | None = None, end: float | None = None
    ) -> Slopes:
        """Slopes by log time between two times; by default over the last octave.

        Raises:
            ValueError: fewer than three recorded times lie between them.
        """
        end = float(self.time[-1]) if end is None else end
        start = end / 2 if start is None else start
        return slopes(self.time, self.mean_alpha, self.beta_norm, self.loss, start, end)


def slopes(
    time: Float64[ndarray, " time"],
    alpha: Float64[ndarray, " time"],
    beta: Float64[ndarray, " time"],
    loss: Float64[ndarray, " time"],
    start: float,
    end: float,
) -> Slopes:
    """Least-squares slopes of alpha, log beta and log loss by log time.

    Args:
        time: of the measurements.
        alpha, beta, loss: mean sink logit, norm of the sink's value, loss. The two
            last are positive; a slope is NaN where one is not.
        start, end: the span, ends included.

    Raises:
        ValueError: fewer than three times lie in the span.
    """
    inside = (time >= start * (1 - 1e-9)) & (time <= end * (1 + 1e-9))
    if inside.sum() < 3:
        raise ValueError(
            f"slopes: {inside.sum()} of {len(time)} times lie between {start:g} and "
            f"{end:g}. A slope needs 3: widen the span or record more times."
        )
    x = np.log(time[inside])
    x = x - x.mean()

    def slope(values: Float64[ndarray, " n"]) -> float:
        return float(x @ values / (x @ x))

    with np.errstate(divide="ignore", invalid="ignore"):
        return Slopes(
            slope(alpha[inside]),
            slope(np.log(beta[inside])),
            slope(np.log(loss[inside])),
        )


def reduced_dynamics(
    table: Float64[ndarray, "query vocab"],
    pi: Float64[ndarray, " query"],
    *,
    weight: float = WEIGHT,
    others: Float64[ndarray, "query vocab"] | None = None,
    alpha: float = 0.0,
    beta: Float64[ndarray, " vocab"] | None = None,
    until: float = 1e5,
    per_octave: int = 8,
    step: float | None = None,
) -> SinkFlow:
    """Gradient flow, or descent, of the sink's logit and value.

    Args:
        table, pi, weight: as in `SinkModel`.
        others: what the other tokens write on each query, logits; None: `SCALE` for
            the query's own token, on a square table.
        alpha: sink logit of every query at time 0, nats.
        beta: value of the sink at time 0, logits; None: zero.
        until: last time.
        per_octave: recorded times for each doubling, from time 1 on.
        step: None solves the flow with a stiff solver over log(1 + t), relative
            tolerance 1e-8, at a cost that hardly grows with `until`; a number makes
            plain descent with that step, recorded at the nearest steps.

    Raises:
        ValueError: `others` missing for a table that is not square, times out of
            range, or a step above the stability limit somewhere on the path.
    """
    if others is None:
        if table.shape[0] != table.shape[1]:
            raise ValueError(
                f"reduced_dynamics: others=None with a table of shape {table.shape}. "
                "Pass what the other tokens write on each query, [query vocab]."
            )
        others = SCALE * np.eye(len(table))
    if not (until >= 2 and per_octave >= 2):
        raise ValueError(
            f"reduced_dynamics: until={until}, per_octave={per_octave}. Both must be "
            "at least 2: the record starts at time 1."
        )
    model = SinkModel(table, pi, weight, others)
    n_query, n_vocab = table.shape
    state = np.concatenate(
        [np.full(n_query, float(alpha)), np.zeros(n_vocab) if beta is None else beta]
    )
    octaves = np.log2(until)
    times = until * 2.0 ** -np.arange(0, octaves + 1e-9, 1 / per_octave)[::-1]
    if step is None:
        states = _solve(model, state, times)
    else:
        counts = np.unique(np.maximum(1, np.rint(times / step)).astype(int))
        times = counts * step
        states = _descend(model, state, step, counts)
    parts = [(s[:n_query], s[n_query:]) for s in states]
    return SinkFlow(
        model,
        times,
        states[:, :n_query],
        states[:, n_query:],
        np.array([model.loss(*part) for part in parts]),
        np.array([model.curvature(*part) for part in parts]),
    )


def _solve(
    model: SinkModel, state: Float64[ndarray, " n"], times: Float64[ndarray, " time"]
) -> Float64[ndarray, "time n"]:
    from scipy.integrate import solve_ivp  # here: slow to import

    n = len(model.pi)

    # In x = log(1 + t) a power law is a straight line, and time 0 is x = 0.
    def rate(x: float, s: Any) -> Any:
        return -np.exp(x) * np.concatenate(model.gradient(s[:n], s[n:]))

    def jacobian(x: float, s: Any) -> Any:
        return -np.exp(x) * model.hessian(s[:n], s[n:])

    at = np.log1p(times)
    found = solve_ivp(
        rate,
        (0.0, at[-1]),
        state,
        method="BDF",
        jac=jacobian,
        t_eval=at,
        rtol=1e-8,
        atol=1e-11,
    )
    assert found.success, found.message
    return found.y.T.copy()


def _descend(
    model: SinkModel,
    state: Float64[ndarray, " n"],
    step: float,
    counts: Int[ndarray, " time"],
) -> Float64[ndarray, "time n"]:
    n = len(model.pi)
    alpha, beta = state[:n].copy(), state[n:].copy()
    records, done = [], 0
    for count in (0, *counts.tolist()):
        for _ in range(count - done):
            by_alpha, by_beta = model.gradient(alpha, beta)
            alpha -= step * by_alpha
            beta -= step * by_beta
        done = count
        limit = 2 / model.curvature(alpha, beta)
        if not 0 < step < limit:
            raise ValueError(
                f"reduced_dynamics: step={step:g} at time {done * step:g}, where "
                f"descent is stable below {limit:.4g} (2 over the largest curvature). "
                "Pass a positive step below the `stability_limit` of the path that "
                "step=None gives."
            )
        records.append(np.concatenate([alpha, beta]))
    return np.array(records[1:])
