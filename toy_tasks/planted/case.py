"""`Planted`: a hand-built transformer, prompts, and the circuit it is known to have."""

import copy
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from toy_tasks.transformer import ToyTransformer

Edge = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Planted:
    """A model with set weights, pairs of prompts, and the true edges.

    Edges are (source, target): sources "input", "a0.h1", "m0"; targets "a1.h0<q>",
    "m0", "logits", with grouped-query attention "a1.kv0<k>", "a1.kv0<v>".

    The effect of an edge is the mean drop of the metric over the prompts when, in the
    clean run, its target alone reads the source's corrupted value. The metric is
    logit[answer] - logit[wrong] at the last position. Every edge of `edges` has an
    effect above `effect_floor`, every other one within `noise_bound` of zero; both
    hold for the prompts at hand and in float64.
    """

    name: str
    model: ToyTransformer  # float32; every weight is kept exactly by .double()
    clean: Int[Tensor, "prompt pos"]
    corrupted: Int[Tensor, "prompt pos"]
    answers: Int[Tensor, " prompt"]  # what the model says after the clean prompt
    wrong: Int[Tensor, " prompt"]  # what it says after the corrupted one
    edges: frozenset[Edge]  # planted, and carrying what this corruption changes
    all_edges: frozenset[Edge]  # the whole planted circuit
    vocab: tuple[str, ...]
    directions: dict[str, tuple[int, ...]]  # name to dimensions of the residual stream
    distractor_heads: tuple[str, ...]
    effect_floor: float  # logits
    noise_bound: float  # logits
    notes: str

    def logit_diff(
        self, logits: Float[Tensor, "prompt pos vocab"]
    ) -> Float[Tensor, " prompt"]:
        """The metric: answer minus wrong at the last position, in logits."""
        rows = torch.arange(len(logits), device=logits.device)
        last = logits[:, -1]
        return last[rows, self.answers] - last[rows, self.wrong]

    def texts(self, tokens: Int[Tensor, "prompt pos"]) -> list[str]:
        """Prompts for reading, tokens apart by blanks."""
        return [" ".join(self.vocab[t] for t in row) for row in tokens.tolist()]

    def double(self) -> "Planted":
        """The same with a float64 copy of the model."""
        return replace(self, model=copy.deepcopy(self.model).double())
