"""Attribution patching: a first-order estimate of what `patch_sweep` measures.

Every place of a site from one backward pass (or, integrated, from a few), where
`patch_sweep` runs the model once for each.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, get_args

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechsink.attribution.node_places import NodePlaces, Positions, node_places
from mechsink.attribution.node_runs import (
    INPUT_SITE,
    AskedNodes,
    Graph,
    asked_nodes,
    change,
    graph,
    no_gradient,
)
from mechsink.attribution.node_scores import Direction, NodeScores, node_scores
from mechsink.models.any_model import any_model
from mechsink.progress import bar
from mechsink.prompts import PromptPairs, TokenPairs
from mechsink.run import Metric, Model
from toy_tasks.checks import checked

Rules = Callable[[], contextlib.AbstractContextManager[None]]


@any_model
@checked
def attribution_patching(
    model: Model,
    pairs: PromptPairs,
    metric: Metric,
    site: str = "z",
    *,
    direction: Direction = "noising",
    steps: int | None = None,
    layers: Sequence[int] | None = None,
    positions: Positions = None,
    neurons: Sequence[int] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> NodeScores:
    """Score every place of a site by a gradient instead of a patch.

    score = (clean - corrupted value) . d metric / d value, summed over the node's
    entries; > 0: corrupting the place lowers the metric. `estimate` is the metric that
    `patch_sweep` finds as `value` where the model is affine: clean metric - score for
    "noising", corrupted metric + score for "denoising".

    Args:
        model: any model.
        pairs: clean and corrupted prompts.
        metric: a run to one number per prompt; may read sites (a sink score).
        site: name of any site whose edits the model takes. z, q, pattern and
            attn_scores are scored head by head, k and v by KV head; a pattern row
            (query) counts as its position.
        direction: "noising" puts corrupted values into the clean run, so the gradient
            is the clean run's; "denoising" the reverse (TransformerLens's convention).
        steps: None or 0 for that one gradient; m for integrated gradients: the mean
            over m runs whose input (the residual before layer 0) is corrupted +
            a (clean - corrupted), a = (k + 1/2) / m. `direction` then only says which
            end `estimate` starts from.
        layers: which; default all.
        positions: which, each a node; default all; "all" makes them one node.
        neurons: for site "mlp_post": which, each a node; default their sum.
        seed: of the intervals and tests of `nodes`.
        progress: show a bar; default: on terminals, in notebooks.

    Returns:
        `NodeScores`; `table` has `estimate` beside `score`.

    Raises:
        ValueError: bad pairs, site, layers, positions or steps; clean and corrupted
            prompts that are all the same; a metric that is constant, NaN, or does not
            depend on the site.

    Sources: Nanda 2023, "Attribution patching"; integrated, Hanna et al. 2024
    (arXiv:2403.17806).

    Examples:
        >>> case = ms.planted("induction")
        >>> scores = ms.attribution_patching(case.model, case.pairs, ms.logit_diff)
        >>> best = scores.nodes.nlargest(2, "score")
        >>> best[["layer", "head"]].values.tolist()
        [[1, 0], [0, 0]]
    """
    if steps is not None and (isinstance(steps, bool) or steps < 0):
        raise ValueError(
            f"attribution_patching: steps={steps!r}. Allowed: None or 0 for the "
            "gradient at one run, 1 and more for integrated gradients; 5 is usual."
        )
    return by_gradient(
        "attribution_patching", model, pairs, metric, site, direction, steps or 0,
        layers, positions, neurons, seed, progress,
    )  # fmt: skip


def by_gradient(
    method: str,
    model: Model,
    pairs: PromptPairs,
    metric: Metric,
    site: str,
    direction: Direction,
    steps: int,
    layers: Sequence[int] | None,
    positions: Positions,
    neurons: Sequence[int] | None,
    seed: int,
    progress: bool | None,
    rules: Rules = contextlib.nullcontext,
) -> NodeScores:
    """`attribution_patching`, its backward passes within `rules`."""
    started = time.perf_counter()
    if direction not in get_args(Direction):
        raise ValueError(
            f'{method}: direction={direction!r}. Allowed: "noising" (corrupted values '
            'into the clean run) or "denoising" (the reverse).'
        )
    ask = asked_nodes(method, model, pairs, metric)
    where = node_places(
        method, model.shape, site, layers, positions, neurons, ask.lengths
    )
    found: dict[int, Tensor] = {}
    depends = False

    def work(batch: TokenPairs) -> tuple[Tensor, bool]:
        return _scores(ask, batch, where, direction, steps, rules)

    with bar(method, len(pairs), progress) as advance:
        for batch, (scores, seen) in ask.each(work):
            depends |= seen
            rows = scores.flatten(1, 2).cpu()
            found |= dict(zip(batch.index, rows, strict=True))
            advance(len(batch))
    if not depends:
        raise no_gradient(method, metric, f"any {site} of layers {list(where.layers)}")
    scores = [found[i] for i in range(len(found))]
    require_numbers(method, scores)
    estimates = [
        start - score if direction == "noising" else start + score
        for start, score in zip(
            ask.clean if direction == "noising" else ask.corrupted, scores, strict=True
        )
    ]
    return node_scores(
        ask,
        method,
        site,
        direction,
        _keys(where),
        [where.spots(n) for n in ask.lengths],
        {"score": scores, "estimate": estimates},
        seed,
        started,
        steps=steps,
    )


def _scores(
    ask: AskedNodes,
    batch: TokenPairs,
    where: NodePlaces,
    direction: Direction,
    steps: int,
    rules: Rules,
) -> tuple[Float[Tensor, "prompt layer part spot"], bool]:
    """Scores of a batch, and whether the metric depends on the sites at all."""
    model, sites = ask.model, where.sites

    def made(tokens: Tensor, put: dict[Any, Tensor] | None = None) -> Graph:
        with rules():
            return graph(model, tokens, batch, ask.metric, sites, put=put)

    def weighed(by: Graph, delta: dict[Any, Tensor]) -> Tensor | None:
        gradients = by.gradients()
        if gradients is None:
            return None
        rows = [where.by_node(delta[site] * gradients[site]) for site in sites]
        return torch.stack(rows, dim=1)

    read = [*sites, INPUT_SITE] if steps else sites
    noising = direction == "noising"
    other = batch.corrupted if noising or steps else batch.clean
    with torch.no_grad():
        far = dict(model.run(other, read=read).cache)
        near = dict(model.run(batch.clean, read=read).cache) if steps else {}
    if not steps:
        here = made(batch.clean if noising else batch.corrupted)
        near = {site: x.detach() for site, x in here.seen.items()}
        ends = (near, far) if noising else (far, near)
        delta = {site: change(ends[0][site], ends[1][site]) for site in sites}
        scores = weighed(here, delta)
        return (_nothing(ask, batch, where) if scores is None else scores), (
            scores is not None
        )
    delta = {site: change(near[site], far[site]) for site in sites}
    clean, corrupted = near[INPUT_SITE], far[INPUT_SITE]
    del near, far
    total, depends = _nothing(ask, batch, where), False
    for k in range(steps):
        between = corrupted + (k + 0.5) / steps * (clean - corrupted)
        scores = weighed(made(batch.clean, {INPUT_SITE: between}), delta)
        if scores is not None:
            total, depends = total + scores / steps, True
    return total, depends


def _nothing(ask: AskedNodes, batch: TokenPairs, where: NodePlaces) -> Tensor:
    return torch.zeros(
        len(batch),
        len(where.layers),
        len(where.parts),
        len(where.spots(batch.n_pos)),
        dtype=torch.float64,
        device=ask.model.device,
    )


def _keys(where: NodePlaces) -> pd.DataFrame:
    names = ["layer", where.part_column or "part"]
    index = pd.MultiIndex.from_product([where.layers, where.parts], names=names)
    keys = index.to_frame(index=False)
    return keys.drop(columns="part") if where.part_column is None else keys


def require_numbers(method: str, scores: Sequence[Tensor]) -> None:
    """Raise ValueError if a score is NaN or infinite."""
    bad = [i for i, score in enumerate(scores) if not score.isfinite().all()]
    if bad:
        raise ValueError(
            f"{method}: scores of pairs {bad[:8]} are NaN or infinite, though the "
            "metric is not: a gradient overflows in this dtype. Load the model with "
            "dtype=torch.float32."
        )
