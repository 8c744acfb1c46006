"""AtP*: attribution patching that sees through saturated attention and cancellation.

Source: Kramar et al. 2024 (arXiv:2403.00745).
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from mechsink.attribution.atp_estimates import (
    Estimate,
    Gradients,
    by_change,
    by_pattern,
    require_own_rows,
)
from mechsink.attribution.attribution_patching import require_numbers
from mechsink.attribution.node_places import (
    PART_COLUMN,
    NodePlaces,
    Positions,
    node_places,
)
from mechsink.attribution.node_runs import (
    WRITES,
    AskedNodes,
    asked_nodes,
    change,
    graph,
    no_gradient,
)
from mechsink.attribution.node_scores import NodeScores, node_scores
from mechsink.models.any_model import any_model
from mechsink.progress import bar
from mechsink.prompts import PromptPairs, TokenPairs
from mechsink.run import Metric, Model, ModelShape
from mechsink.sites import AXES, Site

NODES = ("q", "k", "v", "z", "attn_out", "mlp_post", "mlp_out")
"""Sites inside a block: a layer that GradDrop drops takes all of its own nodes."""


class Options(NamedTuple):
    """The two corrections."""

    qk_fix: bool
    grad_drop: bool


@any_model
def atp_star(
    model: Model,
    pairs: PromptPairs,
    metric: Metric,
    *,
    sites: Sequence[str] = ("q", "k", "v", "mlp_out"),
    qk_fix: bool = True,
    grad_drop: bool = True,
    layers: Sequence[int] | None = None,
    positions: Positions = None,
    neurons: Sequence[int] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> NodeScores:
    """Attribution patching with the two corrections of AtP*, over a model's nodes.

    score = (clean - corrupted value) . d metric / d value at the clean run, as
    `attribution_patching` has it; > 0: corrupting the node lowers the metric (the
    paper's estimate is minus this).

    QK fix, for q and k: the softmax is computed anew instead of taken by its slope;
    score = (clean - patched pattern) . d metric / d pattern. A key changes every later
    query's row; a key-value head's key the rows of all its query heads.

    GradDrop, for `magnitude`: for each layer l the gradient is taken again with
    nothing passing back through block l's attn_out and mlp_out, so that a direct and an
    indirect effect that cancel show; magnitude = 1 / (L - 1) times the sum over the L
    layers of |score without layer l|, node by node (without its own layer a node has
    0). Without `grad_drop` it is |score|. It is >= 0 and in the metric's unit.

    `table`: prompt, node, layer, component, pos, score, magnitude; `nodes` has the
    mean magnitude over prompts (the paper's c), summed over positions.

    Args:
        model: any model whose attention patterns can be edited, for `qk_fix`.
        pairs: clean and corrupted prompts.
        metric: a run to one number per prompt; may read sites.
        sites: what to score, of q, k, v, z, attn_out, mlp_post, mlp_out.
        qk_fix: correct queries and keys.
        grad_drop: correct magnitudes, at the cost of a backward pass a layer.
        layers: whose nodes; default all.
        positions: which, each a node; default all; "all" makes them one node (then
            all keys of a head are patched together).
        neurons: of mlp_post: which, each a node; default their sum.
        seed: of the intervals and tests of `nodes`.
        progress: show a bar; default: on terminals, in notebooks.

    Returns:
        `NodeScores`; `table` has `magnitude` beside `score`.

    Raises:
        ValueError: as `attribution_patching`; sites that are no nodes; a model whose
            patterns can't be edited or are no softmax (`qk_fix`); `grad_drop` with a
            single layer.

    Source: Kramar et al. 2024 (arXiv:2403.00745), equations 7 and 9 to 11.

    Examples:
        >>> case = ms.planted("induction")
        >>> scores = ms.atp_star(case.model, case.pairs, ms.logit_diff)
        >>> scores.nodes.nlargest(3, "score").node.tolist()
        ['L1H0.q', 'L1KV0.k', 'L1KV0.v']
    """
    started = time.perf_counter()
    chosen = tuple(dict.fromkeys([sites] if isinstance(sites, str) else sites))
    options = Options(qk_fix and bool({"q", "k"} & set(chosen)), grad_drop)
    _check(model.shape, model.name, chosen, neurons, options)
    ask = asked_nodes("atp_star", model, pairs, metric)
    where = [
        node_places(
            "atp_star", model.shape, name, layers, positions,
            neurons if name == "mlp_post" else None, ask.lengths,
        )
        for name in chosen
    ]  # fmt: skip
    for places in where:
        if options.qk_fix and places.name in ("q", "k"):
            require_own_rows(model, places.name, places.layers[0])
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def work(batch: TokenPairs) -> tuple[Tensor, Tensor, bool]:
        return _scores(ask, batch, where, options)

    depends = False
    with bar("atp_star", len(pairs), progress) as advance:
        for batch, (score, magnitude, seen) in ask.each(work, patterns=16):
            depends |= seen
            rows = zip(score.cpu(), magnitude.cpu(), strict=True)
            found |= dict(zip(batch.index, rows, strict=True))
            advance(len(batch))
    if not depends:
        raise no_gradient("atp_star", metric, f"any {' or '.join(chosen)} node")
    scores, magnitudes = ([found[i][k] for i in range(len(found))] for k in (0, 1))
    require_numbers("atp_star", [*scores, *magnitudes])
    return node_scores(
        ask,
        "atp_star",
        ", ".join(chosen),
        "noising",
        pd.concat([_keys(places) for places in where], ignore_index=True),
        [where[0].spots(n) for n in ask.lengths],
        {"score": scores, "magnitude": magnitudes},
        seed,
        started,
        qk_fix=qk_fix,
        grad_drop=grad_drop,
    )


def _scores(
    ask: AskedNodes, batch: TokenPairs, where: Sequence[NodePlaces], options: Options
) -> tuple[Tensor, Tensor, bool]:
    """Score and magnitude, [batch node spot], and whether anything has a gradient."""
    model = ask.model
    n_layers = model.shape.n_layers
    fixed = ("q", "k") if options.qk_fix else ()
    plain = {site for p in where if p.name not in fixed for site in p.sites}
    patterns = {
        Site("pattern", layer) for p in where if p.name in fixed for layer in p.layers
    }
    with torch.no_grad():
        swapped = [site for p in where for site in p.sites]
        corrupted = model.run(batch.corrupted, read=swapped).cache
        here = [*sorted(plain), *sorted(patterns)]
    run = graph(model, batch.clean, batch, ask.metric, here, drops=options.grad_drop)
    estimates: dict[Site, Estimate] = {}
    with torch.no_grad():
        for places in where:
            if places.name in fixed:
                estimates |= by_pattern(model, batch, places, corrupted)
                continue
            for site in places.sites:
                delta = change(run.seen[site].detach(), corrupted[site])
                estimates[site] = by_change(places, site, delta)
    del corrupted

    def estimate(gradients: Gradients | None) -> Tensor | None:
        if gradients is None:
            return None
        with torch.no_grad():
            found = [estimates[s](gradients) for p in where for s in p.sites]
            return torch.cat(found, dim=1)

    score = estimate(run.gradients(keep=options.grad_drop))
    if score is None:
        n_nodes = sum(len(p.layers) * len(p.parts) for p in where)
        none = torch.zeros(len(batch), n_nodes, len(where[0].spots(batch.n_pos)))
        return none.double(), none.double(), False
    if not options.grad_drop:
        return score, score.abs(), True
    total = torch.zeros_like(score)
    for layer in range(n_layers):
        dropped = estimate(run.gradients(layer, keep=layer < n_layers - 1))
        if dropped is not None:
            total += dropped.abs()
    return score, total / (n_layers - 1), True


def _keys(places: NodePlaces) -> pd.DataFrame:
    rows = []
    part = next((a for a in AXES[places.name] if a in PART_COLUMN), None)
    for layer in places.layers:
        for number in places.parts:
            if number is None:
                node, component = str(Site(places.name, layer)), places.name
            elif part == "d_mlp":
                component = f"{places.name}[{number}]"
                node = f"L{layer}.{component}"
            else:
                site = Site(places.name, layer, **{part or "": number})
                short = "h" if part == "head" else "kv"
                node, component = str(site), f"{short}{number}.{places.name}"
            rows.append((node, layer, component))
    return pd.DataFrame(rows, columns=["node", "layer", "component"])


def _check(
    shape: ModelShape,
    name: str,
    sites: Sequence[str],
    neurons: Sequence[int] | None,
    options: Options,
) -> None:
    wrong = [site for site in sites if site not in NODES]
    if wrong or not sites:
        raise ValueError(
            f"atp_star: sites={list(sites)}. Allowed: some of {', '.join(NODES)}; for "
            "residuals and patterns take ms.attribution_patching."
        )
    if neurons is not None and "mlp_post" not in sites:
        raise ValueError(
            f'atp_star: neurons= goes with "mlp_post", and sites={list(sites)}. Add it.'
        )
    needed = []
    if options.qk_fix:
        needed = ["resid_pre", "pattern"] + ["attn_scores"] * ("k" in sites)
    for site in needed:
        what = "has no" if site not in shape.sites else "discards edits of"
        if site not in shape.sites or (site == "pattern" and site in shape.read_only):
            raise ValueError(
                f"atp_star: {name} {what} {site} in its own attention code, so the QK "
                "fix can't be computed. Pass qk_fix=False, or sites without q and k."
            )
    if not options.grad_drop:
        return
    if shape.n_layers < 2:
        raise ValueError(
            "atp_star: GradDrop averages over the other layers, and this model has one "
            "layer. Pass grad_drop=False."
        )
    missing = [site for site in WRITES if site not in shape.sites]
    if missing:
        raise ValueError(
            f"atp_star: {name} has no {missing[0]}, through which GradDrop drops a "
            "layer. Pass grad_drop=False."
        )
