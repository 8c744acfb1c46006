"""A set of prompts in pairs, with what was dropped while making it."""

import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from mechsink.files import atomic_write
from mechsink.prompt_sets.accuracy import Accuracy, accuracy
from mechsink.prompt_sets.candidates import (
    Candidate,
    leading,
    next_token,
    spelling,
    token_rows,
)
from mechsink.prompts import PromptPairs
from mechsink.run import Model

DRAWS = 50
"""Candidates tried for each pair that is asked for, before a task gives up."""


@dataclass(frozen=True, eq=False, repr=False)
class PromptSet:
    """Pairs of prompts that one tokenizer keeps aligned, token by token.

    `pairs`: what every measurement takes; texts (of `induction`, tokens) with the
    answers as tokens, as they follow in context. `table`: one row a pair: pair,
    clean, corrupted, answer, wrong, n_tokens, then what fills the template, a
    column a slot, and corrupted_SLOT where it is exchanged in some pair. `dropped`:
    reason to number of candidates that were made and could not be used. `left_out`:
    words that were never tried, because they are not one token here. `settings`:
    the call that makes the set again, and the model whose tokenizer it fits.

    Attributes:
        name: of the task.
        spellings: token to text.

    Examples:
        >>> model = ms.planted("induction").model
        >>> found = ms.prompt_sets.induction(model, n=20, length=5, repeated=2)
        >>> choose, measure = found.split(0.5)
        >>> len(choose), len(measure), list(found.table)
        (10, 10, ['pair', 'clean', 'corrupted', 'answer', 'wrong', 'A', 'B', 'position',
        'n_tokens'])
    """

    name: str
    pairs: PromptPairs
    table: pd.DataFrame
    dropped: Mapping[str, int]
    settings: Mapping[str, Any]
    left_out: Sequence[str] = ()
    spellings: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pairs)

    def __repr__(self) -> str:
        why = "".join(f"; {n}: {reason}" for reason, n in self.dropped.items())
        return (
            f"PromptSet({self.name}: {self.n_made} made, {self.n_dropped} dropped{why})"
        )

    @property
    def n_made(self) -> int:
        """Pairs in the set; fewer than asked for where no more could be made."""
        return len(self.pairs)

    @property
    def n_dropped(self) -> int:
        """Candidates that did not align, or whose answer is not one token."""
        return sum(self.dropped.values())

    def accuracy(self, model: Model, *, batch_size: int = 16) -> Accuracy:
        """How often the model's answer is the right one, with intervals.

        Args:
            model: the model whose tokenizer the set fits.
            batch_size: prompts a forward pass.

        Returns:
            An `Accuracy`, one row a pair.

        Raises:
            ValueError: the model's tokenizer is not the one the set was made for.
        """
        self._check_tokenizer(model)
        return accuracy(
            model,
            self.pairs,
            batch_size=batch_size,
            prompt_set={**self.settings, "n_made": self.n_made},
            dropped=dict(self.dropped),
        )

    def subset(self, chosen: Sequence[int]) -> "PromptSet":
        """Some of the pairs, numbered anew; `dropped` stays as it was.

        Args:
            chosen: numbers of pairs, from 0.

        Raises:
            ValueError: no pair, or one that is not there.
        """
        chosen = list(chosen)
        if not chosen or not all(0 <= i < len(self) for i in chosen):
            raise ValueError(
                f"PromptSet.subset: {chosen[:8]} of {len(self)} pairs. Name at least "
                f"one of 0 to {len(self) - 1}."
            )
        pairs = replace(
            self.pairs,
            **{
                key: _some(getattr(self.pairs, key), chosen)
                for key in ("clean", "corrupted", "answers", "wrong")
            },
        )
        table = self.table.iloc[chosen].assign(pair=range(len(chosen)))
        return replace(self, pairs=pairs, table=table.reset_index(drop=True))

    def split(
        self, share: float = 0.5, seed: int = 0
    ) -> tuple["PromptSet", "PromptSet"]:
        """Two sets without a pair in common: to find on one, to measure on the other.

        Args:
            share: of the pairs that go into the first set, rounded.
            seed: of the draw.

        Raises:
            ValueError: one of the two would be empty.
        """
        n_first = round(share * len(self))
        if not 0 < n_first < len(self):
            raise ValueError(
                f"PromptSet.split: share={share} of {len(self)} pairs puts {n_first} "
                "into the first set. Allowed: a share that leaves at least one pair "
                "in each, such as 0.5; make more pairs with n=."
            )
        first = set(random.Random(seed).sample(range(len(self)), n_first))
        rest = [i for i in range(len(self)) if i not in first]
        return self.subset(sorted(first)), self.subset(rest)

    def to_jsonl(self, path: Path | str) -> Path:
        """Write one pair a line, as `PromptPairs.from_jsonl` reads it.

        Args:
            path: file to write.

        Returns:
            The path.

        Raises:
            ValueError: prompts that are tokens, or an answer that this tokenizer
                makes in context but of no text alone.
            OSError: the path cannot be written.
        """
        if not isinstance(self.pairs.clean[0], str):
            raise ValueError(
                f"PromptSet.to_jsonl: the prompts of {self.name} are tokens, not "
                "texts. Make the set anew where you need it: the same call and seed "
                "give the same tokens."
            )
        lines = []
        for i in range(len(self)):
            line = {"clean": self.pairs.clean[i], "corrupted": self.pairs.corrupted[i]}
            for key, tokens in (
                ("answer", self.pairs.answers),
                ("wrong", self.pairs.wrong),
            ):
                assert isinstance(tokens, Tensor)
                text = self.spellings.get(int(tokens[i]))
                if text is None:
                    raise ValueError(
                        f"PromptSet.to_jsonl: {self.table[key][i]!r} is one token "
                        f"after prompt {i}, but this tokenizer makes that token of "
                        "no text alone. Use the set's `pairs`, or make it anew: the "
                        "same call and seed give the same pairs."
                    )
                line[key] = text
            lines.append(json.dumps(line, ensure_ascii=False))
        return atomic_write(path, "\n".join(lines) + "\n")

    def _check_tokenizer(self, model: Model) -> None:
        if not isinstance(self.pairs.clean[0], str):
            return
        tokens, answers = self.pairs.answers, self.table["answer"].tolist()
        assert isinstance(tokens, Tensor)  # as `make` puts them
        for pair, token in enumerate(tokens.tolist()):
            text, answer = str(self.pairs.clean[pair]), answers[pair]
            if next_token(model, text, answer) != token:
                raise ValueError(
                    f"PromptSet: this {self.name} set was made for the tokenizer of "
                    f"{self.settings['model']}; {model.name} makes other tokens of "
                    f"{text + answer!r}. Make it anew: "
                    f"ms.prompt_sets.{self.name}(model, n={len(self)})."
                )


