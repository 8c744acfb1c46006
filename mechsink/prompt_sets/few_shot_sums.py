"""Sums after a few examples: arithmetic, read from context."""

import random
from collections.abc import Iterator

from mechsink.models.any_model import any_model
from mechsink.prompt_sets.candidates import Candidate
from mechsink.prompt_sets.sets import DRAWS, PromptSet, make
from mechsink.run import Model


@any_model
def sums(
    model: Model,
    n: int = 100,
    *,
    seed: int = 0,
    n_examples: int = 3,
    largest: int = 9,
) -> PromptSet:
    r"""Few-shot sums: "3+4=7\n1+6=7\n8+0=8\n2+3=" 5.

    The corrupted prompt has the same examples and asks for another sum, whose
    value is `wrong`. Sums of several tokens are dropped: where every digit is a
    token of its own, those from 10 on.

    Args:
        model: whose tokenizer the prompts must fit.
        n: pairs to make.
        seed: of all draws; the same seed makes the same set everywhere.
        n_examples: solved sums before the question, 0 or more; none of them asks
            what the clean or the corrupted prompt asks, in either order.
        largest: operands are drawn from 0 to this, at least 2.

    Returns:
        Slots a and b, and the column examples.

    Raises:
        ValueError: options out of range, or not one pair can be made.

    Examples:
        >>> found = ms.prompt_sets.sums(ms.load_model("smollm2"), n=2)
        >>> found.table.clean[0], found.table.answer[0]
        ('9+6=15\n3+3=6\n6+8=14\n0+1=', '1')
    """
    n_sums = (largest + 1) * (largest + 2) // 2  # a+b and b+a are one
    if largest < 2 or not 0 <= n_examples <= n_sums - 2:
        raise ValueError(
            f"prompt_sets.sums: n_examples={n_examples}, largest={largest}. Allowed: "
            "largest from 2, and n_examples from 0 to the number of different sums "
            f"less the two that are asked, here {max(n_sums - 2, 0)}."
        )
    candidates = _candidates(random.Random(seed), n * DRAWS, n_examples, largest)
    settings = {"seed": seed, "n_examples": n_examples, "largest": largest}
    return make("sums", model, candidates, n, settings)


def _candidates(
    draw: random.Random, n: int, n_examples: int, largest: int
) -> Iterator[Candidate]:
    every = [(a, b) for a in range(largest + 1) for b in range(largest + 1)]
    for _ in range(n):
        a, b = draw.choice(every)
        # Both operands change: otherwise the one that stays still tells a part.
        others = [(c, d) for c, d in every if c != a and d != b and c + d != a + b]
        # As many digits, where there are such: digits may be tokens of their own.
        alike = [(c, d) for c, d in others if _digits(c, d) == _digits(a, b)]
        c, d = draw.choice(alike or others)
        asked = {tuple(sorted(pair)) for pair in ((a, b), (c, d))}
        free = [(x, y) for x, y in every if x <= y and (x, y) not in asked]
        examples = [
            (x, y) if draw.random() < 0.5 else (y, x)
            for x, y in draw.sample(free, n_examples)
        ]
        shown = "".join(f"{x}+{y}={x + y}\n" for x, y in examples)
        yield Candidate(
            shown + "{a}+{b}=",
            {"a": str(a), "b": str(b)},
            {"a": str(c), "b": str(d)},
            str(a + b),
            str(c + d),
            info={"examples": shown.strip().replace("\n", " ")},
        )


def _digits(a: int, b: int) -> tuple[int, int]:
    return len(str(a)), len(str(b))
