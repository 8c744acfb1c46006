"""The Bigram-Backcopy task: a Markov chain over characters with copying triggers.

The next token follows a bigram table; after a trigger it is instead the token
before the trigger. A transformer solves it with a head that works on triggers
and rests on `<s>` elsewhere: the smallest known maker of attention sinks.
Source: Guo et al. 2024, Active-Dormant Attention Heads (arXiv:2410.13835).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from toy_tasks.alias import AliasTable
from toy_tasks.bigram_law import BOS, BigramLaw, Mode
from toy_tasks.characters import count_characters, default_text
from toy_tasks.checks import checked

DELIMITER = "<d>"


@dataclass(frozen=True, eq=False)
class BigramBackcopy(BigramLaw):
    """The task: its law (`BigramLaw`), counted from a text, drawn from, and saved.

    Build it with `from_text`.

    Examples:
        >>> from toy_tasks import BigramBackcopy
        >>> text = "the cat sat on the mat. " * 99
        >>> task = BigramBackcopy.from_text(text, n_triggers=1)
        >>> task.d_vocab, [task.vocab[trigger] for trigger in task.triggers]
        (6, [' '])
        >>> tokens = task.sample(batch=2, length=8, seed=0)
        >>> tuple(tokens.shape), tuple(task.oracle_logprobs(tokens).shape)
        ((2, 8), (2, 8, 6))
    """

    @classmethod
    @checked
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
            n_triggers: most frequent characters that become triggers.
            max_chars: characters kept, the most frequent ones.
            min_count: characters seen fewer times are dropped.
            mode: "backcopy" or "markov" (no copying), as in `BigramLaw`.
            copy_probability: of copying after a trigger, 0 to 1.
            n_bos: tokens `<s>` that open a sequence.
            random_at: positions a to b - 1 whose tokens are drawn evenly.
            bos_at: position of one more `<s>`.
            delimiter_probability: of a delimiter after any character, 0 to 1.

        Raises:
            ValueError: empty text, or too few distinct characters for the triggers.
        """
        if not 0 <= delimiter_probability < 1:
            raise ValueError(
                f"from_text: delimiter_probability={delimiter_probability} is outside "
                "0 <= p < 1. The paper uses 0.03 to 0.40; 0 leaves the delimiter out."
            )
        if text is not None and re.search("[\ud800-\udfff]", text):
            raise ValueError(
                "from_text: the text holds half a character (a lone surrogate), which "
                "no file can. Leave it out."
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

        Args:
            batch: sequences.
            length: tokens of each.
            seed: of the draw, 0 and more.
            device: where the tokens go.

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
        """Training sequences: `sample` of n_pos inputs and one token more.

        Args:
            batch: sequences.
            n_pos: positions of the model.
            seed: of the draw.
            device: where the tokens go.
        """
        return self.sample(batch, n_pos + 1, seed, device)

    @cached_property
    def _alias(self) -> AliasTable:
        rows = torch.cat([self.table, self.first_law[None], self.uniform_law[None]])
        return AliasTable.from_rows(rows.numpy())

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; "<s>" and "<d>" in it are read as those tokens.

        Args:
            text: characters of the vocabulary.

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
        """The text of token ids, in order.

        Args:
            tokens: token ids.
        """
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

        Args:
            data: what `to_json` gave.

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
