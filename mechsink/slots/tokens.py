"""Prompts with slots as one model's tokens, and how slots are filled anew."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SlotTokens:
    """Prompts with slots, as tokens of one model.

    `names`, `positions` and `values` (tokens) are those of the slots, from left to
    right; every other position holds the same token in all prompts. `index`
    numbers the prompts among those they were taken from.

    Attributes:
        tokens: the prompts.
        answers: right next token of each; None where none was given.
        names: of the slots.
        positions: of the slots.
        values: tokens that each slot is drawn from.
        index: numbers of the prompts.

    Examples:
        >>> tokens = torch.tensor([[9, 1, 8, 2], [9, 1, 8, 3], [9, 0, 8, 2]])
        >>> slots = ms.SlotPrompts.from_tokens(tokens, slots=[1, 3])
        >>> given = slots.tokens(ms.planted("induction").model)
        >>> given.positions, [value.tolist() for value in given.values]
        ((1, 3), [[0, 1], [2, 3]])
        >>> given.picks(tokens).tolist()
        [[1, 0], [1, 1], [0, 0]]
    """

    tokens: Int[Tensor, "prompt pos"]
    answers: Int[Tensor, " prompt"] | None
    names: tuple[str, ...]
    positions: tuple[int, ...]
    values: tuple[Int[Tensor, " _"], ...]
    index: list[int]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def n_pos(self) -> int:
        """Tokens a prompt."""
        return self.tokens.shape[1]

    def rows(
        self, chosen: Int[Tensor, " row"] | Bool[Tensor, " prompt"] | slice
    ) -> "SlotTokens":
        """Some of the prompts, in the order chosen; the slots' values stay."""
        kept = torch.arange(len(self), device=self.tokens.device)[chosen]
        return replace(
            self,
            tokens=self.tokens[kept],
            answers=None if self.answers is None else self.answers[kept],
            index=[self.index[i] for i in kept.tolist()],
        )

    def redrawn(self, picks: Int[Tensor, "row slot"]) -> Int[Tensor, "row pos"]:
        """Prompt 0 with its first slots, as many as given, set to picked values.

        Args:
            picks: number of the value that each slot gets.
        """
        rows = self.tokens[:1].repeat(len(picks), 1)
        for slot in range(picks.shape[1]):
            value = self.values[slot][picks[:, slot].to(rows.device)]
            rows[:, self.positions[slot]] = value
        return rows

    def picks(self, tokens: Int[Tensor, "row pos"]) -> Int[Tensor, "row slot"]:
        """Which value each slot holds in prompts of this template.

        Args:
            tokens: prompts.

        Raises:
            ValueError: another length, another template, or an unknown value.
        """
        tokens = tokens.to(self.tokens.device)
        fixed = torch.ones(self.n_pos, dtype=torch.bool, device=tokens.device)
        fixed[list(self.positions)] = False
        if tokens.shape[1] != self.n_pos or bool(
            (tokens != self.tokens[:1])[:, fixed].any()
        ):
            raise ValueError(
                f"slots: the prompts ({tokens.shape[1]} tokens) do not follow this "
                f"{self.n_pos}-token template. Outside the slots at positions "
                f"{list(self.positions)} every token must be the template's: use "
                "`slot_prompts.tokens(model).tokens`."
            )
        found = []
        for name, position, values in zip(
            self.names, self.positions, self.values, strict=True
        ):
            same = tokens[:, position, None] == values
            if not bool(same.any(1).all()):
                other = tokens[~same.any(1), position][0]
                raise ValueError(
                    f"slots: token {int(other)} stands in slot {name!r}, but is none "
                    f"of its {len(values)} values. Add it to the slot's values."
                )
            found.append(same.int().argmax(1))
        return torch.stack(found, 1)


def slots_at(
    tokens: Int[Tensor, "prompt pos"],
    slots: Sequence[int],
    answers: Int[Tensor, " answer"] | None,
    values: Mapping[int, Sequence[int]] | None,
) -> SlotTokens:
    """Prompts given as tokens, whose slots are positions: `SlotPrompts.from_tokens`."""
    n_pos, positions = tokens.shape[1], sorted(set(slots))
    varies = (tokens != tokens[:1]).any(0).nonzero()[:, 0].tolist()
    if (
        not len(tokens)
        or not positions
        or not set(varies) <= set(positions) <= set(range(n_pos))
    ):
        raise ValueError(
            f"SlotPrompts.from_tokens: slots={list(slots)}, but among the "
            f"{len(tokens)} prompts of {n_pos} tokens positions {varies} vary. "
            f"Name these, and any of 0 to {n_pos - 1} besides."
        )
    if answers is not None and len(answers) != len(tokens):
        raise ValueError(
            f"SlotPrompts.from_tokens: {len(answers)} answers for {len(tokens)} "
            "prompts. Give one token for each prompt."
        )
    drawn = values or {}
    own = [
        torch.as_tensor(sorted(set(drawn[p])), device=tokens.device)
        if p in drawn
        else torch.unique(tokens[:, p])
        for p in positions
    ]
    given = SlotTokens(
        tokens,
        answers,
        tuple(str(p) for p in positions),
        tuple(positions),
        tuple(own),
        list(range(len(tokens))),
    )
    given.picks(tokens)
    return given
