"""What a regression prompt can be answered with, and at what risk.

Predictors take prompts and give one number a task. Risk is the mean squared error
E(prediction - y_query)^2, noise of y_query included, so never below noise_variance.
Closed forms are ours, from the moments of Wishart matrices.
Source: the comparison is that of He et al. 2025 (arXiv:2503.12734).
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from toy_tasks.regression.task import LinearRegression, RegressionPrompts


def bayes(
    task: LinearRegression, prompts: RegressionPrompts
) -> Float[Tensor, "batch task"]:
    """The posterior mean, below whose risk nothing can be.

    Ridge regression on the coordinates that a task reads: with prior variance 1/n
    of n weights, lambda = n * noise_variance.
    """
    x, x_query = _scaled(task, prompts)
    gram = x.transpose(-1, -2) @ x
    moment = torch.einsum("btld,blt->btd", x, prompts.y)
    inverse = _inverse(gram, task.noise_variance)
    return torch.einsum("btd,btde,bte->bt", x_query, inverse, moment)


def bayes_risk(
    task: LinearRegression, prompts: RegressionPrompts
) -> Float[Tensor, "batch task"]:
    """Its exact expected squared error for each prompt, before y_query is drawn."""
    x, x_query = _scaled(task, prompts)
    gram = x.transpose(-1, -2) @ x
    learnt = _inverse(gram, task.noise_variance) @ gram
    left = x_query - torch.einsum("btd,btde->bte", x_query, learnt)
    return (left * x_query).sum(-1) + task.noise_variance


def least_squares(prompts: RegressionPrompts) -> Float[Tensor, "batch task"]:
    """Ordinary least squares on all coordinates, of least norm where many fit."""
    weights = torch.linalg.pinv(prompts.x) @ prompts.y
    return torch.einsum("bd,bdt->bt", prompts.x_query, weights)


def gradient_step(
    prompts: RegressionPrompts, step: Float[Tensor, "task d d"], debiased: bool = False
) -> Float[Tensor, "batch task"]:
    """One step of gradient descent on the examples' squared error, from w = 0.

    x . A . mean_i(x_i y_i), with A the step size times the identity, or any
    preconditioner. `debiased`: mean_i((x_i - mean x) y_i), which does not change when
    a constant is added to every x_i or every y_i.
    """
    x = prompts.x - prompts.x.mean(1, keepdim=True) if debiased else prompts.x
    moment = torch.einsum("bld,blt->btd", x, prompts.y) / x.shape[1]
    return torch.einsum("bd,tde,bte->bt", prompts.x_query, step.to(x), moment)


def step_risk(
    task: LinearRegression,
    n_examples: int,
    step: Float[Tensor, "task d d"],
    debiased: bool = False,
) -> Float64[Tensor, " task"]:
    """Exact risk of `gradient_step` with that step at that prompt length."""
    sigma, prior, gain, square = _moments(task, n_examples, debiased)
    step = step.to(sigma)
    signal = sigma @ prior @ sigma
    linear = gain * torch.einsum("tde,ted->t", step, signal)
    quadratic = torch.einsum("de,tef,tfg,tdg->t", sigma, step, square, step)
    return task.zero_risk() - 2 * linear + quadratic


def best_step(
    task: LinearRegression,
    n_examples: int,
    debiased: bool = False,
    preconditioned: bool = False,
) -> Float64[Tensor, "task d d"]:
    """The step of least risk at that prompt length, as a matrix.

    A multiple of the identity, or with `preconditioned` any matrix. For isotropic
    covariates and one task both are 1 / (1 + (d + 1 + d s) / L), debiased
    1 / (1 + d (1 + s) / L), with s = noise_variance and L = n_examples. With
    covariance S, A = ((1 + 1/L) S + (tr S + d s) / L)^-1, debiased without the 1/L.
    """
    sigma, prior, gain, square = _moments(task, n_examples, debiased)
    if preconditioned:
        return gain * prior @ sigma @ torch.linalg.inv(square)
    linear = gain * torch.einsum("de,tef,fd->t", sigma, prior, sigma)
    size = linear / torch.einsum("de,ted->t", sigma, square)
    return size[:, None, None] * torch.eye(task.d, dtype=torch.float64)


def _moments(
    task: LinearRegression, n_examples: int, debiased: bool
) -> tuple[Tensor, Tensor, float, Tensor]:
    """Covariance, prior, and E[S] / covariance and E[m m^T], m = mean_i(x_i y_i)."""
    sigma, prior = task.sigma, torch.diag_embed(task.prior)
    n = n_examples - debiased  # degrees of freedom of the examples' scatter
    signal = sigma @ prior @ sigma
    trace = torch.einsum("tde,ed->t", prior, sigma)[:, None, None]
    square = n * (n + 1) * signal + n * (trace + task.noise_variance) * sigma
    return sigma, prior, n / n_examples, square / n_examples**2


def _scaled(
    task: LinearRegression, prompts: RegressionPrompts
) -> tuple[Float[Tensor, "batch task example d"], Float[Tensor, "batch task d"]]:
    """x in units that give every weight of a task the prior N(0, 1)."""
    scale = task.prior.sqrt().to(prompts.x)
    x = prompts.x[:, None] * scale[:, None]
    return x, prompts.x_query[:, None] * scale


def _inverse(gram: Tensor, ridge: float) -> Tensor:
    if ridge == 0:  # fewer examples than coordinates leave some weights unseen
        return torch.linalg.pinv(gram, hermitian=True)
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.linalg.inv(gram + ridge * eye)
