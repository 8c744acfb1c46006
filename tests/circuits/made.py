"""Scores and circuits made by hand, and paths counted one by one."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd

from mechsink.attribution.edge_scores import EdgeScores
from mechsink.attribution.wires import INPUT, LOGITS, Wires

Edge = tuple[str, str]

SHAPES = {
    "plain": Wires(2, 2, 2),
    "grouped": Wires(2, 4, 2),
    "parallel": Wires(2, 2, 2, is_parallel=True),
    "attention only": Wires(3, 2, 2, has_mlp=False),
    "whole layers": Wires(2, 2, 1, splits_heads=False),
}


def made_scores(
    wires: Wires, values: Mapping[Edge, float], outputs: Sequence[str] = (LOGITS,)
) -> EdgeScores:
    """Every edge of the model; those that `values` does not name score 0."""
    rows = [(source, target) for source, target in wires.edges]
    table = pd.DataFrame(rows, columns=["source", "target"])
    table["score"] = [float(values.get(edge, 0.0)) for edge in wires.edges]
    for name in ("low", "high", "p_value", "q_value"):
        table[name] = np.nan
    return EdgeScores(
        table, {}, "eap", "logit_diff", list(outputs), asdict(wires), [1.0], [0.0]
    )


def random_scores(wires: Wires, seed: int, outputs: Sequence[str] = (LOGITS,)):
    values = np.random.default_rng(seed).normal(size=len(wires.edges))
    return made_scores(wires, dict(zip(wires.edges, values, strict=True)), outputs)


def paths(
    wires: Wires, edges: Iterable[Edge], outputs: Sequence[str]
) -> Iterator[list[Edge]]:
    """Every way from the input to an output, edge by edge."""
    leaving: dict[str, list[Edge]] = {}
    for edge in edges:
        leaving.setdefault(edge[0], []).append(edge)

    def go(source: str, way: list[Edge]) -> Iterator[list[Edge]]:
        for edge in leaving.get(source, []):
            if edge[1] in outputs:
                yield [*way, edge]
            for head in wires.inside(edge[1]):
                yield from go(head, [*way, edge])

    yield from go(INPUT, [])


def on_paths(wires: Wires, edges: Iterable[Edge], outputs: Sequence[str]) -> set[Edge]:
    return {edge for way in paths(wires, edges, outputs) for edge in way}
