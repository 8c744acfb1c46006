"""Duplicate token, planted: `<s> c a u d a e w ?` is answered by the repeated a.

Layer 0, head 0 looks for an earlier copy of the token it stands on, and otherwise
rests on `<s>`; it writes how much it looked away from there ("dup"). Layer 1, head 0
looks, from the last token, for the position with the largest "dup" and copies the
token that stands there to "out".

Directions: "tok" one-hot token, "pos" one-hot position, "dup" (written by a0.h0, 0 on
`<s>` to 1), "out" one-hot token to say (written by a1.h0).
Source of the idea: duplicate-token heads of Wang et al. 2022 (arXiv:2211.00593).
"""

import string

import torch
from jaxtyping import Int
from torch import Tensor

from toy_tasks.planted.case import Planted
from toy_tasks.planted.finish import finished
from toy_tasks.planted.prompts import check_counts, distinct
from toy_tasks.planted.workbench import Variant, Workbench

N_LETTERS = 11
N_POS = 10
BOS, ASK = N_LETTERS, N_LETTERS + 1
LOGIT = 8.0  # logit of a token that gets all of a1.h0's attention
SCORE_COPY, SCORE_REST, SCORE_FLAG = 5.0, 3.0, 6.0


def duplicate_token(
    *,
    variant: Variant = "plain",
    distractors: bool = True,
    n_prompts: int = 100,
    seed: int = 0,
    saturated: bool = False,
) -> Planted:
    """A duplicate-token head and a head that says what it found.

    Half of the prompts each is corrupted so that another token is the repeated one:
    the first of the two copies becomes a token that comes later (changes the keys of
    a0.h0); of two later places, the one with the copy gets a new token and the other
    repeats an earlier one (changes the queries of a0.h0 and the values of a1.h0).

    Args:
        variant: "plain", "grouped" (two heads to a key-value head) or "rms".
        distractors: add heads and neurons that do not matter; without them the model
            has no MLP.
        n_prompts: pairs of prompts, 10 tokens each.
        seed: for prompts and distractors.
        saturated: scores so high that attention is 0 or 1 and passes no gradient.

    Raises:
        ValueError: an unknown variant, or fewer than 2 prompts.
    """
    check_counts("duplicate_token", n_prompts, 2)
    n_vocab = N_LETTERS + 2
    bench = Workbench(
        "duplicate_token",
        {"tok": n_vocab, "out": n_vocab, "pos": N_POS, "dup": 1},
        d_vocab=n_vocab,
        n_ctx=N_POS,
        d_head=25,
        n_layers=2,
        variant=variant,
        distractors=distractors,
        seed=seed,
    )
    tokens, positions = torch.eye(n_vocab), torch.eye(N_POS)
    times = 4 if saturated else 1
    copy, rest, flag = (times * s for s in (SCORE_COPY, SCORE_REST, SCORE_FLAG))
    bench.embed({"tok": tokens}, {"pos": positions})
    # Head dimensions: tokens first, then positions. A token equals itself as well:
    # the positions take twice the score off its own place.
    own = torch.zeros(N_POS, n_vocab)
    at_bos, not_bos = torch.zeros(1, n_vocab), torch.zeros(n_vocab, 1)
    at_bos[0, BOS], not_bos[BOS, 0] = rest, -1
    bench.head(
        0,
        0,
        q={
            "tok": copy * tokens,
            "pos": torch.cat([own, -2 * copy * positions], 1),
            "const": at_bos,
        },
        k={"tok": tokens, "pos": torch.cat([own, positions], 1)},
        v={"const": torch.ones(1, 1), "tok": not_bos},
        o={"dup": torch.ones(1, 1)},
    )
    bench.head(
        1,
        0,
        q={"const": torch.full((1, 1), flag)},
        k={"dup": torch.ones(1, 1)},
        v={"tok": tokens},
        o={"out": tokens},
    )
    bench.unembed({"out": LOGIT * tokens})
    clean, corrupted, answers, wrong = _prompts(n_prompts, seed)
    return finished(
        bench,
        "duplicate",
        clean=clean,
        corrupted=corrupted,
        answers=answers,
        wrong=wrong,
        vocab=(*string.ascii_uppercase[:N_LETTERS], "<s>", "?"),
        edges={
            ("input", bench.q(0, 0)),
            ("input", bench.k(0, 0)),
            ("a0.h0", bench.k(1, 0)),
            ("input", bench.v(1, 0)),
            ("a1.h0", "logits"),
        },
        constant={("input", bench.v(0, 0)), ("input", bench.q(1, 0))},
        kinds=2,
        least=4.5,
        gain=LOGIT * (1 + copy / 2) * (1 + flag / 2),
        saturated=saturated,
    )


def _prompts(n_prompts: int, seed: int) -> tuple[Int[Tensor, "..."], ...]:
    generator = torch.Generator().manual_seed(seed)
    letters = distinct(n_prompts, N_POS - 1, N_LETTERS, generator)
    a, u, w, new = letters.T[:4]
    clean = torch.full((n_prompts, N_POS), BOS)
    clean[:, 1:-1], clean[:, -1] = letters[:, 1:], ASK
    # Four places: two early ones in any order, two later ones in any order.
    places = 1 + distinct(n_prompts, 4, N_POS - 2, generator).sort(1).values
    rows = torch.arange(n_prompts)
    early = distinct(n_prompts, 2, 2, generator)
    late = 2 + distinct(n_prompts, 2, 2, generator)
    first, spare = places[rows, early[:, 0]], places[rows, early[:, 1]]
    copy, other = places[rows, late[:, 0]], places[rows, late[:, 1]]
    # Letters 4 to 8 fill the places that are left.
    filled = torch.zeros(n_prompts, N_POS, dtype=torch.bool)
    filled[:, [0, -1]] = True
    filled[rows[:, None], places] = True
    clean[~filled] = letters[:, 4 : N_POS - 2].flatten()
    for place, letter in ((first, a), (spare, u), (copy, a), (other, w)):
        clean[rows, place] = letter
    corrupted = clean.clone()
    half = rows % 2 == 0
    corrupted[rows[half], first[half]] = w[half]
    half = ~half
    corrupted[rows[half], copy[half]] = new[half]
    corrupted[rows[half], other[half]] = u[half]
    return clean, corrupted, a, torch.where(half, u, w)
