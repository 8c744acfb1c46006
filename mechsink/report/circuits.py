"""`edge_report`: from prompts to a circuit, and how faithful it is.

May import: sites, run, results, plotting, prompts, prompt_sets, attribution, circuits.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from mechsink.attribution.edge_scores import EdgeScores
from mechsink.attribution.edges import eap_ig
from mechsink.attribution.wires import Wires
from mechsink.circuits.evaluation import Ablation, References
from mechsink.circuits.faithfulness import faithfulness
from mechsink.circuits.faithfulness_curve import (
    FRACTIONS,
    SELECTIONS,
    FaithfulnessCurve,
    Selection,
    faithfulness_curve,
)
from mechsink.circuits.selection import checked_count
from mechsink.models.any_model import any_model
from mechsink.prompt_sets.accuracy import accuracy
from mechsink.prompt_sets.sets import PromptSet
from mechsink.prompts import PromptPairs
from mechsink.provenance import provenance
from mechsink.report.edge_result import EdgeReport, Estimate
from mechsink.report.pair_parts import n_repeated, one_by_one, pair_table, some, split
from mechsink.run import Metric, Model

Method = Callable[[Model, PromptPairs, Metric], EdgeScores]
MOST = 100
"""Edges of the circuit, where none are asked for."""


@any_model
def edge_report(
    model: Model,
    pairs: PromptPairs | PromptSet,
    metric: Metric,
    *,
    method: Method = eap_ig,
    n: int | None = None,
    signed: bool = False,
    selection: Selection = "top",
    fractions: Sequence[float] = FRACTIONS,
    ablation: Ablation = "patch",
    reference: References | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> EdgeReport:
    """Score all edges, choose a circuit, measure how faithful it is.

    From 20 pairs on, half of them, drawn at random, choose (scores, intervals and
    tests of edges are over these) and the others measure. With fewer all pairs do
    both, which flatters the circuit; the page says so.

    Args:
        model: any model whose wiring is known (`mechsink.models.wiring`).
        pairs: clean and corrupted prompts, or one of `ms.prompt_sets`.
        metric: a run to one number per prompt; may read sites (a sink score).
        method: what scores the edges: `ms.eap_ig`, `partial(ms.eap_ig, steps=20)`,
            `ms.exact_edges`, or any function like them.
        n: edges to choose; the circuit loses its loose ends after that. Default: 100,
            or all where there are fewer.
        signed: rank by score, not by |score|.
        selection: "top" (`top_edges`) or "greedy" (`greedy_edges`).
        fractions: shares of the edges, ascending, as in `faithfulness_curve`.
        ablation: what cut edges carry: "patch", "zero" or "mean".
        reference: prompts for "mean".
        resamples: bootstrap resamples of the prompts.
        seed: of the split and the resamples.

    Returns:
        An `EdgeReport`: `.save(folder)` writes tables, the circuit, figures and
        report.html.

    Raises:
        ValueError: as the method and `faithfulness_curve`; a method that is no
            function; n under 1 or more than the edges there are.

    Source: the curve and its areas, MIB (Mueller et al. 2025, arXiv:2504.13151).

    Examples:
        >>> case = ms.planted("and", n_prompts=20)
        >>> report = ms.edge_report(case.model, case.pairs, ms.logit_diff, n=5)
        >>> set(report.circuit.edges) == case.edges
        True
    """
    started = time.perf_counter()
    n = _checked(method, n, selection, len(Wires.of(model.shape).edges))
    about: dict[str, Any] = {}
    if isinstance(pairs, PromptSet):
        about["prompt_set"] = {**pairs.settings, "dropped": dict(pairs.dropped)}
        pairs = pairs.pairs
    choosing, measuring = split(len(pairs), seed)
    scores = method(model, some(pairs, choosing), metric)
    circuit = SELECTIONS[selection](scores, n, signed=signed)
    others = some(pairs, measuring)
    options: dict[str, Any] = {
        "ablation": ablation, "reference": reference, "resamples": resamples,
        "seed": seed,
    }  # fmt: skip
    curve = faithfulness_curve(
        model, scores, others, metric, fractions=fractions, signed=signed,
        selection=selection, **options,
    )  # fmt: skip
    faith = faithfulness(model, circuit, others, metric, **options)
    has_answers = pairs.answers is not None and pairs.wrong is not None
    right = accuracy(model, pairs) if has_answers else None
    rows = one_by_one(model, pairs)
    settings: dict[str, Any] = {
        **curve.meta["settings"], "n": n, "pairs": len(pairs),
        "pairs_that_choose": choosing, "pairs_that_measure": measuring, **about,
    }  # fmt: skip
    meta = provenance(
        model,
        [tokens[None] for row in rows for tokens in (row.clean, row.corrupted)],
        duration=time.perf_counter() - started,
        **settings,
    )
    kept = {*circuit.edges}
    edges = zip(scores.table["source"], scores.table["target"], strict=True)
    is_split = choosing != measuring
    part = dict.fromkeys(choosing, "choose") | dict.fromkeys(measuring, "measure")
    of_pair = {
        "full": dict(zip(choosing, scores.clean, strict=True)),
        "corrupted": dict(zip(choosing, scores.corrupted, strict=True)),
    }
    for name in ("full", "circuit", "ablated"):
        found = zip(measuring, faith.table[name], strict=True)
        of_pair[name] = of_pair.get(name, {}) | dict(found)
    return EdgeReport(
        scores.table.assign(in_circuit=[edge in kept for edge in edges]),
        meta,
        curve.table,
        pair_table(
            model, rows, part if is_split else dict.fromkeys(part, "both"), of_pair,
            right,
        ),
        _shares(curve, measuring),
        scores.method, repr(metric), scores.outputs, asdict(scores.wires), n,
        selection, curve.sign, ablation, is_split,
        n_repeated(rows, choosing, measuring) if is_split else 0, resamples,
        _estimate(faith.value, faith.low, faith.high),
        _estimate(curve.cpr, curve.cpr_low, curve.cpr_high),
        _estimate(curve.cmd, curve.cmd_low, curve.cmd_high),
        [None] * 3
        if right is None
        else _estimate(right.beats_wrong, right.low, right.high),
    )  # fmt: skip


def _shares(curve: FaithfulnessCurve, measuring: list[int]) -> pd.DataFrame:
    table = curve.prompts.drop(columns=["full", "ablated"])
    return table.rename(columns={"prompt": "pair"}).assign(pair=measuring)


def _checked(method: object, n: int | None, selection: str, n_graph: int) -> int:
    if not callable(method):
        raise ValueError(
            f"edge_report: method={method!r} is no function. Give one that scores "
            "edges, such as ms.eap_ig or functools.partial(ms.eap_ig, steps=20)."
        )
    if selection not in SELECTIONS:
        raise ValueError(
            f"edge_report: selection={selection!r}. Allowed: {', '.join(SELECTIONS)}."
        )
    if n is None:
        return min(MOST, n_graph)
    number = checked_count(n, n_graph, "edge_report")
    if number < 1:
        raise ValueError(
            f"edge_report: n={n} edges make no circuit. Allowed: 1 to {n_graph}."
        )
    return number


def _estimate(*values: float) -> Estimate:
    return [float(x) if np.isfinite(x) else None for x in values]
