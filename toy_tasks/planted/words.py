"""`Words`: texts of a planted model, whose tokens are whole words."""

import difflib
from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """A vocabulary of words that are written apart by blanks; one of them is `<s>`."""

    vocab: tuple[str, ...]

    @property
    def d_vocab(self) -> int:
        """Number of tokens."""
        return len(self.vocab)

    @property
    def bos(self) -> int:
        """Token id of `<s>`, which opens prompts."""
        return self.vocab.index("<s>")

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without the `<s>` that opens a prompt.

        Raises:
            ValueError: a word is not in the vocabulary.
        """
        words = text.split()
        for word in words:
            if word not in self.vocab:
                near = difflib.get_close_matches(word, self.vocab, n=1, cutoff=0)
                raise ValueError(
                    f"encode: no token is {word!r}; the nearest is {near[0]!r}. "
                    f"Allowed, apart by blanks: {' '.join(self.vocab)}."
                )
        return [self.vocab.index(word) for word in words]
