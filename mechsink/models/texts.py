"""Texts to tokens and back, by the tokenizer's own habit."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor


class Texts:
    """What a model with a tokenizer of its own does with texts."""

    name: str
    tokenizer: Any

    @property
    def device(self) -> torch.device:
        """Where tokens go."""
        raise NotImplementedError

    def to_tokens(self, texts: str | Sequence[str]) -> Int[Tensor, "batch pos"]:
        """Tokens by the tokenizer's own habit; nothing is added to it.

        Raises:
            ValueError: no tokenizer, an empty text, texts of unequal length, or one
                with half a character.
        """
        if self.tokenizer is None:
            raise ValueError(
                f"to_tokens: {self.name} was loaded without a tokenizer. Pass token "
                "tensors, or load it with ms.load_model(model, tokenizer=...)."
            )
        texts = [texts] if isinstance(texts, str) else list(texts)
        for text in texts:
            if not text.isascii() and re.search("[\ud800-\udfff]", text):
                raise ValueError(
                    f"to_tokens: {ascii(text)[:60]} holds half a character (a lone "
                    "surrogate), which no tokenizer reads. Leave it out."
                )
        # A vision-language model's processor has a tokenizer beside what reads images.
        tokenizer = getattr(self.tokenizer, "tokenizer", self.tokenizer)
        rows = [tokenizer(text)["input_ids"] for text in texts]
        lengths = [len(row) for row in rows]
        if not rows or min(lengths) == 0:
            raise ValueError(
                f"to_tokens: got {len(rows)} texts with {lengths} tokens. Give at "
                "least one text, each with at least one token."
            )
        if len(set(lengths)) > 1:
            raise ValueError(
                f"to_tokens: the texts have {lengths} tokens, and one tensor needs "
                "equal lengths (padding would change what is measured). Tokenise "
                "them one by one, or cut them to the same length."
            )
        return torch.tensor(rows, device=self.device)

    def to_strings(self, tokens: Int[Tensor, " pos"]) -> list[str]:
        """One readable string a token; numbers without a tokenizer."""
        if self.tokenizer is None:
            return [str(int(token)) for token in tokens]
        tokenizer = getattr(self.tokenizer, "tokenizer", self.tokenizer)
        return [tokenizer.decode([int(token)]) for token in tokens]
