"""One pair before it is taken: does a tokenizer keep it aligned, token by token?

Nothing is tokenised apart from its prompt: a word's tokens are those by which the
whole prompt changes when this word alone is exchanged, an answer's token is what
follows the whole prompt.
"""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mechsink.run import Model

UNEQUAL = "clean and corrupted have unequal numbers of tokens"
NOT_ALIGNED = "tokens differ outside the exchanged words"
SEVERAL = "an exchanged word is several tokens"
ANSWER = "the answer is not one token after the prompt"
EQUAL = "answer and wrong answer are the same token"
UNKNOWN = "a word is unknown to the tokenizer"
TOO_LONG = "the prompt is longer than the model's context"


@dataclass(frozen=True)
class Candidate:
    """A template filled twice, and how the prompts go on.

    `clean` and `corrupted` hold the same slots; those that differ are exchanged.
    `single` names slots that must be one token where they are exchanged. `answer`
    and `wrong` are continuations, with their leading space. `info` is more to say
    of the pair in the table.
    """

    template: str
    clean: Mapping[str, str]
    corrupted: Mapping[str, str]
    answer: str
    wrong: str
    single: Sequence[str] = ()
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def exchanged(self) -> list[str]:
        """The slots whose values differ, in the template's order."""
        named = [name for _, name, _, _ in string.Formatter().parse(self.template)]
        return [n for n in named if n and self.clean[n] != self.corrupted[n]]


@dataclass(frozen=True)
class TokenRows:
    """A candidate as tokens: both prompts, and one token for each answer."""

    clean: list[int]
    corrupted: list[int]
    answer: int
    wrong: int


def token_rows(
    model: Model, candidate: Candidate, first: Sequence[int] = ()
) -> TokenRows | str:
    """The candidate's tokens, or the reason why it cannot be used.

    `first`: what the tokenizer puts before every text (`leading`).
    """
    template = candidate.template
    clean_text = template.format(**candidate.clean)
    corrupted_text = template.format(**candidate.corrupted)
    clean, corrupted = row(model, clean_text), row(model, corrupted_text)
    if len(clean) != len(corrupted):
        return UNEQUAL
    if len(clean) > model.shape.n_ctx:
        return TOO_LONG
    why = _misaligned(model, candidate, clean, corrupted)
    if why is not None:
        return why
    follows = []
    for text in (candidate.answer, candidate.wrong):
        after = {next_token(model, t, text) for t in (clean_text, corrupted_text)}
        if len(after) > 1 or None in after:
            return ANSWER
        follows += after
    answer, wrong = follows
    unknown = unknown_token(model)
    if unknown in [*clean[len(first) :], *corrupted[len(first) :], answer, wrong]:
        return UNKNOWN
    if answer == wrong:
        return EQUAL
    return TokenRows(clean, corrupted, answer, wrong)


def _misaligned(
    model: Model, candidate: Candidate, clean: list[int], corrupted: list[int]
) -> str | None:
    """Why the rows differ in more than the exchanged words; None if they don't."""
    composed, last = list(clean), -1
    for slot in candidate.exchanged:
        values = {**candidate.clean, slot: candidate.corrupted[slot]}
        alone = row(model, candidate.template.format(**values))
        if len(alone) != len(clean):
            return UNEQUAL
        places = [i for i in range(len(clean)) if alone[i] != clean[i]]
        if not places:
            return UNKNOWN  # two words, one token: nothing would be exchanged
        if places[0] <= last:
            return NOT_ALIGNED  # it reaches into the word before
        if slot in candidate.single and len(places) > 1:
            return SEVERAL
        for i in places:
            composed[i] = alone[i]
        last = places[-1]
    return None if composed == corrupted else NOT_ALIGNED


def row(model: Model, text: str) -> list[int]:
    """A whole prompt's tokens."""
    return model.to_tokens(text)[0].tolist()


def next_token(model: Model, text: str, more: str) -> int | None:
    """The one token by which `more` continues a prompt; None if it is not one."""
    before, after = row(model, text), row(model, text + more)
    whole = len(after) == len(before) + 1 and after[:-1] == before
    return after[-1] if whole else None


def one_token(
    model: Model, words: Sequence[str], after: str
) -> tuple[list[str], list[str]]:
    """Words that are one known token each, all different, after a text; and the rest.

    A space is put before each word.
    """
    unknown = unknown_token(model)
    kept: dict[int, str] = {}
    left = []
    for word in words:
        token = next_token(model, after, f" {word}")
        if token is None or token == unknown or token in kept:
            left.append(word)
        else:
            kept[token] = word
    return list(kept.values()), left


def leading(model: Model) -> list[int]:
    """The tokens that the tokenizer puts before every text: none, or BOS.

    An unknown token is none of them: both of the texts compared may be unknown.
    """
    unknown = unknown_token(model)
    own = model.to_strings(torch.arange(2))  # a toy may read its own words alone
    for texts in (("a", "b"), own):
        try:
            one, other = (row(model, text) for text in texts)
        except ValueError:  # no tokenizer, or none that reads these
            continue
        n = 0
        while n < min(len(one), len(other)) and one[n] == other[n] != unknown:
            n += 1
        return one[:n]
    return []


def spelling(
    model: Model, continuation: str, token: int, first: Sequence[int] = ()
) -> str | None:
    """A text that is this token when it stands alone; None if there is none."""
    for text in (continuation, continuation.strip()):
        if text and row(model, text) == [*first, token]:
            return text
    return None


def unknown_token(model: Model) -> int | None:
    """The token of what the tokenizer does not know; None where it knows all.

    Byte-level tokenizers know all, and often name BOS or EOS as unknown.
    """
    tokenizer = getattr(model, "tokenizer", None)
    unknown, *others = (
        getattr(tokenizer, f"{name}_token_id", None) for name in ("unk", "bos", "eos")
    )
    return None if unknown in others else unknown