def make(
    name: str,
    model: Model,
    candidates: Iterable[Candidate],
    n: int,
    settings: Mapping[str, Any],
    left_out: Sequence[str] = (),
) -> PromptSet:
    """Take candidates, in order and no prompt twice, until `n` pairs are made.

    Raises:
        ValueError: `n` below 1, or not one candidate can be used.
    """
    check_n(name, n)
    first = leading(model)
    dropped: Counter[str] = Counter()
    taken, spellings = [], {}
    made, tried = set(), set()
    for candidate in candidates:
        text = candidate.template.format(**candidate.clean)
        pair = (text, candidate.template.format(**candidate.corrupted))
        if text in made or pair in tried:
            continue
        tried.add(pair)
        rows = token_rows(model, candidate, first)
        if isinstance(rows, str):
            dropped[rows] += 1
            continue
        made.add(text)
        taken.append((candidate, rows))
        for more, token in (
            (candidate.answer, rows.answer),
            (candidate.wrong, rows.wrong),
        ):
            if token not in spellings:
                spellings[token] = spelling(model, more, token, first)
        if len(taken) == n:
            break
    if not taken:
        raise none_made(name, n, dropped, left_out)
    corrupted = [c.template.format(**c.corrupted) for c, _ in taken]
    pairs = PromptPairs(
        [c.template.format(**c.clean) for c, _ in taken],
        corrupted,
        torch.tensor([rows.answer for _, rows in taken]),
        torch.tensor([rows.wrong for _, rows in taken]),
    )
    return PromptSet(
        name,
        pairs,
        _table(pairs, taken),
        dict(dropped),
        {"prompt_set": name, "n": n, **settings, "model": model.name},
        list(left_out),
        {token: text for token, text in spellings.items() if text is not None},
    )


def check_n(name: str, n: int) -> None:
    """Refuse to make no pairs."""
    if n < 1:
        raise ValueError(
            f"prompt_sets.{name}: n={n}. Allowed: 1 or more pairs, such as 100."
        )


def none_made(
    name: str, n: int, dropped: Mapping[str, int], left_out: Sequence[str]
) -> ValueError:
    """The error of a set that stays empty: how much was tried, and what failed."""
    why = "; ".join(f"{count}: {reason}" for reason, count in dropped.items())
    words = f" {len(left_out)} words are not one token here." if left_out else ""
    return ValueError(
        f"prompt_sets.{name}: 0 of n={n} pairs could be made with this tokenizer. "
        f"{sum(dropped.values())} candidates were dropped"
        f"{f' ({why})' if why else ''}.{words} Take another prompt set "
        "(induction works with every vocabulary), or write pairs of your own as "
        "PromptPairs."
    )


def _table(pairs: PromptPairs, taken: Sequence[tuple[Candidate, Any]]) -> pd.DataFrame:
    exchanged = {slot for candidate, _ in taken for slot in candidate.exchanged}
    rows = []
    for i, (candidate, tokens) in enumerate(taken):
        rows.append(
            {
                "pair": i,
                "clean": pairs.clean[i],
                "corrupted": pairs.corrupted[i],
                "answer": candidate.answer,
                "wrong": candidate.wrong,
                "n_tokens": len(tokens.clean),
                **candidate.info,
                **candidate.clean,
                **{
                    f"corrupted_{slot}": value
                    for slot, value in candidate.corrupted.items()
                    if slot in exchanged
                },
            }
        )
    return pd.DataFrame(rows)


def _some(values: Any, chosen: Sequence[int]) -> Any:
    if isinstance(values, Tensor):
        return values[list(chosen)]
    return [values[i] for i in chosen]
