"""In-context linear regression: train heads, measure what they look like and do.

Source: He et al. 2025, In-Context Linear Regression Demystified (arXiv:2503.12734):
the patterns, the comparison with gradient steps and the ridge predictor, longer
prompts, non-isotropic covariates, several tasks. Numbers for the patterns are ours.
"""

import copy
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch

from mechsink.experiments.regression.claims import TRAINED, regression_claims
from mechsink.experiments.regression.study import LinearRegressionStudy
from mechsink.experiments.study import as_claims
from mechsink.provenance import versions
from toy_tasks.regression.heads import RegressionHeads
from toy_tasks.regression.patterns import effective_step, head_patterns, task_patterns
from toy_tasks.regression.predictors import best_step, gradient_step
from toy_tasks.regression.risks import known_predictors, predict, risks
from toy_tasks.regression.task import LinearRegression
from toy_tasks.regression.training import HeadsRun, best_mu, train_heads

LENGTHS = (10, 20, 40, 80, 160)
TEST_SEED = 2**31  # train_heads draws from (seed, step)


class Setting(NamedTuple):
    """One training: a task, heads, and for how long in the quick form."""

    task: LinearRegression
    n_heads: int
    kind: Any = "softmax"
    quick_steps: int = 0  # 0: not in the quick form
    more_seeds: bool = False


ISOTROPIC = LinearRegression()
TWO_TASKS = LinearRegression(d=6, supports=((0, 1, 2), (3, 4, 5)))
SETTINGS = {
    "four heads": Setting(ISOTROPIC, 4, quick_steps=600),
    "two heads": Setting(ISOTROPIC, 2, quick_steps=600, more_seeds=True),
    "one head": Setting(ISOTROPIC, 1, quick_steps=700),
    "linear attention": Setting(ISOTROPIC, 4, "linear", quick_steps=300),
    "correlated x": Setting(LinearRegression.correlated(5, 0.5), 4, quick_steps=600),
    "two tasks, 2 heads": Setting(TWO_TASKS, 2),
    "two tasks, 3 heads": Setting(TWO_TASKS, 3, quick_steps=900),
    "two tasks, 6 heads": Setting(TWO_TASKS, 6),
}


def linear_regression(
    *,
    seeds: Sequence[int] = range(5),
    steps: int = 4000,
    n_test: int = 8192,
    quick: bool = False,
    progress: bool | None = None,
) -> LinearRegressionStudy:
    """Train regression heads in every setting and measure patterns and risks.

    Prompts have 5 coordinates, 40 examples and noise of variance 0.1 (6 coordinates
    in two disjoint halves for two tasks). Two heads are trained for twice as many
    seeds: from random weights both may come to have one sign, and then they are one.

    Args:
        seeds: models of each setting.
        steps: updates of each.
        n_test: test prompts of each setting and length.
        quick: 300 to 900 updates of twice the size, 2048 test prompts, two lengths,
            one setting of two tasks, and no more seeds of two heads than of others.
        progress: show bars; None: on terminals, in notebooks.

    Returns:
        A `LinearRegressionStudy`.

    Raises:
        ValueError: fewer than two seeds, or one given twice.

    Source: He et al. 2025 (arXiv:2503.12734).

    Examples:
        >>> study = ms.linear_regression(
        ...     seeds=[0, 1], steps=20, n_test=64, progress=False
        ... )
        >>> study.table.setting.nunique() > 3
        True
    """
    seeds = list(seeds)
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise ValueError(
            f"linear_regression: seeds={seeds}. Claims are judged over seeds: give at "
            "least 2, all different."
        )
    further = [max(seeds) + 1 + number for number in range(len(seeds))]
    began = time.perf_counter()
    if quick:
        n_test = 2048
    lengths = (TRAINED, LENGTHS[-1]) if quick else LENGTHS
    table, patterns, weights = [], [], []
    trained: dict[str, int] = {}  # updates
    for name, given in SETTINGS.items():
        if quick and not given.quick_steps:
            continue
        trained[name] = given.quick_steps if quick else steps
        run = train_heads(
            given.task,
            given.n_heads,
            seeds=seeds + further if given.more_seeds and not quick else seeds,
            kind=given.kind,
            n_examples=TRAINED,
            steps=trained[name],
            lr=4e-2 if quick else 2e-2,
            progress=progress,
        )
        is_compared = name in ("four heads", "linear attention")
        for n_examples in lengths if is_compared else (TRAINED,):
            rows = risk_rows(given.task, run.heads, n_examples, n_test)
            table += [{"setting": name, **row} for row in rows]
        rows = pattern_rows(run, given.task)
        patterns += [{"setting": name, **row} for row in rows]
        weights += [{"setting": name, **row} for row in weight_rows(run.heads)]
    frames = pd.DataFrame(table), pd.DataFrame(patterns)
    frames[1]["head"] = frames[1]["head"].astype(float)
    meta = {
        "measurement": "linear_regression",
        "versions": versions(),
        "device": "cpu",
        "settings": {
            name: {
                "task": SETTINGS[name].task.to_json(),
                "n_heads": SETTINGS[name].n_heads,
                "kind": SETTINGS[name].kind,
                "updates": updates,
            }
            for name, updates in trained.items()
        },
        "seeds": seeds,
        "n_test": n_test,
        "quick": quick,
        "duration_s": round(time.perf_counter() - began, 3),
    }
    return LinearRegressionStudy(
        frames[0],
        meta,
        as_claims(regression_claims(*frames)),
        frames[1],
        pd.DataFrame(weights),
    )


