"""ACDC: cut edges one by one, from the outputs back, while it costs little.

May import: rooms up to attribution.
"""

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechsink.attribution.short_runs import metric_of
from mechsink.circuits.acdc_search import Objective, Order, Search
from mechsink.circuits.evaluation import CircuitRuns, Edges
from mechsink.circuits.graph import Circuit
from mechsink.circuits.pruning import edges_of
from mechsink.circuits.ratios import check_told_apart
from mechsink.models.any_model import any_model
from mechsink.progress import bar
from mechsink.prompts import PromptPairs
from mechsink.provenance import provenance
from mechsink.run import Metric, Model, Run
from mechsink.sites import Site

OBJECTIVES = {
    "kl": "KL(full || pruned) at the last position, mean over prompts, nats",
    "metric": "|mean metric of the full model - mean metric of the pruned one|",
}


@any_model
def acdc(
    model: Model,
    pairs: PromptPairs,
    metric: Metric | None = None,
    *,
    tau: float,
    objective: Objective | None = None,
    order: Order = "reverse",
    within: Edges | None = None,
    progress: bool | None = None,
) -> Circuit:
    """Automatic circuit discovery: what is left when cheap edges are cut.

    From the full model, targets from the outputs to the input, and each target's
    sources from the last to the first: the edge is cut, so that it carries the
    corrupted run's write. If the objective m grows by less than tau, m_new - m_old <
    tau, it stays cut, else it is restored. Edges into what has no way to an output any
    more are cut unmeasured. Edges from what no longer reads anything are kept, as in
    the paper's code; `Circuit.pruned` drops them.

    Args:
        model: any model whose wiring is known (`mechsink.models.wiring`).
        pairs: clean and corrupted prompts.
        metric: a run to one number per prompt; for a sink score, circuits end where
            it is read.
        tau: threshold, in the objective's unit. A larger one leaves fewer edges.
        objective: "kl": m is KL(full || pruned) of the next token at the last
            position, mean over prompts, in nats; `metric` plays no part. "metric": m is
            |mean metric of the full model - mean metric of the pruned one|, in the
            metric's unit, so that raising the metric counts as harm too. Default:
            "metric" where one is given, else "kl".
        order: a target's sources, "reverse" (last first) or "normal" (first first).
        within: begin from this circuit, all else cut, as from `top_edges`. Each edge
            takes about one run of all prompts, and large models have tens of
            thousands. Default: all edges.
        progress: show a bar; default: on terminals, in notebooks.

    Returns:
        A circuit, each edge with the score that kept it: the drop of the mean metric,
        or the growth of the KL, when it was cut (> 0: cutting it hurts). `meta` has
        the options, `measured` edges and the `trials` they took.

    Raises:
        ValueError: bad pairs; tau negative or not finite; an unknown objective or
            order; "metric" without a metric; a metric that no edge changes; `within`
            of another model.

    Source: Conmy et al. 2023 (arXiv:2304.14997).

    Examples:
        >>> case = ms.planted("and")
        >>> circuit = ms.acdc(case.model, case.pairs, ms.logit_diff, tau=0.1)
        >>> set(circuit.edges) == case.edges
        True
    """
    return acdc_sweep(
        model, pairs, metric, taus=[tau], objective=objective, order=order,
        within=within, progress=progress,
    )[tau]  # fmt: skip


