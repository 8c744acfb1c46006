"""Sums: `<s> A + B + C =` is answered, at its last token, by one token for the sum.

Operands and sums are one token each, so a model can wait, look at each operand by
itself, and gather them at the last position in a single layer.
Source: "All for One" (arXiv:2509.09650), whose search is tested on it.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from toy_tasks.checks import check_fields

BOS = "<s>"
Prompts = tuple[Int[Tensor, "prompt pos"], Int[Tensor, " prompt"]]
_PIECE = re.compile(r"\d+|<s>|\S")


@dataclass(frozen=True)
class Sums:
    """Prompts that ask for a sum of `n_terms` numbers from 0 to `n_values` - 1.

    Operand tuples are split for good into training and held-out ones: of each sum's
    multisets of operands the share `held_out`, rounded down, in an order that `seed`
    decides. So no order of a held-out prompt's operands is trained on, and every sum
    that there is stays in training.

    Tokens: the numbers 0 to n_terms * (n_values - 1), whose id is the number, then
    "+", "=" and "<s>".

    Args:
        n_values: operands are 0 to n_values - 1.
        n_terms: operands of a sum.
        held_out: share of operand multisets kept out of training, 0 to 1.
        seed: of that split.

    Raises:
        ValueError: a size or share out of range.

    Examples:
        >>> from toy_tasks import Sums
        >>> task = Sums(n_values=5, n_terms=2)
        >>> tokens, answers = task.sample(2, seed=0)
        >>> task.decode(tokens[0]), tuple(tokens.shape)
        ('<s> 2 + 2 =', (2, 5))
        >>> task.encode("1 + 3 =")
        [1, 9, 3, 10]
    """

    n_values: int = 20
    n_terms: int = 3
    held_out: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.n_values < 2 or self.n_terms < 1:
            raise ValueError(
                f"Sums: n_values={self.n_values}, n_terms={self.n_terms}. Allowed: at "
                "least 2 values and 1 term."
            )
        if self.n_values**self.n_terms > 1_000_000:
            raise ValueError(
                f"Sums: {self.n_values} values in {self.n_terms} places make more than "
                "1,000,000 prompts, and all are listed. Take fewer of either."
            )
        if not 0 <= self.held_out < 1:
            raise ValueError(
                f"Sums: held_out={self.held_out}. Allowed: a share from 0 (train on "
                "all prompts) to below 1."
            )
        if self.seed < 0:
            raise ValueError(f"Sums: seed={self.seed}. Allowed: 0 and more.")

    @property
    def n_numbers(self) -> int:
        """Number tokens: the largest sum and 0 included."""
        return self.n_terms * (self.n_values - 1) + 1

    @property
    def n_pos(self) -> int:
        """Tokens of a prompt, `<s>` and "=" included."""
        return 2 * self.n_terms + 1

    @property
    def slots(self) -> list[int]:
        """Positions of the operands."""
        return list(range(1, 2 * self.n_terms, 2))

    @cached_property
    def vocab(self) -> list[str]:
        """Token strings, by id."""
        return [*map(str, range(self.n_numbers)), "+", "=", BOS]

    @property
    def d_vocab(self) -> int:
        """Number of tokens."""
        return self.n_numbers + 3

    @property
    def bos(self) -> int:
        """Token id of `<s>`."""
        return self.n_numbers + 2

    @property
    def n_targets(self) -> int:
        """Training predicts the last token alone, the answer."""
        return 1

    def prompts(self, operands: Int[Tensor, "prompt term"]) -> Prompts:
        """Tokens of the prompts with these operands, and their answers' tokens.

        Args:
            operands: of each prompt, 0 to n_values - 1.

        Raises:
            ValueError: another number of operands, or one outside 0..n_values - 1.
        """
        wrong = (operands < 0) | (operands >= self.n_values)
        if operands.shape[1] != self.n_terms or wrong.any():
            raise ValueError(
                f"prompts: operands of shape {tuple(operands.shape)}, from "
                f"{int(operands.min())} to {int(operands.max())}. Give {self.n_terms} "
                f"a prompt, each from 0 to {self.n_values - 1}."
            )
        plus, equals = self.n_numbers, self.n_numbers + 1
        tokens = torch.full((len(operands), self.n_pos), plus, device=operands.device)
        tokens[:, 0], tokens[:, -1] = self.bos, equals
        tokens[:, self.slots] = operands
        return tokens, operands.sum(1)

    def all_prompts(self) -> Prompts:
        """Every prompt, the last operand changing fastest, and the answers."""
        return self.prompts(self._operands)

    def training_prompts(self) -> Prompts:
        """The prompts that `sample` draws from, and the answers."""
        return self.prompts(self._operands[~self._is_held_out])

    def held_out_prompts(self) -> Prompts:
        """The prompts that are never trained on, and the answers."""
        return self.prompts(self._operands[self._is_held_out])

    def sample(
        self,
        batch: int,
        seed: int | tuple[int, ...],
        device: str | torch.device = "cpu",
    ) -> Prompts:
        """Draw training prompts: a sum, then evenly one of the prompts that ask for it.

        A sum is as likely as the root of its number of prompts says. Were prompts
        drawn evenly the smallest and largest sums would hardly be learnt, were sums
        drawn evenly a model would rather learn the few prompts of those by heart.
        With replacement; the same seed gives the same prompts on every machine.

        Args:
            batch: prompts.
            seed: of the draw.
            device: where the tokens go.

        Raises:
            ValueError: `batch` under 1.
        """
        if batch < 1:
            raise ValueError(f"sample: batch={batch}. It must be at least 1.")
        rows, first, count = self._by_sum
        # random_raw, unlike Generator's methods, is fixed for ever by numpy; its
        # remainder favours no row by more than 1e6 / 2**64.
        draws, within = np.random.SFC64(seed).random_raw((2, batch))
        edges = np.sqrt(count).cumsum()
        place = (draws >> np.uint64(11)) * 2.0**-53 * edges[-1]
        at = np.searchsorted(edges, place, side="right").clip(max=len(edges) - 1)
        index = first[at] + (within % count[at].astype(np.uint64)).astype(np.int64)
        tokens, answers = self.prompts(rows[torch.from_numpy(index)])
        return tokens.to(device), answers.to(device)

    def sequences(
        self,
        batch: int,
        n_pos: int,
        seed: int | tuple[int, ...],
        device: str | torch.device = "cpu",
    ) -> Int[Tensor, "batch length"]:
        """What training sees: prompts of `sample`, each with its answer behind it.

        Args:
            batch: sequences.
            n_pos: positions of the model.
            seed: of the draw.
            device: where the tokens go.

        Raises:
            ValueError: a model with `n_pos` positions is too short for a prompt.
        """
        if n_pos < self.n_pos:
            raise ValueError(
                f"Sums: the model has {n_pos} positions, a prompt {self.n_pos} tokens. "
                f"Set n_ctx={self.n_pos} in the preset's model."
            )
        tokens, answers = self.sample(batch, seed, device)
        return torch.cat([tokens, answers[:, None]], dim=1)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text such as "3 + 14 + 15 ="; digits in a row are a number.

        Args:
            text: numbers, "+" and "=".

        Raises:
            ValueError: a piece is not in the vocabulary.
        """
        ids = {token: i for i, token in enumerate(self.vocab)}
        pieces = _PIECE.findall(text)
        for piece in pieces:
            if piece not in ids:
                raise ValueError(
                    f"encode: {piece!r} in {text!r} is not in the vocabulary. Allowed: "
                    f'whole numbers 0 to {self.n_numbers - 1}, "+", "=" and "{BOS}".'
                )
        return [ids[piece] for piece in pieces]

    def decode(self, tokens: Sequence[int] | Int[Tensor, " pos"]) -> str:
        """The text of token ids, spaced.

        Args:
            tokens: token ids.
        """
        return " ".join(self.vocab[int(token)] for token in tokens)

    @cached_property
    def _operands(self) -> Int[Tensor, "prompt term"]:
        values = [torch.arange(self.n_values)] * self.n_terms
        return torch.cartesian_prod(*values).reshape(-1, self.n_terms)

    @cached_property
    def _by_sum(self) -> tuple[Int[Tensor, "prompt term"], np.ndarray, np.ndarray]:
        """Training operands by ascending sum; where each sum begins, and how many."""
        rows = self._operands[~self._is_held_out]
        sums, order = rows.sum(1).sort(stable=True)
        count = np.bincount(sums.numpy(), minlength=self.n_numbers)
        return rows[order], count.cumsum() - count, count

    @cached_property
    def _is_held_out(self) -> Bool[Tensor, " prompt"]:
        terms = range(self.n_values)
        bags = list(itertools.combinations_with_replacement(terms, self.n_terms))
        ranks = np.random.SFC64(self.seed).random_raw(len(bags))
        by_sum: dict[int, list[int]] = {}
        for bag in np.argsort(ranks, kind="stable").tolist():
            by_sum.setdefault(sum(bags[bag]), []).append(bag)
        held = {
            bags[bag]
            for group in by_sum.values()
            for bag in group[: int(self.held_out * len(group))]
        }
        rows = self._operands.sort(dim=1).values.tolist()
        return torch.tensor([tuple(row) in held for row in rows])

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON values; `from_json` gives back the same task."""
        return {"task": "sums", **{f.name: getattr(self, f.name) for f in fields(self)}}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Sums":
        """Rebuild what `to_json` wrote.

        Args:
            data: what `to_json` gave.

        Raises:
            ValueError: the data describe another task or lack a part.
        """
        names = {field.name for field in fields(cls)}
        if data.get("task") != "sums" or set(data) != names | {"task"}:
            raise ValueError(
                f"from_json: no task of sums, its keys are {sorted(data)}. Allowed: "
                f"what to_json wrote, with keys {sorted(names | {'task'})}."
            )
        return cls(**{name: data[name] for name in names})
