"""Induction: random tokens, repeated; for any vocabulary, with or without texts."""

import random
import re
from collections.abc import Sequence
from typing import Any, Literal

import pandas as pd
import torch

from mechsink.models.any_model import any_model
from mechsink.prompt_sets.candidates import leading
from mechsink.prompt_sets.sets import PromptSet, check_n
from mechsink.prompts import PromptPairs
from mechsink.run import Model


@any_model
def induction(
    model: Model,
    n: int = 100,
    *,
    seed: int = 0,
    length: int = 16,
    repeated: int = 4,
    corrupt: Literal["break", "swap"] = "break",
    vocabulary: Sequence[int] | None = None,
    first: Sequence[int] | None = None,
) -> PromptSet:
    """Repeated random tokens: `[A][B] ... [A]` is followed by `[B]`.

    A block of `length` different tokens; then the last `repeated` tokens up to and
    including A stand again, and B is the answer. `wrong` is another token of the
    block that, like B, stands once. Prompts are tokens, so nothing is dropped.

    Args:
        model: whose vocabulary is drawn from.
        n: pairs to make.
        seed: of all draws; the same seed makes the same set everywhere.
        length: tokens of the block, at least `repeated` + 2.
        repeated: tokens that are shown again, A included; 1 shows A alone.
        corrupt: "break" puts an unrelated token in the place of the first A, so
            that nothing says what follows A; "swap" exchanges B and `wrong` in the
            block, so that the answer flips.
        vocabulary: tokens to draw from; default: all of the tokenizer's but the
            special ones. Without a tokenizer, all of the model's but those that its
            texts would begin with or that read like "<s>", as in the toys; where
            neither is known (a bare Hugging Face model), name them here.
        first: put before each prompt; default: what the tokenizer puts before every
            text, such as BOS.

    Returns:
        Columns A, B (tokens) and position, that of the first A. Texts in the table
        are the tokens' numbers. `n_tokens` counts `first` as well.

    Raises:
        ValueError: sizes that do not fit, tokens that the model lacks, or too few
            to draw from.

    Source: repeated random sequences of Olsson et al. 2022 (arXiv:2209.11895).

    Examples:
        >>> case = ms.planted("induction")
        >>> found = ms.prompt_sets.induction(case.model, n=20, length=5, repeated=2)
        >>> case.model.to_strings(found.pairs.clean[0])
        ['<s>', 'G', 'K', 'A', 'E', 'H', 'K', 'A']
        >>> found.accuracy(case.model).top
        1.0
    """
    check_n("induction", n)
    if corrupt not in ("break", "swap") or repeated < 1 or length < repeated + 2:
        raise ValueError(
            f"prompt_sets.induction: corrupt={corrupt!r}, length={length}, "
            f"repeated={repeated}. Allowed: corrupt 'break' or 'swap', repeated from "
            "1, length from repeated + 2 (A, B and a wrong answer)."
        )
    start = leading(model) if first is None else list(first)
    words = _vocabulary(model, start) if vocabulary is None else sorted({*vocabulary})
    n_tokens, d_vocab = len(start) + length + repeated, model.shape.d_vocab
    absent = [token for token in (*start, *words) if not 0 <= token < d_vocab]
    if absent:
        raise ValueError(
            f"prompt_sets.induction: {absent[:8]} are no tokens of {model.name}. "
            f"Allowed in vocabulary and first: 0 to {d_vocab - 1}."
        )
    if len(words) < length + 1 or n_tokens > model.shape.n_ctx:
        raise ValueError(
            f"prompt_sets.induction: length={length} needs {length + 1} different "
            f"tokens and prompts of {n_tokens}; there are {len(words)} tokens to draw "
            f"from and {model.name} takes {model.shape.n_ctx} a prompt. Pass a "
            "smaller length or repeated, or a larger vocabulary."
        )
    draw = random.Random(seed)
    rows: list[dict[str, Any]] = []
    clean, corrupted, seen = [], [], set()
    for _ in range(50 * n):  # far more than repeats can take up, but for tiny sizes
        pair, row = _pair(draw, words, length, repeated, corrupt)
        if tuple(pair[0]) in seen:
            continue
        seen.add(tuple(pair[0]))
        clean.append(start + pair[0])
        corrupted.append(start + pair[1])
        row["position"] += len(start)
        shown = {"clean": clean[-1], "corrupted": corrupted[-1]}
        texts = {key: " ".join(map(str, tokens)) for key, tokens in shown.items()}
        rows.append({"pair": len(rows), **texts, **row, "n_tokens": n_tokens})
        if len(rows) == n:
            break
    table = pd.DataFrame(rows)
    pairs = PromptPairs(
        torch.tensor(clean),
        torch.tensor(corrupted),
        torch.tensor(table["answer"].tolist()),
        torch.tensor(table["wrong"].tolist()),
    )
    settings = {
        "prompt_set": "induction",
        "n": n,
        "seed": seed,
        "length": length,
        "repeated": repeated,
        "corrupt": corrupt,
        "vocabulary": None if vocabulary is None else words,
        "n_vocabulary": len(words),
        "first": start,
        "model": model.name,
    }
    return PromptSet("induction", pairs, table, {}, settings)


def _pair(
    draw: random.Random, words: list[int], length: int, repeated: int, corrupt: str
) -> tuple[tuple[list[int], list[int]], dict[str, Any]]:
    *block, stranger = draw.sample(words, length + 1)
    at = draw.randrange(repeated - 1, length - 1)  # the first A; B follows it
    again = range(at - repeated + 1, at + 1)
    once = [i for i in range(length) if i not in again and i != at + 1]
    other = draw.choice(once)
    broken = list(block)
    if corrupt == "break":
        broken[at] = stranger
    else:
        broken[at + 1], broken[other] = block[other], block[at + 1]
    tail = [block[i] for i in again]
    row = {
        "answer": block[at + 1],
        "wrong": block[other],
        "A": block[at],
        "B": block[at + 1],
        "position": at,
    }
    return (block + tail, broken + tail), row


def _vocabulary(model: Model, start: Sequence[int]) -> list[int]:
    """All tokens but special ones, and rows of the embedding that are no token."""
    tokenizer = getattr(model, "tokenizer", None)
    special, size = set(start), model.shape.d_vocab
    if tokenizer is not None:
        size = min(size, len(tokenizer))
        special |= set(tokenizer.all_special_ids)
        added = getattr(tokenizer, "added_tokens_decoder", {})
        special |= {token for token, what in added.items() if what.special}
    else:
        texts = model.to_strings(torch.arange(size))
        special |= {i for i, text in enumerate(texts) if re.fullmatch("<.+>", text)}
    return [token for token in range(size) if token not in special]
