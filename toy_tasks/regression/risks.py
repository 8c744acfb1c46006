"""Measured risks of regression predictors, with standard errors and a leak check."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from toy_tasks.regression.heads import RegressionHeads
from toy_tasks.regression.predictors import (
    bayes,
    best_step,
    gradient_step,
    least_squares,
)
from toy_tasks.regression.task import LinearRegression, RegressionPrompts


def risks(
    task: LinearRegression,
    prompts: RegressionPrompts,
    predictions: Mapping[str, Float[Tensor, "batch task"]],
) -> list[dict[str, str | float]]:
    """One row a predictor, tasks averaged; squared errors in units of y squared.

    Returns:
        predictor; risk: mean squared error; above_bayes: the same minus that of the
        Bayes predictor, prompt by prompt, which may fall below 0 by chance alone;
        excess: mean squared distance from the Bayes predictor, which has the same
        expectation and far less noise; each with _se, a standard error over prompts.
    """
    best = bayes(task, prompts)
    lowest = (best - prompts.y_query).square()
    rows = []
    for name, prediction in predictions.items():
        error = (prediction - prompts.y_query).square()
        row: dict[str, str | float] = {"predictor": name}
        for column, values in (
            ("risk", error),
            ("above_bayes", error - lowest),
            ("excess", (prediction - best).square()),
        ):
            one = values.mean(1)  # tasks of a prompt share x: not independent
            row[column] = one.mean().item()
            row[column + "_se"] = one.std().item() / math.sqrt(len(one))
        rows.append(row)
    return rows


def known_predictors(
    task: LinearRegression, prompts: RegressionPrompts, trained_at: int | None = None
) -> dict[str, Float[Tensor, "batch task"]]:
    """Predictions of what regression heads are compared with, by name.

    Steps have the size, or the preconditioner, that is best at the prompts' length;
    with `trained_at` there is also the debiased step that is best at that length.
    """
    n_examples = prompts.x.shape[1]
    found = {
        "zero": torch.zeros_like(prompts.y_query),
        "Bayes (ridge)": bayes(task, prompts),
        "least squares": least_squares(prompts),
    }
    for preconditioned in (False, True):
        for debiased in (False, True):
            words = ["debiased"] * debiased + ["preconditioned"] * preconditioned
            name = " ".join([*words, "gradient step"])
            step = best_step(task, n_examples, debiased, preconditioned)
            found[name] = gradient_step(prompts, step, debiased)
    if trained_at is not None:
        step = best_step(task, trained_at, debiased=True)
        name = f"debiased gradient step, size for {trained_at}"
        found[name] = gradient_step(prompts, step, debiased=True)
    return found


@torch.no_grad()
def predict(
    heads: RegressionHeads, prompts: RegressionPrompts
) -> Float[Tensor, "seed batch task"]:
    """Predictions of every seed for the same prompts."""
    return heads(prompts.inputs[None], prompts.query[None])
