"""A template's slots as columns of tokens: combinations of values become rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mechsink.run import Model
from mechsink.slots.places import Slots, fitting, not_one_token


def combination(slots: Slots, number: int) -> dict[str, Any]:
    """What the slots hold in combination `number`; the last slot turns fastest."""
    held = {}
    for name, values in reversed(list(slots.items())):
        number, pick = divmod(number, len(values))
        held[name] = values[pick]
    return {name: held[name] for name in slots}


@dataclass(frozen=True)
class Columns:
    """Where each slot stands, by name, and the token of each of its values there."""

    template: str
    slots: Slots
    row: Int[Tensor, " pos"]  # all slots with their first values
    positions: dict[str, int]
    tokens: dict[str, Int[Tensor, " _"]]

    @classmethod
    def of(cls, model: Model, template: str, slots: Slots) -> "Columns":
        """Tokenise each value in its place.

        Raises:
            ValueError: a value that is not one token there.
        """
        positions, tokens = {}, {}
        for name in slots:
            position, fits, rows = fitting(model, template, slots, name)
            if not all(fits):
                raise not_one_token(model, template, slots, name)
            positions[name] = position
            tokens[name] = torch.stack([row[position] for row in rows])
        first = model.to_tokens(template.format(**combination(slots, 0)))[0]
        return cls(template, slots, first, positions, tokens)

    @property
    def order(self) -> list[str]:
        """The slots from left to right."""
        return sorted(self.positions, key=lambda name: self.positions[name])

    def rows(self, numbers: Sequence[int]) -> Int[Tensor, "row pos"]:
        """The prompts of these combinations."""
        sizes = [len(values) for values in self.slots.values()]
        picks = torch.unravel_index(torch.tensor(list(numbers)), sizes)
        rows = self.row.repeat(len(numbers), 1)
        for name, pick in zip(self.slots, picks, strict=True):
            rows[:, self.positions[name]] = self.tokens[name][pick.to(rows.device)]
        return rows

    def check(self, model: Model, numbers: Sequence[int]) -> None:
        """Raise ValueError where a combination is tokenised to another row."""
        for number, want in zip(numbers, self.rows(numbers), strict=True):
            text = self.template.format(**combination(self.slots, number))
            got = model.to_tokens(text)[0]
            if got.tolist() != want.tolist():
                raise ValueError(
                    f"SlotPrompts: {text!r} becomes {model.to_strings(got)} here, not "
                    f"{model.to_strings(want)}: the slots' tokens depend on each "
                    "other. Part them by a space or a sign."
                )
