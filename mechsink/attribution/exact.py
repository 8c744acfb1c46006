"""`exact_edges`: what each edge carries, by patching each edge. The oracle."""

import time
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from mechsink.attribution.ask import Asked, asked, scores_of
from mechsink.attribution.edge_patching import cut_metric, cut_rows
from mechsink.attribution.edge_scores import EdgeScores
from mechsink.attribution.writes import written
from mechsink.models.any_model import any_model
from mechsink.precision import floors
from mechsink.progress import bar
from mechsink.prompts import PromptPairs, TokenPairs
from mechsink.run import Metric, Model
from mechsink.sites import Site


@any_model
def exact_edges(
    model: Model,
    pairs: PromptPairs,
    metric: Metric,
    *,
    edges: Sequence[tuple[str, str]] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> EdgeScores:
    """Patch every edge by itself and measure: exact, a forward pass an edge.

    In the clean run the target alone reads the source's corrupted write; all that
    follows is computed. score = clean metric - patched metric, so score > 0 means that
    corrupting the edge lowers the metric; mean over prompts.

    Args:
        model: any model whose wiring is known (`mechsink.models.wiring`).
        pairs: clean and corrupted prompts.
        metric: a run to one number per prompt; may read sites (a sink score).
        edges: which, as (source, target); default all. A large model has tens of
            thousands.
        progress: show a bar; default: on terminals, in notebooks.
        seed: of the intervals and tests.

    Returns:
        `EdgeScores`, one row an edge, with noise floors.

    Raises:
        ValueError: as `eap`, or an edge that this model does not have.

    Examples:
        >>> case = ms.planted("and")
        >>> scores = ms.exact_edges(case.model, case.pairs, ms.logit_diff)
        >>> strong = scores.table[scores.table.score > 1]
        >>> {*zip(strong.source, strong.target)} == case.edges
        True
    """
    started = time.perf_counter()
    ask = asked("exact_edges", model, pairs, metric)
    chosen = list(ask.wires.edges if edges is None else edges)
    ask.wires.check(chosen, "exact_edges")
    numbers = torch.tensor(
        [[ask.wires.source_index[s], ask.wires.target_index[t]] for s, t in chosen]
    )
    if len(numbers) == 0:
        raise ValueError(
            "exact_edges: edges=[] names no edge. Name some, as in "
            '[("a0.h1", "m1")], or leave edges= out for all.'
        )
    by_prompt: dict[int, Tensor] = {}

    def work(batch: TokenPairs) -> None:
        ends = ask.ends(batch)
        reference = written(ask.wires, ask.wiring, ends[1])
        changes = _changed(ask, ends[0], reference)
        scores = torch.zeros(len(batch), *ask.wires.real.shape, dtype=torch.float64)
        clean = torch.tensor([ask.clean[i] for i in batch.index], dtype=torch.float64)
        # Edges of one target together: only that target's site is edited.
        at_once = max(1, cut_rows(model, ask.wires, batch.n_pos) // len(batch))
        for some in _by_target(numbers[changes[numbers[:, 0]]], at_once):
            value = _patched(ask, batch, reference, some)
            scores[:, some[:, 0], some[:, 1]] = (clean - value).T
            advance(len(batch) * len(some))
        by_prompt.update(zip(batch.index, scores, strict=True))

    with bar("exact edges", len(pairs) * len(chosen), progress) as advance:
        ask.each_batch(
            lambda n_pos: max(1, cut_rows(model, ask.wires, n_pos) // 8), work
        )
    noise = floors(model, ask.groups, metric)
    return scores_of(ask, by_prompt, "exact_edges", seed, started, {}, edges, noise)


def _changed(
    ask: Asked, clean: Mapping[Site, Tensor], reference: Tensor
) -> Bool[Tensor, " source"]:
    """Whether a source's write differs at all between the two runs."""
    differs = written(ask.wires, ask.wiring, clean) != reference
    return differs.flatten(2).any(-1).any(0).cpu()


def _by_target(numbers: Tensor, at_once: int) -> list[Tensor]:
    found: list[Tensor] = []
    for target in numbers[:, 1].unique():
        found += numbers[numbers[:, 1] == target].split(at_once)
    return found


def _patched(ask: Asked, batch: TokenPairs, reference: Tensor, some: Tensor) -> Tensor:
    """Metric of each patch and prompt, [edge prompt]."""
    n = len(batch)
    rows = torch.arange(n, device=batch.clean.device).repeat(len(some))
    cut = torch.zeros(len(some), *ask.wires.real.shape, dtype=torch.bool)
    cut[torch.arange(len(some)), some[:, 0], some[:, 1]] = True
    cut = cut.to(reference.device).repeat_interleave(n, dim=0)
    value = cut_metric(
        ask.model, ask.wires, ask.wiring, batch.rows(rows), ask.metric, cut,
        reference.repeat(len(some), 1, 1, 1),
    )  # fmt: skip
    return value.reshape(len(some), n)
