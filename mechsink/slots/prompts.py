"""Prompts from a template with slots.

Slots are drawn independently and uniformly from their values: that distribution is
what context-aware means (interventions/context_mean.py) are taken over.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechsink.run import Model
from mechsink.slots.columns import Columns, combination
from mechsink.slots.places import fitting, next_token, not_one_token
from mechsink.slots.template import check_template
from mechsink.slots.tokens import SlotTokens, slots_at

CHECKED = 2000
"""Combinations of values that are tokenised to see that the template holds still."""


@dataclass(frozen=True, eq=False)
class SlotPrompts:
    """A template, the values of its slots, and the answer to each combination.

    Every slot is drawn independently and uniformly from its values. Few-shot
    examples are simply part of the template; write a brace as {{ or }}.

    Args:
        template: text with each slot once, "{A}+{B}=".
        slots: slot name to its values, at least two different ones.
        answer: the slots' values to the text that follows the prompt, with its
            leading space where the model writes one; None for no answers.
        n: prompts to draw without replacement; None takes every combination.
        seed: of that draw.
        dropped: values left out by `one_token`, for the record.

    Raises:
        ValueError: slots that don't match the template, or too large an `n`.

    Examples:
        >>> slots = {"A": range(10), "B": range(10)}
        >>> prompts = ms.SlotPrompts("{A} + {B} =", slots, lambda A, B: f" {A + B}")
        >>> len(prompts), prompts.text(12), prompts.values(12)
        (100, '1 + 2 =', {'A': 1, 'B': 2})
        >>> len(prompts.where(lambda A, B: A + B < 10))
        55
    """

    template: str
    slots: Mapping[str, Sequence[Any]]
    answer: Callable[..., Any] | None = None
    n: int | None = None
    seed: int = 0
    dropped: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    _chosen: Sequence[int] | None = None  # numbers of combinations, after a subset
    _given: SlotTokens | None = None  # from_tokens

    def __post_init__(self) -> None:
        if self._given is None:
            check_template(self.template, self.slots, self.n)

    @classmethod
    def from_tokens(
        cls,
        tokens: Int[Tensor, "prompt pos"],
        slots: Sequence[int],
        *,
        answers: Int[Tensor, " answer"] | None = None,
        values: Mapping[int, Sequence[int]] | None = None,
    ) -> "SlotPrompts":
        """Prompts given as tokens, whose slots are positions.

        Args:
            tokens: prompts that are alike outside the slots.
            slots: positions that vary; they are named by their numbers.
            answers: right next token of each prompt.
            values: position to the tokens it is drawn from; default: those seen.

        Returns:
            The prompts, Int[prompt pos] with the given slots.

        Raises:
            ValueError: a position that is outside or varies without being a slot,
                or a token that is none of its slot's values.
        """
        given = slots_at(tokens, slots, answers, values)
        listed = {
            name: own.tolist()
            for name, own in zip(given.names, given.values, strict=True)
        }
        return cls("", listed, _given=given)

    @classmethod
    def one_token(
        cls,
        model: Model,
        template: str,
        slots: Mapping[str, Sequence[Any]],
        answer: Callable[..., Any] | None = None,
        *,
        n: int | None = None,
        seed: int = 0,
    ) -> "SlotPrompts":
        """The same prompts without the values that are not one token in `model`.

        What was left out stands in `.dropped`, slot name to values.

        Args:
            model: whose tokenizer decides.
            template: as for the class.
            slots: as for the class; values of several tokens are left out.
            answer: as for the class.
            n: as for the class.
            seed: as for the class.

        Returns:
            The prompts that are left.

        Raises:
            ValueError: fewer than two values of a slot are left.
        """
        kept, dropped = {}, {}
        cls(template, slots)  # refuses what does not fit together
        for name, values in slots.items():
            fits = fitting(model, template, slots, name)[1]
            kept[name] = [v for v, fit in zip(values, fits, strict=True) if fit]
            dropped[name] = [v for v, fit in zip(values, fits, strict=True) if not fit]
            if len(kept[name]) < 2:
                raise not_one_token(model, template, slots, name)
        return cls(template, kept, answer, n, seed, dropped)

    def __len__(self) -> int:
        return len(self._numbers) if self._given is None else len(self._given)

    @property
    def n_combinations(self) -> int:
        """Ways to fill the slots."""
        return math.prod(len(values) for values in self.slots.values())

    def values(self, i: int) -> dict[str, Any]:
        """What the slots hold in prompt i.

        Args:
            i: number of the prompt, from 0.
        """
        if self._given is not None:
            held = self._given.tokens[i, list(self._given.positions)].tolist()
            return dict(zip(self._given.names, held, strict=True))
        return combination(self.slots, self._numbers[i])

    def text(self, i: int) -> str:
        """Prompt i, of a text template.

        Args:
            i: number of the prompt, from 0.
        """
        return self.template.format(**self.values(i))

    def subset(self, chosen: Sequence[int] | Bool[Tensor, " prompt"]) -> "SlotPrompts":
        """Some of the prompts; slots are still drawn from all their values.

        Args:
            chosen: numbers of prompts, or one truth value for each.

        Raises:
            ValueError: no prompt, or one that is not there.
        """
        if isinstance(chosen, Tensor):
            chosen = chosen.nonzero()[:, 0].tolist()
        if not len(chosen) or not all(0 <= i < len(self) for i in chosen):
            raise ValueError(
                f"SlotPrompts.subset: {list(chosen)[:8]} of {len(self)} prompts. Name "
                f"at least one of 0 to {len(self) - 1}."
            )
        if self._given is not None:
            return replace(self, _given=self._given.rows(torch.tensor(list(chosen))))
        return replace(self, _chosen=[self._numbers[i] for i in chosen])

    def sample(self, n: int, seed: int = 0) -> "SlotPrompts":
        """`n` of the prompts, drawn without replacement (all, if there are fewer).

        Args:
            n: how many.
            seed: of the draw.
        """
        drawn = random.Random(seed).sample(range(len(self)), min(n, len(self)))
        return self.subset(sorted(drawn))

    def where(self, keep: Callable[..., bool]) -> "SlotPrompts":
        """The prompts whose slot values `keep` accepts, by name as `answer` does.

        Args:
            keep: called with the slots' values by name.
        """
        kept = [i for i in range(len(self)) if keep(**self.values(i))]
        return self.subset(kept)

    def answered(self, model: Model, batch_size: int = 32) -> Bool[Tensor, " prompt"]:
        """Which prompts the model gets right: its likeliest next token is the answer.

        `prompts.subset(prompts.answered(model))` keeps those.

        Args:
            model: any model.
            batch_size: prompts a forward pass.

        Raises:
            ValueError: prompts without answers.
        """
        own = self.tokens(model)
        if own.answers is None:
            raise ValueError(
                "SlotPrompts.answered: these prompts have no answers. Pass answer= "
                "(or answers= to from_tokens)."
            )
        rows = own.tokens.split(batch_size)
        likeliest = [model.run(part).logits[:, -1].argmax(-1) for part in rows]
        return (torch.cat(likeliest) == own.answers).cpu()

    def tokens(self, model: Model) -> SlotTokens:
        """The prompts as a model's tokens.

        Each value is tokenised in its place, and up to `CHECKED` combinations
        besides (all of them where there are no more), so that a slot is known to
        be one token at one position whatever the others hold.

        Args:
            model: whose tokenizer reads them.

        Returns:
            `SlotTokens`: tokens Int[prompt pos], and where the slots are.

        Raises:
            ValueError: a value of several tokens, a template that changes with its
                slots, or an answer of several tokens.
        """
        if self._given is not None:
            own, device = self._given, model.device
            return replace(
                own,
                tokens=own.tokens.to(device),
                answers=None if own.answers is None else own.answers.to(device),
                values=tuple(values.to(device) for values in own.values),
                index=list(range(len(own))),
            )
        columns = Columns.of(model, self.template, self.slots)
        checked = list(self._numbers[:CHECKED])
        spare = min(CHECKED, self.n_combinations) - len(checked)
        checked += random.Random(0).sample(range(self.n_combinations), spare)
        columns.check(model, checked)
        order = columns.order
        return SlotTokens(
            columns.rows(self._numbers),
            self._answers(model),
            tuple(order),
            tuple(columns.positions[name] for name in order),
            tuple(columns.tokens[name] for name in order),
            list(range(len(self))),
        )

    @cached_property
    def _numbers(self) -> Sequence[int]:
        """Which combinations the prompts are."""
        if self._chosen is not None:
            return self._chosen
        every = range(self.n_combinations)
        if self.n is None:
            return every
        return random.Random(self.seed).sample(every, self.n)

    def _answers(self, model: Model) -> Tensor | None:
        if self.answer is None:
            return None
        known: dict[str, Tensor] = {}
        tokens = []
        for i in range(len(self)):
            answer = str(self.answer(**self.values(i)))
            if answer not in known:
                known[answer] = next_token(model, self.text(i), answer)
            tokens.append(known[answer])
        return torch.stack(tokens)


def as_slot_tokens(model: Model, prompts: SlotPrompts | SlotTokens) -> SlotTokens:
    """Either form, as the model's tokens."""
    return prompts.tokens(model) if isinstance(prompts, SlotPrompts) else prompts
