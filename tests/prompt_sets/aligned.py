"""Is a set aligned? Asked of the tokenizer itself, by where its tokens stand."""

import torch
from torch import Tensor

from mechsink.models.bridge import BridgeModel
from mechsink.prompt_sets import PromptSet
from tests.prompt_sets.small import spans, tokens


def check_aligned(wrapped: BridgeModel, made: PromptSet) -> None:
    """Fail if a pair differs in more than its exchanged words, or answers badly."""
    answers, wrong = made.pairs.answers, made.pairs.wrong
    assert isinstance(answers, Tensor) and isinstance(wrong, Tensor)
    assert (answers != wrong).all() and len(answers) == made.n_made == len(made.table)
    for i, line in enumerate(made.table.to_dict("records")):
        clean, corrupted = line["clean"], line["corrupted"]
        assert (clean, corrupted) == (made.pairs.clean[i], made.pairs.corrupted[i])
        one, other = tokens(wrapped, clean), tokens(wrapped, corrupted)
        assert len(one) == len(other) == line["n_tokens"]
        for token, key in ((answers[i], "answer"), (wrong[i], "wrong")):
            for text, row in ((clean, one), (corrupted, other)):
                assert tokens(wrapped, text + line[key]) == [*row, int(token)], line
        _only_the_words_differ(wrapped, line, one, other)


def _only_the_words_differ(
    wrapped: BridgeModel, line: dict[str, str], one: list[int], other: list[int]
) -> None:
    exchanged = {
        slot: line[slot]
        for slot in line
        if f"corrupted_{slot}" in line and line[slot] != line[f"corrupted_{slot}"]
    }
    assert exchanged
    text = line["clean"]
    places = {slot: _found(text, word) for slot, word in exchanged.items()}
    touched = set()
    for (start, end), left, right in zip(spans(wrapped, text), one, other, strict=True):
        if left == right:
            continue
        while text[start].isspace():  # a token's own leading space is not the word's
            start += 1
        inside = {
            slot
            for slot, found in places.items()
            if any(low <= start and end <= high for low, high in found)
        }
        assert inside, f"{text[start:end]!r} differs, but {exchanged} was exchanged"
        touched |= inside
    assert touched == {*exchanged}


def _found(text: str, word: str) -> list[tuple[int, int]]:
    starts = [i for i in range(len(text)) if text.startswith(word, i)]
    found = []
    for start in starts:
        low, high = start, start + len(word)
        while text[low - 1 : low].isdigit():  # "132" of 1329 holds a year's century
            low -= 1
        found.append((low, high))
    return found


def n_different(wrapped: BridgeModel, made: PromptSet) -> list[int]:
    """Tokens in which the two prompts of each pair differ."""
    counts = []
    for clean, corrupted in zip(made.pairs.clean, made.pairs.corrupted, strict=True):
        rows = [torch.tensor(tokens(wrapped, str(text))) for text in (clean, corrupted)]
        counts.append(int((rows[0] != rows[1]).sum()))
    return counts
