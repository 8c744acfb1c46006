"""`Choices`: multiple-choice prompts as tokens, with where their labels stand."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsink.metrics import at_least_float32
from mechsink.prompt_sets.candidates import next_token, row
from mechsink.prompt_sets.sets import PromptSet
from mechsink.prompts import PromptPairs, TokenPairs
from mechsink.run import Model, Run
from mechsink.sites import Site

Rows = Int[Tensor, "prompt _"] | Sequence[Int[Tensor, " _"]]


@dataclass(frozen=True, eq=False)
class Choices:
    """Questions with labelled options; the last token is where the label is said.

    Args:
        tokens: prompts, Int[prompt pos] or a list of Int[pos].
        labels: the tokens that would answer, in the order of the options.
        correct: which of them is right, from 0.
        places: position of each label in its prompt, from 0.
        other: for each prompt one of the same length with another right answer,
            whose activations stand in where nodes are patched; None: another of
            these prompts (`paired`).

    Raises:
        ValueError: shapes that do not match; fewer than two labels; a right answer or
            a position that is not there.

    Examples:
        >>> from toy_tasks.planted import LABEL_POSITIONS
        >>> pairs = ms.planted("letter").pairs
        >>> choices = ms.Choices.at(pairs.clean, LABEL_POSITIONS, pairs.answers)
        >>> len(choices), tuple(choices.labels.shape)
        (12, (12, 4))
        >>> choices.weights[0]
        tensor([-0.3333, -0.3333,  1.0000, -0.3333], dtype=torch.float64)
    """

    tokens: Rows
    labels: Int[Tensor, "prompt label"]
    correct: Int[Tensor, " prompt"]
    places: Int[Tensor, "prompt label"]
    other: Rows | None = None

    def __post_init__(self) -> None:
        n, n_labels = self.labels.shape
        counts = {len(self.tokens), len(self.correct), len(self.places), n}
        counts |= set() if self.other is None else {len(self.other)}
        if len(counts) > 1 or self.places.shape != self.labels.shape or not n:
            raise ValueError(
                f"Choices: {len(self.tokens)} prompts, labels "
                f"{tuple(self.labels.shape)}, places {tuple(self.places.shape)}, "
                f"{len(self.correct)} right answers. "
                "Give one row, or one number, for each prompt."
            )
        if n_labels < 2 or not ((self.correct >= 0) & (self.correct < n_labels)).all():
            raise ValueError(
                f"Choices: {n_labels} labels, right answers "
                f"{sorted(set(self.correct.tolist()))}. Allowed: at least two labels, "
                f"and 0 to {n_labels - 1}."
            )
        lengths = torch.tensor([len(prompt) for prompt in self.tokens])
        if not ((self.places >= 0) & (self.places.cpu() < lengths[:, None])).all():
            raise ValueError(
                "Choices: a label stands outside its prompt. Count places from 0, the "
                "first token."
            )

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def at(
        cls,
        tokens: Int[Tensor, "prompt pos"],
        places: Sequence[int],
        answers: Int[Tensor, " prompt"],
        other: Int[Tensor, "prompt pos"] | None = None,
    ) -> "Choices":
        """Prompts whose labels are the answers themselves and stand at fixed places.

        Args:
            tokens: prompts.
            places: positions of the labels, the same in every prompt.
            answers: the right label's token of each prompt.
            other: prompts with another right answer, as for the class.

        Raises:
            ValueError: an answer is none of its prompt's labels.
        """
        labels = tokens[:, list(places)]
        is_right = labels == answers[:, None]
        if not (is_right.sum(1) == 1).all():
            raise ValueError(
                f"Choices.at: the answers are not one each of the labels at {places}. "
                "Give the label's own token as answer."
            )
        found = torch.tensor(list(places)).expand(len(tokens), -1)
        return cls(tokens, labels, is_right.int().argmax(1), found, other)

    @classmethod
    def of_set(cls, model: Model, prompts: PromptSet) -> "Choices":
        """A set made by `prompt_sets.multiple_choice`, as this model's tokens.

        Its corrupted prompts (another question on the same options) are `other`.

        Args:
            model: whose tokens they become.
            prompts: the set.

        Raises:
            ValueError: another set; a label that is no token of its own here.
        """
        table = prompts.table
        names = [f"label{i}" for i in range(4)]
        if not {*names, "place"} <= set(table):
            raise ValueError(
                f"Choices.of_set: {prompts.name} has no labels. Make the prompts with "
                "ms.prompt_sets.multiple_choice(model, n)."
            )
        columns: dict[str, list[list[int]]] = {"labels": [], "places": []}
        for i, text in enumerate(map(str, prompts.pairs.clean)):
            shown = [str(table[name][i]) for name in names]
            options = [str(table[f"option{n}"][i]) for n in range(4)]
            said = [next_token(model, text, f" {label}") for label in shown]
            columns["labels"].append([_known(token, text) for token in said])
            columns["places"].append(_places(model, text, shown, options))
        clean, corrupted = (
            [torch.tensor(row(model, str(text))) for text in texts]
            for texts in (prompts.pairs.clean, prompts.pairs.corrupted)
        )
        correct = torch.tensor([int(place) for place in table["place"]])
        labels, places = (torch.tensor(rows) for rows in columns.values())
        return cls(clean, labels, correct, places, corrupted)

    @property
    def answers(self) -> Int[Tensor, " prompt"]:
        """The right label's token."""
        return self.labels.gather(1, self.correct[:, None])[:, 0]

    @property
    def weights(self) -> Float[Tensor, "prompt label"]:
        """1 for the right label, else -1 / the number of others."""
        n = self.labels.shape[1]
        weights = torch.full(self.labels.shape, -1 / (n - 1), dtype=torch.float64)
        return weights.scatter(1, self.correct.cpu()[:, None], 1.0)

    def alone(self) -> PromptPairs:
        """These prompts, their right labels as answers."""
        clean = [prompt for prompt in self.tokens]
        # pad=-1: nothing is taken off, since `places` count from the first token.
        return PromptPairs(clean, clean, self.answers, pad=-1)

    def paired(self, seed: int = 0) -> PromptPairs:
        """These prompts with `other` as corrupted ones.

        Without `other`, another of these prompts, of the same length and with another
        right answer, drawn by `seed`.

        Args:
            seed: of drawing another question, where none is given.

        Raises:
            ValueError: there is no such prompt.
        """
        clean = [prompt for prompt in self.tokens]
        if self.other is not None:
            other = [prompt for prompt in self.other]
        else:
            generator = torch.Generator().manual_seed(seed)
            other = [clean[self._drawn(i, generator)] for i in range(len(clean))]
        return replace(self.alone(), corrupted=other)

    def _drawn(self, i: int, generator: torch.Generator) -> int:
        fit = [
            j
            for j in range(len(self))
            if len(self.tokens[j]) == len(self.tokens[i])
            and self.correct[j] != self.correct[i]
        ]
        if not fit:
            raise ValueError(
                f"Choices: no other prompt has the {len(self.tokens[i])} tokens of "
                f"prompt {i} and another right answer, to take activations from. Give "
                "other=, one for each prompt."
            )
        return fit[int(torch.randint(len(fit), (1,), generator=generator))]


