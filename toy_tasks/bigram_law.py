"""The law of Bigram-Backcopy: what may come next, exactly.

Source: Guo et al. 2024, Active-Dormant Attention Heads (arXiv:2410.13835).
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from toy_tasks.checks import check_fields
from toy_tasks.jsonable import ADDED_LATER

BOS = "<s>"
Mode = Literal["backcopy", "icl", "markov", "dormant_markov"]


@dataclass(frozen=True, eq=False)
class BigramLaw:
    """Law of the next token, and what it implies for any tokens.

    With x the last token and x' the one before it:

    - x is no trigger: a draw from `table[x]`;
    - x is a trigger: x' with probability `copy_probability`, else a draw from
      `table[x']`. So 1 is backcopy (the paper's icl), 0 dormant Markov;
    - mode "markov": always a draw from `table[x]`.

    A sequence opens with `n_bos` tokens `<s>`, then a token from the marginal
    without triggers. Probabilities are float64.

    Two positions may be out of order (Gu et al. 2024, arXiv:2410.10781):

    - `random_at=(a, b)`: the tokens at a to b - 1 are uniform over all but `<s>`,
      whatever came before; what follows them obeys the law above;
    - `bos_at=p`: one more `<s>` stands at p, and the token after it is drawn as after
      the opening.
    """

    vocab: list[str]  # token strings: characters, "<s>", "<d>" if it has delimiters
    table: Float64[Tensor, "vocab vocab"]  # row x: law of the token after x
    marginal: Float64[Tensor, " vocab"]  # unigram frequencies
    triggers: list[int]  # token ids, most frequent first
    mode: Mode = "backcopy"
    copy_probability: float = 1.0
    n_bos: int = 1
    random_at: tuple[int, int] | None = field(default=None, metadata=ADDED_LATER)
    bos_at: int | None = field(default=None, metadata=ADDED_LATER)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.mode not in ("backcopy", "icl", "markov", "dormant_markov"):
            raise ValueError(
                f"BigramBackcopy: mode={self.mode!r} is unknown. Allowed: 'backcopy' "
                "(also called 'icl'), 'markov', 'dormant_markov'."
            )
        if not 0 <= self.copy_probability <= 1:
            raise ValueError(
                f"BigramBackcopy: copy_probability={self.copy_probability} is no "
                "probability. Allowed: 0 (dormant Markov) to 1 (backcopy)."
            )
        if self.n_bos not in (0, 1, 2):
            raise ValueError(
                f"BigramBackcopy: n_bos={self.n_bos}. Allowed: 0, 1 or 2 tokens <s>."
            )
        if self.random_at is not None:
            a, b = self.random_at
            if not self.n_bos <= a < b:
                raise ValueError(
                    f"BigramBackcopy: random_at={self.random_at} with n_bos="
                    f"{self.n_bos}. Give the first position, {self.n_bos} or later, "
                    "and the one after the last: (2, 3) is position 2 alone."
                )
        if self.bos_at is not None and (
            self.bos_at < self.n_bos or self.bos_at in range(*(self.random_at or (0,)))
        ):
            raise ValueError(
                f"BigramBackcopy: bos_at={self.bos_at} with n_bos={self.n_bos} and "
                f"random_at={self.random_at}. Take a position after the opening that "
                "is not random."
            )
        if self.mode == "icl":
            object.__setattr__(self, "mode", "backcopy")
        if self.mode == "dormant_markov":
            object.__setattr__(self, "copy_probability", 0.0)

    @property
    def d_vocab(self) -> int:
        """Number of tokens, `<s>` and the delimiter included."""
        return len(self.vocab)

    @property
    def bos(self) -> int:
        """Token id of `<s>`; it opens sequences and is never generated."""
        return self.vocab.index(BOS)

    def oracle_logprobs(
        self, tokens: Int[Tensor, "batch pos"]
    ) -> Float64[Tensor, "batch pos vocab"]:
        """Log of the exact law of the next token, after every position, in nats.

        Any tokens are allowed. A trigger at position 0 has no earlier token: the
        law is then `table[x]`. Impossible tokens get -inf. Before a position of
        `random_at` or `bos_at` the law is that position's, whatever the token.

        Args:
            tokens: any.
        """
        table = self.table.to(tokens.device)
        law = table[tokens]
        if self.mode != "markov":
            x, before = tokens[:, 1:], tokens[:, :-1]
            copy = torch.nn.functional.one_hot(before, self.d_vocab)
            c = self.copy_probability
            mixed = c * copy + (1 - c) * table[before]
            trigger = self.is_trigger(x)[..., None]
            law[:, 1:] = torch.where(trigger, mixed, law[:, 1:])
        for t in range(min(self.n_bos, tokens.shape[1])):
            is_last = t == self.n_bos - 1
            only_bos = torch.eye(self.d_vocab, dtype=torch.float64)[self.bos]
            opening = (self.first_law if is_last else only_bos).to(tokens.device)
            at_bos = (tokens[:, t] == self.bos)[:, None]
            law[:, t] = torch.where(at_bos, opening, law[:, t])
        return self._out_of_order(tokens, law).log()

    def _out_of_order(
        self,
        tokens: Int[Tensor, "batch pos"],
        law: Float64[Tensor, "batch pos vocab"],
    ) -> Float64[Tensor, "batch pos vocab"]:
        """The law where `bos_at` and `random_at` change it; in place."""
        n_pos, p = tokens.shape[1], self.bos_at
        if p is not None:
            if p < n_pos:
                at_bos = (tokens[:, p] == self.bos)[:, None]
                law[:, p] = torch.where(at_bos, self.first_law.to(law), law[:, p])
            if 1 <= p <= n_pos:
                law[:, p - 1] = torch.eye(self.d_vocab)[self.bos].to(law)
        if self.random_at is not None:
            a, b = self.random_at
            law[:, max(a - 1, 0) : b - 1] = self.uniform_law.to(law)
        return law

    def _is_random(self, t: int) -> bool:
        return self.random_at is not None and t in range(*self.random_at)

    def _is_opening(self, t: int) -> bool:
        """Whether a token there is the first, or the first after `bos_at`."""
        return t == self.n_bos or t - 1 == self.bos_at

    def oracle_entropy(
        self, tokens: Int[Tensor, "batch pos"]
    ) -> Float64[Tensor, "batch pos"]:
        """Entropy of the next-token law, nats: the lowest loss anyone can reach.

        Args:
            tokens: any.
        """
        return torch.special.entr(self.oracle_logprobs(tokens).exp()).sum(-1)

    def oracle_loss(
        self, tokens: Int[Tensor, "batch pos"]
    ) -> Float64[Tensor, "batch pos-1"]:
        """Loss of the oracle on the next tokens that came, nats per position.

        Args:
            tokens: any; the last is only predicted.
        """
        nexts = tokens[:, 1:, None]
        return -self.oracle_logprobs(tokens[:, :-1]).gather(2, nexts)[..., 0]

    def is_trigger(self, tokens: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """Where the token is a trigger (in every mode, "markov" included).

        Args:
            tokens: any.
        """
        return self._is_trigger.to(tokens.device)[tokens]

    @property
    def first_law(self) -> Float64[Tensor, " vocab"]:
        """Law of the token after `<s>`: the marginal without triggers."""
        law = self.marginal.clone()
        law[self.triggers] = 0
        return law / law.sum()

    @property
    def uniform_law(self) -> Float64[Tensor, " vocab"]:
        """Law of the tokens of `random_at`: all but `<s>` alike."""
        law = torch.ones(self.d_vocab, dtype=torch.float64)
        law[self.bos] = 0
        return law / law.sum()

    @cached_property
    def _is_trigger(self) -> Bool[Tensor, " vocab"]:
        mask = torch.zeros(self.d_vocab, dtype=torch.bool)
        mask[self.triggers] = True
        return mask
