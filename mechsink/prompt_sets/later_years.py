"""Greater-than: which years can end what began in a year?"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mechsink.metrics import at_least_float32
from mechsink.models.any_model import any_model
from mechsink.prompt_sets.candidates import Candidate, next_token, token_rows
from mechsink.prompt_sets.sets import DRAWS, PromptSet, make
from mechsink.prompt_sets.words import EVENTS
from mechsink.run import Model, Run
from mechsink.sites import Site

CENTURIES = range(11, 18)
CORRUPTED = "01"  # nearly every year is later than 1701
PROBES = 60


class Way(NamedTuple):
    """Where a prompt stops in the last year, and which digits are read after it."""

    name: str
    shown: str  # ends the prompt
    read: str  # what is compared: "yy", "y", or the century with "y"


WAYS = (
    Way("last two digits", " {century}", "yy"),
    Way("third digit", " {century}", "y"),
    Way("first three digits", " ", "ccy"),
)


@any_model
def greater_than(model: Model, n: int = 100, *, seed: int = 0) -> PromptSet:
    """Greater-than: "The war lasted from the year 1732 to the year 17" 33 to 99.

    What is measured follows how the tokenizer cuts years (`settings["measured"]`):

    - "last two digits", where two digits are a token (GPT-2): answer is an ending
      after the start year's (33 to 99 above), wrong one before it (02 to 31).
    - "third digit", where each digit is a token (SmolLM2, Llama 2): the next digit
      is the decade; answer is a later decade's (4 to 9), wrong an earlier one's
      (1, 2), and the start year's own decade is never asked for.
    - "first three digits", where up to three are a token (Llama 3): the prompt
      stops before the year, after a space; answer "174" to "179", wrong "171", "172".

    The way that fits most of 60 trial pairs is taken. One answer and one wrong
    answer are drawn for each pair; `years_above` weighs all of them. The corrupted
    prompt starts in the year 01 of the century, after which answer and wrong answer
    are both right: what difference is left there is the model's taste for years
    soon after the start (SmolLM2: -2.0 nats on 100 pairs, against +4.1 clean), so
    compare with it, not with 0. Since many answers are right, `top` of `accuracy`
    is low even for a model that never errs.

    Args:
        model: whose tokenizer the prompts must fit.
        n: pairs to make.
        seed: of all draws; the same seed makes the same set everywhere.

    Returns:
        Slots event, century and start (two digits).

    Raises:
        ValueError: not one pair can be made, as where a year is one token.

    Source: Hanna et al. 2023 (arXiv:2305.00586); "01" is theirs, the events ours.

    Examples:
        >>> found = ms.prompt_sets.greater_than(ms.load_model("smollm2"), n=2)
        >>> found.table.clean[0], found.table.answer[0]
        ('The study lasted from the year 1756 to the year 17', '6')
    """
    fits = {
        way: sum(
            not isinstance(token_rows(model, candidate), str)
            for candidate in _candidates(random.Random(0), PROBES, way)
        )
        for way in WAYS
    }
    way = max(WAYS, key=lambda way: fits[way])  # the first of several
    candidates = _candidates(random.Random(seed), n * DRAWS, way)
    settings = {"seed": seed, "measured": way.name}
    return make("greater_than", model, candidates, n, settings)


def _candidates(draw: random.Random, n: int, way: Way) -> Iterator[Candidate]:
    for _ in range(n):
        century = str(draw.choice(CENTURIES))
        if way.read == "yy":
            year = draw.randint(11, 98)
            endings = draw.randint(year + 1, 99), draw.randint(2, year - 1)
            answer, wrong = (f"{ending:02}" for ending in endings)
        else:
            decade = draw.randint(2, 8)
            year = 10 * decade + draw.randint(0, 9)
            front = century if way.read == "ccy" else ""
            answer = f"{front}{draw.randint(decade + 1, 9)}"
            wrong = f"{front}{draw.randint(1, decade - 1)}"
        clean = {"event": draw.choice(EVENTS), "century": century, "start": str(year)}
        yield Candidate(
            "The {event} lasted from the year {century}{start} to the year" + way.shown,
            clean,
            {**clean, "start": CORRUPTED},
            answer,
            wrong,
            single=("start",) if way.read == "yy" else (),
        )


@dataclass(frozen=True, eq=False, repr=False)
class YearsAbove:
    """Probability of all later years minus that of all that are not later, -1 to 1.

    `signs`: a clean prompt's tokens to {next token: +1, later; -1, not later}.

    Args:
        signs: see above.
        reads: sites that the metric needs: none.

    Examples:
        >>> model = ms.load_model("smollm2")
        >>> found = ms.prompt_sets.greater_than(model, n=2)
        >>> metric = ms.prompt_sets.years_above(model, found)
        >>> (group,) = found.pairs.tokens(model)
        >>> (metric(model.run(group.clean), group) > 0.5).tolist()
        [True, False]
    """

    signs: Mapping[tuple[int, ...], Mapping[int, int]]
    reads: frozenset[Site] = frozenset()
    logits_read = "last"

    def __repr__(self) -> str:
        return "years_above"

    def __call__(self, run: Run, prompts: Any) -> Float[Tensor, " prompt"]:
        """One difference of probabilities a prompt."""
        p = at_least_float32(run.logits[:, -1]).softmax(-1)
        weights = torch.zeros_like(p)
        for i, row in enumerate(prompts.clean.tolist()):
            signs = self.signs.get(tuple(row))
            if signs is None:
                raise ValueError(
                    f"years_above: prompt {i} is none of the set that this metric was "
                    "made for. Pass that set's pairs, or call years_above(model, "
                    "prompt_set) with this one."
                )
            columns = torch.tensor(list(signs), device=p.device)
            weights[i, columns] = torch.tensor(list(signs.values())).to(p)
        return (p * weights).sum(-1)


@any_model
def years_above(model: Model, prompt_set: PromptSet) -> YearsAbove:
    """The metric over all years, for the pairs of a `greater_than` set.

    Last two digits: p(later endings) - p(the start year's and earlier). By decade:
    p(later) - p(earlier); the start year's own decade, partly later, counts 0.

    Args:
        model: the model whose tokenizer the set fits.
        prompt_set: made by `greater_than`.

    Returns:
        A metric, -1 to 1: one difference of probabilities a prompt.

    Raises:
        ValueError: another kind of set.

    Source: probability difference of Hanna et al. 2023 (arXiv:2305.00586).

    Examples:
        >>> model = ms.load_model("smollm2")
        >>> found = ms.prompt_sets.greater_than(model, n=2)
        >>> metric = ms.prompt_sets.years_above(model, found)
        >>> metric
        years_above
    """
    named = prompt_set.settings.get("measured")
    ways = [way for way in WAYS if way.name == named]
    if not ways:
        raise ValueError(
            f"years_above: this is a set of {prompt_set.name}. Pass one made by "
            "prompt_sets.greater_than."
        )
    (way,) = ways
    tokens: dict[str, dict[int, int]] = {}  # century: token of each ending
    signs = {}
    for pair, row in enumerate(prompt_set.table.to_dict("records")):
        century, start = row["century"], int(row["start"])
        if century not in tokens:
            tokens[century] = _endings(model, row["clean"], century, way)
        point = start if way.read == "yy" else start // 10
        chosen = {
            token: 1 if ending > point else -1
            for token, ending in tokens[century].items()
            if ending != point or way.read == "yy"
        }
        prompt = str(prompt_set.pairs.clean[pair])
        signs[tuple(model.to_tokens(prompt)[0].tolist())] = chosen
    return YearsAbove(signs)


def _endings(model: Model, text: str, century: str, way: Way) -> dict[int, int]:
    """Next tokens that are an ending, with its number; several tokens: none."""
    found = {}
    for ending in range(100 if way.read == "yy" else 10):
        more = f"{ending:02}" if way.read == "yy" else str(ending)
        token = next_token(model, text, century + more if way.read == "ccy" else more)
        if token is not None:
            found[token] = ending
    return found
