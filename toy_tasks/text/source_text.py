"""Next-token prediction on the source of Python's standard library.

The small language model's bed: no oracle, but real statistics. What stands at the
first positions can be chosen, as in Gu et al. 2024 (arXiv:2410.10781).
"""

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from toy_tasks.checks import check_fields
from toy_tasks.jsonable import checked_fields, json_fields
from toy_tasks.text.library import library_text
from toy_tasks.text.pieces import CHARACTERS, UNKNOWN, encode, frequent_pieces

BOS = "<s>"
Part = Literal["training", "held-out"]


@dataclass(frozen=True)
class SourceText:
    """Windows of the standard library's source, each cut anywhere.

    Tokens: frequent words with the space before them, line breaks with their indent,
    single characters, "<?>" for any other character, and "<s>". Every sixteenth
    module is held out of training.

    Build it with `from_library`. `words`, `digest` and `python` say which text it is:
    another Python has another library, on which this task still encodes and decodes,
    but draws nothing.

    What stands first (the window's own tokens are written over):

    - `n_bos` tokens `<s>`;
    - `bos_at=p`: one more `<s>` at position p;
    - `random_at=(a, b)`: tokens at a to b - 1 are uniform over all but `<s>`.

    Args:
        words: most frequent first.
        digest: of the text, both parts.
        python: whose library.
        with_tests: whether the library's own tests are part of the text.
        n_bos: tokens `<s>` that open a window.
        bos_at: position of one more `<s>`.
        random_at: positions a to b - 1 whose tokens are drawn evenly.

    Raises:
        ValueError: positions that overlap or are negative.

    Examples:
        >>> from toy_tasks import SourceText
        >>> task = SourceText.from_library(n_words=50)
        >>> task.decode(task.encode("def f(x):"))
        'def f(x):'
    """

    words: tuple[str, ...] = field(repr=False)
    digest: str
    python: str
    with_tests: bool = False
    n_bos: int = 1
    bos_at: int | None = None
    random_at: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        a, b = self.random_at or (self.n_bos, self.n_bos + 1)
        if self.n_bos < 0 or not self.n_bos <= a < b:
            raise ValueError(
                f"SourceText: n_bos={self.n_bos}, random_at={self.random_at}. Give 0 "
                "or more, and random positions after those: (2, 3) is position 2 alone."
            )
        p = self.bos_at
        if p is not None and (p < self.n_bos or (self.random_at and a <= p < b)):
            raise ValueError(
                f"SourceText: bos_at={p} with n_bos={self.n_bos} and random_at="
                f"{self.random_at}. Take a position after the opening that is not "
                "random."
            )

    @classmethod
    def from_library(
        cls,
        n_words: int = 1000,
        *,
        with_tests: bool = False,
        n_bos: int = 1,
        bos_at: int | None = None,
        random_at: tuple[int, int] | None = None,
    ) -> "SourceText":
        """Read this Python's library and count its words.

        Args:
            n_words: how many are tokens of their own; 0: characters alone.
            with_tests: with the library's own tests, three times the text.
            n_bos: tokens `<s>` that open a window.
            bos_at: position of one more `<s>`.
            random_at: positions a to b - 1 whose tokens are drawn evenly.

        Raises:
            FileNotFoundError: the library's sources are not there.
            ValueError: `n_words` is negative.
        """
        if n_words < 0:
            raise ValueError(
                f"from_library: n_words={n_words}. Allowed: 0 (characters alone) and "
                "more."
            )
        words, digest = _counted(n_words, with_tests)
        return cls(
            words, digest, platform.python_version(), with_tests, n_bos, bos_at,
            random_at,
        )  # fmt: skip

    @property
    def vocab(self) -> list[str]:
        """Token strings, by id."""
        return list(self._ids)

    @property
    def d_vocab(self) -> int:
        """Number of tokens, `<?>` and `<s>` included."""
        return len(self.words) + len(CHARACTERS) + 2

    @property
    def bos(self) -> int:
        """Token id of `<s>`; it is never part of the text."""
        return self.d_vocab - 1

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
        *,
        part: Part = "training",
    ) -> Int[Tensor, "batch length"]:
        """Windows of the text; the same seed gives the same ones on every machine.

        `length` counts every token, `<s>` included. Windows may overlap.

        Args:
            batch: windows.
            length: tokens of each.
            seed: of the draw.
            device: where the tokens go.
            part: "training" or "held-out".

        Raises:
            ValueError: `batch` or `length` under 1, a window longer than the text, or
                this Python's library is not the one of the task.
        """
        text = _tokens(self.words, self.with_tests, self.digest, self.python)[part]
        n_starts = len(text) - length + 1
        if batch < 1 or not 1 <= length <= len(text):
            raise ValueError(
                f"sample: batch={batch}, length={length}. Allowed: at least one window "
                f"of 1 to {len(text)} tokens, the {part} text."
            )
        # random_raw, unlike Generator's methods, is fixed for ever by numpy; its
        # remainder favours no place by more than 1e7 / 2**64.
        source = np.random.SFC64(seed)
        starts = (source.random_raw(batch) % np.uint64(n_starts)).astype(np.int64)
        out = text[starts[:, None] + np.arange(length)].astype(np.int64)
        out[:, : self.n_bos] = self.bos
        if self.bos_at is not None and self.bos_at < length:
            out[:, self.bos_at] = self.bos
        if self.random_at is not None:
            a, b = self.random_at
            any_token = source.random_raw(batch * (b - a)) % np.uint64(self.bos)
            out[:, a:b] = any_token.reshape(batch, b - a)[:, : max(length - a, 0)]
        return torch.from_numpy(out).to(device)

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

    def encode(self, text: str) -> list[int]:
        """Token ids of any text, without `<s>`.

        Args:
            text: any.
        """
        return encode(text, self._ids)

    def decode(self, tokens: Sequence[int] | Int[Tensor, " pos"]) -> str:
        """The text of token ids, in order.

        Args:
            tokens: token ids.
        """
        vocab = self.vocab
        return "".join(vocab[int(token)] for token in tokens)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return _ids(self.words)

    def to_json(self) -> dict[str, Any]:
        """Everything but the text itself, as JSON values."""
        return {"task": "source_text", **json_fields(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "SourceText":
        """Rebuild what `to_json` wrote.

        Args:
            data: what `to_json` gave.

        Raises:
            ValueError: the data describes another task or lacks a part.
        """
        needed = {"task", *(field.name for field in fields(cls))}
        if data.get("task") != "source_text" or set(data) != needed:
            raise ValueError(
                f"from_json: no source text, its keys are {sorted(data)}. Allowed: "
                f"what to_json wrote, with keys {sorted(needed)}."
            )
        rest = {name: value for name, value in data.items() if name != "task"}
        return cls(**checked_fields(cls, rest))


@lru_cache(maxsize=4)
def _counted(n_words: int, with_tests: bool) -> tuple[tuple[str, ...], str]:
    training, held_out = library_text(with_tests=with_tests)
    return tuple(frequent_pieces(training, n_words)), _digest(training, held_out)


def _ids(words: tuple[str, ...]) -> dict[str, int]:
    vocab = [*words, *CHARACTERS, UNKNOWN, BOS]
    return {token: i for i, token in enumerate(vocab)}


def _digest(training: str, held_out: str) -> str:
    both = f"{training}\0{held_out}".encode("utf-8", "surrogatepass")
    return hashlib.sha256(both).hexdigest()[:16]


@lru_cache(maxsize=2)
def _tokens(
    words: tuple[str, ...], with_tests: bool, digest: str, python: str
) -> dict[Part, np.ndarray]:
    """Both parts in tokens; a second of work, done once a process."""
    training, held_out = library_text(with_tests=with_tests)
    if _digest(training, held_out) != digest:
        raise ValueError(
            f"SourceText: this task is the library of Python {python}; this Python's "
            f"({platform.python_version()}) has another text. Run that version to "
            "train or draw; encode, decode and given tokens work anywhere."
        )
    ids = _ids(words)
    parts: dict[Part, str] = {"training": training, "held-out": held_out}
    return {
        part: np.array(encode(text, ids), dtype=np.int32)
        for part, text in parts.items()
    }