@dataclass(frozen=True, eq=False, repr=False)
class LabelMargin:
    """Logit of the right label minus the mean of the other labels', last position."""

    choices: Choices
    reads: frozenset[Site] = frozenset()
    logits_read = "last"

    def __repr__(self) -> str:
        return "label_margin"

    def __call__(self, run: Run, prompts: TokenPairs) -> Float[Tensor, " prompt"]:
        """One difference a prompt."""
        logits = at_least_float32(_label_logits(self.choices, run, prompts))
        return (logits * self.choices.weights[prompts.index].to(logits)).sum(-1)


@dataclass(frozen=True, eq=False, repr=False)
class LabelIsRight:
    """1 where the right label's logit exceeds every other label's, else 0."""

    choices: Choices
    reads: frozenset[Site] = frozenset()
    logits_read = "last"

    def __repr__(self) -> str:
        return "label_is_right"

    def __call__(self, run: Run, prompts: TokenPairs) -> Float[Tensor, " prompt"]:
        """One 0 or 1 a prompt; ties are wrong."""
        logits = _label_logits(self.choices, run, prompts)
        correct = self.choices.correct[prompts.index].to(logits.device)[:, None]
        best_other = logits.scatter(1, correct, float("-inf")).amax(1)
        return (logits.gather(1, correct)[:, 0] > best_other).to(logits.dtype)


def _label_logits(
    choices: Choices, run: Run, prompts: TokenPairs
) -> Float[Tensor, "prompt label"]:
    labels = choices.labels[prompts.index].to(run.logits.device)
    return run.logits[:, -1].gather(1, labels)


def _known(token: int | None, text: str) -> int:
    if token is None:
        raise ValueError(
            f"Choices.of_set: a label is not one token after {text[-24:]!r}. Make the "
            "set with other labels=."
        )
    return token


def _places(
    model: Model, text: str, labels: Sequence[str], options: Sequence[str]
) -> list[int]:
    """Position of each label's token, found by the text before it."""
    lines = [
        f"\n{label}. {option}" for label, option in zip(labels, options, strict=True)
    ]
    start = text.rindex("".join(lines))  # examples before it have labels too
    whole, found = row(model, text), []
    for label, line in zip(labels, lines, strict=True):
        upto = row(model, text[: start + 1 + len(label)])
        alone = row(model, text[: start + 1])
        one_more = len(upto) == len(alone) + 1 and upto[:-1] == alone
        if not one_more or whole[: len(upto)] != upto:
            raise ValueError(
                f"Choices.of_set: label {label!r} is no token of its own in "
                f"{line!r} here. Make the set with other labels=."
            )
        found.append(len(upto) - 1)
        start += len(line)
    return found
