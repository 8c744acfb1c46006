"""Edge attribution patching and its integrated kin: what each edge carries.

All estimate what `exact_edges` measures, by gradients: score = (clean - corrupted)
write of the source . gradient of the metric at what the target reads, summed over
positions. They differ in where the gradient is taken. score > 0: corrupting the edge
lowers the metric.
"""

import time
from collections.abc import Callable

from torch import Tensor

from mechsink.attribution.ask import Asked, Ends, asked, scores_of
from mechsink.attribution.edge_gradients import Point, collect, readers, score
from mechsink.attribution.edge_scores import EdgeScores
from mechsink.attribution.wires import Wires
from mechsink.attribution.writes import source_sites
from mechsink.models.any_model import any_model
from mechsink.models.memory import free_bytes
from mechsink.progress import bar
from mechsink.prompts import PromptPairs, TokenPairs
from mechsink.run import Metric, Model
from mechsink.sites import Site
from toy_tasks.checks import checked

Points = Callable[[Asked, Ends], list[Point]]
INPUT_SITE = Site("resid_pre", 0)


@any_model
@checked
def eap(
    model: Model,
    pairs: PromptPairs,
    metric: Metric,
    *,
    seed: int = 0,
    progress: bool | None = None,
) -> EdgeScores:
    """Edge attribution patching: gradient at the clean run.

    Args:
        model: any model whose wiring is known (`mechsink.models.wiring`).
        pairs: clean and corrupted prompts.
        metric: a run to one number per prompt; may read sites (a sink score).
        seed: of the intervals and tests.
        progress: show a bar; default on a terminal only.

    Returns:
        `EdgeScores`, one row an edge.

    Raises:
        ValueError: bad pairs; prompts whose clean and corrupted tokens are the same;
            a metric that is constant, NaN, or reads the residual stream; a family
            whose wiring is its own.

    Source: Syed et al. 2023 (arXiv:2310.10348).

    Examples:
        >>> case = ms.planted("induction")
        >>> scores = ms.eap(case.model, case.pairs, ms.logit_diff)
        >>> best = scores.table.nlargest(3, "score")
        >>> (best.source + " -> " + best.target).tolist()
        ['a1.h0 -> logits', 'input -> a1.h0<v>', 'a0.h0 -> a1.h0<k>']
        >>> ms.edge_auroc(scores, case.edges)
        1.0
    """
    return _by_gradients(
        model, pairs, metric, "eap", lambda *_: [Point({}, 1.0)], 1, seed, progress
    )


@any_model
@checked
def eap_ig(
    model: Model,
    pairs: PromptPairs,
    metric: Metric,
    *,
    steps: int = 5,
    seed: int = 0,
    progress: bool | None = None,
) -> EdgeScores:
    """EAP with integrated gradients over the input.

    The gradient is averaged over runs whose input (the residual before layer 0) is
    corrupted + a (clean - corrupted), at the midpoints a = (k + 1/2) / steps.

    Args:
        model: any model whose wiring is known (`mechsink.models.wiring`).
        pairs: clean and corrupted prompts.
        metric: a run to one number per prompt; may read sites (a sink score).
        steps: number of runs, 1 and more.
        seed: of the intervals and tests.
        progress: show a bar; default on a terminal only.

    Returns:
        `EdgeScores`, one row an edge.

    Raises:
        ValueError: as `eap`, or steps under 1.

    Source: Hanna et al. 2024 (arXiv:2403.17806), there with left Riemann sums.

    Examples:
        >>> case = ms.planted("and")
        >>> scores = ms.eap_ig(case.model, case.pairs, ms.logit_diff, steps=5)
        >>> best = scores.table.nlargest(3, "score")
        >>> (best.source + " -> " + best.target).tolist()
        ['m0 -> logits', 'input -> a0.h0<v>', 'input -> a0.h1<v>']
    """
    _check_steps("eap_ig", steps)

    def points(ask: Asked, ends: Ends) -> list[Point]:
        return [
            Point(
                {INPUT_SITE: _between(ends, INPUT_SITE, (k + 0.5) / steps)}, 1 / steps
            )
            for k in range(steps)
        ]

    return _by_gradients(
        model, pairs, metric, "eap_ig", points, steps, seed, progress, steps=steps
    )


@any_model
@checked
def eap_clean_corrupted(
    model: Model,
    pairs: PromptPairs,
    metric: Metric,
    *,
    seed: int = 0,
    progress: bool | None = None,
) -> EdgeScores:
    """EAP with the mean of the gradients at the clean and at the corrupted run.

    Args:
        model: any model whose wiring is known (`mechsink.models.wiring`).
        pairs: clean and corrupted prompts.
        metric: a run to one number per prompt; may read sites (a sink score).
        seed: of the intervals and tests.
        progress: show a bar; default on a terminal only.

    Returns:
        `EdgeScores`, one row an edge.

    Raises:
        ValueError: as `eap`.

    Source: "clean-corrupted" of Hanna et al. 2024 (arXiv:2403.17806).

    Examples:
        >>> case = ms.planted("and")
        >>> scores = ms.eap_clean_corrupted(case.model, case.pairs, ms.logit_diff)
        >>> scores.table.nlargest(1, "score")[["source", "target"]].values.tolist()
        [['m0', 'logits']]
    """

    def points(ask: Asked, ends: Ends) -> list[Point]:
        corrupted = Point({INPUT_SITE: ends[1][INPUT_SITE]}, 0.5)
        return [Point({}, 0.5), corrupted]

    return _by_gradients(
        model, pairs, metric, "eap_clean_corrupted", points, 2, seed, progress
    )


