"""Induction, planted: `<s> .. A B .. C D .. A` is answered by B.

Layer 0, head 0 looks one position back and writes which token stands there ("prev").
Layer 1, head 0 looks for positions whose "prev" is the current token and copies the
token that stands there to "out".

Directions: "tok" one-hot token, "pos" one-hot position, "prev" one-hot token before
(written by a0.h0), "out" one-hot token to say (written by a1.h0), all of size 1.
Source of the circuit: Olsson et al. 2022 (arXiv:2209.11895).
"""

import string

import torch
from jaxtyping import Int
from torch import Tensor

from toy_tasks.planted.case import Planted
from toy_tasks.planted.finish import finished
from toy_tasks.planted.prompts import check_counts, distinct, swapped
from toy_tasks.planted.workbench import Variant, Workbench

N_LETTERS = 11
N_POS = 10
BOS = N_LETTERS
LOGIT = 8.0  # logit of a token that gets all of the induction head's attention
SCORE_PREVIOUS, SCORE_MATCH = 4.0, 5.0  # of the looked-for key; all others get 0
SATURATED = 20.0  # both scores, where attention is to be saturated


def induction(
    *,
    variant: Variant = "plain",
    distractors: bool = True,
    n_prompts: int = 100,
    seed: int = 0,
    saturated: bool = False,
) -> Planted:
    """An induction circuit of two heads in two layers.

    A third of the prompts each is corrupted so that D is called for:
    the last token becomes C (changes the induction head's query); A and C change
    places (changes the previous-token head's values, the induction head's keys);
    B and D change places (changes the induction head's values).

    Args:
        variant: "plain", "grouped" (two heads to a key-value head) or "rms".
        distractors: add heads and neurons that do not matter; without them the model
            has no MLP.
        n_prompts: pairs of prompts, 10 tokens each.
        seed: for prompts and distractors.
        saturated: scores so high that attention is 0 or 1 and passes no gradient.

    Raises:
        ValueError: an unknown variant, or fewer than 3 prompts.
    """
    check_counts("induction", n_prompts, 3)
    n_vocab = N_LETTERS + 1
    bench = Workbench(
        "induction",
        {"tok": n_vocab, "prev": n_vocab, "out": n_vocab, "pos": N_POS},
        d_vocab=n_vocab,
        n_ctx=N_POS,
        d_head=16,
        n_layers=2,
        variant=variant,
        distractors=distractors,
        seed=seed,
    )
    tokens, positions = torch.eye(n_vocab), torch.eye(N_POS)
    previous = SATURATED if saturated else SCORE_PREVIOUS
    match = SATURATED if saturated else SCORE_MATCH
    back = torch.zeros(N_POS, N_POS)
    back[range(1, N_POS), range(N_POS - 1)] = previous
    bench.embed({"tok": tokens}, {"pos": positions})
    bench.head(
        0,
        0,
        q={"pos": back},
        k={"pos": positions},
        v={"tok": tokens},
        o={"prev": tokens},
    )
    bench.head(
        1,
        0,
        q={"tok": match * tokens},
        k={"prev": tokens},
        v={"tok": tokens},
        o={"out": tokens},
    )
    bench.unembed({"out": LOGIT * tokens})
    clean, corrupted, answers, wrong = _prompts(n_prompts, seed)
    changing = {
        ("input", bench.v(0, 0)),
        ("a0.h0", bench.k(1, 0)),
        ("input", bench.q(1, 0)),
        ("input", bench.v(1, 0)),
        ("a1.h0", "logits"),
    }
    return finished(
        bench,
        "induction",
        clean=clean,
        corrupted=corrupted,
        answers=answers,
        wrong=wrong,
        vocab=(*string.ascii_uppercase[:N_LETTERS], "<s>"),
        edges=changing,
        constant={("input", bench.q(0, 0)), ("input", bench.k(0, 0))},
        kinds=3,
        least=9.0,
        gain=LOGIT * (1 + previous / 2) * (1 + match / 2),
        saturated=saturated,
    )


def _prompts(n_prompts: int, seed: int) -> tuple[Int[Tensor, "..."], ...]:
    generator = torch.Generator().manual_seed(seed)
    letters = distinct(n_prompts, N_POS - 2, N_LETTERS, generator)
    clean = torch.full((n_prompts, N_POS), BOS)
    clean[:, 1:-1] = letters
    # Two pairs that do not overlap, each on one of four pairs of neighbours.
    pair = distinct(n_prompts, 2, (N_POS - 2) // 2, generator)
    a, c = 1 + 2 * pair[:, 0], 1 + 2 * pair[:, 1]
    rows = torch.arange(n_prompts)
    clean[:, -1] = clean[rows, a]
    kind = rows % 3
    corrupted = clean.clone()
    corrupted[kind == 0, -1] = clean[rows, c][kind == 0]
    corrupted = swapped(corrupted, a, c, kind == 1)
    corrupted = swapped(corrupted, a + 1, c + 1, kind == 2)
    return clean, corrupted, clean[rows, a + 1], clean[rows, c + 1]
