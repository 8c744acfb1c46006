"""The tables of nodes and edges: scores, and effects of what was ablated or cut."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from mechsink.attribution.inference import inference
from mechsink.experiments.sink_circuits.ask import Question
from mechsink.experiments.sink_circuits.gradients import cut, edge_scores
from mechsink.experiments.sink_circuits.result import EDGE_NUMBERS
from mechsink.experiments.sink_circuits.runs import AtPosition, Ends


def node_table(what: AtPosition, scores: pd.DataFrame) -> pd.DataFrame:
    """Names, layers and heads of the components beside their scores."""
    heads = [what.place(name).head for name in what.names]
    keys = pd.DataFrame(
        {
            "component": pd.Series(list(what.names), dtype="str"),
            "layer": [what.wires.layer(name) for name in what.names],
            "head": np.array(heads, dtype=float),
        }
    )
    return pd.concat([keys, scores], axis=1)


def to_ablate(nodes: pd.DataFrame, top: int) -> np.ndarray:
    """Numbers of the input, the MLPs and the `top` heads."""
    is_head = nodes["component"].str.startswith("a").to_numpy(dtype=bool)
    size = nodes["score"].abs().to_numpy()
    heads = np.flatnonzero(is_head)
    heads = heads[np.argsort(-size[heads], kind="stable")[:top]]
    return np.sort(np.concatenate([np.flatnonzero(~is_head), heads]))


def add_effects(
    table: pd.DataFrame, chosen: np.ndarray, effects: np.ndarray, seed: int
) -> None:
    """Put what was measured by ablation beside the scores; NaN elsewhere."""
    found = inference(np.ascontiguousarray(effects), seed)
    for column, name in (
        ("effect", "score"), ("effect_low", "low"), ("effect_high", "high"),
    ):  # fmt: skip
        values = np.full(len(table), np.nan)
        values[chosen] = found[name]
        table[column] = values


def edge_table(
    ask: Question,
    ends: Sequence[Ends],
    clean: Float[np.ndarray, " text"],
    steps: int,
    n: int,
    sources: Sequence[str],
    seed: int,
) -> pd.DataFrame:
    """Scores of the edges out of some sources; the `n` largest are cut as well."""
    what = ask.what
    wires = what.wires
    edges = [edge for edge in wires.edges if edge[0] in sources] if n else []
    keys = pd.DataFrame(
        {
            "source": pd.Series([source for source, _ in edges], dtype="str"),
            "target": pd.Series([target for _, target in edges], dtype="str"),
        }
    )
    if not edges:
        return keys.assign(**{name: pd.Series(dtype=float) for name in EDGE_NUMBERS})
    s = [wires.source_index[source] for source, _ in edges]
    t = [wires.target_index[target] for _, target in edges]
    found = [edge_scores(what, end, ask.metric, steps, sources) for end in ends]
    by_text = torch.cat(found)[:, s, t].numpy()
    table = pd.concat([keys, inference(by_text, seed)], axis=1)
    order = np.argsort(-table["score"].abs().to_numpy(), kind="stable")
    chosen = order[:n]
    values = [cut(what, end, ask.metric, [edges[i] for i in chosen]) for end in ends]
    add_effects(table, chosen, clean[:, None] - torch.cat(values).numpy(), seed)
    return table
