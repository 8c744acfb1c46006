"""In-context linear regression: from examples (x_i, y_i) and a query x, predict y.

Prompts of real numbers, not tokens; every prompt has weights of its own, so what a
model predicts it has learnt from the prompt.
Source: He et al. 2025, In-Context Linear Regression Demystified (arXiv:2503.12734);
sizes and the two-task form after its published code.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from toy_tasks.jsonable import checked_fields, json_fields

Seed = int | tuple[int, ...]


@dataclass(frozen=True, eq=False)
class RegressionPrompts:
    """A batch of prompts; `y_query` is what is asked for."""

    x: Float[Tensor, "batch example d"]
    y: Float[Tensor, "batch example task"]
    x_query: Float[Tensor, "batch d"]
    y_query: Float[Tensor, "batch task"]

    @property
    def inputs(self) -> Float[Tensor, "batch example d_in"]:
        """One column [x_i; y_i] an example, d_in = d + tasks."""
        return torch.cat([self.x, self.y], dim=-1)

    @property
    def query(self) -> Float[Tensor, "batch d_in"]:
        """[x; 0]: what is asked for is left open."""
        return torch.cat([self.x_query, torch.zeros_like(self.y_query)], dim=-1)

    @property
    def sequence(self) -> Float[Tensor, "batch pos d_in"]:
        """The examples, then the query, for a model that reads sequences."""
        return torch.cat([self.inputs, self.query[:, None]], dim=1)


@dataclass(frozen=True)
class LinearRegression:
    """Predict y = w.x + noise, x ~ N(0, covariance), one w a prompt and task.

    With several tasks each has its own y for the same x, and its own w, drawn from
    N(0, 1/n) on the n coordinates that it reads. For isotropic covariates y so has
    variance 1 + noise_variance.

    Args:
        d: coordinates of x.
        noise_variance: of y, in units of the signal of isotropic covariates.
        covariance: of x, row by row; None for the identity.
        supports: per task the coordinates that it reads; None for one task that
            reads all.

    Raises:
        ValueError: a size, variance, covariance or support that cannot be.

    Source: He et al. 2025 (arXiv:2503.12734).

    Examples:
        >>> from toy_tasks import LinearRegression
        >>> task = LinearRegression(d=3, noise_variance=0.1)
        >>> prompts = task.sample(batch=4, n_examples=10, seed=0)
        >>> tuple(prompts.inputs.shape), task.zero_risk().tolist()
        ((4, 10, 4), [1.1])
    """

    d: int = 5
    noise_variance: float = 0.1
    covariance: tuple[tuple[float, ...], ...] | None = None
    supports: tuple[tuple[int, ...], ...] | None = None

    def __post_init__(self) -> None:
        if self.d < 1 or self.noise_variance < 0:
            raise ValueError(
                f"LinearRegression: d={self.d}, noise_variance={self.noise_variance}. "
                "Allowed: at least 1 coordinate, and a variance of 0 or more."
            )
        for support in self.supports or ():
            if not support or not set(support) <= set(range(self.d)):
                raise ValueError(
                    f"LinearRegression: a task reads the coordinates {support}. "
                    f"Allowed: at least one, each from 0 to {self.d - 1}."
                )
        if self.supports == ():
            raise ValueError(
                "LinearRegression: supports=() is no task. Give one support a task, "
                "or None for one task that reads all coordinates."
            )
        if self.covariance is not None:
            self._check_covariance(np.array(self.covariance, dtype=object))

    def _check_covariance(self, given: np.ndarray) -> None:
        fits = given.shape == (self.d, self.d)
        values = given.astype(float) if fits else np.zeros((1, 1))
        if not fits or np.any(values != values.T) or np.linalg.eigvalsh(values)[0] <= 0:
            raise ValueError(
                f"LinearRegression: the covariance has shape {given.shape}. It must be "
                f"symmetric and positive definite, {self.d} by {self.d}, given as "
                "tuples; LinearRegression.correlated(d, rho) makes one."
            )

    @classmethod
    def correlated(cls, d: int = 5, rho: float = 0.5, **options: Any) -> Any:
        """Covariance rho^|i - j|, the non-isotropic case of the published code.

        Args:
            d: coordinates of x.
            rho: correlation of neighbours, between -1 and 1.
            options: other fields.
        """
        rows = tuple(tuple(rho ** abs(i - j) for j in range(d)) for i in range(d))
        return cls(d=d, covariance=rows, **options)

    @property
    def n_tasks(self) -> int:
        """How many numbers a prompt asks for."""
        return 1 if self.supports is None else len(self.supports)

    @property
    def d_in(self) -> int:
        """Entries of an input column: x, then one y a task."""
        return self.d + self.n_tasks

    @cached_property
    def sigma(self) -> Float64[Tensor, "d d"]:
        """Covariance of x."""
        if self.covariance is None:
            return torch.eye(self.d, dtype=torch.float64)
        return torch.tensor(self.covariance, dtype=torch.float64)

    @cached_property
    def prior(self) -> Float64[Tensor, "task d"]:
        """Variance of each weight, 0 where the task does not read the coordinate."""
        prior = torch.zeros(self.n_tasks, self.d, dtype=torch.float64)
        for task, support in enumerate(self.supports or (tuple(range(self.d)),)):
            prior[task, list(support)] = 1 / len(set(support))
        return prior

    def zero_risk(self) -> Float64[Tensor, " task"]:
        """Mean squared error of predicting 0: the variance of y."""
        return self.prior @ self.sigma.diagonal() + self.noise_variance

    def sample(
        self,
        batch: int,
        n_examples: int,
        seed: Seed,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> RegressionPrompts:
        """Draw prompts; the same seed gives the same numbers, to rounding, anywhere.

        Args:
            batch: prompts.
            n_examples: in each.
            seed: of the draw.
            dtype: of the numbers.
            device: where they go.

        Raises:
            ValueError: `batch` or `n_examples` under 1.
        """
        if batch < 1 or n_examples < 1:
            raise ValueError(
                f"sample: batch={batch}, n_examples={n_examples}. Allowed: at least 1 "
                "of each."
            )
        per_prompt = (n_examples + 1) * self.d_in + self.n_tasks * self.d
        draws = normals(batch * per_prompt, seed).view(batch, per_prompt)
        sizes = ((n_examples + 1) * self.d, (n_examples + 1) * self.n_tasks)
        x, noise, w = draws.tensor_split((sizes[0], sum(sizes)), dim=1)
        x = x.view(batch, n_examples + 1, self.d)
        if self.covariance is not None:
            x = x @ torch.linalg.cholesky(self.sigma).T
        w = w.view(batch, self.n_tasks, self.d) * self.prior.sqrt()
        y = x @ w.transpose(1, 2)
        y = y + self.noise_variance**0.5 * noise.view_as(y)
        x, y = x.to(device, dtype), y.to(device, dtype)
        return RegressionPrompts(x[:, :-1], y[:, :-1], x[:, -1], y[:, -1])

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON values."""
        return {"task": "linear_regression", **json_fields(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "LinearRegression":
        """Rebuild what `to_json` wrote.

        Args:
            data: what `to_json` gave.

        Raises:
            ValueError: a field is unknown or missing.
        """
        values = checked_fields(cls, {k: v for k, v in data.items() if k != "task"})
        for name in ("covariance", "supports"):
            if values[name] is not None:
                values[name] = tuple(tuple(row) for row in values[name])
        return cls(**values)


def normals(n: int, seed: Seed) -> Float64[Tensor, " n"]:
    """Standard normal numbers, by the inverse of their distribution function.

    random_raw, unlike Generator's methods, is fixed for ever by numpy.
    """
    raw = np.random.SFC64(seed).random_raw(n) >> np.uint64(11)
    return torch.special.ndtri(torch.from_numpy((raw + 0.5) * 2.0**-53))
