"""The Bigram-Backcopy task: a Markov chain over characters with copying triggers.

The next token follows a bigram table; after a trigger it is instead the token
before the trigger. A transformer solves it with a head that works on triggers
and rests on `<s>` elsewhere: the smallest known maker of attention sinks.
Source: Guo et al. 2024, Active-Dormant Attention Heads (arXiv:2410.13835).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from toy_tasks.alias import AliasTable
from toy_tasks.characters import count_characters, default_text
from toy_tasks.jsonable import ADDED_LATER

BOS = "<s>"
DELIMITER = "<d>"
Mode = Literal["backcopy", "icl", "markov", "dormant_markov"]


@dataclass(frozen=True, eq=False)
class BigramBackcopy:
    """Law of the next token, its generator and its exact oracle.

    With x the last token and x' the one before it:

    - x is no trigger: a draw from `table[x]`;
    - x is a trigger: x' with probability `copy_probability`, else a draw from
      `table[x']`. So 1 is backcopy (the paper's icl), 0 dormant Markov;
    - mode "markov": always a draw from `table[x]`.

    A sequence opens with `n_bos` tokens `<s>`, then a token from the marginal
    without triggers. Probabilities are float64; build from a text with `from_text`.

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

    @classmethod
    def from_text(
        cls,
        text: str | None = None,
        n_triggers: int = 3,
        max_chars: int = 65,
        min_count: int = 100,
        *,
        mode: Mode = "backcopy",
        copy_probability: float = 1.0,
        n_bos: int = 1,
        random_at: tuple[int, int] | None = None,
        bos_at: int | None = None,
        delimiter_probability: float = 0.0,
    ) -> "BigramBackcopy":
        """Count a text: relative frequencies of adjacent characters.

        Characters seen fewer than `min_count` times are dropped and the text closed
        up; the `max_chars` most frequent are kept. The `n_triggers` most frequent
        become triggers. Rows of `<s>` and of the delimiter are the marginal; a
        character with no successor takes it too. Every character is followed by
        the delimiter with `delimiter_probability`.

        Args:
            text: any text, as it stands; by default CPython's documentation topics
                (English, about 700,000 characters) with white space collapsed.

        Raises:
            ValueError: empty text, or too few distinct characters for the triggers.
        """
        if not 0 <= delimiter_probability < 1:
            raise ValueError(
                f"from_text: delimiter_probability={delimiter_probability} is outside "
                "0 <= p < 1. The paper uses 0.03 to 0.40; 0 leaves the delimiter out."
            )
        counts = count_characters(
            default_text() if text is None else text, max_chars, min_count
        )
        n_chars = len(counts.characters)
        if not 0 <= n_triggers < n_chars:
            raise ValueError(
                f"from_text: n_triggers={n_triggers}, but the text keeps {n_chars} "
                f"distinct characters seen at least {min_count} times. Allowed: 0 to "
                f"{n_chars - 1}, since the first token must not be a trigger. Pass "
                "fewer triggers, a longer text or a lower min_count."
            )
        table, marginal = counts.law(delimiter_probability)
        has_delimiter = delimiter_probability > 0
        by_frequency = np.argsort(-counts.single, kind="stable")
        return cls(
            vocab=[*counts.characters, BOS, *([DELIMITER] * has_delimiter)],
            table=table,
            marginal=marginal,
            triggers=by_frequency[:n_triggers].tolist(),
            mode=mode,
            copy_probability=copy_probability,
            n_bos=n_bos,
            random_at=random_at,
            bos_at=bos_at,
        )

    def uniform_successors(self) -> "BigramBackcopy":
        """Out-of-distribution twin: uniform over each row's possible successors."""
        possible = (self.table > 0).double()
        return replace(self, table=possible / possible.sum(1, keepdim=True))

    @property
    def d_vocab(self) -> int:
        """Number of tokens, `<s>` and the delimiter included."""
        return len(self.vocab)

    @property
    def bos(self) -> int:
        """Token id of `<s>`; it opens sequences and is never generated."""
        return self.vocab.index(BOS)

    @property
    def n_targets(self) -> None:
        """Training predicts every token but the first."""
        return None

    def sample(
        self,
        batch: int,
        length: int,
        seed: int | tuple[int, ...],
        device: str | torch.device = "cpu",
    ) -> Int[Tensor, "batch length"]:
        """Draw sequences; the same seed gives the same tokens on every machine.

        `length` counts every token, `<s>` included: to train on n positions ask
        for n + 1. One short vectorised step per position, on the CPU.

        Raises:
            ValueError: `batch` or `length` under 1, or a negative seed.
        """
        if batch < 1 or length < 1:
            raise ValueError(
                f"sample: batch={batch}, length={length}. Both must be at least 1."
            )
        alias, is_trigger = self._alias, self._is_trigger.numpy()
        # random_raw, unlike Generator's methods, is fixed for ever by numpy.
        source = np.random.SFC64(seed)
        n_draws = length * batch
        draws = source.random_raw((n_draws + 1) // 2).view(np.uint32)[:n_draws]
        cells, lows = alias.split(draws.reshape(length, batch))
        c, is_markov = self.copy_probability, self.mode == "markov"
        coins = None
        if 0 < c < 1:
            raw = source.random_raw(n_draws).reshape(length, batch)
            coins = raw >> np.uint64(11) < c * 2**53

        out = np.full((length, batch), self.bos, dtype=np.intp)
        first = np.full(batch, self.d_vocab, dtype=np.intp)  # the first-token law
        chance = np.full(batch, self.d_vocab + 1, dtype=np.intp)  # the uniform law
        for t in range(self.n_bos, length):
            if t == self.bos_at:
                continue
            copied = None
            if self._is_random(t):
                row = chance
            elif self._is_opening(t):
                row = first
            else:
                row = out[t - 1]
                # A trigger at position 0 has none before it: the table's law.
                before = out[t - 2] if t > 1 else row
                if not is_markov and t > 1:
                    trigger = copied = is_trigger[row]
                    if c < 1:
                        row = np.where(trigger, before, row)
                        copied = None if coins is None else trigger & coins[t]
            at = (row << alias.bits) + cells[t]
            np.copyto(out[t], cells[t])
            np.copyto(out[t], alias.other[at], where=lows[t] >= alias.limit[at])
            if copied is not None:
                np.copyto(out[t], before, where=copied)
        return torch.from_numpy(out.T.copy()).to(device)

    def sequences(
        self,
        batch: int,
        n_pos: int,
        seed: int | tuple[int, ...],
        device: str | torch.device = "cpu",
    ) -> Int[Tensor, "batch length"]:
        """Training sequences: `sample` of n_pos inputs and one token more."""
        return self.sample(batch, n_pos + 1, seed, device)

    def oracle_logprobs(
        self, tokens: Int[Tensor, "batch pos"]
    ) -> Float64[Tensor, "batch pos vocab"]:
        """Log of the exact law of the next token, after every position, in nats.

        Any tokens are allowed. A trigger at position 0 has no earlier token: the
        law is then `table[x]`. Impossible tokens get -inf. Before a position of
        `random_at` or `bos_at` the law is that position's, whatever the token.
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
        """Entropy of the next-token law, nats: the lowest loss anyone can reach."""
        return torch.special.entr(self.oracle_logprobs(tokens).exp()).sum(-1)

    def oracle_loss(
        self, tokens: Int[Tensor, "batch pos"]
    ) -> Float64[Tensor, "batch pos-1"]:
        """Loss of the oracle on the next tokens that came, nats per position."""
        nexts = tokens[:, 1:, None]
        return -self.oracle_logprobs(tokens[:, :-1]).gather(2, nexts)[..., 0]

    def is_trigger(self, tokens: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """Where the token is a trigger (in every mode, "markov" included)."""
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

    @cached_property
    def _alias(self) -> AliasTable:
        rows = torch.cat([self.table, self.first_law[None], self.uniform_law[None]])
        return AliasTable.from_rows(rows.numpy())

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; "<s>" and "<d>" in it are read as those tokens.

        Raises:
            ValueError: a character is not in the vocabulary.
        """
        ids = {token: i for i, token in enumerate(self.vocab)}
        out, at = [], 0
        while at < len(text):
            special = text[at : at + 3]
            token = special if special in (BOS, DELIMITER) else text[at]
            if token not in ids:
                raise ValueError(
                    f"encode: {token!r} at character {at} is not in the vocabulary. "
                    f"Allowed: {''.join(self.vocab)!r}."
                )
            out.append(ids[token])
            at += len(token)
        return out

    def decode(self, tokens: Sequence[int] | Int[Tensor, " pos"]) -> str:
        """The text of token ids, in order."""
        return "".join(self.vocab[int(token)] for token in tokens)

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON values; `from_json` gives back the same bits."""
        values = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if "added_later" not in field.metadata
            or getattr(self, field.name) is not None
        }
        if self.random_at is not None:
            values["random_at"] = list(self.random_at)
        return {
            "task": "bigram_backcopy",
            **values,
            "table": self.table.tolist(),
            "marginal": self.marginal.tolist(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "BigramBackcopy":
        """Rebuild what `to_json` wrote.

        Raises:
            ValueError: the data describes another task or lacks a part.
        """
        later = {f.name for f in fields(cls) if "added_later" in f.metadata}
        needed = {f.name for f in fields(cls)} - later | {"task"}
        if data.get("task") != "bigram_backcopy" or set(data) - later != needed:
            raise ValueError(
                f"from_json: no Bigram-Backcopy task, its keys are {sorted(data)}. "
                f"Allowed: what to_json wrote, with keys {sorted(needed)}."
            )
        values = {name: value for name, value in data.items() if name != "task"}
        for name in ("table", "marginal"):
            values[name] = torch.tensor(values[name], dtype=torch.float64)
        if values.get("random_at") is not None:
            values["random_at"] = tuple(values["random_at"])
        return cls(**values)
