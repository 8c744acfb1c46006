"""Characters of a text and how often they follow each other."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class CharacterCounts:
    """Counts over a text: `pairs[a, b]` times b came right after a."""

    characters: list[str]  # in code point order
    single: Int[np.ndarray, " char"]
    pairs: Int[np.ndarray, "char char"]

    def law(
        self, delimiter_probability: float
    ) -> tuple[Float64[Tensor, "vocab vocab"], Float64[Tensor, " vocab"]]:
        """Bigram table and marginal over characters, `<s>` and, if used, `<d>`.

        Rows of `<s>`, of `<d>` and of a character without successor are the
        marginal. Every character has `<d>` after it with the given probability.
        """
        n = len(self.characters)
        size = n + 1 + (delimiter_probability > 0)
        marginal = torch.zeros(size, dtype=torch.float64)
        marginal[:n] = torch.from_numpy(self.single / self.single.sum())
        table = marginal.repeat(size, 1)
        seen = self.pairs.sum(axis=1) > 0
        rows = self.pairs[seen] / self.pairs[seen].sum(axis=1, keepdims=True)
        table[:n, :n][torch.from_numpy(seen)] = torch.from_numpy(rows)
        if delimiter_probability > 0:
            table[:n] *= 1 - delimiter_probability
            table[:n, -1] = delimiter_probability
        return table, marginal


def default_text() -> str:
    """CPython's documentation topics in one line: English prose, no download."""
    from pydoc_data.topics import topics  # here: 700 kB that few callers need

    return " ".join(" ".join(topics.values()).split())


def count_characters(text: str, max_chars: int, min_count: int) -> CharacterCounts:
    """Count the `max_chars` most frequent characters seen `min_count` times or more.

    Other characters are taken out first, so that their neighbours become adjacent.

    Raises:
        ValueError: the text is empty, or none of its characters is frequent enough.
    """
    if not text:
        raise ValueError(
            "from_text: the text is empty. Pass any text, or None for the default one."
        )
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    values, counts = np.unique(points, return_counts=True)
    order = np.argsort(-counts, kind="stable")[: max(max_chars, 0)]
    kept = np.sort(order[counts[order] >= min_count])
    if not len(kept):
        raise ValueError(
            f"from_text: none of the {len(values)} distinct characters is seen "
            f"{min_count} times (the most frequent: {counts.max()} times), or "
            f"max_chars={max_chars} keeps none. Pass a longer text or lower min_count."
        )
    points = points[np.isin(points, values[kept])]
    ids = np.searchsorted(values[kept], points)
    n = len(kept)
    pairs = np.bincount(ids[:-1] * n + ids[1:], minlength=n * n).reshape(n, n)
    return CharacterCounts(
        [chr(value) for value in values[kept]], np.bincount(ids, minlength=n), pairs
    )
