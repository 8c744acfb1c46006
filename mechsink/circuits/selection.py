"""Circuits from scores: the best edges, or the best way down from the outputs.

Source: EAP-IG (Hanna et al. 2024, arXiv:2403.17806), `apply_topn` and `apply_greedy`.
May import: rooms up to attribution.
"""

import heapq
import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np

from mechsink.attribution.edge_scores import EdgeScores
from mechsink.circuits.graph import Circuit, Edge
from mechsink.circuits.pruning import pruned_edges
from toy_tasks.checks import checked


@checked
def top_edges(
    scores: EdgeScores, n: SupportsIndex, *, signed: bool = False, prune: bool = True
) -> Circuit:
    """The `n` edges of the largest |score|, then without their loose ends.

    Args:
        scores: of every edge.
        n: edges to choose, 0 to all. Ties go to the earlier edge in the model's
            order (`Wires.edges`), so that the choice is always the same.
        signed: rank by score, so that edges whose corruption raises the metric come
            last.
        prune: drop loose ends (`pruned_edges` states the rule). The circuit may then
            have fewer than n edges, or none.

    Returns:
        A circuit with the scores' outputs. Its `meta` is that of the scores, with
        method, metric, selection "top", sign ("absolute" or "signed"), n (chosen),
        n_edges (left), n_graph (scored) and pruned.

    Raises:
        ValueError: n is no whole number or out of range, or a score is NaN or
            infinite.

    Source: `apply_topn` of EAP-IG (Hanna et al. 2024, arXiv:2403.17806).

    Examples:
        >>> case = ms.planted("and")
        >>> scores = ms.eap_ig(case.model, case.pairs, ms.logit_diff)
        >>> set(ms.top_edges(scores, 5).edges) == case.edges
        True
    """
    edges, ranks, number = _ranked(scores, n, signed, "top_edges")
    order = np.argsort(-ranks, kind="stable")
    chosen = [edges[place] for place in order[:number]]
    return _circuit(scores, chosen, "top", number, signed, prune)


@checked
def greedy_edges(
    scores: EdgeScores, n: SupportsIndex, *, signed: bool = False, prune: bool = True
) -> Circuit:
    """The `n` edges found by going from the outputs upstream, the best first.

    At first the edges into the outputs may be chosen; the first edge chosen from a
    source adds those that end at its ports. So every edge leads to an output. It need
    not begin at the input: as in EAP-IG, sources without an edge into them are
    dropped at the end, with what they alone fed, so that fewer than n edges may remain,
    or none.

    Args:
        scores: of every edge.
        n: edges to choose, 0 to all; fewer are chosen where fewer lead to the outputs.
            Ties go to the earlier edge in the model's order.
        signed: rank by score instead of |score|.
        prune: drop loose ends.

    Returns:
        A circuit as from `top_edges`, with selection "greedy".

    Raises:
        ValueError: as `top_edges`.

    Source: `apply_greedy` of EAP-IG (Hanna et al. 2024, arXiv:2403.17806).

    Examples:
        >>> case = ms.planted("and")
        >>> scores = ms.eap_ig(case.model, case.pairs, ms.logit_diff)
        >>> set(ms.greedy_edges(scores, 5).edges) == case.edges
        True
    """
    edges, ranks, number = _ranked(scores, n, signed, "greedy_edges")
    wires, into = scores.wires, {}
    for place, (_, target) in enumerate(edges):
        into.setdefault(target, []).append(place)
    ports: dict[str, list[str]] = {}
    for target in wires.targets:
        for source in wires.inside(target):
            ports.setdefault(source, []).append(target)
    frontier: list[tuple[float, int]] = []
    opened: set[str] = set()

    def open_up(targets: Sequence[str]) -> None:
        for target in targets:
            if target not in opened:  # a key-value head belongs to several heads
                opened.add(target)
                for place in into.get(target, []):
                    heapq.heappush(frontier, (-float(ranks[place]), place))

    open_up(scores.outputs)
    chosen: list[Edge] = []
    while frontier and len(chosen) < number:
        _, place = heapq.heappop(frontier)
        chosen.append(edges[place])
        open_up(ports.get(edges[place][0], []))
    return _circuit(scores, chosen, "greedy", number, signed, prune)


def _ranked(
    scores: EdgeScores, n: SupportsIndex, signed: bool, caller: str
) -> tuple[list[Edge], np.ndarray, int]:
    """Edges in the model's order, what each is ranked by, and how many to take."""
    edges, values = ordered(scores, caller)
    number = checked_count(n, len(edges), caller)
    return edges, values if signed else np.abs(values), number


def ordered(scores: EdgeScores, caller: str) -> tuple[list[Edge], np.ndarray]:
    """Edges and scores in the model's order.

    Raises:
        ValueError: a score is NaN or infinite.
    """
    wires, table = scores.wires, scores.table
    found = list(zip(table["source"], table["target"], strict=True))
    wires.check(found, caller)
    values = table["score"].to_numpy(dtype=float)
    if not np.isfinite(values).all():
        wrong = int((~np.isfinite(values)).argmax())
        raise ValueError(
            f"{caller}: the score of {found[wrong][0]} -> {found[wrong][1]} is "
            f"{values[wrong]}, which has no rank. Allowed: finite scores. Did the "
            "metric or the model overflow? Try dtype=torch.float32."
        )
    place = sorted(
        range(len(found)),
        key=lambda i: (
            wires.target_index[found[i][1]],
            wires.source_index[found[i][0]],
        ),
    )
    return [found[i] for i in place], values[place]


def checked_count(n: object, most: int, caller: str) -> int:
    """`n` as a whole number of edges.

    Raises:
        ValueError: it is none, or not within 0 to `most`.
    """
    try:
        if isinstance(n, bool | np.bool):
            raise TypeError
        number = operator.index(n)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(
            f"{caller}: n={n!r} is no whole number of edges. For a share of the graph "
            f"pass int(share * {most})."
        ) from None
    if not 0 <= number <= most:
        raise ValueError(
            f"{caller}: n={number} edges asked for. Allowed: 0 to {most}, which is how "
            "many the graph has."
        )
    return number


def _circuit(
    scores: EdgeScores,
    chosen: list[Edge],
    selection: str,
    n: int,
    signed: bool,
    prune: bool,
) -> Circuit:
    if prune:
        chosen = pruned_edges(scores.wires, chosen, scores.outputs)
    meta = {
        **scores.meta,
        "method": scores.method,
        "metric": scores.metric,
        "selection": selection,
        "sign": "signed" if signed else "absolute",
        "n": n,
        "n_edges": len(chosen),
        "n_graph": len(scores.table),
        "pruned": prune,
    }
    table: Any = scores.table
    kept = set(chosen)
    rows = [edge in kept for edge in zip(table["source"], table["target"], strict=True)]
    return Circuit.of(
        scores.wires, chosen, table[rows], outputs=scores.outputs, meta=meta
    )
