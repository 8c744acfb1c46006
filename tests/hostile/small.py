"""A model to ask: a toy whose tokens are characters, with a tokenizer's habits."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from mechsink.models.toy import ToyModel
from toy_tasks import ToyConfig, ToyTransformer

D_VOCAB = 24
N_CTX = 12
BOS, PAD, UNKNOWN = 0, 1, 2
LETTERS = "abcdefghijklmnopqrstu"


class Tokenizer:
    """What a tokenizer says of its special tokens."""

    bos_token_id, eos_token_id, pad_token_id = BOS, None, PAD
    all_special_ids = (BOS, PAD, UNKNOWN)

    def __len__(self) -> int:
        return D_VOCAB


class Characters(ToyModel):
    """The toy, reading one token a character; what it doesn't know is one token."""

    tokenizer = Tokenizer()

    def to_tokens(self, texts: str | Sequence[str]) -> Tensor:
        texts = [texts] if isinstance(texts, str) else list(texts)
        rows = [[3 + LETTERS.find(c) for c in text] for text in texts]
        if not rows or len({len(row) for row in rows}) > 1 or not rows[0]:
            raise ValueError("to_tokens: give texts of one length, of a token or more.")
        return torch.tensor(rows, device=self.device)

    def to_strings(self, tokens: Tensor) -> list[str]:
        return [("<s>", "<pad>", "<?>", *LETTERS)[int(token)] for token in tokens]


@functools.cache
def characters() -> Characters:
    config = ToyConfig(D_VOCAB, 2, 2, d_model=8, d_head=4, d_mlp=8, n_ctx=N_CTX)
    return Characters(ToyTransformer(config, seed=0).eval())
