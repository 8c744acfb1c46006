"""The Bigram-Backcopy solution, planted: a head that copies or rests, a table.

Layer 0, head 0: on a trigger it looks at the token before and copies it to "out"; on
any other token it rests on `<s>`, whose value is zero: an attention sink and a value
drain, set by hand. The MLP has one neuron for each token that is no trigger; it writes
that token's row of the bigram table to "out".

Directions: "tok" one-hot token, "pos" one-hot position, "out" (one for each token to
say; a logit is LOGIT times it). Rows of the table: 1 + log(p) / LOGIT, and 0 for p = 0,
so an impossible token stays about LOGIT below.
Source: Guo et al. 2024 (arXiv:2410.13835).
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from toy_tasks.bigram_backcopy import BigramBackcopy
from toy_tasks.bigram_law import BOS
from toy_tasks.planted.case import Planted
from toy_tasks.planted.finish import finished
from toy_tasks.planted.prompts import check_counts
from toy_tasks.planted.workbench import Variant, Workbench

LETTERS = "abcdefgh"
TRIGGERS = (0, 4)  # a and e
MAIN_STEP = 1  # in the alphabet, from a letter to the likeliest next one
STEPS = {MAIN_STEP: 1 / 2, 3: 1 / 4, 4: 1 / 8, 6: 1 / 8}
N_POS = 12
LOGIT = 16.0
SCORE_PREVIOUS, SCORE_REST = 5.0, 10.0


def backcopy_task() -> BigramBackcopy:
    """Its small task: eight letters, of which a and e are triggers.

    After a letter comes the next one with probability 1/2, the one three further on
    with 1/4, four or six further on with 1/8 each; h is followed by a.
    """
    n = len(LETTERS)
    table = torch.zeros(n + 1, n + 1, dtype=torch.float64)
    for step, p in STEPS.items():
        table[range(n), [(letter + step) % n for letter in range(n)]] = p
    table[n, :n] = 1 / n
    return BigramBackcopy([*LETTERS, BOS], table, table[n], list(TRIGGERS))


def backcopy(
    *,
    variant: Variant = "plain",
    distractors: bool = True,
    n_prompts: int = 100,
    seed: int = 0,
    saturated: bool = False,
) -> Planted:
    """A one-layer transformer that solves Bigram-Backcopy on `backcopy_task()`.

    A third of the prompts each: the last token, a trigger, becomes an ordinary one
    (the head goes to rest, the table speaks); the last is a trigger and the one before
    it changes (what is copied); the last, an ordinary one, becomes another one (what
    the table says).

    Args:
        variant: "plain", "grouped" (two heads to a key-value head) or "rms".
        distractors: add heads and neurons that do not matter.
        n_prompts: pairs of prompts, 12 tokens each.
        seed: for prompts and distractors.
        saturated: scores so high that attention is 0 or 1 and passes no gradient.

    Raises:
        ValueError: an unknown variant, or fewer than 3 prompts.
    """
    check_counts("backcopy", n_prompts, 3)
    task = backcopy_task()
    n_vocab = task.d_vocab
    bench = Workbench(
        "backcopy",
        {"tok": n_vocab, "out": n_vocab, "pos": N_POS},
        d_vocab=n_vocab,
        n_ctx=N_POS,
        d_head=16,
        n_neurons=n_vocab,
        variant=variant,
        distractors=distractors,
        seed=seed,
    )
    times = 4 if saturated else 1
    previous, rest = times * SCORE_PREVIOUS, times * SCORE_REST
    tokens, positions = torch.eye(n_vocab), torch.eye(N_POS)
    bench.embed({"tok": tokens}, {"pos": positions})
    is_trigger = task.is_trigger(torch.arange(n_vocab))
    is_bos = tokens[:, task.bos]
    back = torch.zeros(N_POS, N_POS)
    back[range(1, N_POS), range(N_POS - 1)] = previous
    # Head dimensions: one for each position, then one for "rests on <s>".
    last = torch.nn.functional.one_hot(torch.tensor([N_POS]), N_POS + 1)
    bench.head(
        0,
        0,
        q={"pos": back, "tok": rest * (~is_trigger)[:, None] * last},
        k={"pos": positions, "tok": is_bos[:, None] * last},
        v={"tok": tokens * (1 - is_bos)},
        o={"out": tokens},
    )
    law = task.table.clone()
    law[task.bos] = task.first_law
    rows = torch.where(law > 0, 1 + law.log() / LOGIT, 0)
    rows[is_trigger] = 0
    bench.neurons(0, {"tok": tokens}, {"out": rows.T})
    bench.unembed({"out": LOGIT * tokens})
    clean, corrupted = _prompts(task, n_prompts, seed, is_trigger)
    answers, wrong = (
        task.oracle_logprobs(t)[:, -1].argmax(-1) for t in (clean, corrupted)
    )
    return finished(
        bench,
        "backcopy",
        clean=clean,
        corrupted=corrupted,
        answers=answers,
        wrong=wrong,
        vocab=tuple(task.vocab),
        edges={
            ("input", bench.q(0, 0)),
            ("input", bench.v(0, 0)),
            ("a0.h0", "logits"),
            ("input", "m0"),
            ("m0", "logits"),
        },
        constant={("input", bench.k(0, 0))},
        kinds=3,
        least=9.0,
        gain=LOGIT * (1 + rest / 2),
        saturated=saturated,
    )


def _prompts(
    task: BigramBackcopy, n_prompts: int, seed: int, is_trigger: Bool[Tensor, " vocab"]
) -> tuple[Int[Tensor, "prompt pos"], Int[Tensor, "prompt pos"]]:
    generator = torch.Generator().manual_seed(seed)
    clean = task.sample(n_prompts, N_POS, seed)
    n = len(LETTERS)
    triggers = torch.tensor(task.triggers)
    others = torch.arange(n)[~is_trigger[:n]]
    kind = torch.arange(n_prompts) % 3

    def draw(high: int) -> Int[Tensor, " prompt"]:
        return torch.randint(high, (n_prompts,), generator=generator)

    trigger = triggers[draw(len(triggers))]
    ordinary = others[draw(len(others))]
    # Another ordinary token, after which the first one's answer is impossible.
    answer = (ordinary + MAIN_STEP) % n
    possible = (task.table[:n, answer].T == 0) & ~is_trigger[:n]
    possible[torch.arange(n_prompts), ordinary] = False
    another = possible.double().multinomial(1, generator=generator)[:, 0]
    shift = 1 + draw(n - 1)
    clean[:, -1] = torch.where(kind == 2, ordinary, trigger)
    # What is copied must not be what the table will say after the corruption.
    before = torch.where(kind == 0, (answer + shift) % n, clean[:, -2])
    clean[:, -2] = before
    corrupted = clean.clone()
    corrupted[kind == 0, -1] = ordinary[kind == 0]
    corrupted[kind == 1, -2] = ((before + shift) % n)[kind == 1]
    corrupted[kind == 2, -1] = another[kind == 2]
    return clean, corrupted
