"""Prompts in pairs: with the behaviour and without it, token for token.

Patching pairs positions, so the two prompts of a pair must have equally many
tokens; pairs among themselves may differ in length and are grouped by it.
May import: sites, run, prompt_lines.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from mechsink.prompt_lines import KEYS, read_pairs
from mechsink.run import Model

Texts = Sequence[str]
Rows = Int[Tensor, "prompt _"] | Sequence[Int[Tensor, " _"]]


@dataclass(frozen=True, eq=False)
class TokenPairs:
    """Pairs of one length, as tokens of one model.

    `index` numbers them among all pairs. `answers` and `wrong` are None where the
    metric needs none (a sink score, say).
    """

    clean: Int[Tensor, "prompt pos"]
    corrupted: Int[Tensor, "prompt pos"]
    answers: Int[Tensor, " prompt"] | None
    wrong: Int[Tensor, " prompt"] | None
    index: list[int]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def n_pos(self) -> int:
        """Tokens a prompt."""
        return self.clean.shape[1]

    def rows(self, chosen: Int[Tensor, " row"] | slice) -> "TokenPairs":
        """Some of the pairs, in the order chosen; repeats allowed."""
        kept = torch.arange(len(self.index), device=self.clean.device)[chosen]
        return TokenPairs(
            self.clean[kept],
            self.corrupted[kept],
            None if self.answers is None else self.answers[kept],
            None if self.wrong is None else self.wrong[kept],
            [self.index[i] for i in kept.tolist()],
        )


@dataclass(frozen=True, eq=False)
class PromptPairs:
    """Clean and corrupted prompts with the right and the wrong next token.

    Args:
        clean: prompts with the behaviour: a text or several, Int[prompt pos] tokens,
            or a list of Int[pos].
        corrupted: as many, each as long in tokens as its clean prompt.
        answers: right next token of each clean prompt, text or token; one for
            all is enough. None for metrics that need no answer.
        wrong: the token that the corrupted prompt calls for, likewise.
        pad: token that rows of tokens are padded with on the left; it is taken off,
            so padding changes no number. Default: the tokenizer's padding token,
            where that is not BOS or EOS as well.

    Raises:
        ValueError: counts or shapes that do not match.

    Examples:
        >>> pairs = ms.PromptPairs(
        ...     clean=["A B C D A", "C D A B C"],
        ...     corrupted=["A D C B A", "C B A D C"],
        ...     answers=["B", "D"],
        ...     wrong=["D", "B"],
        ... )
        >>> (group,) = pairs.tokens(ms.planted("induction").model)
        >>> tuple(group.clean.shape), group.answers.tolist()
        ((2, 6), [1, 3])
    """

    clean: Texts | Rows
    corrupted: Texts | Rows
    answers: Texts | Int[Tensor, " answer"] | None = None
    wrong: Texts | Int[Tensor, " wrong"] | None = None
    pad: int | None = None

    def __post_init__(self) -> None:
        for name in ("clean", "corrupted", "answers", "wrong"):
            given = getattr(self, name)
            if isinstance(given, str):  # one text is a prompt, not so many letters
                object.__setattr__(self, name, [given])
        n = len(self.clean)
        if n == 0 or len(self.corrupted) != n:
            raise ValueError(
                f"PromptPairs: {n} clean and {len(self.corrupted)} corrupted prompts. "
                "Give at least one pair, and one corrupted prompt for each clean one."
            )
        for name in ("answers", "wrong"):
            given = getattr(self, name)
            if given is not None and len(given) not in (1, n):
                raise ValueError(
                    f"PromptPairs: {len(given)} {name} for {n} pairs. Give one for "
                    "each pair, or a single one for all."
                )
        if isinstance(self.clean[0], str) != isinstance(self.corrupted[0], str):
            raise ValueError(
                "PromptPairs: clean and corrupted must both be texts or both be "
                "tokens. Use model.to_tokens to make tokens of texts."
            )

    def __len__(self) -> int:
        return len(self.clean)

    @classmethod
    def from_jsonl(cls, path: Path | str, *, skip_bad: bool = False) -> "PromptPairs":
        """Read one pair a line: {"clean": , "corrupted": , "answer": , "wrong": }.

        Args:
            path: UTF-8 text; empty lines count for nothing.
            skip_bad: leave out lines that are no pairs, and warn with their number and
                the first of them; default: refuse the file.

        Returns:
            The pairs, as texts.

        Raises:
            ValueError: a line is no such object (the message names the line), or no
                line is one.
        """
        rows = read_pairs(path, skip_bad=skip_bad)
        clean, corrupted, answers, wrong = ([r[k] for r in rows] for k in KEYS)
        return cls(clean, corrupted, answers, wrong)

    def tokens(self, model: Model) -> list[TokenPairs]:
        """The pairs as a model's tokens, grouped by length.

        Args:
            model: whose tokenizer reads the texts.

        Returns:
            One `TokenPairs` a length, each Int[prompt pos]; `index` numbers the pairs.

        Raises:
            ValueError: a pair of unequal lengths (where they part is shown), an
                answer of several tokens, or one that equals its wrong answer.
        """
        n = len(self)
        pad = _pad(model) if self.pad is None else self.pad
        clean = [_row(model, self.clean[i], pad) for i in range(n)]
        corrupted = [_row(model, self.corrupted[i], pad) for i in range(n)]
        _check_known(model, [*clean, *corrupted])
        answers = _answers(model, self.answers, "answers", n)
        wrong = _answers(model, self.wrong, "wrong", n)
        groups: dict[int, list[int]] = {}
        for i in range(n):
            if len(clean[i]) != len(corrupted[i]):
                raise _unequal(model, i, clean[i], corrupted[i])
            if answers is not None and wrong is not None and answers[i] == wrong[i]:
                shown = model.to_strings(answers[i : i + 1])[0]
                raise ValueError(
                    f"PromptPairs: pair {i} has {shown!r} as answer and as wrong "
                    "answer, so their difference is always 0. Give another one."
                )
            groups.setdefault(len(clean[i]), []).append(i)
        _warn_of_bos(model, clean)
        return [
            TokenPairs(
                torch.stack([clean[i] for i in index]),
                torch.stack([corrupted[i] for i in index]),
                None if answers is None else answers[index],
                None if wrong is None else wrong[index],
                index,
            )
            for index in groups.values()
        ]

    def flipped(self) -> "PromptPairs":
        """Clean and corrupted exchanged, and the answers with them."""
        return replace(
            self,
            clean=self.corrupted,
            corrupted=self.clean,
            answers=self.wrong,
            wrong=self.answers,
        )


def _row(model: Model, prompt: str | Tensor, pad: int | None) -> Tensor:
    if isinstance(prompt, str):
        return model.to_tokens(prompt)[0].to(model.device)
    kept = prompt if pad is None else prompt[int((prompt == pad).cumprod(0).sum()) :]
    if not len(kept):
        raise ValueError(
            f"PromptPairs: a prompt holds nothing but padding (token {pad}). Leave it "
            "out, or pass pad= if another token pads (pad=-1: none does)."
        )
    if pad is not None and (kept == pad).any():
        raise ValueError(
            f"PromptPairs: padding (token {pad}) stands inside or to the right of a "
            f"prompt: {kept.tolist()[:12]}. Only padding on the left can be taken "
            "off: the last token is where answers are read. Give a list of Int[pos] "
            "rows instead, or pass pad= if another token pads (pad=-1: none does)."
        )
    return kept.to(model.device)


def _answers(
    model: Model, given: Texts | Tensor | None, name: str, n: int
) -> Tensor | None:
    if given is None:
        return None
    if isinstance(given, Tensor):
        tokens = given.to(model.device)
        _check_known(model, [tokens], f"{name} has ")
    else:
        tokens = torch.stack([_one_token(model, text, name) for text in given])
    return tokens.expand(n) if len(tokens) == 1 else tokens


def _check_known(model: Model, rows: Sequence[Tensor], what: str = "") -> None:
    """Raise ValueError for a token that the model does not have."""
    d_vocab = model.shape.d_vocab
    tokens = torch.cat([row.to(model.device) for row in rows])
    outside = (tokens < 0) | (tokens >= d_vocab)
    if outside.any():
        raise ValueError(
            f"PromptPairs: {what}token {int(tokens[outside][0])}, which is outside "
            f"this model's vocabulary. Allowed: 0 to {d_vocab - 1}; make tokens with "
            "this model's own model.to_tokens."
        )


def _one_token(model: Model, text: str, name: str) -> Tensor:
    tokens = model.to_tokens(text)[0]
    bos = _leading_specials(model)
    tokens = tokens[len(bos) :] if tokens[: len(bos)].tolist() == bos else tokens
    if len(tokens) != 1:
        pieces = model.to_strings(tokens)
        raise ValueError(
            f"PromptPairs: {name} has {text!r}, which is {len(tokens)} tokens here: "
            f"{pieces}. An answer must be one token; most tokenizers want a leading "
            f"space, as in ' Paris'. The first piece alone would be {pieces[:1]}."
        )
    return tokens[0]


def _leading_specials(model: Model) -> list[int]:
    """What the tokenizer puts before every text: nothing, or BOS."""
    own = model.to_strings(torch.arange(2))  # a toy may read its own words alone
    for texts in (("a", "b"), ("0", "1"), own):
        try:
            one, other = (model.to_tokens(text)[0].tolist() for text in texts)
        except ValueError:
            continue
        break
    else:
        return []
    shared: list[int] = []
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        shared.append(left)
    return shared


def _unequal(model: Model, i: int, clean: Tensor, corrupted: Tensor) -> ValueError:
    n = min(len(clean), len(corrupted))
    differs = (clean[:n] != corrupted[:n]).nonzero()
    where = int(differs[0]) if len(differs) else n
    shown = [
        model.to_strings(row)[max(0, where - 1) : where + 4]
        for row in (clean, corrupted)
    ]
    return ValueError(
        f"PromptPairs: pair {i} has {len(clean)} clean and {len(corrupted)} corrupted "
        f"tokens. They part at token {where}: clean goes on {shown[0]}, corrupted "
        f"{shown[1]}. Patching pairs positions, so exchange words for words of as "
        "many tokens."
    )


def _warn_of_bos(model: Model, rows: Sequence[Tensor]) -> None:
    bos = _special(model, "bos_token_id")
    if bos is None:
        return
    habit = bos in _leading_specials(model)
    for i, row in enumerate(rows):
        if row[:2].tolist() == [bos, bos]:
            what = "begins with two BOS tokens"
            advice = "The tokenizer adds one itself; leave it out of the text."
        elif habit and row[0] != bos:
            what = "lacks the BOS token that this tokenizer puts first"
            advice = "Without it position 0 is another token; use model.to_tokens."
        else:
            continue
        warnings.warn(
            f"PromptPairs: prompt {i} {what}: {model.to_strings(row[:4])}. {advice}",
            stacklevel=3,
        )
        return


def _pad(model: Model) -> int | None:
    """The padding token, unless it also means something else."""
    pad = _special(model, "pad_token_id")
    others = (_special(model, name) for name in ("bos_token_id", "eos_token_id"))
    return None if pad in others else pad


def _special(model: Model, name: str) -> int | None:
    return getattr(getattr(model, "tokenizer", None), name, None)
