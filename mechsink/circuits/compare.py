"""How alike two circuits or two tables of scores are, and how near to a known one.

May import: rooms up to attribution.
"""

import itertools
from collections.abc import Collection, Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from mechsink.attribution.edge_scores import EdgeScores
from mechsink.circuits.graph import Circuit, Edge, same_wires
from mechsink.circuits.selection import checked_count, ordered, top_edges

By = Literal["abs", "signed"]


def jaccard(a: Circuit, b: Circuit) -> float:
    """Edges in both circuits over edges in either.

    Args:
        a: a circuit.
        b: another one of the same model.

    Returns:
        0 (no edge in common) to 1 (the same edges); NaN if both are empty. Two random
        choices of a share p of the edges give about p / (2 - p).

    Raises:
        ValueError: they are of models of different shapes.

    Examples:
        >>> case = ms.planted("and")
        >>> scores = ms.eap(case.model, case.pairs, ms.logit_diff)
        >>> ms.jaccard(ms.top_edges(scores, 5), ms.top_edges(scores, 5, signed=True))
        1.0
    """
    same_wires([a, b], "jaccard")
    return _jaccard({*a.edges}, {*b.edges})


def edge_auroc(
    scores: EdgeScores, true_edges: Circuit | Collection[Edge], *, by: By = "abs"
) -> float:
    """How well scores tell true edges from the others.

    The probability that a true edge outranks another one, both drawn at random; ties
    count half (Mann-Whitney).

    Args:
        scores: of every edge.
        true_edges: (source, target) pairs, or a circuit.
        by: rank by "abs", |score|, or "signed", the score itself.

    Returns:
        0 to 1; 0.5 is chance.

    Raises:
        ValueError: no true edge or nothing but true edges, an edge without a score, or
            scores that are NaN or infinite.

    Examples:
        >>> case = ms.planted("induction")
        >>> scores = ms.eap(case.model, case.pairs, ms.logit_diff)
        >>> ms.edge_auroc(scores, case.edges)
        1.0
    """
    _check_by(by, "edge_auroc")
    edges, values = ordered(scores, "edge_auroc")
    if isinstance(true_edges, Circuit):
        same_wires([scores, true_edges], "edge_auroc")
        true_edges = true_edges.edges
    wanted = set(true_edges)
    scores.wires.check(sorted(wanted), "edge_auroc")
    if missing := wanted - set(edges):
        source, target = min(missing)
        raise ValueError(f"edge_auroc: {source} -> {target} has no score in the table.")
    if not wanted or len(wanted) == len(edges):
        raise ValueError(
            f"edge_auroc: {len(wanted)} of {len(edges)} edges are true. Allowed: at "
            "least one true and one other edge, else there is nothing to tell apart."
        )
    is_true = np.array([edge in wanted for edge in edges])
    ranks = stats.rankdata(np.abs(values) if by == "abs" else values)
    n_true, n_other = int(is_true.sum()), int((~is_true).sum())
    wins = ranks[is_true].sum() - n_true * (n_true + 1) / 2
    return float(wins / (n_true * n_other))


def rank_correlation(
    a: EdgeScores | Circuit, b: EdgeScores | Circuit, *, by: By = "signed"
) -> float:
    """Spearman's correlation over edges that have a score in both.

    Args:
        a: scores, or a circuit that carries them.
        b: others of the same model.
        by: rank by the score ("signed") or by |score| ("abs").

    Returns:
        -1 to 1; NaN where it is not defined: fewer than two such edges, or all of one
        side equal.

    Raises:
        ValueError: they are of models of different shapes.

    Examples:
        >>> case = ms.planted("induction")
        >>> estimate = ms.eap(case.model, case.pairs, ms.logit_diff)
        >>> exact = ms.exact_edges(case.model, case.pairs, ms.logit_diff)
        >>> ms.rank_correlation(estimate, exact) > 0.5
        True
    """
    _check_by(by, "rank_correlation")
    same_wires([a, b], "rank_correlation")
    both = _common(a, b)
    values = both.abs() if by == "abs" else both
    if len(values) < 2 or (values.nunique() < 2).any():
        return float("nan")
    found: Any = stats.spearmanr(values["a"], values["b"])
    return float(found.statistic)


