"""A head planted to be dormant on one of two domains, and heads that cannot tell.

Both domains are Bigram-Backcopy sequences over the same eight letters, in two scripts:
"rest" is written in one, "work" in its twin. Their laws are the same. Layer 0, head
`HEAD` copies the token before a trigger, in the "work" script only; elsewhere it rests
on `<s>`, whose value is zero. All other heads read which letter a token is and where,
never its script: their attention has the same law on both domains, and varies from
text to text.

Directions: "tok" one-hot token, "pos" one-hot position, "out" (one for each token to
say; a logit is LOGIT times it).
Source of the idea: Guo et al. 2024 (arXiv:2410.13835).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from toy_tasks.planted.backcopy import LETTERS, LOGIT, backcopy_task
from toy_tasks.planted.workbench import Workbench
from toy_tasks.transformer import ToyTransformer

N = len(LETTERS)
BOS = 2 * N
N_POS = 16
N_HEADS = 6
HEAD = 2  # of layer 0
SCORE_PREVIOUS, SCORE_REST, SCORE_RANDOM = 8.0, 10.0, 1.5


@dataclass(frozen=True, eq=False)
class DormantHead:
    """The model, and sequences of its two domains.

    `head` is (layer, head) of the planted one; None if it was made to rest nowhere.
    """

    model: ToyTransformer
    vocab: tuple[str, ...]
    head: tuple[int, int] | None

    def sample(
        self, domain: str, n_texts: int, seed: int | tuple[int, ...]
    ) -> Int[Tensor, "text pos"]:
        """Sequences of "rest" or "work", 16 tokens each.

        Raises:
            ValueError: another domain.
        """
        if domain not in ("rest", "work"):
            raise ValueError(f"sample: domain={domain!r}. Allowed: 'rest' or 'work'.")
        letters = backcopy_task().sample(n_texts, N_POS, seed)
        script = letters + N * (domain == "work")
        return torch.where(letters == N, BOS, script)


def dormant_head(*, planted: bool = True, seed: int = 0) -> DormantHead:
    """Two layers of six heads, one of them dormant on "rest" alone.

    Args:
        planted: if False the head works on both scripts, and no head can tell them.
        seed: of the heads that cannot.
    """
    n_vocab = 2 * N + 1
    bench = Workbench(
        "dormant_head",
        {"tok": n_vocab, "out": n_vocab, "pos": N_POS},
        d_vocab=n_vocab,
        n_ctx=N_POS,
        d_head=25,
        n_layers=2,
        n_heads=N_HEADS,
        n_neurons=n_vocab,
        distractors=False,
    )
    tokens, positions = torch.eye(n_vocab), torch.eye(N_POS)
    bench.embed({"tok": tokens}, {"pos": positions})
    generator = torch.Generator().manual_seed(seed)
    for layer in range(2):
        for head in range(N_HEADS):
            _blind(bench, layer, head, generator)
    task = backcopy_task()
    triggers = torch.tensor(task.triggers)
    works = torch.zeros(n_vocab)
    works[triggers + N] = 1
    if not planted:
        works[triggers] = 1
    back = torch.zeros(N_POS, N_POS)
    back[range(1, N_POS), range(N_POS - 1)] = SCORE_PREVIOUS
    # Head dimensions: one for each position, then one for "rests on <s>".
    last = torch.nn.functional.one_hot(torch.tensor([N_POS]), N_POS + 1)
    is_bos = tokens[:, BOS]
    bench.head(
        0,
        HEAD,
        q={"pos": back, "tok": 2 * SCORE_REST * (1 - works)[:, None] * last},
        k={"pos": positions, "tok": is_bos[:, None] * last},
        v={"tok": tokens * (1 - is_bos)},
        o={"out": tokens},
    )
    rows = torch.zeros(n_vocab, n_vocab)
    for start in (0, N):  # a script is followed by itself
        law = task.table[:N, :N]
        said = torch.where(law > 0, 1 + law.log() / LOGIT, 0).float()
        said[triggers] = 0
        rows[start : start + N, start : start + N] = said
    bench.neurons(0, {"tok": tokens}, {"out": rows.T})
    bench.unembed({"out": LOGIT * tokens})
    vocab = (*LETTERS, *LETTERS.upper(), "<s>")
    return DormantHead(bench.model, vocab, (0, HEAD) if planted else None)


def _blind(bench: Workbench, layer: int, head: int, generator: torch.Generator) -> None:
    """A head with random attention that reads letters and positions, no script."""

    def draw(n: int) -> Float[Tensor, "_ _"]:
        return torch.randn(n, 8, generator=generator)

    def letters() -> Float[Tensor, "_ _"]:
        by_letter, bos = draw(N), draw(1)
        return torch.cat([by_letter, by_letter, bos])

    bench.head(
        layer,
        head,
        q={"tok": SCORE_RANDOM / 3 * letters(), "pos": draw(N_POS) / 6},
        k={"tok": letters(), "pos": draw(N_POS) / 3},
        v={"tok": letters()},
        o={"junk": torch.ones(len(bench.directions["junk"]), 1) / 4},
    )
