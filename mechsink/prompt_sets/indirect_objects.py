"""Indirect object identification: who is given something?"""

import random
from collections.abc import Iterator
from typing import Literal

from mechsink.models.any_model import any_model
from mechsink.prompt_sets.candidates import Candidate, one_token
from mechsink.prompt_sets.sets import DRAWS, PromptSet, check_n, make, none_made
from mechsink.prompt_sets.words import NAMES, OBJECTS, PLACES
from mechsink.run import Model

TEMPLATES = (
    "Then, {first} and {second} went to the {place}. {giver} gave a {object} to",
    "When {first} and {second} got a {object} at the {place}, {giver} decided to "
    "give it to",
    "After {first} and {second} went to the {place}, {giver} gave a {object} to",
    "Friends {first} and {second} found a {object} at the {place}. {giver} gave it to",
    "While {first} and {second} were working at the {place}, {giver} handed a "
    "{object} to",
)

Order = Literal["both", "ABBA", "BABA"]


@any_model
def ioi(
    model: Model,
    n: int = 100,
    *,
    seed: int = 0,
    corrupt: Literal["abc", "swap"] = "abc",
    order: Order = "both",
) -> PromptSet:
    """Indirect object identification: "Mary and John ... John gave a drink to" Mary.

    Only names that are one token after a space are used; `left_out` lists the
    others. The answer is the name that stands once, the wrong answer the giver's.

    Args:
        model: whose tokenizer the prompts must fit.
        n: pairs to make; there are millions.
        seed: of all draws; the same seed makes the same set everywhere.
        corrupt: "abc" puts three other, unrelated names in the three places (all
            that is wanted of them is lost: neither answer is called for); "swap"
            exchanges the roles, so that the other one gives and the answer flips
            to `wrong`: one token differs.
        order: "ABBA" names the receiver first, "BABA" the giver; "both": by turns.

    Returns:
        Slots first, second, giver, place, object, and a column order.

    Raises:
        ValueError: an unknown option, or fewer names of one token than are needed.

    Source: Wang et al. 2022 (arXiv:2211.00593); the templates are ours.

    Examples:
        >>> found = ms.prompt_sets.ioi(ms.load_model("smollm2"), n=2)
        >>> found.table.clean[0], found.table.answer[0]
        ('After Martha and Mike went to the station, Mike gave a snack to', ' Martha')
    """
    if corrupt not in ("abc", "swap") or order not in ("both", "ABBA", "BABA"):
        raise ValueError(
            f"prompt_sets.ioi: corrupt={corrupt!r}, order={order!r}. Allowed: corrupt "
            "'abc' or 'swap'; order 'both', 'ABBA' or 'BABA'."
        )
    check_n("ioi", n)
    names, left = one_token(model, NAMES, "Then, they gave it to")
    if len(names) < 5:
        raise none_made("ioi", n, {}, left)
    draw = random.Random(seed)
    candidates = _candidates(draw, names, n * DRAWS, corrupt, order)
    settings = {"seed": seed, "corrupt": corrupt, "order": order}
    return make("ioi", model, candidates, n, settings, left)


def _candidates(
    draw: random.Random, names: list[str], n: int, corrupt: str, order: Order
) -> Iterator[Candidate]:
    orders = ["ABBA", "BABA"] if order == "both" else [order]
    for i in range(n):
        receiver, giver, *others = draw.sample(names, 5)
        kind = orders[i % len(orders)]
        first, second = (receiver, giver) if kind == "ABBA" else (giver, receiver)
        clean = {
            "first": first,
            "second": second,
            "giver": giver,
            "place": draw.choice(PLACES),
            "object": draw.choice(OBJECTS),
        }
        corrupted = {**clean, "giver": receiver}
        if corrupt == "abc":
            corrupted |= zip(("first", "second", "giver"), others, strict=True)
        yield Candidate(
            draw.choice(TEMPLATES),
            clean,
            corrupted,
            f" {receiver}",
            f" {giver}",
            single=("first", "second", "giver"),
            info={"order": kind},
        )
