"""Small models and prompts for circuits, and a circuit run by brute force."""

from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor

from mechsink.models.toy import ToyModel
from mechsink.prompts import PromptPairs
from tests.toy_tasks.edge_brute_force import edges_of, forward
from toy_tasks import ToyConfig, ToyTransformer
from toy_tasks.planted import Planted

Edge = tuple[str, str]
SMALL = {"d_vocab": 80, "n_layers": 2, "d_model": 16, "d_head": 4, "n_heads": 4,
         "d_mlp": 24}  # fmt: skip


def toy(seed: int = 0, **options) -> ToyModel:
    """A random toy in float64: gains and biases not 1 and 0, heads that matter."""
    model = ToyTransformer(ToyConfig(**{**SMALL, **options}), seed).double()
    drawn = torch.Generator().manual_seed(seed + 100)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=drawn), alpha=0.3)
            elif parameter.ndim == 3:
                parameter.mul_(2.5)
    return ToyModel(model)


def prompt_pairs(n: int = 5, n_pos: int = 6, seed: int = 0) -> PromptPairs:
    """Random tokens; half the positions of a pair differ, the last one among them."""
    drawn = torch.Generator().manual_seed(seed)
    clean = torch.randint(0, 80, (n, n_pos), generator=drawn)
    other = torch.randint(0, 80, (n, n_pos), generator=drawn)
    corrupted = torch.where(torch.arange(n_pos) % 2 == (n_pos - 1) % 2, other, clean)
    answers = torch.randint(0, 40, (n,), generator=drawn)
    return PromptPairs(clean, corrupted, answers, answers + 40)


def telling_pairs(model: ToyModel, n: int, seed: int = 0) -> PromptPairs:
    """Pairs that part before the last token, with the model's own two answers."""
    clean, corrupted = torch.randint(
        0, 80, (2, 8 * n, 6), generator=torch.Generator().manual_seed(seed)
    )
    corrupted[:, -1] = clean[:, -1]
    says = [model.run(x).logits[:, -1].argmax(-1) for x in (clean, corrupted)]
    kept = (says[0] != says[1]).nonzero()[:n, 0]
    assert len(kept) == n
    return PromptPairs(clean[kept], corrupted[kept], says[0][kept], says[1][kept])


def pairs_of(case: Planted) -> PromptPairs:
    return PromptPairs(case.clean, case.corrupted, case.answers, case.wrong)


def random_circuit(model: ToyModel, share: float, seed: int) -> list[Edge]:
    edges = edges_of(model.toy)
    kept = np.random.default_rng(seed).random(len(edges)) < share
    return [edge for edge, stays in zip(edges, kept, strict=True) if stays]


@torch.no_grad()
def run_by_hand(
    model: ToyModel,
    tokens: Tensor,
    circuit: Collection[Edge],
    instead: Mapping[str, Tensor],
) -> Tensor:
    """Logits when edges outside the circuit carry `instead` of their source."""
    cut = {
        (source, target): instead[source]
        for source, target in edges_of(model.toy)
        if (source, target) not in circuit
    }
    return forward(model.toy, model.toy.embed(tokens), cut)[0]


@torch.no_grad()
def writes_of(model: ToyModel, tokens: Tensor) -> dict[str, Tensor]:
    """What every source writes in a plain run, [prompt pos d_model]."""
    return forward(model.toy, model.toy.embed(tokens))[1]


def logit_diffs(logits: Tensor, pairs: PromptPairs) -> np.ndarray:
    rows = torch.arange(len(logits))
    last, answers, wrong = logits[:, -1], pairs.answers, pairs.wrong
    return (last[rows, answers] - last[rows, wrong]).numpy()