@any_model
def acdc_sweep(
    model: Model,
    pairs: PromptPairs,
    metric: Metric | None = None,
    *,
    taus: Sequence[float],
    objective: Objective | None = None,
    order: Order = "reverse",
    within: Edges | None = None,
    nested: bool = False,
    progress: bool | None = None,
) -> dict[float, Circuit]:
    """`acdc` at several thresholds.

    Args:
        model: any model whose wiring is known (`mechsink.models.wiring`).
        pairs: clean and corrupted prompts.
        metric: a run to one number per prompt.
        taus: thresholds.
        nested: begin each threshold from the circuit of the next smaller one, so that
            circuits lie within one another and later ones cost little; they are then
            not quite those of `acdc`, which begins afresh.
        objective: "kl" or "metric", as in `acdc`.
        order: a target's sources, "reverse" (last first) or "normal" (first first).
        within: begin from this circuit; default: all edges.
        progress: show a bar; default on a terminal only.

    Returns:
        Threshold to circuit, from the smallest threshold on.

    Raises:
        ValueError: as `acdc`; no thresholds, or one twice.

    Source: Conmy et al. 2023 (arXiv:2304.14997).

    Examples:
        >>> case = ms.planted("and")
        >>> taus = [0.1, 20.0]
        >>> swept = ms.acdc_sweep(case.model, case.pairs, ms.logit_diff, taus=taus)
        >>> {tau: circuit.n_edges for tau, circuit in swept.items()}
        {0.1: 5, 20.0: 0}
    """
    kind = objective or ("kl" if metric is None else "metric")
    taus = _checked(taus, kind, order, metric)
    runs = _runs(model, pairs, metric if kind == "metric" else None)
    full, ablated = runs.ends()
    name = repr(runs.ask.metric)
    check_told_apart("acdc", name, ablated, full, model.dtype)
    found: dict[float, Circuit] = {}
    begin = runs.ask.wires.real if within is None else runs.mask(within)
    keep = begin
    for tau in taus:
        started = time.perf_counter()
        search = Search(runs, kind, float(full.mean()), tau, order)
        start = keep if nested else begin
        with bar(f"acdc, tau {tau:g}", int(start.sum()), progress) as advance:
            keep = search.run(start, advance)
        meta = provenance(
            model,
            [x for group in runs.ask.groups for x in (group.clean, group.corrupted)],
            duration=time.perf_counter() - started,
        )
        meta |= {
            "method": "acdc", "selection": "acdc", "tau": tau, "objective": kind,
            "objective_is": OBJECTIVES[kind], "order": order, "ablation": "patch",
            "metric": name, "n_edges": int(keep.sum()),
            "n_graph": len(runs.ask.wires.edges), "pruned": False, "nested": nested,
            "n_begin": int(start.sum()),
            "measured": search.measured, "trials": search.trials,
        }  # fmt: skip
        found[tau] = Circuit.of(
            runs.ask.wires,
            edges_of(runs.ask.wires, keep),
            search.scores,
            outputs=runs.ask.outputs,
            meta=meta,
        )
    return found


@dataclass(eq=False, repr=False)
class _KlToFull:
    """KL(full || run) of the next token at the last position, nats."""

    full: dict[int, Tensor] = field(default_factory=dict)  # log-probabilities by pair
    reads: frozenset[Site] = frozenset()
    logits_read = "last"

    def __repr__(self) -> str:
        return "kl_to_full"

    def __call__(self, run: Run, prompts: Any) -> Float[Tensor, " prompt"]:
        q = run.logits[:, -1].double().log_softmax(-1)
        for i, row in zip(prompts.index, q, strict=True):
            self.full.setdefault(i, row)
        p = torch.stack([self.full[i] for i in prompts.index])
        terms = p.exp() * (p - q)
        return torch.where(p.isneginf(), 0.0, terms).sum(-1)


def _runs(model: Model, pairs: PromptPairs, metric: Metric | None) -> CircuitRuns:
    if metric is not None:
        return CircuitRuns.of("acdc", model, pairs, metric)
    kl = _KlToFull()
    runs = CircuitRuns.of("acdc", model, pairs, kl)
    for batch in runs.batches:  # the first run of each pair is what others are held to
        metric_of(model, runs.ask.wiring, batch.clean, batch, kl)
    return runs


def _checked(
    taus: Collection[float], objective: str, order: str, metric: Metric | None
) -> list[float]:
    if objective not in OBJECTIVES or order not in ("reverse", "normal"):
        raise ValueError(
            f"acdc: objective={objective!r}, order={order!r}. Allowed: 'kl' or "
            "'metric', and 'reverse' or 'normal'."
        )
    if objective == "metric" and metric is None:
        raise ValueError(
            "acdc: objective='metric' needs a metric, such as ms.logit_diff. Give one, "
            "or take objective='kl'."
        )
    bad = [tau for tau in taus if not (math.isfinite(tau) and tau >= 0)]
    if bad or not len(taus) or len(set(taus)) != len(taus):
        raise ValueError(
            f"acdc: tau {bad or list(taus)}. Allowed: finite thresholds from 0 on, "
            f"each once, in the objective's unit ({OBJECTIVES[objective]})."
        )
    return sorted(taus)
