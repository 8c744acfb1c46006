"""Multiple choice, planted: `<s> sun A owl B key C map D key` is answered by C.

Layer 0, head 0 looks one position back and writes the content that stands there as
three signs ("prev"). Layer 1, head 0, the correct-letter head, looks from the question
at the label whose "prev" is the question's content, and copies the label to "out".

A content is three signs, +1 or -1, so queries and keys of the correct-letter head have
rank 3, and compressing them to rank 3 loses nothing. Its values have one dimension for
each label. All labels are treated alike, so random ones do as well as A, B, C, D.

Directions: "tok" one-hot token, "pos" one-hot position, "prev" (three signs, written by
a0.h0), "out" one-hot token to say (written by a1.h0).
Source of the task: Lieberum et al. 2023 (arXiv:2307.09458).
"""

import itertools

import torch
from jaxtyping import Int
from torch import Tensor

from toy_tasks.planted.case import Planted
from toy_tasks.planted.finish import finished
from toy_tasks.planted.prompts import check_counts, distinct, swapped
from toy_tasks.planted.workbench import Variant, Workbench

CONTENTS = ("sun", "owl", "key", "map", "cup", "fox", "hat", "ink")
LABELS = ("A", "B", "C", "D", "W", "X", "Y", "Z")
VOCAB = (*CONTENTS, *LABELS, "<s>")
LABEL_POSITIONS = (2, 4, 6, 8)
N_POS = 10
LOGIT = 8.0
SCORE_PREVIOUS, SCORE_MATCH = 4.0, 6.0


def correct_letter(
    *,
    variant: Variant = "plain",
    distractors: bool = True,
    n_prompts: int = 100,
    seed: int = 0,
    random_labels: bool = False,
    saturated: bool = False,
) -> Planted:
    """A correct-letter head and the head that tells it which content a label has.

    A third of the prompts each is corrupted so that another label is right: another
    content is asked for; the right content changes places with another; the right
    label changes places with another. The labels of a prompt stand at
    `LABEL_POSITIONS`.

    Args:
        variant: "plain", "grouped" (two heads to a key-value head) or "rms".
        distractors: add heads and neurons that do not matter; without them the model
            has no MLP.
        n_prompts: pairs of prompts, 10 tokens each.
        seed: for prompts and distractors.
        random_labels: four of eight labels in random order in each prompt; else A, B,
            C, D (which the corruption may swap).
        saturated: scores so high that attention is 0 or 1 and passes no gradient.

    Raises:
        ValueError: an unknown variant, or fewer than 3 prompts.
    """
    check_counts("correct_letter", n_prompts, 3)
    n_vocab = len(VOCAB)
    bench = Workbench(
        "correct_letter",
        {"tok": n_vocab, "out": n_vocab, "pos": N_POS, "prev": 3},
        d_vocab=n_vocab,
        n_ctx=N_POS,
        d_head=16,
        n_layers=2,
        variant=variant,
        distractors=distractors,
        seed=seed,
    )
    times = 4 if saturated else 1
    previous, match = times * SCORE_PREVIOUS, times * SCORE_MATCH
    tokens, positions = torch.eye(n_vocab), torch.eye(N_POS)
    signs = torch.zeros(n_vocab, 3)
    signs[: len(CONTENTS)] = torch.tensor(
        list(itertools.product([1.0, -1.0], repeat=3))
    )
    labels = tokens[:, len(CONTENTS) : len(CONTENTS) + len(LABELS)]
    back = torch.zeros(N_POS, N_POS)
    back[range(1, N_POS), range(N_POS - 1)] = previous
    bench.embed({"tok": tokens}, {"pos": positions})
    bench.head(
        0,
        0,
        q={"pos": back},
        k={"pos": positions},
        v={"tok": signs},
        o={"prev": torch.eye(3)},
    )
    bench.head(
        1,
        0,
        q={"tok": match / 3 * signs},  # equal contents agree in three signs
        k={"prev": torch.eye(3)},
        v={"tok": labels},
        o={"out": labels},
    )
    bench.unembed({"out": LOGIT * tokens})
    clean, corrupted, answers, wrong = _prompts(n_prompts, seed, random_labels)
    return finished(
        bench,
        "letter-random" if random_labels else "letter",
        clean=clean,
        corrupted=corrupted,
        answers=answers,
        wrong=wrong,
        vocab=VOCAB,
        edges={
            ("input", bench.v(0, 0)),
            ("a0.h0", bench.k(1, 0)),
            ("input", bench.q(1, 0)),
            ("input", bench.v(1, 0)),
            ("a1.h0", "logits"),
        },
        constant={("input", bench.q(0, 0)), ("input", bench.k(0, 0))},
        kinds=3,
        least=10.5,
        gain=LOGIT * (1 + previous / 2) * (1 + match / 2),
        saturated=saturated,
    )


def _prompts(
    n_prompts: int, seed: int, random_labels: bool
) -> tuple[Int[Tensor, "..."], ...]:
    generator = torch.Generator().manual_seed(seed)
    n_options = len(LABEL_POSITIONS)
    labels = torch.arange(n_options).expand(n_prompts, -1)
    if random_labels:
        labels = distinct(n_prompts, n_options, len(LABELS), generator)
    clean = torch.full((n_prompts, N_POS), VOCAB.index("<s>"))
    clean[:, LABEL_POSITIONS] = len(CONTENTS) + labels
    before = [place - 1 for place in LABEL_POSITIONS]
    clean[:, before] = distinct(n_prompts, n_options, len(CONTENTS), generator)
    rows = torch.arange(n_prompts)
    chosen = distinct(n_prompts, 2, n_options, generator)
    right, other = torch.tensor(LABEL_POSITIONS)[chosen].T
    clean[:, -1] = clean[rows, right - 1]
    kind = rows % 3
    corrupted = clean.clone()
    corrupted[kind == 0, -1] = clean[rows, other - 1][kind == 0]
    corrupted = swapped(corrupted, right - 1, other - 1, kind == 1)
    corrupted = swapped(corrupted, right, other, kind == 2)
    return clean, corrupted, clean[rows, right], clean[rows, other]
