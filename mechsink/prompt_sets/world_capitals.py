"""Capitals: recall of a fact."""

import random
from collections.abc import Iterator

from mechsink.models.any_model import any_model
from mechsink.prompt_sets.candidates import (
    Candidate,
    next_token,
    row,
    unknown_token,
)
from mechsink.prompt_sets.sets import PromptSet, make
from mechsink.prompt_sets.words import CAPITALS
from mechsink.run import Model

TEMPLATES = (
    "The capital of {country} is",
    "The capital city of {country} is",
    "Question: What is the capital of {country}? Answer:",
)


@any_model
def capitals(model: Model, n: int = 100, *, seed: int = 0) -> PromptSet:
    """Country to capital: "The capital of France is" Paris.

    The corrupted prompt names another country of as many tokens, and `wrong` is its
    capital. Capitals of several tokens are dropped, as are countries with no other
    of their length.

    Args:
        model: whose tokenizer the prompts must fit.
        n: pairs to make; at most one for each of 3 templates and about 90 countries,
            so fewer where many capitals are several tokens.
        seed: of all draws; the same seed makes the same set everywhere.

    Returns:
        The slot country.

    Raises:
        ValueError: `n` below 1, or not one pair can be made.

    Examples:
        >>> found = ms.prompt_sets.capitals(ms.load_model("smollm2"), n=2)
        >>> found.table.clean[0], found.table.answer[0]
        ('The capital city of Iraq is', ' Baghdad')
    """
    candidates = _candidates(model, random.Random(seed))
    return make("capitals", model, candidates, n, {"seed": seed})


def _candidates(model: Model, draw: random.Random) -> Iterator[Candidate]:
    unknown = unknown_token(model)
    usable: dict[tuple[str, int], list[str]] = {}
    lengths = {}
    for template in TEMPLATES:
        for country, capital in CAPITALS.items():
            text = template.format(country=country)
            tokens = row(model, text)
            lengths[template, country] = len(tokens)
            said = next_token(model, text, f" {capital}")
            if said not in (None, unknown) and unknown not in tokens:
                alike = (template, lengths[template, country])
                usable.setdefault(alike, []).append(country)
    every = [(template, country) for template in TEMPLATES for country in CAPITALS]
    draw.shuffle(every)
    for template, country in every:
        alike = usable.get((template, lengths[template, country]), [])
        # Where none is as long, any other: it is dropped, and counted.
        others = [c for c in alike if c != country] or [
            c for c in CAPITALS if c != country
        ]
        other = draw.choice(others)
        yield Candidate(
            template,
            {"country": country},
            {"country": other},
            f" {CAPITALS[country]}",
            f" {CAPITALS[other]}",
        )