def compare(
    given: Mapping[str, EdgeScores | Circuit], n: int | None = None, *, by: By = "abs"
) -> pd.DataFrame:
    """Every pair of scores or circuits, side by side.

    Args:
        given: at least two, by name, all of one model.
        n: edges taken of each for `jaccard`: those of the largest |score| (or score),
            nothing pruned, so that sizes are equal. By default the size of the smallest
            circuit, or a tenth of the edges if there are only scores.
        by: rank by |score| ("abs") or by score ("signed"), in both columns.

    Returns:
        One row a pair: first, second, n, jaccard, n_common (edges with a score in
        both), spearman over these; as in `jaccard` and `rank_correlation`.

    Raises:
        ValueError: fewer than two, models of different shapes, n out of range, or a
            circuit without scores that has more than n edges.

    Examples:
        >>> case = ms.planted("and")
        >>> given = {"eap": ms.eap(case.model, case.pairs, ms.logit_diff)}
        >>> given["exact"] = ms.exact_edges(case.model, case.pairs, ms.logit_diff)
        >>> ms.compare(given, n=5)[["first", "second", "jaccard"]].values.tolist()
        [['eap', 'exact', 1.0]]
    """
    _check_by(by, "compare")
    if len(given) < 2:
        raise ValueError(f"compare: {len(given)} given. Give two or more, by name.")
    same_wires(list(given.values()), "compare")
    sizes = [_size(one) for one in given.values()]
    if n is None:
        circuits = [one.n_edges for one in given.values() if isinstance(one, Circuit)]
        n = min(circuits) if circuits else max(min(sizes) // 10, 1)
    n = checked_count(n, min(sizes), "compare")
    best = {name: _best(name, one, n, by) for name, one in given.items()}
    rows = [
        {
            "first": first,
            "second": second,
            "n": n,
            "jaccard": _jaccard(best[first], best[second]),
            "n_common": len(_common(given[first], given[second])),
            "spearman": rank_correlation(given[first], given[second], by=by),
        }
        for first, second in itertools.combinations(given, 2)
    ]
    return pd.DataFrame(rows)


def _jaccard(a: set[Edge], b: set[Edge]) -> float:
    return len(a & b) / len(a | b) if a or b else float("nan")


def _common(a: EdgeScores | Circuit, b: EdgeScores | Circuit) -> pd.DataFrame:
    """Columns a and b: scores of the edges that have one in both."""
    sides = {
        side: one.table.set_index(["source", "target"])["score"]
        for side, one in (("a", a), ("b", b))
    }
    both = pd.concat(sides, axis=1, join="inner").dropna()
    return pd.DataFrame(both)


def _size(one: EdgeScores | Circuit) -> int:
    return one.n_edges if isinstance(one, Circuit) else len(one.table)


def _best(name: str, one: EdgeScores | Circuit, n: int, by: By) -> set[Edge]:
    if isinstance(one, EdgeScores):
        return {*top_edges(one, n, signed=by == "signed", prune=False).edges}
    if n == one.n_edges:
        return {*one.edges}
    values = one.table["score"].to_numpy()
    if np.isnan(values).any():
        raise ValueError(
            f"compare: {name!r} has {one.n_edges} edges, some without a score, so its "
            f"best {n} are not known. Allowed: n={one.n_edges} for it, or circuits "
            "that have scores."
        )
    order = np.argsort(-(np.abs(values) if by == "abs" else values), kind="stable")
    return {one.edges[place] for place in order[:n]}


def _check_by(by: str, caller: str) -> None:
    if by not in ("abs", "signed"):
        raise ValueError(f"{caller}: by={by!r}. Allowed: 'abs', 'signed'.")