def risk_rows(
    task: LinearRegression, heads: RegressionHeads, n_examples: int, n_test: int
) -> list[dict[str, Any]]:
    """Risks of the heads and of what they are compared with, on the same prompts.

    `from_step`, `from_debiased_step`: mean squared distance from the plain and the
    debiased (preconditioned) step that is best at the trained length.
    """
    prompts = task.sample(n_test, n_examples, (TEST_SEED, n_examples), torch.float64)
    steps = {}
    for column, is_debiased in (("from_step", False), ("from_debiased_step", True)):
        step = best_step(task, TRAINED, is_debiased, preconditioned=True)
        steps[column] = gradient_step(prompts, step, is_debiased)

    def measured(
        predictions: dict[str, torch.Tensor], seed: float
    ) -> list[dict[str, Any]]:
        rows = risks(task, prompts, predictions)
        for row, prediction in zip(rows, predictions.values(), strict=True):
            for column, other in steps.items():
                row[column] = (prediction - other).square().mean().item()
        return [{"seed": seed, "n_examples": n_examples, **row} for row in rows]

    known = known_predictors(task, prompts, trained_at=TRAINED)
    rows = measured(known, float("nan"))
    found = predict(copy.deepcopy(heads).double(), prompts)
    for seed, prediction in zip(heads.seeds, found, strict=True):
        given = {"heads": prediction}
        if heads.kind == "linear":
            given["heads, mean"] = prediction * heads.n_examples / n_examples
        rows += measured(given, float(seed))
    return rows


def pattern_rows(run: HeadsRun, task: LinearRegression) -> list[dict[str, Any]]:
    """Every measure of a run's models, after training and before."""
    after, before = _measures(run.heads, task), _measures(run.initial, task)
    rows = []
    for (measure, head), values in after.items():
        for number, seed in enumerate(run.heads.seeds):
            row = {"seed": seed, "head": head, "measure": measure}
            start = before[measure, head][number].item()
            rows.append({**row, "value": values[number].item(), "at_init": start})
    return rows


def _measures(
    heads: RegressionHeads, task: LinearRegression
) -> Mapping[tuple[str, int | None], torch.Tensor]:
    """(measure, head, None for the model) to one value a seed."""
    whole = None
    found = head_patterns(heads, task.d)
    values: dict[tuple[str, int | None], torch.Tensor]
    values = {(name, whole): value for name, value in found.of_model().items()}
    step = effective_step(heads, task.d)
    for number in range(heads.W_Q.shape[1]):
        for name in ("omega", "weight", "kq_diagonal", "kq_spread", "ov_last"):
            values[name, number] = getattr(found, name)[:, number]
        for one in range(task.n_tasks):
            name = "mu" if task.n_tasks == 1 else f"mu of task {one}"
            values[name, number] = found.mu[:, number, one]
    if task.n_tasks > 1:
        shared = task_patterns(heads, task)
        values["one_task", whole] = shared.one_task
        values["interference", whole] = shared.interference
        for number in range(heads.W_Q.shape[1]):
            for one in range(task.n_tasks):
                part = shared.part[:, number, one]
                values[f"part of task {one}", number] = part
        return values
    if heads.W_Q.shape[1] == 2:
        omega, mu = (t.abs().mean(1) for t in (found.omega, found.mu[..., 0]))
        given = (task.d, heads.n_examples, task.noise_variance)
        closed = torch.tensor([best_mu(each, *given) for each in omega.tolist()])
        values["mu_over_closed_form", whole] = mu / closed.to(mu)
    step = step[:, 0, 0]
    values["step_size", whole] = step.diagonal(dim1=1, dim2=2).mean(1)
    sigma = task.sigma
    best = best_step(task, TRAINED, debiased=True, preconditioned=True)[0]
    for name, matrix in (
        ("cos_to_best_step", best),
        ("cos_to_identity", torch.eye(task.d, dtype=torch.float64)),
        ("cos_to_inverse_covariance", torch.linalg.inv(sigma)),
    ):
        product = (step * matrix.to(step)).sum((1, 2))
        values[name, whole] = product / step.norm(dim=(1, 2)) / matrix.norm().to(step)
    return values


def weight_rows(heads: RegressionHeads) -> list[dict[str, Any]]:
    """Entries of KQ and OV."""
    rows = []
    for matrix, values in (("KQ", heads.KQ), ("OV", heads.OV)):
        for seed, models in zip(heads.seeds, values.tolist(), strict=True):
            for head, grid in enumerate(models):
                where = {"seed": seed, "head": head, "matrix": matrix}
                rows += [
                    {**where, "row": row, "column": column, "value": value}
                    for row, line in enumerate(grid)
                    for column, value in enumerate(line)
                ]
    return rows
