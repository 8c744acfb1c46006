"""A finite amount of data: the same sequences over and over."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from toy_tasks.task import Task

_POOL, _ORDER = 2**32, 2**32 + 1  # beside the step numbers that seed fresh sequences


@dataclass(frozen=True, eq=False)
class Repeats:
    """Sequences to train on, read round after round, each round in a new order.

    Which they are and in what order depends on `seed` alone, on every machine.
    """

    tokens: Int[Tensor, "sequence length"]
    seed: int

    @classmethod
    def draw(
        cls,
        task: Task,
        n_sequences: int,
        n_pos: int,
        seed: int,
        device: str | torch.device = "cpu",
    ) -> "Repeats":
        """Draw them from the task."""
        return cls(task.sequences(n_sequences, n_pos, (seed, _POOL), device), seed)

    def batch(self, size: int, step: int) -> Int[Tensor, "batch length"]:
        """The sequences of a step, the `size` that come next."""
        n = len(self.tokens)
        at = np.arange(step * size, (step + 1) * size)
        rows = np.empty(size, dtype=np.int64)
        for turn in range(at[0] // n, at[-1] // n + 1):
            here = at // n == turn
            rows[here] = self._order(int(turn))[at[here] % n]
        return self.tokens[torch.from_numpy(rows).to(self.tokens.device)]

    def _order(self, turn: int) -> Int[np.ndarray, " sequence"]:
        # random_raw, unlike Generator's methods, is fixed for ever by numpy.
        raw = np.random.SFC64((self.seed, _ORDER, turn)).random_raw(len(self.tokens))
        return np.argsort(raw, kind="stable")
