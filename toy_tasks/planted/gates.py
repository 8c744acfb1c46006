"""AND and OR, planted: `<s> x 1 y 0 z =` is answered by "yes" or "no".

Heads 0, 1, .. of layer 0 look, from the last token, at the bits' places, one each,
and add up the ones they find there ("sum"). The MLP turns the sum into the gate's
value ("gate").

Directions: "one" (1 at a token "1"), "tok" (one-hot token: only distractors read it),
"pos" one-hot position, "sum" (written by the heads), "gate" (written by the MLP).
Since attention is not hard, a head also finds some of the other bits: head i gets
hit * bit i + miss * (the other bits), hit = e^s / (e^s + n), miss = 1 / (e^s + n), for
a score s and n other tokens; so a bit counts hit + (bits - 1) * miss in the sum.
"""

import math
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from toy_tasks.planted.case import Planted
from toy_tasks.planted.finish import finished
from toy_tasks.planted.prompts import check_counts
from toy_tasks.planted.workbench import Variant, Workbench

VOCAB = ("0", "1", "u", "v", "w", "x", "y", "z", "=", "yes", "no", "<s>")
ONE, FILLERS, EQUALS, YES, NO, BOS = 1, (2, 8), 8, 9, 10, 11
LOGIT = 8.0  # "yes" gets LOGIT times the gate's value, "no" half of LOGIT
SCORE = 5.0
STEEP = 20.0


def and_gate(
    *,
    variant: Variant = "plain",
    distractors: bool = True,
    n_prompts: int = 100,
    seed: int = 0,
    n_bits: int = 2,
    saturated: bool = False,
) -> Planted:
    """All bits on in the clean prompts; the corruption switches one off.

    Which one goes round, so that every arm counts; the letters between are redrawn.

    Args:
        variant: "plain", "grouped" (heads 0 and 1 share keys and values) or "rms".
        distractors: add heads and neurons that do not matter.
        n_prompts: pairs of prompts, 2 * n_bits + 2 tokens each.
        seed: for prompts and distractors.
        n_bits: inputs of the gate, 2 to 4.
        saturated: a gate that is flat except within 1/20 of its threshold, so that it
            passes no gradient at the clean prompt.

    Raises:
        ValueError: an unknown variant, n_bits out of range, fewer prompts than bits.
    """
    return _gate("and", variant, distractors, n_prompts, seed, n_bits, saturated)


def or_gate(
    *,
    variant: Variant = "plain",
    distractors: bool = True,
    n_prompts: int = 100,
    seed: int = 0,
    n_bits: int = 2,
    saturated: bool = False,
) -> Planted:
    """One bit on in the clean prompts, each in turn; the corruption switches it off.

    With two bits on, either arm alone would do and no single edge would matter.
    Arguments and errors as in `and_gate`.
    """
    return _gate("or", variant, distractors, n_prompts, seed, n_bits, saturated)


def _gate(
    kind: Literal["and", "or"],
    variant: Variant,
    distractors: bool,
    n_prompts: int,
    seed: int,
    n_bits: int,
    saturated: bool,
) -> Planted:
    if not 2 <= n_bits <= 4:
        raise ValueError(
            f"{kind}_gate: n_bits={n_bits}. Allowed: 2 to 4, one head for each."
        )
    check_counts(f"{kind}_gate", n_prompts, n_bits)
    n_pos = 2 * n_bits + 2
    bench = Workbench(
        f"{kind}_gate",
        {"one": 1, "tok": len(VOCAB), "pos": n_pos, "sum": 1, "gate": 1},
        d_vocab=len(VOCAB),
        n_ctx=n_pos,
        d_head=16,
        n_heads=n_bits,
        n_neurons=2,
        variant=variant,
        distractors=distractors,
        seed=seed,
    )
    one = torch.zeros(1, len(VOCAB))
    one[0, ONE] = 1
    bench.embed({"one": one, "tok": torch.eye(len(VOCAB))}, {"pos": torch.eye(n_pos)})
    for head in range(n_bits):
        look = torch.zeros(n_pos, n_pos)
        look[-1, place(head)] = SCORE
        bench.head(
            0,
            head,
            q={"pos": look},
            k={"pos": torch.eye(n_pos)},
            v={"one": torch.ones(1, 1)},
            o={"sum": torch.ones(1, 1)},
        )
    bit = worth(n_bits)
    slope = (STEEP if saturated else 1) / bit
    # Gate = relu(slope * (sum - low)) - relu(slope * (sum - high)): 0, then 1.
    if kind == "and":
        high = n_bits * bit
        low = high - 1 / slope
    else:
        low, high = 0.0, 1 / slope
    bench.neurons(
        0,
        {
            "sum": torch.full((1, 2), slope),
            "const": -slope * torch.tensor([[low, high]]),
        },
        {"gate": torch.tensor([[1.0, -1.0]])},
    )
    says = torch.zeros(2, 1, len(VOCAB))
    says[0, 0, YES] = LOGIT
    says[1, 0, NO] = LOGIT / 2
    bench.unembed({"gate": says[0], "const": says[1]})
    clean, corrupted = _prompts(kind, n_prompts, n_bits, seed)
    heads = range(n_bits)
    gate_gain = LOGIT * slope * n_bits * (1 + SCORE / 2)
    return finished(
        bench,
        kind,
        clean=clean,
        corrupted=corrupted,
        answers=torch.full((n_prompts,), YES),
        wrong=torch.full((n_prompts,), NO),
        vocab=VOCAB,
        edges={("input", bench.v(0, h)) for h in heads}
        | {(f"a0.h{h}", "m0") for h in heads}
        | {("m0", "logits")},
        constant={("input", bench.q(0, h)) for h in heads}
        | {("input", bench.k(0, h)) for h in heads}
        | {("input", "m0"), ("input", "logits")},
        kinds=n_bits,
        least=0.75 * LOGIT,
        gain=gate_gain,
        saturated=saturated,
    )


def place(bit: int) -> int:
    """Position of a bit: `<s> filler bit filler bit .. =`."""
    return 2 + 2 * bit


def worth(n_bits: int) -> float:
    """What a bit that is on adds to the sum, over all heads."""
    hit = math.exp(SCORE)
    return (hit + n_bits - 1) / (hit + 2 * n_bits + 1)


def _prompts(
    kind: Literal["and", "or"], n_prompts: int, n_bits: int, seed: int
) -> tuple[Int[Tensor, "prompt pos"], Int[Tensor, "prompt pos"]]:
    generator = torch.Generator().manual_seed(seed)
    n_pos = 2 * n_bits + 2
    chosen = torch.arange(n_prompts) % n_bits
    is_chosen = torch.nn.functional.one_hot(chosen, n_bits)
    bits = (torch.ones_like(is_chosen), 1 - is_chosen)
    if kind == "or":
        bits = (is_chosen, torch.zeros_like(is_chosen))
    prompts = []
    for row_bits in bits:
        tokens = torch.randint(*FILLERS, (n_prompts, n_pos), generator=generator)
        tokens[:, 0], tokens[:, -1] = BOS, EQUALS
        tokens[:, [place(bit) for bit in range(n_bits)]] = row_bits
        prompts.append(tokens)
    return prompts[0], prompts[1]