@any_model
@checked
def eap_ig_activations(
    model: Model,
    pairs: PromptPairs,
    metric: Metric,
    *,
    steps: int = 5,
    seed: int = 0,
    progress: bool | None = None,
) -> EdgeScores:
    """EAP with integrated gradients over activations, one component at a time.

    The input, each layer's heads and each MLP in turn is moved from its corrupted
    value to its clean one, at midpoints, in an otherwise clean run; the gradients of
    all these runs are averaged for all edges. It takes steps * (1 + 2 n_layers)
    backward passes. Gradients go through the moved component as if its value had been
    computed (cutting them there would lose paths, and with them exactness on affine
    models).

    Args:
        model: any model whose wiring is known (`mechsink.models.wiring`).
        pairs: clean and corrupted prompts.
        metric: a run to one number per prompt; may read sites (a sink score).
        steps: runs for each component, 1 and more.
        seed: of the intervals and tests.
        progress: show a bar; default on a terminal only.

    Returns:
        `EdgeScores`, one row an edge.

    Raises:
        ValueError: as `eap`, or steps under 1.

    Source: MIB's variant of Hanna et al. 2024 (arXiv:2403.17806).

    Examples:
        >>> case = ms.planted("and")
        >>> scores = ms.eap_ig_activations(case.model, case.pairs, ms.logit_diff)
        >>> scores.table.nlargest(1, "score")[["source", "target"]].values.tolist()
        [['m0', 'logits']]
    """
    _check_steps("eap_ig_activations", steps)

    def points(ask: Asked, ends: Ends) -> list[Point]:
        sites = source_sites(ask.wires)
        weight = 1 / (steps * len(sites))
        return [
            Point({site: _between(ends, site, (k + 0.5) / steps)}, weight)
            for site in sites
            for k in range(steps)
        ]

    n_points = steps * len(source_sites(Wires.of(model.shape)))
    return _by_gradients(
        model, pairs, metric, "eap_ig_activations", points, n_points, seed, progress,
        steps=steps,
    )  # fmt: skip


def _by_gradients(
    model: Model,
    pairs: PromptPairs,
    metric: Metric,
    method: str,
    points: Points,
    n_points: int,
    seed: int,
    progress: bool | None,
    **settings: int,
) -> EdgeScores:
    started = time.perf_counter()
    ask = asked(method, model, pairs, metric)
    by_prompt: dict[int, Tensor] = {}
    depends: list[bool] = []

    def work(batch: TokenPairs) -> None:
        found = readers(ask.wires, ask.wiring)
        ends = ask.ends(batch)
        every = points(ask, ends)
        at_once = max(1, _rows_at_once(ask, batch.n_pos) // len(batch))
        for first in range(0, len(every), at_once):
            some = every[first : first + at_once]
            depends.append(
                collect(model, ask.wires, ask.wiring, found, batch, metric, some)
            )
            advance(len(some) * len(batch))
        scores = score(ask.wires, found, ask.change(ends)).cpu()
        by_prompt.update(zip(batch.index, scores, strict=True))

    with bar(f"{method}, backward passes", n_points * len(pairs), progress) as advance:
        ask.each_batch(lambda n_pos: _rows_at_once(ask, n_pos), work)
    if not any(depends):
        raise ValueError(
            f"{method}: the metric {metric!r} does not depend on the model's heads, "
            "MLPs or logits, so no edge has a gradient. Give a metric of the run."
        )
    return scores_of(ask, by_prompt, method, seed, started, settings)


def _between(ends: Ends, site: Site, share: float) -> Tensor:
    clean, corrupted = ends[0][site], ends[1][site]
    return corrupted + share * (clean - corrupted)


def _check_steps(caller: str, steps: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(
            f"{caller}: steps={steps!r}. Allowed: 1 and more; 5 is usual, and more "
            "settle the integral."
        )


def _rows_at_once(ask: Asked, n_pos: int) -> int:
    """Prompts a pass, backward included, by the memory that is free."""
    shape = ask.model.shape
    # All layers' activations are kept for the backward pass.
    floats = n_pos * shape.n_layers * (16 * shape.d_model + 6 * shape.d_mlp)
    floats += 4 * shape.n_layers * shape.n_heads * n_pos**2 + 4 * n_pos * shape.d_vocab
    floats += 2 * len(ask.wires.sources) * n_pos * shape.d_model
    row = floats * max(4, ask.model.dtype.itemsize)
    return max(1, int(min(1.5 * 2**30, 0.25 * free_bytes(ask.model.device)) // row))
