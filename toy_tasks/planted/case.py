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

    Attributes:
        name: of the case.
        model: float32; every weight is kept exactly by `.double()`.
        clean: prompts with the behaviour.
        corrupted: prompts without it.
        answers: what the model says after the clean prompt.
        wrong: what it says after the corrupted one.
        edges: planted, and carrying what this corruption changes.
        all_edges: the whole planted circuit.
        vocab: token strings, by id.
        directions: name to dimensions of the residual stream.
        distractor_heads: heads that do not matter.
        effect_floor: logits.
        noise_bound: logits.
        notes: what is particular.

    Examples:
        >>> from toy_tasks import PLANTED
        >>> case = PLANTED["induction"](n_prompts=3)
        >>> case.texts(case.clean)[0], case.vocab[case.answers[0]]
        ('<s> C D E K I G A J I', 'G')
        >>> case.logit_diff(case.model(case.clean)) > 3
        tensor([True, True, True])
    """

    name: str
    model: ToyTransformer
    clean: Int[Tensor, "prompt pos"]
    corrupted: Int[Tensor, "prompt pos"]
    answers: Int[Tensor, " prompt"]
    wrong: Int[Tensor, " prompt"]
    edges: frozenset[Edge]
    all_edges: frozenset[Edge]
    vocab: tuple[str, ...]
    directions: dict[str, tuple[int, ...]]
    distractor_heads: tuple[str, ...]
    effect_floor: float
    noise_bound: float
    notes: str

    def logit_diff(
        self, logits: Float[Tensor, "prompt pos vocab"]
    ) -> Float[Tensor, " prompt"]:
        """The metric: answer minus wrong at the last position, in logits.

        Args:
            logits: of the model on `clean` or `corrupted`.
        """
        rows = torch.arange(len(logits), device=logits.device)
        last = logits[:, -1]
        return last[rows, self.answers] - last[rows, self.wrong]

    def texts(self, tokens: Int[Tensor, "prompt pos"]) -> list[str]:
        """Prompts for reading, tokens apart by blanks.

        Args:
            tokens: such as `clean`.
        """
        return [" ".join(self.vocab[t] for t in row) for row in tokens.tolist()]

    def double(self) -> "Planted":
        """The same with a float64 copy of the model."""
        return replace(self, model=copy.deepcopy(self.model).double())
