"""Train `RegressionHeads`, all seeds at once; and their closed form.

A run is a function of its arguments: called again it reaches the same numbers, so
there is nothing to resume. The default takes seconds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from toy_tasks.progress import progress_bar
from toy_tasks.regression.heads import Kind, RegressionHeads
from toy_tasks.regression.task import LinearRegression


@dataclass(frozen=True, eq=False)
class HeadsRun:
    """Trained heads, the same as they began, and the training loss."""

    heads: RegressionHeads
    initial: RegressionHeads
    steps: list[int]  # where the loss was kept
    losses: Float[Tensor, "step seed"]  # squared error, mean over tasks


def train_heads(
    task: LinearRegression,
    n_heads: int = 2,
    *,
    seeds: Sequence[int] = (0,),
    kind: Kind = "softmax",
    n_examples: int = 40,
    steps: int = 3000,
    batch: int = 64,
    lr: float = 1e-2,
    log_every: int = 50,
    progress: bool | None = None,
) -> HeadsRun:
    """Train one layer of heads on fresh prompts, with Adam and a cosine to 0.

    Step t of seed s trains on task.sample(batch, n_examples, seed=(s, t)); seeds do
    not touch one another.

    Args:
        task: what to learn.
        n_heads: heads of each model.
        seeds: of weights and prompts; one model each.
        n_examples: in every prompt.
        steps: updates.
        batch: prompts in each.
        lr: the first step size.
        log_every: updates between two kept losses.
        progress: show a bar; None: on terminals, in notebooks.
        kind: "softmax", "linear" or "linear-mean", as in `RegressionHeads`.

    Returns:
        A `HeadsRun`: `heads`, `initial`, and `losses`, Float[step seed], at `steps`.

    Raises:
        ValueError: `steps` or `batch` under 1, or what `RegressionHeads` refuses.

    Source: He et al. 2025 (arXiv:2503.12734).

    Examples:
        >>> from toy_tasks import LinearRegression, train_heads
        >>> run = train_heads(LinearRegression(d=3), steps=20, batch=8, log_every=10)
        >>> run.steps, tuple(run.heads.KQ.shape)
        ([0, 10, 19], (1, 2, 4, 4))
    """
    if steps < 1 or batch < 1:
        raise ValueError(
            f"train_heads: steps={steps}, batch={batch}. Allowed: at least 1 of each."
        )
    options = {"seeds": seeds, "kind": kind, "n_examples": n_examples}
    heads = RegressionHeads(task.d_in, n_heads, task.n_tasks, **options)
    initial = RegressionHeads(task.d_in, n_heads, task.n_tasks, **options)
    optimizer = torch.optim.Adam(heads.parameters(), lr=lr)
    kept: list[int] = []
    losses: list[Tensor] = []
    with progress_bar(steps, 0, progress) as advance:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
            drawn = [task.sample(batch, n_examples, (seed, step)) for seed in seeds]
            inputs = torch.stack([prompts.inputs for prompts in drawn])
            query = torch.stack([prompts.query for prompts in drawn])
            target = torch.stack([prompts.y_query for prompts in drawn])
            loss = (heads(inputs, query) - target).square().mean((1, 2))
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            if step % log_every == 0 or step == steps - 1:
                kept.append(step)
                losses.append(loss.detach())
            shown = loss.detach().mean().item() if losses else math.nan
            advance(step + 1, [{"loss": shown}])
    return HeadsRun(heads.requires_grad_(False), initial, kept, torch.stack(losses))


def sign_symmetric_heads(
    omega: float, mu: float, d: int, n_examples: int = 40
) -> RegressionHeads:
    """Two heads with KQ = +-omega on x alone and OV = +-mu from y to the prediction.

    mu * (softmax(+omega x_i.x) - softmax(-omega x_i.x)) . y: for small omega one
    debiased gradient step of size 2 mu omega.

    Source: the pattern of He et al. 2025 (arXiv:2503.12734).
    """
    eye = torch.eye(d + 1, dtype=torch.float64)
    eye[d, d] = 0
    last = torch.zeros(d + 1, 1, dtype=torch.float64)
    last[d] = 1
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64)[:, None, None]
    return RegressionHeads.planted(
        sign * omega * eye, sign * mu * last, n_examples=n_examples
    )


def best_mu(omega: float, d: int, n_examples: int, noise_variance: float) -> float:
    """mu of least approximate risk for two heads with +-omega.

    omega / (2 omega^2 + 2 (1 + noise_variance) sinh(d omega^2) / n_examples).

    Source: derived from `approximate_risk`.
    """
    spread = (1 + noise_variance) * math.sinh(d * omega**2) / n_examples
    return omega / (2 * omega**2 + 2 * spread)


def approximate_risk(
    omega: Float[Tensor, " head"],
    mu: Float[Tensor, " head"],
    d: int,
    n_examples: int,
    noise_variance: float,
) -> float:
    """Risk of heads with KQ = omega_h on x and OV = mu_h on y, to first order in 1/L.

    1 + s - 2 mu.omega + mu^T (omega omega^T + (1 + s) exp(d omega omega^T) / L) mu,
    with |x|^2 at its mean d and the softmax's sums at theirs.

    Source: He et al. 2025 (arXiv:2503.12734), their published code.
    """
    outer = omega[:, None] * omega
    spread = (1 + noise_variance) * (d * outer).exp() / n_examples
    risk = 1 + noise_variance - 2 * mu @ omega + mu @ (outer + spread) @ mu
    return risk.item()
