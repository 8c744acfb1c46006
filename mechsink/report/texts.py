"""Texts to measure on: fixed slices of prose, and files cut into windows.

The default needs no download: the documentation topics that come with CPython
(`pydoc_data.topics`), whose wording changes a little between Python versions; a
report therefore lists the exact tokens.
May import: sites, run, prompt_sets.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from mechsink.prompt_sets.prose import prose as prose
from mechsink.run import Model

PER_TOKEN = 7
"""Characters cut for each token wanted: English needs four to five."""


def default_texts(n_texts: int = 100, length: int = 64) -> list[str]:
    """`n_texts` slices of `prose`, evenly spread, each starting with a sentence.

    Args:
        n_texts: how many.
        length: tokens that each slice must be good for, at most; `PER_TOKEN`
            characters are cut for each.
    """
    sentences = prose()
    if not 1 <= n_texts <= len(sentences):
        raise ValueError(
            f"default_texts: n_texts={n_texts}. Allowed: 1 to {len(sentences)}, as "
            "many as there are sentences; pass your own texts for more."
        )
    step = len(sentences) / n_texts
    starts = [int(i * step) for i in range(n_texts)]
    return [_slice(sentences, start, PER_TOKEN * length) for start in starts]


def default_rows(
    model: Model, n_texts: int, length: int
) -> tuple[list[Int[Tensor, "1 _"]], str]:
    """Tokens to measure on when nothing is given, and where they come from.

    A toy model gets sequences of its own task (seed 0), any other `default_texts`.
    """
    length = min(length, model.shape.n_ctx)
    task: Any = getattr(model, "task", None)
    if task is None:
        rows = token_rows(model, default_texts(n_texts, length), length)
        return rows, "English prose of pydoc_data.topics"
    # What is only predicted is left out; a task's prompts may be shorter than asked.
    sample = task.sequences(n_texts, length, seed=0)[:, :-1]
    return list(sample.split(1)), "sequences drawn from its own task, seed 0"


def token_rows(
    model: Model,
    texts: str | Sequence[str] | Int[Tensor, "batch pos"],
    length: int | None,
) -> list[Int[Tensor, "1 _"]]:
    """Each text's tokens, cut to `length`; texts that are shorter are refused.

    Raises:
        ValueError: no text, an empty one, or one of fewer than `length` tokens.
    """
    if isinstance(texts, Tensor):
        rows = list(texts.split(1))
    else:
        texts = [texts] if isinstance(texts, str) else list(texts)
        rows = [model.to_tokens(text) for text in texts if text]
        if len(rows) < len(texts):
            raise ValueError("sink_report: a text is empty. Leave empty texts out.")
    if not rows:
        raise ValueError(
            "sink_report: there is no text. Pass at least one, or None for the "
            "default prose."
        )
    for i, row in enumerate(rows):
        if row.shape[1] < (length or 2):
            raise ValueError(
                f"sink_report: text {i} has {row.shape[1]} tokens, {length or 2} are "
                "needed. Give longer texts or a smaller length; length=None takes "
                "every text whole."
            )
    return [row[:, :length] for row in rows]


def read_texts(paths: Sequence[Path], length: int, n_texts: int) -> list[str]:
    """Text files cut into pieces long enough for `length` tokens each.

    Args:
        paths: plain text files, UTF-8.
        length: tokens wanted of each piece; it is given seven characters a token.
        n_texts: most pieces to return, evenly spread over all files.

    Raises:
        ValueError: a file is no UTF-8 text, or the files are empty.
        OSError: a file cannot be read.
    """
    pieces = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path} is not UTF-8 text ({error.reason} at byte {error.start}). "
                "Give plain text files."
            ) from error
        pieces += _pieces(text, PER_TOKEN * length)
    if not pieces:
        raise ValueError(
            f"{', '.join(map(str, paths))}: no text in it. Give a file with text."
        )
    step = max(1.0, len(pieces) / n_texts)
    return [pieces[int(i * step)] for i in range(min(n_texts, len(pieces)))]


def _pieces(text: str, n_characters: int) -> list[str]:
    """Pieces of whole words; a short rest is left out unless it is all there is."""
    pieces, piece = [], ""
    for word in re.findall(r"\s*\S+", text):
        piece += word
        if len(piece) >= n_characters:
            pieces.append(piece.lstrip("\n"))
            piece = ""
    return pieces or ([piece.strip()] if piece.strip() else [])


def _slice(sentences: Sequence[str], start: int, n_characters: int) -> str:
    out = ""
    for i in range(start, start + len(sentences)):  # round the end, if need be
        out += sentences[i % len(sentences)] + " "
        if len(out) >= n_characters:
            break
    return out[:n_characters].strip()
